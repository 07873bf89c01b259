import numpy as np
import pytest
from PIL import Image

from mmprovpt.visualization import plot_distribution
from mmprovpt.visualization.distribution import _norm


def walk(num_blocks, per_block, periods):
    """Distributions in which one prompt moves per period."""
    rng = np.random.default_rng(0)
    counts = [per_block] * num_blocks
    distributions = [list(counts)]
    for _ in range(periods):
        source = rng.choice([block for block, count in enumerate(counts) if count])
        counts[source] -= 1
        counts[rng.integers(num_blocks)] += 1
        distributions.append(list(counts))
    return distributions


@pytest.mark.parametrize('num_blocks,per_block,periods',
                         [(1, 1, 0), (4, 3, 1), (12, 10, 100), (24, 200, 300), (3, 0, 2)])
def test_writes_a_picture_of_any_size(tmp_path, num_blocks, per_block, periods):
    distributions = walk(num_blocks, per_block, periods) if per_block else [[0] * num_blocks] * 3
    path = plot_distribution(distributions, tmp_path / 'picture.png')
    with Image.open(path) as image:
        assert image.format == 'PNG'
        assert 600 < image.width <= 1900 and 400 < image.height <= 1400
    assert [p.name for p in tmp_path.iterdir()] == ['picture.png']


def test_colours_are_centred_and_never_below_zero():
    norm = _norm(np.array([[5, 3], [5, 7]]))
    assert (norm.vmin, norm.vcenter, norm.vmax) == (3, 5, 7)
    norm = _norm(np.array([[5, 0], [5, 40]]))
    assert (norm.vmin, norm.vcenter, norm.vmax) == (0, 5, 40)
    norm = _norm(np.array([[5], [5]]))
    assert (norm.vmin, norm.vcenter, norm.vmax) == (4, 5, 6)


def test_other_numbers_of_blocks_raise(tmp_path):
    with pytest.raises(ValueError, match=r'lengths \[2, 3\]'):
        plot_distribution([[1, 1], [1, 1, 1]], tmp_path / 'picture.png')
    with pytest.raises(ValueError, match=r'lengths \[\]'):
        plot_distribution([], tmp_path / 'picture.png')
    assert not list(tmp_path.iterdir())
