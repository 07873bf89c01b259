"""The demos' configs: what their twins change, and an iteration of each on a scrap of their data."""
import json
from pathlib import Path

import miniature
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from test_configs import differences

from mmprovpt.cli.preflight import check_files
from mmprovpt.cli.runner import build_runner

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('sklearn')

DEMO = Path(__file__).parents[1] / 'configs/demo'
NAMES = ('mask_rcnn_swin_mini', 'setr_pup_vit_mini', 'swin_mini')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A directory with the data where the configs look for it: an image of each split, eight digits."""
    root = tmp_path_factory.mktemp('demos')
    miniature.build_miniature(root / 'data/miniature', num_train=1, num_val=1)
    return root


@pytest.mark.parametrize('name', NAMES)
def test_twins_differ_in_prompts_alone(name):
    provpt, vpt, frozen, full = (Config.fromfile(DEMO / f'{name}_{method}_digits.py').to_dict()
                                 for method in ('provpt', 'vpt', 'frozen', 'full'))
    changed = {'model.backbone.type', 'model.backbone.prompts'}
    if name == 'swin_mini':
        changed |= {'default_hooks.checkpoint.type', *(f'optim_wrapper.optimizer.{key}'
                                                       for key in ('type', 'lr', 'momentum'))}
    assert differences(full, vpt) == changed and 'prompts' not in full['model']['backbone']
    assert f'mmprovpt.Prompted{full["model"]["backbone"]["type"]}' == vpt['model']['backbone']['type']
    lora = Config.fromfile(DEMO / f'{name}_lora_digits.py').to_dict()
    changed = {'lora', 'optim_wrapper.optimizer.lr'} if name == 'swin_mini' else {'lora'}
    assert {key for key in differences(lora, full) if not key.startswith('model.backbone.')} == changed
    # Built, it has read the checkpoint: LoRAModel loads when it is constructed.
    with DefaultScope.overwrite_default_scope(lora['default_scope']):
        backbone = MODELS.build(Config(lora).model).backbone
    stored = torch.load(Config(lora).model.backbone.module.init_cfg.checkpoint, weights_only=True)['state_dict']
    key = next(key for key in stored if key.endswith('proj.weight') and 'attn' in key)
    assert torch.equal(backbone.module.get_parameter(key.removeprefix('backbone.')), stored[key].float())
    assert {name.split('.')[-2] for name, parameter in backbone.named_parameters() if parameter.requires_grad} \
        == {'lora_down', 'lora_up'}
    assert [hook['type'] for hook in provpt.pop('custom_hooks')] == ['mmprovpt.PromptRelocationHook']
    assert vpt.pop('custom_hooks') == frozen.pop('custom_hooks') == []
    assert [cfg['model']['backbone']['prompts'].pop('num_tokens') for cfg in (provpt, vpt, frozen)] == [10, 10, 0]
    assert provpt == vpt == frozen


def test_classes_of_the_segmentation_demo():
    cfg = Config.fromfile(DEMO / 'setr_pup_vit_mini_provpt_digits.py')
    for phase in ('train', 'val', 'test'):
        metainfo = cfg[f'{phase}_dataloader'].dataset.metainfo
        assert tuple(metainfo.classes) == miniature.LABELS
        assert len({tuple(colour) for colour in metainfo.palette}) == len(miniature.LABELS)
    head = cfg.model.decode_head
    assert head.num_classes == len(head.loss_decode.class_weight) == len(miniature.LABELS)


def test_segmentation_demo_refuses_augmented_tests(call):
    with pytest.raises(SystemExit) as stop:
        call('test', DEMO / 'setr_pup_vit_mini_provpt_digits.py', 'a.pth', '--tta')
    assert '--tta needs tta_model and tta_pipeline in the config' in stop.value.code


class Snapshot(Hook):
    """Keep the weights that training starts from."""

    def before_train(self, runner):
        self.weights = {name: value.clone() for name, value in runner.model.named_parameters()}


@pytest.mark.parametrize('name', NAMES)
def test_one_iteration(name, root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    cfg = Config.fromfile(DEMO / f'{name}_provpt_digits.py')
    check_files(cfg, ('train', 'val'))
    cfg.train_dataloader.batch_size = 8 if name == 'swin_mini' else 1
    end = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    cfg.train_cfg.update({end: 1, 'val_interval': 1})
    cfg.default_hooks.checkpoint.interval = cfg.custom_hooks[0].interval = 1
    cfg.work_dir, cfg.experiment_name = str(tmp_path), f'demos_{name}'
    runner = build_runner(cfg)
    snapshot = Snapshot()
    runner.register_hook(snapshot)
    runner.train()
    assert runner.iter == 1

    # Only prompts, neck and heads have learned; the backbone is the file's.
    changed = {key for key, value in runner.model.named_parameters() if not torch.equal(value, snapshot.weights[key])}
    assert 'backbone.prompts.tokens' in changed and any('head' in key for key in changed)
    assert {key for key in changed if key.startswith('backbone.')} == {'backbone.prompts.tokens'}
    stored = torch.load(cfg.model.backbone.init_cfg.checkpoint, weights_only=True)['state_dict']
    key = next(key for key in stored if key.endswith('qkv.weight'))
    assert torch.equal(runner.model.state_dict()[key], stored[key].float())

    period, = map(json.loads, next(tmp_path.glob('*/relocations.jsonl')).read_text().splitlines())
    assert sum(period['distribution']) == 10 * runner.model.backbone.prompts.num_blocks
    assert list(tmp_path.glob('*_1.pth')) and list(tmp_path.glob('*/prompt_distribution.png'))
    scores = [json.loads(line) for line in next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    metric = dict(zip(NAMES, ('coco/segm_mAP', 'mIoU', 'accuracy/top1')))[name]
    score, = [row[metric] for row in scores if metric in row]
    assert 0 <= score <= 100


def test_three_tasks_by_one_backbone(root, tmp_path, monkeypatch):
    """An iteration of each."""
    monkeypatch.chdir(root)
    cfg = Config.fromfile(DEMO / 'multi_swin_mini_vpt_digits.py')
    check_files(cfg, ('train', 'val'))
    for task, count in dict(detect=1, segment=2, classify=2).items():
        cfg.train_dataloader[task].update(batch_size=count)
    cfg.train_cfg.update(max_iters=3, val_interval=3)
    cfg.default_hooks.checkpoint.interval = 3
    cfg.work_dir, cfg.experiment_name = str(tmp_path), 'demos_multi'
    runner = build_runner(cfg)
    snapshot = Snapshot()
    runner.register_hook(snapshot)
    runner.train()
    changed = {key for key, value in runner.model.named_parameters() if not torch.equal(value, snapshot.weights[key])}
    assert {key for key in changed if key.startswith('backbone.')} == {
        f'backbone.prompts.{task}.tokens' for task in cfg.model.tasks}
    assert {key.split('.')[1] for key in changed if key.startswith('tasks.')} == {'detect', 'segment', 'classify'}
    assert (tmp_path / 'iter_3.pth').stat().st_size < 250e6
    hub = runner.message_hub
    for metric in ('detect/coco/segm_mAP', 'segment/mIoU', 'classify/accuracy/top1'):
        assert 0 <= hub.get_scalar(f'val/{metric}').current() <= 100


@pytest.mark.parametrize('model', ['swin', 'vit'])
def test_pretraining_writes_what_the_demos_load(model, call, tmp_path, capsys):
    out = tmp_path / 'x.pth'
    call('pretrain_miniature', model, '--iters', '1', '--batch-size', '1', '--out', out)
    assert f'{out}: ' in capsys.readouterr().out
    shipped, written = (torch.load(path, weights_only=True) for path in (DEMO / f'{model}_mini_digits.pth', out))
    assert written['meta']['iters'] == 1
    for key, value in shipped['state_dict'].items():
        assert written['state_dict'][key].shape == value.shape and written['state_dict'][key].dtype == value.dtype, key
    assert len(written['state_dict']) == len(shipped['state_dict'])
