"""What tools/test.py and tools/train.py refuse: one line, and an exit status, which some read as users do."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_task import write_task

ROOT = Path(__file__).parents[2]
TEST = """
test_dataloader = val_dataloader
test_evaluator = val_evaluator
test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=2)
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A config, and the folder in which it was trained."""
    folder = tmp_path_factory.mktemp('trained')
    task = write_task(folder, TEST)
    done = tool('train', task, '--work-dir', folder / 'work')
    assert done.returncode == 0, done.stderr
    return task, folder / 'work'


def tool(name, *args):
    return subprocess.run([sys.executable, str(ROOT / f'tools/{name}.py'), *map(str, args)], capture_output=True,
                          text=True, cwd=ROOT)


def edited(checkpoint, path, edit):
    """A copy of a checkpoint whose state dict went through ``edit``."""
    content = torch.load(checkpoint, weights_only=False)
    content['state_dict'] = edit(content['state_dict'])
    torch.save(content, path)
    return path


def without_prompts(state):
    return {key: value for key, value in state.items() if 'prompts' not in key}


def test_what_was_trained_is_tested(trained):
    task, work = trained
    done = tool('test', task, work / 'epoch_2.pth', '--work-dir', work / 'test')
    assert done.returncode == 0 and 'accuracy/top1' in done.stdout + done.stderr


@pytest.mark.parametrize('options, said', [
    (['model.backbone.prompts.num_tokens=[2,2]'], 'tokens is (8, 16), but (4, 16) in the model'),
    (['model.backbone.prompts.type=ShallowPrompts', 'model.backbone.prompts.num_tokens=8'],
     'are StaticPrompts, but the model has ShallowPrompts: set prompts=dict(type=...)'),
    (['model.head.num_classes=3'], 'of another shape: head.fc.weight: (2, 16), expected (3, 16)'),
])
def test_another_config_is_refused(trained, options, said, call):
    task, work = trained
    with pytest.raises(SystemExit) as stop:
        call('test', task, work / 'epoch_2.pth', '--work-dir', work / 'test', '--cfg-options', *options)
    assert said in stop.value.code


@pytest.mark.parametrize('edit, said', [
    (without_prompts, 'the checkpoint has no backbone.prompts.*, so it cannot be tested: its prompts would be random'),
    (lambda state: {key: value for key, value in state.items() if 'head' not in key},
     'would be tested with random weights; missing: head.fc.weight, head.fc.bias'),
])
def test_an_incomplete_checkpoint_is_not_tested(trained, tmp_path, edit, said, call):
    task, work = trained
    path = edited(work / 'epoch_2.pth', tmp_path / 'x.pth', edit)
    with pytest.raises(SystemExit) as stop:
        call('test', task, path, '--work-dir', tmp_path / 'test')
    assert said in stop.value.code


def test_a_checkpoint_without_prompts_is_a_start_but_nothing_to_resume(trained, tmp_path):
    task, work = trained
    path = edited(work / 'epoch_1.pth', tmp_path / 'x.pth', without_prompts)
    done = tool('train', task, '--work-dir', tmp_path / 'a', '--resume', path)
    assert done.returncode != 0 and 'Traceback' not in done.stderr
    assert 'so it cannot be resumed: its prompts would start anew' in done.stderr
    done = tool('train', task, '--work-dir', tmp_path / 'b', '--cfg-options', f'load_from={path}')
    assert done.returncode == 0, done.stderr


def test_prompts_that_nobody_trains_are_named(tmp_path, monkeypatch):
    more = """
custom_hooks = []
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1), constructor='HeadOnly')
custom_imports = dict(imports=['head_only'], allow_failed_imports=False)
"""
    (tmp_path / 'head_only.py').write_text("""
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class HeadOnly(DefaultOptimWrapperConstructor):
    def __call__(self, model):
        wrapper = super().__call__(model)
        del wrapper.optimizer.param_groups[1:]
        wrapper.optimizer.param_groups[0]['params'] = list(model.head.parameters())
        return wrapper
""")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=':')
    task = write_task(tmp_path, TEST + more)
    done = tool('train', task, '--work-dir', tmp_path / 'work')
    assert done.returncode != 0 and 'Traceback' not in done.stderr
    assert 'no optimizer has backbone.prompts.tokens' in done.stderr
