import pytest
import timm
import torch
from matrix import CASES, build
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmprovpt import inject_prompts
from mmprovpt.errors import ConfigError


@pytest.fixture
def vit():
    return timm.create_model('vit_tiny_patch16_224', img_size=32, embed_dim=12, depth=2, num_heads=2)


@pytest.mark.parametrize('prompts, message', [
    (dict(type='StaticPrompt', num_tokens=1),
     "type='StaticPrompt' is unknown; known are StaticPrompts, AdaptivePrompts, ShallowPrompts"),
    (dict(num_tokens=1), r"must be a dict such as dict\(type='StaticPrompts'\)"),
    (dict(type='StaticPrompts'), 'num_tokens is missing'),
    (dict(type='StaticPrompts', num_token=1),
     'StaticPrompts has no argument num_token; known are num_tokens, dropout, cross_stage'),
    (dict(type='StaticPrompts', num_tokens=1, widths=[1]), 'StaticPrompts has no argument widths; known are'),
    (dict(type='StaticPrompts', num_tokens=[1, 2, 3]), 'has 3 entries, but the backbone has 2 blocks'),
])
def test_bad_prompts(vit, prompts, message):
    before = {name: type(module) for name, module in vit.named_modules()}
    with pytest.raises(ValueError, match=message):
        inject_prompts(vit, prompts)
    # Nothing half-done is left behind.
    assert {name: type(module) for name, module in vit.named_modules()} == before
    assert all(parameter.requires_grad for parameter in vit.parameters())


def test_prompts_that_are_no_dict():
    with pytest.raises(ConfigError, match='prompts=10, but it must be a dict'), \
            DefaultScope.overwrite_default_scope('mmdet'):
        MODELS.build(dict(type='mmprovpt.PromptedSwinTransformer', prompts=10))


def test_twice(vit):
    inject_prompts(vit, dict(type='StaticPrompts', num_tokens=1))
    with pytest.raises(ValueError, match='has prompts already'):
        inject_prompts(vit, dict(type='StaticPrompts', num_tokens=1))


@pytest.mark.parametrize('scope, cfg, message', [
    ('mmdet', dict(type='ResNet', depth=18), 'has no attention at all'),
    ('mmpretrain', dict(type='MViT', arch='tiny'), 'MultiScaleAttention'),
    ('mmpretrain', dict(type='T2T_ViT', t2t_cfg=dict(token_dims=64, use_performer=False), num_layers=1,
                        layer_cfgs=dict(num_heads=6, feedforward_channels=8)),
     'in a block mmpretrain.models.backbones.t2t_vit.T2TTransformerLayer, which is not known'),
])
def test_unsupported_backbone_is_named(scope, cfg, message):
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(cfg)
    with pytest.raises(ValueError, match=message):
        inject_prompts(backbone, dict(type='StaticPrompts', num_tokens=1))


def test_unknown_blocks_and_attention_in_a_known_backbone_are_refused():
    backbone = timm.create_model('vit_relpos_small_patch16_224', img_size=32, depth=1)
    with pytest.raises(ValueError, match='RelPosAttention'):
        inject_prompts(backbone, dict(type='StaticPrompts', num_tokens=1))
    backbone = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=1,
                                 block_fn=timm.models.vision_transformer.ParallelThingsBlock)
    with pytest.raises(ValueError, match='is in a block torch.nn.modules.container.Sequential, which is not known'):
        inject_prompts(backbone, dict(type='StaticPrompts', num_tokens=1))


def test_pool_of_a_built_backbone(vit):
    pool = inject_prompts(vit, dict(type='StaticPrompts', num_tokens=[3, 0], dropout=0.2))
    assert vit.prompts is pool
    assert pool.tokens.shape == (3, 12) and pool.block_index.dtype == torch.int64
    assert pool.num_blocks == 2 and pool.distribution.tolist() == [3, 0]
    assert pool.patch_fan_in == 3 * 16**2 and pool.dropout == 0.2


def test_swin_widths():
    pool = build(CASES['mmdet-swin'], dict(num_tokens=2)).prompts
    assert pool.widths == [12, 12, 24, 24, 48, 48] and pool.tokens.shape == (12, 48)
    assert pool.num_active == 2 * 2 * (12 + 24 + 48)


@pytest.mark.parametrize('name', [name for name in CASES if 'swin' in name])
@pytest.mark.parametrize('cross_stage', ['project', 'reinit'])
def test_prompt_crosses_stages(name, cross_stage):
    pool = build(CASES[name], dict(num_tokens=1, cross_stage=cross_stage)).prompts
    assert pool.relocate(0, 1) is False and pool.relocate(0, 5) is True
    assert pool.tokens[0].ne(0).all()
    assert pool.relocate(0, 2) is True
    assert pool.tokens[0, :24].ne(0).all() and not pool.tokens[0, 24:].any()
    assert pool.tokens.isfinite().all()


def test_scope_decides_the_library():
    modules = {}
    swin = dict(type='mmprovpt.PromptedSwinTransformer', prompts=dict(type='StaticPrompts', num_tokens=1))
    for scope in ('mmdet', 'mmseg', 'mmpretrain'):
        with DefaultScope.overwrite_default_scope(scope):
            modules[scope] = type(MODELS.build(swin)).__module__.split('.')[0]
    assert modules == dict(mmdet='mmdet', mmseg='mmseg', mmpretrain='mmpretrain')
    # By mmengine's own key, and where a library has no such backbone, mmpretrain's.
    vit = dict(type='mmprovpt.PromptedVisionTransformer', prompts=swin['prompts'])
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert type(MODELS.build(dict(swin, _scope_='mmseg'))).__module__.startswith('mmseg')
        assert type(MODELS.build(dict(vit, arch='deit-tiny'))).__module__.startswith('mmpretrain')


def test_unknown_upstream_argument_is_not_swallowed():
    with DefaultScope.overwrite_default_scope('mmdet'), pytest.raises(TypeError, match='embed_dim'):
        MODELS.build(dict(type='mmprovpt.PromptedSwinTransformer', embed_dim=1,
                          prompts=dict(type='StaticPrompts', num_tokens=1)))


def test_backbone_without_patch_embedding():
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=1)
    vit.patch_embed.proj = nn.Identity()
    with pytest.raises(ConfigError, match='has no patch embedding with a convolution'):
        inject_prompts(vit, dict(type='StaticPrompts', num_tokens=1))
