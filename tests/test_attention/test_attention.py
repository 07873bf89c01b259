"""What the matrix of backbones does not reach: masks, and what is refused."""
import copy
import math

import pytest
import timm
import torch
from matrix import randomise
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmprovpt import inject_prompts
from mmprovpt.attention import PromptedBlock, running
from mmprovpt.attention.beit import PromptedBEiTAttention
from mmprovpt.attention.block import TokenBlock
from mmprovpt.attention.mmcv_mha import PromptedMMCVAttention
from mmprovpt.attention.rotary import PromptedRotaryAttention
from mmprovpt.attention.timm_attention import PromptedTIMMAttention
from mmprovpt.attention.window_v2 import PromptedWindowAttentionV2
from mmprovpt.backbones.adopt import adopt
from mmprovpt.prompts import ShallowPrompts, StaticPrompts


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


def prompted(attention, mixin, prompts, around=PromptedBlock):
    block = randomise(Block(attention)).eval()
    block.place = attention.place = running.Place(prompts, 0)
    adopt(attention, mixin)
    adopt(block, around)
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


@pytest.mark.parametrize('kind', ['bool', 'float'])
@pytest.mark.parametrize('mixin', [PromptedBlock, TokenBlock])
@pytest.mark.parametrize('fused', [True, False])
@torch.no_grad()
def test_rotary_mask_hides_tokens_but_no_prompt(fused, mixin, kind):
    """Two prefix tokens and three patches; prompts stand behind the prefix in the reference, behind all in ours."""
    torch.manual_seed(0)
    form = StaticPrompts if mixin is PromptedBlock else ShallowPrompts
    prompts = form(3, patch_fan_in=48, widths=[8], dropout=0.)
    attention = timm.layers.AttentionRope(8, num_heads=2, num_prefix_tokens=2, qkv_fused=fused)
    block = prompted(attention, PromptedRotaryAttention, prompts, mixin)
    x, rope = torch.randn(2, 5, 8), torch.randn(3, 8)
    mask = torch.ones(5, 5).tril().bool()
    ours = block(x, rope=rope, attn_mask=mask if kind == 'bool' else torch.zeros(5, 5).masked_fill(~mask, -torch.inf))
    tokens = [0, 1, 5, 6, 7]
    whole = torch.ones(8, 8).bool()
    whole[torch.tensor(tokens)[:, None], tokens] = mask
    rows = torch.cat([x[:, :2], prompts.tokens.expand(2, -1, -1), x[:, 2:]], 1)
    attention.num_prefix_tokens = 5
    expected = type(attention).upstream.forward(attention, block.norm1(rows), rope=rope, attn_mask=whole)
    torch.testing.assert_close(ours, expected[:, tokens], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('attention, mixin', [
    (timm.layers.Attention, PromptedTIMMAttention), (timm.layers.AttentionRope, PromptedRotaryAttention)])
def test_timm_causal_is_refused(prompts, attention, mixin):
    block = prompted(attention(8, num_heads=2), mixin, prompts)
    with pytest.raises(ValueError, match='is_causal=True with prompts'):
        block(torch.zeros(1, 5, 8), is_causal=True)


@torch.no_grad()
def test_own_and_shared_bias_of_beit_are_added(prompts):
    attention = timm.models.beit.Attention(8, num_heads=2, qkv_bias=True, window_size=(2, 2))
    block = prompted(attention, PromptedBEiTAttention, prompts)
    x, shared = torch.randn(2, 5, 8), torch.randn(2, 5, 5)
    own = attention._get_rel_pos_bias()[0]
    ours = block(x, shared_rel_pos_bias=shared)
    torch.testing.assert_close(block(x, rel_pos_bias=shared), ours)  # MMPretrain's name
    attention.relative_position_bias_table = None
    torch.testing.assert_close(block(x, shared + own), ours)
    assert not torch.allclose(block(x), ours)


@torch.no_grad()
def test_scale_of_cosine_attention_ends_at_100(prompts):
    attention = timm.models.swin_transformer_v2.WindowAttention(8, (2, 2), num_heads=2)
    block = prompted(attention, PromptedWindowAttentionV2, prompts)
    attention.logit_scale.fill_(9.)
    ours = block(torch.ones(2, 4, 8))
    attention.logit_scale.fill_(math.log(100))
    torch.testing.assert_close(block(torch.ones(2, 4, 8)), ours)


def test_classes_that_differ_in_name_alone():
    """Of MMSegmentation's MAE, whose attention is that of its BEiT."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        backbone = MODELS.build(dict(type='MAE', embed_dims=8, num_layers=2, num_heads=2, img_size=(32, 32)))
    plain, x = copy.deepcopy(backbone), torch.randn(1, 3, 32, 32)
    inject_prompts(backbone, dict(type='StaticPrompts', num_tokens=2))
    assert {type(layer.attn).mixin for layer in backbone.layers} == {PromptedBEiTAttention}
    for each in (backbone, plain):
        each.eval()  # it returns None
    assert not torch.allclose(backbone(x)[0], plain(x)[0])


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
