"""Training step with prompts as additional keys and values, against prompts as tokens whose outputs are discarded.

And with the other kinds of prompts, against those.

    python benchmarks/prompt_step.py [--rounds 5] [--batch 4] [--device cpu]

All variants of a row take turns in one process (A B C, A B C, ...); ratios are medians of the rounds' ratios, with
the smallest and the largest. Weights are random: they do not change the work.
"""
import argparse
import statistics
import time

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmprovpt import inject_prompts

VIT = ('mmpretrain', dict(type='VisionTransformer', arch='base', img_size=224, patch_size=16, out_type='avg_featmap'))
KINDS = ('StaticPrompts', 'AdaptivePrompts', 'ShallowPrompts')
SWIN = ('mmdet', dict(type='SwinTransformer', depths=(2, 2, 6, 2)))


def build(scope, cfg):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(cfg)
    backbone.requires_grad_(False)
    backbone.eval()
    return backbone


class Concatenating(nn.Module):
    """VPT-Deep as its authors write it, for a ViT: the rows are tokens of the block, and dropped after it."""

    def __init__(self, layer, num_tokens, width):
        super().__init__()
        self.layer = layer
        self.rows = nn.Parameter(torch.rand(1, num_tokens, width) - 0.5)

    def forward(self, x):
        rows = nn.functional.dropout(self.rows.expand(len(x), -1, -1), 0.1)
        x = self.layer(torch.cat([x[:, :1], rows, x[:, 1:]], 1))
        return torch.cat([x[:, :1], x[:, 1 + rows.shape[1]:]], 1)


def concatenating(scope, cfg, num_tokens):
    backbone = build(scope, cfg)
    for i, layer in enumerate(backbone.layers):
        backbone.layers[i] = Concatenating(layer, num_tokens, backbone.embed_dims)
    return backbone


def keys_and_values(scope, cfg, num_tokens, kind='StaticPrompts'):
    backbone = build(scope, cfg)
    inject_prompts(backbone, dict(type=kind, num_tokens=num_tokens, dropout=0.1))
    return backbone.train()


def seconds(backbone, x):
    """One step: forward, backward to the prompts."""
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    out = backbone(x)
    value = sum(o.square().mean() for o in out)
    if value.requires_grad:
        value.backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(name, variants, x, rounds):
    """Print each variant's time as a ratio to the first."""
    for backbone in variants.values():
        seconds(backbone, x)
    times = {key: [] for key in variants}
    for _ in range(rounds):
        for key, backbone in variants.items():
            times[key].append(seconds(backbone, x))
    base = next(iter(times))
    for key in list(times)[1:]:
        ratios = [a / b for a, b in zip(times[key], times[base])]
        print(f'| {name} | {key} / {base} | {statistics.median(ratios):.2f} | {min(ratios):.2f}-{max(ratios):.2f} |')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    x = torch.randn(args.batch, 3, 224, 224, device=args.device)
    print('| backbone, prompts per block | step of | median ratio | range |\n|---|---|---|---|')
    for num_tokens in (10, 50, 100):
        compare(f'ViT-B/16, {num_tokens}', {
            'keys and values': keys_and_values(*VIT, num_tokens).to(args.device),
            'concatenated': concatenating(*VIT, num_tokens).to(args.device),
        }, x, args.rounds)
    for num_tokens in (10, 50):
        compare(f'Swin-T, {num_tokens}', {
            'forward without prompts': build(*SWIN).to(args.device),
            'keys and values': keys_and_values(*SWIN, num_tokens).to(args.device),
        }, x, args.rounds)
    for name, backbone in {'ViT-B/16': VIT, 'Swin-T': SWIN}.items():
        kinds = {kind: keys_and_values(*backbone, 10, kind).to(args.device) for kind in KINDS}
        compare(f'{name}, 10', kinds, x, args.rounds)


if __name__ == '__main__':
    main()
