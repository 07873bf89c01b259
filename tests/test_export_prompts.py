"""From a full checkpoint to a small one and back; what tools and libraries do with a small one."""
import importlib.util
import pickle
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

ROOT = Path(__file__).parents[1]
DATA = """
import torch
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample

@DATASETS.register_module(force=True)
class Halves(torch.utils.data.Dataset):
    metainfo = dict(classes=('left', 'right'))

    def __len__(self):
        return 16

    def __getitem__(self, i):
        image = torch.randint(0, 255, (3, 32, 32), generator=torch.Generator().manual_seed(i)).float()
        image[:, :, 16 * (i % 2):16 * (i % 2) + 16] /= 2
        return dict(inputs=image, data_samples=DataSample().set_gt_label(i % 2))
"""
CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['halves'])
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3, num_classes=2)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmprovpt.PromptedVisionTransformer', img_size=32, patch_size=8,
        arch=dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64),
        init_cfg=dict(type='Pretrained', checkpoint='vit.pth', prefix='backbone.'),
        prompts=dict(type='StaticPrompts', num_tokens=2)),
    head=dict(type='LinearClsHead', in_channels=32, num_classes=2))
train_dataloader = dict(batch_size=8, dataset=dict(type='Halves'), sampler=dict(type='DefaultSampler', shuffle=True))
test_dataloader = dict(batch_size=8, dataset=dict(type='Halves'), sampler=dict(type='DefaultSampler', shuffle=False))
test_evaluator = dict(type='Accuracy')
test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.5, momentum=0.9))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
custom_hooks = [dict(type='EMAHook', momentum=0.2), dict(type='mmprovpt.PromptRelocationHook')]
randomness = dict(seed=0)
work_dir = 'run'
"""


def call(tool, *args):
    """Call a tool in this process, which saves importing torch again."""
    spec = importlib.util.spec_from_file_location(f'tools_{tool}', ROOT / f'tools/{tool}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, sys.argv = sys.argv, [tool, *map(str, args)]
    try:
        module.main()
    finally:
        sys.argv = before


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A directory with a config, the frozen weights that it names, and a full checkpoint, also as a small one."""
    folder = tmp_path_factory.mktemp('export')
    (folder / 'halves.py').write_text(DATA)
    (folder / 'config.py').write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        cfg = Config.fromfile('config.py')
        from mmpretrain.registry import MODELS
        torch.manual_seed(5)
        backbone = dict(cfg.model.backbone, type='VisionTransformer', init_cfg=None)
        backbone.pop('prompts')
        weights = MODELS.build(backbone).state_dict()
        torch.save(dict(state_dict={f'backbone.{key}': value for key, value in weights.items()}), 'vit.pth')
        Runner.from_cfg(cfg).train()
        call('export_prompts', 'run/epoch_2.pth', 'small.pth')
        yield folder


@pytest.fixture(autouse=True)
def inside(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(trained)


def load(path):
    return torch.load(path, weights_only=False)


def assert_same(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_export_leaves_out_what_is_frozen_and_what_only_training_needs():
    full, small = load('run/epoch_2.pth'), load('small.pth')
    assert small.keys() == {'meta', 'state_dict'}
    assert small['meta'] == full['meta']
    assert set(small['state_dict']) == {
        'backbone.prompts.tokens', 'backbone.prompts.block_index', 'backbone.prompts.form',
        'backbone.prompts.frozen_sha256', 'backbone.prompts.frozen_file_sha256', 'head.fc.weight', 'head.fc.bias'}
    for name in set(small['state_dict']) & set(full['state_dict']):
        assert torch.equal(small['state_dict'][name], full['state_dict'][name])


def test_there_and_back_is_the_same():
    full = load('run/epoch_2.pth')
    call('export_prompts', 'small.pth', 'merged.pth', '--merge')
    merged = load('merged.pth')
    assert_same(merged['state_dict'], full['state_dict'])
    assert merged['state_dict']._metadata == full['state_dict']._metadata


def test_there_and_back_and_going_on():
    full = load('run/epoch_2.pth')
    call('export_prompts', 'run/epoch_2.pth', 'small2.pth', '--resumable')
    call('export_prompts', 'small2.pth', 'merged.pth', '--merge', '--resumable', '--config', 'config.py')
    small, merged = load('small2.pth'), load('merged.pth')
    assert small.keys() == full.keys() == merged.keys()
    for name in ('state_dict', 'ema_state_dict'):
        assert_same(dict(sorted(merged[name].items())), dict(sorted(full[name].items())))
        assert len(small[name]) < 9
    assert merged['prompt_relocation']['log'] == full['prompt_relocation']['log']
    ends = []
    for path in ('run/epoch_2.pth', 'small2.pth'):
        cfg = Config.fromfile('config.py')
        cfg.merge_from_dict(dict(work_dir=f'on-{len(ends)}', load_from=path, resume=True, train_cfg=dict(max_epochs=3)))
        cfg.merge_from_dict({'default_hooks.checkpoint.type': 'mmprovpt.PromptCheckpointHook',
                             'default_hooks.checkpoint.save_only_tuned': bool(ends)})
        Runner.from_cfg(cfg).train()
        ends.append(load(f'on-{len(ends)}/epoch_3.pth'))
    for name in ('state_dict', 'ema_state_dict'):
        for key in ends[1][name]:
            assert 'sha256' in key or torch.equal(ends[0][name][key], ends[1][name][key])
    assert len(ends[1]['state_dict']) == 7 < len(ends[0]['state_dict'])
    source = dict(type='Pretrained', checkpoint='vit.pth', prefix='backbone.')
    assert ends[1]['state_dict']._metadata['backbone'] == dict(version=1, frozen_init_cfg=source)
    assert ends[1]['ema_state_dict']._metadata['module.backbone']['frozen_init_cfg'] == source


def test_testing_takes_a_small_checkpoint():
    """No one calls init_weights there, and EMAHook loads into a copy of the model."""
    scores = []
    for path in ('run/epoch_2.pth', 'small.pth'):
        call('test', 'config.py', path, '--work-dir', f'test-{len(scores)}', '--out', f'{len(scores)}.pkl')
        with open(f'{len(scores)}.pkl', 'rb') as file:
            scores.append([sample['pred_score'] for sample in pickle.load(file)])
    assert all(torch.equal(a, b) for a, b in zip(*scores)) and len(scores[0]) == 16


def test_inference_takes_a_small_checkpoint():
    from mmpretrain import get_model
    one, other = (get_model('config.py', pretrained=path) for path in ('run/epoch_2.pth', 'small.pth'))
    assert_same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize('args,message', [
    (['nowhere.pth', 'x.pth'], 'no such checkpoint: nowhere.pth'),
    (['run/epoch_2.pth', 'x.pth', '--merge'], 'is no checkpoint of what was tuned'),
    (['vit.pth', 'x.pth'], 'vit.pth carries no config: give --config'),
    (['vit.pth', 'x.pth', '--config', 'config.py'], 'does not fit the config.*missing keys.*head.fc.weight'),
    (['small.pth', 'x.pth', '--merge', '--cfg-options', 'model.backbone.init_cfg.checkpoint=other.pth'],
     'other frozen weights'),
    (['small.pth', 'x.pth', '--merge', '--cfg-options', 'model.backbone.init_cfg.checkpoint=none.pth'],
     'cannot be read from.*none.pth'),
    (['run/epoch_2.pth', 'x.pth', '--cfg-options', 'model.backbone.arch.num_layers=4'],
     'Missing keys: backbone.layers.3'),
])
def test_mistakes(args, message):
    other = load('vit.pth')
    other['state_dict']['backbone.cls_token'] = other['state_dict']['backbone.cls_token'] + 1
    torch.save(other, 'other.pth')
    with pytest.raises(SystemExit, match=f'(?s){message}'):
        call('export_prompts', *args)
    assert not Path('x.pth').exists()


def test_small_checkpoint_and_other_weights_are_refused_in_testing():
    other = load('vit.pth')
    other['state_dict']['backbone.cls_token'] = other['state_dict']['backbone.cls_token'] + 1
    torch.save(other, 'other.pth')
    with pytest.raises(SystemExit, match='error: .*other frozen weights'):
        call('test', 'config.py', 'small.pth', '--cfg-options', 'model.backbone.init_cfg.checkpoint=other.pth')
