"""The miniature VTAB, from files in Fashion-MNIST's format."""
import gzip
import struct
from functools import partial
from pathlib import Path

import draw_miniature
import numpy as np
import pytest
from draw_miniature import draw, num_images
from PIL import Image

from mmprovpt.datasets.miniature_tasks import LOCATION_EDGES, SIZE, SIZE_EDGES, TASKS


def write_idx(path, values):
    head = struct.pack(f'>HBB{values.ndim}I', 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


@pytest.fixture(scope='module')
def articles(tmp_path_factory):
    """Forty articles in each split, bright ones in the training split; each class has its shape."""
    folder = tmp_path_factory.mktemp('articles')
    for split, level in (('train', 200), ('t10k', 60)):
        images = np.zeros((40, 28, 28))  # as high as the image, and the wider the later its class
        for number in range(40):
            images[number, :, :2 + 2 * (number % 10)] = level + number
        write_idx(folder / f'{split}-images-idx3-ubyte.gz', images)
        write_idx(folder / f'{split}-labels-idx1-ubyte.gz', np.arange(40) % 10)
    return str(folder)


def box(image):
    """Left, top, right, bottom of what is not black."""
    columns, rows = (np.flatnonzero((image > 10).any(axis)) for axis in (0, 1))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize('task', TASKS)
def test_an_image_depends_on_its_number_alone(articles, task):
    first = [draw(task, 'train', number, articles) for number in range(30)]
    for number in (29, 3):
        image, label = draw(task, 'train', number, articles)
        assert image.shape == (SIZE, SIZE) and image.dtype == np.uint8
        assert (image == first[number][0]).all() and label == first[number][1]
    other = [draw(task, 'train', number, articles, seed=1)[0] for number in range(30)]
    assert any((a[0] != b).any() for a, b in zip(first, other)) or task == 'digits'
    labels = [label for _, label in first]
    assert set(labels) == set(range(len(TASKS[task].classes)))


@pytest.mark.parametrize('task', [task for task in TASKS if task != 'digits'])
def test_splits_are_made_of_their_own_photographs(articles, task):
    assert draw(task, 'train', 7, articles)[0].max() > 150 > 110 > draw(task, 'test', 7, articles)[0].max()


def test_category(articles):
    for number in range(20):
        image, label = draw('category', 'train', number, articles)
        assert box(image)[2] == pytest.approx(2 * (2 + 2 * label), abs=1) and label == number % 10


def test_count_is_the_number_of_cells_with_an_article(articles):
    for number in range(30):
        image, label = draw('count', 'train', number, articles)
        cells = [image[19 * i:19 * i + 18, 19 * j:19 * j + 18].max() > 50 for i in range(3) for j in range(3)]
        assert sum(cells) == label + 1 == int(TASKS['count'].classes[label])


def test_location_is_that_of_the_left_edge(articles):
    assert LOCATION_EDGES[0] == 0 and LOCATION_EDGES[-1] == SIZE - 20 + 1
    for number in range(40):
        image, label = draw('location', 'train', number, articles)
        assert LOCATION_EDGES[label] <= box(image)[0] < LOCATION_EDGES[label + 1]


def test_size_is_the_height(articles):
    for number in range(40):
        image, label = draw('size', 'train', number, articles)
        _, top, _, bottom = box(image)
        assert SIZE_EDGES[label] - 1 <= bottom - top < SIZE_EDGES[label + 1]


def test_orientation_is_the_angle_of_the_longer_side(articles):
    """The bright half of a shoe is at its left, so its centre of mass points to the left before it is turned."""
    for number in range(40):
        image, label = draw('orientation', 'train', number, articles)
        y, x = np.indices(image.shape) - (SIZE - 1) / 2
        centre = np.array([(x * image).sum(), (y * image).sum()]) / image.sum()
        angle = np.degrees(np.arctan2(-centre[1], centre[0])) - 180  # counter-clockwise, y points down
        middle = 45 * label + 22.5
        assert abs((angle - middle + 180) % 360 - 180) < 22.5 + 5


def test_digits_are_those_of_scikit_learn(articles):
    sklearn_digits = pytest.importorskip('sklearn.datasets').load_digits()
    for split, number, original in (('train', 3, 3), ('test', 0, 1000), ('test', 796, 1796)):
        image, label = draw('digits', split, number, articles)
        assert label == sklearn_digits.target[original]
        small = image.reshape(8, 7, 8, 7).mean((1, 3)) / 255 * 16
        assert np.corrcoef(small.ravel(), sklearn_digits.images[original].ravel())[0, 1] > 0.9
    assert num_images('digits', 'train') + num_images('digits', 'test') == len(sklearn_digits.target)


def test_names(articles):
    assert TASKS['size'].classes[:2] == ('12-17 px', '17-22 px') and len(TASKS['category'].classes) == 10


@pytest.fixture
def tool(call, monkeypatch):
    """Runs the tool's main() with arguments."""
    monkeypatch.setattr('signal.signal', lambda *_: None)
    return partial(call, 'dataset_converters/miniature_vtab')


def test_tool_writes_the_images_that_are_drawn(tool, articles, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(draw_miniature, 'NUM_TEST', 20)
    tool('--out', tmp_path, '--fashion-mnist', articles, '--tasks', 'location')
    folder = tmp_path / 'location'
    assert [len((folder / f'{split}.txt').read_text().splitlines())
            for split in ('train800', 'val200', 'train800val200', 'test')] == [800, 200, 1000, 20]
    for split, source, number, line in (('train800', 'train', 799, 799), ('val200', 'train', 800, 0),
                                        ('train800val200', 'train', 903, 903), ('test', 'test', 19, 19)):
        path, label = (folder / f'{split}.txt').read_text().splitlines()[line].split()
        image, expected = draw('location', source, number, articles)
        assert int(label) == expected and (np.array(Image.open(folder / path)) == image[..., None]).all()
    assert 'train800, val200, test written' in capsys.readouterr().out
    tool('--out', tmp_path, '--fashion-mnist', articles, '--tasks', 'location')
    assert 'complete, nothing to do' in capsys.readouterr().out


def test_tool_says_what_to_install(tool, articles, tmp_path):
    for name in ('train-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz'):
        (tmp_path / name).write_bytes((Path(articles) / name).read_bytes())
    with pytest.raises(SystemExit, match=(
            f'error: no train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz in {tmp_path}\n'
            'what to do: .*apt-get install dataset-fashion-mnist')):
        tool('--out', tmp_path / 'out', '--fashion-mnist', tmp_path)
    assert not (tmp_path / 'out').exists()
