"""Every message says what was given, where it was looked for and what to do."""
import json
import os

import pytest
import torch
from mmengine.config import Config

from mmprovpt.cli import preflight
from mmprovpt.cli.options import read_config
from mmprovpt.cli.preflight import check_files
from mmprovpt.errors import ConfigError
from mmprovpt.shipped import shipped


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """A complete config and its files, in the current directory."""
    monkeypatch.chdir(tmp_path)
    os.makedirs('data/coco/train')
    with open('data/coco/train.json', 'w') as f:
        json.dump(dict(images=[], annotations=[], categories=[]), f)
    torch.save(dict(a=torch.zeros(9)), 'weights.pth')
    dataset = dict(
        type='CocoDataset', data_root='data/coco/', ann_file='train.json', data_prefix=dict(img='train/'))
    return Config(dict(
        train_dataloader=dict(dataset=dataset),
        val_dataloader=dict(dataset=dict(dataset, test_mode=True)),
        val_evaluator=dict(type='CocoMetric', ann_file='data/coco/train.json'),
        load_from=None,
        model=dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='weights.pth')))))


def message(cfg, *phases):
    with pytest.raises(ConfigError) as error:
        check_files(cfg, *phases)
    return str(error.value)


def test_complete(coco):
    check_files(coco)


def test_everything_missing_is_one_error(coco, tmp_path):
    coco.train_dataloader.dataset.data_prefix.img = 'nowhere/'
    coco.train_dataloader.dataset.ann_file = 'no.json'
    coco.load_from = 'no.pth'
    coco.model.backbone.init_cfg.checkpoint = 'lost.pth'
    assert message(coco) == f"""\
the config names files that cannot be used:
  train_dataloader.dataset.data_prefix.img = 'nowhere/': no such directory
    looked for: {tmp_path}/data/coco/nowhere
    what to do: put COCO 2017 there ({shipped('docs/how-to/dense.md')}), or override the key with --cfg-options
  train_dataloader.dataset.ann_file = 'no.json': no such file
    looked for: {tmp_path}/data/coco/no.json
    what to do: put COCO 2017 there ({shipped('docs/how-to/dense.md')}), or override the key with --cfg-options
  load_from = 'no.pth': no such file
    looked for: {tmp_path}/no.pth
    what to do: put the checkpoint there, or name another with --cfg-options KEY=PATH
  model.backbone.init_cfg.checkpoint = 'lost.pth': no such file
    looked for: {tmp_path}/lost.pth
    what to do: put the checkpoint there, or name another with --cfg-options KEY=PATH"""


def test_miniature_is_made_by_make(coco):
    coco.train_dataloader.dataset.data_root = 'data/miniature'
    assert 'what to do: run `mmprovpt miniature-coco`' in message(coco)


def test_only_the_phases_in_question(coco):
    coco.test_dataloader = dict(dataset=dict(data_root='nowhere', ann_file='a.json'))
    coco.model.backbone.init_cfg.checkpoint = 'lost.pth'
    assert 'test_dataloader' not in message(coco)
    assert 'lost.pth' not in message(coco, ('test',))


def test_nested_data_sets(coco):
    inner = coco.train_dataloader.dataset.copy()
    inner.ann_file = 'no.json'
    coco.train_dataloader.dataset = dict(
        type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[inner]))
    assert "train_dataloader.dataset.dataset.datasets.0.ann_file = 'no.json'" in message(coco)


@pytest.mark.parametrize('content, reason', [
    ('', 'the file is empty'),
    ('{"images": [1, 2', 'corrupt JSON'),
    ('{"images": [1,, 2]}', 'corrupt JSON'),
    ('{"images": [], "annotations": []}', 'not in COCO format, categories missing'),
    ('[]', 'not in COCO format, images and categories and annotations missing'),
])
def test_bad_annotation_file(coco, content, reason):
    with open('data/coco/train.json', 'w') as f:
        f.write(content)
    assert f"train_dataloader.dataset.ann_file = 'train.json': {reason}" in message(coco)


def test_large_annotation_file_is_not_parsed(coco, monkeypatch):
    monkeypatch.setattr(preflight, 'PARSE_LIMIT', 100)
    with open('data/coco/train.json', 'w') as f:
        f.write(' {"images": [,,], ' + ' ' * 100 + '"annotations": []}\n')
    check_files(coco)
    with open('data/coco/train.json', 'a') as f:
        f.write('{"cut')
    assert 'truncated or corrupt JSON' in message(coco)


def test_images_to_test_need_no_annotations(coco):
    with open('data/coco/train.json', 'w') as f:
        json.dump(dict(images=[], categories=[]), f)
    assert 'val_dataloader' not in message(coco)


@pytest.mark.parametrize('size', [0, 200])
def test_truncated_checkpoint(coco, size):
    os.truncate('weights.pth', size)
    assert "init_cfg.checkpoint = 'weights.pth': truncated checkpoint" in message(coco)


def test_published_weights(coco):
    """Named by docs/how-to/weights.md; timm's backbone takes the file as an argument of its own."""
    coco.model.backbone = dict(type='mmprovpt.PromptedTIMMBackbone', checkpoint_path='checkpoints/ViT-B_16.npz')
    said = message(coco)
    assert "model.backbone.checkpoint_path = 'checkpoints/ViT-B_16.npz': no such file" in said
    assert f'what to do: get it as {shipped("docs/how-to/weights.md")} says' in said
    os.mkdir('checkpoints')
    with open('checkpoints/ViT-B_16.npz', 'wb') as f:
        f.write(b'PK\x03\x04 and no more')
    assert 'truncated checkpoint' in message(coco)
    coco.model.backbone = dict(type='mmprovpt.PromptedTIMMBackbone', pretrained_cfg_overlay=dict(file='dinov3.pth'))
    assert "model.backbone.pretrained_cfg_overlay.file = 'dinov3.pth': no such file" in message(coco)


@pytest.mark.parametrize('url', ['https://a.b/c.pth', 'torchvision://resnet50', 's3:bucket/c.pth'])
def test_urls_are_left_alone(coco, url):
    coco.model.backbone.init_cfg.checkpoint = coco.load_from = url
    coco.model.pretrained = url
    coco.train_dataloader.dataset.data_root = url
    check_files(coco)


def test_root_alone(coco):
    coco.train_dataloader.dataset = dict(type='Flowers102', data_root='nowhere')
    assert "train_dataloader.dataset.data_root = 'nowhere': no such directory" in message(coco)
    coco.train_dataloader.dataset.type = 'mmpretrain.CIFAR10'  # downloads
    check_files(coco)


@pytest.fixture
def vtab(tmp_path, monkeypatch):
    """A config for VTAB-1k and the lists of its task, in the current directory."""
    monkeypatch.chdir(tmp_path)
    os.makedirs('data/vtab-1k/cifar')
    for split in ('train800', 'val200'):
        with open(f'data/vtab-1k/cifar/{split}.txt', 'w') as f:
            f.write('images/a.png 0\n')

    def loader(split):
        return dict(dataset=dict(type='mmprovpt.VTAB1k', task='cifar', split=split))

    return Config(dict(
        train_dataloader=loader('train800'), val_dataloader=loader('val200'),
        model=dict(type='ImageClassifier', head=dict(num_classes=100)), data_preprocessor=dict(num_classes=100)))


def test_tasks_complete(vtab):
    check_files(vtab)
    vtab.model.head.pop('num_classes')
    check_files(vtab)


@pytest.mark.parametrize('place', ['model.head', 'data_preprocessor', 'model.data_preprocessor'])
def test_other_number_of_classes_than_the_task(vtab, place):
    vtab.merge_from_dict({f'{place}.num_classes': 10})
    assert message(vtab, ('train',)) == f"""\
the config does not fit its task:
  {place}.num_classes = 10: train_dataloader.dataset.task = 'cifar' has 100 classes; set it with --cfg-options \
{place}.num_classes=100"""


def test_other_number_of_classes_in_a_task_of_ones_own_and_in_nested_ones(vtab):
    own = dict(type='VTAB1k', data_root='.', task='data', split='train800', num_classes=7)
    open('data/train800.txt', 'w').write('images/a.png 0')
    vtab.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dict(
        type='ConcatDataset', datasets=[vtab.train_dataloader.dataset, own]))
    text = message(vtab)
    assert text.count('num_classes = 100') == 2 and text.count("datasets.1.task = 'data' has 7 classes") == 2
    assert 'test_dataloader' not in text


def test_task_without_its_folder_or_lists(vtab, tmp_path):
    vtab.train_dataloader.dataset.task = 'kitti'
    os.remove('data/vtab-1k/cifar/val200.txt')
    vtab.model.head.num_classes = 4
    text = message(vtab)
    assert text.startswith(f"""\
the config names files that cannot be used:
  train_dataloader.dataset.task = 'kitti': no such directory
    looked for: {tmp_path}/data/vtab-1k/kitti
    what to do: get or write the data as {shipped('docs/how-to/datasets.md')} says, or override data_root with \
--cfg-options
  val_dataloader.dataset.split = 'val200': no such file
    looked for: {tmp_path}/data/vtab-1k/cifar/val200.txt
""")
    assert 'model.head.num_classes = 4: val_dataloader.dataset.task' in text
    vtab.train_dataloader.dataset.update(data_root='data/miniature-vtab', task='count', num_classes=6)
    assert 'run `mmprovpt miniature-vtab --out data/miniature-vtab`' in message(vtab)


def test_unknown_tasks_list_the_known(vtab):
    vtab.train_dataloader.dataset.task = 'cifar100'
    vtab.val_dataloader.dataset = dict(type='mmprovpt.FGVC', task='cats')
    text = message(vtab)
    assert "train_dataloader.dataset: VTAB-1k has no task 'cifar100'; known: cifar, caltech101" in text
    assert "val_dataloader.dataset: FGVC has no task 'cats'; known: cub, nabirds" in text


def test_fgvc(vtab, tmp_path):
    vtab.train_dataloader.dataset = dict(type='mmprovpt.FGVC', task='cub', split='trainval')
    vtab.model.head.num_classes = vtab.data_preprocessor.num_classes = 200
    assert f'looked for: {tmp_path}/data/fgvc/CUB_200_2011; ' in message(vtab, ('train',))
    os.makedirs('data/fgvc/CUB_200_2011')
    check_files(vtab, ('train',))
    vtab.model.head.num_classes = 100
    assert "train_dataloader.dataset.task = 'cub' has 200 classes" in message(vtab, ('train',))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with a config that names weights in three places, while the user is in another folder."""
    (tmp_path / 'project').mkdir()
    (tmp_path / 'project/config.py').write_text("""
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='vit.pth')), necks=[dict(pretrained='vit.pth')])
load_from = 'all.pth'
""", encoding='utf-8')
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    return tmp_path


def test_weights_beside_the_config(elsewhere):
    for name in ('vit.pth', 'all.pth'):
        torch.save({}, elsewhere / 'project' / name)
    cfg = read_config('../project/config.py')
    check_files(cfg)
    assert cfg.model.backbone.init_cfg.checkpoint == cfg.model.necks[0].pretrained == f'{elsewhere}/project/vit.pth'
    assert cfg.load_from == f'{elsewhere}/project/all.pth'
    torch.save({}, 'vit.pth')  # what is here goes first
    assert read_config('../project/config.py').model.backbone.init_cfg.checkpoint == 'vit.pth'
    cfg = read_config('../project/config.py', dict(load_from='https://a.b/c.pth'))
    assert cfg.load_from == 'https://a.b/c.pth'


def test_weights_in_neither_place_name_both(elsewhere):
    text = message(read_config('../project/config.py'))
    for name in ('vit.pth', 'all.pth'):
        assert f'looked for: {elsewhere}/here/{name} and {elsewhere}/project/{name}\n' in text
