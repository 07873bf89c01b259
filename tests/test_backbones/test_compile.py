"""torch.compile with everything on: scores as in eager mode, and no compilation for a relocation."""
import random

import pytest
import timm
import torch
from matrix import CASES, KINDS, build, images, loss, randomise
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

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
    ('mmdet-swin', 'gate_fisher', 'static', False),
    ('mmdet-swin', 'taylor', 'static', True),
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
    ('timm-swinv2', 'taylor_norm', 'static', False),
])
def test_scores_where_pytorch_rounds_otherwise(name, criterion, form, checkpointing):
    """It takes SiLU, rotations and norms of vectors apart before it compiles them."""
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


@pytest.mark.parametrize('name', ['timm-vit', 'timm-dinov3'])
@pytest.mark.parametrize('form', ['static', 'shallow'])
def test_inductor(form, name):
    case = CASES[name]
    backbone = build(case, dict(KINDS[form], num_tokens=2)).train()
    prompts, x = backbone.prompts, images(case)
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
