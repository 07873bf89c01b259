"""VTAB-1k: its table, its data set and what the data set refuses."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from write_vtab1k import write_task

from mmprovpt.datasets import image_lists, vtab1k_tasks
from mmprovpt.datasets.image_lists import find_image_damage
from mmprovpt.datasets.vtab1k_tasks import BY_NAME, GROUPS, TASKS, find_num_classes
from mmprovpt.errors import ConfigError

pytest.importorskip('mmpretrain')
from mmprovpt.datasets.vtab1k import VTAB1k  # noqa: E402

ROOT = Path(__file__).parents[2]
SIZES = dict(train800=8, val200=2, test=5)


def draw(split, number):
    rng = np.random.default_rng([len(split), number])
    return rng.integers(0, 256, (6, 4 + number % 3, 3), dtype=np.uint8), number % 3


def write(folder, sizes=SIZES, num_classes=3):
    return write_task(folder, {split: lambda split=split: (draw(split, i) for i in range(sizes[split]))
                               for split in sizes}, sizes, num_classes)


@pytest.fixture
def own(tmp_path):
    """A task of one's own, three classes."""
    write(tmp_path / 'own')
    return tmp_path / 'own'


def build(folder, split='test', num_classes=3, **kwargs):
    return VTAB1k(data_root=str(folder.parent), task=folder.name, split=split, num_classes=num_classes, **kwargs)


def message(*args, **kwargs):
    with pytest.raises(ConfigError) as error:
        build(*args, **kwargs)
    return str(error.value)


def test_table():
    """The averages over the tasks that the benchmark is known by."""
    assert len(TASKS) == 19 == len(BY_NAME)
    assert [sum(task.group == group for task in TASKS) for group in GROUPS] == [7, 4, 8]
    assert [task.group for task in TASKS] == sorted((task.group for task in TASKS), key=GROUPS.index)
    assert [task.num_classes for task in TASKS] == [
        100, 102, 47, 102, 37, 10, 397, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9]
    assert BY_NAME['dsprites_ori'].num_test == 737280 // 10 and BY_NAME['smallnorb_azi'].num_test == 24300 // 2


def test_number_of_classes():
    assert find_num_classes('cifar') == 100 == find_num_classes('cifar', 100)
    assert find_num_classes('my_birds', 12) == 12
    with pytest.raises(ConfigError, match="no task 'cifar100'; known: cifar, caltech101, .*_ele.*num_classes"):
        find_num_classes('cifar100')
    with pytest.raises(ConfigError, match='cifar has 100 classes'):
        find_num_classes('cifar', 10)
    for task, number in (('own', 0), ('own', '3'), ('', 3)):
        with pytest.raises(ConfigError, match='expected the name of a folder and a number'):
            find_num_classes(task, number)


def test_every_split_has_its_images_and_labels(own):
    for split in SIZES:
        dataset = build(own, split)
        assert len(dataset) == SIZES[split]
        for number in range(SIZES[split]):
            info = dataset.get_data_info(number)
            image, label = draw(split, number)
            assert info['gt_label'] == label and (np.array(Image.open(info['img_path'])) == image).all()
    both = [dataset.get_data_info(i)['img_path'] for dataset in (build(own, 'train800'), build(own, 'val200'))
            for i in range(len(dataset))]
    trainval = build(own, 'train800val200')
    assert [trainval.get_data_info(i)['img_path'] for i in range(len(trainval))] == both


def test_pipeline_of_mmpretrain(own):
    dataset = build(own, pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', scale=(12, 18),
                                                                        interpolation='nearest'),
                                   dict(type='PackInputs')])
    for number in range(5):
        image, label = draw('test', number)
        item = dataset[number]
        assert item['data_samples'].gt_label.tolist() == [label]
        expected = image.repeat(3, 0).repeat(12 // image.shape[1], 1) if 12 % image.shape[1] == 0 else None
        assert item['inputs'].shape == (3, 18, 12)
        if expected is not None:  # mmcv reads BGR
            assert (item['inputs'].numpy() == expected[..., ::-1].transpose(2, 0, 1)).all()


def test_both_types_resolve_from_any_scope(own):
    for registry in ('mmengine.registry', 'mmpretrain.registry'):
        datasets = __import__(registry, fromlist=['DATASETS']).DATASETS
        dataset = datasets.build(dict(type='mmprovpt.VTAB1k', data_root=str(own.parent), task='own', split='test',
                                      num_classes=3))
        assert type(dataset) is VTAB1k and len(dataset) == 5
    assert datasets.get('mmprovpt.FGVC').__module__ == 'mmprovpt.datasets.fgvc'


def test_other_folders_and_blanks_in_names(own):
    (own / 'images' / 'a b').mkdir()
    Image.new('RGB', (3, 3)).save(own / 'images' / 'a b' / 'c d.jpg')
    (own / 'test.txt').write_text('images/a b/c d.jpg 2\n\n')
    info = build(own).get_data_info(0)
    assert info['img_path'] == str(own / 'images/a b/c d.jpg') and info['gt_label'] == 2


def test_benchmark_sizes_are_checked(tmp_path, monkeypatch):
    task = BY_NAME['kitti']._replace(num_test=5)
    monkeypatch.setitem(vtab1k_tasks.BY_NAME, 'kitti', task)
    write(tmp_path / 'kitti', num_classes=3)
    assert len(build(tmp_path / 'kitti', num_classes=None)) == 5
    assert '8 images are listed; the task has 800' in message(tmp_path / 'kitti', 'train800', None)
    assert 'the task has 1000' in message(tmp_path / 'kitti', 'train800val200', None)


def test_all_problems_are_one_error(own):
    images = own / 'images/test'
    (images / '000000.png').unlink()
    (images / '000001.png').write_bytes(b'')
    content = (images / '000002.png').read_bytes()
    (images / '000002.png').write_bytes(content[:-30])
    with open(own / 'test.txt', 'a') as file:
        file.write('images/test/000003.png 3\nimages/test/000004.png -1\nimages/test/000004.png\n000003.png x\n')
    text = message(own)
    assert f'{own}/test.txt: 9 problems' in text
    for line in ("line 8: expected `<path> <label>`, found 'images/test/000004.png'",
                 "line 9: expected `<path> <label>`, found '000003.png x'",
                 '000000.png: no such file', '000001.png: the file is empty', '000002.png: truncated',
                 '000003.png: label 3 is not in [0, 3)', '000003.png: listed with label 0 and with label 3',
                 '000004.png: label -1 is not in [0, 3)', '000004.png: listed with label 1 and with label -1'):
        assert line in text
    assert 'what to do:' in text and 'docs/how-to/datasets.md' in text


def test_twenty_problems_are_listed_and_all_are_counted(own):
    (own / 'test.txt').write_text(''.join(f'images/{i}.png 0\n' for i in range(33)))
    lines = message(own).splitlines()
    assert '33 problems' in lines[0] and sum('no such file' in line for line in lines) == 20
    assert '… and 13 more' in lines[21]


def test_lists_that_are_missing_or_empty(own, tmp_path):
    (own / 'test.txt').write_text('\n')
    assert 'no images are listed' in message(own)
    (own / 'test.txt').unlink()
    assert f'no such file: {own}/test.txt' in message(own)
    assert f'no such file: {tmp_path}/nowhere/test.txt' in message(tmp_path / 'nowhere')
    assert "no split 'train'; known: train800, val200, train800val200, test" in message(own, 'train')


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'bmp'])
def test_damage(tmp_path, suffix):
    path = tmp_path / f'image.{suffix}'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    assert find_image_damage(str(path)) is None
    path.write_bytes(content + b'\0' * 200)  # behind the end: harmless
    assert find_image_damage(str(path)) is None
    for length in (len(content) - 30, len(content) // 2, 9, 1):
        path.write_bytes(content[:length])
        assert 'truncated, or not an image' in find_image_damage(str(path))
    path.write_text('<html>404</html>')
    assert 'not an image' in find_image_damage(str(path))
    assert 'directory' in find_image_damage(str(tmp_path)).lower()


def test_sound_files_are_not_decoded(own, monkeypatch):
    monkeypatch.setattr(image_lists.Image, 'open', None)
    assert find_image_damage(str(own / 'images/test/000000.png')) is None


def run(code):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})


def test_without_mmpretrain_the_tables_work_and_the_data_set_says_what_is_missing():
    result = run("""
import sys
sys.modules['mmpretrain'] = None
import mmprovpt, mmprovpt.datasets
from mmprovpt.datasets.vtab1k_tasks import TASKS
from mmprovpt.datasets.fgvc_tasks import FGVC_TASKS
from mmengine.registry import DATASETS
print(len(TASKS), len(FGVC_TASKS))
DATASETS.build(dict(type='mmprovpt.VTAB1k', task='cifar'))
""")
    assert result.stdout.splitlines()[-1] == '19 5'
    assert 'mmpretrain' in result.stderr.splitlines()[-1] and 'ModuleNotFoundError' in result.stderr.splitlines()[-1]
