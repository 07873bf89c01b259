"""Averages and distances of sets of prompts, against numbers taken by hand."""
import math

import pytest
import torch
from matrix import CASES, KINDS, build, fill_rows, images, outputs

import mmprovpt
from mmprovpt.errors import ConfigError
from mmprovpt.prompts import StaticPrompts, average_prompts, compare_prompts, interpolate_prompts
from mmprovpt.visualization import plot_prompt_sets


def rows(values, num_tokens=(2, 1), widths=(3, 3)):
    prompts = StaticPrompts(list(num_tokens), 3, widths=list(widths), cross_stage='reinit')
    with torch.no_grad():
        prompts.tokens.copy_(torch.tensor(values))
    return prompts


ONE = rows([[1., 0, 0], [0, 2, 0], [0, 0, 1]])
OTHER = rows([[3., 0, 0], [0, 0, 1], [0, 0, -2]])


@pytest.mark.parametrize('mean, expected', [
    (average_prompts([ONE, OTHER]), [[2, 0, 0], [0, 1, 0.5], [0, 0, -0.5]]),
    (average_prompts([ONE, OTHER, OTHER], [2, -0.5, -0.5]), [[-1, 0, 0], [0, 4, -1], [0, 0, 4]]),
    (interpolate_prompts(ONE, OTHER, 0.25), [[1.5, 0, 0], [0, 1.5, 0.25], [0, 0, 0.25]]),
    (interpolate_prompts(ONE, OTHER, 0.), ONE.tokens.tolist())])
def test_means(mean, expected):
    assert mean['tokens'].tolist() == expected and mean['block_index'].tolist() == [0, 0, 1]
    rows([[0., 0, 0]] * 3).load_state_dict(mean)
    assert ONE.tokens.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 1]]


@pytest.mark.parametrize('sets, weights, message', [
    ([], None, 'one for each of 0 sets'),
    ([ONE, OTHER], [1.], 'one for each of 2 sets'),
    ([ONE, OTHER], [1., 1.], 'of sum 1'),
    ([ONE, OTHER], [math.nan, 1.], 'of sum 1'),
    ([ONE, rows([[1., 0, 0]] * 4, (3, 1))], None, 'set 1 has another form'),
    ([ONE, rows([[1., 0, 0]] * 3, (1, 2))], None, 'prompts of set 1 lie in other blocks')])
def test_what_cannot_be_averaged(sets, weights, message):
    with pytest.raises(ConfigError, match=message):
        average_prompts(sets, weights)


def test_distances():
    """In block 0, rows 0 agree, and rows 1 are at right angles to all; in block 1 they are opposite."""
    apart = compare_prompts(ONE, OTHER)
    torch.testing.assert_close(apart.distances, torch.tensor([(0 + 1 + 0 + 1) / 4, 2]))
    assert apart.counts.tolist() == [[2, 1], [2, 1]]
    assert compare_prompts(ONE, ONE).distances.tolist() == [0, 0]
    empty = compare_prompts(ONE, rows([[0., 1, 0]], (1, 0)))
    assert empty.distances.isnan().tolist() == [False, True] and empty.counts.tolist() == [[2, 1], [1, 0]]
    torch.testing.assert_close(empty.distances[0], torch.tensor((1 + 0 + 0) / 3))
    with pytest.raises(ConfigError, match='cannot be compared'):
        compare_prompts(ONE, rows([[1., 0]] * 3, widths=(2, 2)))


@pytest.mark.parametrize('form', KINDS)
def test_a_mean_is_a_further_set(form):
    """Of itself, the same; halfway between two, another."""
    case = CASES['timm-vit']
    backbone, x = build(case), images(case)
    one, other = (mmprovpt.add_prompts(backbone, name, dict(KINDS[form], num_tokens=2)) for name in 'ab')
    for each in (one, other):
        fill_rows(each)
    same = mmprovpt.add_prompts(backbone, 'same', one.config)
    same.load_state_dict(average_prompts([one, one]))
    mmprovpt.add_prompts(backbone, 'halfway', one.config).load_state_dict(interpolate_prompts(one, other, 0.5))
    backbone.eval()
    found = {}
    for name in backbone.prompts:
        with torch.no_grad(), mmprovpt.using_prompts(backbone, name):
            found[name] = outputs(backbone, x)[0]
    torch.testing.assert_close(found['same'], found['a'])
    assert not torch.allclose(found['halfway'], found['a']) and not torch.allclose(found['halfway'], found['b'])


def test_options_count():
    """Rows of one length that mean something else."""
    case = CASES['timm-vit']
    backbone = build(case)
    one, other = (mmprovpt.add_prompts(backbone, name, dict(KINDS['adaptive'], num_tokens=2, static_blocks=[0, block]))
                  for name, block in (('a', 1), ('b', 2)))
    with pytest.raises(ConfigError, match='other options'):
        average_prompts([one, other])
    with pytest.raises(ConfigError, match='like options'):
        compare_prompts(one, other)


@pytest.mark.parametrize('sets', [dict(one=ONE), dict(one=ONE, other=OTHER, third=rows([[0., 1, 0]], (1, 0)))])
def test_picture(sets, tmp_path):
    path = plot_prompt_sets(sets, tmp_path / 'sets.png')
    assert path.read_bytes().startswith(b'\x89PNG') and path.stat().st_size > 5000


def test_no_picture_of_nothing(tmp_path):
    with pytest.raises(ConfigError, match='no set of prompts to draw'):
        plot_prompt_sets({}, tmp_path / 'sets.png')
