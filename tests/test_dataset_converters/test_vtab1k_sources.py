"""VTAB-1k from TensorFlow Datasets, of which a stand-in is used: the splits, the labels and the tool."""
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import vtab1k
from vtab1k_sources import SOURCES

from mmprovpt.datasets.vtab1k_tasks import BY_NAME, TASKS
from mmprovpt.errors import ConfigError

ROOT = Path(__file__).parents[2]
IMAGE = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
# Examples of each split in TensorFlow Datasets, as the benchmark's own tests imply them.
COUNTS = dict(
    cifar=dict(train=50000, test=10000), caltech101=dict(train=3060, test=6084),
    dtd=dict(train=1880, validation=1880, test=1880),
    oxford_flowers102=dict(train=1020, validation=1020, test=6149), oxford_iiit_pet=dict(train=3680, test=3669),
    svhn=dict(train=73257, test=26032, extra=531131), sun397=dict(train=76128, validation=10875, test=21750),
    patch_camelyon=dict(train=262144, validation=32768, test=32768), eurosat=dict(train=27000),
    resisc45=dict(train=31500), diabetic_retinopathy=dict(sample=10, train=35126, validation=10906, test=42670),
    clevr_count=dict(train=70000, validation=15000, test=15000),
    clevr_dist=dict(train=70000, validation=15000, test=15000),
    dmlab=dict(train=65550, validation=22628, test=22735), kitti=dict(train=6347, validation=423, test=711),
    dsprites_loc=dict(train=737280), dsprites_ori=dict(train=737280),
    smallnorb_azi=dict(train=24300, test=24300), smallnorb_ele=dict(train=24300, test=24300))


def select(instruction, counts):
    """(split, number) of each example that an instruction of TensorFlow Datasets selects."""
    name, first, last = re.fullmatch(r'(\w+)(?:\[(\d*):(\d*)\])?', instruction).groups()
    return [(name, i) for i in range(counts[name])[int(first or 0):int(last) if last else None]]


def test_there_is_a_source_for_each_task():
    assert list(SOURCES) == [task.name for task in TASKS] == list(COUNTS)


@pytest.mark.parametrize('task', COUNTS)
def test_splits_are_disjoint_and_of_the_benchmarks_size(task):
    splits = {split: select(instruction, COUNTS[task])
              for split, instruction in SOURCES[task].splits(COUNTS[task]).items()}
    assert {split: len(examples) for split, examples in splits.items()} == dict(
        train800=800, val200=200, test=BY_NAME[task].num_test)
    assert len(set().union(*splits.values())) == 1000 + BY_NAME[task].num_test


def test_where_validation_images_begin():
    expected = dict(cifar='train[45000:45200]', oxford_iiit_pet='train[2944:3144]', eurosat='train[16200:16400]',
                    resisc45='train[18900:19100]', dsprites_ori='train[589824:590024]', smallnorb_azi='test[:200]',
                    clevr_dist='train[63000:63200]', dtd='validation[:200]', svhn='train[65931:66131]')
    assert {task: SOURCES[task].splits(COUNTS[task])['val200'] for task in expected} == expected


def convert(task, **example):
    image, label = SOURCES[task].convert(dict(image=IMAGE, **example))
    assert type(label) is int and image.dtype == np.uint8
    return label


def test_labels_as_they_are():
    for task in SOURCES:
        if not task.startswith(('clevr', 'kitti', 'dsprites', 'smallnorb')):
            assert convert(task, label=np.int64(3)) == 3
    assert convert('smallnorb_azi', label_azimuth=np.int64(17), label_elevation=np.int64(8)) == 17
    assert convert('smallnorb_ele', label_azimuth=np.int64(17), label_elevation=np.int64(8)) == 8


def test_clevr():
    for number in range(3, 11):
        assert convert('clevr_count', objects=dict(size=np.zeros(number, int))) == number - 3
    for distance, label in ((0.1, 0), (8, 0), (8.01, 1), (8.5, 1), (8.9, 2), (9.4, 3), (10, 4), (10.1, 5), (50, 5)):
        coords = np.array([[0, 1, 60], [2, 3, distance]], np.float32)
        assert convert('clevr_dist', objects=dict(pixel_coords=coords)) == label


def test_kitti_looks_at_cars_vans_and_trucks_only():
    for distance, label in ((-2, 0), (8, 0), (8.1, 1), (20, 1), (20.5, 2), (500, 2)):
        objects = dict(type=np.array([3, 2, 0]), location=np.array(
            [[0, 0, 1], [0, 0, distance], [0, 0, 600]], np.float32))
        assert convert('kitti', objects=objects) == label
    assert convert('kitti', objects=dict(type=np.array([3, 7]), location=np.ones((2, 3), np.float32))) == 3
    assert convert('kitti', objects=dict(type=np.zeros(0, int), location=np.ones((0, 3), np.float32))) == 3


def test_dsprites():
    assert [convert('dsprites_loc', label_x_position=np.int64(i)) for i in range(32)] == [i // 2 for i in range(32)]
    labels = [convert('dsprites_ori', label_orientation=np.int64(i)) for i in range(40)]
    assert labels == [2 * i // 5 for i in range(40)] and set(labels) == set(range(16))
    image, _ = SOURCES['dsprites_ori'].convert(dict(image=np.eye(3, dtype=np.uint8), label_orientation=1))
    assert image.dtype == np.uint8 and (image == 255 * np.eye(3)).all()


class StandIn:
    """Of TensorFlow Datasets: KITTI's numbers of examples, the class in the distance."""

    def __init__(self):
        self.read = []
        self.info = SimpleNamespace(splits={
            name: SimpleNamespace(num_examples=number) for name, number in COUNTS['kitti'].items()})

    def builder(self, name, data_dir):
        assert name == 'kitti:3.2.0' and data_dir == 'there'
        return self

    def download_and_prepare(self):
        self.read.append('prepared')

    def as_dataset(self, split, shuffle_files):
        assert shuffle_files is False
        self.read.append(split)
        return split

    def as_numpy(self, split):
        for _, number in select(split, COUNTS['kitti']):
            yield dict(image=IMAGE + np.uint8(number % 200), objects=dict(
                type=np.array([0]), location=np.array([[0, 0, (5, 15, 25, 1000)[number % 4]]], np.float32)))


def test_tool_writes_a_task(tmp_path):
    stand_in = StandIn()
    assert vtab1k.write('kitti', tmp_path, stand_in, 'there') == ['train800', 'val200', 'test']
    assert stand_in.read == ['prepared', 'train[:800]', 'validation[:200]', 'test']
    lines = (tmp_path / 'kitti/test.txt').read_text().splitlines()
    assert len(lines) == 711 and lines[6] == 'images/test/000006.png 2'
    pytest.importorskip('mmpretrain')
    dataset = importlib.import_module('mmprovpt.datasets.vtab1k').VTAB1k
    assert len(dataset(data_root=str(tmp_path), task='kitti', split='train800val200')) == 1000
    (tmp_path / 'kitti/val200.txt').unlink()
    assert vtab1k.write('kitti', tmp_path, stand_in, 'there') == ['val200']


def test_tool_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow', None)
    with pytest.raises(ConfigError, match='tensorflow is not installed\nwhat to do: pip install tensorflow'):
        vtab1k.import_tfds()


def test_tool_needs_neither_torch_nor_mmengine():
    """TensorFlow may have to be in an environment of its own."""
    code = ("import runpy, sys; sys.modules.update(dict.fromkeys(['torch', 'mmengine', 'mmpretrain', 'matplotlib'])); "
            "sys.argv[1:] = ['--help']; sys.path.insert(0, 'tools/dataset_converters'); "
            "runpy.run_module('vtab1k', run_name='__main__')")
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT,
                            env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert result.returncode == 0 and '--tfds-dir' in result.stdout, result.stderr
