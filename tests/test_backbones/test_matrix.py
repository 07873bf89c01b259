"""Every behaviour on every backbone (see tests/matrix.py)."""
import copy
import pickle

import pytest
import torch
from matrix import CASES, build, concatenating, images, keeping, loss, outputs, vapt

from mmprovpt.prompts import PromptSet

FREEZING = ['mmpretrain-vit', 'mmpretrain-deit', 'mmdet-swin', 'mmseg-swin', 'mmpretrain-swin']
CHECKPOINTED = [name for name, case in CASES.items() if case.with_cp]


def uneven(case, kind):
    """Counts of every size, 0 included; of prompts that all enter the first block, their number."""
    return 3 if is_shallow(kind) else [(3 * block + 1) % 5 for block in range(case.depth)]


def is_shallow(kind):
    return kind['type'] == 'ShallowPrompts'


def block_rows(pool):
    return [pool.tokens[pool.block_index == block, :pool.widths[block]] for block in range(pool.num_blocks)]


def slow(upstream, pool, rows=None):
    """An upstream backbone as a slow prompted one that reads ``rows``, by default those of the pool."""
    rows = block_rows(pool) if rows is None else rows
    if pool.keeps_outputs:
        return keeping(upstream, rows[0])
    static = getattr(pool, 'static_blocks', range(pool.num_blocks))
    return concatenating(upstream, [
        own if block in static else vapt(pool, block, own) if len(own) else own.new_zeros(0, pool.embed_dims[block])
        for block, own in enumerate(rows)])


def assert_close(ours, theirs, tolerance=1e-5):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        scale = max(1., b.abs().max().item()) if b.numel() else 1.
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=tolerance)


def test_equals_concatenation_at_every_size(case, kind):
    prompted, upstream = build(case, dict(kind, num_tokens=uneven(case, kind))), build(case)
    with slow(upstream, prompted.prompts):
        for size in case.sizes:
            x = images(case, size)
            assert_close(outputs(prompted, x), outputs(upstream, x))


def test_gradients_equal_those_of_concatenation(case, kind):
    prompted, upstream = build(case, dict(kind, num_tokens=uneven(case, kind))), build(case)
    pool, x = prompted.prompts, images(case)
    loss(prompted, x).backward()
    ours = {name: parameter.grad for name, parameter in pool.named_parameters()}
    pool.zero_grad()
    rows = [row.detach().clone().requires_grad_() for row in block_rows(pool)]
    with slow(upstream, pool, rows):
        loss(upstream, x).backward()
    for name, parameter in pool.named_parameters():
        if name != 'tokens':
            assert_close([ours[name]], [parameter.grad])
    grad = ours['tokens']
    for block, row in enumerate(rows):
        owned = grad[pool.block_index == block]
        expected = torch.zeros_like(owned) if row.grad is None else row.grad
        assert_close([owned[:, :pool.widths[block]]], [expected[:, :pool.widths[block]]])
        assert not owned[:, pool.widths[block]:].any()


def test_relocated_prompt_is_read_by_its_new_block(case, kind):
    if is_shallow(kind):
        with pytest.raises(ValueError, match='prompts of VPT-Shallow do not relocate'):
            build(case, dict(kind, num_tokens=2)).prompts.relocate(0, 1)
        return
    prompted, upstream = build(case, dict(kind, num_tokens=2)), build(case)
    with torch.no_grad():
        before = outputs(prompted, images(case))
        prompted.prompts.relocate(0, case.depth - 1)
        prompted.prompts.relocate(3, 0)
        after = outputs(prompted, images(case))
        assert prompted.prompts.distribution.tolist() == [2, 1] + [2] * (case.depth - 3) + [3]
        with slow(upstream, prompted.prompts):
            assert_close(after, outputs(upstream, images(case)))
    assert not torch.allclose(before[-1], after[-1])


@torch.no_grad()
def test_without_prompts_bit_identical(case, kind):
    prompted, upstream = build(case, dict(kind, num_tokens=0)), build(case)
    for size in case.sizes:
        for ours, theirs in zip(outputs(prompted, images(case, size)), outputs(upstream, images(case, size))):
            assert torch.equal(ours, theirs)


def test_only_prompts_train(case, kind):
    backbone = build(case, dict(kind, num_tokens=uneven(case, kind))).train()
    frozen = {name: value.clone() for name, value in backbone.state_dict().items() if not name.startswith('prompts.')}
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=0.1)
    loss(backbone, images(case)).backward()
    grads = [name for name, parameter in backbone.named_parameters() if parameter.grad is not None]
    assert grads == [f'prompts.{name}' for name, _ in backbone.prompts.named_parameters()]
    before = backbone.prompts.tokens.detach().clone()
    optimizer.step()
    moved = (backbone.prompts.tokens.detach() != before).any(1)
    assert moved.all()
    for name, value in frozen.items():
        assert torch.equal(backbone.state_dict()[name], value), name


def test_frozen_part_stays_in_eval(case, kind):
    backbone = build(case, dict(kind, num_tokens=1))
    assert backbone.train() is backbone
    assert {name for name, module in backbone.named_modules() if module.training} == {'', 'prompts'}
    backbone.eval()
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize('name', FREEZING)
def test_frozen_stages_change_nothing(name):
    """Upstream freezes them again at each train(), but prompts are not in a stage."""
    case = CASES[name]
    backbones = [build(case, dict(num_tokens=2), frozen_stages=stages).train() for stages in (-1, 2)]
    backbones[1].load_state_dict(backbones[0].state_dict())
    for backbone in backbones:
        loss(backbone, images(case)).backward()
        assert {name for name, module in backbone.named_modules() if module.training} == {'', 'prompts'}
    grads = [backbone.prompts.tokens.grad for backbone in backbones]
    assert torch.equal(*grads) and grads[1].abs().sum(1).all()


def test_state_dict_keys(case, kind):
    keys = list(build(case, dict(kind, num_tokens=1)).state_dict())
    own = ['block_index', 'form', 'tokens'] + ['down', 'kernels', 'norms', 'up'] * (kind['type'] == 'AdaptivePrompts')
    assert sorted(keys) == sorted([*build(case).state_dict(), *(f'prompts.{name}' for name in own)])


@pytest.mark.parametrize('name', CHECKPOINTED)
def test_checkpointing_changes_nothing(name, kind):
    case = CASES[name]
    grads, results = [], []
    for with_cp in (False, True):
        torch.manual_seed(0)
        backbone = build(case, dict(kind, num_tokens=2, dropout=0.1), with_cp=with_cp).train()
        torch.manual_seed(1)
        value = loss(backbone, images(case))
        value.backward()
        results.append(value.detach())
        grads.append(backbone.prompts.tokens.grad)
    assert torch.equal(*results) and torch.equal(*grads)
    assert grads[0].abs().sum(1).all()


def test_dropout_is_per_sample_and_in_training_only(case):
    backbone = build(case, dict(num_tokens=2, dropout=0.5))
    upstream = build(case)
    x = images(case).expand(2, -1, -1, -1).clone()
    x[1] = x[0]
    backbone.train()
    drawn = []
    read = type(backbone.prompts).read

    def recording(self, *args):
        drawn.append(read(self, *args))
        return drawn[-1]

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(backbone.prompts), 'read', recording)
        ours = outputs(backbone, x)
        assert not torch.allclose(ours[-1][0], ours[-1][1])
        with concatenating(upstream, drawn):
            assert_close(ours, outputs(upstream, x))
    assert all(rows.shape[0] == 2 and not torch.equal(rows[0], rows[1]) for rows in drawn)
    kept = torch.cat([rows.flatten() for rows in drawn])
    assert 0.3 < (kept == 0).float().mean() < 0.7
    with torch.no_grad():
        quiet = outputs(backbone.eval(), x)
    torch.testing.assert_close(quiet[-1][0], quiet[-1][1])


@pytest.mark.parametrize('clone', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_whole_and_independent(case, kind, clone):
    backbone = build(case, dict(kind, num_tokens=2))
    twin = clone(backbone)
    x = images(case)
    with torch.no_grad():
        expected = outputs(backbone, x)
        assert all(torch.equal(a, b) for a, b in zip(outputs(twin, x), expected))
        if not is_shallow(kind):
            twin.prompts.relocate(0, 1)
        twin.prompts.tokens.mul_(-1)
        assert not torch.allclose(outputs(twin, x)[-1], expected[-1])
        assert all(torch.equal(a, b) for a, b in zip(outputs(backbone, x), expected))
    assert type(twin) is type(backbone) and isinstance(twin.prompts, PromptSet)


def test_autocast(case, kind):
    backbone = build(case, dict(kind, num_tokens=2, dropout=0.1)).train()
    exact = build(case, dict(kind, num_tokens=2, dropout=0.1)).train()
    exact.load_state_dict(backbone.state_dict())
    torch.manual_seed(0)
    with torch.autocast('cpu', torch.bfloat16):
        value = loss(backbone, images(case))
    value.backward()
    torch.manual_seed(0)
    loss(exact, images(case)).backward()
    grad, expected = backbone.prompts.tokens.grad, exact.prompts.tokens.grad
    assert grad.dtype == torch.float32
    assert torch.cosine_similarity(grad.flatten(), expected.flatten(), 0) > 0.9


def test_state_dict_round_trip(case, kind):
    source, target = build(case, dict(kind, num_tokens=2)), build(case, dict(kind, num_tokens=2))
    if not is_shallow(kind):
        source.prompts.relocate(1, case.depth - 1)
    assert not torch.equal(source.prompts.tokens, target.prompts.tokens)
    target.load_state_dict(source.state_dict())
    assert target.prompts.distribution.tolist() == source.prompts.distribution.tolist()
    with torch.no_grad():
        for a, b in zip(outputs(source, images(case)), outputs(target, images(case))):
            assert torch.equal(a, b)
