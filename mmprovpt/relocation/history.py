"""What was relocated, period by period."""
import copy
import json
import math
import os
from pathlib import Path
from typing import List, Optional, Union

from .relocator import Move


class RelocationHistory:
    """Rows of ``relocations.jsonl``, one per period, kept whole in memory and in checkpoints.

    A row has the keys ``period`` (from 1), ``iter`` (iterations trained when the period closed),
    ``loss`` (its mean training loss), ``prompt``, ``from``, ``to``, ``idleness`` (the relocation
    that closes it; null where nothing moved), ``reward`` (of this relocation; null until the next
    period has closed, and where it cannot be known) and ``distribution`` (L prompt counts after
    the relocation). Blocks and prompts count from 0. What is not finite is null.

    Attributes:
        initial (list[int], optional): Distribution before the first relocation.
        rows (list[dict]): The rows so far.
    """

    def __init__(self) -> None:
        self.initial: Optional[List[int]] = None
        self.rows: List[dict] = []

    def reward(self, reward: Optional[float]) -> None:
        """Give the latest relocation its reward, now that its period has closed."""
        if self.rows:
            self.rows[-1]['reward'] = _finite(reward)

    def add(self, iteration: int, loss: float, move: Optional[Move],
            distribution: List[int]) -> dict:
        """Append, and return, the row of the period that just closed."""
        prompt, source, target, idleness = move or (None, None, None, None)
        row = {
            'period': len(self.rows) + 1,
            'iter': iteration,
            'loss': _finite(loss),
            'prompt': prompt,
            'from': source,
            'to': target,
            'idleness': _finite(idleness),
            'reward': None,
            'distribution': list(distribution),
        }
        self.rows.append(row)
        return row

    @property
    def distributions(self) -> List[List[int]]:
        """list[list[int]]: The initial distribution, then the one after each period."""
        return [self.initial] + [row['distribution'] for row in self.rows]

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
