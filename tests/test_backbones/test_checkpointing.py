"""Gradient checkpointing of every kind: gradients equal those without it, or an error says what to do."""
from functools import partial

import pytest
import torch
from matrix import CASES, build, images, loss, outputs
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch.utils.checkpoint import checkpoint

from mmprovpt.attention import PromptedBlock


def blocks(backbone):
    return [module for module in backbone.modules() if isinstance(module, PromptedBlock)]


def by_method(backbone):
    """timm's way, which every prompted backbone has."""
    backbone.set_grad_checkpointing()


def by_attribute(backbone):
    """OpenMMLab's way, set after the backbone was built."""
    for block in blocks(backbone):
        block.with_cp = True
        assert block.with_cp


def by_torch(backbone):
    """Somebody's own, block by block, not re-entrant."""
    for block in blocks(backbone):
        block.forward = wrapped(block.forward, use_reentrant=False)


def by_torch_whole(backbone):
    """The same, of the whole backbone."""
    backbone.forward = wrapped(backbone.forward, use_reentrant=False)


def by_torch_reentrant(backbone):
    for block in blocks(backbone):
        block.forward = wrapped(block.forward, use_reentrant=True)


def by_mmengine(backbone):
    """``activation_checkpointing`` of a config's strategy."""
    names = [name for name, module in backbone.named_modules() if isinstance(module, PromptedBlock)]
    turn_on_activation_checkpointing(backbone, names)


def wrapped(forward, use_reentrant):
    # PyTorch's re-entrant kind takes no keywords, by which some blocks are called.
    return lambda *args, **kwargs: checkpoint(partial(forward, **kwargs), *args, use_reentrant=use_reentrant)


def gradients(case, kind, start=None, wants_input=False):
    """Of two forwards of other sizes before one backward, with dropout."""
    torch.manual_seed(0)
    backbone = build(case, dict(kind, num_tokens=3, dropout=0.1)).train()
    if start is not None:
        start(backbone)
    torch.manual_seed(1)
    first, second = (images(case, size, seed=seed).requires_grad_(wants_input)
                     for seed, size in enumerate(case.sizes[:2]))
    value = loss(backbone, first) + 2 * loss(backbone, second)
    value.backward()
    return [value.detach(), *(parameter.grad for parameter in backbone.prompts.parameters())]


@pytest.mark.parametrize('start', [by_method, by_attribute, by_torch_whole])
def test_ours_changes_nothing(case, kind, start):
    for ours, plain in zip(gradients(case, kind, start), gradients(case, kind), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('name', [name for name, case in CASES.items() if case.with_cp])
def test_with_cp_in_the_config(name, kind):
    case = CASES[name]
    backbone = build(case, dict(kind, num_tokens=3), with_cp=True)
    assert all(block.with_cp and block.checkpointed for block in blocks(backbone))
    backbone.set_grad_checkpointing(False)
    assert not any(block.with_cp for block in blocks(backbone))


def test_somebody_elses_is_right_or_says_what_to_do(case, kind):
    """A recomputed block is alone: it lacks what only the forward of the backbone knows."""
    if kind['type'] == 'StaticPrompts':
        for ours, plain in zip(gradients(case, kind, by_torch), gradients(case, kind), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)
    else:
        with pytest.raises(RuntimeError, match='run again by a checkpointing that is not ours'):
            gradients(case, kind, by_torch)


@pytest.mark.filterwarnings('ignore:.*use_reentrant', 'ignore:None of the inputs')
@pytest.mark.parametrize('start', [by_torch_reentrant, by_mmengine])
def test_reentrant_checkpointing_of_frozen_blocks_is_refused_in_the_first_forward(case, kind, start):
    """It would leave the prompts without a gradient, and say nothing."""
    backbone = build(case, dict(kind, num_tokens=3)).train()
    start(backbone)
    # MMEngine's kind cannot call by keyword, with or without prompts.
    message = 'block 0 runs with them off .* prompts would get no gradient|unexpected keyword argument'
    with pytest.raises((RuntimeError, TypeError), match=message):
        backbone(images(case))


@pytest.mark.parametrize('name', ['mmpretrain-vit', 'mmdet-swin'])
def test_blocks_without_prompts_may_run_without_gradients(name):
    """As somebody does to save memory in the first blocks, where all prompts are in the last."""
    case = CASES[name]
    backbone = build(case, dict(num_tokens=[0] * (case.depth - 1) + [2])).train()
    expected = gradient(backbone, images(case))
    blocks(backbone)[0].forward = torch.no_grad()(blocks(backbone)[0].forward)
    torch.testing.assert_close(gradient(backbone, images(case)), expected)
    backbone.prompts.relocate(0, 0)
    with pytest.raises(RuntimeError, match='block 0 runs with them off'):
        backbone(images(case))


def gradient(backbone, x):
    """Of its prompts."""
    backbone.prompts.zero_grad()
    torch.manual_seed(0)
    loss(backbone, x).backward()
    return backbone.prompts.tokens.grad.clone()


@pytest.mark.filterwarnings('ignore:.*use_reentrant', 'ignore:None of the inputs')
def test_reentrant_checkpointing_of_the_whole_backbone(case, kind):
    backbone = build(case, dict(kind, num_tokens=3, dropout=0.)).train()
    with pytest.raises(RuntimeError, match='Re-entrant checkpointing of the whole backbone'):
        checkpoint(backbone, images(case), use_reentrant=True)
    x = images(case).requires_grad_()
    # Outputs in a list get no gradient from PyTorch's re-entrant kind.
    loss(lambda x: checkpoint(lambda x: tuple(outputs(backbone, x)), x, use_reentrant=True), x).backward()
    grads = [parameter.grad.clone() for parameter in backbone.prompts.parameters()]
    backbone.zero_grad()
    loss(backbone, x).backward()
    for ours, parameter in zip(grads, backbone.prompts.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # in train mode, as an average teaches
        backbone(images(case))


@pytest.mark.filterwarnings('ignore:.*use_reentrant')
def test_reentrant_checkpointing_of_blocks_whose_input_wants_a_gradient(case, kind):
    if kind['type'] == 'StaticPrompts':
        plain = gradients(case, kind, wants_input=True)
        for ours, expected in zip(gradients(case, kind, by_torch_reentrant, wants_input=True), plain, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    else:
        with pytest.raises(RuntimeError, match='run again by a checkpointing that is not ours'):
            gradients(case, kind, by_torch_reentrant, wants_input=True)


@pytest.mark.parametrize('name', [name for name in CASES if name.startswith('timm')])
def test_timm_was_told_to_checkpoint_before_injection(name, kind):
    import timm
    from matrix import randomise

    from mmprovpt import inject_prompts
    cfg = dict(CASES[name].cfg)
    grads = []
    for checkpointing in (False, True):
        model = randomise(timm.create_model(cfg['model_name'], num_classes=0,
                                            **{k: v for k, v in cfg.items() if k != 'model_name'}))
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(0)
        prompts = inject_prompts(model, dict(kind, num_tokens=2))
        prompts.tokens.data.normal_()
        assert all(block.checkpointed is checkpointing for block in blocks(model))
        assert not any(getattr(module, 'grad_checkpointing', False) for module in model.modules())
        (loss(model.train(), images(CASES[name])) + loss(model, images(CASES[name], seed=2))).backward()
        grads.append(prompts.tokens.grad)
    assert grads[0].abs().sum(1).all()
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


def test_an_early_stop_of_checkpoint_leaves_nothing_behind(case, kind):
    """A recomputation ends by an exception of PyTorch's as soon as it has what backward needs."""
    from mmprovpt.attention import running
    backbone = build(case, dict(kind, num_tokens=2)).train()
    backbone.set_grad_checkpointing()
    loss(backbone, images(case)).backward()
    assert running.handed() is None and running.current(backbone.prompts) is None
