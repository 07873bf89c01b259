"""What closing a period costs a large model: sums of scores, decision, broadcast, move and line of the log.

    OMP_NUM_THREADS=1 python benchmarks/closing_cost.py [--blocks 48] [--prompts 100] [--periods 60]
    python -m torch.distributed.run --nproc_per_node=2 benchmarks/closing_cost.py

No backbone: rows and a loss of theirs, which is all that a session sees. Median and largest, in ms, of rank 0: CPU
time, and on the wall, which other work on the machine lengthens.
"""
import argparse
import os
import statistics
import tempfile
import time

import torch
from torch import distributed as dist
from tqdm import tqdm

from mmprovpt.prompts import StaticPrompts
from mmprovpt.relocation import RelocationLog, RelocationSession
from mmprovpt.relocation.history import rows_of

WARM_UP = 5


def close(session, log):
    """Close a period as the hook does; CPU time and time on the wall in ms."""
    start = time.process_time(), time.perf_counter()
    period = session.close_period()
    if period is not None:  # rank 0
        assert len(period.moves) == 1 or period.number < WARM_UP
        log.append(rows_of(period, period.number))
    return 1e3 * (time.process_time() - start[0]), 1e3 * (time.perf_counter() - start[1])


def cost(allocator, folder, args):
    """Of each period after the first ones."""
    torch.manual_seed(0)
    prompts = StaticPrompts(args.prompts, 768, widths=[args.width] * args.blocks)
    optimizer = torch.optim.SGD([prompts.tokens], lr=0.1, momentum=0.9)
    # Gates would be read in a backbone's forward.
    session = RelocationSession(prompts, optimizer, pruner=dict(type='IdlenessPruner', criterion='taylor'),
                                allocator=dict(type=allocator))
    log, found = RelocationLog(f'{folder}/{allocator}.jsonl'), []
    for _ in range(args.periods + WARM_UP):
        session.begin_iteration()
        loss = (prompts.tokens * torch.randn(len(prompts.tokens), 1)).mean()  # half of the prompts are idle
        optimizer.zero_grad()
        loss.backward()
        session.end_iteration(loss)
        found.append(close(session, log))
    return found[WARM_UP:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--blocks', type=int, default=48)
    parser.add_argument('--prompts', type=int, default=100, help='of each block')
    parser.add_argument('--width', type=int, default=1024)
    parser.add_argument('--periods', type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if 'RANK' in os.environ:
        dist.init_process_group('gloo')
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    if is_first:
        print('| allocator | CPU, ms | largest | wall, ms | largest |\n|---|---|---|---|---|')
    with tempfile.TemporaryDirectory() as folder:
        allocators = ('PPOAllocator', 'ThompsonAllocator', 'NeedAllocator', 'UniformAllocator')
        for allocator in tqdm(allocators, unit='allocator', disable=not is_first):
            columns = zip(*cost(allocator, folder, args))
            if is_first:
                print(f'| {allocator} | ' + ' | '.join(f'{statistics.median(each):.1f} | {max(each):.1f}'
                                                       for each in columns) + ' |', flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == '__main__':
    main()
