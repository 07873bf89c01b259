"""Slow references of what prompts do to a backbone, written differently: prompts are real tokens."""
from contextlib import contextmanager
from functools import partial

import torch
from pytest import MonkeyPatch
from torch import nn


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
        window = _window(block)
        target = block if window is None else window
        originals.append((target, target.forward))
        if window is None:
            target.forward = _vit_block(block, prompts, patches)
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
            if hasattr(module, 'attn') and any(hasattr(module, name) for name in ('norm1', 'ln1'))]


def _window(block):
    """The window attention in a block, if that is one of Swin."""
    return next((m for m in block.modules() if 'Window' in type(m).__name__ and hasattr(m, 'qkv')), None)


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
        window = _window(block)
        target = block if window is None else window
        undo.append(partial(setattr, target, 'forward', target.forward))
        if window is None:
            target.forward = _keeping_vit_block(block, now)
        else:
            target.forward = _window_attention(window, block.norm1, lambda x, hw: now['prompts'], now)
            undo.append(block.register_forward_pre_hook(lambda m, args: now.update(x=args[0])).remove)
            undo.append(block.register_forward_hook(_keep(now, later, mergings)).remove)
    try:
        yield upstream
    finally:
        for each in undo:
            each()


def _keeping_vit_block(block, now):
    run = _with_tokens(block)

    def prompted(x, *args, **kwargs):
        out, now['prompts'] = run(x, now['prompts'], *args, **kwargs)
        return out

    return prompted


def _keep(now, later, mergings):
    """A forward hook: the prompts' own way through the rest of a Swin's block, and through the patch merging."""

    def hook(block, args, output):
        after = _norms_after(block)
        x = now['prompts'] + (block.norm1(now['outputs']) if after else now['outputs'])
        inner = x if after else block.norm2(x)
        layers = [block.mlp] if hasattr(block, 'mlp') else block.ffn.layers
        for layer in layers:
            inner = layer(inner)
        x = x + (block.norm2(inner) if after else inner)
        x = block.norm3(x) if hasattr(block, 'norm3') else x
        if later is not None and later.norm1.weight.numel() != x.shape[-1]:
            merging = next(m for m in mergings if 4 * x.shape[-1] == m.reduction.weight.shape[1])
            four = x.flatten(0, 1)[:, None].expand(-1, 4, -1)
            merged = merging(four, (2, 2))[0] if hasattr(merging, 'sampler') else merging(four.unflatten(1, (2, 2)))
            x = merged.reshape(*x.shape[:2], -1)
        now['prompts'] = x

    return hook


def _norms_after(block):
    """Whether a Swin's block is one of SwinV2."""
    return hasattr(_window(block), 'logit_scale')


def _vit_block(block, prompts, patches):
    run = _with_tokens(block)

    def prompted(x, *args, **kwargs):
        own = prompts(x, patches['hw']) if callable(prompts) else prompts
        return run(x, own.expand(len(x), *own.shape[-2:]), *args, **kwargs)[0]

    return prompted


def _with_tokens(block):
    """A function of a block's input and prompts (B, n, C), right behind the prefix tokens: what it makes of both."""
    forward, attention = block.forward, block.attn
    rotates, biased = hasattr(attention, 'num_prefix_tokens'), hasattr(attention, 'relative_position_index')
    prefix = attention.num_prefix_tokens if rotates else 1

    def run(x, prompts, *args, **kwargs):
        count = prompts.shape[1]
        with MonkeyPatch.context() as patch:
            if rotates:
                patch.setattr(attention, 'num_prefix_tokens', prefix + count)
            elif biased:
                patch.setattr(attention, 'forward', _biased_attention(attention, count))
            elif getattr(attention, 'rope', None) is not None:  # MMPretrain's
                patch.setitem(attention._modules, 'rope', _Unrotated(attention.rope, count))
            out = forward(torch.cat([x[:, :prefix], prompts, x[:, prefix:]], 1), *args, **kwargs)
        return torch.cat([out[:, :prefix], out[:, prefix + count:]], 1), out[:, prefix:prefix + count]

    return run


class _Unrotated(nn.Module):
    """A rotation of all tokens but the first ones."""

    def __init__(self, rope, count):
        super().__init__()
        self.rope, self.count = rope, count

    def forward(self, x, size):
        return torch.cat([x[:, :, :self.count], self.rope(x[:, :, self.count:], size)], 2)


def _biased_attention(module, count):
    """BEiT's, sample by sample and head by head, with prompts behind the class token that have no bias."""

    def prompted(x, rel_pos_bias=None, shared_rel_pos_bias=None):
        tokens = [0, *range(1 + count, x.shape[1])]
        out = []
        for sample in x:
            q, k, v = _projected(module, sample)
            heads = []
            for head, part in enumerate(torch.arange(q.shape[-1]).chunk(module.num_heads)):
                bias = torch.zeros(len(sample), len(sample))
                for given in (rel_pos_bias, shared_rel_pos_bias):
                    if given is not None:
                        bias[torch.tensor(tokens)[:, None], tokens] += given[head]
                if module.relative_position_bias_table is not None:
                    own = module.relative_position_bias_table[module.relative_position_index, head]
                    bias[torch.tensor(tokens)[:, None], tokens] += own
                logits = q[:, part] @ k[:, part].T * module.scale + bias
                heads.append(logits.softmax(-1) @ v[:, part])
            out.append(module.proj(torch.cat(heads, -1)))
        return torch.stack(out)

    return prompted


def _projected(module, tokens):
    """Queries, keys and values (N, C) of tokens (N, C), by bare parameters."""
    bias = module.qkv.bias
    if getattr(module, 'q_bias', None) is not None:
        bias = torch.cat([module.q_bias, torch.zeros_like(module.q_bias), module.v_bias])
    return nn.functional.linear(tokens, module.qkv.weight, bias).chunk(3, -1)


def _window_attention(module, norm, prompts, state):
    """Window by window and head by head, with the prompts in front of the window's tokens.

    What it makes of the prompts, on average over a sample's windows, goes to ``state['outputs']``.
    """
    cosine = hasattr(module, 'logit_scale')

    def prompted(x, mask=None):
        per_sample = len(x) // len(state['x'])
        rows = prompts(state['x'], state.get('patches', {}).get('hw')) if callable(prompts) else prompts
        index = module.relative_position_index.reshape(x.shape[1], x.shape[1])
        if cosine:
            bias = 16 * module.cpb_mlp(module.relative_coords_table).flatten(0, 2)[index].sigmoid()
            neutral = 8.  # sigmoid of 0
        else:
            bias, neutral = module.relative_position_bias_table[index], 0.
        out = []
        for number, window in enumerate(x):
            own = rows[number // per_sample] if rows.dim() == 3 else rows
            own = own if cosine else norm.forward(own)
            n = len(own)
            q, k, v = _projected(module, torch.cat([own, window]))
            heads = []
            for head, part in enumerate(torch.arange(q.shape[-1]).chunk(module.num_heads)):
                if cosine:
                    logits = torch.stack([torch.cosine_similarity(each, k[:, part], eps=1e-12) for each in q[:, part]])
                    logits = logits * module.logit_scale[head].exp().clamp_max(100)
                else:
                    logits = q[:, part] @ k[:, part].T * module.scale
                everywhere = torch.full_like(logits, neutral)
                everywhere[n:, n:] = bias[..., head]
                if mask is not None:
                    everywhere[n:, n:] += mask[number % len(mask)]
                logits = logits + everywhere
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
