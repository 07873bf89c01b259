"""Which prompt is pruned."""
from typing import Optional

import torch
from torch import Tensor

CRITERIA = ('taylor', )


class IdlenessPruner:
    """Prune the idlest prompt, if it does harm (001 Eq. 3 and 5).

    Args:
        criterion (str): How idleness is measured; ``'taylor'`` is
            :class:`~mmprovpt.relocation.idleness.TaylorIdleness`.

    Raises:
        ValueError: The criterion is unknown.
    """

    def __init__(self, criterion: str = 'taylor') -> None:
        if criterion not in CRITERIA:
            raise ValueError(f'unknown criterion {criterion!r}; known are {", ".join(CRITERIA)}')
        self.criterion = criterion

    def prune(self, idleness: Tensor) -> Optional[int]:
        """Choose a prompt.

        Args:
            idleness (Tensor): Finite idleness of every prompt, (N,) float.

        Returns:
            int or None: argmax of the idleness where that is > 0; else None, for then every
            prompt lowers the loss.
        """
        prompt = int(torch.argmax(idleness))
        return prompt if idleness[prompt] > 0 else None
