"""What every allocator has: who gets the pruned prompt."""

import torch
from torch import Tensor

from mmprovpt.errors import ConfigError
from mmprovpt.kinds import Kinds

ALLOCATORS = Kinds('allocator')
ALLOCATORS.gone.update(
    VirtualAllocator='it was no better than the others and cost a backward pass for each move: use PPOAllocator or '
    'NeedAllocator',
    JointPPOAllocator='an ablation of the paper: import benchmarks.table3.ablations by custom_imports',
    RetireAllocator='an ablation of the paper: import benchmarks.table3.ablations by custom_imports')

Signals = dict[str, Tensor] | None  # (L,) each, by name


class Allocator:
    """Chooses the block that gets a pruned prompt, and learns from what came of it.

    A period asks ``act`` once per relocated prompt and, when its reward is known, ``observe`` once;
    a reward that can never be known ends in ``forget``. Everything random comes from an own
    generator. ``state_dict()`` has all that decides, as plain tensors and Python types.

    Args:
        num_blocks (int): Number of blocks L, >= 1.

    Attributes:
        signals (tuple[str]): Names of the signals that ``act`` and ``observe`` must be given: ``'need'``, or none.
        relocator_type (type, optional): A kind of :class:`~mmprovpt.relocation.Relocator` that this allocator needs,
            for actions that are more than a block.
        diagnostics (dict[str, float]): Scalars to be logged.

    Raises:
        ConfigError: An argument is out of its range.
    """

    signals: tuple[str, ...] = ()
    relocator_type: type | None = None

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ConfigError(f'num_blocks must be at least 1, but is {num_blocks}')
        self.num_blocks = num_blocks
        self.diagnostics: dict[str, float] = {}

    def act(self, state: Tensor, signals: Signals = None) -> int:
        """Choose a block.

        Args:
            state (Tensor): See :func:`~mmprovpt.relocation.relocator.policy_state`, (3L,) float32.
            signals (dict, optional): A (L,) float tensor by name.

        Returns:
            int: Block in [0, L); -1 takes the prompt out.
        """
        raise TypeError(f'{type(self).__name__} does not say how it chooses a block')

    def observe(self, reward: float, next_state: Tensor, signals: Signals = None) -> None:
        """Learn from the reward of all that was chosen since the last one; not all do.

        Args:
            reward (float): Finite reward of the period, in units of the loss.
            next_state (Tensor): State after the period, (3L,) float32.
            signals (dict, optional): Signals after the period.
        """

    def forget(self) -> None:
        """Drop what was chosen and never rewarded."""

    def state_dict(self) -> dict:
        """dict: All that decides from here on, copied."""
        return dict(num_blocks=self.num_blocks)

    def load_state_dict(self, state: dict) -> None:
        """Continue from a ``state_dict()``, whatever device its tensors were mapped to.

        Raises:
            ConfigError: It is about another number of blocks.
        """
        if state['num_blocks'] != self.num_blocks:
            raise ConfigError(f'the policy was trained for {state["num_blocks"]} blocks, '
                              f'but the model has {self.num_blocks}')


def need_logits(signals: Signals, num_blocks: int) -> Tensor:
    """The signal ``need`` as logits: log need less its mean, so that it has no unit; 0 where nothing is known.

    A policy whose logits are w times this favours a block by (need / geometric mean)^w. What is below a millionth of
    the largest counts as that millionth. A value that is not finite (a block without prompts has no gradient) counts
    as unknown, and neutral.

    Args:
        signals (dict, optional): (L,) float tensors by name.
        num_blocks (int): Number of blocks L.

    Returns:
        Tensor: (L,) float32 on the CPU, finite.

    Raises:
        ValueError: There is no need, it has another length, or is negative.
    """
    if signals is None or 'need' not in signals:
        given = 'none' if not signals else ', '.join(signals)
        raise ValueError(f"the allocator needs the signal 'need', but those given are: {given}")
    need = signals['need'].detach().double().cpu()
    if need.shape != (num_blocks, ):
        raise ValueError(f"signal 'need' must have one value for each of {num_blocks} blocks, "
                         f'but its shape is {tuple(need.shape)}')
    if bool((need < 0).any()):
        raise ValueError(f"signal 'need' must not be negative, but is {need.tolist()}")
    logits, known = torch.zeros_like(need), torch.isfinite(need)
    if bool(known.any()) and need[known].max() > 0:
        logs = (need[known] / need[known].max()).clamp(min=1e-6).log()
        logits[known] = logs - logs.mean()
    return logits.float()


def to_cpu(value):
    """Copy of nested dicts, lists and tuples with every tensor on the CPU.

    A checkpoint that is mapped to an accelerator takes generator states and policies along.
    """
    if isinstance(value, Tensor):
        return value.detach().to('cpu', copy=True)
    if isinstance(value, dict):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_cpu(item) for item in value)
    return value
