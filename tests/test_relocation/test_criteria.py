"""Each criterion on every backbone, against derivatives taken by finite differences, and against true removal."""
import pytest
import torch
from matrix import CASES, KINDS, RELOCATING, build, concatenating, images, outputs

from mmprovpt.attention import PromptedBlock
from mmprovpt.relocation.criteria import CRITERIA, true_idleness

BATCH = 3


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(params=RELOCATING)
def kind(request):
    return KINDS[request.param]


def prompted(case, kind=KINDS['static'], dropout=0., **overrides):
    torch.manual_seed(0)
    counts = [(block + 1) % 3 for block in range(case.depth)]
    backbone = build(case, dict(kind, num_tokens=counts, dropout=dropout), **overrides).train()
    longest = 5 if norms_first(backbone) else 50  # without a norm before attention, short ones hardly count
    with torch.no_grad():  # as trained prompts are: of another scale, no two alike
        backbone.prompts.tokens *= torch.linspace(longest / 10, longest, len(backbone.prompts.tokens))[:, None]
    return backbone


def norms_first(backbone):
    return all(module.norm_first for module in backbone.modules() if isinstance(module, PromptedBlock))


def sample_losses(backbone, x):
    """(B,) losses of single samples, not linear in the outputs."""
    total = 0
    for out in outputs(backbone, x):
        out = out.flatten(1)
        total = total + (out * torch.linspace(-1, 1, out.shape[1], dtype=out.dtype)).mean(1).mul(3).sin()
    return total


def measure(criterion, backbone, x, scale=1.):
    idleness = CRITERIA[criterion](backbone.prompts, score_interval=1)
    idleness.begin(scale)
    loss = sample_losses(backbone, x).mean()
    (loss * scale).backward()
    idleness.update(loss)
    idleness.close()
    return idleness


class FixedGates:
    """A probe that opens given gates, (N,) one for each prompt, the same in all samples."""

    def __init__(self, gates):
        self.gates = gates

    def watch(self, owned, rows, norm, batch_size):
        return rows, self.gates[owned].expand(batch_size, -1)


class Scaled:
    """A probe that multiplies the standardised prompts by factors (N,)."""

    def __init__(self, factors):
        self.factors = factors

    def watch(self, owned, rows, norm, batch_size):
        shift = 0 if norm is None else norm.bias
        return (rows - shift) * self.factors[owned][:, None] + shift, None


def gate_derivatives(backbone, x, step=1e-4):
    """(N, B) derivative of each sample's loss in each prompt's gate, by central differences in float64."""
    pool, columns = backbone.prompts, []
    with torch.no_grad():
        for prompt in range(len(pool.tokens)):
            losses = []
            for sign in (1, -1):
                gates = torch.zeros(len(pool.tokens), dtype=torch.float64)
                gates[prompt] = sign * step
                pool.probe = FixedGates(gates)
                losses.append(sample_losses(backbone, x))
            columns.append((losses[0] - losses[1]) / (2 * step))
    pool.probe = None
    return torch.stack(columns)


def test_gates(case, kind):
    backbone, x = prompted(case, kind), images(case, batch=BATCH)
    first = measure('gate', backbone, x).compute()[0]
    second = measure('gate_fisher', backbone, x).compute()[0]
    gamma = gate_derivatives(backbone.double(), x.double())
    expected = gamma.mean(1)
    scale = expected.abs().max()
    torch.testing.assert_close(first.double() / scale, expected / scale, rtol=0, atol=2e-4)
    expected = gamma.mean(1) - gamma.square().mean(1) / 2
    scale = expected.abs().max()
    torch.testing.assert_close(second.double() / scale, expected / scale, rtol=0, atol=2e-4)


def test_open_gates_change_nothing_and_a_closed_one_removes(case, kind):
    backbone, x = prompted(case, kind), images(case)
    pool = backbone.prompts
    with torch.no_grad():
        plain = outputs(backbone, x)
        gates = torch.zeros(len(pool.tokens))
        pool.probe = FixedGates(gates)
        for a, b in zip(outputs(backbone, x), plain):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        gates[1] = -1e4
        closed = outputs(backbone, x)
        pool.probe = None
        with pool.without(1):
            removed = outputs(backbone, x)
        for a, b in zip(closed, removed):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(closed[-1], plain[-1])


def test_taylor_norm(case, kind):
    """The derivative in a factor on the standardised prompt, at 1."""
    backbone, x = prompted(case, kind), images(case, batch=BATCH)
    measured = measure('taylor_norm', backbone, x).compute()[0]
    backbone, x, step = backbone.double(), x.double(), 1e-4
    pool, expected = backbone.prompts, []
    with torch.no_grad():
        for prompt in range(len(pool.tokens)):
            losses = []
            for sign in (1, -1):
                factors = torch.ones(len(pool.tokens), dtype=torch.float64)
                factors[prompt] += sign * step
                pool.probe = Scaled(factors)
                losses.append(sample_losses(backbone, x).mean())
            expected.append((losses[0] - losses[1]) / (2 * step))
    expected = torch.stack(expected)
    scale = expected.abs().max()
    torch.testing.assert_close(measured.double() / scale, expected / scale, rtol=0, atol=2e-4)


def test_taylor(case, kind):
    """By hand from the gradient."""
    backbone, x = prompted(case, kind), images(case, batch=BATCH)
    measured = measure('taylor', backbone, x).compute()[0]
    backbone.prompts.tokens.grad = None
    sample_losses(backbone, x).mean().backward()
    tokens = backbone.prompts.tokens
    expected = torch.tensor([float(tokens[k].detach() @ tokens.grad[k]) for k in range(len(tokens))])
    # Its terms cancel down to their rounding.
    torch.testing.assert_close(measured, expected, rtol=1e-4, atol=3e-8)


def test_need(case):
    """Mean squared gradient of a block's prompts in the standardised metric, prompt by prompt."""
    backbone, x = prompted(case), images(case, batch=BATCH)
    pool = backbone.prompts
    need = measure('taylor', backbone, x).need(pool.block_index, pool.num_blocks)
    seen = []

    class Recorder:

        def watch(self, owned, rows, norm, batch_size):
            rows.retain_grad()
            seen.append((rows, norm))
            return rows, None

    pool.probe = Recorder()
    sample_losses(backbone, x).mean().backward()
    pool.probe = None
    for block, (rows, norm) in enumerate(seen):
        if len(rows) == 0:
            assert need[block].isnan()
            continue
        scale = 1 if norm is None else norm.weight
        expected = sum(float(((g * scale)**2).sum()) for g in rows.grad) / len(rows)
        assert float(need[block]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('criterion', CRITERIA)
@pytest.mark.parametrize('name', [name for name, case in CASES.items() if case.with_cp])
def test_checkpointing_dropout_and_scale_change_nothing(name, criterion):
    case, results = CASES[name], []
    for with_cp, scale in ((False, 1.), (True, 1.), (False, 1024.)):
        backbone = prompted(case, dropout=0.2, with_cp=with_cp)
        torch.manual_seed(1)
        results.append(measure(criterion, backbone, images(case, batch=BATCH), scale))
    plain, checkpointed, scaled = (result.sums for result in results)
    assert plain[:results[0].num_prompts].ne(0).all()
    torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(scaled, plain, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize('criterion', CRITERIA)
def test_bfloat16_autocast(case, criterion):
    """Close to float32; but for taylor, whose terms cancel (docs/method/idleness.md)."""
    scores = []
    for enabled in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            scores.append(measure(criterion, prompted(case), images(case, batch=BATCH)).compute()[0])
    assert all(score.dtype == torch.float32 and score.isfinite().all() for score in scores)
    if criterion != 'taylor':
        assert torch.cosine_similarity(*scores, 0) > 0.9


@torch.no_grad()
def test_true_idleness_is_that_of_a_backbone_without_the_prompt(case):
    backbone, upstream, x = prompted(case).eval(), build(case), images(case)
    pool = backbone.prompts
    rows = [pool.tokens[pool.block_index == block, :pool.widths[block]] for block in range(pool.num_blocks)]
    prompts = [0, len(pool.tokens) - 1]
    scores = true_idleness(pool, prompts, lambda: sample_losses(backbone, x).mean())
    with concatenating(upstream, rows):
        whole = sample_losses(upstream, x).mean()
    for prompt, score in zip(prompts, scores):
        left = [k for k in range(len(pool.tokens)) if k != prompt]
        rows = [pool.tokens[[k for k in left if pool.block_index[k] == block], :pool.widths[block]]
                for block in range(pool.num_blocks)]
        with concatenating(upstream, rows):
            expected = whole - sample_losses(upstream, x).mean()
        assert float(score) == pytest.approx(float(expected), abs=1e-5)
    assert pool.distribution.sum() == len(pool.tokens) and scores.abs().min() > 1e-6


def test_nothing_is_measured_without_gradients(case):
    backbone = prompted(case)
    idleness = CRITERIA['gate_fisher'](backbone.prompts)
    idleness.begin()
    with torch.no_grad():  # as validation between two iterations
        sample_losses(backbone, images(case))
    idleness.update(1.)
    assert not idleness.sums[:2 * idleness.num_prompts].any()


@pytest.mark.parametrize('criterion', CRITERIA)
def test_an_iteration_that_is_not_scored_costs_nothing(case, criterion):
    backbone, x = prompted(case), images(case, batch=BATCH)
    alone = measure(criterion, backbone, x).compute()[0]
    idleness = CRITERIA[criterion](backbone.prompts, score_interval=2)
    for scale in (1, 7):  # the second iteration would count, if it were seen
        idleness.begin()
        (scale * sample_losses(backbone, x).mean()).backward()
        rows = torch.ones(1, 2, requires_grad=True)
        read, opened = idleness.watch(torch.tensor([0]), rows, torch.nn.LayerNorm(2), BATCH)
        assert (read is rows) == (scale == 7) and (opened is None) == (scale == 7 or 'gate' not in criterion)
        idleness.update(scale)
    torch.testing.assert_close(idleness.compute()[0], alone)
    assert idleness.compute()[1:] == (4, 2)
