"""Configs without a default scope, and MMEngine's pure Python ones with classes as types, through all tools."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_task import TASK, write_images

from mmprovpt.cli.config_parts import scope_of

# As MMEngine dumps such configs.
IN_FULL = TASK.replace("default_scope = 'mmpretrain'", 'default_scope = None').replace('max_epochs=4', 'max_epochs=1')
PLACES = dict(ImageClassifier='models', LinearClsHead='models', CustomDataset='datasets', LoadImageFromFile='datasets',
              PackInputs='datasets', Accuracy='evaluation')
CLASSES = IN_FULL
for name, place in PLACES.items():
    IN_FULL = IN_FULL.replace(f"type='{name}'", f"type='mmpretrain.{place}.{name}'")
    CLASSES = CLASSES.replace(f"type='{name}'", f'type={name}')
for old, new in {
        "custom_imports = dict(imports=['mmprovpt'], allow_failed_imports=False)\n": '',
        "'DefaultSampler'": 'DefaultSampler',
        "'SGD'": 'SGD', "'StaticPrompts'": 'StaticPrompts', "'mmprovpt.PromptedVisionTransformer'":
        'PromptedVisionTransformer', "type='mmprovpt.PromptRelocationHook'":
        'type=PromptRelocationHook, pruner=dict(type=RandomPruner), allocator=dict(type=UniformAllocator)'}.items():
    assert old in CLASSES
    CLASSES = CLASSES.replace(old, new)
CLASSES = """
from mmengine.dataset import DefaultSampler
from mmpretrain.datasets import CustomDataset, LoadImageFromFile, PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import ImageClassifier, LinearClsHead
from torch.optim import SGD

from mmprovpt.backbones.registered import PromptedVisionTransformer
from mmprovpt.hooks import PromptRelocationHook
from mmprovpt.prompts import StaticPrompts
from mmprovpt.relocation import RandomPruner, UniformAllocator
""" + CLASSES


@pytest.fixture(params=['in full', 'classes'])
def trained(request, tmp_path, call, monkeypatch):
    """The folder of a task and of what a run of one epoch left in ``w``."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / 'images')
    text = IN_FULL if request.param == 'in full' else CLASSES
    (tmp_path / 'task.py').write_text(text.replace('ROOT', str(tmp_path / 'images')), encoding='utf-8')
    call('train', 'task.py', '--work-dir', 'w')
    log, = Path('w').glob('*/*.log')
    assert 'PromptRelocationHook has interval=1, and training has 1 epochs' in log.read_text()
    return tmp_path


def test_all_tools(trained, call, capsys):
    weights = 'w/epoch_1.pth'
    call('train', 'task.py', '--work-dir', 'w', '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    with open('task.py', 'a', encoding='utf-8') as file:
        file.write('test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, val_cfg\n')
    call('test', 'task.py', weights, '--work-dir', 't', '--out', 'dump.pkl')
    call('export_prompts', weights, 'small.pth')  # by the config that the checkpoint carries
    call('export_prompts', weights, 'other.pth', '--config', 'task.py')
    call('export_onnx', 'task.py', weights, 'model.onnx', '--shape', 16, 16)
    call('analysis_tools/plot_attention', 'task.py', weights, 'images/0/0.png', '--out', 'attention.png')
    for name in ('dump.pkl', 'model.onnx', 'attention.png'):
        assert (trained / name).stat().st_size > 100
    small, other = (torch.load(name)['state_dict'] for name in ('small.pth', 'other.pth'))
    assert small.keys() == other.keys() and 'backbone.prompts.tokens' in small
    capsys.readouterr()
    call('analysis_tools/count_parameters', 'task.py')
    # Prompts of 8 × 16 numbers and a linear head.
    trained_numbers = capsys.readouterr().out.strip().splitlines()[-1].split()[0]
    policy = int(trained_numbers.replace(',', '')) - 8 * 16 - 17 * 2
    assert (policy == 0) == ('UniformAllocator' in (trained / 'task.py').read_text(encoding='utf-8'))


@pytest.mark.parametrize('scope, type_, library', [
    ('mmseg', 'EncoderDecoder', 'mmseg'), (None, 'mmdet.models.RetinaNet', 'mmdet'), (None, 'RetinaNet', None),
    (None, torch.nn.Linear, None), (None, None, None)])
def test_whose_config_it_is(scope, type_, library):
    assert scope_of(Config(dict(default_scope=scope, model=dict(type=type_)))) == library


def test_classes_tell_whose_config_it_is():
    from mmpretrain.models import ImageClassifier
    assert scope_of(dict(model=dict(type=ImageClassifier))) == 'mmpretrain' and scope_of({}) is None
