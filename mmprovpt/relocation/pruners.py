"""Which prompt is pruned."""
from typing import Optional

import torch
from torch import Tensor

from .idleness import CRITERIA


def check_criterion(criterion: str) -> None:
    """Raise ValueError, naming the known ones, if there is no such criterion."""
    if criterion not in CRITERIA:
        raise ValueError(f'unknown criterion {criterion!r}; known are {", ".join(CRITERIA)}')


class IdlenessPruner:
    """Prune the idlest prompt, if it does harm (001 Eq. 3 and 5).

    Args:
        criterion (str): How idleness is estimated, a key of ``mmprovpt.relocation.CRITERIA``:
            ``'taylor'`` (the paper's), ``'taylor_norm'``, ``'gate'`` or ``'gate_fisher'``.
        verify_top (int): The so many idlest by that estimate are really taken away, one at a time,
            on a few held batches, and the choice is among them by what happens (METHOD § 3): one
            more forward than there are of them. 0: the estimate decides.
        verify_batches (int): Held batches per process, >= 1.

    Raises:
        ValueError: The criterion is unknown, or a number is out of its range.
    """

    def __init__(self, criterion: str = 'taylor', verify_top: int = 0, verify_batches: int = 2) -> None:
        check_criterion(criterion)
        if verify_top < 0 or verify_batches < 1:
            raise ValueError(f'verify_top must be at least 0 and verify_batches at least 1, but they are {verify_top} '
                             f'and {verify_batches}')
        self.criterion = criterion
        self.verify_top = verify_top
        self.verify_batches = verify_batches

    def prune(self, idleness: Tensor, candidates: Optional[Tensor] = None) -> Optional[int]:
        """Choose a prompt.

        Args:
            idleness (Tensor): Finite idleness of every prompt, (N,) float.
            candidates (Tensor, optional): Numbers of those to choose from, int64; None: all.

        Returns:
            int or None: argmax of the idleness where that is > 0; else None, for then every
            prompt lowers the loss. None, too, without candidates.
        """
        if candidates is not None and len(candidates) == 0:
            return None
        prompt = self.pick(idleness, torch.arange(len(idleness)) if candidates is None else candidates)
        return prompt if idleness[prompt] > 0 else None

    def pick(self, idleness: Tensor, candidates: Tensor) -> int:
        """The candidate that has to go if one must: the idlest."""
        return int(candidates[torch.argmax(idleness[candidates])])

    def state_dict(self) -> dict:
        """dict: Empty, for nothing is remembered."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a ``state_dict()``."""


class RandomPruner:
    """Prune any prompt, with the same probability (001 Table 3, Prn1); every period has a move.

    Args:
        criterion (str): How idleness is estimated all the same, for the policy's state and reward;
            as for ``IdlenessPruner``.
        seed (int): Seed of its generator.

    Raises:
        ValueError: The criterion is unknown.
    """

    def __init__(self, criterion: str = 'taylor', seed: int = 0) -> None:
        check_criterion(criterion)
        self.criterion = criterion
        self.verify_top = 0
        self.generator = torch.Generator().manual_seed(seed)

    def prune(self, idleness: Tensor, candidates: Optional[Tensor] = None) -> Optional[int]:
        """Choose a prompt; arguments as for ``IdlenessPruner``. None only without candidates."""
        candidates = torch.arange(len(idleness)) if candidates is None else candidates
        return self.pick(idleness, candidates) if len(candidates) else None

    def pick(self, idleness: Tensor, candidates: Tensor) -> int:
        """One of the candidates."""
        return int(candidates[torch.randint(len(candidates), (), generator=self.generator)])

    def state_dict(self) -> dict:
        """dict: The generator."""
        return dict(generator=self.generator.get_state())

    def load_state_dict(self, state: dict) -> None:
        """Continue from a ``state_dict()``."""
        self.generator.set_state(state['generator'].cpu())
