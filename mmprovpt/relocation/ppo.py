"""PPO-Clip for the block that gets the pruned prompt."""
import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprovpt.errors import ConfigError
from mmprovpt.kinds import check_choice

from .allocator import ALLOCATORS, Allocator, Signals, to_cpu


class Transition(NamedTuple):
    """One decision and what came of it; ``period`` counts from 0 within the rollout. States are (3L,) float32."""
    state: Tensor
    action: int
    log_prob: float
    reward: float
    next_state: Tensor
    period: int


NORMALISE = ('running', 'rollout')
INITS: dict[str, float | None] = dict(small_head=0.01, torch=None)


def mlp(sizes: tuple[int, ...], head_gain: float | None, generator: torch.Generator) -> nn.Sequential:
    """Tanh MLP, drawn from ``generator`` alone.

    Weights are N(0, gain² / fan_in) and biases 0; without a gain for the head both are as PyTorch draws linear layers,
    uniform in ±1 / sqrt(fan_in).
    """
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:])):
        is_head = index == len(sizes) - 2
        # nn.Linear's own initialisation would draw from training's global generator.
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=torch.float32)
        gain = head_gain if is_head and head_gain is not None else 1.0
        bound = 1 / math.sqrt(fan_in)
        with torch.no_grad():
            if head_gain is None:
                linear.weight.uniform_(-bound, bound, generator=generator)
                linear.bias.uniform_(-bound, bound, generator=generator)
            else:
                linear.weight.normal_(0, gain * bound, generator=generator)
                linear.bias.zero_()
        layers += [linear] if is_head else [linear, nn.Tanh()]
    return nn.Sequential(*layers)


@ALLOCATORS.register
class PPOAllocator(Allocator):
    r"""PPO-Clip over the L blocks (PRO-VPT § 3.3, Eq. vi-vii, App. F).

    Actor and critic are MLPs 3L-64-64-{L, 1} with tanh; 13,901 parameters at L = 12. The paper
    gives learning rates, γ and the clip; the other defaults are ours, chosen for a policy that
    sees one transition per period and about a hundred in its life.

    The task has no terminal state, so a rollout's returns end in the critic's value of the last
    next state: :math:`G_t = r_t + \gamma G_{t+1}, G_T = V(s_T)`; the advantage is
    :math:`A_t = G_t - V(s_t)`. Both are fixed before the epochs of an update. Every epoch takes one
    Adam step per network on the whole rollout.

    Several prompts in one period are decisions taken in parallel: each is credited with the whole
    reward r of the period and the same next state. That is unbiased: what the other prompts did is
    independent of this one's action given its state, so the expectation of
    :math:`\nabla\log\pi(a_k)\, r` is the gradient of the expected reward of the period. To split r
    evenly would divide the same number by a constant, which the normalisation undoes. The price is
    noise: a decision's credit varies with the actions of the others.

    Args:
        num_blocks (int): Number of blocks L.
        lr_actor (float): Adam's learning rate for the actor.
        lr_critic (float): Adam's learning rate for the critic.
        gamma (float): Discount in [0, 1].
        clip (float): Range of the probability ratio, 1 ± clip.
        hidden (int): Units of both hidden layers.
        horizon (int): Rewarded periods per update. In a simulated 12-armed bandit, the last 30 of 100
            periods reached 0.9 of the best arm's lead over the mean with 1, 0.8 with 2, 0.2 with 4
            and 0.1 with 10: undiscounted sums add up the noise, and there are fewer updates.
        epochs (int): Epochs per update.
        entropy_coef (float): Weight of the entropy bonus (entropy in nats).
        max_grad_norm (float, optional): Each network's gradient is clipped to this norm; None: not at all.
        normalise (str): ``'running'``: rewards are normalised by running moments, and returns end in the critic's
            value. ``'rollout'``: returns end with the rollout's last reward and are standardised within it, as in the
            authors' code; of two rewards (γ = 1) it leaves the sign of the first, and of one nothing, so ``horizon``
            must be 2 at least.
        init (str): ``'small_head'``: the first policy is nearly uniform and the first values nearly 0. ``'torch'``:
            PyTorch's default for linear layers, as in the authors' code.
        reward_decay (float): In [0, 1): decay of the running mean and deviation by which rewards
            are normalised. Raw ones are about 1e-3 and positive while the training loss falls;
            undiscounted sums of a positive mean diverge and praise every action alike.
        seed (int): Seed of initialisation and sampling. The global generators are not touched.

    Raises:
        ConfigError: An argument is out of its range.
    """

    removed = dict.fromkeys(
        ('prior', 'prior_weight', 'extra_state'),
        "it had no measured gain; allocator=dict(type='NeedAllocator') draws by need")

    def __init__(self,
                 num_blocks: int,
                 lr_actor: float = 3e-4,
                 lr_critic: float = 1e-3,
                 gamma: float = 1.0,
                 clip: float = 0.2,
                 hidden: int = 64,
                 horizon: int = 1,
                 epochs: int = 10,
                 entropy_coef: float = 0.01,
                 max_grad_norm: float | None = 0.5,
                 normalise: str = 'running',
                 init: str = 'small_head',
                 reward_decay: float = 0.9,
                 seed: int = 0) -> None:
        super().__init__(num_blocks)
        for name, value in dict(horizon=horizon, epochs=epochs, hidden=hidden).items():
            if value < 1:
                raise ConfigError(f'{name} must be at least 1, but is {value}')
        check_choice('normalise', normalise, NORMALISE)
        check_choice('init', init, INITS)
        if normalise == 'rollout' and horizon < 2:
            raise ConfigError(f"normalise='rollout' compares the rewards of an update, but horizon={horizon}: set "
                              'horizon to 2 or more')
        if not 0 <= gamma <= 1:
            raise ConfigError(f'gamma must be in [0, 1], but is {gamma}')
        if not 0 <= reward_decay < 1:
            raise ConfigError(f'reward_decay must be in [0, 1), but is {reward_decay}')
        self.gamma = gamma
        self.clip = clip
        self.horizon = horizon
        self.epochs = epochs
        self.entropy_coef = entropy_coef
        self.max_grad_norm = max_grad_norm
        self.normalise = normalise  # a name of NORMALISE
        self.rewards = RunningMoments(reward_decay)
        # Of the returns and of the critic's errors, for the explained variance.
        self._returns = RunningMoments(reward_decay)
        self._errors = RunningMoments(reward_decay)
        self.generator = torch.Generator().manual_seed(seed)
        inputs, actions = self.sizes(num_blocks)
        self.actor = mlp((inputs, hidden, hidden, actions), INITS[init], self.generator)
        self.critic = mlp((inputs, hidden, hidden, 1), INITS[init], self.generator)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=lr_actor)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=lr_critic)
        self.buffer: list[Transition] = []
        self._pending: list[tuple[Tensor, int, float]] = []

    def sizes(self, num_blocks: int) -> tuple[int, int]:
        """Inputs of both networks, and actions: 3L and L."""
        return 3 * num_blocks, num_blocks

    def features(self, states: Tensor) -> Tensor:
        """What the networks see of states (..., 3L): all of it."""
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Logits (..., L) of the actions in states (..., 3L)."""
        return self.actor(self.features(states))

    def act(self, state: Tensor, signals: Signals = None) -> int:
        """Sample a block; see the base class."""
        state = state.clone()
        with torch.no_grad():
            log_probs = F.log_softmax(self.logits(state), dim=-1)
        probs = log_probs.exp()
        action = int(torch.multinomial(probs, 1, generator=self.generator))
        self._pending.append((state, action, float(log_probs[action])))
        self.diagnostics['entropy'] = float(-(probs * log_probs).sum())
        return action

    def observe(self, reward: float, next_state: Tensor, signals: Signals = None) -> None:
        """Reward the last decisions; every ``horizon``-th call updates the policy.

        See the base class.

        Raises:
            RuntimeError: There is no decision without a reward.
        """
        if not self._pending:
            raise RuntimeError('observe() without act(): no decision waits for a reward')
        period = self.buffer[-1].period + 1 if self.buffer else 0
        self.buffer += [Transition(*pending, float(reward), next_state.clone(), period)
                        for pending in self._pending]
        self.forget()
        self.rewards.update(float(reward))
        if period + 1 == self.horizon:
            self.update()
            self.buffer.clear()

    def forget(self) -> None:
        """Drop what was chosen and never rewarded."""
        self._pending = []

    def returns(self, values: Tensor, last_value: Tensor) -> tuple[Tensor, Tensor]:
        """Returns and advantages (T,) of the buffer with critic ``values`` (T,)."""
        alone = self.normalise == 'rollout'
        returns = torch.empty_like(values)
        following, period = torch.zeros_like(last_value) if alone else last_value, None
        for step, transition in reversed(list(enumerate(self.buffer))):
            if transition.period != period:  # its decisions share one reward
                reward = transition.reward if alone else self.rewards.normalise(transition.reward)
                following, period = reward + self.gamma * following, transition.period
            returns[step] = following
        if alone:
            returns = (returns - returns.mean()) / (returns.std() + 1e-7)
        return returns, returns - values

    def update(self) -> None:
        """Improve both networks on the buffer (Eq. vi-vii) and record diagnostics."""
        states = torch.stack([t.state for t in self.buffer])
        actions = torch.tensor([t.action for t in self.buffer])
        old_log_probs = torch.tensor([t.log_prob for t in self.buffer])
        with torch.no_grad():
            values = self._values(states)
            last_value = self._values(self.buffer[-1].next_state)
            returns, advantages = self.returns(values, last_value)
        for _ in range(self.epochs):
            ratios, entropy = self._ratios(states, actions, old_log_probs)
            clipped = ratios.clamp(1 - self.clip, 1 + self.clip)
            surrogate = torch.minimum(ratios * advantages, clipped * advantages)
            self._step(self.actor_optimizer, self.actor,
                       -surrogate.mean() - self.entropy_coef * entropy)
            value_loss = F.mse_loss(self._values(states), returns)
            self._step(self.critic_optimizer, self.critic, value_loss)
        with torch.no_grad():
            ratios, entropy = self._ratios(states, actions, old_log_probs)
        self._diagnose(ratios, entropy, values, returns)

    def _values(self, states: Tensor) -> Tensor:
        return self.critic(self.features(states)).squeeze(-1)

    def _ratios(self, states: Tensor, actions: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        """Probability ratios new / old (T,) of the actions and the mean entropy."""
        log_probs = F.log_softmax(self.logits(states), dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1).mean()
        new = log_probs.gather(1, actions[:, None]).squeeze(1)
        return (new - old).exp(), entropy

    def _step(self, optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(network.parameters(), self.max_grad_norm)
        optimizer.step()

    def _diagnose(self, ratios: Tensor, entropy: Tensor, values: Tensor, returns: Tensor) -> None:
        """Diagnostics of the update; the explained variance is a running one."""
        self.diagnostics.update(
            approx_kl=float((ratios - 1 - ratios.log()).mean()),
            clip_fraction=float(((ratios - 1).abs() > self.clip).float().mean()),
            update_entropy=float(entropy))
        for value, target in zip(values.tolist(), returns.tolist()):
            self._returns.update(target)
            self._errors.update(target - value)
        if self._returns.variance > 0:
            unexplained = self._errors.variance / self._returns.variance
            self.diagnostics['explained_variance'] = 1 - unexplained

    def _moments(self) -> tuple['RunningMoments', ...]:
        return self.rewards, self._returns, self._errors

    def state_dict(self) -> dict:
        """dict: All that decides from here on, as plain tensors and Python types, copied."""
        return copy.deepcopy(
            dict(
                num_blocks=self.num_blocks,
                actor=dict(self.actor.state_dict()),
                critic=dict(self.critic.state_dict()),
                actor_optimizer=self.actor_optimizer.state_dict(),
                critic_optimizer=self.critic_optimizer.state_dict(),
                buffer=[tuple(transition) for transition in self.buffer],
                pending=self._pending,
                moments=[moments.state_dict() for moments in self._moments()],
                generator=self.generator.get_state(),
                diagnostics=self.diagnostics))

    def load_state_dict(self, state: dict) -> None:
        """Continue; see the base class."""
        super().load_state_dict(state)
        state = to_cpu(state)
        self.actor.load_state_dict(state['actor'])
        self.critic.load_state_dict(state['critic'])
        self.actor_optimizer.load_state_dict(state['actor_optimizer'])
        self.critic_optimizer.load_state_dict(state['critic_optimizer'])
        self.buffer = [Transition(*transition) for transition in state['buffer']]
        self._pending = [tuple(pending) for pending in state['pending']]
        for moments, saved in zip(self._moments(), state['moments']):
            moments.load_state_dict(saved)
        self.generator.set_state(state['generator'])
        self.diagnostics = state['diagnostics']


class RunningMoments:
    """Bias-corrected exponential mean and deviation of a scalar.

    Args:
        decay (float): In [0, 1); the memory is about 1 / (1 - decay) values.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weight = 0.0
        self.mean = 0.0
        self.variance = 0.0

    def update(self, value: float) -> None:
        """Take one more value into account."""
        self.weight = self.decay * self.weight + 1
        rate = 1 / self.weight
        delta = value - self.mean
        self.mean += rate * delta
        self.variance = (1 - rate) * (self.variance + rate * delta * delta)

    def normalise(self, value: float) -> float:
        """float: ``value`` in deviations from the mean; 0 where nothing has varied yet."""
        deviation = math.sqrt(self.variance)
        return (value - self.mean) / deviation if deviation > 0 else 0.0

    def state_dict(self) -> dict:
        """dict: Three floats."""
        return dict(weight=self.weight, mean=self.mean, variance=self.variance)

    def load_state_dict(self, state: dict) -> None:
        """Continue from a ``state_dict()``."""
        self.weight, self.mean, self.variance = (state[k] for k in ('weight', 'mean', 'variance'))
