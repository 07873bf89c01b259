"""The fine-grained data sets: VPT's JSON splits and the official archives' own lists, at a small size."""
import json
import os

import numpy as np
import pytest
from PIL import Image

from mmprovpt.datasets import fgvc_tasks
from mmprovpt.datasets.fgvc_archives import read_archive
from mmprovpt.datasets.fgvc_tasks import FGVC_TASKS, find_fgvc_task
from mmprovpt.errors import ConfigError

scipy_io = pytest.importorskip('scipy.io')
pytest.importorskip('mmpretrain')
from mmprovpt.datasets.fgvc import FGVC  # noqa: E402

# 3 classes; 4 images for training and validation, 3 for testing.
TRAINVAL, TEST = [1, 2, 3, 1], [3, 2, 1]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, task in FGVC_TASKS.items():
        monkeypatch.setitem(fgvc_tasks.FGVC_TASKS, name, task._replace(num_classes=3, num_trainval=4, num_test=3))


def build(root, task, split, **kwargs):
    # Serialising collects garbage, for a fifth of a second.
    return FGVC(data_root=str(root), task=task, split=split, serialize_data=False, **kwargs)


def infos(root, task, split):
    """(path below the task's folder, label) of each image."""
    folder = root / FGVC_TASKS[task].folder
    dataset = build(root, task, split)
    return [(os.path.relpath(info['img_path'], folder), info['gt_label'])
            for info in map(dataset.get_data_info, range(len(dataset)))]


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(path)


def struct_array(**fields):
    """What scipy saves as MATLAB's array of structs."""
    rows = np.zeros((1, len(next(iter(fields.values())))), [(name, object) for name in fields])
    for name, values in fields.items():
        for column, value in enumerate(values):
            rows[name][0, column] = value
    return rows


def cells(texts):
    return np.array([[text] for text in texts], object)


def write_birds(folder, ids=(1, 2, 3)):
    paths = [f'00{label}.Bird/{i}.jpg' for i, label in enumerate(TRAINVAL + TEST)]
    labels = [ids[label - 1] for label in TRAINVAL + TEST]
    for name, values in (('images', paths), ('image_class_labels', labels),
                         ('train_test_split', [1] * len(TRAINVAL) + [0] * len(TEST))):
        (folder / f'{name}.txt').write_text(''.join(f'a-{i} {value}\n' for i, value in enumerate(values)))
    return [f'images/{path}' for path in paths]


def write_flowers(folder):
    # Images 1-3 are for testing, as there; 4 and 5 for training, 6 and 7 for validation.
    scipy_io.savemat(folder / 'imagelabels.mat', dict(labels=np.array([TEST + TRAINVAL], np.uint8)))
    scipy_io.savemat(folder / 'setid.mat', dict(tstid=np.array([[1, 2, 3]], np.uint16),
                                                trnid=np.array([[4, 5]], np.uint16),
                                                valid=np.array([[6, 7]], np.uint16)))
    return [f'jpg/image_{i:05d}.jpg' for i in (4, 5, 6, 7, 1, 2, 3)]


def write_dogs(folder, below='lists'):
    paths = [f'n0{label}-Dog/n0{label}_{i}.jpg' for i, label in enumerate(TRAINVAL + TEST)]
    (folder / below).mkdir(exist_ok=True)
    for name, part, labels in (('train', paths[:4], TRAINVAL), ('test', paths[4:], TEST)):
        scipy_io.savemat(folder / below / f'{name}_list.mat', dict(
            file_list=cells(part), labels=np.array(labels, float)[:, None]))
    return [f'Images/{path}' for path in paths]


def write_cars(folder):
    paths = [f'car_ims/{i:06d}.jpg' for i in range(7)]
    scipy_io.savemat(folder / 'cars_annos.mat', dict(annotations=struct_array(
        relative_im_path=paths, bbox_x1=[1] * 7, **{'class': TRAINVAL + TEST}, test=[0] * 4 + [1] * 3)))
    return paths


def write_cars_in_two(folder):
    (folder / 'devkit').mkdir()
    for name, labels in (('devkit/cars_train_annos.mat', TRAINVAL), ('cars_test_annos_withlabels.mat', TEST)):
        scipy_io.savemat(folder / name, dict(annotations=struct_array(
            bbox_x1=[1] * len(labels), **{'class': labels}, fname=[f'{i:05d}.jpg' for i in range(len(labels))])))
    return [f'cars_train/{i:05d}.jpg' for i in range(4)] + [f'cars_test/{i:05d}.jpg' for i in range(3)]


ARCHIVES = [('cub', write_birds), ('nabirds', lambda folder: write_birds(folder, (9, 100, 1010))),
            ('flowers', write_flowers), ('dogs', write_dogs), ('cars', write_cars), ('cars', write_cars_in_two)]


@pytest.mark.parametrize('task, write', ARCHIVES)
def test_official_archives(tmp_path, task, write):
    folder = tmp_path / FGVC_TASKS[task].folder
    folder.mkdir()
    paths = write(folder)
    for path in paths:
        save_image(folder / path)
    expected = [(path, label - 1) for path, label in zip(paths, TRAINVAL + TEST)]
    assert infos(tmp_path, task, 'trainval') == expected[:4]
    assert infos(tmp_path, task, 'test') == expected[4:]
    if task == 'flowers':
        assert infos(tmp_path, task, 'train') + infos(tmp_path, task, 'val') == expected[:4]
    else:
        with pytest.raises(ConfigError, match=r'there is no val.json in .* cannot be derived.*\n.*trainval and test'):
            build(tmp_path, task, 'val')


@pytest.mark.parametrize('task', FGVC_TASKS)
def test_json_splits_come_first(tmp_path, task):
    """Sorted ids become labels, the same in all splits, though one lacks a class; strings of digits are sorted as
    numbers."""
    folder = tmp_path / FGVC_TASKS[task].folder
    folder.mkdir()
    write_birds(folder)
    splits = dict(train={'a/1.jpg': 100, 'a/2.jpg': '9'}, val={'b/3.jpg': 1010, 'b/4.jpg': 1010},
                  test={'c/5.jpg': '1010', 'c/6.jpg': 9, 'c/7.jpg': 100})
    images = dict(cub='images', nabirds='images', flowers='.', dogs='Images', cars='.')[task]
    for split, content in splits.items():
        (folder / f'{split}.json').write_text(json.dumps(content))
        for path in content:
            save_image(folder / images / path)

    def full(*pairs):
        return [(os.path.normpath(f'{images}/{path}'), label) for path, label in pairs]

    assert infos(tmp_path, task, 'train') == full(('a/1.jpg', 1), ('a/2.jpg', 0))
    assert infos(tmp_path, task, 'val') == full(('b/3.jpg', 2), ('b/4.jpg', 2))
    assert infos(tmp_path, task, 'trainval') == infos(tmp_path, task, 'train') + infos(tmp_path, task, 'val')
    assert infos(tmp_path, task, 'test') == full(('c/5.jpg', 2), ('c/6.jpg', 0), ('c/7.jpg', 1))


def test_pipeline_of_mmpretrain(tmp_path):
    folder = tmp_path / 'Stanford-cars'
    folder.mkdir()
    for path in write_cars(folder):
        save_image(folder / path)
    item = build(tmp_path, 'cars', 'test', pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])[0]
    assert item['data_samples'].gt_label.tolist() == [2] and (item['inputs'] - 7).abs().max() <= 1


def message(*args):
    with pytest.raises(ConfigError) as error:
        build(*args)
    return str(error.value)


def test_all_problems_are_one_error(tmp_path):
    folder = tmp_path / 'CUB_200_2011'
    folder.mkdir()
    paths = write_birds(folder, (1, 2, 2))
    for path in paths:
        save_image(folder / path)
    (folder / paths[0]).unlink()
    (folder / paths[1]).write_bytes(b'')
    for name in ('images', 'image_class_labels', 'train_test_split'):
        with open(folder / f'{name}.txt', 'a') as file:
            file.write('b 1\n')
    text = message(tmp_path, 'cub', 'trainval')
    assert '5 problems' in text
    for line in ('the lists name 2 classes; cub has 3', '5 images are listed; cub has 4', f'{paths[0]}: no such file',
                 f'{paths[1]}: the file is empty', 'images/1: no such file'):
        assert line in text


def test_lists_that_are_missing_or_corrupt(tmp_path):
    assert f'no such directory: {tmp_path}/CUB_200_2011' in message(tmp_path, 'cub', 'test')
    folder = tmp_path / 'CUB_200_2011'
    folder.mkdir()
    assert f'no images.txt in {folder}' in message(tmp_path, 'cub', 'test')
    write_birds(folder)
    (folder / 'images.txt').write_text('a-0 x.jpg\n')
    assert 'are not of the same images' in message(tmp_path, 'cub', 'test')
    (folder / 'test.json').write_text('{"a.jpg": 1')
    assert f'no such file: {folder}/train.json' in message(tmp_path, 'cub', 'test')
    for content in ('{"a.jpg": 1', '["a.jpg"]', '{"a.jpg": "sparrow"}', '{"a.jpg": null}'):
        (folder / 'train.json').write_text(content)
        assert f'{folder}/train.json is corrupt' in message(tmp_path, 'cub', 'test')
    for task, name in (('flowers', 'imagelabels.mat'), ('dogs', 'train_list.mat'), ('cars', 'cars_annos.mat')):
        folder = tmp_path / FGVC_TASKS[task].folder
        folder.mkdir()
        with pytest.raises(ConfigError, match=name):
            read_archive(task, folder)
        scipy_io.savemat(folder / name, dict(x=np.arange(999)), do_compression=True)
        content = (folder / name).read_bytes()
        if task != 'cars':
            scipy_io.savemat(folder / dict(flowers='setid.mat', dogs='test_list.mat')[task], dict(x=[1]))
        with pytest.raises(ConfigError, match=f'{task} in .* are corrupt or of another kind'):
            read_archive(task, folder)
        for broken in (b'', b'no matrix' * 40, content[:len(content) // 2], content[:-3]):
            (folder / name).write_bytes(broken)
            with pytest.raises(ConfigError, match=f'{name} is truncated, or no .mat file'):
                read_archive(task, folder)


def test_unknown_names(tmp_path):
    with pytest.raises(ConfigError, match="no task 'cats'; known: cub, nabirds, flowers, dogs, cars"):
        find_fgvc_task('cats')
    assert 'known: train, val, trainval, test' in message(tmp_path, 'cub', 'train800')
