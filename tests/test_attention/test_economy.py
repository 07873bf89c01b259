"""What attention keeps for backward, and how it is written out where the fused kernel is slow."""
import pytest
import timm
import torch
import torch.nn.functional as F
from matrix import randomise

import mmprovpt
from mmprovpt.attention import base

PROMPTS = 3


def kept_by(model, images):
    """Bytes that autograd keeps for backward, each storage once, without parameters and buffers."""
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    seen = {}

    def pack(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        out = model(images)
    assert out.requires_grad
    return sum(seen.values())


def test_a_block_keeps_ten_activations_per_token():
    """Inputs of both norms, queries, keys, values, attention's output, and GELU's input of four widths; rows on top."""
    def kept(depth):
        torch.manual_seed(0)
        vit = timm.create_model('vit_tiny_patch16_224', depth=depth, num_classes=0, img_size=64, embed_dim=96)
        mmprovpt.inject_prompts(vit, dict(type='StaticPrompts', num_tokens=PROMPTS, dropout=0.))
        return kept_by(vit.train(), torch.randn(8, 3, 64, 64))

    tokens, rows = 8 * 17 * 96 * 4, 8 * PROMPTS * 96 * 4
    of_a_block = (kept(4) - kept(2)) / 2
    assert 10 * tokens < of_a_block < 10.2 * tokens + 3 * rows + 8 * 3 * 20 * 8


def test_no_image_has_a_copy_of_the_windows_bias():
    """What a Swin keeps grows with the batch by activations; the shifted windows' bias would add a half."""
    swin = timm.create_model('swin_tiny_patch4_window7_224', num_classes=0, img_size=112, depths=(2, 2),
                             num_heads=(3, 6), embed_dim=24)
    mmprovpt.inject_prompts(swin, dict(type='StaticPrompts', num_tokens=PROMPTS, dropout=0.))
    swin.train()
    two, four = (kept_by(swin, torch.randn(size, 3, 112, 112)) for size in (2, 4))
    # Stage 1: 784 tokens of width 24 in 16 windows with 3 heads, one block of the two with a mask; stage 2: 196 of 48.
    bias = 16 * 3 * 49 * (49 + PROMPTS) * 4
    activations = 2 * (784 * 24 + 196 * 48) * 10 * 4
    assert activations < (four - two) / 2 < activations + 0.5 * bias


class Wrapped(torch.nn.Linear):
    """Of another class: it may compute anything, so it is called."""


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224'])
def test_a_wrapped_projection_serves_prompts_alike(name):
    """That of another class, against a bare one: values and gradients."""
    options = dict(depth=2) if name.startswith('vit') else dict(depths=(1, 1), num_heads=(3, 6), embed_dim=24)
    found = []
    for kind in (torch.nn.Linear, Wrapped):
        torch.manual_seed(0)
        model = randomise(timm.create_model(name, num_classes=0, img_size=112, **options))
        prompts = mmprovpt.inject_prompts(model, dict(type='StaticPrompts', num_tokens=PROMPTS))
        with torch.no_grad():
            prompts.tokens.normal_()
        prompts.relocate(0, 1)
        for module in model.modules():
            if hasattr(module, 'qkv'):
                module.qkv.__class__ = kind
        out = model.train()(torch.randn(2, 3, 112, 112))
        out.square().sum().backward()
        found.append((out.detach(), prompts.tokens.grad))
    for fast, slow in zip(*found):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5 * float(slow.abs().max()))


@pytest.mark.parametrize('bias', [None, 'added', 'boolean', 'windows'])
@pytest.mark.parametrize('size', [(6, 2, 5, 8), (4, 3, 49, 16)])
def test_written_out_attention_is_as_exact_as_fused(bias, size):
    """In bfloat16, against float64: values and gradients, with every kind of bias."""
    torch.manual_seed(0)
    batch, heads, tokens, width = size
    q, k, v = (torch.randn(batch, heads, n, width).bfloat16() for n in (tokens, tokens + 4, tokens + 4))
    shapes = dict(added=(1, heads), boolean=(1, heads), windows=(2, heads))
    given = None if bias is None else torch.randn(*shapes[bias], tokens, tokens + 4)
    given = given > -1 if bias == 'boolean' else given
    slow = given
    if bias == 'windows':
        slow = given.repeat(batch // 2, 1, 1, 1)
    errors = []
    for written in (True, False):
        ours = [x.clone().requires_grad_() for x in (q, k, v)]
        exact = [x.double().requires_grad_() for x in (q, k, v)]
        low = given if given is None or bias == 'boolean' else given.bfloat16()
        exact_bias = slow if bias in (None, 'boolean') else slow.bfloat16().double()
        out = base._weights(*ours[:2], 0.3, low) @ ours[2] if written else base._fused(*ours, 0.3, low, 0.)
        truth = F.scaled_dot_product_attention(*exact, exact_bias, scale=0.3)
        seed = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        out.backward(seed)
        truth.backward(seed.double())
        pairs = [(out, truth), *((a.grad, b.grad) for a, b in zip(ours, exact))]
        errors.append([float((a.double() - b).norm() / b.norm()) for a, b in pairs])
    assert max(errors[0]) < 0.005
    assert max(errors[0]) < 1.5 * max(errors[1])


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224'])
def test_bfloat16_training_step_follows_float32(name):
    """The written-out path in whole backbones: gradients of prompts within bfloat16's rounding of float32's."""
    options = dict(depth=3) if name.startswith('vit') else dict(depths=(2, 2), num_heads=(3, 6), embed_dim=24)
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, num_classes=0, img_size=112, **options))
    prompts = mmprovpt.inject_prompts(model, dict(type='StaticPrompts', num_tokens=PROMPTS, dropout=0.))
    with torch.no_grad():
        prompts.tokens.normal_()
    images, grads = torch.randn(2, 3, 112, 112), []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            out = model(images)
        out.float().square().mean().backward()
        grads.append(prompts.tokens.grad.clone())
    assert F.cosine_similarity(*(grad.flatten() for grad in grads), dim=0) > 0.99
