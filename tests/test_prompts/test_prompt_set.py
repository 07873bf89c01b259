import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmprovpt.prompts import AdaptivePrompts, StaticPrompts


def pool(num_tokens=2, widths=(8, 8, 8), **kwargs):
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
        assert (rows is None) if not mine else torch.equal(rows, tokens[mine])


def test_a_prompt_can_be_taken_out_and_come_back():
    own = pool(2, widths=(8, 4))
    tokens = own.tokens.detach().clone()
    assert own.relocate(0, -1) is False
    assert own.block_index.tolist() == [-1, 0, 1, 1]
    assert own.distribution.tolist() == [1, 2] and own.num_active == 8 + 2 * 4
    assert torch.equal(own.rows(0), tokens[1:2])
    own.rows(0).sum().backward()
    assert not own.tokens.grad[0].any(), 'nobody reads it'
    assert own.relocate(0, 1) is True
    assert torch.equal(own.rows(1)[0], tokens[0, :4]) and not own.tokens[0, 4:].any()


def test_spare_prompts_are_drawn_and_owned_by_nobody():
    own = pool([1, 0], widths=(8, 4), num_spare=2)
    assert own.block_index.tolist() == [0, -1, -1]
    assert own.distribution.tolist() == [1, 0] and own.num_active == 8
    assert own.tokens[1:].abs().min() > 0
    other = pool([1, 0], widths=(8, 4), num_spare=2)
    other.load_state_dict(own.state_dict())
    assert torch.equal(other.tokens, own.tokens) and other.distribution.tolist() == [1, 0]
    with own.guest(2):
        assert torch.equal(own.rows(1), own.tokens[2:, :4])
    with pytest.raises(ValueError, match='num_spare=-1'):
        pool(1, num_spare=-1)


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
    (1.5, TypeError, 'must be an int'),
    ('10', TypeError, 'must be an int'),
    ([1, 2, '3'], TypeError, 'list of 3 ints'),
    (True, TypeError, 'must be an int'),
])
@every_kind
def test_bad_num_tokens(pool, num_tokens, error, message):
    with pytest.raises(error, match=message):
        pool(num_tokens)


@pytest.mark.parametrize('kwargs, message', [
    (dict(dropout=1.), r'dropout=1.0, but it must be in \[0, 1\)'),
    (dict(dropout=-0.1), 'dropout=-0.1'),
    (dict(carry='teleport'), "carry='teleport', but it must be one of"),
])
def test_bad_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        pool(**kwargs)


@pytest.mark.parametrize('prompt, block, message', [
    (6, 0, 'prompt 6: this pool has the prompts 0 to 5'),
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
    """As EMA's copies are: through ``.data``, past every hook; a change of mode follows before use."""
    own = pool(1)
    own.block_index.data.copy_(torch.tensor([2, 2, 2]))
    own.eval()
    assert own.rows(0) is None and len(own.rows(2)) == 3


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


@pytest.mark.parametrize('kind', [Unfolding, Concatenating])
def test_carry_deeper_is_what_patch_merging_does(kind):
    torch.manual_seed(0)
    mergings = [kind(8), kind(16)]
    own = pool(1, widths=(8, 8, 16, 32), mergings=mergings)
    row = own.rows(0)[0].detach().clone()
    expected, size = row.expand(1, 4, -1), (2, 2)
    for merging in mergings:
        expected, _ = merging(expected, size)
        expected = expected.expand(1, 4, -1)
    assert own.relocate(0, 3) is True
    new = own.tokens[0]
    assert torch.cosine_similarity(new, expected[0, 0], 0).item() == pytest.approx(1, abs=1e-6)
    assert new.square().mean().item() == pytest.approx(row.square().mean().item(), rel=1e-4)
    assert not any(name.startswith('_mergings') for name in own.state_dict())


@pytest.mark.parametrize('kind', [Unfolding, Concatenating])
def test_carry_shallower_inverts_it(kind):
    """Deeper and back is the identity up to scale and mean, to which LayerNorm is blind."""
    torch.manual_seed(0)
    own = pool(1, widths=(8, 16, 32), mergings=[kind(8), kind(16)])
    row = own.rows(0)[0].detach().clone()
    assert own.relocate(0, 2) and own.relocate(0, 0)
    back = own.tokens[0, :8]
    assert not own.tokens[0, 8:].any()
    centred = [r - r.mean() for r in (row, back)]
    assert torch.cosine_similarity(*centred, 0).item() == pytest.approx(1, abs=1e-3)


def test_reinit_draws_anew_in_the_new_width():
    torch.manual_seed(0)
    own = pool(1, widths=(8, 64), carry='reinit')
    row = own.tokens[0].detach().clone()
    assert own.relocate(0, 1)
    assert own.tokens[0].ne(0).all() and not torch.equal(own.tokens[0, :8], row[:8])
    assert own.tokens[0].abs().max() <= math.sqrt(6 / (3 * 4**2 + 64))
    assert own.rows(0) is None and own.rows(1).shape == (2, 64)
