"""Which runs a sweep consists of and which wins; nothing is trained."""
import json
import os

import pytest
from mmengine.config import Config

from mmprovpt.errors import ConfigError
from mmprovpt.sweep import (
    check_phases,
    choose_winner,
    final_trials,
    folder_name,
    give_up,
    own_rates,
    read_result,
    read_task,
    search_trials,
    state_of,
    summarise,
    write_config,
)
from mmprovpt.sweep.trial import ERROR, HISTORY, RESULT


@pytest.fixture
def task(tmp_path):
    """A task of VTAB-1k as far as a sweep looks at it."""
    for split in ('train800', 'val200', 'train800val200', 'test'):
        (tmp_path / 'data' / 'svhn').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'data' / 'svhn' / f'{split}.txt').write_text('images/0.png 0\n')
    loader = f"dict(batch_size=64, dataset=dict(type='mmprovpt.VTAB1k', task='svhn', data_root='{tmp_path}/data', "
    (tmp_path / 'task.py').write_text(f"""
model = dict(backbone=dict(prompts=dict(type='StaticPrompts', num_tokens=50)))
train_dataloader = {loader}split='train800val200'))
val_dataloader = {loader}split='test'))
test_dataloader = {loader}split='test'))
val_evaluator = test_evaluator = dict(type='Accuracy')
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=1, momentum=0.9))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=5, save_best='auto'))
custom_hooks = [dict(type='mmprovpt.PromptRelocationHook')]
""")
    return read_task(str(tmp_path / 'task.py'))


SEVERAL = """
task = '{{$TASK:cifar}}'
train_dataloader.update(dataset=dict(type='mmprovpt.VTAB1k', task=task))
"""


def test_a_file_that_serves_several_tasks(task, tmp_path, monkeypatch):
    (tmp_path / 'lora.py').write_text((tmp_path / 'task.py').read_text() + SEVERAL)
    path = str(tmp_path / 'lora.py')
    monkeypatch.delenv('TASK', raising=False)
    found = [read_task(path), read_task(path, task='svhn')]
    assert 'TASK' not in os.environ
    monkeypatch.setenv('TASK', 'dtd')
    found += [read_task(path), read_task(path, task='kitti')]
    assert os.environ['TASK'] == 'dtd'
    assert [cfg.train_dataloader.dataset.task for cfg in found] == ['cifar', 'svhn', 'dtd', 'kitti']
    assert [folder_name(path, cfg) for cfg in found] == ['lora_cifar', 'lora_svhn', 'lora_dtd', 'lora_kitti']
    assert folder_name(str(tmp_path / 'task.py'), task) == 'task'
    with pytest.raises(ConfigError, match='task.py does not take its task from .* TASK, so --tasks kitti would change'):
        read_task(str(tmp_path / 'task.py'), task='kitti')
    assert os.environ['TASK'] == 'dtd'


def finish(trial, score, **more):
    trial.folder.mkdir(parents=True, exist_ok=True)
    (trial.folder / RESULT).write_text(json.dumps(dict(score=score, **more)))


def test_grid_is_the_papers(task, tmp_path):
    before = task.pretty_text
    trials = search_trials(task, tmp_path)
    # PRO-VPT, Tab. i; lr = base * batch / 256
    assert sorted({trial.cfg.optim_wrapper.optimizer.lr for trial in trials}) == [
        0.0125, 0.025, 0.0625, 0.125, 0.25, 0.625, 1.25, 2.5, 6.25, 12.5]
    assert sorted({trial.cfg.optim_wrapper.optimizer.weight_decay for trial in trials}) == [0, 0.0001, 0.001, 0.01]
    assert len({trial.folder for trial in trials}) == len(trials) == 40
    for trial in trials:
        cfg = trial.cfg
        assert (cfg.train_dataloader.dataset.split, cfg.val_dataloader.dataset.split) == ('train800', 'val200')
        assert cfg.test_dataloader is cfg.test_evaluator is cfg.test_cfg is None
        assert cfg.optim_wrapper.optimizer.momentum == 0.9 and cfg.randomness.seed == 0
        assert cfg.default_hooks.checkpoint == dict(type='CheckpointHook', interval=5, max_keep_ckpts=2)
    assert task.pretty_text == before


def test_winner_is_trained_on_all_and_tested(task, tmp_path):
    trials = final_trials(task, tmp_path, 2.5, 0.001, 3)
    assert [trial.cfg.randomness.seed for trial in trials] == [0, 1, 2]
    assert [trial.name for trial in trials] == ['seed_0', 'seed_1', 'seed_2']
    for trial in trials:
        cfg = trial.cfg
        assert (cfg.train_dataloader.dataset.split, cfg.test_dataloader.dataset.split) == ('train800val200', 'test')
        assert cfg.val_dataloader is cfg.val_evaluator is cfg.val_cfg is None
        assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay) == (0.625, 0.001)


def test_splits_of_other_data(task, tmp_path):
    (tmp_path / 'data' / 'CUB_200_2011').mkdir()
    datasets = [task[f'{phase}_dataloader'].dataset for phase in ('train', 'val', 'test')]
    for dataset in datasets:
        dataset.update(type='FGVC', task='cub')
    trial = search_trials(task, tmp_path, [1], [0], {'train_dataloader.dataset.split': 'mine'})[0]
    assert (trial.cfg.train_dataloader.dataset.split, trial.cfg.val_dataloader.dataset.split) == ('mine', 'val')
    trial = final_trials(task, tmp_path, 1, 0, 1)[0]
    assert (trial.cfg.train_dataloader.dataset.split, trial.cfg.test_dataloader.dataset.split) == ('trainval', 'test')
    for dataset in datasets:
        dataset.type = 'CustomDataset'  # the config's own
    trial = search_trials(task, tmp_path, [1], [0])[0]
    assert trial.cfg.train_dataloader.dataset.split == 'train800val200'


def test_winner_and_ties(task, tmp_path):
    trials = search_trials(task, tmp_path, [5, 1], [0.01, 0])
    for trial in trials:
        trial.folder.mkdir(parents=True)
    (trials[2].folder / ERROR).write_text('Traceback\nRuntimeError: CUDA out of memory')
    give_up(trials[1].folder, 'stopped early')
    finish(trials[0], 70.)
    with pytest.raises(ConfigError, match='(?s)2 of 4 trials of .* are not finished .*no winner is named.*\n'
                                          '  base_1_wd_0.01: failed: RuntimeError: CUDA out of memory\n'
                                          '  base_1_wd_0: not begun$'):
        choose_winner(trials)
    finish(trials[2], None, error='diverged: the loss of iteration 10 is nan')
    finish(trials[3], None, error='diverged: the loss of iteration 20 is nan')
    assert choose_winner(trials) is trials[0], 'those that are through without a score do not win'
    finish(trials[2], 70.)
    assert choose_winner(trials) is trials[2], 'the lower learning rate'
    finish(trials[3], 70.)
    assert choose_winner(trials) is trials[3], 'then the lower weight decay'
    finish(trials[1], 70.5)
    assert choose_winner(trials) is trials[1]


def test_none_wins(task, tmp_path):
    trials = search_trials(task, tmp_path, [5, 1], [0])
    for trial in trials:
        trial.folder.mkdir(parents=True)
        give_up(trial.folder, 'stopped early')
    with pytest.raises(ConfigError, match='(?s)no trial of .*search has a score.*base_1_wd_0: stopped early'):
        choose_winner(trials)


@pytest.mark.parametrize('share', [0, 0.5, 0.99])
def test_results_cut_off_are_none(task, tmp_path, share):
    """At every place: of another writer, or by a file system that lost the end."""
    trial, = search_trials(task, tmp_path, [5], [0])
    trial.folder.mkdir(parents=True)
    finish(trial, 70., history=[dict(iter=2), dict(iter=4)])
    text = (trial.folder / RESULT).read_text()
    (trial.folder / RESULT).write_text(text[:int(len(text) * share)])
    (trial.folder / HISTORY).write_text('{"iter": 2}\n{"it')
    assert read_result(trial.folder) is None and state_of(trial.folder) == 'not finished: 1 validations'
    with pytest.raises(ConfigError, match='1 of 1 trials .* not finished'):
        choose_winner([trial])
    (trial.folder / HISTORY).write_bytes(b'{"iter": 2}\n\0\0\0\n{"iter": 4}\n')
    (trial.folder / ERROR).touch()
    assert state_of(trial.folder) == 'failed: killed while it said why'
    (trial.folder / ERROR).unlink()
    assert state_of(trial.folder) == 'not finished: 1 validations'


def test_summary(task, tmp_path):
    search = search_trials(task, tmp_path, [5, 1], [0])
    final = final_trials(task, tmp_path, 5, 0, 3)
    finish(search[0], 81.)
    finish(search[1], None, error='diverged: weights')
    finish(final[0], 80., parameters=9, distribution=[1, 2])
    finish(final[2], 82., parameters=9, distribution=[0, 3])
    summary = json.loads(json.dumps(summarise(task, 'task', 'accuracy/top1', search, final)))
    assert summary == dict(
        config='task', dataset='VTAB1k', task='svhn', method='PRO-VPT', metric='accuracy/top1', val=81., seeds=3,
        winner=dict(base_lr=5, lr=1.25, weight_decay=0), test={'0': 80., '2': 82.}, parameters=9,
        distribution={'0': [1, 2], '2': [0, 3]},
        search=[dict(name='base_5_wd_0', base_lr=5, weight_decay=0, score=81., state='finished'),
                dict(name='base_1_wd_0', base_lr=1, weight_decay=0, score=None, state='diverged: weights')])


def test_without_a_grid(task, tmp_path):
    task.optim_wrapper.optimizer.update(lr=0.25, weight_decay=0.5)
    task.train_dataloader.batch_size = 32
    base_lr, weight_decay = own_rates(task)
    assert (base_lr, weight_decay) == (2., 0.5)
    final = final_trials(task, tmp_path, base_lr, weight_decay, 1)
    assert final[0].cfg.optim_wrapper.optimizer == task.optim_wrapper.optimizer
    finish(final[0], 80., parameters=9, distribution=[1, 2])
    summary = summarise(task, 'task', 'accuracy/top1', [], final)
    assert (summary['val'], summary['search'], summary['test']) == (None, [], {'0': 80.})
    assert summary['winner'] == dict(base_lr=2., lr=0.25, weight_decay=0.5)
    del task.optim_wrapper.optimizer['lr']
    with pytest.raises(ConfigError, match='must give optim_wrapper.optimizer.lr'):
        own_rates(task)


@pytest.mark.parametrize('hooks, backbone, method', [
    (True, dict(prompts=dict(type='StaticPrompts')), 'PRO-VPT'),
    (False, dict(prompts=dict(type='StaticPrompts', num_tokens=[0, 3])), 'VPT-Deep'),
    (True, dict(prompts=dict(type='AdaptivePrompts')), 'PRO-VAPT'),
    (False, dict(prompts=dict(type='mmprovpt.AdaptivePrompts', num_tokens=3)), 'VAPT'),
    (False, dict(prompts=dict(type='ShallowPrompts', num_tokens=3)), 'VPT-Shallow'),
    (False, dict(prompts=dict(type='StaticPrompts', num_tokens=0)), 'Linear'),
    (False, dict(prompts=dict(type='StaticPrompts', num_tokens=[0, 0])), 'Linear'),
    (True, dict(prompts=dict(type='StaticPrompts', num_tokens=0)), 'PRO-VPT'),  # the hook counts, not the prompts
    (False, dict(type='VisionTransformer'), 'Full'),
    (False, dict(type='mmpretrain.LoRAModel', module=dict(type='VisionTransformer')), 'LoRA')])
def test_method(task, tmp_path, hooks, backbone, method):
    task.custom_hooks = task.custom_hooks if hooks else []
    task.model.backbone = backbone
    search, final = search_trials(task, tmp_path, [1], [0]), final_trials(task, tmp_path, 1, 0, 1)
    finish(search[0], 1.)
    assert summarise(task, 'task', 'accuracy/top1', search, final)['method'] == method


def test_mistakes(task, tmp_path):
    with pytest.raises(ConfigError, match='no such config file: nowhere.py'):
        read_task('nowhere.py')
    (tmp_path / 'bare.py').write_text('train_dataloader = dict(batch_size=1, dataset=dict())')
    with pytest.raises(ConfigError, match='bare.py has no optim_wrapper.optimizer'):
        read_task(str(tmp_path / 'bare.py'))
    with pytest.raises(ConfigError, match='repeat a value'):
        search_trials(task, tmp_path, [1, 1], [0])
    with pytest.raises(ConfigError, match='no such directory'):
        search_trials(task, tmp_path, [1], [0], {'val_dataloader.dataset.data_root': 'nowhere'})
    search = search_trials(task, tmp_path, [1], [0], {'val_dataloader.dataset.split': 'test'})[0]
    with pytest.raises(ConfigError, match='chosen on the data that the winner is tested on'):
        check_phases(search, final_trials(task, tmp_path, 1, 0, 1)[0])
    check_phases(search_trials(task, tmp_path, [1], [0])[0], final_trials(task, tmp_path, 1, 0, 1)[0])


def test_a_folder_belongs_to_one_config(task, tmp_path):
    trial = search_trials(task, tmp_path, [1], [0])[0]
    path = write_config(trial)
    assert Config.fromfile(path).pretty_text == trial.cfg.pretty_text
    assert write_config(trial) == path and state_of(trial.folder) == 'not begun'
    trial.cfg.optim_wrapper.optimizer.momentum = 0.8
    with pytest.raises(ConfigError, match='holds a run of another config'):
        write_config(trial)
