"""What becomes of a row when its prompt arrives: every arrival, one of a user's own, within a width and across."""
import copy

import pytest
import torch
from test_hooks.toy_run import ToyModel
from test_relocation.loop import ANY, Loop
from timm.models.vision_transformer import VisionTransformer

from mmprovpt import inject_prompts
from mmprovpt.errors import ConfigError
from mmprovpt.relocation import ARRIVALS, RelocationSession
from mmprovpt.relocation.arrival import Keep, Shrink

FACTOR = 0.01
SHRINK = dict(type='shrink', factor=FACTOR)


class Anew(Keep):
    """A user's own: drawn anew, in the prompt's own block, too, and nothing is remembered."""

    forgets = True
    in_place = True

    def row(self, prompts, prompt, block):
        return prompts.initial_row(block)


class ShrinkInPlace(Shrink):
    in_place = True


@pytest.fixture(autouse=True)
def users(monkeypatch):
    for name, arrival in dict(anew=Anew, shrink_in_place=ShrinkInPlace).items():
        monkeypatch.setitem(ARRIVALS, name, arrival)


def trained(arrival, widths=(4, 4, 6)):
    """A toy whose optimizer remembers something of every row, with an average that lags behind."""
    model = ToyModel(widths)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    session = RelocationSession(model.prompts, optimizer, arrival=arrival, averages=[copy.deepcopy(model)], **ANY)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for prompt, block in enumerate(model.prompts.block_index.tolist()):
        model.prompts.tokens.grad[prompt, widths[block]:] = 0
    optimizer.step()
    return session, model.prompts, optimizer.state[model.prompts.tokens]['momentum_buffer']


@pytest.mark.parametrize('name', ['keep', 'shrink', 'anew', 'shrink_in_place'])
@pytest.mark.parametrize('prompt, block', [(0, 1), (0, 0), (0, 2), (4, 1)], ids=['moved', 'in place', 'wider', 'other'])
def test_row_momentum_and_average(name, prompt, block):
    """Values by hand; other rows are as they were in each of the three."""
    shrinks = name.startswith('shrink')
    session, prompts, momentum = trained(dict(type=name, factor=FACTOR) if shrinks else name)
    before, width = prompts.tokens.detach().clone(), prompts.widths[block]
    average = session._averages[0].tokens
    lagging = average.detach().clone()
    crosses = prompts.widths[int(prompts.block_index[prompt])] != width
    expected = prompts.tokens.detach()[prompt, :width].clone()
    torch.manual_seed(5)
    if crosses:
        expected = prompts.initial_row(block)  # cross_stage='reinit'
    if name == 'anew':
        expected = prompts.initial_row(block)
    arrives = name in ('anew', 'shrink_in_place') or name == 'shrink' and int(prompts.block_index[prompt]) != block
    torch.manual_seed(5)
    session.apply([(prompt, block)])
    row = prompts.tokens.detach()[prompt]
    torch.testing.assert_close(row[:width], expected * (FACTOR if shrinks and arrives else 1), rtol=1e-6, atol=0)
    assert not row[width:].any()
    rewritten = crosses or arrives
    torch.testing.assert_close(average[prompt], row if rewritten else lagging[prompt], rtol=0, atol=0)
    forgotten = crosses or name == 'anew'  # a shrunken row keeps its momentum, as the authors' code does
    assert momentum[prompt].any() != forgotten
    others = [number for number in range(len(prompts.tokens)) if number != prompt]
    assert torch.equal(prompts.tokens[others], before[others]) and momentum[others].any(1).all()
    assert torch.equal(average[others], lagging[others])
    assert int(prompts.block_index[prompt]) == block and not prompts.tokens.grad[prompt].any()


def test_a_prompt_that_no_block_owns_does_not_arrive():
    session, prompts, _ = trained('shrink')
    before = prompts.tokens.detach().clone()
    session.apply([(0, -1)])
    assert torch.equal(prompts.tokens, before) and int(prompts.block_index[0]) == -1


@pytest.mark.parametrize('form', ['StaticPrompts', 'AdaptivePrompts'])
def test_what_a_block_reads_of_a_shrunken_row(form):
    """Static: the row is shorter. Adaptive: so is the prompt, which scales with its row."""
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=0)
    prompts = inject_prompts(vit, dict(type=form, num_tokens=2))
    with torch.no_grad():
        prompts.tokens.normal_()
    seen = []
    read = prompts.read
    prompts.read = lambda *args: seen.append(read(*args)) or seen[-1]
    images = torch.randn(2, 3, 32, 32)
    vit.eval()(images)
    session = RelocationSession(prompts, torch.optim.SGD([prompts.tokens], lr=0.1),
                                arrival=dict(SHRINK, type='shrink_in_place'), **ANY)
    session.apply([(4, 2)])  # of block 2, the first of two
    session.close()
    vit(images)
    before, after = (each[..., 0, :] for each in (seen[2], seen[5]))
    torch.testing.assert_close(after, FACTOR * before, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen[5][..., 1, :], seen[2][..., 1, :])


@pytest.mark.parametrize('arrival, message', [
    ('shrunk', "type='shrunk' is unknown; known are keep, shrink"),
    (dict(type='shrink', factor=0.), 'factor must be more than 0, but is 0.0'),
    (dict(type='shrink', factor=True), 'factor=True, but it must be a finite number'),
    (dict(type='keep', factor=0.1), 'has no argument factor'),
    (None, "arrival=None, but it must be a dict such as dict\\(type='keep'\\)"),
])
def test_wrong_arrivals_are_named(arrival, message):
    with pytest.raises(ConfigError, match=message):
        Loop(arrival=arrival, **ANY)
