"""The writer of VTAB-1k's layout: complete or not at all, split by split."""
import numpy as np
import pytest
from PIL import Image
from write_vtab1k import write_task

from mmprovpt.errors import ConfigError

SIZES = dict(train800=6, val200=2, test=3)
GREY = np.arange(20, dtype=np.uint8).reshape(4, 5)


def sources(**changed):
    """Splits of 6, 2 and 3 grey images, classes in turn."""
    return {split: changed.get(split, lambda size=size: ((GREY + i, i % 3) for i in range(size)))
            for split, size in SIZES.items()}


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def test_layout(tmp_path):
    calls = []
    assert write_task(tmp_path / 'a', sources(), SIZES, 3, lambda *args: calls.append(args)) == list(SIZES)
    assert files(tmp_path / 'a') == sorted(
        [f'images/{split}/{i:06d}.png' for split, size in SIZES.items() for i in range(size)] +
        ['test.txt', 'train800.txt', 'train800val200.txt', 'val200.txt'])
    assert (tmp_path / 'a/val200.txt').read_text() == 'images/val200/000000.png 0\nimages/val200/000001.png 1\n'
    assert (tmp_path / 'a/train800val200.txt').read_text() == \
        (tmp_path / 'a/train800.txt').read_text() + (tmp_path / 'a/val200.txt').read_text()
    image = Image.open(tmp_path / 'a/images/train800/000005.png')
    assert image.mode == 'RGB' and (np.array(image) == (GREY + 5)[..., None]).all()
    assert calls == [(split, i + 1, size) for split, size in SIZES.items() for i in range(size)]


def test_interruption_keeps_finished_splits(tmp_path):
    def interrupted():
        yield GREY, 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_task(tmp_path, sources(val200=interrupted), SIZES, 3)
    assert files(tmp_path) == [f'images/train800/{i:06d}.png' for i in range(6)] + ['train800.txt']
    before = (tmp_path / 'images/train800/000000.png').stat().st_mtime_ns
    assert write_task(tmp_path, sources(train800=None), SIZES, 3) == ['val200', 'test']
    assert (tmp_path / 'images/train800/000000.png').stat().st_mtime_ns == before
    assert write_task(tmp_path, dict.fromkeys(SIZES), SIZES, 3) == []


def test_images_without_their_list_are_written_again(tmp_path):
    """The end came between the images and the list, or in the middle of a split without a chance to clean up."""
    for folder in ('test', 'test.partial'):
        (tmp_path / 'images' / folder).mkdir(parents=True)
        (tmp_path / 'images' / folder / '000009.png').write_bytes(b'half')
    write_task(tmp_path, sources(), SIZES, 3)
    assert sorted(path.name for path in (tmp_path / 'images').iterdir()) == ['test', 'train800', 'val200']
    assert len(list((tmp_path / 'images/test').iterdir())) == 3


@pytest.mark.parametrize('test, message', [
    (lambda: iter([(GREY, 0)] * 2), 'a, test: 2 images, expected 3'),
    (lambda: iter([(GREY, 0)] * 4), 'a, test, image 3: there are more than the 3 images'),
    (lambda: iter([(GREY, 0), (GREY, 3)]), r'a, test, image 1: label 3 is not in \[0, 3\)'),
    (lambda: iter([(GREY, -1)]), r'a, test, image 0: label -1 is not in \[0, 3\)'),
    (lambda: iter([(GREY / 255, 0)]), r'shape \(4, 5\), float64; expected'),
    (lambda: iter([(np.zeros((4, 5, 2), np.uint8), 0)]), r'shape \(4, 5, 2\), uint8; expected'),
    (lambda: iter([(np.zeros((0, 5), np.uint8), 0)]), r'shape \(0, 5\)'),
])
def test_what_is_refused(tmp_path, test, message):
    with pytest.raises(ConfigError, match=message):
        write_task(tmp_path / 'a', sources(test=test), SIZES, 3)
    assert not (tmp_path / 'a/test.txt').exists() and not (tmp_path / 'a/train800val200.txt').exists()
    assert sorted(path.name for path in (tmp_path / 'a/images').iterdir()) == ['train800', 'val200']


def test_counts_of_classes_and_of_what_was_kept(tmp_path):
    with pytest.raises(ConfigError, match='no image is of class 3, 4; the task has 5 classes'):
        write_task(tmp_path, sources(), SIZES, 5)
    with pytest.raises(ConfigError, match='test.txt lists 3 images, expected 4; remove it'):
        write_task(tmp_path, sources(), dict(SIZES, test=4), 3)
