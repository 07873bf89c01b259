"""Maps of timm's plain ViTs for necks: at any image size, without prefix tokens, behind the last norm if wanted."""
import pytest
import timm
import torch
import torch.nn.functional as F
from matrix import Case, build, concatenating, images, loss, outputs, randomise
from mmengine.registry import MODELS, DefaultScope

from mmprovpt import tuned_state_dict
from mmprovpt.errors import ConfigError

SMALL = dict(embed_dim=32, depth=3, num_heads=2, img_size=32, patch_size=8, dynamic_img_size=True, dynamic_img_pad=True)
VITS = dict(vit=dict(SMALL, model_name='vit_tiny_patch16_224'),
               dinov3=dict(SMALL, model_name='vit_small_plus_patch16_dinov3_qkvb'))  # rotary, with registers
SIZES = ((32, 32), (40, 64), (37, 50))  # the last one is no multiple of the patch


@pytest.fixture(params=VITS)
def model(request):
    return VITS[request.param]


def maps(model, scope='mmpretrain', **options):
    """The case of that model with maps of its first and second block; the third is never run."""
    return Case(scope, 'TIMMBackbone', dict(model, features_only=True, pretrained=False, out_indices=(0, 1), **options),
                SIZES, 2)


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmseg'])
@pytest.mark.parametrize('norm', [False, True])
@torch.no_grad()
def test_values_are_those_of_forward_intermediates(scope, norm, model):
    backbone = build(maps(model, scope), dict(num_tokens=0), final_norm=norm).eval()
    whole = randomise(timm.create_model(**model)).eval()
    weights = {key.removeprefix('timm_model.model.'): value for key, value in backbone.state_dict().items()}
    missing, unexpected = whole.load_state_dict(weights, strict=False)
    assert all(key.startswith(('blocks.2.', 'norm.', 'head.')) for key in missing)
    assert all(key.startswith('prompts.') for key in unexpected) and norm == ('norm.weight' not in missing)
    for size in SIZES:
        x = images(maps(model), size)
        expected = whole.forward_intermediates(x, indices=[0, 1], norm=norm, intermediates_only=True)
        padded = F.pad(x, (0, -size[1] % 8, 0, -size[0] % 8))
        for ours, theirs, cut in zip(backbone(x), expected, backbone(padded), strict=True):
            assert ours.shape == (2, 32, -(-size[0] // 8), -(-size[1] // 8))
            assert torch.equal(ours, theirs) and torch.equal(ours, cut)


def test_prompts_relocation_and_small_checkpoints(model):
    case = maps(model)
    prompted, upstream = build(case, dict(num_tokens=[3, 2])), build(case)
    prompts = prompted.prompts
    assert prompts.num_blocks == 2  # what stands behind the last map is cut off, and has no idle prompts
    for move in ((), (0, 1)):
        if move:
            prompts.relocate(*move)
        rows = [prompts.tokens[prompts.block_index == block].detach().clone().requires_grad_() for block in range(2)]
        for size in SIZES:
            x = images(case, size)
            prompts.zero_grad()
            loss(prompted.train(), x).backward()
            with concatenating(upstream, rows):
                for ours, theirs in zip(outputs(prompted, x), outputs(upstream, x), strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=3e-5)
                expected = torch.autograd.grad(loss(upstream, x), rows)
            for block, grad in enumerate(expected):
                torch.testing.assert_close(prompts.tokens.grad[prompts.block_index == block], grad)
    small = tuned_state_dict(prompted)
    assert all(key.startswith('prompts.') for key in small)
    other = build(case, dict(num_tokens=[3, 2])).eval()
    other.load_state_dict(small)
    with torch.no_grad():
        for ours, theirs in zip(other(images(case, SIZES[2])), prompted.eval()(images(case, SIZES[2])), strict=True):
            assert torch.equal(ours, theirs)


@torch.no_grad()
def test_a_file_of_the_authors_of_dinov3(tmp_path):
    """Their names, and their bias in one piece, are converted by timm."""
    whole = randomise(timm.create_model(**VITS['dinov3']))
    state = whole.state_dict()
    for block in range(3):
        q, v = (state.pop(f'blocks.{block}.attn.{part}_bias') for part in 'qv')
        state[f'blocks.{block}.attn.qkv.bias'] = torch.cat([q, torch.zeros_like(q), v])
        for number in '12':
            state[f'blocks.{block}.ls{number}.gamma'] = state.pop(f'blocks.{block}.gamma_{number}')
    state['storage_tokens'] = state.pop('reg_token')
    theirs = {key.replace('mlp.fc1_g', 'mlp.w1').replace('mlp.fc1_x', 'mlp.w2').replace('mlp.fc2', 'mlp.w3'): value
              for key, value in state.items() if not key.startswith('head.')}
    torch.save({**theirs, 'mask_token': torch.zeros(1, 32), 'rope_embed.periods': torch.ones(4)}, tmp_path / 'meta.pth')
    cfg = dict(VITS['dinov3'], type='mmprovpt.PromptedTIMMBackbone', features_only=True, out_indices=(2, ),
               pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'meta.pth')),
               prompts=dict(type='StaticPrompts', num_tokens=0))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(cfg).eval()
    backbone.init_weights()
    x = images(maps(VITS['dinov3']))
    assert torch.equal(backbone(x)[0], whole.eval().forward_intermediates(x, 1, intermediates_only=True)[0])


@pytest.mark.parametrize('form', ['AdaptivePrompts', 'ShallowPrompts'])
def test_other_forms_at_odd_sizes(form, model):
    case = maps(model)
    backbone = build(case, dict(type=form, num_tokens=2)).train()
    loss(backbone, images(case, SIZES[2])).backward()
    assert backbone.prompts.tokens.grad.abs().sum(1).all()


def test_final_norm_needs_maps(model):
    with DefaultScope.overwrite_default_scope('mmpretrain'), pytest.raises(ConfigError, match='features_only=True'):
        MODELS.build(dict(model, type='mmprovpt.PromptedTIMMBackbone', features_only=False, final_norm=True,
                          prompts=dict(type='StaticPrompts', num_tokens=1)))


@torch.no_grad()
def test_simple_pyramid():
    """Against arithmetic pixel by pixel, and as it fits a ViT of 16 pixels: strides 4, 8, 16, 32, 64."""
    neck = randomise(MODELS.build(dict(type='mmprovpt.SimpleFeaturePyramid', in_channels=8, out_channels=6)))
    x = torch.randn(2, 8, 4, 6)
    outs = neck([torch.zeros(2, 3, 9, 9), x])
    assert [tuple(out.shape[-2:]) for out in outs] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]

    def norm(x, layer):
        x = x - x.mean(1, keepdim=True)
        x = x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return x * layer.weight[:, None, None] + layer.bias[:, None, None]

    def double(x, layer):
        out = torch.zeros(len(x), layer.out_channels, 2 * x.shape[2], 2 * x.shape[3])
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            out[:, :, i::2, j::2] = torch.einsum('bchw,cd->bdhw', x, layer.weight[:, :, i, j])
        return out + layer.bias[:, None, None]

    def last(x, level):
        one, first, three, second = level[-4:]
        x = norm(torch.einsum('bchw,dc->bdhw', x, one.weight[:, :, 0, 0]), first)
        around = F.unfold(x, 3, padding=1).unflatten(1, (-1, 9))
        return norm(torch.einsum('bckn,dck->bdn', around, three.weight.flatten(2)).unflatten(2, x.shape[-2:]), second)

    four, two, same, half = neck.levels
    large = double(F.gelu(norm(double(x, four[0]), four[1])), four[3])
    pooled = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    expected = [last(large, four), last(double(x, two[0]), two), last(x, same), last(pooled, half)]
    for ours, theirs in zip(outs, [*expected, expected[-1][:, :, ::2, ::2]], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('wrong', [dict(scales=(4, 3)), dict(num_outs=3)])
def test_levels_that_are_none(wrong):
    with pytest.raises(ConfigError, match='scales are of 4, 2, 1 and 0.5'):
        MODELS.build(dict(type='mmprovpt.SimpleFeaturePyramid', in_channels=8, **wrong))
