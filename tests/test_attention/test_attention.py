"""What the matrix of backbones does not reach: masks, refusals, and the swapping of classes itself."""
import copy
import pickle

import pytest
import timm
import torch
from matrix import randomise
from mmcv.cnn.bricks.transformer import MultiheadAttention
from torch import nn

from mmprovpt.attention import PromptReader, adopt
from mmprovpt.attention.fused_qkv import PromptedTIMMAttention
from mmprovpt.attention.mmcv_mha import PromptedMMCVAttention
from mmprovpt.attention.reader import prompt_keys_values
from mmprovpt.prompts import StaticPrompts


class Louder:

    def forward(self, x):
        return 2 * super().forward(x)


def test_adopt_changes_behaviour_and_nothing_else():
    linear = nn.Linear(2, 3)
    keys, x = list(linear.state_dict()), torch.ones(1, 2)
    expected = 2 * linear(x)
    adopt(linear, Louder)
    assert torch.equal(linear(x), expected) and isinstance(linear, nn.Linear)
    assert list(linear.state_dict()) == keys
    for twin in (copy.copy(linear), copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        assert type(twin) is type(linear) and torch.equal(twin(x), expected)
    other = nn.Linear(2, 3)
    adopt(other, Louder)
    assert type(other) is type(linear)
    assert type(nn.Linear(2, 3)) is nn.Linear


@pytest.fixture
def pool():
    torch.manual_seed(0)
    return StaticPrompts(3, patch_fan_in=48, widths=[8], dropout=0.)


def prompted(attention, mixin, pool):
    randomise(attention)
    norm = nn.LayerNorm(8)
    attention.prompt_reader = PromptReader(pool, 0, norm)
    adopt(attention, mixin)
    return norm(pool.rows(0))


@pytest.mark.parametrize('kind', ['bool', 'float'])
@torch.no_grad()
def test_timm_mask_hides_tokens_but_no_prompt(pool, kind):
    attention = timm.layers.Attention(8, num_heads=2, qkv_bias=True).eval()
    rows = prompted(attention, PromptedTIMMAttention, pool)
    x = torch.randn(2, 5, 8)
    mask = torch.ones(5, 5).tril().bool()
    ours = attention(x, attn_mask=mask if kind == 'bool' else torch.zeros(5, 5).masked_fill(~mask, -torch.inf))
    whole = torch.zeros(8, 8).bool()
    whole[:, 5:] = True
    whole[:5, :5] = mask
    upstream = type(attention).upstream.forward
    expected = upstream(attention, torch.cat([x, rows.expand(2, -1, -1)], 1), attn_mask=whole)
    torch.testing.assert_close(ours, expected[:, :5], rtol=1e-5, atol=1e-6)


def test_timm_causal_is_refused(pool):
    attention = timm.layers.Attention(8, num_heads=2)
    prompted(attention, PromptedTIMMAttention, pool)
    with pytest.raises(ValueError, match='is_causal=True with prompts'):
        attention(torch.zeros(1, 5, 8), is_causal=True)


@pytest.mark.parametrize('call, batch_first, given', [
    (lambda m, x: m(x, x), True, '1 positional'),
    (lambda m, x: m(x, key=x), True, "'key'"),
    (lambda m, x: m(x, attn_mask=x), True, "'attn_mask'"),
    (lambda m, x: m(x), False, 'batch_first=False'),
])
def test_mmcv_refuses_what_it_would_ignore(pool, call, batch_first, given):
    attention = MultiheadAttention(8, 2, batch_first=batch_first)
    prompted(attention, PromptedMMCVAttention, pool)
    with pytest.raises(ValueError, match=given):
        call(attention, torch.zeros(2, 5, 8))


@pytest.mark.parametrize('shape', [(3, 8), (2, 3, 8)])
def test_keys_and_values_go_to_the_windows_of_their_sample(shape):
    weight, bias, rows = torch.randn(24, 8), torch.randn(24), torch.randn(shape)
    k, v = prompt_keys_values(rows, weight, bias, num_heads=2, batch_size=6)
    assert k.shape == v.shape == (6, 2, 3, 4)
    for window in range(6):
        own = rows if rows.dim() == 2 else rows[window // 3]
        for got, part in ((k, slice(8, 16)), (v, slice(16, 24))):
            expected = own @ weight[part].T + bias[part]
            torch.testing.assert_close(got[window].transpose(0, 1).flatten(1), expected)
