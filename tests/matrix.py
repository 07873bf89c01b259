"""The matrix of supported backbones, small; slow references of what prompts do to them are in slow_prompts.py.

Every behaviour of a prompted backbone is tested on every row: add a row here, not a test there.
"""
from typing import NamedTuple

import torch
from mmengine.registry import MODELS, DefaultScope
from slow_prompts import concatenating, keeping, vapt  # noqa: F401

from mmprovpt import inject_prompts
from mmprovpt.backbones.registered import PROMPTED

_VIT = dict(embed_dims=32, num_layers=3, num_heads=2)


class Case(NamedTuple):
    """One backbone of one library.

    sizes: heights and widths of inputs, at least two, the first is that of pre-training; the others are not multiples
    of patch and window where the library allows that.
    """
    scope: str
    upstream: str
    cfg: dict
    sizes: tuple
    depth: int
    with_cp: bool = False


_ODD = ((56, 56), (45, 71), (90, 30))
CASES = {
    'mmpretrain-vit': Case(
        'mmpretrain', 'VisionTransformer',
        dict(arch=dict(_VIT, feedforward_channels=64), img_size=32, patch_size=8, out_type='featmap',
             out_indices=[0, 2]),
        ((32, 32), (40, 64), (16, 24)), 3),
    'mmpretrain-dinov2': Case(
        'mmpretrain', 'VisionTransformer',
        dict(arch=dict(_VIT, feedforward_channels=64), img_size=28, patch_size=14, layer_scale_init_value=0.5),
        ((28, 28), (56, 42)), 3),
    'mmpretrain-deit': Case(
        'mmpretrain', 'DistilledVisionTransformer',
        dict(arch=dict(_VIT, feedforward_channels=64), img_size=32, patch_size=8),
        ((32, 32), (40, 64)), 3),
    'mmseg-vit': Case(
        'mmseg', 'VisionTransformer', dict(_VIT, img_size=(32, 32), patch_size=8, out_indices=(0, 2), final_norm=True),
        ((32, 32), (40, 64), (37, 50)), 3, with_cp=True),
    'timm-vit': Case(
        'mmpretrain', 'TIMMBackbone',
        dict(model_name='vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2,
             dynamic_img_size=True), ((32, 32), (40, 64)), 3),
    'timm-vit-qknorm-nocls': Case(
        'mmpretrain', 'TIMMBackbone',
        dict(model_name='vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2,
             dynamic_img_size=True, class_token=False, global_pool='avg', qk_norm=True, init_values=0.5),
        ((32, 32), (40, 64)), 3),
    'mmdet-swin': Case(
        'mmdet', 'SwinTransformer', dict(embed_dims=12, depths=(2, 2, 2), num_heads=(2, 3, 4), strides=(4, 2, 2),
                                         out_indices=(0, 1, 2)), _ODD, 6, with_cp=True),
    'mmseg-swin': Case(
        'mmseg', 'SwinTransformer', dict(embed_dims=12, depths=(2, 2, 2), num_heads=(2, 3, 4), strides=(4, 2, 2),
                                         out_indices=(0, 1, 2)), _ODD, 6, with_cp=True),
    'mmpretrain-swin': Case(
        'mmpretrain', 'SwinTransformer',
        dict(arch=dict(embed_dims=12, depths=(2, 2, 2), num_heads=(2, 3, 4)), img_size=56, out_indices=(0, 1, 2),
             pad_small_map=True), _ODD, 6, with_cp=True),
    'timm-swin': Case(
        'mmpretrain', 'TIMMBackbone',
        dict(model_name='swin_tiny_patch4_window7_224', img_size=56, embed_dim=12, depths=(2, 2, 2),
             num_heads=(2, 3, 4), strict_img_size=False), ((56, 56), (112, 84)), 6),
    # Registers, a bias in parts, layer scale, SwiGLU, rotated halves.
    'timm-dinov3': Case(
        'mmpretrain', 'TIMMBackbone',
        dict(model_name='vit_small_plus_patch16_dinov3_qkvb', img_size=32, patch_size=8, embed_dim=32, depth=3,
             num_heads=2, dynamic_img_size=True), ((32, 32), (40, 64)), 3),
    # Three projections, absolute positions besides, a norm of attention's output.
    'timm-eva02': Case(
        'mmpretrain', 'TIMMBackbone',
        dict(model_name='eva02_base_patch14_224', img_size=28, embed_dim=32, depth=3, num_heads=2,
             dynamic_img_size=True, scale_attn_inner=True), ((28, 28), (56, 42)), 3),
    'timm-eva-postnorm': Case(
        'mmpretrain', 'TIMMBackbone',
        dict(model_name='eva02_enormous_patch14_clip_224', img_size=28, embed_dim=32, depth=3, num_heads=2,
             mlp_ratio=2, dynamic_img_size=True), ((28, 28), (56, 42)), 3),
    # A rotation of its own in each block and head.
    'timm-rope-mixed': Case(
        'mmpretrain', 'TIMMBackbone',
        dict(model_name='vit_small_patch16_rope_mixed_224', img_size=32, patch_size=8, embed_dim=32, depth=3,
             num_heads=2, dynamic_img_size=True), ((32, 32), (40, 64)), 3),
    # No class token, norms of queries and keys, two heads of queries for one of keys and values.
    'timm-rope-grouped': Case(
        'mmpretrain', 'TIMMBackbone',
        dict(model_name='vit_small_patch16_rope_224', img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4,
             num_kv_heads=2, qkv_fused=False, qk_norm=True, rope_rotate_half=True, class_token=False,
             global_pool='avg', dynamic_img_size=True), ((32, 32), (40, 64)), 3),
    'timm-beit': Case(
        'mmpretrain', 'TIMMBackbone',
        dict(model_name='beit_base_patch16_224', img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2),
        ((32, 32), (32, 32)), 3),
    'mmpretrain-beit': Case(
        'mmpretrain', 'BEiTViT',
        dict(arch=dict(_VIT, feedforward_channels=64), img_size=32, patch_size=8, use_rel_pos_bias=False,
             use_shared_rel_pos_bias=True, out_indices=[0, 2]), ((32, 32), (32, 32)), 3),
    'mmseg-beit': Case(
        'mmseg', 'BEiT', dict(_VIT, img_size=(32, 32), patch_size=8, out_indices=(0, 2)), ((32, 32), (32, 32)), 3),
    'mmpretrain-eva02': Case(
        'mmpretrain', 'ViTEVA02',
        dict(arch=dict(_VIT, feedforward_channels=64), img_size=32, patch_size=8, sub_ln=True, qkv_bias=True,
             out_type='featmap', out_indices=[0, 2]), ((32, 32), (40, 64)), 3),
    'mmpretrain-deit3': Case(
        'mmpretrain', 'DeiT3', dict(arch=dict(_VIT, feedforward_channels=64), img_size=32, patch_size=8),
        ((32, 32), (40, 64)), 3),
    'timm-swinv2': Case(
        'mmpretrain', 'TIMMBackbone',
        dict(model_name='swinv2_tiny_window8_256', img_size=64, window_size=4, embed_dim=12, depths=(2, 2, 2),
             num_heads=(2, 3, 4), strict_img_size=False), ((64, 64), (96, 72)), 6),
    'mmpretrain-swinv2': Case(
        'mmpretrain', 'SwinTransformerV2',
        dict(arch=dict(embed_dims=12, depths=(2, 2, 2), num_heads=(2, 3, 4), extra_norm_every_n_blocks=2),
             img_size=56, window_size=7, out_indices=(0, 1, 2), pretrained_window_sizes=[0] * 3, pad_small_map=True),
        _ODD, 6, with_cp=True),
}
# Kinds of prompts without chance. Adaptive ones on a map of 3 x 3, smaller and larger than those of the backbones.
KINDS = dict(
    static=dict(type='StaticPrompts', dropout=0.),
    adaptive=dict(type='AdaptivePrompts', grid_size=3, hidden_dims=5, dropout=0., channel_dropout=0.,
                  projector_dropout=0.),
    shallow=dict(type='ShallowPrompts', dropout=0.))
RELOCATING = ('static', 'adaptive')
# Upstream classes with a name of their own here; any other is built and injected.
OWN = PROMPTED


def build(case, prompts=None, **overrides):
    """The upstream backbone, frozen, or with ``prompts`` the prompted one; with random weights."""
    cfg = dict(case.cfg, **overrides)
    if prompts is not None:
        prompts = dict(KINDS['static'], **prompts) if 'type' not in prompts else prompts
    by_config = prompts is not None and case.upstream in OWN
    with DefaultScope.overwrite_default_scope(case.scope):
        if by_config:
            backbone = MODELS.build(dict(cfg, type=f'mmprovpt.Prompted{case.upstream}', prompts=prompts))
        else:
            backbone = MODELS.build(dict(cfg, type=case.upstream))
    if prompts is None:
        backbone.eval()  # OpenMMLab's return None
        backbone.requires_grad_(False)  # PyTorch rounds otherwise where gradients are wanted
    elif not by_config:
        inject_prompts(backbone, prompts)
    if prompts is not None and prompts['type'] == 'AdaptivePrompts':
        fill_rows(backbone.prompts)
    return randomise(backbone)


def randomise(backbone, seed=0):
    """Draw every parameter: zeros and ones at the start would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(backbone.named_parameters()):
            if not name.startswith('prompts.'):
                mean = 'norm' in name or 'ln' in name
                # A bias of positions that says all leaves nothing to contents.
                spread = 0.05 if 'cpb_mlp' in name else 0.3
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + mean)
    return backbone


@torch.no_grad()
def fill_rows(pool):
    """Adaptive rows, which start as zeros."""
    for prompt, block in enumerate(pool.block_index.tolist()):
        pool.tokens[prompt, :pool.widths[block]] = torch.randn(pool.widths[block])


def images(case, size=None, batch=2, seed=1):
    """(B, 3, H, W) float32."""
    return torch.randn(batch, 3, *(size or case.sizes[0]), generator=torch.Generator().manual_seed(seed))


def outputs(backbone, x):
    """All outputs of a backbone as one flat list of tensors."""
    return torch.utils._pytree.tree_leaves(backbone(x))


def loss(backbone, x):
    """A scalar to which every output contributes unevenly."""
    return sum((out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).mean() for out in outputs(backbone, x))
