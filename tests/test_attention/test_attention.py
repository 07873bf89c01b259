"""What the matrix of backbones does not reach: masks, and what is refused."""
import pytest
import timm
import torch
from matrix import randomise
from mmcv.cnn.bricks.transformer import MultiheadAttention
from torch import nn

from mmprovpt.attention import PromptedBlock, running
from mmprovpt.attention.mmcv_mha import PromptedMMCVAttention
from mmprovpt.attention.timm_attention import PromptedTIMMAttention
from mmprovpt.backbones.adopt import adopt
from mmprovpt.prompts import StaticPrompts


class Block(nn.Module):
    """Attention behind a norm, called with whatever else."""

    def __init__(self, attention):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(8), attention

    def forward(self, x, *args, **kwargs):
        return self.attn(self.norm1(x), *args, **kwargs)


@pytest.fixture
def prompts():
    torch.manual_seed(0)
    return StaticPrompts(3, patch_fan_in=48, widths=[8], dropout=0.)


def prompted(attention, mixin, prompts):
    block = randomise(Block(attention)).eval()
    block.place = attention.place = running.Place(prompts, 0)
    adopt(attention, mixin)
    adopt(block, PromptedBlock)
    return block


@pytest.mark.parametrize('kind', ['bool', 'float'])
@torch.no_grad()
def test_timm_mask_hides_tokens_but_no_prompt(prompts, kind):
    block = prompted(timm.layers.Attention(8, num_heads=2, qkv_bias=True), PromptedTIMMAttention, prompts)
    x = torch.randn(2, 5, 8)
    mask = torch.ones(5, 5).tril().bool()
    ours = block(x, attn_mask=mask if kind == 'bool' else torch.zeros(5, 5).masked_fill(~mask, -torch.inf))
    whole = torch.zeros(8, 8).bool()
    whole[:, 5:] = True
    whole[:5, :5] = mask
    tokens = block.norm1(torch.cat([x, prompts.tokens.expand(2, -1, -1)], 1))
    expected = type(block.attn).upstream.forward(block.attn, tokens, attn_mask=whole)
    torch.testing.assert_close(ours, expected[:, :5], rtol=1e-5, atol=1e-6)


def test_timm_causal_is_refused(prompts):
    block = prompted(timm.layers.Attention(8, num_heads=2), PromptedTIMMAttention, prompts)
    with pytest.raises(ValueError, match='is_causal=True with prompts'):
        block(torch.zeros(1, 5, 8), is_causal=True)


@pytest.mark.parametrize('kwargs, batch_first, given', [
    (dict(key=torch.zeros(2, 5, 8)), True, "'key'"),
    (dict(attn_mask=torch.zeros(5, 5)), True, "'attn_mask'"),
    ({}, False, 'batch_first=False'),
])
def test_mmcv_refuses_what_it_would_ignore(prompts, kwargs, batch_first, given):
    block = prompted(MultiheadAttention(8, 2, batch_first=batch_first), PromptedMMCVAttention, prompts)
    with pytest.raises(ValueError, match=given):
        block(torch.zeros(2, 5, 8), **kwargs)


def test_mmcv_refuses_a_projection_that_it_would_pass_by(prompts):
    """Its weights are read bare, so whoever wraps or replaces the module would be left out of the prompts."""
    class Wrapped(nn.MultiheadAttention):
        pass

    block = prompted(MultiheadAttention(8, 2, batch_first=True), PromptedMMCVAttention, prompts)
    block.attn.attn.__class__ = Wrapped
    with pytest.raises(TypeError, match='Wrapped now, which may project otherwise'):
        block(torch.zeros(2, 5, 8))


def test_attention_never_runs_without_the_prompts_of_its_block(prompts):
    block = prompted(timm.layers.Attention(8, num_heads=2), PromptedTIMMAttention, prompts)
    x = torch.zeros(1, 5, 8)
    with pytest.raises(RuntimeError, match='of block 0 reads prompts, but no block has handed any to it'):
        block.attn(x)
    with pytest.raises(RuntimeError, match='no block has handed'):
        type(block).upstream.forward(block, x)
    assert block(x).shape == x.shape


def test_an_exception_leaves_nothing_behind(prompts):
    block = prompted(timm.layers.Attention(8, num_heads=2), PromptedTIMMAttention, prompts)
    x = torch.zeros(1, 5, 8)
    with pytest.raises(RuntimeError):
        block(torch.zeros(1, 5, 9))
    block.attn.proj.register_forward_pre_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        block(x)
    assert running.handed() is None
    with pytest.raises(RuntimeError, match='no block has handed'):
        block.attn(x)
