"""Allocators in a simulated task: no model, a known best block that changes, noisy losses.

    python benchmarks/simulated_blocks.py [--seeds 20] [--periods 100] [--noise 0.1 0.5] [--task switch] [--only PPO]

A prompt that goes to block j lowers the training loss by 1e-3 v_j, 0 <= v_j <= 1. Losses of neighbouring periods are
observed with noise, so the noise of successive rewards is anti-correlated, as it is in training, and the loss falls
anyway, faster at first. A number is how much better than a uniform draw the chosen blocks are, 1 being the best block
of the period: (mean v chosen - mean v) / (max v - mean v). Mean and deviation are over seeds, each another task.
"""
import argparse
import math
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
from tqdm import tqdm

from mmprovpt.relocation import ALLOCATORS, IdlenessPruner, Relocator

BLOCKS, PROMPTS, UNIT = 12, 60, 1e-3
# Name: allocator, arguments of the relocator.
METHODS = {
    'uniform': (dict(type='UniformAllocator'), {}),
    'PPO': (dict(type='PPOAllocator'), {}),
    'PPO, lr 3e-3': (dict(type='PPOAllocator', lr_actor=3e-3), {}),
    'PPO, lr 1e-3': (dict(type='PPOAllocator', lr_actor=1e-3), {}),
    'PPO, gamma 0': (dict(type='PPOAllocator', gamma=0.0), {}),
    'PPO, gamma 0, lr 1e-3': (dict(type='PPOAllocator', gamma=0.0, lr_actor=1e-3), {}),
    'PPO + mean': (dict(type='PPOAllocator'), dict(reward_baseline='mean')),
    'PPO, r = 3': (dict(type='PPOAllocator'), dict(relocate_per_period=3)),
    'need': (dict(type='NeedAllocator'), {}),
    'Thompson': (dict(type='ThompsonAllocator'), {}),
    'Thompson + mean': (dict(type='ThompsonAllocator'), dict(reward_baseline='mean')),
    'Thompson, decay 0.95 + mean': (dict(type='ThompsonAllocator', decay=0.95), dict(reward_baseline='mean')),
    'Thompson, r = 3 + mean': (dict(type='ThompsonAllocator'), dict(reward_baseline='mean', relocate_per_period=3)),
}


def values_of(task, periods, generator):
    """(periods, L) worth of every block: drawn once, or again half-way (``switch``)."""
    first, second = torch.rand(2, BLOCKS, generator=generator)
    half = periods // 2 if task == 'switch' else periods
    return torch.stack([first if period < half else second for period in range(periods)])


def play(method, seed, periods=100, noise=0.1, task='switch', fall=1.0):
    """How much better than uniform every period's choices are, a list of ``periods`` floats.

    Args:
        method (str): Key of ``METHODS``.
        seed (int): Of task and allocator.
        periods (int): Relocations.
        noise (float): Deviation of a *reward*, in units of the best possible worth.
        task (str): 'still' or 'switch'.
        fall (float): How much the loss falls anyway in the first period, same unit; e times less every 30 periods.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    values = values_of(task, periods, generator)
    allocator, options = METHODS[method]
    allocator = ALLOCATORS.build(allocator, num_blocks=BLOCKS, seed=seed)
    relocator = Relocator(BLOCKS, IdlenessPruner(), allocator, **options)
    blocks = torch.arange(BLOCKS).repeat_interleave(PROMPTS // BLOCKS)
    loss, scores = 1.0, []
    for period in range(periods):
        # Half of a reward's variance comes from either loss.
        seen = loss + UNIT * noise / math.sqrt(2) * float(torch.randn((), generator=generator))
        idleness = 1e-5 * torch.randn(PROMPTS, generator=generator)
        # A signal that says something about the worth, but not all: correlation about 0.5.
        need = (values[period] + 0.5 * torch.randn(BLOCKS, generator=generator)).exp()
        moves = relocator.step(seen, idleness, blocks, dict(need=need))
        worth = [float(values[period, move.target]) for move in moves]
        for move in moves:
            blocks[move.prompt] = move.target
        loss -= UNIT * (sum(worth) + fall * math.exp(-period / 30)) + sum(move.idleness for move in moves)
        mean, best = float(values[period].mean()), float(values[period].max())
        scores.append((statistics.fmean(worth) - mean) / (best - mean))
    return scores


def lead(curves, start, end):
    """Mean and deviation over seeds of the mean lead in periods [start, end)."""
    leads = [statistics.fmean(curve[start:end]) for curve in curves]
    return statistics.fmean(leads), statistics.stdev(leads)


def start_worker():
    torch.set_num_threads(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=20)
    parser.add_argument('--periods', type=int, default=100)
    parser.add_argument('--noise', type=float, nargs='+', default=[0.1, 0.5])
    parser.add_argument('--task', nargs='+', choices=['still', 'switch'], default=['still', 'switch'])
    parser.add_argument('--only', nargs='+', choices=METHODS, default=list(METHODS), metavar='METHOD')
    parser.add_argument('--workers', type=int, default=2)
    args = parser.parse_args()
    edges = [args.periods * tenth // 10 for tenth in range(11)]
    with ProcessPoolExecutor(args.workers, initializer=start_worker) as pool:
        for task in args.task:
            for noise in args.noise:
                print(f'\n{task}, noise {noise}: mean lead (deviation over {args.seeds} seeds), then its curve')
                print('| method | all periods | last 30 % | ' + ' | '.join(f'-{end}' for end in edges[1:]) + ' |')
                print('|---|---|---|' + '---|' * 10)
                for method in args.only:
                    run = partial(play, method, periods=args.periods, noise=noise, task=task)
                    curves = list(tqdm(pool.map(run, range(args.seeds)), total=args.seeds, desc=method, leave=False))
                    spans = [(0, args.periods), (edges[7], args.periods)]
                    total = ['{:.2f} ({:.2f})'.format(*lead(curves, *span)) for span in spans]
                    tenths = [f'{lead(curves, *span)[0]:.2f}' for span in zip(edges, edges[1:])]
                    print(f'| {method} | ' + ' | '.join(total + tenths) + ' |', flush=True)


if __name__ == '__main__':
    main()
