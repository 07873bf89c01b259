"""What is drawn of a run with relocation, from its log."""
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmprovpt.relocation.history import Period, rows_of, with_previous_reward

# Without these a line is no row of relocations.jsonl.
_KEYS = ('period', 'from', 'to', 'distribution')


class LogError(ValueError):
    """A file that cannot be drawn; the message says why and what to do."""


class Run(NamedTuple):
    """P periods of a run over L blocks. What is not known is NaN.

    Attributes:
        name: Title.
        counts: (L, P + 1) int, prompts per block; column p is the distribution after the relocation that closes
            period p, column 0 the initial one.
        idleness: (L, P) float, mean idleness of each block's prompts in each period, in units of the loss.
        rewards: (P,) float, reward of the relocation that closes each period (PRO-VPT Eq. 8), in units of the loss; of
            the last it is not known.
        entropy: (P,) float, entropy of the policy at that relocation, in nats.
        warning: What is wrong with the log, if it can be drawn all the same.
    """
    name: str
    counts: np.ndarray
    idleness: np.ndarray
    rewards: np.ndarray
    entropy: np.ndarray
    warning: str | None = None


def run_of(initial: Sequence[int], rows: Sequence[dict], name: str = '', warning: str | None = None) -> Run:
    """A run from the rows of its log.

    Args:
        initial: L counts, the distribution before the first relocation.
        rows: See :class:`~mmprovpt.relocation.RelocationLog`; ``block_idleness`` and ``entropy`` may be missing, and
            the rewards may be those of older logs.
        name: Title.
        warning: See :class:`Run`.
    """
    # The rows of a period differ in what is not drawn.
    rows = list({row['period']: row for row in with_previous_reward(rows)}.values())
    # What a period's relocation was worth says the next one.
    rewards = [row.get('previous_reward') for row in rows[1:]] + [None] * bool(rows)
    blocks = len(initial)
    idleness = [row.get('block_idleness') or [None] * blocks for row in rows]
    return Run(
        name,
        np.array([initial, *(row['distribution'] for row in rows)]).T,
        _floats(idleness, (len(rows), blocks)).T,
        _floats(rewards, (len(rows), )),
        _floats([row.get('entropy') for row in rows], (len(rows), )), warning)


def run_of_periods(periods: Sequence[Period], name: str = '') -> Run:
    """A run in a loop of your own, from what ``RelocationSession`` returned when its periods closed, one or more."""
    rows = [row for period in periods for row in rows_of(period, period.number)]
    return run_of(_initial(rows), rows, name)


def read_log(path: str | Path, name: str | None = None) -> Run:
    """A run from its ``relocations.jsonl``.

    A last line that was cut off (whoever wrote it was killed) is left out, and the warning says so.

    Args:
        path: The log.
        name: Title; by default the path.

    Raises:
        LogError: If there is no such file, or it holds no row, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise LogError(f'no such file: {path} (looked for: {path.absolute()})')
    try:
        lines = [line for line in path.read_text(encoding='utf-8-sig').split('\n') if line.strip()]
    except UnicodeDecodeError as error:
        raise LogError(f'{path} is not a relocation log: it is not text') from error
    rows, warning = [], None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines) or not rows:
                raise LogError(f'{path} is not a relocation log: line {number} is no JSON ({error})') from error
            warning = f'{path}: line {number}, the last, is cut off; drawn without it'
            break
        _check(row, rows, path, number)
        rows.append(row)
    if not rows:
        raise LogError(f'{path} is empty: no period has closed in this run')
    return run_of(_initial(rows), rows, str(path) if name is None else name, warning)


def _check(row, rows: list[dict], path: Path, number: int) -> None:
    missing = [key for key in _KEYS if not isinstance(row, dict) or key not in row]
    if not isinstance(row, dict) or not {'reward', 'previous_reward'} & set(row):
        missing.append('previous_reward')
    if missing:
        raise LogError(f'{path} is not a relocation log: line {number} has no {", ".join(missing)}')
    if rows and len(row['distribution']) != len(rows[0]['distribution']):
        raise LogError(f'{path}: line {number} is about {len(row["distribution"])} blocks, but line 1 is about '
                       f'{len(rows[0]["distribution"])}: were the logs of two runs joined?')


def _initial(rows: Sequence[dict]) -> list[int]:
    """The distribution before the relocations of the first period (the log does not hold it)."""
    first = [row for row in rows if row['period'] == rows[0]['period']]
    came, left = (Counter(row[key] for row in first) for key in ('to', 'from'))
    return [count + left[block] - came[block] for block, count in enumerate(first[0]['distribution'])]


def _floats(values: Sequence, shape: tuple) -> np.ndarray:
    """Floats with NaN for null."""
    return np.array(values, dtype=float).reshape(shape)  # NumPy makes NaN of None
