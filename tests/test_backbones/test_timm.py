"""timm's own ways into a model, and its many classes that are named like those that can be prompted."""
import pytest
import timm
import torch
from matrix import fill_rows, randomise
from mmengine.registry import MODELS, DefaultScope
from torch.utils._pytree import tree_leaves

from mmprovpt import inject_prompts, tuned_state_dict
from mmprovpt.errors import ConfigError

VIT = dict(model_name='vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)
SWIN = dict(model_name='swin_tiny_patch4_window7_224', img_size=56, embed_dim=12, depths=(2, 2, 2), num_heads=(2, 3, 4))


def model(cfg, kind=None, **options):
    net = randomise(timm.create_model(**cfg, **options))
    if kind is not None:
        torch.manual_seed(0)
        prompts = inject_prompts(net, dict(kind, num_tokens=3))
        torch.manual_seed(1)
        if kind['type'] == 'AdaptivePrompts':
            fill_rows(prompts)
    return net.eval()


@pytest.mark.parametrize('cfg', [VIT, SWIN], ids=['vit', 'swin'])
@torch.no_grad()
def test_every_way_in_is_the_same(cfg, kind):
    net = model(cfg, kind, num_classes=4)
    x = torch.randn(2, 3, cfg['img_size'], cfg['img_size'])
    expected = net(x)
    features = net.forward_features(x)
    assert torch.equal(net.forward_head(features), expected)
    final, maps = net.forward_intermediates(x)
    assert torch.equal(net.forward_head(final), expected)
    assert torch.equal(net.forward_intermediates(x, indices=1, intermediates_only=True)[0], maps[-1])
    # Without prompts they are not what they are.
    assert not torch.allclose(model(cfg, num_classes=4)(x), expected)


@pytest.mark.parametrize('cfg', [VIT, SWIN], ids=['vit', 'swin'])
@torch.no_grad()
def test_features_only(cfg, kind):
    whole, features = model(cfg, kind), model(cfg, features_only=True)
    weights = {name: value for name, value in whole.state_dict().items() if not name.startswith('prompts.')}
    features.load_state_dict({name: weights[name.removeprefix('model.').replace('layers_', 'layers.')]
                              for name in features.state_dict()})
    inject_prompts(features, dict(kind, num_tokens=3)).load_state_dict(whole.prompts.state_dict())
    features.eval()
    x = torch.randn(2, 3, cfg['img_size'], cfg['img_size'])
    expected = whole.forward_intermediates(x, intermediates_only=True)
    for ours, theirs in zip(features(x), expected, strict=True):
        ours = ours if cfg is VIT else ours.permute(0, 3, 1, 2)  # timm's Swin gives features with channels last
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_the_model_inside_of_a_wrapper_has_the_same_ways_in(kind):
    features = model(VIT, features_only=True)
    inject_prompts(features, dict(kind, num_tokens=3))
    x = torch.randn(2, 3, 32, 32)
    for ours, theirs in zip(features(x), features.model.forward_intermediates(
            x, indices=features.out_indices, intermediates_only=True), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('name, options, named', [
    ('beit_base_patch16_224', dict(depth=2), None),
    ('beitv2_base_patch16_224', dict(depth=2), None),
    ('vit_base_patch16_rpn_224', dict(depth=2), None),
    ('pvt_v2_b0', {}, 'timm.models.pvt_v2.Attention'),
    ('visformer_tiny', {}, 'timm.models.visformer.Attention'),
    ('samvit_base_patch16', dict(depth=2, img_size=224), 'timm.models.vision_transformer_sam.Attention'),
    ('pit_ti_224', {}, 'timm.models.pit.PoolingVisionTransformer'),
    ('mobilevit_xxs', {}, 'timm.models.byobnet.ByobNet'),
    ('crossvit_tiny_240', {}, 'timm.models.crossvit'),
    ('naflexvit_base_patch16_gap', dict(depth=1), 'timm.models.naflexvit.NaFlexVit'),
    ('swinv2_tiny_window8_256', {}, None),
    ('swinv2_cr_tiny_224', {}, 'timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention'),
    ('hiera_tiny_224', {}, 'timm.models.hiera.MaskUnitAttention'),
    ('vit_base_patch16_xp_224', dict(depth=1), 'timm.models.vision_transformer.ParallelScalingBlock'),
    ('swin_s3_tiny_224', None, None),
    ('xcit_nano_12_p16_224', dict(depth=1), 'timm.models.xcit'),
    ('levit_128s', {}, 'timm.models.levit'),
    ('resnet18', {}, 'no attention at all'),
])
def test_lookalikes_work_or_are_refused_when_built(name, options, named, kind):
    net = timm.create_model(name, num_classes=3, **(options or {})).eval()
    if named is None:
        inject_prompts(net, dict(kind, num_tokens=2))
        assert net(torch.randn(1, *net.default_cfg['input_size'])).shape == (1, 3)
        return
    before = {where: type(module) for where, module in net.named_modules()}
    with pytest.raises(ConfigError, match=named) as caught:
        inject_prompts(net, dict(kind, num_tokens=2))
    assert 'timm.models.vision_transformer' in str(caught.value) and 'others can be added' in str(caught.value)
    assert {where: type(module) for where, module in net.named_modules()} == before


@pytest.mark.parametrize('route', ['inject_prompts', 'config'])
def test_dinov3_by_its_name(route):
    """At its own width and depth; what it is and how large images are, its name says alone."""
    def build():
        if route == 'config':
            with DefaultScope.overwrite_default_scope('mmpretrain'):
                return MODELS.build(dict(type='mmprovpt.PromptedTIMMBackbone', model_name='vit_small_patch16_dinov3',
                                         prompts=dict(type='StaticPrompts', num_tokens=2, dropout=0.)))
        net = timm.create_model('vit_small_patch16_dinov3', pretrained=False, num_classes=0, global_pool='')
        inject_prompts(net, dict(type='StaticPrompts', num_tokens=2, dropout=0.))
        return net

    torch.manual_seed(0)
    backbone, x = randomise(build()).train(), torch.randn(1, 3, 48, 80)
    prompts, features = backbone.prompts, tree_leaves(backbone(x))[0]
    assert features.shape == (1, 5 + 3 * 5, 384) and prompts.num_blocks == 12  # class token and 4 registers
    (features * torch.randn(features.shape)).sum().backward()
    assert [name for name, value in backbone.named_parameters() if value.grad is not None] == ['prompts.tokens']
    assert prompts.tokens.grad.abs().sum(1).all()
    prompts.relocate(0, 11)
    small = tuned_state_dict(backbone)
    assert {name for name in small if 'prompts.' not in name} == set() and small['prompts.tokens'].numel() == 24 * 384
    other = randomise(build()).eval()
    other.load_state_dict(small)
    with torch.no_grad():
        for size in ((48, 80), (64, 32)):
            x = torch.randn(1, 3, *size)
            assert torch.equal(tree_leaves(other(x))[0], tree_leaves(backbone.eval()(x))[0])


@pytest.mark.parametrize('name, fan_in', [
    ('vit_tiny_r_s16_p8_224', 256 * 8 * 8),  # a stem of stride 4, and patches of 8 of its map
    ('vit_small_r26_s32_224', 2048),
])
@torch.no_grad()
def test_hybrids(name, fan_in, kind):
    """The patch embedding is what makes patches, not the first convolution, which is the stem's."""
    plain = timm.create_model(name, num_classes=3).eval()
    net = timm.create_model(name, num_classes=3).eval()
    net.load_state_dict(plain.state_dict())
    conv = net.patch_embed.proj
    prompts = inject_prompts(net, dict(kind, num_tokens=2))
    assert prompts.patch_fan_in == conv.in_channels * conv.kernel_size[0]**2
    x = torch.randn(1, 3, 224, 224)
    prompts.tokens.normal_()
    assert net(x).shape == (1, 3) and not torch.allclose(net(x), plain(x))
