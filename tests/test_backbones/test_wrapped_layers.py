"""What wraps a projection wraps prompts: they pass what tokens pass."""
import copy

import peft
import pytest
import timm
import torch
from matrix import CASES, KINDS, build, concatenating, images, outputs, randomise
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from mmprovpt import inject_prompts

FORMS = ('static', 'adaptive', 'shallow')
PROJECTIONS = 'qkv', 'q_proj', 'k_proj', 'v_proj'
# mmcv's wrapper of torch's attention has no projection of its own; see test_attention.py.
QKV = [name for name in CASES if name != 'mmseg-vit']


def set_lora(backbone):
    """peft's LoRA around every projection, with weights that change much."""
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=list(PROJECTIONS), r=2), backbone)
    torch.manual_seed(5)
    for layer in layers(backbone):
        nn.init.normal_(layer.lora_A['default'].weight)
        nn.init.normal_(layer.lora_B['default'].weight)


def layers(backbone):
    return [module for module in backbone.modules() if isinstance(module, peft.tuners.lora.Linear)]


def merged(backbone):
    """The same with plain layers that hold the sum."""
    for module in list(backbone.modules()):
        for name in PROJECTIONS:
            layer = getattr(module, name, None)
            if isinstance(layer, peft.tuners.lora.Linear):
                layer.merge()
                setattr(module, name, layer.base_layer)
    return backbone


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', QKV)
@torch.no_grad()
def test_lora_of_peft(name, form):
    case = CASES[name]
    backbone = build(case, dict(KINDS[form], num_tokens=2)).eval()
    x = images(case)
    plain = outputs(backbone, x)
    set_lora(backbone)
    ours = outputs(backbone, x)
    expected = outputs(merged(copy.deepcopy(backbone)), x)
    assert not torch.allclose(ours[-1], plain[-1], rtol=0.1)
    for layer in layers(backbone):
        layer.merge()
    for a, b, c in zip(ours, outputs(backbone, x), expected, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(b, c, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_lora_against_plain_tokens():
    """Independent of all of ours: the upstream backbone with LoRA, prompts as tokens."""
    case = CASES['timm-vit']
    backbone, upstream = build(case, dict(num_tokens=2)).eval(), build(case)
    set_lora(backbone), set_lora(upstream)
    rows = [backbone.prompts.rows(block) for block in range(case.depth)]
    with concatenating(upstream, rows):
        for a, b in zip(outputs(backbone, images(case)), outputs(upstream, images(case)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def vit(form=None):
    net = randomise(timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=64, depth=2,
                                      num_heads=2, num_classes=3))
    if form is not None:
        torch.manual_seed(0)
        inject_prompts(net, dict(KINDS[form], num_tokens=3)).tokens.data.normal_()
    return net.eval()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('form', FORMS)
@torch.no_grad()
def test_dynamic_quantization(form):
    net, x = vit(form), torch.randn(2, 3, 32, 32)
    small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(net), {nn.Linear}, dtype=torch.qint8)
    near = torch.cosine_similarity(small(x).flatten(), net(x).flatten(), 0)
    assert near > 0.99 and not torch.equal(small(x), net(x))


@pytest.mark.parametrize('form', FORMS)
def test_int8_weights_of_torchao(form):
    net, x = vit(form), torch.randn(2, 3, 32, 32)
    small = copy.deepcopy(net)
    quantize_(small, Int8WeightOnlyConfig())
    assert 'Int8' in type(small.blocks[0].attn.qkv.weight).__name__ or 'Affine' in type(
        small.blocks[0].attn.qkv.weight).__name__
    assert torch.cosine_similarity(small(x).flatten(), net(x).flatten(), 0) > 0.99
    for each in (small, net):
        each.train()(x).square().sum().backward()
    grads = [each.prompts.tokens.grad.flatten() for each in (small, net)]
    assert torch.cosine_similarity(*grads, 0) > 0.98 and not torch.equal(*grads)


def lora_model(module):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(type='LoRAModel', alpha=2, rank=2, targets=[dict(type='qkv')], module=module))


VIT = dict(img_size=32, patch_size=8, arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64))


def test_lora_model_around_prompts_is_right_and_does_not_train():
    model = lora_model(dict(VIT, type='mmprovpt.PromptedVisionTransformer',
                            prompts=dict(type='StaticPrompts', num_tokens=3)))
    x = torch.randn(2, 3, 32, 32)
    for name, parameter in model.named_parameters():
        if 'lora_up' in name:
            nn.init.normal_(parameter)
    merged = copy.deepcopy(model.module).eval()
    for block in merged.layers:
        lora = block.attn.qkv
        lora.original_layer.weight.data += lora.lora_up.weight @ lora.lora_down.weight * lora.scaling
        block.attn.qkv = lora.original_layer
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x)[0], merged(x)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match='LoRAModel does, .* Inject prompts into the backbone that has LoRA already'):
        model.train()(x)


def test_prompts_in_a_lora_model_train_beside_it():
    """What the message above says to do."""
    model = lora_model(dict(VIT, type='VisionTransformer'))
    prompts = inject_prompts(model.module, dict(type='StaticPrompts', num_tokens=3))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_('lora_' in name or 'prompts' in name)
    model.train()(torch.randn(2, 3, 32, 32))[0].sum().backward()
    assert prompts.tokens.grad.abs().sum(1).all()
    assert all(p.grad is not None for name, p in model.named_parameters() if 'lora_' in name)
