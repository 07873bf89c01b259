"""What a run tells of its relocations. Rank 0 alone writes, and what cannot be written ends no training."""
import logging
import math
import os.path as osp

from mmengine.dist import is_main_process
from mmengine.runner import Runner
from mmengine.visualization import TensorboardVisBackend

from mmprovpt.relocation import Move, Period, RelocationLog
from mmprovpt.relocation.history import read_rows, rows_of, with_previous_reward

LOG_NAME = 'relocations.jsonl'


class Records:
    """``relocations.jsonl`` in the log directory, lines of the log, scalars, and a picture at the end.

    Args:
        runner (Runner): Whose they are.
    """

    def __init__(self, runner: Runner) -> None:
        self.log = RelocationLog(osp.join(runner.log_dir, LOG_NAME))

    def name(self, runner: Runner) -> str:
        """Where the file is, from the work directory: of a checkpoint, for who resumes it there or elsewhere."""
        return osp.relpath(self.log.path, runner.work_dir)

    def write(self, runner: Runner, period: Period) -> None:
        """Note a period."""
        try:
            self.log.append(rows_of(period, runner.iter))
        except OSError as error:
            runner.logger.warning(f'{self.log.path} will lack period {period.number}: {error}')
        scalars = dict(loss=period.loss, reward=period.previous_reward, **period.diagnostics)
        if period.moves:  # of several, what Eq. 8 takes off
            scalars['idleness'] = sum(move.idleness for move in period.moves)
        try:
            runner.visualizer.add_scalars(
                {f'train/relocation/{name}': value for name, value in scalars.items()
                 if value is not None and math.isfinite(value)}, step=runner.iter)
            self._show(runner, period.number)
        except Exception as error:  # of whichever backend
            runner.logger.warning(f'The scalars or the picture of period {period.number} could not be written: {error}')
        runner.logger.log(logging.WARNING if period.skipped else logging.INFO, _sentence(period))

    def _show(self, runner: Runner, period: int) -> None:
        """The picture so far, where TensorBoard shows it beside the curves; after 1 to 99, 100, 110, … periods."""
        if period % 10**max(len(str(period)) - 2, 0):
            return
        backends = [backend for backend in runner.visualizer._vis_backends.values()
                    if isinstance(backend, TensorboardVisBackend)]
        if backends and self.log.path.exists():
            from mmprovpt.visualization import read_log, relocation_image
            image = relocation_image(read_log(self.log.path, ''))
            for backend in backends:
                backend.add_image('train/relocation/distribution', image, step=runner.iter)

    def draw(self, runner: Runner) -> None:
        """Draw the file, if a period has closed."""
        if not is_main_process() or not self.log.path.exists():
            return
        path = osp.join(runner.log_dir, 'prompt_distribution.png')
        try:
            from mmprovpt.visualization import plot_relocation, read_log  # matplotlib, which takes a second to import
            plot_relocation([read_log(self.log.path, '')], path)
            runner.logger.info(f'The prompt distribution of every period is drawn in {path}')
        except Exception as error:  # a log of somebody else's, a full disk, a broken matplotlib
            runner.logger.warning(f'{path} could not be drawn: {error}')

    def resume(self, runner: Runner, state: dict, last_period: int) -> None:
        """Begin with the lines of the run that wrote a checkpoint, up to it.

        Args:
            runner (Runner): Who resumes.
            state (dict): The hook's in the checkpoint, with the file's ``name``; or that of earlier releases, which
                kept all rows in checkpoints.
            last_period (int): The last one that had closed.
        """
        if not is_main_process() or last_period == 0:
            return
        try:
            rows = with_previous_reward(state['history']['rows']) if 'history' in state else None
            if rows is None:
                folders = runner.work_dir, osp.dirname(runner._load_from or '')
                paths = [osp.join(folder, state['log']) for folder in folders]
                rows = read_rows(next((path for path in paths if osp.isfile(path)), paths[0]), last_period)
            self.log.restart(rows)
        except (OSError, ValueError) as error:
            runner.logger.warning(f'{self.log.path} will begin with period {last_period + 1}: {error}')


def _sentence(period: Period) -> str:
    text = f'Relocation, period {period.number}: loss {period.loss:.4f}, '
    nothing = 'the period is skipped' if period.skipped else 'nothing moves'
    text += ', '.join(map(_phrase, period.moves)) or nothing
    if period.num_dropped:
        text += f' ({period.num_dropped} iterations were not finite)'
    if period.previous_reward is not None:
        text += f'; reward of the relocation before: {period.previous_reward:.3g}'
    return text


def _phrase(move: Move) -> str:
    if move.source < 0:
        return f'a new prompt, {move.prompt}, comes to block {move.target}'
    where = 'is taken out of' if move.target < 0 else f'goes to block {move.target} from'
    return f'prompt {move.prompt} {where} block {move.source} (idleness {move.idleness:.3g})'
