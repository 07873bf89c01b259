"""What was relocated, period by period."""
import copy
import json
import math
import os
from pathlib import Path
from typing import List, Optional, Sequence, Union

from .relocator import Move


class RelocationHistory:
    """Rows of ``relocations.jsonl``, kept whole in memory and in checkpoints.

    A period has one row, or one for each of several relocated prompts.

    A row has the keys ``period`` (from 1), ``iter`` (iterations trained when the period closed),
    ``loss`` (its mean training loss), ``prompt``, ``from``, ``to``, ``idleness`` (the relocation
    that closes it; null where nothing moved, and ``from`` or ``to`` null for a prompt that no block
    owned before or owns after), ``reward`` (of this relocation; null until the next
    period has closed, and where it cannot be known; relocations of one period share theirs, it is
    not divided) and ``distribution`` (L prompt counts after all relocations of the period). Blocks
    and prompts count from 0. What is not finite is null.

    Attributes:
        initial (list[int], optional): Distribution before the first relocation.
        rows (list[dict]): The rows so far.
    """

    def __init__(self) -> None:
        self.initial: Optional[List[int]] = None
        self.rows: List[dict] = []

    def reward(self, reward: Optional[float]) -> None:
        """Give the latest relocations their reward, now that their period has closed."""
        for row in self.rows:
            if row['period'] == self.rows[-1]['period']:
                row['reward'] = _finite(reward)

    def add(self, iteration: int, loss: float, moves: Sequence[Move],
            distribution: List[int]) -> List[dict]:
        """Append, and return, the rows of the period that just closed."""
        period = self.rows[-1]['period'] + 1 if self.rows else 1
        rows = [{
            'period': period,
            'iter': iteration,
            'loss': _finite(loss),
            'prompt': prompt,
            'from': _block(source),
            'to': _block(target),
            'idleness': _finite(idleness),
            'reward': None,
            'distribution': list(distribution),
        } for prompt, source, target, idleness in moves or [(None, ) * 4]]
        self.rows += rows
        return rows

    @property
    def distributions(self) -> List[List[int]]:
        """list[list[int]]: The initial distribution, then the one after each period."""
        return [self.initial] + [row['distribution'] for row in self.periods]

    @property
    def periods(self) -> List[dict]:
        """list[dict]: The last row of each period."""
        return list({row['period']: row for row in self.rows}.values())

    def write(self, path: Union[str, Path]) -> None:
        """Write the file anew; who is killed meanwhile leaves the old one whole."""
        path = Path(path)
        temporary = path.with_name(f'.{path.name}.tmp')
        lines = [json.dumps(row, allow_nan=False) + '\n' for row in self.rows]
        temporary.write_text(''.join(lines), encoding='utf-8')
        os.replace(temporary, path)

    def state_dict(self) -> dict:
        """dict: Plain Python types, copied."""
        return copy.deepcopy(dict(initial=self.initial, rows=self.rows))

    def load_state_dict(self, state: dict) -> None:
        """Continue from a ``state_dict()``."""
        state = copy.deepcopy(state)
        self.initial, self.rows = state['initial'], state['rows']


def _finite(value: Optional[float]) -> Optional[float]:
    return value if value is not None and math.isfinite(value) else None


def _block(block: Optional[int]) -> Optional[int]:
    return None if block == -1 else block
