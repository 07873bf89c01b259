"""What is particular to adaptive prompts; values, gradients, copies and checkpoints: the matrix."""
import pytest
import torch
from matrix import CASES, KINDS, build, images, loss
from torch import nn

from mmprovpt import tuned_state_dict
from mmprovpt.attention import Given
from mmprovpt.cli.parameters import count_trainable
from mmprovpt.prompts import AdaptivePrompts

VIT = CASES['mmpretrain-vit']


def pool(num_tokens=2, widths=(8, 8, 8), **options):
    return AdaptivePrompts(num_tokens, patch_fan_in=48, widths=widths, **dict(dict(grid_size=3), **options))


def read(own, block, x, grid=(3, 3)):
    """What a block reads of its input (B, N, C)."""
    return own.read(block, x, Given(own.owners()[block], grid, None))


def test_start():
    own = pool(static_blocks=(1, ), kernel_size=2, grid_size=4)
    rows = [own.tokens[own.block_index == block] for block in range(3)]
    assert own.widths == [10, 8, 10] and own.tokens.shape == (6, 10)
    assert not rows[0].any() and not rows[2].any()
    bound = (6 / (48 + 8))**0.5
    assert rows[1][:, :8].abs().max() <= bound and rows[1][:, :8].std() > bound / 4 and not rows[1][:, 8:].any()
    assert torch.equal(own.norms[0], torch.ones(3, 8)) and not own.norms[1].any()
    assert own.down.shape == (1, 8, 8) and own.down.abs().max() <= 8**-0.5


def test_dropout():
    """Channels in all prompts of a sample, hidden numbers of each prompt, numbers of static prompts; in training."""
    torch.manual_seed(0)
    x = torch.randn(1, 9, 64).expand(50, -1, -1)
    own = pool(4, widths=(64, 64), channel_dropout=0.5, projector_dropout=0., hidden_dims=3)
    nn.init.normal_(own.tokens)
    own.tokens.data[4:, 4] = 0  # the bias, which is never dropped
    nn.init.zeros_(own.up)
    kept = read(own.train(), 1, x) != 0
    assert 0.45 < kept.float().mean() < 0.55
    assert torch.equal(kept, kept[:, :1].expand_as(kept)) and not torch.equal(kept[0], kept[1])
    exact = read(own.eval(), 1, x)
    dropped = read(own.train(), 1, x)
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0., 2 * exact))
    assert torch.equal(read(own.eval(), 1, x), exact)
    static = read(own.train(), 0, x)
    assert static.shape == (50, 4, 64) and 0.05 < (static == 0).float().mean() < 0.15
    assert read(own.eval(), 0, x).shape == (4, 64)

    own = pool(4, widths=(64, 64), channel_dropout=0., projector_dropout=0.5, hidden_dims=1)
    nn.init.normal_(own.tokens)
    nn.init.ones_(own.up)
    added = read(own.train(), 1, x) - read(own.eval(), 1, x)
    hidden = added[..., 0]  # -h where dropped, +h where kept
    assert ((hidden > 0).any() and (hidden < 0).any()) and not torch.equal(hidden[0], hidden[1])
    torch.testing.assert_close(added, hidden[..., None].expand_as(added), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['mmpretrain-vit', 'mmdet-swin'])
def test_prompts_of_a_block_start_equal_and_dropout_parts_them(name):
    backbone = build(CASES[name], dict(KINDS['adaptive'], num_tokens=3)).train()
    own, last = backbone.prompts, CASES[name].depth - 1
    own.tokens.data.zero_()
    nn.init.normal_(own.down), nn.init.normal_(own.up)
    optimizer = torch.optim.SGD(own.parameters(), lr=1e-3)

    def parted(rows):
        return float((rows[0] - rows[1]).norm() / rows[0].norm())

    def step():
        optimizer.zero_grad()
        loss(backbone, images(CASES[name])).backward()
        optimizer.step()
        return own.tokens.detach()[own.block_index == last]

    rows = step()
    assert rows.any() and parted(rows) < 1e-5
    assert parted(step()) < 1e-5, 'without dropout they stay so'
    own.dropouts['projector_dropout'] = 0.5
    assert parted([step() for _ in range(10)][-1]) > 1e-4


def test_moving_keeps_rows_but_not_in_or_out_of_static_blocks():
    own = pool(2, widths=(8, 16, 16))
    nn.init.normal_(own.tokens)
    row = own.tokens[2].detach().clone()
    assert not own.relocate(2, 2), 'in another width, too: nothing that an optimizer remembers is void'
    assert torch.equal(own.tokens[2], row)
    assert own.relocate(2, 0) and own.tokens[2, :8].any() and not torch.equal(own.tokens[2, :5], row[:5])
    assert not own.tokens[2, 8:].any()
    assert own.relocate(2, 1) and not own.tokens[2].any()


def test_parameters():
    own = pool([3, 2, 1], widths=(8, 8, 16), hidden_dims=5, kernel_size=2)
    expected = 3 * 8 + 3 * (4 + 1) + (4 + 2 * 8) + (4 + 2 * 16) + 2 * 5 * (8 + 16)
    assert own.num_active == expected
    model = nn.Sequential(own, nn.Linear(3, 4))
    assert count_trainable(model) == expected + 16
    each = pool([3, 2, 1], widths=(8, 8, 16), hidden_dims=5, shared_projector=False)
    assert each.num_active == expected and each.down.shape == (3, 5, 16)


@pytest.mark.parametrize('options, error, message', [
    (dict(static_blocks=(0, 3)), ValueError, r'static_blocks=\[0, 3\], but the backbone has the blocks 0 to 2'),
    (dict(static_blocks=1), ValueError, 'must be a list of numbers of blocks'),
    (dict(cross_stage='project'), ValueError, 'equally long in all blocks'),
    (dict(kernel_size=4), ValueError, 'kernel_size=4 is more than grid_size=3'),
    (dict(grid_size=0), ValueError, 'grid_size=0, but it must be an int >= 1'),
    (dict(hidden_dims=2.), ValueError, 'hidden_dims=2.0'),
    (dict(projector_dropout=1.), ValueError, r'projector_dropout=1.0, but it must be a number in \[0, 1\)'),
])
def test_mistakes(options, error, message):
    with pytest.raises(error, match=message):
        pool(**options)


def test_inputs_that_do_not_fit():
    backbone = build(VIT, dict(KINDS['adaptive'], num_tokens=1, kernel_size=3))
    backbone(images(VIT, (24, 24)))
    with pytest.raises(ValueError, match=r'block 1 has 2 x 2 patches, fewer than the kernel of adaptive prompts \(3\)'):
        backbone(images(VIT, (16, 16)))
    own = pool()
    with pytest.raises(ValueError, match='block 1 has 4 tokens, which are not 3 x 3 patches'):
        read(own, 1, torch.zeros(1, 4, 8))
    with pytest.raises(RuntimeError, match='block 1 must know how many patches there are'):
        read(own, 1, torch.zeros(1, 9, 8), grid=None)


def test_small_state_dict():
    one, other = (build(VIT, dict(KINDS['adaptive'], num_tokens=2)).eval() for _ in range(2))
    one.prompts.relocate(0, 2)
    nn.init.normal_(one.prompts.norms)
    kept = tuned_state_dict(one)
    assert {key.split('.')[1] for key in kept} == {
        'tokens', 'block_index', 'kernels', 'norms', 'down', 'up', 'form', 'frozen_sha256'}
    x = images(VIT)
    assert not torch.equal(one(x)[-1], other(x)[-1])
    other.load_state_dict(kept)
    assert torch.equal(one(x)[-1], other(x)[-1])


@pytest.mark.parametrize('name', ['mmpretrain-vit', 'mmdet-swin'])
def test_every_parameter_that_trains_has_a_gradient(name):
    """Else DDP would wait: without prompts, where all of them are in static blocks, and where all blocks are static."""
    case = CASES[name]
    assert not any(parameter.requires_grad for parameter in pool(0).parameters())
    all_static = pool(static_blocks=(0, 1, 2))
    assert [n for n, parameter in all_static.named_parameters() if parameter.requires_grad] == ['tokens']
    backbone = build(case, dict(KINDS['adaptive'], num_tokens=[2, 1] + [0] * (case.depth - 2)))
    own = backbone.prompts
    own.relocate(2, 0)
    assert own.distribution.tolist() == [3] + [0] * (case.depth - 1)
    for mode in (True, False):
        own.zero_grad()
        loss(backbone.train(mode), images(case)).backward()
        assert all(parameter.grad is not None for parameter in own.parameters())
        assert own.tokens.grad.any() and not own.kernels.grad.any() and not own.up.grad.any()


def test_a_row_of_a_static_block_is_no_other_even_if_as_long():
    own = pool(1, widths=(5, 5, 5))
    assert own.widths == [5, 5, 5] and own.tokens[0].any()
    nn.init.normal_(own.tokens)
    assert own.relocate(0, 1) and not own.tokens[0].any()
    assert not own.relocate(0, 2)
