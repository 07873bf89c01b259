"""Which runs a sweep consists of, which of them wins, and what is kept of it."""
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.config import Config

from mmprovpt.cli.config_parts import find_hooks, find_prompts_config, has_lora, type_name
from mmprovpt.cli.options import read_config
from mmprovpt.cli.preflight import check_files
from mmprovpt.errors import ConfigError
from mmprovpt.files import write_atomically
from mmprovpt.shipped import shipped

from .trial import read_result, state_of

# The paper's grid (PRO-VPT, Tab. i).
BASE_LRS = (50., 25., 10., 5., 2.5, 1., 0.5, 0.25, 0.1, 0.05)
WEIGHT_DECAYS = (0.01, 0.001, 0.0001, 0.)
SEARCH_SEED = 0
# Splits of the data sets whose protocol is known: of training and of evaluation, in each phase.
SPLITS = {
    'VTAB1k': dict(search=('train800', 'val200'), final=('train800val200', 'test')),
    'FGVC': dict(search=('train', 'val'), final=('trainval', 'test')),
}
EVALUATION = dict(search='val', final='test')
# Type of prompts → the method's name, without relocation and with.
_NAMES = dict(StaticPrompts=('VPT-Deep', 'PRO-VPT'), AdaptivePrompts=('VAPT', 'PRO-VAPT'),
              ShallowPrompts=('VPT-Shallow', None))


class Trial(NamedTuple):
    """One run of training.

    Attributes:
        folder: Where its logs and its result lie; its config lies beside, as ``<folder>.py``.
        phase: 'search' ends with a validation, 'final' with a test.
        base_lr: The learning rate at a batch of 256 images.
        weight_decay: Of the optimizer.
        cfg: All that is trained.
    """
    folder: Path
    phase: str
    base_lr: float
    weight_decay: float
    cfg: Config

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.name


def read_task(path: str, options: dict | None = None, task: str | None = None) -> Config:
    """The config of a sweep, with overrides.

    Args:
        path: The file.
        options: Keys with dots.
        task: For a file that serves several tasks: the one that it is read for. None: that of the environment
            variable TASK, or the file's own.

    Raises:
        ConfigError: There is no such file or task, the file serves one task alone, or it lacks what a sweep changes or
            measures.
    """
    with _environment('TASK', task):
        cfg = read_config(path, options)
    if task is not None and cfg.get('task') != task:
        raise ConfigError(f'{path} does not take its task from the environment variable TASK, so --tasks {task} would '
                          'change nothing: leave it out, or name a config that does '
                          f'({shipped("docs/how-to/classification.md")})')
    for key in ('optim_wrapper.optimizer', 'train_dataloader.batch_size', 'train_dataloader.dataset',
                'val_dataloader.dataset', 'val_evaluator', 'test_dataloader.dataset', 'test_evaluator'):
        node = cfg
        for part in key.split('.'):
            node = node.get(part) if isinstance(node, dict) or node is cfg else None
        if not node:
            raise ConfigError(f'{path} has no {key}, which a sweep needs: it validates the grid and tests the winner')
    return cfg


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """An environment variable with another value for a while; None changes nothing."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def folder_name(path: str, task: Config) -> str:
    """Name of a sweep's folder: the file's, and the task's where a file serves several."""
    return '_'.join([Path(path).stem, *([task.task] if task.get('task') else [])])


def phase_options(task: Config, phase: str, options: dict | None = None) -> dict:
    """Overrides of a phase's data: those of a known data set, and over them the user's.

    Args:
        task: Of :func:`read_task`.
        phase: 'search' or 'final'.
        options: The user's; keys with dots.
    """
    found = {}
    for loader, split in zip(('train', EVALUATION[phase]), splits_of(task, phase)):
        found[f'{loader}_dataloader.dataset.split'] = split
    return dict(found, **(options or {}))


def splits_of(task: Config, phase: str) -> tuple[str, ...]:
    """Splits of training and evaluation, if the data set is a known one."""
    dataset = type_name(task.train_dataloader.dataset)
    return SPLITS.get(dataset, {}).get(phase, ())


def search_trials(task: Config, folder: Path, base_lrs: Sequence[float] = BASE_LRS,
                  weight_decays: Sequence[float] = WEIGHT_DECAYS, options: dict | None = None) -> list[Trial]:
    """The grid.

    Raises:
        ConfigError: A value is given twice, or files are missing.
    """
    trials = [_trial(task, folder / 'search' / f'base_{base:g}_wd_{decay:g}', 'search', base, decay, SEARCH_SEED,
                     options) for base in base_lrs for decay in weight_decays]
    if len({trial.name for trial in trials}) < len(trials):
        raise ConfigError(f'learning rates {list(base_lrs)} or weight decays {list(weight_decays)} repeat a value')
    check_files(trials[0].cfg, ('train', 'val'))
    return trials


def final_trials(task: Config, folder: Path, base_lr: float, weight_decay: float, seeds: int,
                 options: dict | None = None) -> list[Trial]:
    """The winner with the seeds 0, 1, ….

    Raises:
        ConfigError: Files are missing.
    """
    trials = [_trial(task, folder / 'final' / f'seed_{seed}', 'final', base_lr, weight_decay, seed, options)
              for seed in range(seeds)]
    check_files(trials[0].cfg, ('train', 'test'))
    return trials


def _trial(task: Config, folder: Path, phase: str, base_lr: float, weight_decay: float, seed: int,
           options: dict | None) -> Trial:
    cfg = Config(task.to_dict())
    cfg.merge_from_dict(phase_options(task, phase, options))
    cfg.optim_wrapper.optimizer.lr = base_lr * cfg.train_dataloader.batch_size / 256
    cfg.optim_wrapper.optimizer.weight_decay = weight_decay
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    for other in {'val', 'test'} - {EVALUATION[phase]}:
        for part in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'{other}_{part}'] = None
    if cfg.get(f'{EVALUATION[phase]}_cfg') is None:
        cfg[f'{EVALUATION[phase]}_cfg'] = dict()
    hooks = cfg.get('default_hooks') or {}
    checkpoint = dict(hooks.get('checkpoint') or dict(type='CheckpointHook', interval=1))
    checkpoint.pop('save_best', None)  # the last weights count
    # The hook deletes before it writes: of two, one is whole whenever the run is killed.
    cfg.default_hooks = dict(hooks, checkpoint=dict(checkpoint, max_keep_ckpts=2))
    return Trial(folder, phase, base_lr, weight_decay, cfg)


def own_rates(task: Config) -> tuple[float, float]:
    """The config's own learning rate at 256 images, and its weight decay.

    Raises:
        ConfigError: It gives no learning rate.
    """
    optimizer = task.optim_wrapper.optimizer
    if 'lr' not in optimizer:
        raise ConfigError('without a grid the config must give optim_wrapper.optimizer.lr')
    return optimizer.lr * 256 / task.train_dataloader.batch_size, optimizer.get('weight_decay', 0.)


def check_phases(search: Trial, final: Trial) -> None:
    """Refuse to choose on the test set.

    Raises:
        ConfigError: The grid would be validated on the data that the winner is tested on.
    """
    chosen, tested = search.cfg.val_dataloader.dataset, final.cfg.test_dataloader.dataset
    data = [{key: value for key, value in dataset.to_dict().items() if key not in ('pipeline', 'test_mode')}
            for dataset in (chosen, tested)]
    if data[0] == data[1]:
        raise ConfigError('the grid would be chosen on the data that the winner is tested on (val_dataloader and '
                          'test_dataloader name the same): name others with --search-options or --final-options')


def write_config(trial: Trial) -> Path:
    """Keep a trial's config beside its folder, into which the runner writes another of its own.

    Raises:
        ConfigError: The folder holds a run of another config.
    """
    path = trial.folder.with_name(f'{trial.name}.py')
    if path.exists() and path.read_text(encoding='utf-8') != trial.cfg.pretty_text:
        raise ConfigError(f'{trial.folder} holds a run of another config ({path}): give another --work-dir, or remove '
                          'both')
    trial.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(trial.cfg.pretty_text.encode(), path)
    return path


def choose_winner(trials: Sequence[Trial]) -> Trial:
    """The finished trial with the highest score; of equals the lower learning rate, then the lower weight decay.

    Those that diverged or were stopped early are through, and do not win.

    Raises:
        ConfigError: One has failed or was interrupted, and might have won; or none has a score.
    """
    open_ones = [trial for trial in trials if read_result(trial.folder) is None]
    if open_ones:
        raise ConfigError(f'{len(open_ones)} of {len(trials)} trials of {trials[0].folder.parent} are not finished and '
                          f'might win, so no winner is named; start again to retry:\n{_states(open_ones)}')
    done = _finished(trials)
    if not done:
        raise ConfigError(f'no trial of {trials[0].folder.parent} has a score, so none wins:\n{_states(trials)}')
    return min(done, key=lambda pair: (-pair[1]['score'], pair[0].base_lr, pair[0].weight_decay))[0]


def _states(trials: Sequence[Trial]) -> str:
    return '\n'.join(f'  {trial.name}: {state_of(trial.folder)}' for trial in trials)


def _finished(trials: Sequence[Trial]) -> list[tuple[Trial, dict]]:
    found = [(trial, read_result(trial.folder)) for trial in trials]
    return [(trial, result) for trial, result in found if result and result.get('error') is None]


def summarise(task: Config, name: str, metric: str, search: Sequence[Trial], final: Sequence[Trial]) -> dict:
    """What summary.json holds of a config's sweep: plain Python types.

    ``test`` has the score of each seed that is finished, ``seeds`` is how many there should be; ``parameters`` counts
    the trained ones; ``distribution`` has the prompts of each block at the end, per seed, or null without prompts.
    ``val`` is null where there was no grid.
    """
    winner = final[0]
    chosen = [result['score'] for trial, result in _finished(search) if trial[2:4] == winner[2:4]]
    done = {trial.cfg.randomness['seed']: result for trial, result in _finished(final)}
    first = next(iter(done.values()), {})
    dataset = task.train_dataloader.dataset
    return dict(
        config=name,
        dataset=type_name(dataset),
        task=dataset.get('task') or dataset.get('name') or name,
        method=method_of(task),
        metric=metric,
        winner=dict(base_lr=winner.base_lr, lr=winner.cfg.optim_wrapper.optimizer.lr, weight_decay=winner.weight_decay),
        val=chosen[0] if chosen else None,
        seeds=len(final),
        test={str(seed): result['score'] for seed, result in done.items()},
        parameters=first.get('parameters'),
        distribution={str(seed): result['distribution'] for seed, result in done.items()},
        search=[dict(name=trial.name, base_lr=trial.base_lr, weight_decay=trial.weight_decay,
                     score=(read_result(trial.folder) or {}).get('score'), state=state_of(trial.folder))
                for trial in search])


def method_of(task: Config) -> str:
    """How the papers call what a config trains."""
    prompts, moves = find_prompts_config(task.model), bool(find_hooks(task))
    if prompts is None:
        return 'LoRA' if has_lora(task.model) else 'Full'
    if not moves and not np.any(prompts.get('num_tokens', 1)):
        return 'Linear'
    static, moving = _NAMES[type_name(prompts)]
    return moving if moves else static
