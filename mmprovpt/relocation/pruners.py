"""Which prompt is pruned."""

import torch
from torch import Tensor

from mmprovpt.errors import ConfigError
from mmprovpt.kinds import Kinds

from .criteria import CRITERIA

PRUNERS = Kinds('pruner')
PRUNERS.gone.update(dict.fromkeys(
    ('ShrinkingPruner', 'SparePruner'),
    'an ablation of the paper: import benchmarks.table3.ablations by custom_imports'))


def check_criterion(criterion: str) -> None:
    """Raise ConfigError, naming the known ones, if there is no such criterion."""
    if criterion not in CRITERIA:
        raise ConfigError(f'unknown criterion {criterion!r}; known are {", ".join(CRITERIA)}')


@PRUNERS.register
class IdlenessPruner:
    """Prune the idlest prompt, if it does harm (PRO-VPT Eq. 3 and 5).

    Args:
        criterion (str): How idleness is estimated, a key of ``mmprovpt.relocation.CRITERIA``:
            ``'taylor'`` (the paper's), ``'taylor_norm'``, ``'gate'`` or ``'gate_fisher'``. The default is the one that
            agrees best with true removal (docs/evidence/idleness.md).
        verify_top (int): The so many idlest by that estimate are really taken away, one at a time,
            on a few held batches, and the choice is among them by what happens: one more forward than there are
            of them. 0: the estimate decides.
        verify_batches (int): Held batches per process, >= 1.
        score_interval (int, optional): Iterations from one that is scored to the next, >= 1. None: 1, but 4 for gates,
            which cost more (see ``mmprovpt.relocation.CRITERIA``).

    Raises:
        ConfigError: The criterion is unknown, or a number is out of its range.
    """

    def __init__(self, criterion: str = 'gate_fisher', verify_top: int = 0, verify_batches: int = 2,
                 score_interval: int | None = None) -> None:
        check_criterion(criterion)
        if score_interval is not None and score_interval < 1:
            raise ConfigError(f'score_interval must be at least 1, but is {score_interval}')
        if verify_top < 0 or verify_batches < 1:
            raise ConfigError(f'verify_top must be at least 0 and verify_batches at least 1, but they are {verify_top} '
                              f'and {verify_batches}')
        self.criterion = criterion
        self.verify_top = verify_top
        self.verify_batches = verify_batches
        self.score_interval = score_interval

    def eligible(self, block_index: Tensor) -> Tensor:
        """Numbers, int64, of the prompts that may be chosen: those that a block owns.

        Args:
            block_index (Tensor): Block of every prompt, (N,) int64; -1 for one that no block owns.
        """
        return (block_index >= 0).nonzero().flatten()

    def candidates(self, idleness: Tensor, block_index: Tensor) -> Tensor:
        """Numbers, int64, of the ``verify_top`` idlest that may be chosen, the idlest first; arguments as elsewhere."""
        eligible = self.eligible(block_index)
        return eligible[idleness[eligible].topk(min(self.verify_top, len(eligible))).indices]

    def prune(self, idleness: Tensor, eligible: Tensor | None = None) -> int | None:
        """Choose a prompt.

        Args:
            idleness (Tensor): Finite idleness of every prompt, (N,) float.
            eligible (Tensor, optional): Numbers of those to choose from, int64; None: all.

        Returns:
            int or None: argmax of the idleness where that is > 0; else None, for then every
            prompt lowers the loss. None, too, where none is eligible.
        """
        prompt = self.pick(idleness, eligible)
        return prompt if prompt is not None and idleness[prompt] > 0 else None

    def pick(self, idleness: Tensor, eligible: Tensor | None = None) -> int | None:
        """The one that has to go if one must, the idlest; arguments as for ``prune``."""
        if eligible is None:
            return int(torch.argmax(idleness))
        return int(eligible[torch.argmax(idleness[eligible])]) if len(eligible) else None

    def state_dict(self) -> dict:
        """dict: Empty, for nothing is remembered."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a ``state_dict()``."""


@PRUNERS.register
class RandomPruner(IdlenessPruner):
    """Prune any prompt, with the same probability (PRO-VPT Table 3, D and E); every period has a move.

    Args:
        criterion (str): How idleness is estimated all the same, for the policy's state and reward;
            as for :class:`IdlenessPruner`.
        seed (int): Seed of its generator.

    Raises:
        ConfigError: The criterion is unknown.
    """

    def __init__(self, criterion: str = 'gate_fisher', seed: int = 0) -> None:
        super().__init__(criterion)
        # Another stream than an allocator of the same seed has: who draws first a prompt and then a block by the same
        # numbers sends each prompt to one and the same block, for both are remainders of them.
        self.generator = torch.Generator().manual_seed(seed ^ 2**31)  # of 32 bits

    def prune(self, idleness: Tensor, eligible: Tensor | None = None) -> int | None:
        """Choose a prompt; arguments as for the base class. None only where none is eligible."""
        return self.pick(idleness, eligible)

    def pick(self, idleness: Tensor, eligible: Tensor | None = None) -> int | None:
        """One of those that are eligible."""
        eligible = torch.arange(len(idleness)) if eligible is None else eligible
        if not len(eligible):
            return None
        return int(eligible[torch.randint(len(eligible), (), generator=self.generator)])

    def state_dict(self) -> dict:
        """dict: The generator."""
        return dict(generator=self.generator.get_state())

    def load_state_dict(self, state: dict) -> None:
        """Continue from a ``state_dict()``."""
        self.generator.set_state(state['generator'].cpu())
