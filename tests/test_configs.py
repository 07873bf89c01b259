"""The configs of VTAB-1k, FGVC and image folders: what they say and what they count."""
import functools
import math
import os
import shutil
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from dense_task import upstream_of
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, PARAM_SCHEDULERS, DefaultScope
from PIL import Image

from mmprovpt.cli.options import read_config
from mmprovpt.cli.parameters import count_config, count_trainable
from mmprovpt.datasets.miniature_tasks import TASKS as MINIATURE
from mmprovpt.relocation import PPOAllocator, ThompsonAllocator

ROOT = Path(__file__).parents[1]
METHODS = ('vpt', 'provpt')
OTHER_KINDS = dict(vapt='vpt', provapt='provpt', vpt_shallow='vpt')  # as these, with prompts of another kind
BASELINES = ('linear', 'full', 'lora')  # without prompts
ALL = METHODS + tuple(OTHER_KINDS) + BASELINES
# Classes and prompts per block (VPT's, which PRO-VPT takes over).
TASKS = {
    'vtab1k': dict(
        cifar=(100, 10), caltech101=(102, 10), dtd=(47, 10), oxford_flowers102=(102, 1), oxford_iiit_pet=(37, 1),
        svhn=(10, 50), sun397=(397, 5), patch_camelyon=(2, 100), eurosat=(10, 100), resisc45=(45, 10),
        diabetic_retinopathy=(5, 1), clevr_count=(8, 50), clevr_dist=(6, 200), dmlab=(6, 100), kitti=(4, 50),
        dsprites_loc=(16, 10), dsprites_ori=(16, 50), smallnorb_azi=(18, 200), smallnorb_ele=(9, 200)),
    'fgvc': dict(cub=(200, 10), nabirds=(555, 50), flowers=(102, 5), dogs=(120, 100), cars=(196, 200)),
}
CASES = [(benchmark, task) for benchmark, tasks in TASKS.items() for task in tasks]
POLICY = 13901  # PPO at 12 blocks: 7,308 of the actor, 6,593 of the critic
INCEPTION = [[127.5] * 3] * 2
IMAGENET = [[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]]
# Name: width of its features, blocks, normalisation of its pre-training.
BACKBONES = dict(
    vit_b16_in21k=(768, 12, INCEPTION), vit_l16_in21k=(1024, 24, INCEPTION), vit_h14_in21k=(1280, 32, INCEPTION),
    vit_b16_mae=(768, 12, IMAGENET), vit_b16_mocov3=(768, 12, IMAGENET), vit_b14_dinov2=(768, 12, IMAGENET),
    swin_b_in21k=(1024, 24, IMAGENET))


# What a file that serves several tasks says of the chosen one, beside what follows from it.
CHOSEN = {'task', 'num_classes', 'num_tokens', 'work_dir'}
# What lies in a folder of such files: their names, with a place for the method, the methods, and the tasks.
FAMILIES = {
    'vtab1k/vit_b_{}.py': (ALL, TASKS['vtab1k']), 'fgvc/vit_b_{}.py': (ALL, TASKS['fgvc']),
    'miniature_vtab/{}.py': (ALL, MINIATURE), 'miniature_vtab/provpt_{}.py': (('authors', ), MINIATURE),
    'vtab1k/swin_b_{}.py': (METHODS + BASELINES, TASKS['vtab1k'])}


def read(name, task=None):
    """A config as it is with TASK in the environment, or without."""
    with mock.patch.dict(os.environ):
        os.environ.pop('TASK', None)
        if task is not None:
            os.environ['TASK'] = task
        return read_config(ROOT / 'configs' / name)


@functools.lru_cache(None)
def parse(name, task=None):
    return read(name, task).to_dict()


def config(benchmark, method, task):
    return Config(parse(f'{benchmark}/vit_b_{method}.py', task))


def differences(a, b, path=''):
    """Dotted keys whose values differ; lists as a whole."""
    a, b = (value.to_dict() if isinstance(value, Config) else value for value in (a, b))
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return set() if a == b else {path}
    return set().union(*(differences(a.get(key), b.get(key), f'{path}.{key}'.strip('.')) for key in {*a, *b}))


def build(cfg):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg.model)


def small_backbone(cfg):
    """Three narrow blocks with 16 patches, without a checkpoint."""
    upstream_of(cfg).update(init_cfg=None, patch_size=56, arch=dict(
        embed_dims=24, num_layers=3, num_heads=2, feedforward_channels=24))
    cfg.model.head.in_channels = 24
    return cfg


@pytest.mark.parametrize('benchmark, task', CASES)
def test_task(benchmark, task):
    classes, prompts = TASKS[benchmark][task]
    vpt, provpt = (config(benchmark, method, task) for method in METHODS)
    assert differences(vpt, provpt) == {'optim_wrapper.clip_grad', 'custom_hooks', 'work_dir'}
    assert (vpt.model.head.num_classes, vpt.model.backbone.prompts.num_tokens) == (classes, prompts)
    splits = dict(vtab1k=('train800val200', 'test', 'test'), fgvc=('trainval', 'test', 'test'))[benchmark]
    for phase, split in zip(('train', 'val', 'test'), splits):
        dataset = vpt[f'{phase}_dataloader'].dataset
        assert (dataset.task, dataset.split) == (task, split)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            assert DATASETS.build(dict(dataset, lazy_init=True)).num_classes == classes
    assert vpt.optim_wrapper.optimizer == dict(type='SGD', lr=0.625, momentum=0.9, weight_decay=0.0001)


@pytest.mark.parametrize('benchmark, vpt, provpt', [('vtab1k', 0.600, 0.614), ('fgvc', 0.853, 0.867)])
def test_parameters_are_the_papers(benchmark, vpt, provpt):
    """PRO-VPT, Tables 1 and 2, print 0.60 / 0.61 and 0.85 / 0.86."""
    tasks = TASKS[benchmark].items()
    counts = {method: [count_config(config(benchmark, method, task)) for task, _ in tasks] for method in METHODS}
    expected = [769 * classes + 12 * 768 * prompts for _, (classes, prompts) in tasks]
    assert counts['vpt'] == expected
    assert counts['provpt'] == [count + POLICY for count in expected]
    assert [round(float(np.mean(counts[method])) / 1e6, 3) for method in METHODS] == [vpt, provpt]


def gated(cfg):
    """The key by which PRO-VAPT differs from PRO-VPT, having another criterion; empty for others."""
    if cfg.model.backbone.prompts.type != 'AdaptivePrompts' or not cfg.get('custom_hooks'):
        return set()
    hook, = cfg.custom_hooks
    assert hook.pruner == dict(type='IdlenessPruner', criterion='gate_fisher') and hook.interval == 1 and hook.by_epoch
    return {'custom_hooks'}


@pytest.mark.parametrize('benchmark', TASKS)
def test_twins_with_other_prompts(benchmark):
    """VAPT has 13² positions and a bias; a norm and a kernel of 11 blocks; a projector. VPT-Shallow has one block's."""
    for task, (classes, prompts) in TASKS[benchmark].items():
        expected = 769 * classes + prompts * (768 + 11 * (13**2 + 1)) + 11 * (2**2 + 2 * 768) + 2 * 8 * 768
        expected = dict(vapt=expected, provapt=expected + POLICY, vpt_shallow=769 * classes + prompts * 768)
        for twin, method in OTHER_KINDS.items():
            cfg = config(benchmark, twin, task)
            assert differences(cfg, config(benchmark, method, task)) \
                == {'model.backbone.prompts.type', 'work_dir'} | gated(cfg)
            assert count_config(cfg) == expected[twin]


FULL = {'model.backbone.type', 'model.backbone.prompts', 'default_hooks.checkpoint.type'} | {
    f'optim_wrapper.optimizer.{key}' for key in ('type', 'lr', 'momentum')}


def check_baselines(name, task=None, rates=frozenset()):
    """What they change: prompts, what is frozen, and how that is trained.

    ``name`` has a place for the method; ``rates`` are those in which VPT-Deep differs from linear probing.
    """
    vpt, linear, full, lora = (dict(parse(name.format(method), task)) for method in ('vpt', *BASELINES))
    for cfg in (vpt, linear, full, lora):
        cfg.pop('work_dir', None)
    assert differences(linear, vpt) == {'model.backbone.prompts.num_tokens'} | rates
    assert linear['model']['backbone']['prompts']['num_tokens'] == 0
    assert differences(full, vpt) == FULL | rates
    assert full['model']['backbone']['type'] == vpt['model']['backbone']['type'].replace('mmprovpt.Prompted', '')
    assert 'prompts' not in full['model']['backbone'] and full['model']['backbone'].get('frozen_stages', -1) == -1
    assert full['optim_wrapper']['optimizer'] == dict(type='AdamW', lr=0.0005 / 4, weight_decay=0.0001)
    lora_model = dict(lora['model']['backbone'])
    changed = {key for key in differences(lora, full) if not key.startswith('model.backbone.')}
    assert changed == {'lora', 'optim_wrapper.optimizer.lr'} and lora['optim_wrapper']['optimizer']['lr'] == 0.005 / 4
    assert lora_model.pop('module') == full['model']['backbone']
    assert lora_model == dict(type='mmpretrain.LoRAModel', alpha=16, rank=16, drop_rate=0.1, targets=[dict(type='qkv')])


@pytest.mark.parametrize('benchmark', TASKS)
def test_baselines(benchmark):
    for task in TASKS[benchmark]:
        check_baselines(f'{benchmark}/vit_b_{{}}.py', task)
    # Patches, class token, positions; blocks of norms, attention and MLP; the last norm.
    vit = 768 * (3 * 16**2 + 1) + 768 + 197 * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    trained = dict(linear=0, full=vit, lora=12 * 16 * (768 + 3 * 768))
    task, (classes, _) = next(iter(TASKS[benchmark].items()))
    for method, backbone in trained.items():
        assert count_config(config(benchmark, method, task)) == backbone + 769 * classes
    # PRO-VPT, Tables 1 and 2
    head = np.mean([769 * classes for classes, _ in TASKS[benchmark].values()]) / 1e6
    assert dict(vtab1k=(0.04, 85.8), fgvc=(0.18, 86.0))[benchmark] == (round(head, 2), round(vit / 1e6 + head, 1))


def test_baselines_of_other_configs():
    check_baselines('custom/vit_b_{}_folder.py')
    check_baselines('vtab1k/swin_b_{}.py', 'svhn')
    vpt, provpt = (parse(f'vtab1k/swin_b_{method}.py', 'svhn') for method in METHODS)
    assert differences(vpt, provpt) == {'optim_wrapper.clip_grad', 'custom_hooks', 'work_dir'}
    counts = [count_config(Config(parse(f'vtab1k/swin_b_{method}.py', 'cifar'))) for method in BASELINES]
    widths = [128] * 2 + [256] * 2 + [512] * 18 + [1024] * 2
    # mmpretrain's: norms, attention with 13² biases a head of 32, MLP; patches and their norm, merging, last norm.
    swin = sum(12 * width**2 + 13 * width + 13**2 * width // 32 for width in widths) + 128 * (3 * 4**2 + 1 + 2) \
        + sum(8 * width**2 + 8 * width for width in (128, 256, 512)) + 2 * 1024
    head = 1025 * 100
    assert counts == [head, swin + head, 16 * 4 * sum(widths) + head]


@pytest.mark.parametrize('task', MINIATURE)
def test_miniature_vtab(task):
    """One backbone, one budget; tasks differ in their classes, methods in prompts, relocation and rates."""
    classes = len(MINIATURE[task].classes)
    configs = {method: Config(parse(f'miniature_vtab/{method}.py', task)) for method in ALL}
    assert differences(configs['vpt'], configs['provpt']) == {'custom_hooks', 'work_dir'}
    rates = {'optim_wrapper.optimizer.lr', 'optim_wrapper.optimizer.weight_decay', 'optim_wrapper.clip_grad'}
    check_baselines('miniature_vtab/{}.py', task, rates)
    for twin, method in OTHER_KINDS.items():
        changed = {'grid_size', 'type'} if 'vapt' in twin else {'type'}
        schedule = {'param_scheduler'} if twin == 'provapt' else set()
        assert differences(configs[twin], configs[method]) == {
            f'model.backbone.prompts.{key}' for key in changed} | {'work_dir'} | rates | schedule | gated(configs[twin])
    vapt = 5 * (384 + 11 * (2**2 + 1)) + 11 * (2**2 + 2 * 384) + 2 * 8 * 384
    trained = dict(linear=0, vpt=60 * 384, provpt=60 * 384 + POLICY, lora=12 * 16 * 4 * 384, vapt=vapt,
                   provapt=vapt + POLICY, vpt_shallow=5 * 384)
    assert {method: count_config(configs[method]) - 385 * classes for method in trained} == trained
    for cfg in configs.values():
        assert cfg.train_cfg.max_epochs == 10
        dataset = cfg.test_dataloader.dataset
        assert (dataset.task, dataset.num_classes, cfg.model.head.num_classes) == (task, classes, classes)


def test_parameters_of_one_task():
    """PRO-VPT, Table 3, SVHN: 0.468 and 0.482; and a model that was really initialised counts the same."""
    assert [round(count_config(config('vtab1k', method, 'svhn')) / 1e6, 3) for method in METHODS] == [0.468, 0.482]
    cfg = small_backbone(config('vtab1k', 'provpt', 'svhn'))
    model = build(cfg)
    model.init_weights()
    head = 25 * 10
    assert count_trainable(model) == 3 * 50 * 24 + head
    assert count_trainable(model, ThompsonAllocator(num_blocks=3, seed=0)) == 3 * 50 * 24 + head
    policy = (9 * 64 + 64) + (64 * 64 + 64) + (64 * 3 + 3) + (9 * 64 + 64) + (64 * 64 + 64) + 65
    assert count_trainable(model, PPOAllocator(num_blocks=3, seed=0)) == 3 * 50 * 24 + head + policy
    assert count_config(cfg) == 3 * 50 * 24 + head + policy
    model.backbone.prompts.relocate(7, -1)  # taken out: no block reads it
    assert count_trainable(model) == (3 * 50 - 1) * 24 + head


@pytest.mark.parametrize('benchmark', TASKS)
def test_schedules(benchmark):
    """Learning rates of 100 epochs of 3 iterations."""
    rates = {}
    for method in METHODS:
        cfg = config(benchmark, method, next(iter(TASKS[benchmark])))
        assert cfg.train_cfg.max_epochs == 100 and cfg.train_dataloader.batch_size == 64
        assert cfg.auto_scale_lr.base_batch_size == 64 and cfg.randomness.seed == 0
        optim = build_optim_wrapper(torch.nn.Linear(1, 1), cfg.optim_wrapper)
        schedulers = [PARAM_SCHEDULERS.build(dict(scheduler), default_args=dict(optimizer=optim, epoch_length=3))
                      for scheduler in cfg.param_scheduler]
        rates[method] = []
        for _ in range(300):
            rates[method].append(optim.param_groups[0]['lr'])
            optim.update_params(torch.nn.Linear(1, 1)(torch.ones(1)).sum())
            for scheduler in schedulers:
                scheduler.step()
    base = 2.5 * 64 / 256
    assert rates['provpt'] == rates['vpt']
    vpt = np.array(rates['vpt']) / base
    np.testing.assert_allclose(vpt[:30], np.linspace(0.001, 1, 30))
    np.testing.assert_allclose(vpt[30:], [(1 + math.cos(math.pi * step / 270)) / 2 for step in range(270)], atol=1e-9)


def test_relocation_is_the_papers():
    hook, = config('vtab1k', 'provpt', 'cifar').custom_hooks
    assert hook == dict(
        type='mmprovpt.PromptRelocationHook', interval=1, by_epoch=True,
        pruner=dict(type='IdlenessPruner', criterion='taylor'), allocator=dict(type='PPOAllocator'))
    cfg = config('vtab1k', 'vpt', 'diabetic_retinopathy')
    assert build(small_backbone(cfg)).backbone.prompts.dropout == 0.1 and 'custom_hooks' not in cfg


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    """A file, and its (H, W, 3) RGB pixels: smooth, so that interpolations agree, and no side alike."""
    y, x = np.mgrid[:320, :640] / 640
    pixels = (255 * np.stack([x, y * 2, (x + y) / 2], -1)).astype(np.uint8)
    path = tmp_path_factory.mktemp('images') / 'x.png'
    Image.fromarray(pixels).save(path)
    return str(path), pixels


def through(pipeline, path):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        import mmpretrain.datasets  # noqa: F401  registers the transforms
        return Compose(pipeline)(dict(img_path=path, gt_label=0))


@pytest.mark.parametrize('phase', ['train', 'val', 'test'])
def test_vtab_resizes_only(image, phase):
    path, pixels = image
    cfg = small_backbone(config('vtab1k', 'provpt', 'kitti'))
    data = through(cfg[f'{phase}_dataloader'].dataset.pipeline, path)
    batch = dict(inputs=data['inputs'][None], data_samples=[data['data_samples']])
    inputs = build(cfg).data_preprocessor(batch)['inputs']
    expected = cv2.resize(pixels, (224, 224)).transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(inputs[0].numpy(), expected, atol=1e-5)


def test_fgvc_crops(image):
    path, pixels = image
    cfg = config('fgvc', 'provpt', 'cub')
    resized = np.asarray(Image.fromarray(pixels).resize((512, 256), Image.BILINEAR))
    expected = resized[16:240, 144:368, ::-1].transpose(2, 0, 1)  # BGR until the model's preprocessor
    for phase in ('val', 'test'):
        inputs = through(cfg[f'{phase}_dataloader'].dataset.pipeline, path)['inputs'].numpy()
        np.testing.assert_allclose(inputs.astype(int), expected, atol=1)
    np.random.seed(0)
    crops = [through(cfg.train_dataloader.dataset.pipeline, path)['inputs'].float() for _ in range(40)]
    assert {tuple(crop.shape) for crop in crops} == {(3, 224, 224)}
    # Red grows from left to right in the file: by how much is the crop's width, the sign is the flip.
    slopes = torch.stack([crop[2, :, -1].mean() - crop[2, :, 0].mean() for crop in crops])
    assert 8 <= (slopes < 0).sum() <= 32
    widths = slopes.abs() / 255
    assert widths.max() > 0.4 and widths.min() < 0.25 and len(set(widths.tolist())) > 20


@pytest.mark.parametrize('name', BACKBONES)
def test_other_backbones(name, tmp_path):
    """The line of docs/how-to/classification.md: exchange the first base."""
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    task = (tmp_path / 'configs/vtab1k/vit_b_provpt.py').read_text()
    path = tmp_path / 'configs/vtab1k/other_provpt.py'
    path.write_text(task.replace('vit_b16_in21k', name))
    cfg = read(path, 'cifar')
    assert cfg.work_dir == 'work_dirs/other_provpt_cifar'
    width, blocks, normalisation = BACKBONES[name]
    assert cfg.model.backbone.init_cfg.checkpoint == f'checkpoints/{name}.pth'
    assert [cfg.model.data_preprocessor[key] for key in ('mean', 'std')] == normalisation
    assert cfg.model.data_preprocessor.to_rgb and cfg.model.head.in_channels == width
    widths = [width] * blocks
    if name == 'swin_b_in21k':
        widths = [128] * 2 + [256] * 2 + [512] * 18 + [1024] * 2
        assert differences(cfg, parse('vtab1k/swin_b_provpt.py', 'cifar')) == {'work_dir'}
    policy = (3 * blocks * 64 + 64 + 64 * 64 + 64) * 2 + 65 * blocks + 65
    assert count_config(cfg) == 10 * sum(widths) + 100 * (width + 1) + policy
    cfg.merge_from_dict({'custom_hooks': [], 'model.backbone.prompts.num_tokens': 0})  # linear probing
    assert count_config(cfg) == 100 * (width + 1)
