"""What every allocator has: who gets the pruned prompt."""
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor

Signals = Optional[Dict[str, Tensor]]  # (L,) each, by name


class Allocator:
    """Chooses the block that gets a pruned prompt, and learns from what came of it.

    A period asks ``act`` once per relocated prompt and, when its reward is known, ``observe`` once;
    a reward that can never be known ends in ``forget``. Everything random comes from an own
    generator. ``state_dict()`` has all that decides, as plain tensors and Python types.

    Args:
        num_blocks (int): Number of blocks L, >= 1.

    Attributes:
        chooses_source (bool): Whether an action is a pair ``source * L + target`` instead of a
            target, so that the allocator says first which block loses a prompt.
        signals (tuple[str]): Names of the signals that ``act`` and ``observe`` must be given.
        diagnostics (dict[str, float]): Scalars to be logged.

    Raises:
        ValueError: An argument is out of its range.
    """

    chooses_source = False
    signals: Tuple[str, ...] = ()

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f'num_blocks must be at least 1, but is {num_blocks}')
        self.num_blocks = num_blocks
        self.diagnostics: Dict[str, float] = {}

    def act(self, state: Tensor, signals: Signals = None) -> int:
        """Choose a block.

        Args:
            state (Tensor): State of METHOD § 4, (3L,) float32.
            signals (dict, optional): A (L,) float tensor by name; see ``block_signal``.

        Returns:
            int: Block in [0, L), or a pair where ``chooses_source``; -1 takes the prompt out.
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
            ValueError: It is about another number of blocks.
        """
        if state['num_blocks'] != self.num_blocks:
            raise ValueError(f'the policy was trained for {state["num_blocks"]} blocks, '
                             f'but the model has {self.num_blocks}')


def block_signal(signals: Signals, name: str, num_blocks: int) -> Tensor:
    r"""A signal per block as logits: no unit, mean 0, and 0 where nothing is known.

    ``need``, which is positive, becomes its log less the mean: a policy that adds w times this to its logits favours a
    block by (need / geometric mean)^w; what is below a millionth of the largest counts as that millionth. ``virtual``,
    a gain of either sign, becomes its deviation from the mean in standard deviations. A value that is not finite
    (a block without prompts has no gradient) counts as unknown, and neutral.

    Args:
        signals (dict, optional): (L,) float tensors by name.
        name (str): Which of them, ``'need'`` or ``'virtual'``.
        num_blocks (int): Number of blocks L.

    Returns:
        Tensor: (L,) float32 on the CPU, finite.

    Raises:
        ValueError: The signal is missing or has another length, or a need is negative.
    """
    if signals is None or name not in signals:
        given = 'none' if not signals else ', '.join(signals)
        raise ValueError(f'the allocator needs the signal {name!r}, but those given are: {given}')
    values = signals[name].detach().double().cpu()
    if values.shape != (num_blocks, ):
        raise ValueError(f'signal {name!r} must have one value for each of {num_blocks} blocks, '
                         f'but its shape is {tuple(values.shape)}')
    logits = torch.zeros(num_blocks, dtype=torch.float64)
    known = torch.isfinite(values)
    if bool(known.any()):
        logits[known] = _SCALES[name](values[known])
    return logits.float()


def _log_ratio(need: Tensor) -> Tensor:
    if bool((need < 0).any()):
        raise ValueError(f"signal 'need' must not be negative, but is {need.tolist()}")
    if need.max() == 0:
        return torch.zeros_like(need)
    logs = (need / need.max()).clamp(min=1e-6).log()
    return logs - logs.mean()


def _standardised(gain: Tensor) -> Tensor:
    centred = gain - gain.mean()
    spread = centred.square().mean().sqrt()
    return centred / spread if spread > 0 else torch.zeros_like(gain)


_SCALES = dict(need=_log_ratio, virtual=_standardised)
SIGNALS = tuple(_SCALES)


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
