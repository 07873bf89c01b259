"""Published weights of ViT and Swin as checkpoints for mmpretrain's backbones.

timm reads every one of the published layouts. So a file goes into timm's model by timm's own loader, which also
resizes position embeddings, and from there into mmpretrain's by one table of names for each architecture. Before
anything is written, mmpretrain's backbone must give timm's features.
"""
import hashlib
import os
import pickle
import re
import zipfile
from contextlib import contextmanager
from functools import partial
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from mmprovpt.errors import ConfigError
from mmprovpt.files import write_atomically

# What a file may hold beside the backbone: classifiers, the representation layer in front of one (JAX), the mask
# token of DINOv2 and MAE, MAE's decoder; Swin's buffers, which follow from the window.
_BESIDE = re.compile(r'(head|pre_logits)[./].*|mask_token|decoder_.*|.*(attn_mask|relative_position_index)')
# The number of heads is not in a file of PyTorch.
_NUM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
_HALF = ([127.5] * 3, [127.5] * 3)
_KNOWN = """known are
  ViT of JAX (.npz): embedding/kernel, Transformer/encoderblock_0/…
  ViT (timm, MAE, MoCo-v3, DINO, DINOv2): patch_embed.proj.weight, pos_embed, blocks.0.attn.qkv.weight
  Swin (its authors, timm): patch_embed.proj.weight, layers.0.blocks.0.attn.relative_position_bias_table
each also under 'model' or 'state_dict', behind 'module.' or 'module.base_encoder.'"""

_VIT = [(r'patch_embed\.proj', 'patch_embed.projection'), (r'^norm\.', 'ln1.'), (r'^blocks\.', 'layers.'),
        (r'\.norm(\d)\.', r'.ln\1.'), (r'\.mlp\.fc1', '.ffn.layers.0.0'), (r'\.mlp\.fc2', '.ffn.layers.1'),
        (r'\.ls1\.gamma', '.attn.gamma1.weight'), (r'\.ls2\.gamma', '.ffn.gamma2.weight')]
_SWIN = [(r'patch_embed\.proj', 'patch_embed.projection'), (r'^layers\.', 'stages.'),
         (r'\.attn\.', '.attn.w_msa.'), (r'\.mlp\.fc1', '.ffn.layers.0.0'), (r'\.mlp\.fc2', '.ffn.layers.1')]


class Source(NamedTuple):
    """A file that was read.

    layout: What it is, in words.
    state: The backbone's arrays (JAX) or tensors, by the names of the file without the prefix of a wrapper.
    beside: Names that were left out, because they are not of the backbone.
    pixels: (mean, std) of the pre-training's images, RGB in 0...255, or None where the file does not tell.
    """
    path: str
    layout: str
    state: dict
    beside: list
    pixels: tuple


def convert(path: str, out: str = None, img_size: int = None, num_heads: int = None, timm_form: bool = False) -> dict:
    """Write a checkpoint for mmpretrain's VisionTransformer or SwinTransformer, or for its TIMMBackbone.

    Args:
        path: A file in one of the layouts that :func:`read_source` knows.
        out: Where the checkpoint goes: ``state_dict`` with keys ``backbone.…`` and ``meta``. It appears complete
            or not at all. Without it nothing is written.
        img_size: Height and width in pixels to which timm resizes a ViT's position embedding; the file's own by
            default.
        num_heads: Of a ViT in a PyTorch file whose width does not tell it.
        timm_form: Write timm's keys, for TIMMBackbone, which builds the model without a classifier.

    Returns:
        The checkpoint's meta: ``source`` (the layout), ``file``, ``sha256``, ``left_out``, ``mean`` and ``std``
        (RGB, 0...255; or None), ``backbone`` (config of mmpretrain's own class), ``max_difference`` from timm's
        features and ``max_feature``, on one random image; ``timm``, its version.

    Raises:
        ConfigError: If the file cannot be read, its layout is not known, keys are missing or left over, or an
            argument does not fit it.
        RuntimeError: If mmpretrain's features differ from timm's by more than 1e-4 of the largest (or of 1).
    """
    import timm

    source = read_source(path)
    model = build_timm(source, img_size, num_heads)
    backbone, state = to_mmpretrain(model)
    difference, largest = compare(model, backbone, state)
    mean, std = source.pixels or (None, None)
    meta = dict(source=source.layout, file=Path(path).name, sha256=_sha256(path), left_out=source.beside, mean=mean,
                std=std, backbone=backbone, max_difference=difference, max_feature=largest, timm=timm.__version__)
    if out is not None:
        prefix, state = ('backbone.timm_model.', model.state_dict()) if timm_form else ('backbone.', state)
        checkpoint = dict(meta=meta, state_dict={prefix + key: value for key, value in state.items()})
        write_atomically(partial(torch.save, checkpoint), out)
    return meta


def read_source(path: str) -> Source:
    """Read a file and recognise its layout by its keys.

    Raises:
        ConfigError: As for :func:`convert`.
    """
    state = _read(path)
    if 'embedding/kernel' in state and 'Transformer/encoderblock_0/LayerNorm_0/scale' in state:
        return _source(path, 'ViT of JAX', state, _HALF)
    beside = []
    if 'base_encoder.patch_embed.proj.weight' in state:  # MoCo-v3 before linear evaluation, which keeps this encoder
        beside = [key for key in state if not key.startswith('base_encoder.')]
        state = {key.removeprefix('base_encoder.'): state[key] for key in state if key not in beside}
    if 'layers.0.blocks.0.attn.relative_position_bias_table' in state:
        return _source(path, 'Swin', state, _IMAGENET)
    if not {'patch_embed.proj.weight', 'pos_embed', 'blocks.0.attn.qkv.weight'} <= state.keys():
        raise ConfigError(f'{path}: unknown layout; {_KNOWN}\nThe file holds: {some(state)}')
    if _fixed_positions(state):
        return _source(path, 'ViT with fixed positions (MAE, MoCo-v3)', state, _IMAGENET, beside)
    if 'mask_token' in state:
        return _source(path, 'DINOv2', state, _IMAGENET)
    return _source(path, 'ViT', state, None)


def build_timm(source: Source, img_size: int = None, num_heads: int = None) -> nn.Module:
    """timm's model without a head, with the weights of a file, by timm's own loader; in eval mode.

    Args:
        source: Of :func:`read_source`.
        img_size: See :func:`convert`.
        num_heads: See :func:`convert`.

    Raises:
        ConfigError: See :func:`convert`.
    """
    from timm.models import swin_transformer, vision_transformer

    state = source.state
    if source.layout == 'Swin':
        if img_size or num_heads:
            raise ConfigError("img_size and num_heads are for ViT: a Swin's position tables belong to its window and "
                              'serve any image, and its heads are in the file.')
        model = swin_transformer.SwinTransformer(num_classes=0, strict_img_size=False, **_swin_arguments(source))
        return _load(model, source, swin_transformer.checkpoint_filter_fn(state, model))
    arguments = _jax_arguments(source) if source.layout == 'ViT of JAX' else _vit_arguments(source, num_heads)
    if num_heads not in (None, arguments['num_heads']):
        raise ConfigError(f'num_heads={num_heads}, but {source.path} has {arguments["num_heads"]}')
    patch = arguments['patch_size']
    if img_size is not None:
        if img_size <= 0 or img_size % patch:
            raise ConfigError(f'img_size={img_size}, but it must be a multiple of the patch size, {patch}')
        arguments['img_size'] = img_size
    model = vision_transformer.VisionTransformer(num_classes=0, **arguments)
    if source.layout == 'ViT of JAX':
        _compare_keys(source, state, _jax_names(arguments['depth']))
        with _loading(source):
            model.load_pretrained(source.path)
        return model.eval()
    _compare_keys(source, state, model.state_dict())  # before timm's filter, which resizes by what is there
    return _load(model, source, vision_transformer.checkpoint_filter_fn(state, model))


def to_mmpretrain(model: nn.Module) -> tuple:
    """Arguments and state dict of mmpretrain's backbone for a ViT or Swin of timm.

    Args:
        model: timm's ``VisionTransformer`` or ``SwinTransformer``.

    Returns:
        The class's config (dict with ``type``), and the state dict (float tensors as they are in ``model``).
    """
    if hasattr(model, 'layers'):
        return _swin_config(model), _swin_state(model)
    arguments = dict(
        type='VisionTransformer',
        arch=dict(embed_dims=model.embed_dim, num_layers=len(model.blocks), num_heads=model.blocks[0].attn.num_heads,
                  feedforward_channels=model.blocks[0].mlp.fc1.out_features),
        img_size=model.patch_embed.img_size[0], patch_size=model.patch_embed.patch_size[0])
    if model.blocks[0].attn.qkv.bias is None:
        arguments['qkv_bias'] = False
    if hasattr(model.blocks[0].ls1, 'gamma'):
        arguments['layer_scale_init_value'] = 1e-5  # any positive number: the file has the values
    return arguments, {_rename(key, _VIT): value for key, value in model.state_dict().items()}


@torch.no_grad()
def compare(model: nn.Module, backbone: dict, state: dict) -> tuple:
    """Compare the features of timm's and mmpretrain's backbones on one random image of their size.

    Args:
        model: Of :func:`build_timm`.
        backbone: Of :func:`to_mmpretrain`.
        state: Of :func:`to_mmpretrain`.

    Returns:
        The largest absolute difference and the largest absolute feature.

    Raises:
        RuntimeError: If the state dict does not fit, or the features differ by more than 1e-4 of the largest.
    """
    from mmpretrain.models import backbones

    vit = backbone['type'] == 'VisionTransformer'
    arguments = {key: value for key, value in backbone.items() if key != 'type'}
    ours = getattr(backbones, backbone['type'])(**arguments, **(dict(out_type='raw') if vit else {}))
    ours.load_state_dict(state, assign=True)
    ours.eval()
    size = backbone['img_size']
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    features, expected = ours(image)[-1], model.forward_features(image)
    features = features if vit else features.permute(0, 2, 3, 1)
    difference, largest = (features - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= 1e-4 * max(1., largest):  # nan too
        raise RuntimeError(f"mmpretrain's features differ from timm's by {difference:.2g} (the largest is "
                           f'{largest:.2g}): the versions of the libraries do not fit each other')
    return difference, largest


def _source(path, layout, state, pixels, beside=()):
    beside = sorted([*beside, *(key for key in state if _BESIDE.fullmatch(key))])
    return Source(path, layout, {key: value for key, value in state.items() if key not in beside}, beside, pixels)


def _read(path):
    if not os.path.isfile(path):
        raise ConfigError(f'no such file: {path}')
    try:
        if path.endswith('.npz'):
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        from timm.models import load_state_dict
        state = load_state_dict(path)
    except ConfigError:
        raise
    except RuntimeError as error:  # of timm for what torch will not unpickle, of torch for a truncated archive
        raise ConfigError(f'{path}: {error}') from error
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(f'{path}: truncated or corrupt ({type(error).__name__}: {error})') from error
    except Exception as error:  # safetensors has an exception of its own, and may not be installed
        if type(error).__name__ != 'SafetensorError':
            raise
        raise ConfigError(f'{path}: truncated or corrupt ({error})') from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConfigError(f'{path}: no state dict of tensors; {_KNOWN}')
    return state


def _fixed_positions(state):
    # The sine and cosine of MAE and MoCo-v3: 0 for the class token, which no training gives.
    return not state['pos_embed'][:, 0].any()


def _vit_arguments(source, num_heads):
    state = source.state
    embed_dim, patch = _patches(source, state['patch_embed.proj.weight'].shape)
    if num_heads is None:
        num_heads = _NUM_HEADS.get(embed_dim)
        # MoCo-v3 gives its ViT-S 12 heads, everybody else 6.
        if num_heads is None or embed_dim == 384 and _fixed_positions(state):
            raise ConfigError(f'{source.path}: the number of heads is not in the file, nor does its width of '
                              f'{embed_dim} tell it: give --num-heads')
    if num_heads <= 0 or embed_dim % num_heads:
        raise ConfigError(f'num_heads={num_heads}, but it must divide the width, {embed_dim}')
    hidden = _need(source, 'blocks.0.mlp.fc1.weight').shape[0]
    return dict(img_size=_grid(source, state['pos_embed']) * patch, patch_size=patch, embed_dim=embed_dim,
                depth=_count(state, r'blocks\.(\d+)\.'), num_heads=num_heads, mlp_ratio=hidden / embed_dim,
                qkv_bias='blocks.0.attn.qkv.bias' in state,
                init_values=1e-5 if 'blocks.0.ls1.gamma' in state else None)


def _jax_arguments(source):
    block = 'Transformer/encoderblock_0/'
    embed_dim, patch = _patches(source, source.state['embedding/kernel'].transpose().shape)
    num_heads = _need(source, f'{block}MultiHeadDotProductAttention_1/query/kernel').shape[1]
    hidden = _need(source, f'{block}MlpBlock_3/Dense_0/kernel').shape[1]
    positions = _need(source, 'Transformer/posembed_input/pos_embedding')
    return dict(img_size=_grid(source, positions) * patch, patch_size=patch, embed_dim=embed_dim,
                depth=_count(source.state, r'Transformer/encoderblock_(\d+)/'), num_heads=num_heads,
                mlp_ratio=hidden / embed_dim)


def _jax_names(depth):
    names = ['cls', 'embedding/kernel', 'embedding/bias', 'Transformer/posembed_input/pos_embedding',
             'Transformer/encoder_norm/scale', 'Transformer/encoder_norm/bias']
    for i in range(depth):
        block = f'Transformer/encoderblock_{i}/'
        names += [f'{block}LayerNorm_{n}/{kind}' for n in (0, 2) for kind in ('scale', 'bias')]
        layers = [f'MultiHeadDotProductAttention_1/{name}' for name in ('query', 'key', 'value', 'out')]
        layers += [f'MlpBlock_3/Dense_{n}' for n in (0, 1)]
        names += [f'{block}{layer}/{kind}' for layer in layers for kind in ('kernel', 'bias')]
    return names


def _swin_arguments(source):
    state = source.state
    tables = [_need(source, f'layers.{i}.blocks.0.attn.relative_position_bias_table')
              for i in range(_count(state, r'layers\.(\d+)\.'))]
    embed_dim, patch = _patches(source, state['patch_embed.proj.weight'].shape)
    window = (isqrt(tables[0].shape[0]) + 1) // 2
    return dict(
        # The size at which the last stage is one window: 224 for 7, 384 for 12.
        img_size=patch * 2**(len(tables) - 1) * window, patch_size=patch, embed_dim=embed_dim, window_size=window,
        depths=tuple(_count(state, rf'layers\.{i}\.blocks\.(\d+)\.') for i in range(len(tables))),
        num_heads=tuple(table.shape[1] for table in tables),
        mlp_ratio=_need(source, 'layers.0.blocks.0.mlp.fc1.weight').shape[0] / embed_dim)


def _swin_config(model):
    stages = list(model.layers)
    return dict(type='SwinTransformer',
                arch=dict(embed_dims=stages[0].dim, depths=[len(stage.blocks) for stage in stages],
                          num_heads=[stage.blocks[0].attn.num_heads for stage in stages]),
                img_size=model.patch_embed.img_size[0], patch_size=model.patch_embed.patch_size[0],
                window_size=stages[0].blocks[0].attn.window_size[0])


def _swin_state(model):
    state = {}
    for key, value in model.state_dict().items():
        if match := re.match(r'layers\.(\d+)\.downsample\.(.*)', key):
            # timm merges patches in front of a stage, mmpretrain behind it; and the four neighbours are the slow
            # axis in the order 00, 10, 01, 11 there, the fast one in the order 00, 01, 10, 11 here.
            key = f'stages.{int(match[1]) - 1}.downsample.{match[2]}'
            value = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)
        elif key.startswith('norm.'):
            key = f'norm{len(model.layers) - 1}.{key.removeprefix("norm.")}'
        else:
            key = _rename(key, _SWIN)
        state[key] = value
    for name, module in model.named_modules():  # a buffer that mmpretrain saves and timm does not
        if hasattr(module, 'relative_position_index'):
            state[_rename(f'{name}.relative_position_index', _SWIN)] = module.relative_position_index
    return state


def _rename(key, rules):
    for pattern, name in rules:
        key = re.sub(pattern, name, key)
    return key


def _load(model, source, state):
    _compare_keys(source, state, model.state_dict())
    with _loading(source):
        model.load_state_dict(state)
    return model.eval()


@contextmanager
def _loading(source):
    """Shapes that do not fit are the file's fault."""
    try:
        yield
    except RuntimeError as error:
        raise ConfigError(f'{source.path} ({source.layout}): {error}') from error


def _compare_keys(source, given, wanted):
    missing, left = (sorted(set(a) - set(b)) for a, b in ((wanted, given), (given, wanted)))
    if not missing and not left:
        return
    lines = [f'{source.path} ({source.layout}) does not fit the backbone.']
    lines += [f'Missing: {some(missing)}'] * bool(missing)
    if left:
        lines.append(f"Left over: {some(left)}\nmmpretrain's backbone has no place for them (register tokens and "
                     "SwiGLU for example). Use the model through timm: type='mmprovpt.PromptedTIMMBackbone'.")
    raise ConfigError('\n'.join(lines))


def _need(source, key):
    if key not in source.state:
        raise ConfigError(f'{source.path} ({source.layout}) lacks {key}; it holds {some(source.state)}')
    return source.state[key]


def _patches(source, shape):
    """(width, patch size) of the patch embedding's (C, 3, p, p)."""
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ConfigError(f'{source.path}: the patch embedding is {tuple(shape)}, but must be (C, 3, p, p)')
    return shape[0], shape[2]


def _grid(source, positions):
    """Patches along one side, of a (1, 1 + N, C) position embedding."""
    side = isqrt(max(positions.shape[1] - 1, 0))
    if side**2 != positions.shape[1] - 1:
        raise ConfigError(f'{source.path}: {positions.shape[1]} positions are not a class token and a square')
    return side


def _count(state, pattern):
    """One more than the highest number, so that a gap shows as missing keys."""
    return 1 + max(int(match[1]) for key in state if (match := re.match(pattern, key)))


def some(keys, count: int = 8) -> str:
    """The first names of a collection, and how many more there are."""
    keys = list(keys)
    return ', '.join(keys[:count]) + (f' and {len(keys) - count} more' if len(keys) > count else '')


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
