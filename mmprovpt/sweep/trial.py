"""One run of a sweep, in this process. What it leaves on disk is all that a restarted sweep knows of it."""
import json
import math
import os
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import BaseLoop, Runner

from mmprovpt.cli.lock import locked
from mmprovpt.cli.parameters import count_trainable
from mmprovpt.errors import ConfigError, DivergedError
from mmprovpt.files import write_atomically
from mmprovpt.hooks.records import LOG_NAME
from mmprovpt.prompts.prompt_set import PromptSet
from mmprovpt.relocation.history import read_rows
from mmprovpt.trust import only_weights, trust_checkpoints

RESULT, HISTORY, ERROR = 'result.json', 'history.jsonl', 'error.txt'
WAIT = 30  # seconds, for the process of a sweep that was killed, which may outlive it
CHECK_INTERVAL = 10  # iterations between looks at the loss, which wait for the device


class _History(Hook):
    """Validations in ``<folder>/history.jsonl``, each reported; a resumed run reports those before it anew.

    The last is not reported here: whoever stops trials early must not stop one that is through.
    """
    priority = 'LOWEST'

    def __init__(self, folder: Path, metric: str, report: Callable[[dict], None]):
        self._path, self._metric, self._report = folder / HISTORY, metric, report
        self.rows: list[dict] = []

    def before_train(self, runner):
        # What was validated after the checkpoint that the run goes on from comes again.
        self.rows = [row for row in _read_lines(self._path) if row['iter'] <= runner.iter]
        write_atomically(''.join(json.dumps(row) + '\n' for row in self.rows).encode(), self._path)
        for row in self.rows:
            self._report_row(runner, row)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.every_n_train_iters(runner, CHECK_INTERVAL) and not torch.isfinite(torch.as_tensor(outputs['loss'])):
            raise DivergedError(f'the loss of iteration {runner.iter + 1} is {float(outputs["loss"])}')

    def after_val_epoch(self, runner, metrics=None):
        score_of(metrics, self._metric)
        self.rows.append(dict(iter=runner.iter, **plain(metrics)))
        with self._path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(self.rows[-1]) + '\n')
        self._report_row(runner, self.rows[-1])

    def _report_row(self, runner, row):
        if row['iter'] < runner.max_iters:
            self._report(dict(score=row[self._metric]))


def run_trial(folder: Path, phase: str, metric: str,
              report: Callable[[dict], None] = lambda metrics: None) -> dict:
    """Train and evaluate, from the last checkpoint if there is one, or take the result that is there.

    Args:
        folder: Becomes the runner's work_dir; the config lies beside, as ``<folder>.py``. Holds ``result.json`` once
            the trial is finished or has diverged.
        phase: 'search' ends with a validation of the last weights, 'final' with their test.
        metric: The score's name among the metrics, e.g. ``'accuracy/top1'``.
        report: Is given ``dict(score=...)`` after each validation but the last, those before an interruption included.

    Returns:
        score, metrics, history, parameters, distribution and moves (how many there were); ``last_metrics``, those of
        the last iterate where the score is that of an average (EMAHook), else None. Or ``score=None``, and the reason
        as ``error``.

    Raises:
        ConfigError: There is no such metric, or another process trains in this folder.
    """
    with locked(folder, WAIT):
        return _run_trial(folder, phase, metric, report)


def _run_trial(folder: Path, phase: str, metric: str, report: Callable[[dict], None]) -> dict:
    result = read_result(folder)
    if result is not None:
        for row in result['history'][:None if result.get('error') else -1]:
            report(dict(score=row[metric]))
        return result
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).unlink(missing_ok=True)
    start = time.time()
    history = _History(folder, metric, report)
    try:
        result = _train(folder, phase, metric, history)
    except DivergedError as error:  # it would end so again
        result = dict(score=None, error=f'diverged: {error}')
    result.update(history=history.rows, seconds=round(time.time() - start, 1))
    _write(folder / RESULT, result)
    if phase == 'search':  # only numbers of it are wanted
        for path in folder.glob('*.pth'):
            path.unlink()
    return result


def _train(folder: Path, phase: str, metric: str, history: _History) -> dict:
    from mmprovpt.cli.runner import build_runner
    cfg = Config.fromfile(folder.with_name(f'{folder.name}.py'))
    cfg.work_dir = str(folder)
    checkpoint = last_checkpoint(folder)
    if checkpoint:
        cfg.load_from, cfg.resume = str(checkpoint), True
    runner = build_runner(cfg)
    runner.register_hook(history)
    runner.train()
    if not all(torch.isfinite(parameter).all() for parameter in runner.model.parameters() if parameter.requires_grad):
        raise DivergedError('weights are not finite after training')
    loop = runner.test_loop if phase == 'final' else runner.val_loop
    if phase == 'final':
        # Not runner.test(): it begins a run anew, and with it EMAHook the average, which then is the last iterate.
        metrics = plain(loop.run())
    else:
        # Killed between its last checkpoint and its last validation, or the interval leaves the end out.
        if not history.rows or history.rows[-1]['iter'] != runner.iter:
            runner.val_loop.run()
        metrics = {key: value for key, value in history.rows[-1].items() if key != 'iter'}
    last = plain(_run_without_hooks(runner, loop)) if any(isinstance(hook, EMAHook) for hook in runner.hooks) else None
    sessions = [hook.session for hook in runner.hooks if getattr(hook, 'session', None)]
    allocator = sessions[0].relocator.allocator if sessions else None
    prompts = [module for module in runner.model.modules() if isinstance(module, PromptSet)]
    return dict(score=score_of(metrics, metric), metrics=metrics, last_metrics=last,
                parameters=count_trainable(runner.model, allocator),
                distribution=prompts[0].distribution.tolist() if prompts else None, moves=_count_moves(folder))


def _count_moves(folder: Path) -> int:
    """Prompts that were relocated; the log of a resumed run begins with that of the run before."""
    logs = sorted(folder.glob(f'*/{LOG_NAME}'))
    return sum(row['prompt'] is not None for row in read_rows(logs[-1])) if logs else 0


def _run_without_hooks(runner: Runner, loop: BaseLoop) -> dict:
    """Evaluate the weights that were trained last; EMAHook would take their average."""
    hooks, runner._hooks = runner._hooks, []
    try:
        return loop.run()
    finally:
        runner._hooks = hooks


def score_of(metrics: dict, metric: str) -> float:
    """The metric that counts.

    Raises:
        ConfigError: There is none of that name.
        DivergedError: It is not finite.
    """
    if metric not in (metrics or {}):
        raise ConfigError(f'no metric {metric!r}; the evaluation gives {sorted(metrics or {})}: name one with --metric')
    if not math.isfinite(metrics[metric]):
        raise DivergedError(f'{metric} is {metrics[metric]}')
    return float(metrics[metric])


def plain(metrics: dict) -> dict:
    """The numbers among the metrics, as Python's."""
    return {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float)) or
            getattr(value, 'size', None) == 1}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint. torch writes zip archives, whose directory comes last: one cut off is none."""
    whole = [path for path in Path(folder).glob('*.pth') if zipfile.is_zipfile(path)]
    return max(whole, key=lambda path: path.stat().st_mtime_ns, default=None)


def give_up(folder: Path, reason: str) -> None:
    """Close a trial that was stopped before its end: it keeps its validations, has no score and never wins."""
    _write(Path(folder) / RESULT, dict(score=None, error=reason, history=_read_lines(Path(folder) / HISTORY)))


def read_result(folder: Path) -> dict | None:
    """What a finished trial came to; None of one that is not, or whose file a kill or a full disk has cut off."""
    try:
        result = json.loads((Path(folder) / RESULT).read_text(encoding='utf-8'))
        whole = result['score'] is not None or bool(result.get('error'))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return result if whole else None


def state_of(folder: Path) -> str:
    """What is known of a trial: finished, its error, where it stands, or that it has not begun."""
    folder = Path(folder)
    result = read_result(folder)
    if result is not None:
        return result.get('error') or 'finished'
    if (folder / ERROR).exists():
        lines = (folder / ERROR).read_text(encoding='utf-8').strip().splitlines()
        return 'failed: ' + (lines or ['killed while it said why'])[-1]
    rows = _read_lines(folder / HISTORY)
    if rows:
        return f'not finished: {len(rows)} validations'
    return 'not finished' if last_checkpoint(folder) else 'not begun'


def _read_lines(path: Path) -> list[dict]:
    """Whole lines of a JSON-lines file, up to the first that is none: a kill cuts off the last."""
    rows = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b'\n') or not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def _write(path: Path, content: dict) -> None:
    write_atomically(json.dumps(content, indent=1).encode(), path)


def tune_trial(params: dict) -> None:
    """What a process of Ray Tune runs. ``params['trial']``: arguments of :func:`run_trial`, ``cwd``, ``trusted``."""
    from ray import tune
    trial = dict(params['trial'])
    os.chdir(trial.pop('cwd'))  # paths in configs are relative to where the user is
    folder = Path(trial.pop('folder'))
    trusted = trial.pop('trusted')
    try:
        with only_weights():
            if trusted:
                trust_checkpoints()
            result = run_trial(folder, report=tune.report, **trial)
    except BaseException:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR).write_text(traceback.format_exc(), encoding='utf-8')
        raise
    if result['score'] is not None:
        tune.report(dict(score=result['score']))
