"""What was relocated, period by period: ``relocations.jsonl``."""
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmprovpt.files import write_atomically

from .relocator import Move


class Period(NamedTuple):
    """A period that has closed.

    Attributes:
        number: From 1.
        loss: Mean training loss, of its last part where ``loss_tail`` is less than 1; NaN if an iteration's was.
        moves: Carried out after it, in this order.
        previous_reward: Of the moves that opened it (PRO-VPT Eq. 8); None where there were none, or it is not known.
        distribution: Number of prompts in each block after the moves, L of them.
        block_idleness: Mean idleness of each block's prompts, L numbers, None where a block has none or it is not
            finite.
        diagnostics: Scalars of the allocator, such as the entropy of its policy in nats.
        num_dropped: Iterations whose gradients were not finite, and whose scores therefore do not count.
    """
    number: int
    loss: float
    moves: list[Move]
    previous_reward: float | None
    distribution: list[int]
    block_idleness: list[float | None]
    diagnostics: dict[str, float]
    num_dropped: int

    @property
    def skipped(self) -> bool:
        """Whether nothing could be decided, because a loss or all scores were not finite."""
        return not math.isfinite(self.loss) or not any(mean is not None for mean in self.block_idleness)


class RelocationLog:
    """A file with one JSON line for each period, or for each of several prompts that moved after it; only appended.

    A line has the keys ``period`` (from 1), ``iter`` (iterations trained when the period closed), ``loss`` (its mean
    training loss), ``prompt``, ``from``, ``to``, ``idleness`` (the relocation that closes it; null where nothing moved,
    and ``from`` or ``to`` null for a prompt that no block owned before or owns after), ``previous_reward`` (of the
    relocation that opened the period; null where there was none, or it cannot be known; several relocations share
    theirs, it is not divided), ``distribution`` (L prompt counts after all relocations of the period),
    ``block_idleness`` (L means over each block's prompts, null where it has none) and ``entropy`` (of the policy, in
    nats). Blocks and prompts count from 0. What is not finite is null.

    Args:
        path (str or Path): The file; its folder must exist when it is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, rows: Sequence[dict]) -> None:
        """Add rows, see ``rows_of``."""
        with self.path.open('a', encoding='utf-8') as file:
            file.write(_lines(rows))

    def restart(self, rows: Sequence[dict]) -> None:
        """Have these rows alone; who is killed meanwhile leaves the old file whole."""
        write_atomically(_lines(rows).encode(), self.path)


def rows_of(period: Period, iteration: int) -> list[dict]:
    """The rows of a period that closed after so many iterations, one for each move or one without any."""
    entropy = period.diagnostics.get('entropy') if period.moves else None
    moves: Sequence[tuple] = period.moves or [(None, ) * 4]
    return [{
        'period': period.number,
        'iter': iteration,
        'loss': _finite(period.loss),
        'prompt': prompt,
        'from': None if source == -1 else source,
        'to': None if target == -1 else target,
        'idleness': _finite(idleness),
        'previous_reward': _finite(period.previous_reward),
        'distribution': list(period.distribution),
        'block_idleness': [_finite(mean) for mean in period.block_idleness],
        'entropy': _finite(entropy),
    } for prompt, source, target, idleness in moves]


def read_rows(path: str | Path, last_period: int | None = None) -> list[dict]:
    """The rows of a log up to a period, as they are written today; without a last line that was cut off.

    Raises:
        OSError, ValueError: There is no such file, or it is no log.
    """
    lines = Path(path).read_text(encoding='utf-8-sig').splitlines(keepends=True)
    rows = with_previous_reward([json.loads(line) for line in lines if line.strip() and line.endswith('\n')])
    return [row for row in rows if last_period is None or row['period'] <= last_period]


def with_previous_reward(rows: Sequence[dict]) -> list[dict]:
    """Rows as they are written today. Older ones have ``reward``, their own, which was filled in one period later."""
    rewards = {row['period']: row['reward'] for row in rows if 'reward' in row}
    return [_renamed(row, rewards.get(row['period'] - 1)) if 'reward' in row else row for row in rows]


def _renamed(row: dict, previous: float | None) -> dict:
    """A row with ``previous_reward`` in the place of ``reward``."""
    return {('previous_reward' if key == 'reward' else key): (previous if key == 'reward' else value)
            for key, value in row.items()}


def _lines(rows: Sequence[dict]) -> str:
    return ''.join(json.dumps(row, allow_nan=False) + '\n' for row in rows)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
