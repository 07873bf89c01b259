"""What relocation adds to a training step on one process and on several, MMEngine's Runner and hooks included.

    python benchmarks/scaling.py [--rounds 5] [--batch 2] [--interval 8] [--periods 2]
    python -m torch.distributed.run --nproc_per_node=4 benchmarks/scaling.py

A ViT-S/16 of random weights at 112 px (50 tokens), 12 x 10 prompts, trained by VPT and by PRO-VPT in turn (A B A B),
each time by a new Runner of a few iterations. Ratios are medians of the rounds' ratios, with the smallest and the
largest. A step is from the start of an iteration to that of the next, on rank 0; the moments at which a prompt moves
are counted apart. Processes on one machine share its cores: compare within a row. Beside the time on the wall there is
the CPU time of rank 0, which is without what others do on the machine and without waiting for other ranks.
"""
import argparse
import os
import statistics
import tempfile
import time

import numpy as np
import timm
import torch
import torch.nn.functional as F
from mmengine import dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from mmprovpt import inject_prompts
from mmprovpt.cli.runner import build_runner
from mmprovpt.hooks import PromptRelocationHook

WARM_UP = 3  # iterations of a run that do not count


@MODELS.register_module()
class PromptedViT(BaseModel):
    """A prompted ViT-S/16 and its head."""

    def __init__(self):
        super().__init__()
        self.backbone = timm.create_model('vit_small_patch16_224', img_size=112, num_classes=0)
        inject_prompts(self.backbone, dict(type='StaticPrompts', num_tokens=10))
        self.head = nn.Linear(384, 100)

    def forward(self, inputs, targets=None, mode='tensor'):
        logits = self.head(self.backbone(inputs))
        return dict(loss=F.cross_entropy(logits, targets)) if mode == 'loss' else logits


@DATASETS.register_module()
class Noise(Dataset):
    """Images that cost no loading."""
    image = torch.randn(3, 112, 112)

    def __len__(self):
        return 4096

    def __getitem__(self, index):
        return dict(inputs=self.image, targets=index % 100)


def now():
    """(2,) seconds on the wall and of the CPU."""
    return np.array([time.perf_counter(), time.process_time()])


@HOOKS.register_module()
class Clock(Hook):
    """Notes when iterations start, before all other hooks."""
    priority = 'HIGHEST'

    def before_run(self, runner):
        self.starts = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.starts.append(now())


@HOOKS.register_module()
class TimedRelocationHook(PromptRelocationHook):
    """Notes how long closing a period takes, by the iteration that it delays."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.delays = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        start, closed = now(), self.session.period
        super().before_train_iter(runner, batch_idx, data_batch)
        if self.session.period > closed:  # on rank 0
            self.delays[runner.iter] = now() - start


def seconds(folder, relocate, args):
    """Of one run, on wall and CPU: the mean step but for the first ones, without relocations; and each relocation."""
    hook = dict(type='TimedRelocationHook', interval=args.interval, by_epoch=False)
    runner = build_runner(Config(dict(
        model=dict(type='PromptedViT'),
        train_dataloader=dict(batch_size=args.batch, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
                              collate_fn=dict(type='default_collate'), dataset=dict(type='Noise')),
        train_cfg=dict(by_epoch=False, max_iters=WARM_UP + args.interval * args.periods + 1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        custom_hooks=[dict(type='Clock')] + [hook] * relocate, default_scope='mmengine', log_level='ERROR',
        default_hooks=dict(checkpoint=None, logger=None, timer=None), randomness=dict(seed=0),
        launcher='pytorch' if 'RANK' in os.environ else 'none',
        work_dir=folder, experiment_name=f'{folder}-{time.time()}')))
    runner.train()
    clock = next(hook for hook in runner.hooks if isinstance(hook, Clock))
    delays = next((hook.delays for hook in runner.hooks if isinstance(hook, TimedRelocationHook)), {})
    steps = [b - a - delays.get(i, 0) for i, (a, b) in enumerate(zip(clock.starts, clock.starts[1:])) if i >= WARM_UP]
    return sum(steps) / len(steps), list(delays.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--batch', type=int, default=2, help='of each process')
    parser.add_argument('--interval', type=int, default=8, help='iterations of a period')
    parser.add_argument('--periods', type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    plain, ratios, moments = [], ([], []), []
    with tempfile.TemporaryDirectory() as folder:
        for turn in tqdm(range(args.rounds + 1), unit='round', disable=int(os.environ.get('RANK', 0)) > 0):
            vpt, _ = seconds(folder, False, args)
            provpt, delays = seconds(folder, True, args)
            if turn:  # the first turn warms up
                plain.append(1000 * vpt[0])
                for kind, ratio in zip(ratios, provpt / vpt):
                    kind.append(ratio)
                moments += [1000 * delay[0] for delay in delays]
    if dist.is_main_process():
        print('| processes | VPT, ms per step | PRO-VPT / VPT | CPU time of rank 0 | closing a period, ms |')
        print('|---|---|---|---|---|')
        print(f'| {dist.get_world_size()} | ' + ' | '.join(
            f'{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})'
            for values, digits in ((plain, 0), (ratios[0], 2), (ratios[1], 2), (moments, 0))) + ' |')


if __name__ == '__main__':
    main()
