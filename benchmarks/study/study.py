#!/usr/bin/env python
"""Run experiments of experiments.py and print their tables.

    python benchmarks/study/study.py gain --jobs 2
    python benchmarks/study/study.py main gain --jobs 16
    python benchmarks/study/study.py gain --table

Each training that is finished is a line of RESULTS/<experiment>.jsonl, with the commit and the device that it ran on;
who starts the script again goes on behind it. Data and weights: docs/evidence/README.md.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import torch
from experiments import EXPERIMENTS, MEASURES, METHODS, NEEDS, SAME, Run, in_their_place
from mmengine.config import Config
from tables import main_table, read_rows, table, winners
from tqdm import tqdm

import mmprovpt  # noqa: F401  refuses versions that are known to fail, before anything else
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.datasets.miniature_tasks import TASKS
from mmprovpt.errors import ConfigError
from mmprovpt.sweep import Trial, read_task, run_trial, write_config
from mmprovpt.sweep.protocol import EVALUATION, SPLITS
from mmprovpt.trust import only_weights

ROOT = Path(__file__).resolve().parents[2]
AVERAGE = 0.05  # per step, of the exponential average of trained weights


class Family(NamedTuple):
    """Tasks that are set up and measured alike.

    Attributes:
        set_up: Changes a config for a run: data, precision, evaluators; arguments config, run, folder of data.
        weights: File of the backbone's, in the folder of weights; None: those that the config names.
        metrics: Short name → the evaluator's; the first one counts.
        epoch: Its iterations.
    """
    set_up: Callable
    weights: str | None
    metrics: dict[str, str]
    epoch: int


def classification(cfg: Config, run: Run, data: Path) -> None:
    """The miniature VTAB, CIFAR-10 and planted tasks."""
    known = run.task in TASKS  # of the miniature; the others have ten classes, as category
    root = str(data / 'miniature-vtab' if known else data)
    for loader, split in zip(('train', EVALUATION[run.phase]), SPLITS['VTAB1k'][run.phase]):
        cfg[f'{loader}_dataloader'].dataset.update(type='CachedVTAB1k', data_root=root, split=split, task=run.task)
    cfg[f'{EVALUATION[run.phase]}_evaluator'] = [dict(type='Accuracy', topk=1), dict(type='Calibration')]
    cfg.model.type = 'BFloat16Classifier'


def camvid(cfg: Config, run: Run, data: Path) -> None:
    """Street scenes; chosen on the validation images, tested on the test images."""
    for loader in ('train', EVALUATION[run.phase]):
        cfg[f'{loader}_dataloader'].dataset.data_root = str(data / 'camvid_240')
    cfg.model.type = 'BFloat16Segmentor'


def detection(cfg: Config, run: Run, data: Path) -> None:
    """Digits in scenes: there is one set of validation images, for the choice and for the test."""
    for loader in ('train', EVALUATION[run.phase]):
        cfg[f'{loader}_dataloader'].dataset.data_root = f'{data}/miniature/'
    cfg[f'{EVALUATION[run.phase]}_evaluator'].ann_file = f'{data}/miniature/annotations/instances_val.json'


FAMILIES = dict(
    classification=Family(classification, 'vit_s14_dinov2_42.pth', dict(
        accuracy='accuracy/top1', nll='calibration/nll', ece='calibration/ece'), 16),
    camvid=Family(camvid, 'vit_s14_dinov2.pth', dict(miou='mIoU'), 46),
    detection=Family(detection, None, dict(box_ap='coco/bbox_mAP', mask_ap='coco/segm_mAP'), 32))


def family_of(run: Run) -> Family:
    """That of a run's task."""
    return FAMILIES.get(run.task.partition('/')[0], FAMILIES['classification'])


def trial_of(run: Run, folder: Path, data: Path, weights: Path) -> Trial:
    """The config of a training, and where it is run."""
    family = family_of(run)
    task = run.task if run.task in TASKS else 'category' if run.config.startswith('miniature_vtab/') else None
    cfg = read_task(str(ROOT / f'configs/{run.config}.py'), run.options, task)
    family.set_up(cfg, run, data)
    if family.weights:
        backbone = cfg.model.backbone.get('module', cfg.model.backbone)  # of LoRA
        backbone.init_cfg.checkpoint = str(weights / family.weights)
    other, = {*EVALUATION.values()} - {EVALUATION[run.phase]}
    for part in ('dataloader', 'evaluator', 'cfg'):
        cfg[f'{other}_{part}'] = None
    others = cfg.get('custom_imports', dict(imports=[]))['imports']
    cfg.custom_imports = dict(imports=['parts', *([others] if isinstance(others, str) else others)],
                              allow_failed_imports=False)
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='EMAHook', momentum=AVERAGE),
                        dict(type='mmprovpt.TrainingLossHook', window=family.epoch)]
    cfg.default_hooks.checkpoint.interval = -1  # a killed run of minutes begins anew
    cfg.default_hooks.logger.interval = 1000
    cfg.randomness = dict(seed=run.seed)
    optimizer = cfg.optim_wrapper.optimizer
    return Trial(folder, run.phase, optimizer.lr, optimizer.weight_decay, cfg)


def key_of(row: dict | Run) -> tuple:
    """What tells one training of an experiment from another."""
    row = row._asdict() if isinstance(row, Run) else row
    return row['arm'], row['task'], row['seed']


def train(experiment: str, run: Run, args: argparse.Namespace) -> dict:
    """A row of results; in a process that trains one after the other."""
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    with only_weights():
        return _train(experiment, run, args)


def _train(experiment: str, run: Run, args: argparse.Namespace) -> dict:
    name = ''.join(c if c.isalnum() or c in '.-' else '_' for c in run.arm)
    trial = trial_of(run, args.work_dir / experiment / run.task / name / f'seed_{run.seed}', args.data,
                     args.weights)
    start = time.process_time()
    write_config(trial)
    metrics = family_of(run).metrics
    result = run_trial(trial.folder, run.phase, next(iter(metrics.values())))
    found = dict(average=result.get('metrics') or {}, last=result.get('last_metrics') or {})
    loss = trial.folder / 'training_loss.txt'
    return dict(
        experiment=experiment, arm=run.arm, task=run.task, seed=run.seed, phase=run.phase,
        lr=trial.base_lr, weight_decay=trial.weight_decay,
        error=result.get('error'),
        **{f'{when}_{short}': _rounded(found[when].get(long)) for when in found for short, long in metrics.items()},
        training_loss=_rounded(float(loss.read_text(encoding='utf-8'))) if loss.exists() else None,
        moves=result.get('moves'), distribution=result.get('distribution'),
        cpu_seconds=round(time.process_time() - start), commit=args.commit,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu')


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


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


def tables_of(experiment: str, results: Path) -> str:
    """Markdown: one table, or one for each way of choosing what was tuned."""
    rows = read_rows(results / f'{experiment}.jsonl')
    if not rows:
        return f'{experiment}: nothing yet'
    if experiment == 'same_setting':
        return at_same_setting(rows + read_rows(results / 'main.jsonl'))
    if experiment not in NEEDS or experiment == 'heads':  # whose rates differ by task
        more = {'prompts in their place': in_their_place} if experiment == 'recovery' else {}
        return table(rows, EXPERIMENTS[experiment](results)[0].arm, more)
    measures = MEASURES.get(experiment, ('average_accuracy', 'last_accuracy'))
    chosen = {measure: winners(read_rows(results / f'{NEEDS[experiment]}.jsonl'), measure) for measure in measures}
    tables = less_vpt(rows, chosen)
    if any(row['arm'] == f'VPT-Deep at {SAME}' for row in rows):
        tables += f'\n\nAll at one setting.\n\n{at_same_setting(rows)}'
    return tables


def less_vpt(rows: list[dict], chosen: dict[str, dict[str, str]]) -> str:
    """Markdown: a table for each measure, of each method's arm in it."""
    return '\n\n'.join(f'{title_of(measure)}:\n\n{main_table(rows, arms, measure, "VPT-Deep")}'
                       for measure, arms in chosen.items())


def at_same_setting(rows: list[dict]) -> str:
    """Markdown: VPT-Deep, and what moves or bears its prompts anew, at the setting that won for the latter."""
    arms = {method: f'{method} at {SAME}' for method in METHODS}
    return less_vpt(rows, dict.fromkeys(('average_accuracy', 'last_accuracy'), arms))


def title_of(measure: str) -> str:
    """'average_box_ap' → 'Box AP of the average of weights'."""
    when, _, name = measure.partition('_')
    name = dict(accuracy='Accuracy', miou='Mean IoU', box_ap='Box AP')[name]
    return f'{name} of the {dict(average="average of weights", last="last iterate")[when]}'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('experiments', nargs='+', choices=list(EXPERIMENTS), metavar='experiment',
                        help=', '.join(EXPERIMENTS))
    parser.add_argument('--data', type=Path, default=ROOT / 'data', help='folder of miniature-vtab and cifar10_1k')
    parser.add_argument('--weights', type=Path, default=ROOT / 'checkpoints',
                        help='folder of vit_s14_dinov2_42.pth and vit_s14_dinov2.pth')
    parser.add_argument('--results', type=Path, default=Path(__file__).parent / 'results')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/study')
    parser.add_argument('--jobs', type=int, default=1, help='trainings at once')
    parser.add_argument('--commit', help='of this checkout, where it is a copy without git')
    parser.add_argument('--minutes', type=float, default=math.inf, help='start no training after so many')
    parser.add_argument('--table', action='store_true', help='of what is there; train nothing')
    return parser.parse_args()


def missing(experiment: str, results: Path) -> list[Run]:
    """Trainings of an experiment that are not finished."""
    finished = {key_of(row) for row in read_rows(results / f'{experiment}.jsonl')}
    return [run for run in EXPERIMENTS[experiment](results) if key_of(run) not in finished]


def train_all(args: argparse.Namespace) -> None:
    """All that is missing, experiment by experiment, ``args.jobs`` at once; write each as soon as it is there.

    One that goes on from a tuning of the same call begins once that is through, and others go before it till then.
    """
    args.commit = args.commit or commit_of()
    args.results.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    waiting, todo, running = [*args.experiments], {}, {}
    with ProcessPoolExecutor(args.jobs, mp_context=get_context('spawn'), initializer=_end_with_parent) as pool, \
            tqdm(total=0, unit='training', file=sys.stdout) as bar:
        while True:
            unfinished = {*waiting, *(name for name in todo if todo[name]), *(name for name, _ in running.values())}
            for name in [name for name in waiting if NEEDS.get(name) not in unfinished and time.monotonic() < end]:
                waiting.remove(name)
                todo[name] = missing(name, args.results)
                bar.total += len(todo[name])
            for name in args.experiments:
                while todo.get(name) and len(running) < args.jobs and time.monotonic() < end:
                    run = todo[name].pop(0)
                    running[pool.submit(train, name, run, args)] = name, run
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                note(future, *running.pop(future), args.results)
                bar.update()


def _end_with_parent() -> None:
    """A worker whose parent was killed would train on, and nobody would write its row."""
    def watch() -> None:
        parent_process().join()
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def note(future: Future, experiment: str, run: Run, results: Path) -> None:
    """Write the row of a finished training, or say why there is none."""
    try:
        row = future.result()
    except Exception:  # of one training; the others go on
        print(f'{experiment}, {run.arm}, {run.task}, seed {run.seed} failed:', file=sys.stderr)
        traceback.print_exc()
    else:
        with (results / f'{experiment}.jsonl').open('a', encoding='utf-8') as file:
            file.write(json.dumps(row) + '\n')


@user_errors()
def main() -> None:
    args = parse_args()
    if not args.table:
        train_all(args)
    for experiment in args.experiments:
        print(tables_of(experiment, args.results))


if __name__ == '__main__':
    main()
