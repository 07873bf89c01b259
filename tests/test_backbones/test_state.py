"""Two forwards at once, or one that ends early, share nothing; whatever writes the owners is obeyed."""
import copy
import threading

import pytest
import timm
import torch
from matrix import CASES, KINDS, build, images, loss, outputs
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mmprovpt.attention import PromptedBlock, running
from mmprovpt.attention.block import first_norm


def equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def serve(backbone, calls, expected):
    """Answers to each call in a thread of its own, several times; returns what went wrong."""
    wrong = []

    @torch.no_grad()
    def run(x, right, repeats):
        for _ in range(repeats):
            try:
                if not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(outputs(backbone, x), right)):
                    wrong.append('another answer')
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=run, args=(x, right, repeats)) for (x, repeats), right in zip(calls, expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@pytest.mark.parametrize('repeats', [6])
def test_threads(case, kind, repeats):
    """Batches and sizes differ, so that whatever one thread took from another would show."""
    backbone = build(case, dict(kind, num_tokens=2)).eval()
    calls = [(images(case, size, batch=1 + number % 2, seed=number), repeats)
             for number, size in enumerate((case.sizes * 4)[:4])]
    with torch.no_grad():
        expected = [outputs(backbone, x) for x, _ in calls]
    assert serve(backbone, calls, expected) == []


@pytest.mark.parametrize('form', KINDS)
def test_six_hundred_calls_of_four_threads(form):
    case = CASES['timm-vit']
    backbone = build(case, dict(KINDS[form], num_tokens=4)).eval()
    calls = [(images(case, batch=1, seed=number), 150) for number in range(4)]
    with torch.no_grad():
        expected = [outputs(backbone, x) for x, _ in calls]
    assert serve(backbone, calls, expected) == []


@pytest.mark.parametrize('name', ['mmdet-swin', 'timm-vit'])
def test_training_in_one_thread_and_inference_in_others(name, kind):
    case = CASES[name]
    backbone = build(case, dict(kind, num_tokens=2)).eval()
    x = images(case)
    loss(backbone, x).backward()
    grad = backbone.prompts.tokens.grad.clone()
    calls = [(images(case, case.sizes[1], batch=1, seed=number), 10) for number in range(2)]
    with torch.no_grad():
        expected = [outputs(backbone, x) for x, _ in calls]
    grads = []

    def train():
        for _ in range(5):
            backbone.prompts.tokens.grad = None
            loss(backbone, x).backward()
            grads.append(backbone.prompts.tokens.grad.clone())

    thread = threading.Thread(target=train)
    thread.start()
    assert serve(backbone, calls, expected) == []
    thread.join()
    assert len(grads) == 5
    for each in grads:
        torch.testing.assert_close(each, grad, rtol=1e-4, atol=1e-5)


def test_an_exception_leaves_nothing_behind(case, kind):
    backbone = build(case, dict(kind, num_tokens=2)).eval()
    blocks = [module for module in backbone.modules() if isinstance(module, PromptedBlock)]
    x = images(case)
    with torch.no_grad():
        expected = outputs(backbone, x)
        for block in (blocks[0], blocks[-1]):
            mlp = getattr(block, 'mlp', None) or block.ffn
            handle = mlp.register_forward_pre_hook(lambda *args: 1 / 0, with_kwargs=True)
            with pytest.raises(ZeroDivisionError):
                backbone(images(case, case.sizes[1]))
            handle.remove()
            assert running.current(backbone.prompts) is None and running.handed() is None
            assert equal(outputs(backbone, x), expected)


def relocated(case, kind):
    """A backbone, another one of the same rows whose prompts have moved, and inputs."""
    backbone = build(case, dict(kind, num_tokens=2)).eval()
    other = copy.deepcopy(backbone)
    for prompt, block in ((0, 1), (2, 0), (3, 0)):
        other.prompts.relocate(prompt, block)
    other.prompts.tokens.data.copy_(backbone.prompts.tokens)
    return backbone, other, images(case)


def by_copy(backbone, other):
    backbone.prompts.block_index.copy_(other.prompts.block_index)


def by_data_copy(backbone, other):
    backbone.prompts.block_index.data.copy_(other.prompts.block_index)


def by_item(backbone, other):
    for prompt, block in enumerate(other.prompts.block_index.tolist()):
        backbone.prompts.block_index[prompt] = block


def by_assignment(backbone, other):
    backbone.prompts.block_index = other.prompts.block_index.clone()


def by_loading(backbone, other):
    backbone.load_state_dict(other.state_dict())


def by_loading_with_assignment(backbone, other):
    backbone.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)


@pytest.mark.parametrize(
    'write', [by_copy, by_data_copy, by_item, by_assignment, by_loading, by_loading_with_assignment])
@pytest.mark.parametrize('form', ['static', 'adaptive'])
@torch.no_grad()
def test_owners_are_what_the_buffer_says(case, form, write):
    backbone, other, x = relocated(case, KINDS[form])
    before, expected = outputs(backbone, x), outputs(other, x)
    assert not torch.allclose(before[-1], expected[-1])
    write(backbone, other)
    assert equal(outputs(backbone, x), expected)
    assert backbone.prompts.distribution.tolist() == other.prompts.distribution.tolist()


@torch.no_grad()
def test_functional_call(case):
    backbone, other, x = relocated(case, KINDS['static'])
    before, expected = outputs(backbone, x), outputs(other, x)
    got = torch.func.functional_call(backbone, dict(other.state_dict()), (x, ), tie_weights=False)
    assert equal(torch.utils._pytree.tree_leaves(got), expected)
    assert equal(outputs(backbone, x), before)


def average_of_timm(backbone, other):
    average = timm.utils.ModelEmaV3(backbone, decay=0.)
    average.update(other)
    return average.module


def average_of_torch(backbone, other):
    average = AveragedModel(other, use_buffers=True)
    average.update_parameters(other)
    average.update_parameters(other)
    return average.module


@pytest.mark.parametrize('make', [average_of_timm, average_of_torch])
@torch.no_grad()
def test_averages_read_their_own_owners(case, make):
    backbone, other, x = relocated(case, KINDS['static'])
    expected = outputs(other, x)
    average = make(backbone, other)
    assert average.prompts.block_index.tolist() == other.prompts.block_index.tolist()
    close(outputs(average, x), expected)


def test_prompts_are_not_replaced(case):
    backbone = build(case, dict(num_tokens=1))
    with pytest.raises(AttributeError, match='backbone.prompts cannot be replaced, for its blocks read the first ones'):
        backbone.prompts = build(case, dict(num_tokens=1)).prompts
    backbone.prompts = backbone.prompts


def test_data_parallel_is_refused(case):
    """Its replicas are made by this; there is no accelerator here to make several."""
    replica = build(case, dict(num_tokens=1))._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match='nn.DataParallel .* use DistributedDataParallel'):
        replica(images(case))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_frozen_weights_of_lower_precision(case, kind, dtype):
    """Rows stay float32 for the optimizer; the block reads them in the type of its input."""
    backbone, exact = (build(case, dict(kind, num_tokens=2)).train() for _ in range(2))
    exact.load_state_dict(backbone.state_dict())
    for name, child in backbone.named_children():
        if name != 'prompts':
            child.to(dtype)
    for parameter in backbone.parameters(recurse=False):
        parameter.data = parameter.data.to(dtype)
    value = loss(backbone, images(case).to(dtype))
    value.backward()
    loss(exact, images(case)).backward()
    ours, theirs = (each.prompts.tokens.grad for each in (backbone, exact))
    assert ours.dtype == torch.float32 and ours.isfinite().all()
    # Random weights and tokens that are not normed make attention so sharp that bfloat16's 8 bits of a logit are few.
    is_sharp = dtype == torch.bfloat16 and case is CASES['timm-eva-postnorm']
    assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > (0.3 if is_sharp else 0.9)


def fill_buffers(empty, filled):
    """Those that a state dict does not hold (timm's Swin has some), or whose values upstream does not take."""
    for name, value in filled.named_buffers():
        if name not in filled.state_dict() or 'relative_' in name:
            empty.get_buffer(name).copy_(value)


def test_building_on_the_meta_device(case, kind):
    filled = build(case, dict(kind, num_tokens=2)).eval()
    filled.prompts.tokens.data.normal_()
    x = images(case)
    with torch.no_grad():
        expected = outputs(filled, x)
    empty = copy.deepcopy(filled).to('meta')
    with pytest.raises(RuntimeError, match='The prompts have no values'):
        empty(x.to('meta'))
    empty.to_empty(device='cpu')
    with pytest.raises(RuntimeError, match=r'The prompts have no values: .* prompts.reset_parameters\(\)'):
        empty(x)
    fill_buffers(empty, filled)
    empty.load_state_dict(filled.state_dict())
    with torch.no_grad():
        assert equal(outputs(empty, x), expected)
    empty.to_empty(device='cpu')
    fill_buffers(empty, filled)
    frozen = {name: value for name, value in filled.state_dict().items() if 'prompts' not in name}
    with pytest.raises(RuntimeError, match='Missing key.*prompts.tokens'):
        empty.load_state_dict(frozen)
    empty.load_state_dict(frozen, strict=False)
    with pytest.raises(RuntimeError, match='The prompts have no values'):
        empty(x)
    torch.manual_seed(3)
    empty.prompts.reset_parameters()
    torch.manual_seed(3)
    again = copy.deepcopy(filled)
    again.prompts.reset_parameters()
    for name, value in again.prompts.state_dict().items():
        assert torch.equal(empty.prompts.state_dict()[name], value), name
    assert again.prompts.distribution.tolist() == filled.prompts.distribution.tolist()
    with torch.no_grad():
        assert equal(outputs(empty, x), outputs(again, x))


@pytest.mark.parametrize('form', ['static', 'adaptive'])
def test_a_replaced_norm_or_projection_is_the_one_that_is_used(case, form):
    """As model surgery does after injection: the doubled one serves tokens and prompts."""
    backbone = build(case, dict(KINDS[form], num_tokens=2)).eval()
    expected = copy.deepcopy(backbone)
    x = images(case)

    class Doubled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.weight = inner.weight  # of which libraries ask the device or type

        def forward(self, x):
            return 2 * self.inner(x)

    for module in list(backbone.modules()):
        if isinstance(module, PromptedBlock):
            name = 'ln1' if hasattr(module, 'ln1') else 'norm1'
            setattr(module, name, Doubled(getattr(module, name)))
    for module in expected.modules():
        if isinstance(module, PromptedBlock):
            for parameter in first_norm(module).parameters():
                parameter.data.mul_(2)
    with torch.no_grad():
        close(outputs(backbone, x), outputs(expected, x))
