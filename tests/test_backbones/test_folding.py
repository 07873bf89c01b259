"""Prompts' keys and values that are computed once: the same numbers, and nothing of it is left."""
import threading

import pytest
import torch
from matrix import CASES, KINDS, build, images, outputs
from torch._dynamo.testing import CompileCounterWithBackend

import mmprovpt
from mmprovpt.attention import PromptedAttention
from mmprovpt.errors import ConfigError


def prompted(case, kind, num_tokens=None):
    """With counts of every size, 0 included; in eval mode."""
    counts = 3 if kind['type'] == 'ShallowPrompts' else [(3 * block + 1) % 5 for block in range(case.depth)]
    return build(case, dict(kind, num_tokens=num_tokens or counts)).eval()


def assert_alike(ours, theirs, tolerance=1e-6):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1., float(b.abs().max())))


class Counting:
    """How often an attention projects prompts."""

    def __init__(self, monkeypatch):
        self.count, project = 0, PromptedAttention.project_prompts

        def counted(attention, handed):
            self.count += 1
            return project(attention, handed)

        monkeypatch.setattr(PromptedAttention, 'project_prompts', counted)


@torch.no_grad()
def test_values_are_those_without_it(case, kind, monkeypatch):
    """Also after a relocation, and of blocks with no prompts."""
    backbone, x, counting = prompted(case, kind), images(case), Counting(monkeypatch)
    prompts = backbone.prompts
    can_fold = sum(not prompts.depends_on_input(block) for block in range(case.depth))
    for _ in range(2):
        plain = outputs(backbone, x)
        counting.count = 0
        outputs(backbone, x)
        each = counting.count
        with mmprovpt.folded(backbone):
            within = [outputs(backbone, x), outputs(backbone, x)]
        # Once for all forwards; what follows from the input, in each. A ViT's tokens (VPT-Shallow) are never projected.
        assert counting.count == each + (each and can_fold + 2 * (each - can_fold))
        assert_alike(within[0], plain)
        assert all(map(torch.equal, within[0], within[1]))
        assert all(map(torch.equal, outputs(backbone, x), plain))
        if prompts.keeps_outputs:
            break
        prompts.relocate(0, case.depth - 1)
        prompts.relocate(len(prompts.tokens) - 1, 1)


@pytest.mark.parametrize('name', ['timm-vit-qknorm-nocls', 'timm-dinov3', 'mmdet-swin', 'mmpretrain-swinv2'])
@pytest.mark.parametrize('how', ['bfloat16', 'autocast'])
def test_low_precision(name, how):
    """Under autocast it rounds where Swin's activations are of lower precision than its weights."""
    case = CASES[name]
    backbone, x = prompted(case, KINDS['static']), images(case)
    if how == 'bfloat16':
        backbone, x = backbone.bfloat16(), x.bfloat16()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=how == 'autocast'):
        plain = outputs(backbone, x)
        with mmprovpt.folded(backbone):
            assert_alike(outputs(backbone, x), plain, 0. if how == 'bfloat16' or 'swin' not in name else 2e-2)


@torch.no_grad()
def test_other_threads_compute_as_before():
    case, results, counts = CASES['timm-vit'], [], []
    backbone, x = prompted(case, KINDS['static']), images(case)
    plain = outputs(backbone, x)
    with pytest.MonkeyPatch.context() as monkeypatch:
        counting = Counting(monkeypatch)

        def other():
            with torch.no_grad():
                backbone.prompts.relocate(0, 1)  # this thread may
                results.append(outputs(backbone, x))
                backbone.prompts.relocate(0, 0)
                results.append(outputs(backbone, x))
            counts.append(counting.count)

        with mmprovpt.folded(backbone):
            counting.count = 0
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
    assert counts == [6] and not torch.equal(results[0][0], plain[0]) and torch.equal(results[1][0], plain[0])


@torch.no_grad()
def test_sets_are_folded_each(monkeypatch):
    case = CASES['mmpretrain-vit']
    backbone, x = build(case), images(case)
    for name, form in zip('abc', KINDS):
        mmprovpt.add_prompts(backbone, name, dict(KINDS[form], num_tokens=2))
    backbone.eval()
    choices = 'a', 'b', 'c', None, ['a', 'b'], ['a', None]

    def all_outputs():
        found = []
        for choice in choices:
            with mmprovpt.using_prompts(backbone, choice):
                found.append(outputs(backbone, x))
        return found

    plain = all_outputs()
    with mmprovpt.folded(backbone):
        counting = Counting(monkeypatch)
        for ours, theirs in zip(all_outputs(), plain, strict=True):
            assert_alike(ours, theirs)
    # None for 'a'; two of three blocks for 'b', all for the mixed batches.
    assert counting.count == 2 + 2 * case.depth


CHANGES = {
    'relocated': lambda net: net.prompts.relocate(0, 1),
    'trained': lambda net: net.prompts.tokens.add_(1.),
    'loaded': lambda net: net.load_state_dict(net.state_dict()),
    'replaced by loading': lambda net: net.load_state_dict(net.state_dict(), assign=True),
    'cast': lambda net: net.double(),
    'other frozen weights': lambda net: net.timm_model.blocks[1].attn.qkv.weight.mul_(2.),
    'another projection': lambda net: setattr(net.timm_model.blocks[1].attn, 'qkv', torch.nn.Linear(32, 96)),
}


@pytest.mark.parametrize('change', CHANGES)
def test_changes_within_are_refused(change):
    case = CASES['timm-vit']
    backbone = prompted(case, KINDS['static'], 2)
    x = images(case)
    with torch.no_grad(), mmprovpt.folded(backbone):
        outputs(backbone, x)
        CHANGES[change](backbone)
        x = x.double() if change == 'cast' else x
        with pytest.raises(ConfigError, match=r'have changed since folded\(model\) was entered .*enter it again'):
            backbone(x)
        with mmprovpt.folded(backbone):  # nests, and is of what there is now
            outputs(backbone, x)
    with torch.no_grad():
        outputs(backbone, x)


def test_it_is_for_inference():
    case = CASES['timm-vit']
    backbone, x = prompted(case, KINDS['static'], 2), images(case)
    with mmprovpt.folded(backbone):
        with pytest.raises(ConfigError, match=r'to get a gradient: call model.eval\(\), and enter torch.no_grad\(\)'):
            backbone(x)
        with torch.no_grad():
            backbone(x)
            with backbone.prompts.without(0), pytest.raises(ConfigError, match='other prompts are hidden now'):
                backbone(x)
            with torch.autocast('cpu', torch.bfloat16), pytest.raises(
                    ConfigError, match=r'folded in torch.float32, but this forward computes in torch.bfloat16: cast'):
                backbone(x)
            backbone.train()
            with pytest.raises(ConfigError, match='in training mode'):
                backbone(x)
    with pytest.raises(ConfigError, match='in training mode'), mmprovpt.folded(backbone):
        pass
    with pytest.raises(ConfigError, match=r'folded\(\): ViT has no backbone with prompts'), mmprovpt.folded(
            type('ViT', (torch.nn.Module, ), {})()):
        pass
    # Gradients of the input, where prompts want none.
    backbone.eval().requires_grad_(False)
    wanted = torch.autograd.grad(backbone(x.requires_grad_())[0].square().sum(), x)[0]
    with mmprovpt.folded(backbone):
        assert torch.equal(torch.autograd.grad(backbone(x)[0].square().sum(), x)[0], wanted)


@torch.no_grad()
def test_compiled():
    """Folded or not are two compilations; other owners need none."""
    torch._dynamo.reset()
    case = CASES['mmdet-swin']
    backbone, x, counter = prompted(case, KINDS['static'], 2), images(case), CompileCounterWithBackend('aot_eager')
    compiled, counts = torch.compile(backbone, backend=counter), []
    for prompt in range(4):
        plain = outputs(backbone, x)
        assert_alike(outputs(compiled, x), plain)
        with mmprovpt.folded(backbone):
            assert_alike(outputs(compiled, x), plain)
        counts.append(counter.frame_count)
        backbone.prompts.relocate(prompt, 5)
    assert counts[0] == counts[-1]
