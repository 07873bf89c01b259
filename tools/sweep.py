#!/usr/bin/env python
"""The paper's protocol: a grid of learning rates and weight decays, its winner trained anew and tested.

    python tools/sweep.py CONFIG... --seeds 3
    python tools/sweep.py configs/vtab1k/vit_b_lora.py --tasks cifar svhn    # as with TASK=cifar, then with TASK=svhn

For each config, and each task of one that serves several: every pair of the grid is trained on the training split and
validated; the winner is trained on training and validation data together, once per seed, and tested. Ray Tune runs the
trials, on this machine or on a cluster (--address). Who starts the script again skips what is finished and goes on with
the rest from its last checkpoint. Everything lies in WORK_DIR/<name of the config>/, or WORK_DIR/<name of the
config>_<task>/ where it serves several tasks; tools/table.py makes the table of it. See docs/how-to/sweep.md.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

from mmengine.config import Config, DictAction
from tqdm import tqdm

import mmprovpt  # noqa: F401  refuses versions that are known to fail, before anything else
from mmprovpt.cli.lock import locked
from mmprovpt.cli.options import add_trust_option
from mmprovpt.cli.packages import how_to_install
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.errors import ConfigError
from mmprovpt.files import write_atomically
from mmprovpt.sweep import (
    BASE_LRS,
    WEIGHT_DECAYS,
    Trial,
    check_phases,
    choose_winner,
    final_trials,
    folder_name,
    give_up,
    own_rates,
    read_result,
    read_task,
    search_trials,
    state_of,
    summarise,
    write_config,
)
from mmprovpt.sweep.trial import tune_trial

# Read when Ray is imported or started: no report home, and Ctrl-C is ours.
os.environ.update(RAY_USAGE_STATS_ENABLED='0', TUNE_DISABLE_SIGINT_HANDLER='1', TUNE_DISABLE_AUTO_CALLBACK_LOGGERS='1',
                  RAY_AIR_NEW_OUTPUT='0')
OBJECT_STORE = 100 << 20  # bytes; trials pass each other nothing
REDUCTION = 3  # of ASHA: one trial of so many goes on


class RayError(ConfigError):
    """Ray cannot run trials, whatever the config."""


def start_ray(args: argparse.Namespace) -> dict:
    """Start Ray here, or join a cluster; what each trial gets.

    Raises:
        RayError: Ray is not installed, the cluster is not there, or has less than a trial wants.
    """
    try:
        import ray
        from ray import tune  # noqa: F401  needs more packages than ray
    except ImportError as error:
        raise RayError(f'a sweep needs Ray Tune ({error}): {how_to_install("ray")}') from error
    here = dict(address='local', object_store_memory=OBJECT_STORE, include_dashboard=False)
    try:
        ray.init(**(dict(address=args.address) if args.address else here), log_to_driver=False, logging_level='ERROR')
    except ConnectionError as error:
        raise RayError(f'no Ray cluster at --address {args.address}: {error}') from error
    there = ray.cluster_resources()
    if args.gpus_per_trial is None:
        args.gpus_per_trial = 1 if there.get('GPU') else 0
    wanted = dict(cpu=args.cpus_per_trial, gpu=args.gpus_per_trial)
    for name, count in wanted.items():
        most = there.get(name.upper(), 0)
        if count > most:
            raise RayError(f'a trial wants {count:g} {name.upper()}, but there are {most:g} in all: change '
                              f'--{name}s-per-trial')
    return wanted


def run_trials(trials: list[Trial], title: str, args: argparse.Namespace) -> None:
    """Bring all trials to their end; what fails leaves its traceback in its folder."""
    for trial in trials:
        write_config(trial)  # of a finished one, too, lest its result pass for another config's
    todo = [trial for trial in trials if read_result(trial.folder) is None]
    if not todo:
        return
    args.resources = args.resources or start_ray(args)
    from ray import tune
    asha = args.asha and trials[0].phase == 'search'
    # ASHA compares with those that are finished, too: they report again what they reported then.
    params = [dict(folder=str(trial.folder.absolute()), phase=trial.phase, metric=args.metric, cwd=os.getcwd(),
                   trusted=args.trust_checkpoint)
              for trial in (trials if asha else todo)]
    scheduler = tune.schedulers.ASHAScheduler(
        grace_period=args.asha, reduction_factor=REDUCTION, max_t=10 ** 6) if asha else None
    with tqdm(total=len(todo), unit='trial', desc=title, file=sys.stdout, miniters=1) as bar:
        tune.Tuner(
            tune.with_resources(tune_trial, args.resources),
            param_space=dict(trial=tune.grid_search(params)),
            tune_config=tune.TuneConfig(metric='score', mode='max', scheduler=scheduler, reuse_actors=False),
            run_config=tune.RunConfig(
                name=time.strftime(f'{trials[0].phase}_%Y%m%d_%H%M%S'), verbose=0,
                storage_path=str((trials[0].folder.parents[1] / 'ray').absolute()),
                callbacks=[progress(bar, {str(trial.folder.absolute()) for trial in todo})])).fit()


def progress(bar: tqdm, todo: set):
    """A callback of Ray Tune: a line for each trial that ends, and the time that is left."""
    from ray import tune

    class Progress(tune.Callback):
        best = -float('inf')

        def on_trial_complete(self, iteration, trials, trial, **info):
            folder = Path(trial.config['trial']['folder'])
            if read_result(folder) is None:
                give_up(folder, 'stopped early')
            score = read_result(folder)['score']
            self.best = max(self.best, self.best if score is None else score)
            self.line(folder, state_of(folder) if score is None else f'{score:.2f} (best: {self.best:.2f})')

        def on_trial_error(self, iteration, trials, trial, **info):
            folder = Path(trial.config['trial']['folder'])
            state = state_of(folder)
            self.line(folder, state if state.startswith('failed') else f'failed: its process ended ({state})')

        def line(self, folder, text):
            if str(folder) in todo:
                bar.write(f'  {folder.name}: {text}', file=sys.stdout)
                bar.update()

    return Progress()


def sweep(config: str, name: str | None, args: argparse.Namespace) -> None:
    """Both phases of a config and a task of it, and their summary.json.

    Raises:
        ConfigError: A trial of the grid has failed, or none has a score, or a seed of the winner is not finished, or
            another sweep runs in this folder.
    """
    task, search, folder = plan(config, name, args)
    with locked(folder):
        run_plan(task, search, folder, args)


def run_plan(task: Config, search: list[Trial], folder: Path, args: argparse.Namespace) -> None:
    """See ``sweep``."""
    if args.no_grid:
        base_lr, weight_decay = own_rates(task)
    else:
        run_trials(search, f'{folder.name}, grid', args)
        print(trial_table(search))
        winner = choose_winner(search)
        base_lr, weight_decay = winner.base_lr, winner.weight_decay
        print(f'winner: {winner.name}; trained anew with {args.seeds} seeds')
    final = final_trials(task, folder, base_lr, weight_decay, args.seeds, args.final_options)
    run_trials(final, f'{folder.name}, seeds', args)
    summary = summarise(task, folder.name, args.metric, search, final)
    write_atomically((json.dumps(summary, indent=1) + '\n').encode(), folder / 'summary.json')
    print(trial_table(final))
    missing = [f'{trial.name} ({state_of(trial.folder)})' for trial in final if str(trial.cfg.randomness.seed)
               not in summary['test']]
    if missing:
        raise ConfigError(f'{folder}: not all seeds are finished: {", ".join(missing)}; start again to retry')


def plan(config: str, name: str | None, args: argparse.Namespace):
    """Task, trials of the grid and folder, with all that can be known to fail checked.

    Args:
        config: The file.
        name: Of the task, for a file that serves several; None: whatever it is read for.
        args: The command line's.
    """
    task = read_task(config, args.cfg_options, name)
    folder = args.work_dir / folder_name(config, task)
    # Which wins does not change the data, so mistakes in the second phase show before the first.
    final = final_trials(task, folder, 1., 0., 1, args.final_options)
    if args.no_grid:
        own_rates(task)
        return task, [], folder
    search = search_trials(task, folder, args.base_lrs, args.weight_decays, args.search_options)
    check_phases(search[0], final[0])
    return task, search, folder


def trial_table(trials: list[Trial]) -> str:
    """Markdown."""
    lines = ['| trial | base lr | lr | weight decay | score | state |', '|---' * 6 + '|']
    for trial in trials:
        score = (read_result(trial.folder) or {}).get('score')
        lines.append(f'| {trial.name} | {trial.base_lr:g} | {trial.cfg.optim_wrapper.optimizer.lr:.6g} | '
                     f'{trial.weight_decay:g} | {"" if score is None else f"{score:.2f}"} | {state_of(trial.folder)} |')
    return '\n'.join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument('--tasks', nargs='+', metavar='TASK', default=[None],
                        help='for configs that serve several tasks; default: that of the environment variable TASK, or '
                        "the config's own")
    parser.add_argument('--seeds', type=int, default=3, help='how many; default 3')
    parser.add_argument('--base-lrs', type=float, nargs='+', default=BASE_LRS, metavar='LR',
                        help='lr = base * batch size / 256; default: ' + ' '.join(f'{lr:g}' for lr in BASE_LRS))
    parser.add_argument('--weight-decays', type=float, nargs='+', default=WEIGHT_DECAYS, metavar='WD',
                        help='default: ' + ' '.join(f'{decay:g}' for decay in WEIGHT_DECAYS))
    parser.add_argument('--no-grid', action='store_true',
                        help='only the seeds, with the learning rate and weight decay that the config has')
    parser.add_argument('--metric', default='accuracy/top1', help='higher is better; default: accuracy/top1')
    for phase, of in (('search', 'the grid'), ('final', 'the winner'), ('cfg', 'all')):
        parser.add_argument(f'--{phase}-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                            help=f'override settings of the config for {of}')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/sweep'))
    parser.add_argument('--address', help='of a Ray cluster, e.g. auto; default: this machine alone')
    parser.add_argument('--cpus-per-trial', type=float, default=1)
    parser.add_argument('--gpus-per-trial', type=float, help='e.g. 0.25; default: 1, or 0 where there is no GPU')
    parser.add_argument('--asha', type=int, metavar='N',
                        help='stop the worse two of three trials early (ASHA), none before its N-th validation')
    parser.add_argument('--dry-run', action='store_true', help='print the trials and their state')
    add_trust_option(parser)
    args = parser.parse_args(argv)
    if args.seeds < 1 or args.asha is not None and args.asha < 1:
        parser.error('--seeds and --asha must be at least 1')
    return args


@user_errors()
def main():
    args = parse_args()
    jobs = [(config, name) for config in args.configs for name in args.tasks]
    plans = [plan(config, name, args) for config, name in jobs]
    names = [folder.name for _, _, folder in plans]
    if len(set(names)) < len(names):
        raise ConfigError(f'configs of the same name would share a folder: {", ".join(sorted(names))}')
    if args.dry_run:
        for _, search, folder in plans:
            print(f'{folder}: {len(search)} trials, then {args.seeds} seeds\n{trial_table(search)}' if search else
                  f'{folder}: {args.seeds} seeds, no grid')
        return
    args.resources = None  # of a trial; Ray starts when there is something to run
    failures = []
    for config, name in jobs:
        try:
            sweep(config, name, args)
        except RayError:
            raise
        except ConfigError as error:  # the next config may do better
            failures.append(config if name is None else f'{config} ({name})')
            print(f'error: {error}', file=sys.stderr)
    if failures:
        raise ConfigError(f'{len(failures)} of {len(jobs)} sweeps are incomplete (see above): '
                          + ', '.join(failures))


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('interrupted: what is finished stays; the same command goes on from here')
