"""Allocators that learn from no state: uniform, by a signal, and Thompson sampling."""
import math

import torch
from torch import Tensor

from mmprovpt.errors import ConfigError

from .allocator import ALLOCATORS, Allocator, Signals, need_logits, to_cpu


@ALLOCATORS.register
class UniformAllocator(Allocator):
    """Every block with the same probability: what any other allocator has to beat.

    Args:
        num_blocks (int): Number of blocks L.
        seed (int): Seed of its generator.
    """

    def __init__(self, num_blocks: int, seed: int = 0) -> None:
        super().__init__(num_blocks)
        self.generator = torch.Generator().manual_seed(seed)

    def act(self, state: Tensor, signals: Signals = None) -> int:
        """Draw a block; see the base class."""
        return int(torch.randint(self.num_blocks, (), generator=self.generator))

    def state_dict(self) -> dict:
        """dict: Number of blocks and the generator."""
        return dict(super().state_dict(), generator=self.generator.get_state())

    def load_state_dict(self, state: dict) -> None:
        """Continue; see the base class."""
        super().load_state_dict(state)
        self.generator.set_state(to_cpu(state['generator']))


@ALLOCATORS.register
class NeedAllocator(UniformAllocator):
    r"""Grow where the gradient is largest, as RigL does for weights (Evci et al. 2020).

    Blocks are drawn with probability proportional to :math:`G_j^{1/T}`, G being the signal
    ``need``: the mean over block j's prompts of :math:`\|\partial\mathcal L/\partial n\|^2`. It
    learns nothing. The draw keeps one persistently needy block from getting everything, as the
    argmax would: a prompt that arrives does not lower a *mean* over prompts. A block of unknown
    need, such as one without prompts, counts as the geometric mean of the known.

    Args:
        num_blocks (int): Number of blocks L.
        temperature (float): T >= 0; 0 is the argmax (the first of equals).
        seed (int): Seed of its generator.

    Raises:
        ConfigError: An argument is out of its range.
    """

    signals = ('need', )

    def __init__(self, num_blocks: int, temperature: float = 1.0, seed: int = 0) -> None:
        super().__init__(num_blocks, seed)
        if not 0 <= temperature < math.inf:
            raise ConfigError(f'temperature must be in [0, inf), but is {temperature}')
        self.temperature = temperature

    def act(self, state: Tensor, signals: Signals = None) -> int:
        """Draw a block by its signal; see the base class."""
        logits = need_logits(signals, self.num_blocks)
        if self.temperature == 0:
            return int(logits.argmax())
        probs = torch.softmax(logits / self.temperature, dim=0)
        self.diagnostics['entropy'] = float(torch.special.entr(probs).sum())
        return int(torch.multinomial(probs, 1, generator=self.generator))


@ALLOCATORS.register
class ThompsonAllocator(UniformAllocator):
    r"""Thompson sampling in a Gaussian bandit over the blocks (PRO-VPT Table 3, D and F).

    Block j has an unknown mean reward :math:`\mu_j \sim N(m, \kappa^2\sigma^2)`. A period that
    gave x_j prompts to each block j is rewarded :math:`r \sim N(x^\top\mu, \sigma^2)`, so the
    posterior is the conjugate one of Bayesian linear regression, and with one prompt per period
    the familiar one of independent arms. With several it is the regression that shares the credit:
    no rule to split a reward is needed. Mean m per prompt and deviation σ are the empirical ones
    of the rewards so far, so nothing has a unit. A block with the largest of L draws from the
    posterior is chosen; prompts of one period are drawn independently.

    Args:
        num_blocks (int): Number of blocks L.
        prior_scale (float): κ > 0, how far arms differ beside the noise of a reward.
        decay (float): In (0, 1]: weight of a reward after each further one. 1 is the stationary
            bandit of the paper; less forgets, with a memory of 1 / (1 - decay) periods.
        seed (int): Seed of its generator.

    Raises:
        ConfigError: An argument is out of its range.
    """

    def __init__(self,
                 num_blocks: int,
                 prior_scale: float = 1.0,
                 decay: float = 1.0,
                 seed: int = 0) -> None:
        super().__init__(num_blocks, seed)
        if not 0 < prior_scale < math.inf:
            raise ConfigError(f'prior_scale must be in (0, inf), but is {prior_scale}')
        if not 0 < decay <= 1:
            raise ConfigError(f'decay must be in (0, 1], but is {decay}')
        self.prior_scale = prior_scale
        self.decay = decay
        # Sufficient statistics of the periods: Σ x xᵀ, Σ x r, and Σ of (1, r²).
        self.gram = torch.zeros(num_blocks, num_blocks, dtype=torch.float64)
        self.products = torch.zeros(num_blocks, dtype=torch.float64)
        self.moments = torch.zeros(2, dtype=torch.float64)
        self.counts = torch.zeros(num_blocks, dtype=torch.float64)  # x of the running period

    def posterior(self):
        """Posterior of the blocks' mean rewards, in units of the loss.

        Returns:
            tuple: Means (L,) and the Cholesky factor (L, L) of the *precision* over σ⁻², float64;
            the deviation σ, 1.0 as long as nothing has varied.
        """
        number, squares = self.moments.tolist()
        ones = torch.ones(self.num_blocks, dtype=torch.float64)
        prompts = self.gram @ ones  # Σ x s, with s = Σ_j x_j the prompts of a period
        mean = float(self.products.sum() / prompts.sum()) if number else 0.0
        centred = squares - 2 * mean * float(self.products.sum()) + mean**2 * float(prompts.sum())
        # Rounding may leave a tiny difference of equal rewards.
        sigma = math.sqrt(centred / number) if centred > 1e-12 * squares else 1.0
        precision = self.gram + torch.diag(ones) / self.prior_scale**2
        factor = torch.linalg.cholesky(precision)
        shift = torch.cholesky_solve((self.products - mean * prompts)[:, None], factor)[:, 0]
        return mean + shift, factor, sigma

    def act(self, state: Tensor, signals: Signals = None) -> int:
        """Draw from the posterior and take the best block; see the base class."""
        means, factor, sigma = self.posterior()
        noise = torch.randn(self.num_blocks, 1, generator=self.generator, dtype=torch.float64)
        draw = torch.linalg.solve_triangular(factor.T, noise, upper=True)[:, 0]
        block = int((means + sigma * draw).argmax())
        self.counts[block] += 1
        return block

    def observe(self, reward: float, next_state: Tensor, signals: Signals = None) -> None:
        """Update the posterior; see the base class.

        Raises:
            RuntimeError: There is no decision without a reward.
        """
        if not bool(self.counts.any()):
            raise RuntimeError('observe() without act(): no decision waits for a reward')
        self.gram = self.decay * self.gram + torch.outer(self.counts, self.counts)
        self.products = self.decay * self.products + reward * self.counts
        sample = torch.tensor([1.0, reward**2], dtype=torch.float64)
        self.moments = self.decay * self.moments + sample
        means, _, sigma = self.posterior()
        self.diagnostics.update(best_mean=float(means.max()), reward_deviation=sigma)
        self.forget()

    def forget(self) -> None:
        """Drop what was chosen and never rewarded."""
        self.counts = torch.zeros_like(self.counts)

    def state_dict(self) -> dict:
        """dict: Generator, statistics and what waits for its reward, copied."""
        return dict(
            super().state_dict(),
            gram=self.gram.clone(),
            products=self.products.clone(),
            moments=self.moments.clone(),
            counts=self.counts.clone())

    def load_state_dict(self, state: dict) -> None:
        """Continue; see the base class."""
        super().load_state_dict(state)
        for name in ('gram', 'products', 'moments', 'counts'):
            setattr(self, name, to_cpu(state[name]))
