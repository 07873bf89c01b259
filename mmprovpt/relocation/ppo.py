"""PPO-Clip for the block that gets the pruned prompt."""
import copy
import math
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Transition(NamedTuple):
    """One decision and what came of it; states are (3L,) float32."""
    state: Tensor
    action: int
    log_prob: float
    reward: float
    next_state: Tensor


def mlp(sizes: Tuple[int, ...], head_gain: float, generator: torch.Generator) -> nn.Sequential:
    """Tanh MLP with weights N(0, gain² / fan_in) and biases 0, drawn from ``generator`` alone."""
    layers: List[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:])):
        is_head = index == len(sizes) - 2
        # nn.Linear's own initialisation would draw from training's global generator.
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=torch.float32)
        gain = head_gain if is_head else 1.0
        with torch.no_grad():
            linear.weight.normal_(0, gain / math.sqrt(fan_in), generator=generator)
            linear.bias.zero_()
        layers += [linear] if is_head else [linear, nn.Tanh()]
    return nn.Sequential(*layers)


class PPOAllocator:
    r"""PPO-Clip over the L blocks (001 § 3.3, Eq. vi-vii, App. F).

    Actor and critic are MLPs 3L-64-64-{L, 1} with tanh; 13,901 parameters at L = 12. The paper
    gives learning rates, γ and the clip; the other defaults are ours, chosen for a policy that
    sees one transition per period and about a hundred in its life.

    The task has no terminal state, so a rollout's returns end in the critic's value of the last
    next state: :math:`G_t = r_t + \gamma G_{t+1}, G_T = V(s_T)`; the advantage is
    :math:`A_t = G_t - V(s_t)`. Both are fixed before the epochs of an update. Every epoch takes one
    Adam step per network on the whole rollout.

    Args:
        num_blocks (int): Number of blocks L.
        lr_actor (float): Adam's learning rate for the actor.
        lr_critic (float): Adam's learning rate for the critic.
        gamma (float): Discount in [0, 1].
        clip (float): Range of the probability ratio, 1 ± clip.
        hidden (int): Units of both hidden layers.
        horizon (int): Transitions per update. In a simulated 12-armed bandit, the last 30 of 100
            periods reached 0.9 of the best arm's lead over the mean with 1, 0.8 with 2, 0.2 with 4
            and 0.1 with 10: undiscounted sums add up the noise, and there are fewer updates.
        epochs (int): Epochs per update.
        entropy_coef (float): Weight of the entropy bonus (entropy in nats).
        max_grad_norm (float): Each network's gradient is clipped to this norm.
        reward_decay (float): In [0, 1): decay of the running mean and deviation by which rewards
            are normalised. Raw ones are about 1e-3 and positive while the training loss falls;
            undiscounted sums of a positive mean diverge and praise every action alike.
        seed (int): Seed of initialisation and sampling. The global generators are not touched.

    Raises:
        ValueError: An argument is out of its range.
    """

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
                 max_grad_norm: float = 0.5,
                 reward_decay: float = 0.9,
                 seed: int = 0) -> None:
        for name, value in dict(num_blocks=num_blocks, horizon=horizon, epochs=epochs,
                                hidden=hidden).items():
            if value < 1:
                raise ValueError(f'{name} must be at least 1, but is {value}')
        if not 0 <= gamma <= 1:
            raise ValueError(f'gamma must be in [0, 1], but is {gamma}')
        if not 0 <= reward_decay < 1:
            raise ValueError(f'reward_decay must be in [0, 1), but is {reward_decay}')
        self.num_blocks = num_blocks
        self.gamma = gamma
        self.clip = clip
        self.horizon = horizon
        self.epochs = epochs
        self.entropy_coef = entropy_coef
        self.max_grad_norm = max_grad_norm
        self.rewards = RunningMoments(reward_decay)
        # Of the returns and of the critic's errors, for the explained variance.
        self._returns = RunningMoments(reward_decay)
        self._errors = RunningMoments(reward_decay)
        self.generator = torch.Generator().manual_seed(seed)
        # A small head: the first policy is nearly uniform, the first values nearly 0.
        self.actor = mlp((3 * num_blocks, hidden, hidden, num_blocks), 0.01, self.generator)
        self.critic = mlp((3 * num_blocks, hidden, hidden, 1), 0.01, self.generator)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=lr_actor)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=lr_critic)
        self.buffer: List[Transition] = []
        self.diagnostics: Dict[str, float] = {}
        self._pending: Optional[Tuple[Tensor, int, float]] = None

    def act(self, state: Tensor) -> int:
        """Sample a block.

        Args:
            state (Tensor): State of METHOD § 4, (3L,) float32.

        Returns:
            int: Block in [0, L). A decision before it that was never observed is forgotten.
        """
        with torch.no_grad():
            log_probs = F.log_softmax(self.actor(state), dim=-1)
        probs = log_probs.exp()
        action = int(torch.multinomial(probs, 1, generator=self.generator))
        self._pending = (state.clone(), action, float(log_probs[action]))
        self.diagnostics['entropy'] = float(-(probs * log_probs).sum())
        return action

    def observe(self, reward: float, next_state: Tensor) -> None:
        """Give the last decision its reward; every ``horizon``-th call updates the policy.

        Args:
            reward (float): Finite reward of Eq. 8, in units of the loss.
            next_state (Tensor): State after the period, (3L,) float32.

        Raises:
            RuntimeError: There is no decision without a reward.
        """
        if self._pending is None:
            raise RuntimeError('observe() without act(): no decision waits for a reward')
        self.buffer.append(Transition(*self._pending, float(reward), next_state.clone()))
        self._pending = None
        self.rewards.update(float(reward))
        if len(self.buffer) == self.horizon:
            self.update()
            self.buffer.clear()

    def returns(self, values: Tensor, last_value: Tensor) -> Tuple[Tensor, Tensor]:
        """Bootstrapped returns and advantages (T,) of the buffer with critic ``values`` (T,)."""
        returns = torch.empty_like(values)
        following = last_value
        for step in reversed(range(len(self.buffer))):
            reward = self.rewards.normalise(self.buffer[step].reward)
            following = reward + self.gamma * following
            returns[step] = following
        return returns, returns - values

    def update(self) -> None:
        """Improve both networks on the buffer (Eq. vi-vii) and record diagnostics."""
        states = torch.stack([t.state for t in self.buffer])
        actions = torch.tensor([t.action for t in self.buffer])
        old_log_probs = torch.tensor([t.log_prob for t in self.buffer])
        with torch.no_grad():
            values = self.critic(states).squeeze(-1)
            last_value = self.critic(self.buffer[-1].next_state).squeeze(-1)
            returns, advantages = self.returns(values, last_value)
        for _ in range(self.epochs):
            ratios, entropy = self._ratios(states, actions, old_log_probs)
            clipped = ratios.clamp(1 - self.clip, 1 + self.clip)
            surrogate = torch.minimum(ratios * advantages, clipped * advantages)
            self._step(self.actor_optimizer, self.actor,
                       -surrogate.mean() - self.entropy_coef * entropy)
            value_loss = F.mse_loss(self.critic(states).squeeze(-1), returns)
            self._step(self.critic_optimizer, self.critic, value_loss)
        with torch.no_grad():
            ratios, entropy = self._ratios(states, actions, old_log_probs)
        self._diagnose(ratios, entropy, values, returns)

    def _ratios(self, states: Tensor, actions: Tensor, old: Tensor) -> Tuple[Tensor, Tensor]:
        """Probability ratios new / old (T,) of the actions and the mean entropy."""
        log_probs = F.log_softmax(self.actor(states), dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1).mean()
        new = log_probs.gather(1, actions[:, None]).squeeze(1)
        return (new - old).exp(), entropy

    def _step(self, optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
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

    def _moments(self) -> Tuple['RunningMoments', ...]:
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
        """Continue from a ``state_dict()``, whatever device its tensors were mapped to.

        Raises:
            ValueError: It is about another number of blocks.
        """
        if state['num_blocks'] != self.num_blocks:
            raise ValueError(f'the policy was trained for {state["num_blocks"]} blocks, '
                             f'but the model has {self.num_blocks}')
        state = to_cpu(state)
        self.actor.load_state_dict(state['actor'])
        self.critic.load_state_dict(state['critic'])
        self.actor_optimizer.load_state_dict(state['actor_optimizer'])
        self.critic_optimizer.load_state_dict(state['critic_optimizer'])
        self.buffer = [Transition(*transition) for transition in state['buffer']]
        self._pending = None if state['pending'] is None else tuple(state['pending'])
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
