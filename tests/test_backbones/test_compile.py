"""torch.compile with everything on: scores as in eager mode, and no compilation for a relocation."""
import functools
import random

import pytest
import timm
import torch
from matrix import CASES, KINDS, build, fill_rows, images, loss, outputs, randomise
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

import mmprovpt
from mmprovpt import inject_prompts
from mmprovpt.relocation import CRITERIA


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def iteration(criterion, forward, prompts, x, seed=0):
    """Sums of the criterion and gradient of the prompts."""
    criterion.reset()
    prompts.zero_grad()
    torch.manual_seed(seed)
    criterion.begin()
    value = loss(forward, x)
    value.backward()
    criterion.update(value.detach())
    return criterion.sums.clone(), prompts.tokens.grad.clone()


@pytest.mark.parametrize('name, criterion, form, checkpointing', [
    *(('timm-vit', criterion, 'static', False) for criterion in CRITERIA),
    ('timm-vit', 'gate_fisher', 'static', True),
    ('timm-vit', 'taylor', 'adaptive', True),
    ('mmseg-vit', 'taylor_norm', 'static', False),
    ('timm-rope-grouped', 'taylor_norm', 'adaptive', False),
])
def test_scores_bit_for_bit(name, criterion, form, checkpointing):
    for ours, eager in compiled_and_eager(name, criterion, form, checkpointing):
        assert torch.equal(ours, eager) and ours.any()


@pytest.mark.parametrize('name, criterion, form, checkpointing', [
    ('timm-dinov3', 'gate_fisher', 'static', True),
    ('timm-eva-postnorm', 'gate', 'static', False),
    ('timm-beit', 'gate_fisher', 'static', False),
    ('mmdet-swin', 'gate_fisher', 'static', True),
    ('timm-swinv2', 'taylor_norm', 'static', False),
])
def test_scores_where_pytorch_rounds_otherwise(name, criterion, form, checkpointing):
    """It takes SiLU, rotations and norms of vectors apart before it compiles them; on CPUs a bias is written out."""
    for ours, eager in compiled_and_eager(name, criterion, form, checkpointing):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4 * float(eager.abs().max()))
        assert ours.any()


def compiled_and_eager(name, criterion, form, checkpointing):
    """Pairs of sums and of gradients, before and after relocations; there is at most one graph break."""
    case = CASES[name]
    torch.manual_seed(0)
    backbone = build(case, dict(KINDS[form], num_tokens=2, dropout=0.1)).train()
    backbone.set_grad_checkpointing(checkpointing)
    prompts, x = backbone.prompts, images(case)
    measure = CRITERIA[criterion](prompts, score_interval=1)
    compiled = torch.compile(backbone, backend='aot_eager')
    for step in range(2):
        eager = iteration(measure, backbone, prompts, x, step)
        yield from zip(iteration(measure, compiled, prompts, x, step), eager, strict=True)
        for prompt in range(2):  # empties the first block
            prompts.relocate(prompt, 1 + step % 2)
    assert sum(counters['graph_break'].values()) <= 1


def vit(name, form):
    return build(CASES[name], dict(KINDS[form], num_tokens=2)), images(CASES[name])


def swin_without_padding():
    """PyTorch 2.11 cannot compile the padding of maps for CPUs, with prompts or without."""
    swin = randomise(timm.models.SwinTransformer(img_size=16, patch_size=2, window_size=4, embed_dim=16, depths=(1, 2),
                                                 num_heads=(2, 2), num_classes=0))
    inject_prompts(swin, dict(KINDS['static'], num_tokens=2))
    return swin, torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize('form, make', [
    *((form, functools.partial(vit, name, form))
      for name, form in (('timm-vit', 'static'), ('timm-vit', 'shallow'), ('timm-dinov3', 'static'))),
    ('static', swin_without_padding)])
def test_inductor(form, make):
    torch.manual_seed(0)
    backbone, x = make()
    prompts = backbone.train().prompts
    measure = CRITERIA['gate_fisher'](prompts, score_interval=1)
    compiled = torch.compile(backbone)
    for step in range(2):
        eager = iteration(measure, backbone, prompts, x)
        for a, b in zip(iteration(measure, compiled, prompts, x), eager, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
        if form == 'static':
            prompts.relocate(step, 2)


def test_fifty_relocations_need_three_compilations():
    """Scored and unscored iterations and evaluation are three; moves, and blocks that they empty, need none."""
    rng = random.Random(0)
    vit = randomise(timm.create_model('vit_tiny_patch16_224', img_size=16, patch_size=8, embed_dim=16, depth=12,
                                      num_heads=2, num_classes=2))
    prompts = inject_prompts(vit, dict(type='StaticPrompts', num_tokens=10, dropout=0.))
    x = torch.randn(2, 3, 16, 16)
    measure = CRITERIA['gate_fisher'](prompts, score_interval=2)
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(vit, backend=counter)
    emptied = False
    for step in range(50):
        vit.train()
        for _ in range(2):
            measure.begin()
            compiled(x).square().mean().backward()
            measure.update(0.)
        if step % 10 == 9:
            with torch.no_grad():
                expected = vit.eval()(x)
                assert torch.equal(compiled(x), expected)
        if step == 25:
            for prompt in prompts.owners()[5].tolist():
                prompts.relocate(prompt, 4)
        prompts.relocate(rng.randrange(120), rng.randrange(12))
        emptied |= 0 in prompts.distribution.tolist()
    assert emptied and counter.frame_count <= 3
    assert not counters['graph_break'] and not counters['recompile_limit']


def test_owners_written_from_outside_are_read_by_compiled_code():
    case = CASES['timm-vit']
    backbone = build(case, dict(num_tokens=2)).eval()
    compiled = torch.compile(backbone, backend='aot_eager')
    x = images(case)
    with torch.no_grad():
        before = compiled(x)[0]
        backbone.prompts.block_index.data.copy_(torch.tensor([2, 2, 1, 1, 2, 2]))
        after = compiled(x)[0]
        assert not torch.allclose(before, after) and torch.equal(after, backbone(x)[0])
        with backbone.prompts.without(0, 4):
            hidden = compiled(x)[0]
            assert torch.equal(hidden, backbone(x)[0])
        assert not torch.allclose(hidden, after)


SETS = {
    'equal': (dict(num_tokens=2), ['a', 'b', 'c', 'a'], 1),
    'owners': (dict(num_tokens=[0, 3, 3]), ['a', 'b', 'c', 'a'], 1),
    'mixed': (dict(num_tokens=2), [('a', None, 'b'), ('b', 'c', None), (None, 'c', 'a')], 1),
    'mixed without none': (dict(num_tokens=2), ['aab', 'cbb', 'aca'], 1),
}


@pytest.mark.parametrize('name, training, change', [
    *(('timm-vit', False, change) for change in SETS), ('timm-vit', True, 'equal'), ('timm-vit', True, 'mixed'),
    ('mmdet-swin', False, 'mixed')])
def test_sets_of_equal_size_are_swapped_without_compilation(name, training, change):
    """Their prompts may lie in other blocks; and so in batches whose samples read as many sets."""
    options, choices, limit = SETS[change]
    case = CASES[name]
    backbone = build(case)
    for name in 'abc':
        mmprovpt.add_prompts(backbone, name, dict(KINDS['static'], **(dict(num_tokens=2) if name == 'a' else options)))
    backbone.train(training)
    counter, x = CompileCounterWithBackend('aot_eager'), images(case, batch=3)
    compiled = torch.compile(backbone, backend=counter)
    for choice in choices:
        with mmprovpt.using_prompts(backbone, choice if choice in ('a', 'b', 'c') else list(choice)):
            for a, b in zip(outputs(compiled, x), outputs(backbone, x), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert counter.frame_count <= limit and not counters['graph_break']


@pytest.mark.parametrize('checkpointing', [False, True])
def test_gradients_of_a_compiled_mixed_batch(checkpointing):
    case = CASES['timm-vit']
    backbone, x = build(case), images(case, batch=3)
    for name, form in zip('abc', KINDS):
        mmprovpt.add_prompts(backbone, name, dict(KINDS[form], num_tokens=2))
    fill_rows(backbone.prompts['b'])
    backbone.train().set_grad_checkpointing(checkpointing)
    grads = []
    for forward in (backbone, torch.compile(backbone, backend='aot_eager')):
        backbone.prompts.zero_grad()
        with mmprovpt.using_prompts(backbone, ['a', 'b', None]):
            value = loss(forward, x)
        value.backward()
        grads.append([parameter.grad.clone() for name in 'ab' for parameter in backbone.prompts[name].parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_sets_of_other_sizes_are_compiled_once_each():
    """And so are no prompts, and each form; then nothing is compiled again."""
    case = CASES['timm-vit']
    backbone, x = build(case), images(case)
    for number, name in enumerate('abcd'):
        mmprovpt.add_prompts(backbone, name, dict(KINDS['static'], num_tokens=1 + number))
    backbone.eval()
    counter = CompileCounterWithBackend('aot_eager')
    compiled, counts = torch.compile(backbone, backend=counter), []
    with torch.no_grad():
        for _ in range(2):
            for name in ('a', 'b', 'c', 'd', None):
                mmprovpt.set_prompts(backbone, name)
                torch.testing.assert_close(compiled(x)[0], backbone(x)[0], rtol=1e-5, atol=1e-5)
            counts.append(counter.frame_count)
    assert counts[0] <= 6 and counts[1] == counts[0] and not counters['recompile_limit']
