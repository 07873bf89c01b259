"""The two noisy parts of the reward (PRO-VPT Eq. 8): a period's loss and the fall that is due anyway."""

import torch
from torch import Tensor

from mmprovpt.errors import ConfigError


class PeriodLoss:
    """Mean training loss over a period, or over its last part.

    Over the whole period (the paper) each image of an epoch counts once, which is the least noisy;
    but the loss then also holds the iterations before a moved prompt had been tuned. The last part
    sees more of what the move is worth and more noise: fewer iterations, and a random part of the
    images. What is added is not waited for.

    Args:
        tail (float): In (0, 1]: the last part of the period's iterations that counts.
        device (str or torch.device): Where losses come from.

    Attributes:
        sums (Tensor): (2,) float32: summed loss and number of counted iterations. Flat, so that an
            all-reduce merges processes.

    Raises:
        ConfigError: An argument is out of its range.
    """

    def __init__(self, tail: float = 1.0, device: str | torch.device = 'cpu') -> None:
        if not 0 < tail <= 1:
            raise ConfigError(f'loss_tail must be in (0, 1], but is {tail}')
        self.tail = tail
        self.sums = torch.zeros(2, dtype=torch.float32, device=device)

    def add(self, loss: float | Tensor, position: int, length: int) -> None:
        """Take an iteration into account; never waits for the device.

        Args:
            loss (float or Tensor): Its unscaled loss, one element.
            position (int): Iterations of the period before it.
            length (int): Iterations of the period. At least its last one always counts.
        """
        if position < min((1 - self.tail) * length, length - 1):
            return
        loss = torch.as_tensor(loss, dtype=torch.float32, device=self.sums.device)
        loss = loss.detach().reshape(1)
        self.sums += torch.cat([loss, torch.ones_like(loss)])

    def compute(self) -> tuple[float, int]:
        """Mean loss since the last reset, NaN without any, and the iterations behind it; waits."""
        total, count = self.sums.cpu()
        return (float(total / count) if count > 0 else float('nan')), int(count)

    def reset(self) -> None:
        """Start a new period."""
        self.sums.zero_()

    def state_dict(self) -> dict:
        """dict: The sums of the running period, on the CPU."""
        return dict(sums=self.sums.detach().cpu().clone())

    def load_state_dict(self, state: dict) -> None:
        """Continue the period of ``state``."""
        self.sums.copy_(state['sums'])


class RewardBaseline:
    """What a reward was to be expected to be, from those before it.

    The training loss falls whatever is moved, so rewards are positive while it does; only what
    exceeds the usual says something about an action. The expectation knows past rewards alone, so
    it does not depend on the action and biases no policy gradient. The first reward is its own
    expectation.

    Args:
        kind (str, optional): ``'mean'``: mean of the last ``window`` rewards, which lags while the fall slows down.
            None: 0, the paper.
        window (int): Rewards that count, >= 1.

    Raises:
        ConfigError: An argument is out of its range.
    """

    def __init__(self, kind: str | None = None, window: int = 10) -> None:
        if kind == 'trend':
            raise ConfigError("reward_baseline has no 'trend' any more, which added more noise than 'mean' and gained "
                              "nothing: use 'mean'")
        if kind not in (None, 'mean'):
            raise ConfigError(f"reward_baseline must be None or 'mean', but is {kind!r}")
        if window < 1:
            raise ConfigError(f'window must be at least 1, but is {window}')
        self.kind = kind
        self.window = window
        self.rewards: list[float] = []

    def advantage(self, reward: float) -> float:
        """float: The reward, less the one that was expected; then it counts among the past."""
        if self.kind is None:
            return reward
        expected = sum(self.rewards) / len(self.rewards) if self.rewards else reward
        self.rewards = (self.rewards + [reward])[-self.window:]
        return reward - expected

    def state_dict(self) -> dict:
        """dict: The past rewards that count."""
        return dict(rewards=list(self.rewards))

    def load_state_dict(self, state: dict) -> None:
        """Continue from a ``state_dict()``."""
        self.rewards = list(state['rewards'])
