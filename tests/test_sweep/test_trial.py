"""Trials really trained, in this process: what they leave, and how they survive."""
import json

import pytest
import torch
from tiny_task import write_images, write_task

from mmprovpt.cli.lock import locked
from mmprovpt.cli.options import read_config
from mmprovpt.cli.runner import build_runner
from mmprovpt.errors import ConfigError
from mmprovpt.sweep import final_trials, read_result, read_task, run_trial, search_trials, state_of, write_config
from mmprovpt.sweep.trial import HISTORY, last_checkpoint

METRIC = 'accuracy/top1'
MORE = """
train_cfg.update(val_interval=1)
test_dataloader = dict(
    batch_size=4, dataset=dict(type='CustomDataset', data_root='ROOT_TEST', pipeline=pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
test_evaluator = val_evaluator
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    write_images(tmp_path / 'images_test', seed=1, count=5)
    return read_task(str(write_task(tmp_path, MORE.replace('ROOT_TEST', str(tmp_path / 'images_test')))))


def search(task, folder, base_lr=1., **options):
    trial, = search_trials(task, folder, [base_lr], [0.], options)
    write_config(trial)
    return trial.folder


def without_time(result):
    return {key: value for key, value in result.items() if key != 'seconds'}


def test_killed_and_resumed_equals_uninterrupted(task, tmp_path):
    reported = []
    whole = run_trial(search(task, tmp_path / 'a'), 'search', METRIC, reported.append)
    assert [row['iter'] for row in whole['history']] == [2, 4, 6, 8]
    assert whole['score'] == whole['metrics'][METRIC] == whole['history'][-1][METRIC]
    assert reported == [dict(score=row[METRIC]) for row in whole['history'][:-1]]
    # By hand: 8 prompts and a head of 2 classes, 16 wide; actor and critic 6-64-64-{2, 1}.
    assert whole['parameters'] == 8 * 16 + 2 * 17 + 7 * 64 * 2 + 65 * 64 * 2 + 65 * 3
    assert sum(whole['distribution']) == 8
    assert not list((tmp_path / 'a').rglob('*.pth')), 'of the grid only numbers are kept'

    folder = search(task, tmp_path / 'b')

    def kill(metrics, seen=[]):  # noqa: B006  counts
        seen.append(metrics)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(folder, 'search', METRIC, kill)
    assert state_of(folder) == 'not finished: 2 validations' and read_result(folder) is None
    assert last_checkpoint(folder).name == 'epoch_2.pth'
    # What a kill while writing leaves: a checkpoint cut off, newer than the whole ones; a line cut off.
    (folder / 'epoch_3.pth').write_bytes((folder / 'epoch_2.pth').read_bytes()[:999])
    with (folder / HISTORY).open('a') as file:
        file.write('{"iter": 6, "accu')
    again = []
    resumed = run_trial(folder, 'search', METRIC, again.append)
    assert without_time(resumed) == without_time(whole)
    assert again == reported, 'what was validated before is reported again'
    assert 'resumed epoch: 2' in ''.join(path.read_text() for path in tmp_path.rglob('*.log'))
    # Finished: only told again.
    again.clear()
    assert run_trial(folder, 'search', METRIC, again.append) == resumed and again == reported


def test_validations_after_the_checkpoint_come_again(task, tmp_path):
    task.default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=2))
    folder = search(task, tmp_path)

    def kill(metrics, seen=[]):  # noqa: B006  counts
        seen.append(metrics)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(folder, 'search', METRIC, kill)
    assert len((folder / HISTORY).read_text().splitlines()) == 3 and last_checkpoint(folder).name == 'epoch_2.pth'
    assert [row['iter'] for row in run_trial(folder, 'search', METRIC)['history']] == [2, 4, 6, 8]


def test_last_weights_are_always_validated(task, tmp_path):
    result = run_trial(search(task, tmp_path, **{'train_cfg.val_interval': 3}), 'search', METRIC)
    assert [row['iter'] for row in result['history']] == [6, 8]


def test_final_is_tested(task, tmp_path):
    trial = final_trials(task, tmp_path, 1., 0., 1)[0]
    write_config(trial)
    reported = []
    result = run_trial(trial.folder, 'final', METRIC, reported.append)
    assert reported == result['history'] == []
    assert result['score'] in [20 * right for right in range(6)], 'five images are tested on; eight are trained on'
    assert (trial.folder / 'epoch_4.pth').exists()
    log = ''.join(path.read_text() for path in trial.folder.glob('*/*.log'))
    assert 'Epoch(test)' in log and 'Epoch(val)' not in log


def test_diverged_is_an_end(task, tmp_path):
    folder = search(task, tmp_path, base_lr=1e38)
    result = run_trial(folder, 'search', METRIC)
    assert result['score'] is None and result['error'].startswith('diverged: ')
    assert state_of(folder) == result['error']
    before = sorted(folder.iterdir())
    assert run_trial(folder, 'search', METRIC) == json.loads(json.dumps(result)) and sorted(folder.iterdir()) == before


def test_trial_that_another_process_trains(task, tmp_path, monkeypatch):
    folder = search(task, tmp_path)
    monkeypatch.setattr('mmprovpt.sweep.trial.WAIT', 0)
    with locked(folder), pytest.raises(ConfigError, match='is in use: process'):
        run_trial(folder, 'search', METRIC)
    assert list(folder.iterdir()) == []


def test_unknown_metric(task, tmp_path):
    with pytest.raises(ConfigError, match=r"no metric 'mIoU'; the evaluation gives \['accuracy/top1'\]"):
        run_trial(search(task, tmp_path), 'search', 'mIoU')


def test_an_average_is_tested_as_such(task, tmp_path):
    """EMAHook's average is the score, and the last iterate stands beside it; each against the weights themselves."""
    task.custom_hooks = [*task.get('custom_hooks', []), dict(type='EMAHook', momentum=0.02)]
    task.train_cfg.val_interval = 100
    trial, = final_trials(task, tmp_path / 'ema', 50., 0., 1)
    write_config(trial)
    result = run_trial(trial.folder, 'final', METRIC)
    found = {}
    for key in ('state_dict', 'ema_state_dict'):  # MMEngine saves the average as the weights
        cfg = read_config(str(trial.folder.with_name('seed_0.py')))
        cfg.update(work_dir=str(tmp_path / key), custom_hooks=[], load_from=None, val_dataloader=None, val_cfg=None,
                   val_evaluator=None)
        runner = build_runner(cfg)
        saved = torch.load(last_checkpoint(trial.folder), weights_only=False)[key]
        runner.model.load_state_dict({name.removeprefix('module.'): value for name, value in saved.items()
                                      if name != 'steps'}, strict=False)
        found[key] = runner.test()[METRIC]
    assert result['score'] == result['metrics'][METRIC] == found['state_dict']
    assert result['last_metrics'][METRIC] == found['ema_state_dict']
    assert found['state_dict'] != found['ema_state_dict'], 'the two cannot be told apart here'
    assert run_trial(search(task, tmp_path / 'grid'), 'search', METRIC)['last_metrics'] is not None
