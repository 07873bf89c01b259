"""Files in the published layouts (random weights) against timm's own loader, through the configs."""
from pathlib import Path
from typing import NamedTuple

import numpy as np
import published
import pytest
import timm
import torch
from convert_weights import build_timm, compare, convert, read_source, to_mmpretrain
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from safetensors.torch import save_file
from timm.models import load_checkpoint, swin_transformer, vision_transformer

from mmprovpt.errors import ConfigError

ROOT = Path(__file__).parents[2]
VIT = dict(embed_dim=192, depth=2, num_heads=3)
VIT_ARCH = dict(embed_dims=192, num_layers=2, num_heads=3, feedforward_channels=768)
SWIN = dict(embed_dim=12, depths=(2, 2, 2, 2), num_heads=(2, 3, 4, 6))
SWIN_ARCH = dict(embed_dims=12, depths=[2, 2, 2, 2], num_heads=[2, 3, 4, 6])


class Case(NamedTuple):
    """A config, the file it is for, and what timm calls the model."""
    write: object
    name: str
    timm_model: str
    small: dict
    arch: dict
    source: str
    trained_size: int = 224


CASES = {
    'vit_b16_in21k': Case(published.jax, 'ViT-B_16.npz', 'vit_base_patch16_224', VIT, VIT_ARCH, 'ViT of JAX'),
    'vit_l16_in21k': Case(published.jax, 'ViT-L_16.npz', 'vit_large_patch16_224', VIT, VIT_ARCH, 'ViT of JAX'),
    'vit_h14_in21k': Case(published.jax, 'ViT-H_14.npz', 'vit_huge_patch14_224', VIT, VIT_ARCH, 'ViT of JAX'),
    'vit_b16_mae': Case(published.mae, 'mae_pretrain_vit_base.pth', 'vit_base_patch16_224', VIT, VIT_ARCH,
                        'ViT with fixed positions (MAE, MoCo-v3)'),
    'vit_b16_mocov3': Case(published.moco, 'linear-vit-b-300ep.pth.tar', 'vit_base_patch16_224', VIT, VIT_ARCH,
                           'ViT with fixed positions (MAE, MoCo-v3)'),
    'vit_b14_dinov2': Case(published.dinov2, 'dinov2_vitb14_pretrain.pth', 'vit_base_patch14_dinov2', VIT, VIT_ARCH,
                           'DINOv2', 518),
    'swin_b_in21k': Case(published.swin, 'swin_base_patch4_window7_224_22k.pth', 'swin_base_patch4_window7_224', SWIN,
                         SWIN_ARCH, 'Swin'),
}
VITS = [name for name in CASES if name != 'swin_b_in21k']


def write(case, folder):
    """The published file with random weights of a small model; and the model."""
    sized = dict(img_size=case.trained_size) if case.small is VIT else {}
    model = published.randomise(timm.create_model(case.timm_model, num_classes=0, **case.small, **sized))
    path = folder / case.name
    case.write(model, path)
    return str(path), model


def through_timm(case, path, img_size):
    """timm's model with the weights of the file, by timm's own loader."""
    sized = dict(img_size=img_size) if case.small is VIT else {}
    model = timm.create_model(case.timm_model, num_classes=0, **case.small, **sized)
    module = vision_transformer if case.small is VIT else swin_transformer

    def filtered(state, model):
        state = module.checkpoint_filter_fn(state, model)
        return {key: value for key, value in state.items() if not key.startswith('head.')}

    load_checkpoint(model, path, filter_fn=filtered)
    return model.eval()


def through_config(name, case, checkpoint, **overrides):
    """The classifier of the config without a head, its backbone small but otherwise as it is."""
    cfg = Config.fromfile(ROOT / f'configs/_base_/backbones/{name}.py').model
    cfg.pop('head')
    cfg.backbone.update(arch=case.arch, prompts=dict(type='StaticPrompts', num_tokens=0), **overrides)
    cfg.backbone.init_cfg.checkpoint = str(checkpoint)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg)
        model.init_weights()
    return model.eval()


@torch.no_grad()
def features(model, image):
    if hasattr(model, 'extract_feat'):
        return model.extract_feat(image)[-1]
    return model.forward_head(model.forward_features(image), pre_logits=True)


def image(size, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('name', CASES)
def test_config_gives_timms_features(name, tmp_path):
    case = CASES[name]
    path, original = write(case, tmp_path)
    meta = convert(path, str(tmp_path / 'out' / 'x.pth'), img_size=224 if case.trained_size != 224 else None)
    assert meta['source'] == case.source and meta['max_difference'] < 1e-4
    ours = features(through_config(name, case, tmp_path / 'out' / 'x.pth'), image(224))
    timms = features(through_timm(case, path, 224), image(224))
    assert ours.std() > 0.3
    torch.testing.assert_close(ours, timms, atol=1e-4, rtol=0)
    if case.trained_size == 224:  # the file holds what it should
        torch.testing.assert_close(ours, features(original, image(224)), atol=1e-4, rtol=0)


@pytest.mark.parametrize('name', VITS)
def test_positions_are_resized_as_timm_does(name, tmp_path):
    case = CASES[name]
    path, _ = write(case, tmp_path)
    patch = 14 if '14' in name else 16
    size = 7 * patch
    meta = convert(path, str(tmp_path / 'x.pth'), img_size=size)
    assert meta['backbone']['img_size'] == size
    ours = features(through_config(name, case, tmp_path / 'x.pth', img_size=size), image(size))
    torch.testing.assert_close(ours, features(through_timm(case, path, size), image(size)), atol=1e-4, rtol=0)


def test_mmpretrain_resizes_otherwise(tmp_path):
    """Why --img-size is there: left to mmpretrain, the features are not timm's."""
    case = CASES['vit_b14_dinov2']
    path, _ = write(case, tmp_path)
    convert(path, str(tmp_path / 'x.pth'))
    ours = features(through_config('vit_b14_dinov2', case, tmp_path / 'x.pth'), image(224))
    assert (ours - features(through_timm(case, path, 224), image(224))).abs().max() > 1e-3


@pytest.mark.parametrize('name', VITS)
def test_arch_of_config_is_timms(name):
    cfg = Config.fromfile(ROOT / f'configs/_base_/backbones/{name}.py').model.backbone
    with torch.device('meta'):
        expected, _ = to_mmpretrain(timm.create_model(CASES[name].timm_model, num_classes=0, img_size=224))
    from mmpretrain.models.backbones import VisionTransformer
    arch = VisionTransformer.arch_zoo[cfg.arch]
    assert arch == expected.pop('arch')
    assert expected.pop('type') == 'VisionTransformer'
    given = {key: cfg[key] for key in cfg if key not in ('type', 'arch', 'init_cfg')}
    assert given == expected
    assert cfg.init_cfg == dict(type='Pretrained', checkpoint=f'checkpoints/{name}.pth', prefix='backbone.')


def test_arch_of_swins_config_is_timms():
    cfg = Config.fromfile(ROOT / 'configs/_base_/backbones/swin_b_in21k.py').model.backbone
    expected, _ = to_mmpretrain(timm.create_model('swin_base_patch4_window7_224', num_classes=0))
    from mmpretrain.models.backbones import SwinTransformer
    assert dict(SwinTransformer.arch_zoo[cfg.arch]) == expected['arch']
    assert (cfg.img_size, cfg.patch_size, cfg.window_size) == (224, 4, 7)
    assert all(expected[key] == cfg[key] for key in ('img_size', 'patch_size', 'window_size'))


def test_timm_config_reads_the_published_file(tmp_path):
    """The twin through timm, which needs no conversion."""
    case = CASES['vit_b16_in21k']
    path, original = write(case, tmp_path)
    cfg = Config.fromfile(ROOT / 'configs/_base_/backbones/timm_vit_b16_in21k.py').model
    cfg.pop('head')
    cfg.backbone.update(VIT, prompts=dict(type='StaticPrompts', num_tokens=0), checkpoint_path=path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg)
        model.init_weights()
    ours = features(model.eval(), image(224))
    torch.testing.assert_close(ours, features(original, image(224)), atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', CASES)
def test_timm_form(name, tmp_path):
    """For TIMMBackbone, with the model's name of timm."""
    case = CASES[name]
    path, _ = write(case, tmp_path)
    sized = dict(img_size=224) if case.trained_size != 224 else {}
    convert(path, str(tmp_path / 'x.pth'), timm_form=True, **sized)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(
            type='ImageClassifier',
            backbone=dict(
                type='mmprovpt.PromptedTIMMBackbone', model_name=case.timm_model, num_classes=0, **case.small, **sized,
                prompts=dict(type='StaticPrompts', num_tokens=0),
                init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'), prefix='backbone.')),
            neck=dict(type='mmprovpt.TIMMPooling', pool='token' if case.small is VIT else 'avg')))
        model.init_weights()
    expected = features(through_timm(case, path, 224), image(224))
    torch.testing.assert_close(features(model.eval(), image(224)), expected, atol=1e-5, rtol=0)


def test_meta(tmp_path):
    path, _ = write(CASES['vit_b16_in21k'], tmp_path)
    meta = convert(path, str(tmp_path / 'x.pth'))
    saved = torch.load(tmp_path / 'x.pth', weights_only=True)
    assert saved['meta'] == meta
    assert all(key.startswith('backbone.') for key in saved['state_dict'])
    assert meta['file'] == 'ViT-B_16.npz' and len(meta['sha256']) == 64
    assert meta['left_out'] == ['head/bias', 'head/kernel', 'pre_logits/bias', 'pre_logits/kernel']
    assert meta['mean'] == meta['std'] == [127.5] * 3
    assert meta['backbone'] == dict(type='VisionTransformer', arch=VIT_ARCH, img_size=224, patch_size=16)
    assert {p.name for p in tmp_path.iterdir()} == {'ViT-B_16.npz', 'x.pth'}


def test_swins_position_index_is_mmpretrains(tmp_path):
    path, _ = write(CASES['swin_b_in21k'], tmp_path)
    convert(path, str(tmp_path / 'x.pth'))
    model = through_config('swin_b_in21k', CASES['swin_b_in21k'], tmp_path / 'x.pth')
    from mmpretrain.models.backbones import SwinTransformer
    fresh = SwinTransformer(arch=SWIN_ARCH).state_dict()
    name = 'stages.1.blocks.1.attn.w_msa.relative_position_index'
    assert torch.equal(fresh[name], torch.load(tmp_path / 'x.pth')['state_dict'][f'backbone.{name}'])
    assert torch.equal(fresh[name], model.backbone.state_dict()[name])


@pytest.mark.parametrize('write_file', ['timm-vit', 'timm-safetensors', 'timm-swin', 'moco-pretraining', 'mae-full'])
def test_other_layouts(write_file, tmp_path):
    """Each gives the features of the model that was written."""
    name = 'swin_b_in21k' if write_file == 'timm-swin' else 'vit_b16_mae'
    case, path = CASES[name], str(tmp_path / 'x.pth')
    _, model = write(case, tmp_path)
    state = model.state_dict()
    if write_file in ('timm-vit', 'timm-swin'):
        published.plain(model, path)
    elif write_file == 'timm-safetensors':
        path = str(tmp_path / 'model.safetensors')
        save_file(state, path)
    elif write_file == 'mae-full':
        torch.save(dict(model={**state, 'mask_token': torch.ones(1), 'decoder_blocks.0.norm1.weight': torch.ones(2)}),
                   path)
    else:
        encoders = {f'module.base_encoder.{key}': value for key, value in state.items()}
        encoders.update({f'module.momentum_encoder.{key}': -value for key, value in state.items()})
        beside = ('module.predictor.0.weight', 'module.base_encoder.head.0.weight')
        encoders.update(dict.fromkeys(beside, torch.ones(1)))
        torch.save(dict(state_dict=encoders), path)
    meta = convert(path, str(tmp_path / 'out.pth'))
    ours = features(through_config(name, case, tmp_path / 'out.pth'), image(224))
    torch.testing.assert_close(ours, features(model, image(224)), atol=1e-4, rtol=0)
    count = dict(zip(('moco-pretraining', 'mae-full'), (len(state) + 2, 2))).get(write_file, 0)
    assert len(meta['left_out']) == count


@pytest.mark.parametrize('key, change', [
    ('layers.0.attn.qkv.weight', lambda x: x.roll(192, 0)),
    ('layers.1.ffn.layers.1.bias', lambda x: x.roll(1)),
    ('pos_embed', lambda x: x.flip(1)),
])
def test_wrong_features_are_not_written(key, change, tmp_path):
    path, _ = write(CASES['vit_b16_mae'], tmp_path)
    model = build_timm(read_source(path))
    backbone, state = to_mmpretrain(model)
    with pytest.raises(RuntimeError, match="differ from timm's"):
        compare(model, backbone, dict(state, **{key: change(state[key])}))


def broken(tmp_path, change, name='vit_b16_mae', suffix='.pth'):
    """A converted file's error."""
    _, model = write(CASES[name], tmp_path)
    state = change(model.state_dict())
    path = tmp_path / f'broken{suffix}'
    torch.save(state, path)
    with pytest.raises(ConfigError) as error:
        convert(str(path), str(tmp_path / 'out.pth'))
    assert not (tmp_path / 'out.pth').exists()
    return str(error.value)


def test_unknown_layout_lists_the_known(tmp_path):
    message = broken(tmp_path, lambda state: {'stem.weight': torch.zeros(1), 'layer1.0.conv1.weight': torch.zeros(1)})
    assert 'unknown layout; known are' in message
    assert 'Transformer/encoderblock_0' in message
    assert message.endswith('The file holds: stem.weight, layer1.0.conv1.weight')
    assert 'no state dict of tensors' in broken(tmp_path, lambda state: dict(teacher=dict(state)))


def test_left_over_and_missing_keys_are_named(tmp_path):
    message = broken(tmp_path, lambda state: {**state, 'register_tokens': torch.zeros(1, 4, 192)})
    assert 'Left over: register_tokens' in message and 'PromptedTIMMBackbone' in message
    message = broken(tmp_path, lambda state: {k: v for k, v in state.items() if k != 'blocks.1.norm2.bias'})
    assert message.endswith('Missing: blocks.1.norm2.bias')
    message = broken(tmp_path, lambda state: {k: v for k, v in state.items() if k != 'blocks.0.mlp.fc1.weight'})
    assert 'lacks blocks.0.mlp.fc1.weight' in message
    message = broken(tmp_path, lambda state: {**state, 'absolute_pos_embed': torch.zeros(1)}, 'swin_b_in21k')
    assert 'Left over: absolute_pos_embed' in message


def test_shapes_that_do_not_fit_are_named(tmp_path):
    message = broken(tmp_path, lambda state: {**state, 'norm.weight': torch.zeros(7)})
    assert 'norm.weight' in message and '[7]' in message.replace('torch.Size(', '')
    message = broken(tmp_path, lambda state: {**state, 'pos_embed': torch.ones(1, 196, 192)})
    assert '196 positions are not a class token and a square' in message
    message = broken(tmp_path, lambda state: {**state, 'patch_embed.proj.weight': torch.zeros(192, 768)})
    assert 'the patch embedding is (192, 768)' in message


def test_incomplete_jax_file(tmp_path):
    path, _ = write(CASES['vit_b16_in21k'], tmp_path)
    with np.load(path) as archive:
        arrays = dict(archive)
    del arrays['Transformer/encoderblock_1/MlpBlock_3/Dense_1/bias']
    np.savez(path, **arrays, **{'conv_root/kernel': np.ones(1)})
    with pytest.raises(ConfigError) as error:
        convert(path)
    assert 'Missing: Transformer/encoderblock_1/MlpBlock_3/Dense_1/bias' in str(error.value)
    assert 'Left over: conv_root/kernel' in str(error.value)


@pytest.mark.parametrize('name', ['vit_b16_in21k', 'vit_b16_mae', 'safetensors'])
@pytest.mark.parametrize('part', [0.5, 0.])
def test_truncated_file(name, part, tmp_path):
    if name == 'safetensors':
        path = tmp_path / 'x.safetensors'
        save_file({'a': torch.zeros(100)}, path)
    else:
        path = Path(write(CASES[name], tmp_path)[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:int(len(whole) * part)])
    with pytest.raises(ConfigError, match=path.name):
        convert(str(path))


def test_file_that_is_not_there():
    with pytest.raises(ConfigError, match='no such file: nowhere.npz'):
        convert('nowhere.npz')


def test_sizes_and_heads(tmp_path):
    path, _ = write(CASES['vit_b16_mae'], tmp_path)
    for size in (100, -16):
        with pytest.raises(ConfigError, match=f'img_size={size}, but it must be a multiple of the patch size, 16'):
            convert(path, img_size=size)
    assert convert(path, num_heads=6)['backbone']['arch']['num_heads'] == 6
    with pytest.raises(ConfigError, match='num_heads=7, but it must divide the width, 192'):
        convert(path, num_heads=7)
    jax, _ = write(CASES['vit_b16_in21k'], tmp_path)
    with pytest.raises(ConfigError, match=r'num_heads=6, but .*ViT-B_16.npz has 3'):
        convert(jax, num_heads=6)
    swin, _ = write(CASES['swin_b_in21k'], tmp_path)
    with pytest.raises(ConfigError, match='are for ViT'):
        convert(swin, img_size=384)


def test_heads_that_the_width_does_not_tell(tmp_path):
    """MoCo-v3's ViT-S has 12 heads, all others 6."""
    small = dict(embed_dim=384, depth=1, num_heads=12)
    path, model = write(CASES['vit_b16_mocov3']._replace(small=small), tmp_path)
    with pytest.raises(ConfigError, match='give --num-heads'):
        convert(path)
    assert convert(path, num_heads=12)['backbone']['arch']['num_heads'] == 12
    with torch.no_grad():
        model.pos_embed[:, 0] = 1
    published.plain(model, path)
    assert convert(path)['backbone']['arch']['num_heads'] == 6


def test_tool(call, tmp_path, capsys):
    path, _ = write(CASES['vit_b14_dinov2'], tmp_path)
    out = tmp_path / 'x.pth'
    call('model_converters/to_mmpretrain', path, out, '--img-size', '28')
    said = capsys.readouterr().out
    assert 'DINOv2' in said and 'left out: mask_token' in said and f'written: {out}' in said
    assert torch.load(out)['state_dict']['backbone.pos_embed'].shape == (1, 5, 192)
    with pytest.raises(SystemExit, match='error: img_size=30'):
        call('model_converters/to_mmpretrain', path, out, '--img-size', '30')
