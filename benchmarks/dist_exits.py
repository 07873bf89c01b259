"""How many of N runs of tools/dist_train.sh on CPU, each of two processes, exit with 0 when they are through.

    python benchmarks/dist_exits.py [--runs 40] [--processes 2]

Each trains a linear layer for two epochs, with a checkpoint after each, and ends as every training does. What counts
beside the exit status is whether the last checkpoint is there. Prints a line for each run that ended otherwise, and the
sums. Exits with 1 if there was one.
"""
import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
MODULE = """
import torch
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn


@MODELS.register_module()
class Line(BaseModel):

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.linear(inputs).square().mean())


@DATASETS.register_module()
class Ones(torch.utils.data.Dataset):

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(inputs=torch.ones(4))
"""
CONFIG = """
custom_imports = dict(imports=['line'])
model = dict(type='Line')
train_dataloader = dict(
    batch_size=2, dataset=dict(type='Ones'), sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'))
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(type='mmprovpt.FiniteOptimWrapper', optimizer=dict(type='SGD', lr=0.1))
default_hooks = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
"""


def free_port() -> int:
    """One that nobody uses at the moment."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def run(folder: Path, number: int, processes: int) -> subprocess.CompletedProcess:
    """One training, in processes of its own."""
    env = dict(os.environ, PYTHON=sys.executable, PYTHONPATH=str(folder), PORT=str(free_port()),
               CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    return subprocess.run(
        [str(ROOT / 'tools/dist_train.sh'), 'config.py', str(processes), '--work-dir', f'run_{number}'],
        cwd=folder, env=env, capture_output=True, text=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=int, default=40)
    parser.add_argument('--processes', type=int, default=2)
    args = parser.parse_args()
    good, start = 0, time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'line.py').write_text(MODULE, encoding='utf-8')
        (folder / 'config.py').write_text(CONFIG, encoding='utf-8')
        for number in tqdm(range(args.runs), unit='run'):
            done = run(folder, number, args.processes)
            whole = (folder / f'run_{number}/epoch_2.pth').is_file()
            good += done.returncode == 0 and whole
            if done.returncode or not whole:
                print(f'run {number}: exit status {done.returncode}, checkpoint {"there" if whole else "missing"}\n'
                      + done.stderr[-2000:], flush=True)
    print(f'{good} of {args.runs} runs of {args.processes} processes exited with 0 and left their checkpoint '
          f'({(time.time() - start) / args.runs:.0f} s each)')
    return good < args.runs


if __name__ == '__main__':
    sys.exit(main())
