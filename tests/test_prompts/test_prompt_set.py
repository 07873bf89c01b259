import math
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmprovpt.errors import ConfigError
from mmprovpt.prompts import FORMS, AdaptivePrompts, StaticPrompts


def pool(num_tokens=2, widths=(8, 8, 8), cross_stage='reinit', **kwargs):
    kwargs['cross_stage'] = cross_stage
    return StaticPrompts(num_tokens, patch_fan_in=3 * 4**2, widths=widths, **kwargs)


def adaptive_pool(num_tokens=2, widths=(8, 8, 8)):
    own = AdaptivePrompts(num_tokens, patch_fan_in=3 * 4**2, widths=widths, static_blocks=(), grid_size=3)
    nn.init.normal_(own.tokens)
    return own


# What holds for every kind of prompts that relocates.
every_kind = pytest.mark.parametrize('pool', [pool, adaptive_pool], ids=['static', 'adaptive'])


@every_kind
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_relocation_moves_one_row_and_touches_nothing_else(pool, counts, data):
    own = pool(counts, widths=[4] * len(counts))
    assert own.distribution.tolist() == counts and own.distribution.dtype == torch.int64
    if sum(counts) == 0:
        assert not own.tokens.requires_grad
        return
    prompt = data.draw(st.integers(0, sum(counts) - 1))
    block = data.draw(st.integers(0, len(counts) - 1))
    tokens, index = own.tokens.detach().clone(), own.block_index.tolist()
    assert own.relocate(prompt, block) is False
    index[prompt] = block
    assert own.block_index.tolist() == index
    assert torch.equal(own.tokens, tokens)
    for number in range(len(counts)):
        mine = [k for k, owner in enumerate(index) if owner == number]
        rows = own.rows(number)
        assert torch.equal(rows, tokens[mine])


def test_a_prompt_that_no_block_owns_is_read_by_none():
    own = pool(2, widths=(8, 8))
    assert own.relocate(0, -1) is False
    with pytest.raises(IndexError, match='prompt 0 belongs to no block'):
        own.relocate(0, 1)
    assert own.distribution.tolist() == [1, 2] and own.num_active == 3 * 8
    assert [owned.tolist() for owned in own.owners()] == [[1], [2, 3]]
    own.rows(0).sum().backward()
    assert not own.tokens.grad[0].any()


def test_hidden_prompts_nest_and_are_hidden_in_their_thread_only():
    own = pool(2, widths=(8, 8))

    def owned():
        return [block.tolist() for block in own.owners()]

    seen = []
    with own.without(0):
        with own.without(3, 1):
            assert owned() == [[], [2]]
            thread = threading.Thread(target=lambda: seen.append(owned()))
            thread.start()
            thread.join()
        assert owned() == [[1], [2, 3]]
        with pytest.raises(ZeroDivisionError), own.without(1):
            raise ZeroDivisionError
        assert owned() == [[1], [2, 3]]
    assert owned() == [[0, 1], [2, 3]] and seen == [[[0, 1], [2, 3]]]


def test_widths_without_a_way_between_them():
    with pytest.raises(ConfigError, match=r'of widths \[8, 16\], but this backbone merges nothing: set cross_stage'):
        pool(1, widths=(8, 16), cross_stage='project')
    with pytest.raises(ConfigError, match=r'merges \[\(16, 32\)\]'):
        pool(1, widths=(8, 16), mergings=[Unfolding(16)], cross_stage='project')


def test_options_of_earlier_releases():
    assert FORMS.check(dict(type='StaticPrompts', num_tokens=1, dropout=0.2)) == (
        StaticPrompts, dict(num_tokens=1, dropout=0.2))
    with pytest.warns(FutureWarning, match='carry is called cross_stage now'):
        arguments = FORMS.check(dict(type='mmprovpt.StaticPrompts', carry='reinit'))[1]
    assert arguments == dict(cross_stage='reinit')
    with pytest.raises(ConfigError, match='StaticPrompts has no num_spare any more: .* benchmarks/table3'):
        FORMS.check(dict(type=StaticPrompts, num_spare=2))


def test_initialisation():
    torch.manual_seed(0)
    own = pool(500, widths=(16, 64))
    for block, width in enumerate((16, 64)):
        rows, bound = own.rows(block), math.sqrt(6 / (3 * 4**2 + width))
        assert rows.shape == (500, width)
        assert rows.abs().max() <= bound
        assert rows.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not own.tokens[:500, 16:].any()
    assert own.num_active == 500 * (16 + 64)


@pytest.mark.parametrize('num_tokens, error, message', [
    (-1, ValueError, '0 or more'),
    ([1, 2], ValueError, 'has 2 entries, but the backbone has 3 blocks'),
    ([1, -2, 3], ValueError, '0 or more'),
    (1.5, ConfigError, 'must be an int'),
    ('10', ConfigError, 'must be an int'),
    ([1, 2, '3'], ConfigError, 'list of 3 ints'),
    (True, ConfigError, 'must be an int'),
    (None, ConfigError, 'must be an int'),
])
@every_kind
def test_bad_num_tokens(pool, num_tokens, error, message):
    with pytest.raises(error, match=message):
        pool(num_tokens)


@pytest.mark.parametrize('kwargs, message', [
    (dict(dropout=1.), r'dropout=1.0, but it must be a number in \[0, 1\)'),
    (dict(dropout=-0.1), 'dropout=-0.1'),
    (dict(dropout='0.1'), "dropout='0.1'"),
    (dict(dropout=True), 'dropout=True'),
    (dict(cross_stage='teleport'), "cross_stage='teleport', but it must be one of"),
])
def test_bad_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        pool(**kwargs)


@pytest.mark.parametrize('prompt, block, message', [
    (6, 0, 'prompt 6: there are the prompts 0 to 5'),
    (-1, 0, 'prompt -1'),
    (0, 3, 'block 3: this backbone has the blocks 0 to 2'),
    (0, -2, 'block -2'),
])
@every_kind
def test_out_of_range(pool, prompt, block, message):
    own = pool()
    with pytest.raises(IndexError, match=message):
        own.relocate(prompt, block)
    assert own.distribution.tolist() == [2, 2, 2]


@every_kind
def test_checkpoint_of_a_deeper_backbone_is_refused(pool):
    state = pool(2).state_dict()
    state['block_index'][0] = 7
    with pytest.raises(RuntimeError, match='names the blocks 0 to 7, but this backbone has the blocks 0 to 2'):
        pool(2).load_state_dict(state)


@every_kind
def test_buffer_written_from_outside_is_noticed(pool):
    """As EMA's copies are: through ``.data``, past every hook."""
    own = pool(1)
    own.block_index.data.copy_(torch.tensor([2, 2, 2]))
    assert [len(owned) for owned in own.owners()] == [0, 0, 3] and len(own.rows(2)) == 3


class Unfolding(nn.Module):
    """OpenMMLab's patch merging, as far as a prompt meets it."""

    def __init__(self, width):
        super().__init__()
        self.sampler = nn.Unfold(2, stride=2)
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x, size):
        x = self.sampler(x.transpose(1, 2).unflatten(2, size)).transpose(1, 2)
        return self.reduction(self.norm(x)), (1, 1)


class Concatenating(Unfolding):
    """That of Swin's authors and timm."""

    def __init__(self, width):
        super().__init__(width)
        self.sampler = None

    def forward(self, x, size):
        x = x.unflatten(1, size)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1).flatten(1, 2)
        return self.reduction(self.norm(x)), (1, 1)


class NormingAfter(Concatenating):
    """That of SwinV2."""

    def __init__(self, width):
        super().__init__(width)
        self.norm = nn.LayerNorm(2 * width)
        with torch.no_grad():
            for parameter in self.norm.parameters():
                parameter.normal_()

    def forward(self, x, size):
        return self.norm(self.reduction(x.flatten(1)[:, None])), None


@pytest.mark.parametrize('kind', [Unfolding, Concatenating, NormingAfter])
def test_projecting_deeper_is_what_patch_merging_does(kind):
    torch.manual_seed(0)
    mergings = [kind(8), kind(16)]
    own = pool(1, widths=(8, 8, 16, 32), mergings=mergings, cross_stage='project')
    row = own.rows(0)[0].detach().clone()
    expected, size = row.expand(1, 4, -1), (2, 2)
    for merging in mergings:
        expected, _ = merging(expected, size)
        expected = expected.expand(1, 4, -1)
    assert own.relocate(0, 3) is True
    new = own.tokens[0]
    assert torch.cosine_similarity(new, expected[0, 0], 0).item() == pytest.approx(1, abs=1e-6)
    assert new.square().mean().item() == pytest.approx(row.square().mean().item(), rel=1e-4)
    assert not any(name.startswith('mergings') for name in own.state_dict())


@pytest.mark.parametrize('kind', [Unfolding, Concatenating, NormingAfter])
def test_projecting_shallower_inverts_it(kind):
    """Deeper and back is the identity up to scale and mean, to which LayerNorm is blind."""
    torch.manual_seed(0)
    own = pool(1, widths=(8, 16, 32), mergings=[kind(8), kind(16)], cross_stage='project')
    row = own.rows(0)[0].detach().clone()
    assert own.relocate(0, 2) and own.relocate(0, 0)
    back = own.tokens[0, :8]
    assert not own.tokens[0, 8:].any()
    centred = [r - r.mean() for r in (row, back)]
    assert torch.cosine_similarity(*centred, 0).item() == pytest.approx(1, abs=1e-3)


def test_reinit_draws_anew_in_the_new_width():
    torch.manual_seed(0)
    own = pool(1, widths=(8, 64))
    row = own.tokens[0].detach().clone()
    assert own.relocate(0, 1)
    assert own.tokens[0].ne(0).all() and not torch.equal(own.tokens[0, :8], row[:8])
    assert own.tokens[0].abs().max() <= math.sqrt(6 / (3 * 4**2 + 64))
    assert own.rows(0).shape == (0, 8) and own.rows(1).shape == (2, 64)
