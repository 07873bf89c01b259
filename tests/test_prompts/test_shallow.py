"""What is particular to VPT-Shallow; values, gradients, copies, checkpointing and checkpoints: the matrix."""
import pytest
import timm
import torch
from matrix import CASES, KINDS, build, images, loss, outputs, randomise
from torch import nn

from mmprovpt import inject_prompts
from mmprovpt.cli.parameters import count_trainable
from mmprovpt.hooks.find import find_relocating_prompts
from mmprovpt.prompts import ShallowPrompts

SHALLOW = KINDS['shallow']


def pool(num_tokens=2, **options):
    return ShallowPrompts(num_tokens, patch_fan_in=48, widths=[8, 8, 8], **options)


@torch.no_grad()
def test_equals_tokens_that_stay():
    """VPT-Shallow: [x_cls, P, E] goes in, and all blocks treat prompts as tokens; without any of our code."""
    def vit():
        return randomise(timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=32, depth=3,
                                           num_heads=2, num_classes=0)).eval()
    ours, x = vit(), torch.randn(2, 3, 32, 32)
    rows = inject_prompts(ours, dict(SHALLOW, num_tokens=4)).tokens
    theirs = vit()
    tokens = theirs._pos_embed(theirs.patch_embed(x))
    tokens = torch.cat([tokens[:, :1], rows.expand(2, -1, -1), tokens[:, 1:]], 1)
    for block in theirs.blocks:
        tokens = block(tokens)
    expected = theirs.norm(tokens)
    torch.testing.assert_close(ours.forward_features(x), expected[:, [0, *range(5, 21)]], rtol=1e-5, atol=1e-5)
    # They are not VPT-Deep's prompts of the first block, whose outputs are thrown away.
    deep = vit()
    inject_prompts(deep, dict(KINDS['static'], num_tokens=[4, 0, 0])).tokens.copy_(rows)
    assert (deep(x) - ours(x)).abs().max() > 0.01


@pytest.mark.parametrize('name', ['mmpretrain-vit', 'mmdet-swin', 'timm-swin'])
def test_dropout_is_drawn_once_per_sample_and_in_training_only(name):
    backbone = build(CASES[name], dict(SHALLOW, num_tokens=2, dropout=0.5)).train()
    x = images(CASES[name], batch=1).expand(2, -1, -1, -1)
    given = []
    read = ShallowPrompts.read
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShallowPrompts, 'read', lambda *args: given.append(read(*args)) or given[-1])
        noisy = outputs(backbone, x)[-1]
        rows, *later = given
        assert 0.2 < (rows == 0).float().mean() < 0.8 and not torch.equal(rows[0], rows[1])
        assert len(later) == CASES[name].depth - 1 and not any((each == 0).any() for each in later)
        assert not torch.allclose(noisy[0], noisy[1])
        quiet = outputs(backbone.eval(), x)[-1]
    torch.testing.assert_close(quiet[0], quiet[1])


def test_checkpointing_of_timm_changes_nothing():
    grads = []
    for checkpointing in (False, True):
        vit = randomise(timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=32, depth=3,
                                          num_heads=2, num_classes=0))
        torch.manual_seed(0)
        own = inject_prompts(vit, dict(SHALLOW, num_tokens=2))
        vit.set_grad_checkpointing(checkpointing)
        loss(vit.train(), images(CASES['timm-vit'])).backward()
        grads.append(own.tokens.grad)
    assert grads[0].abs().sum(1).all() and torch.equal(*grads)


def test_parameters():
    own = pool(3)
    assert own.distribution.tolist() == [3, 0, 0] and own.num_active == 3 * 8
    assert count_trainable(nn.Sequential(own, nn.Linear(2, 4))) == 3 * 8 + 12


@pytest.mark.parametrize('options, error, message', [
    (dict(num_tokens=[1, 0, 0]), ValueError, r'num_tokens=\[1, 0, 0\], but it must be an int'),
    (dict(num_tokens=-1), ValueError, 'counts must be 0 or more'),
    (dict(cross_stage='project'), ValueError, 'cross_stage=.project., but prompts of VPT-Shallow do not relocate'),
    (dict(dropout=1.), ValueError, r'must be a number in \[0, 1\)'),
])
def test_mistakes(options, error, message):
    with pytest.raises(error, match=message):
        pool(**options)


@pytest.mark.parametrize('prompts, message', [
    (dict(SHALLOW, num_tokens=2), 'nothing to relocate: ShallowPrompts all enter the first block and stay'),
    (dict(KINDS['adaptive'], num_tokens=0), 'has no prompt to relocate: num_tokens is 0'),
])
def test_relocation_hook_needs_something_to_relocate(prompts, message):
    with pytest.raises(ValueError, match=message):
        find_relocating_prompts(build(CASES['mmpretrain-vit'], prompts))
