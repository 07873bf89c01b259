"""The configs of VTAB-1k and FGVC, made small: they train, save, resume and are tested, or say why they do not."""
import copy
import json

import numpy as np
import pytest
import torch
from dense_task import upstream_of
from mmengine.hooks import Hook
from mmengine.runner import Runner, load_checkpoint
from test_configs import ALL, BASELINES, build, config, small_backbone
from write_vtab1k import write_task

from mmprovpt.cli.preflight import check_files
from mmprovpt.errors import ConfigError


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A task in the benchmark's layout and size, its images small and their class their grey value."""
    def samples(count):
        return lambda: ((np.full((6, 9), 60 * (i % 4) + i % 50, np.uint8), i % 4) for i in range(count))

    folder = tmp_path_factory.mktemp('vtab')
    sizes = dict(train800=800, val200=200, test=40)
    write_task(folder / 'mine', {split: samples(size) for split, size in sizes.items()}, sizes, 4)
    return folder


class Snapshot(Hook):
    """Keep the weights that training starts from."""

    def __init__(self, weights):
        self.weights = weights

    def before_train(self, runner):
        self.weights.update({name: value.clone() for name, value in tensors(runner.model).items()})


def tensors(model):
    """All that a model holds; the state dict of LoRAModel leaves out what is frozen."""
    return {name: value.detach() for name, value in [*model.named_parameters(), *model.named_buffers()]}


def different(model, before):
    return {name for name, value in tensors(model).items() if not torch.equal(value, before[name])}


def localise(cfg, root, folder):
    """The data of ``root``, two epochs of 128 of its training images, in this process."""
    cfg.train_dataloader.dataset.indices = list(range(128))
    for phase in ('train', 'val', 'test'):
        cfg[f'{phase}_dataloader'].update(num_workers=0, persistent_workers=False)
        cfg[f'{phase}_dataloader'].dataset.update(data_root=str(root), task='mine', num_classes=4)
    cfg.train_cfg.max_epochs = 2
    cfg.work_dir, cfg.experiment_name = str(folder), f'configs_{folder.name}'
    return cfg


@pytest.mark.usefixtures('unformatted')
@pytest.mark.parametrize('method', ALL)
def test_trains_to_the_end(method, root, tmp_path):
    cfg = localise(small_backbone(config('vtab1k', method, 'kitti')), root, tmp_path)
    assert cfg.model.head.num_classes == 4
    cfg.merge_from_dict({'default_hooks.logger.interval': 1})  # as --cfg-options does
    before = {}
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Snapshot(before))
    runner.train()
    assert runner.iter == 2 * 2
    model = runner.model
    part = dict(full='backbone.', lora='.lora_', linear='head.').get(method, '.prompts.')
    trained = {name for name, _ in model.named_parameters() if part in name} | {'head.fc.weight', 'head.fc.bias'}
    assert different(model, before) - {'backbone.prompts.block_index'} == trained
    assert len(trained) == dict(linear=2, full=2 + 4 + 3 * 12 + 2, lora=2 + 3 * 2).get(method, len(trained))
    log, = tmp_path.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len([row for row in rows if 'loss' in row]) == 4
    scores = [row for row in rows if 'accuracy/top1' in row]
    assert len(scores) == 1 and 0 <= scores[0]['accuracy/top1'] <= 100  # at the end, and only there
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_2.pth']
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['state_dict']
    assert trained <= saved.keys()
    assert ('backbone.patch_embed.projection.weight' in saved) == (method == 'full')
    assert method != 'lora' or saved.keys() == trained
    periods = [path.read_text().splitlines() for path in tmp_path.glob('*/relocations.jsonl')]
    assert [len(rows) for rows in periods] == ([2] if method.startswith('pro') else [])


@pytest.mark.usefixtures('unformatted')
@pytest.mark.parametrize('method', BASELINES)
def test_checkpoints_of_baselines(method, root, tmp_path, call):
    """Published weights are used; a run that was cut goes on; fresh models compute what the trained one did."""
    cfg = localise(small_backbone(config('vtab1k', method, 'kitti')), root, tmp_path / method)
    published = build(small_backbone(config('vtab1k', 'full', 'kitti'))).state_dict()
    published = {name: torch.randn_like(value) * 0.1 for name, value in published.items() if 'backbone' in name}
    torch.save(dict(state_dict=published), tmp_path / 'published.pth')
    upstream_of(cfg).init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'published.pth'), prefix='backbone.')
    if method == 'lora':
        cfg.model.backbone.drop_rate = 0.  # so that the second epoch is the same again
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=2)
    before = {}
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    runner.register_hook(Snapshot(before))
    runner.train()
    start = {name.replace('backbone.module', 'backbone').replace('original_layer.', ''): value
             for name, value in before.items()}
    assert all(torch.equal(start[name], value) for name, value in published.items())
    final = tensors(runner.model)

    cfg.update(resume=True, load_from=str(tmp_path / method / 'epoch_1.pth'), work_dir=str(tmp_path / 'resumed'))
    cfg.experiment_name = f'configs_{method}_resumed'
    again = Runner.from_cfg(copy.deepcopy(cfg))
    again.train()
    assert again.iter == 4 and different(again.model, before)
    for name, value in tensors(again.model).items():
        torch.testing.assert_close(value, final[name])

    cfg.dump(str(tmp_path / 'config.py'))
    call('test', tmp_path / 'config.py', tmp_path / method / 'epoch_2.pth', '--work-dir', tmp_path / 'test',
         '--cfg-options', 'experiment_name=test', 'resume=False')
    path, = (tmp_path / 'test').glob('*/*.json')
    log, = (tmp_path / method).glob('*/vis_data/scalars.json')
    scores = [json.loads(row).get('accuracy/top1') for row in log.read_text().splitlines()]
    assert json.loads(path.read_text())['accuracy/top1'] == scores[-1]

    fresh = build(cfg).eval()
    load_checkpoint(fresh, str(tmp_path / method / 'epoch_2.pth'), strict=True)
    with torch.no_grad():
        images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        ours, theirs = (model(images, mode='tensor') for model in (fresh, runner.model.eval()))
    assert torch.equal(ours, theirs) and ours.shape == (2, 4) and ours.std() > 0


def test_missing_weights_of_lora(root, tmp_path):
    """They are read at whatever the model is built for, but not to count."""
    cfg = localise(config('vtab1k', 'lora', 'kitti'), root, tmp_path)
    with pytest.raises(ConfigError, match='model.backbone.module.init_cfg.checkpoint = .*: no such file'):
        check_files(cfg, ('test', ))
    check_files(localise(config('vtab1k', 'full', 'kitti'), root, tmp_path), ('test', ))
