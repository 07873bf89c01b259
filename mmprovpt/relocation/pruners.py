"""Which prompt is pruned."""
from typing import Optional

import torch
from torch import Tensor

from .criteria import CRITERIA


def check_criterion(criterion: str) -> None:
    """Raise ValueError, naming the known ones, if there is no such criterion."""
    if criterion not in CRITERIA:
        raise ValueError(f'unknown criterion {criterion!r}; known are {", ".join(CRITERIA)}')


class IdlenessPruner:
    """Prune the idlest prompt, if it does harm (001 Eq. 3 and 5).

    Args:
        criterion (str): How idleness is estimated, a key of ``mmprovpt.relocation.CRITERIA``:
            ``'taylor'`` (the paper's), ``'taylor_norm'``, ``'gate'`` or ``'gate_fisher'``. The default is the one that
            agrees best with true removal (docs/evidence/idleness.md).
        verify_top (int): The so many idlest by that estimate are really taken away, one at a time,
            on a few held batches, and the choice is among them by what happens (METHOD § 3): one
            more forward than there are of them. 0: the estimate decides.
        verify_batches (int): Held batches per process, >= 1.
        score_interval (int, optional): Iterations from one that is scored to the next, >= 1. None: 1, but 4 for gates,
            which cost more (see ``mmprovpt.relocation.CRITERIA``).

    Raises:
        ValueError: The criterion is unknown, or a number is out of its range.
    """

    def __init__(self, criterion: str = 'gate_fisher', verify_top: int = 0, verify_batches: int = 2,
                 score_interval: Optional[int] = None) -> None:
        check_criterion(criterion)
        if score_interval is not None and score_interval < 1:
            raise ValueError(f'score_interval must be at least 1, but is {score_interval}')
        if verify_top < 0 or verify_batches < 1:
            raise ValueError(f'verify_top must be at least 0 and verify_batches at least 1, but they are {verify_top} '
                             f'and {verify_batches}')
        self.criterion = criterion
        self.verify_top = verify_top
        self.verify_batches = verify_batches
        self.score_interval = score_interval

    def candidates(self, block_index: Tensor) -> Tensor:
        """Numbers, int64, of the prompts that may be chosen: those that a block owns.

        Args:
            block_index (Tensor): Block of every prompt, (N,) int64; -1 for one that no block owns.
        """
        return (block_index >= 0).nonzero().flatten()

    def prune(self, idleness: Tensor, candidates: Optional[Tensor] = None) -> Optional[int]:
        """Choose a prompt.

        Args:
            idleness (Tensor): Finite idleness of every prompt, (N,) float.
            candidates (Tensor, optional): Numbers of those to choose from, int64; None: all.

        Returns:
            int or None: argmax of the idleness where that is > 0; else None, for then every
            prompt lowers the loss. None, too, without candidates.
        """
        prompt = self.pick(idleness, candidates)
        return prompt if prompt is not None and idleness[prompt] > 0 else None

    def pick(self, idleness: Tensor, candidates: Optional[Tensor] = None) -> Optional[int]:
        """The candidate that has to go if one must, the idlest; arguments as for ``prune``."""
        if candidates is None:
            return int(torch.argmax(idleness))
        return int(candidates[torch.argmax(idleness[candidates])]) if len(candidates) else None

    def state_dict(self) -> dict:
        """dict: Empty, for nothing is remembered."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a ``state_dict()``."""


class ShrinkingPruner(IdlenessPruner):
    """Prune the idlest prompt, whatever its sign, until a share of all is left (001 Table 3, A and B).

    With :class:`~mmprovpt.relocation.RetireAllocator`, which takes prompts out, it searches a sub-distribution of the
    initial one, as pruning-based methods do.

    Args:
        keep (float): Share of the prompts that stay, in [0, 1].
        **kwargs: Of :class:`IdlenessPruner`.

    Raises:
        ValueError: A number is out of its range, or the criterion unknown.
    """

    def __init__(self, keep: float, criterion: str = 'gate_fisher', verify_top: int = 0, verify_batches: int = 2,
                 score_interval: Optional[int] = None) -> None:
        super().__init__(criterion, verify_top, verify_batches, score_interval)
        if not 0 <= keep <= 1:
            raise ValueError(f'keep must be in [0, 1], but is {keep}')
        self.keep = keep

    def candidates(self, block_index: Tensor) -> Tensor:
        """Those that a block owns, while there are more than stay; see the base class."""
        owned = super().candidates(block_index)
        return owned if len(owned) > round(self.keep * len(block_index)) else owned[:0]

    def prune(self, idleness: Tensor, candidates: Optional[Tensor] = None) -> Optional[int]:
        """The idlest candidate; None without candidates."""
        return self.pick(idleness, candidates)


class SparePruner(IdlenessPruner):
    """Take no prompt away, but a new one out of the spare ones: adding-based ADO (001 App. C).

    The pool must have been built with ``num_spare``; when none is left, nothing moves any more.

    Args:
        criterion (str): How idleness is estimated for the policy's state; as for :class:`IdlenessPruner`.

    Raises:
        ValueError: The criterion is unknown.
    """

    def __init__(self, criterion: str = 'gate_fisher') -> None:
        super().__init__(criterion)

    def candidates(self, block_index: Tensor) -> Tensor:
        """Those that no block owns; see the base class."""
        return (block_index < 0).nonzero().flatten()

    def prune(self, idleness: Tensor, candidates: Optional[Tensor] = None) -> Optional[int]:
        """The first candidate, for they are alike; None without candidates."""
        return self.pick(idleness, candidates)


class RandomPruner(IdlenessPruner):
    """Prune any prompt, with the same probability (001 Table 3, Prn1); every period has a move.

    Args:
        criterion (str): How idleness is estimated all the same, for the policy's state and reward;
            as for :class:`IdlenessPruner`.
        seed (int): Seed of its generator.

    Raises:
        ValueError: The criterion is unknown.
    """

    def __init__(self, criterion: str = 'gate_fisher', seed: int = 0) -> None:
        super().__init__(criterion)
        self.generator = torch.Generator().manual_seed(seed)

    def prune(self, idleness: Tensor, candidates: Optional[Tensor] = None) -> Optional[int]:
        """Choose a prompt; arguments as for the base class. None only without candidates."""
        return self.pick(idleness, candidates)

    def pick(self, idleness: Tensor, candidates: Optional[Tensor] = None) -> Optional[int]:
        """One of the candidates."""
        candidates = torch.arange(len(idleness)) if candidates is None else candidates
        if not len(candidates):
            return None
        return int(candidates[torch.randint(len(candidates), (), generator=self.generator)])

    def state_dict(self) -> dict:
        """dict: The generator."""
        return dict(generator=self.generator.get_state())

    def load_state_dict(self, state: dict) -> None:
        """Continue from a ``state_dict()``."""
        self.generator.set_state(state['generator'].cpu())
