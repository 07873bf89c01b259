"""A batch whose samples read different sets of prompts, against one of the same size whose samples read one set.

    python benchmarks/mixed_batches.py [--rounds 9] [--batch 8] [--device cpu] [--small] [--forms StaticPrompts ...]

Both take turns in one process (A B, A B, ...); ratios are medians of the rounds' ratios, with the smallest and the
largest. On a CPU times are the process's own, which neighbours disturb less. `equal`: three sets with 10 prompts in
each block, so that nothing is missing. `unequal`: sets with 10, 6 and 2, and samples without prompts, against a batch
of the largest. Weights are random: they do not change the work.
"""
import argparse
import statistics
import time

import torch
from mmengine.registry import MODELS, DefaultScope
from tqdm import tqdm

import mmprovpt

BACKBONES = {
    'ViT-B/16': ('mmpretrain', dict(type='VisionTransformer', arch='base', img_size=224, patch_size=16,
                                    out_type='avg_featmap')),
    'Swin-T': ('mmdet', dict(type='SwinTransformer')),
}
SMALL = {
    'ViT': ('mmpretrain', dict(BACKBONES['ViT-B/16'][1], arch=dict(embed_dims=96, num_layers=4, num_heads=3,
                                                                   feedforward_channels=384))),
    'Swin': ('mmdet', dict(BACKBONES['Swin-T'][1], embed_dims=24, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))),
}
# Names of a batch's samples, in turn.
MIXTURES = dict(equal=('a', 'b', 'c'), unequal=('a', 'd', 'e', None))
COUNTS = dict(a=10, b=10, c=10, d=6, e=2)


def build(scope, cfg, form):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(cfg)
    for name, count in COUNTS.items():
        mmprovpt.add_prompts(backbone, name, dict(type=form, num_tokens=count))
    return backbone


def seconds(backbone, x, names, training):
    """One forward, or a step: forward and backward to the prompts."""
    backbone.train(training)
    start = now(x)
    with torch.set_grad_enabled(training), mmprovpt.using_prompts(backbone, names):
        out = backbone(x)
    if training:
        sum(o.square().mean() for o in out).backward()
    return now(x) - start


def now(x):
    if not x.is_cuda:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def compare(backbone, x, mixture, training, rounds):
    """Ratios of a mixed batch's time to that of one with the largest set."""
    mixed = [mixture[number % len(mixture)] for number in range(len(x))]
    for names in (mixed, 'a') * 2:
        seconds(backbone, x, names, training)
    ratios = []
    for _ in range(rounds):
        ratios.append(seconds(backbone, x, mixed, training) / seconds(backbone, x, 'a', training))
    return ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--small', action='store_true', help='narrow backbones of a few blocks')
    parser.add_argument('--forms', nargs='+', default=['StaticPrompts', 'AdaptivePrompts', 'ShallowPrompts'])
    args = parser.parse_args()
    print('| backbone | prompts | batch | forward: median ratio | range | step: median ratio | range |')
    print('|---|---|---|---|---|---|---|')
    for name, (scope, cfg) in tqdm((SMALL if args.small else BACKBONES).items(), unit='backbone'):
        for form in args.forms:
            backbone = build(scope, cfg, form).to(args.device)
            x = torch.randn(args.batch, 3, 224, 224, device=args.device)
            for kind, mixture in MIXTURES.items():
                cells = []
                for training in (False, True):
                    ratios = compare(backbone, x, mixture, training, args.rounds)
                    cells += [f'{statistics.median(ratios):.2f}', f'{min(ratios):.2f}-{max(ratios):.2f}']
                print(f'| {name} | {form} | {kind} | {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
    main()
