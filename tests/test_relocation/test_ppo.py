import math

import pytest
import torch

from mmprovpt.relocation import PPOAllocator
from mmprovpt.relocation.ppo import RunningMoments, Transition
from mmprovpt.relocation.relocator import policy_state


def random_state(generator, num_blocks=12):
    return torch.randn(3 * num_blocks, generator=generator)


def play(allocator, periods, seed=0):
    """Actions in a random environment that depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    state, actions = random_state(generator, allocator.num_blocks), []
    for _ in range(periods):
        actions.append(allocator.act(state))
        state = random_state(generator, allocator.num_blocks)
        reward = actions[-1] + float(torch.randn((), generator=generator))
        allocator.observe(reward, state)
    return actions


def test_has_the_size_of_the_paper():
    allocator = PPOAllocator(12)
    count = {name: sum(p.numel() for p in getattr(allocator, name).parameters())
             for name in ('actor', 'critic')}
    assert count == dict(actor=7308, critic=6593)
    assert sum(count.values()) == 13901
    assert allocator.actor_optimizer.param_groups[0]['lr'] == 3e-4
    assert allocator.critic_optimizer.param_groups[0]['lr'] == 1e-3


def test_first_policy_is_nearly_uniform():
    allocator = PPOAllocator(12)
    allocator.act(random_state(torch.Generator().manual_seed(0)))
    assert allocator.diagnostics['entropy'] == pytest.approx(math.log(12), abs=1e-2)


def test_actions_follow_the_policy():
    allocator = PPOAllocator(3)
    with torch.no_grad():
        allocator.actor[-1].weight.zero_()
        allocator.actor[-1].bias.copy_(torch.tensor([0.6, 0.3, 0.1]).log())
    actions = torch.tensor([allocator.act(torch.zeros(9)) for _ in range(3000)])
    shares = torch.bincount(actions, minlength=3) / 3000
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.03, rtol=0)


# A slow update, written from the paper's formulas: one transition and one number at a time.


def slow_forward(weights, x):
    """MLP of nested lists; ``weights`` is a list of (matrix, bias) of float64 tensors."""
    for index, (matrix, bias) in enumerate(weights):
        x = torch.stack([sum(matrix[i, j] * x[j] for j in range(len(x))) + bias[i]
                         for i in range(len(bias))])
        if index < len(weights) - 1:
            x = (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())
    return x


def slow_adam(flat, grads, memory, lr, max_norm):
    """One Adam step with clipping of the global norm, in place."""
    norm = math.sqrt(sum(float((g * g).sum()) for g in grads))
    shrink = min(1.0, max_norm / (norm + 1e-6))
    memory['step'] = memory.get('step', 0) + 1
    for index, (param, grad) in enumerate(zip(flat, grads)):
        grad = grad * shrink
        m = 0.9 * memory.get(('m', index), 0) + 0.1 * grad
        v = 0.999 * memory.get(('v', index), 0) + 0.001 * grad * grad
        memory['m', index], memory['v', index] = m, v
        m_hat = m / (1 - 0.9**memory['step'])
        v_hat = v / (1 - 0.999**memory['step'])
        with torch.no_grad():
            param -= lr * m_hat / (v_hat.sqrt() + 1e-8)


def slow_update(actor, critic, transitions, rewards, *, epochs, gamma, clip, entropy_coef, max_norm):
    """Flat parameters of both networks after one PPO-Clip update."""
    values = [float(slow_forward(critic, t[0])[0]) for t in transitions]
    future = float(slow_forward(critic, transitions[-1][3])[0])
    returns = []
    for reward in reversed(rewards):
        future = reward + gamma * future
        returns.insert(0, future)
    advantages = [g - v for g, v in zip(returns, values)]
    flats = [[p for layer in net for p in layer] for net in (actor, critic)]
    memories = {}, {}
    size = len(transitions)
    for _ in range(epochs):
        policy_loss, value_loss = 0, 0
        for (state, action, log_prob, _), advantage, target in zip(transitions, advantages,
                                                                  returns):
            logits = slow_forward(actor, state)
            probs = logits.exp() / sum(logit.exp() for logit in logits)
            ratio = probs[action] / math.exp(log_prob)
            if float(ratio) * advantage > max(min(float(ratio), 1 + clip), 1 - clip) * advantage:
                gain = max(min(float(ratio), 1 + clip), 1 - clip) * advantage  # flat: no gradient
            else:
                gain = ratio * advantage
            entropy = -sum(p * p.log() for p in probs)
            policy_loss = policy_loss - gain / size - entropy_coef * entropy / size
            value_loss = value_loss + (slow_forward(critic, state)[0] - target)**2 / size
        for flat, memory, loss, lr in ((flats[0], memories[0], policy_loss, 3e-4),
                                       (flats[1], memories[1], value_loss, 1e-3)):
            slow_adam(flat, torch.autograd.grad(loss, flat), memory, lr, max_norm)
    return flats


def layers(network):
    return [(m.weight.detach().double().requires_grad_(), m.bias.detach().double().requires_grad_())
            for m in network if isinstance(m, torch.nn.Linear)]


@pytest.mark.parametrize('horizon,entropy_coef,lr_scale', [(1, 0.01, 1), (3, 0.0, 1), (3, 0.5, 1)])
def test_update_equals_a_slow_one(horizon, entropy_coef, lr_scale):
    options = dict(gamma=0.9, clip=0.02, entropy_coef=entropy_coef)
    allocator = PPOAllocator(4, hidden=6, horizon=horizon, epochs=12, max_grad_norm=0.1, seed=3,
                             **options)
    for network in (allocator.actor, allocator.critic):
        network.double()  # else Adam turns rounding of tiny gradients into whole steps
        with torch.no_grad():
            network[-1].weight.mul_(100)
    actor, critic = layers(allocator.actor), layers(allocator.critic)
    generator = torch.Generator().manual_seed(5)
    state = random_state(generator, 4).double()
    transitions, raw = [], []
    for step in range(horizon):
        action = allocator.act(state)
        log_prob = float(torch.log_softmax(allocator.actor(state), -1)[action])
        following = random_state(generator, 4).double()
        transitions.append((state, action, log_prob, following))
        raw.append(1e-3 * float(torch.randn((), generator=generator)))
        if step < horizon - 1:
            allocator.observe(raw[-1], following)
        state = following
    moments = RunningMoments(0.9)
    if horizon == 1:  # the very first reward would be normalised to 0
        for past in (2e-3, -1e-3):
            allocator.rewards.update(past)
            moments.update(past)
    for reward in raw:
        moments.update(reward)
    allocator.observe(raw[-1], state)
    expected = slow_update(actor, critic, transitions, [moments.normalise(r) for r in raw],
                           epochs=12, max_norm=0.1, **options)
    for network, flat in zip((allocator.actor, allocator.critic), expected):
        for param, value in zip(network.parameters(), flat):
            torch.testing.assert_close(param, value, atol=1e-6, rtol=0)
    assert allocator.buffer == []


def test_diagnostics_by_hand():
    """How far an update has moved the policy, and how well the critic before it knew the returns."""
    allocator = PPOAllocator(3, horizon=2, epochs=2, gamma=0., clip=0.2, lr_actor=0.003, seed=1)
    with torch.no_grad():
        allocator.critic[-1].weight.mul_(100)
    generator = torch.Generator().manual_seed(0)
    states = torch.stack([random_state(generator, 3) for _ in range(3)])
    before, values = allocator.logits(states[:2]).log_softmax(-1).tolist(), allocator.critic(states[:2]).tolist()
    actions = []
    for state, following, reward in zip(states, states[1:], (1., 3.)):
        actions.append(allocator.act(state))
        allocator.observe(reward, following)
    after, found = allocator.logits(states[:2]).log_softmax(-1).tolist(), allocator.diagnostics
    ratios = [math.exp(new[action] - old[action]) for new, old, action in zip(after, before, actions)]
    assert found['approx_kl'] == pytest.approx(sum(ratio - 1 - math.log(ratio) for ratio in ratios) / 2, rel=1e-3)
    assert found['clip_fraction'] == sum(abs(ratio - 1) > 0.2 for ratio in ratios) / 2 == 0.5
    assert found['update_entropy'] == pytest.approx(-sum(math.exp(x) * x for row in after for x in row) / 2)
    # The variance of two numbers, whatever their weights, goes as the square of their difference.
    returns = [allocator.rewards.normalise(reward) for reward in (1., 3.)]
    errors = [target - value for target, (value, ) in zip(returns, values)]
    unexplained = (errors[0] - errors[1])**2 / (returns[0] - returns[1])**2
    assert 0.1 < unexplained < 10 and found['explained_variance'] == pytest.approx(1 - unexplained, rel=1e-4)


def test_running_moments_are_weighted_moments():
    moments = RunningMoments(0.9)
    values = [3.0, -1.0, 4.0, 1.0, -5.0]
    for value in values:
        moments.update(value)
    weights = [0.9**age for age in reversed(range(5))]
    mean = sum(w * v for w, v in zip(weights, values)) / sum(weights)
    variance = sum(w * (v - mean)**2 for w, v in zip(weights, values)) / sum(weights)
    assert moments.mean == pytest.approx(mean)
    assert moments.variance == pytest.approx(variance)
    assert moments.normalise(2.0) == pytest.approx((2 - mean) / math.sqrt(variance))


def test_constant_rewards_normalise_to_zero():
    moments = RunningMoments(0.9)
    for _ in range(3):
        moments.update(0.1)
    assert moments.normalise(0.1) == 0


def bandit(seed, periods=100):
    """How much better than uniform the last 30 picks are; the best block would give 1."""
    generator = torch.Generator().manual_seed(100 + seed)
    values = torch.rand(12, generator=generator)
    allocator = PPOAllocator(12, seed=seed)
    block_index = torch.arange(12).repeat_interleave(5)

    def observe():
        idleness = 1e-5 * torch.randn(60, generator=generator)
        prompt = int(idleness.argmax())
        return prompt, policy_state(idleness, block_index, int(block_index[prompt]), 12)

    picks = []
    prompt, state = observe()
    for _ in range(periods):
        block = allocator.act(state)
        block_index[prompt] = block
        picks.append(float(values[block]))
        reward = picks[-1] + 0.1 * float(torch.randn((), generator=generator))
        prompt, state = observe()
        allocator.observe(1e-3 * reward, state)
    mean = float(values.mean())
    return (sum(picks[-30:]) / 30 - mean) / (float(values.max()) - mean)


def test_learns_a_bandit_within_100_periods():
    scores = torch.tensor([bandit(seed) for seed in range(3)])
    # Uniform picking scores 0, with a deviation of about 0.1 per seed.
    assert scores.mean() > 0.5, scores
    assert scores.min() > 0.3, scores


@pytest.mark.parametrize('periods', [0, 7])
def test_state_gives_identical_continuation(periods, tmp_path):
    """In the middle of a rollout and with a decision that waits for its reward."""
    original = PPOAllocator(5, horizon=3, seed=1)
    play(original, periods)
    state = torch.ones(15)
    original.act(state)
    torch.save(original.state_dict(), tmp_path / 'ppo.pth')
    saved = torch.load(tmp_path / 'ppo.pth', weights_only=True)
    restored = PPOAllocator(5, horizon=3, seed=2)
    restored.load_state_dict(saved)
    for allocator in (original, restored):
        allocator.observe(0.5, state)
    assert play(original, 20, seed=9) == play(restored, 20, seed=9)
    for a, b in zip(original.actor.parameters(), restored.actor.parameters()):
        assert torch.equal(a, b)


def test_state_is_a_copy():
    allocator = PPOAllocator(4)
    state = allocator.state_dict()
    before = state['actor']['0.weight'].clone()
    play(allocator, 5)
    assert torch.equal(before, state['actor']['0.weight'])
    assert not torch.equal(before, allocator.actor[0].weight)


def test_global_generator_is_not_touched():
    before = torch.get_rng_state()
    play(PPOAllocator(4), 5)
    assert torch.equal(before, torch.get_rng_state())


def test_seed_decides():
    assert play(PPOAllocator(12, seed=1), 10) == play(PPOAllocator(12, seed=1), 10)
    assert play(PPOAllocator(12, seed=1), 10) != play(PPOAllocator(12, seed=2), 10)


def test_wrong_use_raises():
    with pytest.raises(RuntimeError, match='without act'):
        PPOAllocator(4).observe(0.0, torch.zeros(12))
    with pytest.raises(ValueError, match='gamma must be in .* is 1.5'):
        PPOAllocator(4, gamma=1.5)
    with pytest.raises(ValueError, match='horizon must be at least 1'):
        PPOAllocator(4, horizon=0)
    with pytest.raises(ValueError, match='trained for 4 blocks.*has 5'):
        PPOAllocator(5).load_state_dict(PPOAllocator(4).state_dict())


# What the authors' code does (docs/method/authors_code.md).


def test_rollout_returns_by_hand():
    """Rewards 3 and -1, γ = 1: returns 2 and -1, standardised within the two; nothing of the critic's in them."""
    allocator = PPOAllocator(3, horizon=2, normalise='rollout')
    step = Transition(torch.zeros(9), 0, 0., 3., torch.zeros(9), 0)
    allocator.buffer = [step, step._replace(reward=-1., period=1)]
    values = torch.tensor([0.5, 0.25])
    returns, advantages = allocator.returns(values, torch.tensor(9.))
    torch.testing.assert_close(returns, torch.tensor([0.5**0.5, -0.5**0.5]), rtol=1e-4, atol=0)
    torch.testing.assert_close(advantages, returns - values)


@pytest.mark.parametrize('first', [-1e4, -1e-3, 1e-3, 0.3, 1e4])
def test_of_two_rewards_a_rollout_keeps_the_sign_of_the_first(first):
    allocator = PPOAllocator(3, horizon=2, normalise='rollout')
    step = Transition(torch.zeros(9), 0, 0., first, torch.zeros(9), 0)
    allocator.buffer = [step, step._replace(reward=5., period=1)]
    returns, _ = allocator.returns(torch.zeros(2), torch.zeros(()))
    sign = 1 if first > 0 else -1
    torch.testing.assert_close(returns, sign * torch.tensor([0.5**0.5, -0.5**0.5]), rtol=1e-3, atol=0)


def test_pytorchs_initial_weights():
    """Uniform in ±1 / sqrt(fan_in), biases too, whatever the layer."""
    allocator = PPOAllocator(12, init='torch')
    for network in (allocator.actor, allocator.critic):
        for layer in network[::2]:
            bound = layer.in_features**-0.5
            for parameter in (layer.weight, layer.bias):
                assert parameter.abs().max() <= bound
            assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.15)


@pytest.mark.parametrize('options, message', [
    (dict(normalise='rollout'), "normalise='rollout' compares the rewards of an update, but horizon=1"),
    (dict(normalise='batch'), "normalise='batch', but it must be one of running, rollout"),
    (dict(init='zeros'), "init='zeros', but it must be one of small_head, torch"),
])
def test_wrong_options_of_the_authors_way(options, message):
    with pytest.raises(ValueError, match=message):
        PPOAllocator(3, **options)
