"""The matrix of supported backbones, small, and slow references of what prompts do to them.

Every behaviour of a prompted backbone is tested on every row: add a row here, not a test there.
"""
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmprovpt import inject_prompts

_VIT = dict(embed_dims=32, num_layers=3, num_heads=2)


class Case(NamedTuple):
    """One backbone of one library.

    sizes: heights and widths of inputs, the first is that of pre-training; the others are not multiples of
    patch and window where the library allows that.
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
}
# Kinds of prompts without chance. Adaptive ones on a map of 3 x 3, smaller and larger than those of the backbones.
KINDS = dict(
    static=dict(type='StaticPrompts', dropout=0.),
    adaptive=dict(type='AdaptivePrompts', grid_size=3, hidden_dims=5, dropout=0., channel_dropout=0.,
                  projector_dropout=0.),
    shallow=dict(type='ShallowPrompts', dropout=0.))
RELOCATING = ('static', 'adaptive')
# Upstream classes with a name of their own here; any other is built and injected.
OWN = ('VisionTransformer', 'SwinTransformer', 'TIMMBackbone')


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
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + mean)
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


@contextmanager
def concatenating(upstream, rows):
    """Make an upstream backbone a slow VPT-Deep: prompts are tokens, and their outputs are thrown away.

    Args:
        upstream: Without prompts.
        rows: Per block a tensor (n, C), or (B, n, C) with prompts of each sample's own; or a function that gives such
            a tensor from the block's input and the numbers of patches of the image, (h, w).
    """
    conv = next(module for module in upstream.modules() if isinstance(module, nn.Conv2d))
    patches = {}
    handle = upstream.register_forward_pre_hook(
        lambda m, args: patches.update(hw=[-(-size // conv.kernel_size[0]) for size in args[0].shape[-2:]]))
    blocks = _blocks(upstream)
    assert len(blocks) == len(rows)
    originals = []
    for block, prompts in zip(blocks, rows):
        window = next((m for m in block.modules() if hasattr(m, 'relative_position_bias_table')), None)
        target = block if window is None else window
        originals.append((target, target.forward))
        if window is None:
            target.forward = _vit_block(block.forward, prompts, patches)
        else:
            state = dict(patches=patches)
            block.register_forward_pre_hook(lambda m, args, state=state: state.update(x=args[0]))
            target.forward = _window_attention(window, block.norm1, prompts, state)
    try:
        yield upstream
    finally:
        handle.remove()
        for target, forward in originals:
            target.forward = forward


def _blocks(upstream):
    return [module for module in upstream.modules()
            if hasattr(module, 'attn') and hasattr(module, 'norm1') and hasattr(module, 'norm2')]


@contextmanager
def keeping(upstream, rows):
    """Make an upstream backbone a slow VPT-Shallow: what a block makes of its prompts goes into the next one.

    Args:
        upstream: Without prompts.
        rows: (n, C), prompts of the first block, or (B, n, C).
    """
    blocks, now, undo = _blocks(upstream), {}, []
    mergings = [module for module in upstream.modules() if type(module).__name__ == 'PatchMerging']
    undo.append(upstream.register_forward_pre_hook(
        lambda m, args: now.update(prompts=rows.expand(len(args[0]), *rows.shape[-2:]))).remove)
    for block, later in zip(blocks, [*blocks[1:], None]):
        window = next((m for m in block.modules() if hasattr(m, 'relative_position_bias_table')), None)
        target = block if window is None else window
        undo.append(partial(setattr, target, 'forward', target.forward))
        if window is None:
            target.forward = _keeping_vit_block(block.forward, now)
        else:
            target.forward = _window_attention(window, block.norm1, lambda x, hw: now['prompts'], now)
            undo.append(block.register_forward_pre_hook(lambda m, args: now.update(x=args[0])).remove)
            undo.append(block.register_forward_hook(_keep(now, later, mergings)).remove)
    try:
        yield upstream
    finally:
        for each in undo:
            each()


def _keeping_vit_block(forward, now):

    def prompted(x, *args, **kwargs):
        count = now['prompts'].shape[1]
        out = forward(torch.cat([x[:, :1], now['prompts'], x[:, 1:]], 1), *args, **kwargs)
        now['prompts'] = out[:, 1:1 + count]
        return torch.cat([out[:, :1], out[:, 1 + count:]], 1)

    return prompted


def _keep(now, later, mergings):
    """A forward hook: the prompts' own way through the rest of a Swin's block, and through the patch merging."""

    def hook(block, args, output):
        x = now['prompts'] + now['outputs']
        inner = block.norm2(x)
        layers = [block.mlp] if hasattr(block, 'mlp') else block.ffn.layers
        for layer in layers:
            inner = layer(inner)
        x = x + inner
        if later is not None and later.norm1.weight.numel() != x.shape[-1]:
            merging = next(m for m in mergings if 4 * x.shape[-1] == m.reduction.weight.shape[1])
            four = x.flatten(0, 1)[:, None].expand(-1, 4, -1)
            merged = merging(four, (2, 2))[0] if hasattr(merging, 'sampler') else merging(four.unflatten(1, (2, 2)))
            x = merged.reshape(*x.shape[:2], -1)
        now['prompts'] = x

    return hook


def _vit_block(forward, prompts, patches):

    def prompted(x, *args, **kwargs):
        own = prompts(x, patches['hw']) if callable(prompts) else prompts
        own = own.expand(len(x), *own.shape[-2:])
        count = own.shape[1]
        out = forward(torch.cat([x[:, :1], own, x[:, 1:]], 1), *args, **kwargs)
        return torch.cat([out[:, :1], out[:, 1 + count:]], 1)

    return prompted


def _window_attention(module, norm, prompts, state):
    """Window by window and head by head, with the prompts in front of the window's tokens.

    What it makes of the prompts, on average over a sample's windows, goes to ``state['outputs']``.
    """

    def prompted(x, mask=None):
        per_sample = len(x) // len(state['x'])
        rows = prompts(state['x'], state.get('patches', {}).get('hw')) if callable(prompts) else prompts
        bias = module.relative_position_bias_table[module.relative_position_index.flatten()]
        bias = bias.reshape(x.shape[1], x.shape[1], -1)
        out = []
        for number, window in enumerate(x):
            own = norm.forward(rows[number // per_sample] if rows.dim() == 3 else rows)
            n = len(own)
            tokens = torch.cat([own, window])
            q, k, v = nn.functional.linear(tokens, module.qkv.weight, module.qkv.bias).chunk(3, -1)
            heads = []
            for head, part in enumerate(torch.arange(q.shape[-1]).chunk(module.num_heads)):
                logits = q[:, part] @ k[:, part].T * module.scale
                logits[n:, n:] += bias[..., head]
                if mask is not None:
                    logits[n:, n:] += mask[number % len(mask)]
                heads.append(logits.softmax(-1) @ v[:, part])
            out.append(module.proj(torch.cat(heads, -1)))
        out = torch.stack(out)
        state['outputs'] = out[:, :n].unflatten(0, (-1, per_sample)).mean(1)
        return out[:, n:]

    return prompted


def vapt(pool, block, rows):
    """A slow VAPT: a function of a block's input and the image's patches, for :func:`concatenating`.

    Args:
        pool: AdaptivePrompts.
        block: One that is not static.
        rows: (n, positions + 1).
    """
    width = pool.embed_dims[block]
    stage = sorted(set(pool.embed_dims)).index(width)
    (scale, shift), kernel = pool.norms[:, block, :width], pool.kernels[block]
    down = pool.down[0 if len(pool.down) == 1 else stage, :, :width]
    up = pool.up[0 if len(pool.up) == 1 else stage, :width]

    def prompts(x, hw):
        for _ in range(stage):
            hw = [-(-size // 2) for size in hw]
        samples = x.flatten(1, -2)[:, -hw[0] * hw[1]:].unflatten(1, hw)  # (B, h, w, C)
        variance = samples.var(-1, correction=0, keepdim=True)
        samples = (samples - samples.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt()
        return torch.stack([torch.stack([_adaptive_prompt(scale * sample + shift, kernel, row, down, up, pool.grid_size)
                                         for row in rows]) for sample in samples])

    return prompts


def _adaptive_prompt(x, kernel, row, down, up, grid):
    """(h, w, C) to (C,)."""
    def mean(i, j):
        first, last = zip(*((n * size // grid, -(-(n + 1) * size // grid)) for n, size in zip((i, j), x.shape)))
        return x[first[0]:last[0], first[1]:last[1]].flatten(0, 1).mean(0)

    cells = [[mean(i, j) for j in range(grid)] for i in range(grid)]
    side, size = len(kernel), grid - len(kernel) + 1
    z = row[-1] * torch.ones_like(cells[0][0])
    for number in range(size**2):
        i, j = divmod(number, size)
        z = z + row[number] * sum(kernel[a, b] * cells[i + a][j + b] for a in range(side) for b in range(side))
    return z + up @ (down @ z).clamp_min(0)
