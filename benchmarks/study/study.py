#!/usr/bin/env python
"""Run an experiment of experiments.py, one training after the other, and print its table.

    python benchmarks/study/study.py gain
    python benchmarks/study/study.py gain --shard 0/2 &  python benchmarks/study/study.py gain --shard 1/2
    python benchmarks/study/study.py gain --table

Each training that is finished is a line of RESULTS/<experiment>.jsonl, with the commit that it ran on; who starts the
script again goes on behind it. Data and weights: docs/evidence/README.md.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from experiments import EXPERIMENTS, Run
from tables import table
from tqdm import tqdm

import mmprovpt  # noqa: F401  refuses versions that are known to fail, before anything else
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.datasets.miniature_tasks import TASKS
from mmprovpt.errors import ConfigError
from mmprovpt.sweep import Trial, read_task, run_trial, write_config

ROOT = Path(__file__).resolve().parents[2]
AVERAGE = 0.05  # per step, of the exponential average of trained weights
SPLITS = dict(search=('train800', 'val200'), final=('train800val200', 'test'))


def trial_of(run: Run, folder: Path, data: Path, weights: Path) -> Trial:
    """The config of a training, and where it is run."""
    known = run.task in TASKS  # of the miniature; the others have ten classes, as category
    cfg = read_task(str(ROOT / f'configs/miniature_vtab/{run.config}.py'), run.options,
                    run.task if known else 'category')
    root = str(data / 'miniature-vtab' if known else data)
    for loader, split in zip(('train', 'val' if run.phase == 'search' else 'test'), SPLITS[run.phase]):
        cfg[f'{loader}_dataloader'].dataset.update(type='CachedVTAB1k', data_root=root, split=split, task=run.task)
    for other in {'val', 'test'} - {'val' if run.phase == 'search' else 'test'}:
        for part in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'{other}_{part}'] = None
    evaluator = [dict(type='Accuracy', topk=1), dict(type='Calibration')]
    cfg['val_evaluator' if run.phase == 'search' else 'test_evaluator'] = evaluator
    cfg.model.type = 'BFloat16Classifier'
    cfg.model.backbone.init_cfg.checkpoint = str(weights)
    cfg.custom_imports = dict(imports=['parts'], allow_failed_imports=False)
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='EMAHook', momentum=AVERAGE),
                        dict(type='mmprovpt.TrainingLossHook')]
    cfg.default_hooks.checkpoint.interval = -1  # a killed run of minutes begins anew
    cfg.default_hooks.logger.interval = 1000
    cfg.randomness = dict(seed=run.seed)
    optimizer = cfg.optim_wrapper.optimizer
    return Trial(folder, run.phase, optimizer.lr, optimizer.weight_decay, cfg)


def key_of(row: dict | Run) -> tuple:
    """What tells one training of an experiment from another."""
    row = row._asdict() if isinstance(row, Run) else row
    return row['arm'], row['task'], row['seed']


def train(run: Run, args: argparse.Namespace) -> dict:
    """A row of results."""
    name = ''.join(c if c.isalnum() or c in '.-' else '_' for c in run.arm)
    trial = trial_of(run, args.work_dir / args.experiment / run.task / name / f'seed_{run.seed}', args.data,
                     args.weights)
    start = time.process_time()
    write_config(trial)
    result = run_trial(trial.folder, run.phase, 'accuracy/top1')
    metrics, last = result.get('metrics') or {}, result.get('last_metrics') or {}
    loss = trial.folder / 'training_loss.txt'
    return dict(
        experiment=args.experiment, arm=run.arm, task=run.task, seed=run.seed, phase=run.phase,
        lr=trial.base_lr, weight_decay=trial.weight_decay, epochs=trial.cfg.train_cfg.max_epochs,
        error=result.get('error'),
        **{f'{when}_{short}': _rounded(found.get(long)) for when, found in (('average', metrics), ('last', last))
           for short, long in (('accuracy', 'accuracy/top1'), ('nll', 'calibration/nll'), ('ece', 'calibration/ece'))},
        training_loss=_rounded(float(loss.read_text(encoding='utf-8'))) if loss.exists() else None,
        moves=result.get('moves'), distribution=result.get('distribution'),
        cpu_seconds=round(time.process_time() - start), commit=args.commit)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def read_rows(path: Path) -> list[dict]:
    """Finished trainings."""
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()] if path.exists() else []


def commit_of() -> str:
    """The commit of this checkout.

    Raises:
        ConfigError: Files differ from it.
    """
    git = ['git', '-C', str(ROOT)]
    changed = subprocess.run([*git, 'status', '--porcelain', '--untracked-files=no', '--', 'mmprovpt', 'configs',
                              'benchmarks/study/*.py'], capture_output=True, text=True, check=True).stdout
    if changed:
        raise ConfigError(f'commit first, so that results can name what they ran on; changed:\n{changed}')
    return subprocess.run([*git, 'rev-parse', '--short=10', 'HEAD'], capture_output=True, text=True,
                          check=True).stdout.strip()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('experiment', choices=list(EXPERIMENTS))
    parser.add_argument('--data', type=Path, default=ROOT / 'data', help='folder of miniature-vtab and cifar10_1k')
    parser.add_argument('--weights', type=Path, default=ROOT / 'checkpoints/vit_s14_dinov2_42.pth')
    parser.add_argument('--results', type=Path, default=Path(__file__).parent / 'results')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/study')
    parser.add_argument('--shard', default='0/1', help='i/n: every n-th training from the i-th')
    parser.add_argument('--reverse', action='store_true', help='from the last training to the first')
    parser.add_argument('--stop-at', metavar='HH:MM', help='start no training after this time')
    parser.add_argument('--table', action='store_true', help='of what is there; train nothing')
    return parser.parse_args()


@user_errors()
def main() -> None:
    args = parse_args()
    path = args.results / f'{args.experiment}.jsonl'
    shard, shards = map(int, args.shard.split('/'))
    runs = EXPERIMENTS[args.experiment]()[shard::shards]
    if not args.table:
        args.commit = commit_of()
        args.results.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
        for run in tqdm(runs[::-1] if args.reverse else runs, unit='training', file=sys.stdout):
            if args.stop_at and time.strftime('%H:%M') >= args.stop_at:
                break
            if key_of(run) in {key_of(row) for row in read_rows(path)}:
                continue
            row = train(run, args)
            with path.open('a', encoding='utf-8') as file:
                file.write(json.dumps(row) + '\n')
    print(table(read_rows(path)))


if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).parent))
    main()
