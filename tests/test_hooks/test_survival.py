"""Runs that are killed, validated, averaged, stopped early; with real processes where that matters."""
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from test_hooks import survival_run
from test_hooks.survival_run import CASES, VALIDATION, train
from test_hooks.toy_run import OVERFLOW, ToyModel, make_runner, read_rows

KILLS = dict(epoch=17, iteration=13)


def start(jobs, processes=1):
    """Start the ranks of ``survival_run``."""
    environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    environment['PYTHONPATH'] = f'{Path(__file__).parents[2]}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
    environment['RENDEZVOUS'] = tempfile.mktemp()
    started = []
    for rank in range(processes):
        own = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes)) if processes > 1 else {}
        started.append(subprocess.Popen(
            [sys.executable, survival_run.__file__, *map(json.dumps, jobs)], env={**environment, **own},
            # A pipe that nobody reads yet would fill up and stop its rank, and so all.
            stdout=subprocess.DEVNULL))
    return started


def finish(started, code=0):
    """Wait for processes; each must end with this exit code."""
    try:
        codes = [process.wait(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [code] * len(started)


def assert_same(one, other):
    """Parameters, momentum, distribution and rows, bit for bit."""
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1] == other[1]


def moved(rows):
    return sum(row['from'] != row['to'] for row in rows)


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    started = [start([dict(folder=str(tmp_path / f'part-{case}'), case=case, kill=kill)])
               for case, kill in KILLS.items()]
    whole = {case: train(tmp_path / f'whole-{case}', case) for case in KILLS}
    for processes in started:
        finish(processes, -signal.SIGKILL)
    for case in KILLS:
        part = train(tmp_path / f'part-{case}', case, model=ToyModel(seed=1, noisy=True), resume=True)
        assert_same(whole[case], part)
        assert moved(part[1]) >= 2


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory):
    """Results of both ranks of all runs of two processes, by folder."""
    folder = tmp_path_factory.mktemp('two')
    killed = [start([dict(folder=str(folder / f'part-{case}'), case=case, kill=kill)], 2)
              for case, kill in KILLS.items()]
    for processes in killed:
        finish(processes, -signal.SIGKILL)
    jobs = [dict(folder=str(folder / f'part-{case}'), case=case, resume=True) for case in KILLS]
    jobs += [dict(folder=str(folder / f'whole-{case}'), case=case) for case in KILLS]
    jobs += [dict(folder=str(folder / 'poison'), hook=dict(), epochs=4, poison=float('inf')),
             dict(folder=str(folder / 'dropped'), hook=dict(), epochs=4, poison=float('inf'),
                  optim_wrapper=dict(type='ScaledOptimWrapper')),
             dict(folder=str(folder / 'overflow'), hook=dict(), epochs=4, poison=OVERFLOW,
                  optim_wrapper=dict(type='ScaledOptimWrapper')),
             dict(folder=str(folder / 'uneven'), hook=dict(), epochs=1, length=21)]
    finish(start(jobs, 2))
    return {path: [torch.load(path / f'result{rank}.pth', weights_only=True) for rank in range(2)]
            for path in folder.iterdir() if path.is_dir()}


def test_two_processes_killed_and_resumed(two_processes):
    results = {path.name: ranks for path, ranks in two_processes.items()}
    for case in KILLS:
        part, whole = results[f'part-{case}'], results[f'whole-{case}']
        assert_same(part[0], whole[0])
        assert moved(whole[0][1]) >= 2
        for first, second in (part, whole):
            assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])


@pytest.mark.parametrize('case', ['poison', 'dropped'])
def test_a_rank_whose_loss_is_not_finite_stops_relocation_and_hangs_nobody(two_processes, case):
    """One bad image of one rank, met once in each epoch, makes both ranks skip the period."""
    folder, ((first, rows, _), (second, *_)) = next(item for item in two_processes.items() if item[0].name == case)
    # Without a loss scaler all parameters become NaN; with one, the step is left out, and training is sound.
    assert first['prompts.tokens'].isfinite().all() == (case == 'dropped')
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)
    assert [row['period'] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row['previous_reward'] is row['loss'] is row['prompt'] is None
        assert row['distribution'] == [2, 2, 2]
    text, = folder.glob('*/*.log')
    assert text.read_text().count('WARNING - Relocation, period') == 4
    assert text.read_text().count('the period is skipped (') == 4
    # Never was anything not finite written.
    log, = folder.glob('*/relocations.jsonl')
    assert 'NaN' not in log.read_text() and 'Infinity' not in log.read_text()


def test_a_rank_that_overflows_loses_an_iteration_and_no_more(two_processes):
    """Every finite loss of every rank counts alike, and relocation goes on."""
    folder, ((first, rows, losses), (second, _, others)) = next(
        item for item in two_processes.items() if item[0].name == 'overflow')
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert moved(rows) >= 1
    for period, row in enumerate(rows):
        both = losses[6 * period:6 * period + 6] + others[6 * period:6 * period + 6]
        assert row['loss'] == pytest.approx(sum(both) / 12, rel=1e-6)
    text, = folder.glob('*/*.log')
    assert text.read_text().count('(1 iterations were not finite)') == 4


def test_epochs_of_unequal_length_raise_on_all_ranks(two_processes):
    """mmengine itself would wait for ever, or fail when the first rank leaves."""
    results = {path.name: ranks for path, ranks in two_processes.items()}
    for message in results['uneven']:
        assert 'epochs of [6, 5] batches' in message and 'round_up=True' in message


STOP = dict(type='EarlyStoppingHook', monitor='count', rule='greater', patience=2)


@pytest.mark.parametrize('options', [
    dict(case='epoch', workers=2), dict(case='iteration', sampler='DefaultSampler')], ids=['workers', 'finite sampler'])
def test_resumed_with_other_loaders(tmp_path, options, monkeypatch):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)  # before every pass over the data
    whole = train(tmp_path / 'whole', **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / 'part', hooks=[Crash(14)], **options)
    assert_same(whole, train(tmp_path / 'part', model=ToyModel(seed=1, noisy=True), resume=True, **options))


class Crash(Hook):
    """Ends the run as an exception would."""

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize('case,period,val_interval', [('epoch', 2, 1), ('epoch', 1, 3), ('iteration', 3, 2)])
def test_validation_changes_nothing(tmp_path, case, period, val_interval):
    options = dict(CASES[case], hook=dict(CASES[case]['hook'], interval=period))
    plain = train(tmp_path / 'plain', **options)
    validated = train(tmp_path / 'validated', val_interval=val_interval, **options, **VALIDATION)
    assert_same(plain, validated)
    assert moved(plain[1])


def test_early_stopping_between_periods_gives_the_last_reward(tmp_path):
    runner = make_runner(tmp_path, dict(), epochs=9, val_interval=1, hooks=[STOP], **VALIDATION)
    runner.train()
    rows = read_rows(tmp_path)
    assert runner.epoch < 9 and len(rows) == runner.epoch
    assert [row['previous_reward'] is not None for row in rows[1:]] == [row['prompt'] is not None for row in rows[:-1]]
    assert rows[-1]['prompt'] is None


def test_early_stopping_within_a_period_invents_no_reward(tmp_path):
    runner = make_runner(tmp_path, dict(interval=2), epochs=9, val_interval=1, hooks=[STOP], **VALIDATION)
    runner.train()
    rows = read_rows(tmp_path)
    assert runner.epoch % 2 == 1 and len(rows) == runner.epoch // 2
    assert rows[-1]['prompt'] is not None, 'what it was worth, a further row would say'


def test_averaged_weights_are_resumed_too(tmp_path):
    hooks, saved = [dict(type='EMAHook', momentum=0.1)], []
    train_once = dict(hook=dict(interval=2), epochs=6, noisy=True)
    make_runner(tmp_path / 'whole', hooks=hooks, **train_once).train()
    with pytest.raises(KeyboardInterrupt):
        make_runner(tmp_path / 'part', hooks=[*hooks, Crash(21)], **train_once).train()
    make_runner(tmp_path / 'part', hooks=hooks, model=ToyModel(seed=1, noisy=True), resume=True, **train_once).train()
    for name in ('whole', 'part'):
        saved.append(torch.load(tmp_path / name / 'epoch_6.pth', weights_only=False))
    for key in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(saved[0][key][name], saved[1][key][name]) for name in saved[0][key])
    rows = [read_rows(tmp_path / name) for name in ('whole', 'part')]
    assert rows[0] == rows[1] and moved(rows[0])


@pytest.mark.parametrize('length', [dict(iters=8), dict(epochs=1)])
def test_a_period_longer_than_training_by_iterations(tmp_path, length):
    tensors, rows, _ = train(tmp_path, hook=dict(interval=100, by_epoch=False), **length)
    assert rows == [] and tensors['prompts.block_index'].tolist() == [0, 0, 1, 1, 2, 2]
