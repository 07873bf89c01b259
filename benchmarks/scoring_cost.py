"""What scoring idleness adds to a training step, for each criterion.

    python benchmarks/scoring_cost.py [--rounds 9] [--batch 8] [--prompts 10] [--score-interval N] [--device cpu]

Plain prompted training and training with each criterion take turns in one process; ratios are medians of the rounds'
ratios, with the smallest and the largest.
"""
import argparse
import statistics
import time
from contextlib import nullcontext

import torch
from performance import subjects
from tqdm import tqdm

from mmprovpt import inject_prompts
from mmprovpt.relocation import CRITERIA

ITERATIONS = max(criterion.default_interval for criterion in CRITERIA.values())


def seconds(backbone, x, criterion, args):
    """As many times forward and backward as every criterion's interval divides, some of them scored, or none."""
    measured = CRITERIA[criterion](backbone.prompts, args.score_interval) if criterion else None
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(args.score_interval or ITERATIONS):
        if measured is not None:
            measured.begin()
        with torch.autocast(x.device.type, torch.bfloat16) if args.autocast else nullcontext():
            loss = sum(out.float().square().mean() for out in backbone(x))
        loss.backward()
        backbone.prompts.tokens.grad = None
        if measured is not None:
            measured.update(loss)
    if x.is_cuda:
        torch.cuda.synchronize()
    passed = time.perf_counter() - start
    if measured is not None:
        measured.close()
    return passed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--prompts', type=int, default=10, help='per block')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--score-interval', type=int, help="default: each criterion's own")
    parser.add_argument('--criteria', nargs='+', choices=list(CRITERIA), default=list(CRITERIA))
    parser.add_argument('--autocast', action='store_true', help='bfloat16')
    args = parser.parse_args()
    x = torch.randn(args.batch, 3, 224, 224, device=args.device)
    print('| backbone | criterion | median ratio to no scoring | range |\n|---|---|---|---|')
    for name in ('ViT-B', 'Swin-T'):
        backbone = subjects.build(name, 'mmpretrain', (224, 224)).backbone.to(args.device)
        inject_prompts(backbone, dict(type='StaticPrompts', num_tokens=args.prompts))
        backbone.train()
        times = {criterion: [] for criterion in (None, *args.criteria)}
        for turn in tqdm(range(args.rounds + 1), unit='round', desc=name):
            for criterion in times:
                passed = seconds(backbone, x, criterion, args)
                if turn:  # the first turn warms up
                    times[criterion].append(passed)
        for criterion in args.criteria:
            ratios = [a / b for a, b in zip(times[criterion], times[None])]
            print(f'| {name} | {criterion} | {statistics.median(ratios):.3f} | {min(ratios):.3f}-{max(ratios):.3f} |')


if __name__ == '__main__':
    main()
