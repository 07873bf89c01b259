"""tools/sweep.py: its command line, and one real sweep on Ray Tune with a toy of a second."""
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from toy_model import TOY

from mmprovpt.cli.lock import locked
from mmprovpt.sweep import run_trial, write_config

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location('tools_sweep', ROOT / 'tools/sweep.py')
sweep = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sweep)

CONFIG = """
custom_imports = dict(imports=['toy'])
model = dict(type='Toy', norm_cfg=dict(type='BN'))
train_dataloader = dict(batch_size=2, dataset=dict(type='Ones'), sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(batch_size=2, dataset=dict(type='Ones'), sampler=dict(type='DefaultSampler', shuffle=False))
# Held are 6, not 8.
test_dataloader = dict(batch_size=2, dataset=dict(type='Ones', held=True), sampler=dict(type='DefaultSampler',
                       shuffle=False))
val_evaluator = test_evaluator = dict(type='Number')
val_cfg = test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / 'toy.py').write_text(TOY)
    (tmp_path / 'good.py').write_text(CONFIG)
    (tmp_path / 'bad.py').write_text(CONFIG.replace('norm_cfg=', 'nonsense='))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def call(monkeypatch, *args):
    monkeypatch.setattr('sys.argv', ['sweep', *args])
    sweep.main()


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def test_real_sweep_of_a_config_that_works_and_one_that_fails(toy, monkeypatch, capsys):
    command = ['--base-lrs', '10', '--weight-decays', '0', '--seeds', '1', '--metric', 'number']
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/sweep.py', 'bad.py', 'good.py', *command, '--gpus-per-trial', '0'],
        capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': f'{ROOT}:{toy}', 'CUDA_VISIBLE_DEVICES': ''})
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'error: 1 of 1 trials of work_dirs/sweep/bad/search are not finished' in done.stderr
    assert '  base_10_wd_0: failed: TypeError: ' in done.stderr and "'nonsense'" in done.stderr
    assert 'error: 1 of 2 sweeps are incomplete (see above): bad.py' in done.stderr
    assert "'nonsense'" in (toy / 'work_dirs/sweep/bad/search/base_10_wd_0/error.txt').read_text()
    assert not (toy / 'work_dirs/sweep/bad/summary.json').exists()
    folder = toy / 'work_dirs/sweep/good'
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['winner'] == dict(base_lr=10, lr=10 * 2 / 256, weight_decay=0)
    assert (summary['val'], summary['test'], summary['seeds']) == (8, {'0': 6}, 1)
    assert ['base_10_wd_0', '10', '0.078125', '0', '8.00', 'finished'] in rows(done.stdout)
    assert 'winner: base_10_wd_0' in done.stdout
    for trial in ('search/base_10_wd_0', 'final/seed_0'):
        assert (folder / f'{trial}.py').exists() and list(folder.glob(f'{trial}/*/*.log'))
        assert json.loads((folder / trial / 'result.json').read_text())['metrics']

    # Started again, it takes what is there and needs no Ray.
    monkeypatch.setattr(sweep, 'start_ray', None)
    result = folder / 'final/seed_0/result.json'
    result.write_text(result.read_text().replace('"score": 6.0', '"score": 5.5'))
    call(monkeypatch, 'good.py', *command)
    assert json.loads((folder / 'summary.json').read_text())['test'] == {'0': 5.5}
    capsys.readouterr()
    call(monkeypatch, 'good.py', '--base-lrs', '10', '1', '--weight-decays', '0', '--metric', 'number', '--dry-run')
    assert [row[5] for row in rows(capsys.readouterr().out)[1:]] == ['finished', 'not begun']
    call(monkeypatch, 'good.py', '--no-grid', '--seeds', '2', '--dry-run')
    assert capsys.readouterr().out == 'work_dirs/sweep/good: 2 seeds, no grid\n'
    call(monkeypatch, 'good.py', '--no-grid', '--seeds', '1', '--metric', 'number', '--cfg-options',
         f'optim_wrapper.optimizer.lr={10 * 2 / 256}', 'optim_wrapper.optimizer.weight_decay=0.0')
    assert json.loads((folder / 'summary.json').read_text())['search'] == [], 'the seeds are those of the winner'
    with pytest.raises(SystemExit, match='1 of 1 sweeps are incomplete'):
        call(monkeypatch, 'good.py', *command, '--cfg-options', 'train_cfg.max_epochs=3')
    assert 'holds a run of another config' in capsys.readouterr().err


def test_dry_run_of_the_default_grid(toy, monkeypatch, capsys):
    call(monkeypatch, 'good.py', '--dry-run')
    out = capsys.readouterr().out
    assert 'work_dirs/sweep/good: 40 trials, then 3 seeds' in out
    assert rows(out)[1] == ['base_50_wd_0.01', '50', '0.390625', '0.01', '', 'not begun']
    assert not (toy / 'work_dirs').exists(), 'it writes nothing'


def run_here(trials, title, args):
    """As run_trials, without Ray."""
    for trial in trials:
        write_config(trial)
        run_trial(trial.folder, trial.phase, args.metric)


@METRICS.register_module(force=True)
class Once(BaseMetric):
    """A metric of one trial fails as long as something is amiss."""

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        if 'base_1_' in os.environ['TRIAL'] and os.environ['FULL']:
            raise OSError('No space left on device')
        return dict(number=float(len(results)))


def test_failed_trial_names_no_other_winner(toy, monkeypatch, capsys):
    """With an exit status; a second start trains what failed, and then names one."""
    (toy / 'once.py').write_text(CONFIG.replace("'Number'", "'Once'"))
    command = ['once.py', '--base-lrs', '10', '1', '--weight-decays', '0', '--seeds', '1', '--metric', 'number']

    def run_all(trials, title, args):
        for trial in trials:
            write_config(trial)
            monkeypatch.setenv('TRIAL', trial.name)
            try:
                run_trial(trial.folder, trial.phase, args.metric)
            except OSError as error:
                (trial.folder / 'error.txt').write_text(f'OSError: {error}')

    monkeypatch.setattr(sweep, 'run_trials', run_all)
    monkeypatch.setenv('FULL', 'yes')
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *command)
    assert stop.value.code == 'error: 1 of 1 sweeps are incomplete (see above): once.py'
    out, err = capsys.readouterr()
    assert 'winner' not in out and 'base_1_wd_0: failed: OSError: No space left on device' in err
    folder = toy / 'work_dirs/sweep/once'
    assert not (folder / 'final').exists() and not (folder / 'summary.json').exists()
    monkeypatch.setenv('FULL', '')
    call(monkeypatch, *command)
    assert json.loads((folder / 'summary.json').read_text())['winner']['base_lr'] == 1


def test_tasks_of_one_config(toy, monkeypatch, capsys):
    """Each has a folder of its own, which is the same when TASK chooses it."""
    (toy / 'each.py').write_text(CONFIG + """
task = '{{$TASK:six}}'
test_dataloader.update(dataset=dict(type='Ones', held=dict(six=True, eight=False)[task]))
""")
    monkeypatch.delenv('TASK', raising=False)
    command = ['--no-grid', '--seeds', '1', '--metric', 'number']
    monkeypatch.setattr(sweep, 'run_trials', run_here)
    call(monkeypatch, 'each.py', '--tasks', 'six', 'eight', *command)
    folder = toy / 'work_dirs/sweep'
    summaries = [json.loads((folder / name / 'summary.json').read_text()) for name in ('each_six', 'each_eight')]
    assert [summary['test'] for summary in summaries] == [{'0': 6}, {'0': 8}]
    assert [summary['config'] for summary in summaries] == ['each_six', 'each_eight']
    monkeypatch.setenv('TASK', 'eight')
    monkeypatch.setattr(sweep, 'run_trials', lambda *args: None)  # it takes what is there
    capsys.readouterr()
    call(monkeypatch, 'each.py', *command)
    assert [row[4:] for row in rows(capsys.readouterr().out)[1:]] == [['8.00', 'finished']]
    monkeypatch.delenv('TASK')
    call(monkeypatch, 'each.py', '--no-grid', '--dry-run')
    assert capsys.readouterr().out == 'work_dirs/sweep/each_six: 3 seeds, no grid\n'
    with pytest.raises(SystemExit, match='would share a folder: each_six, each_six'):
        call(monkeypatch, 'each.py', '--tasks', 'six', 'six', '--dry-run')
    with pytest.raises(SystemExit, match='good.py does not take its task from the environment variable TASK'):
        call(monkeypatch, 'good.py', '--tasks', 'six', '--dry-run')


def test_tasks_of_our_configs(monkeypatch, capsys, tmp_path):
    """A dry run needs the data's folders and weights alone."""
    for task in ('cifar', 'svhn'):
        for split in ('train800', 'val200', 'train800val200', 'test'):
            (tmp_path / 'data/vtab-1k' / task).mkdir(parents=True, exist_ok=True)
            (tmp_path / f'data/vtab-1k/{task}/{split}.txt').write_text('images/0.png 0\n')
    (tmp_path / 'checkpoints').mkdir()
    torch.save({}, tmp_path / 'checkpoints/vit_b16_in21k.pth')
    monkeypatch.chdir(tmp_path)
    configs = [str(ROOT / f'configs/vtab1k/vit_b_{method}.py') for method in ('lora', 'provapt')]
    call(monkeypatch, *configs, '--tasks', 'cifar', 'svhn', '--no-grid', '--dry-run')
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if 'env variable' not in line] == [
        f'work_dirs/sweep/vit_b_{name}: 3 seeds, no grid'
        for name in ('lora_cifar', 'lora_svhn', 'provapt_cifar', 'provapt_svhn')]
    with pytest.raises(SystemExit, match="no task 'count'; known: cifar, caltech101"):
        call(monkeypatch, *configs, '--tasks', 'count', '--dry-run')


def test_second_sweep_in_a_folder_is_refused(toy, monkeypatch, capsys):
    with locked(toy / 'work_dirs/sweep/good'), pytest.raises(SystemExit, match='1 of 1 sweeps are incomplete'):
        call(monkeypatch, 'good.py')
    assert 'work_dirs/sweep/good is in use: process' in capsys.readouterr().err
    assert not (toy / 'work_dirs/sweep/good').exists()


def test_mistakes_end_with_a_message(toy, monkeypatch):
    (toy / 'other').mkdir()
    (toy / 'other/good.py').write_text(CONFIG)
    with pytest.raises(SystemExit, match='no such config file: nowhere.py'):
        call(monkeypatch, 'nowhere.py')
    with pytest.raises(SystemExit, match='of the same name would share a folder: good, good'):
        call(monkeypatch, 'good.py', 'other/good.py')
    with pytest.raises(SystemExit, match='chosen on the data that the winner is tested on'):
        call(monkeypatch, 'good.py', '--search-options', 'val_dataloader.dataset.held=True')
    with pytest.raises(SystemExit, match='2'):
        call(monkeypatch, 'good.py', '--seeds', '0')
    monkeypatch.setitem(sys.modules, 'ray', None)  # not installed
    with pytest.raises(SystemExit, match=r"(?s)needs Ray Tune.*pip install 'mmprovpt\[sweep\]'"):
        call(monkeypatch, 'good.py')
