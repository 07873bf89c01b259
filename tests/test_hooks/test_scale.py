"""Processes under torchrun against one process: same images in each update, same prompts, same moves."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODEL_WRAPPERS
from test_hooks import scale_run
from test_hooks.scale_run import AGREEING, LR, PROCESSES, train
from torch import nn

from mmprovpt.hooks.find import find_relocating_prompts

EQUAL = [(processes, name) for processes, names in PROCESSES.items() for name in names
         if name in ('vit', 'swin', 'accumulated', 'flexible')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Where the processes have run."""
    path, root = tmp_path_factory.mktemp('processes'), Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={max(PROCESSES)}',
         scale_run.__file__, path], timeout=300, check=True,
        env=dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='',
                 PYTHONPATH=f'{root}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'))
    return path


@pytest.fixture(scope='module')
def results(folder):
    """By number of processes: what each rank got, by name of the run."""
    ranks = [torch.load(folder / f'{rank}.pth') for rank in range(max(PROCESSES))]
    return {processes: [rank[processes] for rank in ranks[:processes]] for processes in PROCESSES}


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """The result of one process, by name of the run."""
    cache = {}

    def result(name):
        if name not in cache:
            cache[name] = train(name, tmp_path_factory.mktemp('alone'))
        return cache[name]

    return result


def assert_same(one, other, rtol=1e-4, atol=1e-5):
    """Weights, momentum and books, within what the order of sums does."""
    assert torch.equal(one['blocks'], other['blocks'])
    for key in AGREEING:
        torch.testing.assert_close(one[key], other[key], rtol=rtol, atol=atol)
    assert len(one['rows']) == len(other['rows']) == 4
    for row, expected in zip(one['rows'], other['rows']):
        for key in ('period', 'iter', 'prompt', 'from', 'to', 'distribution'):
            assert row[key] == expected[key], key
        for key in ('loss', 'idleness', 'previous_reward'):
            assert row[key] == (expected[key] and pytest.approx(expected[key], rel=1e-3, abs=1e-6)), key


@pytest.mark.parametrize('processes,name', [(n, name) for n, names in PROCESSES.items() for name in names
                                            if name != 'sharded'])
def test_ranks_agree(results, processes, name):
    first, *others = [rank[name] for rank in results[processes]]
    for other in others:
        assert all(torch.equal(first[key], other[key]) for key in AGREEING)
    assert sum(row['prompt'] is not None for row in first['rows']) >= 2
    assert first['rows'][-1]['distribution'] == torch.bincount(first['blocks']).tolist()


@pytest.mark.parametrize('processes,name', EQUAL)
def test_equals_one_process(results, alone, processes, name):
    assert_same(results[processes][0][name], alone(name))


def test_accumulating_equals_a_larger_batch(alone):
    one, other = alone('accumulated'), alone('vit')
    assert [row['iter'] for row in one['rows']] == [2 * row['iter'] for row in other['rows']]
    for row, expected in zip(one['rows'], other['rows']):
        row['iter'] = expected['iter']
    assert_same(one, other)


def test_flexible_runner_equals_runner_and_scales_the_learning_rate(alone):
    flexible, usual = alone('flexible'), alone('vit')
    assert (flexible['runner'], usual['runner']) == ('FlexibleRunner', 'Runner')
    assert flexible['lr'] == usual['lr'] == LR
    assert_same(flexible, usual, rtol=0, atol=0)


def test_bfloat16_measures_the_same(results, alone):
    """Rounding apart, which is 0.4 % of every number on the way."""
    first, expected = results[4][0]['bfloat16']['rows'][0], alone('bfloat16')['rows'][0]
    assert first['prompt'] == expected['prompt']
    assert first['loss'] == pytest.approx(expected['loss'], rel=0.02)
    assert first['idleness'] == pytest.approx(expected['idleness'], rel=0.1)


@pytest.mark.parametrize('name', ['vit', 'flexible'])
def test_one_process_resumes_what_several_began(folder, alone, name, tmp_path):
    """From the end of a period on; within one, more processes have brought more losses to its mean."""
    checkpoint, = folder.glob(f'*/{name}/iter_6.pth')
    assert_same(train(name, tmp_path, load_from=str(checkpoint), resume=True), alone(name))


def test_what_is_communicated(results):
    """The formula of docs/evidence/scaling.md, with N = 9 prompts; rows that cross Swin's stages are up to 48 wide."""
    state = 4 * (2 * 9 + 4), 4 * 2
    merges = 3 + 1 + 1  # relocations, one checkpoint within a period (after iteration 3), the end
    sent = results[4][0]['vit']['sent']
    assert sorted(size for name, size in sent if name == 'add_up') == sorted(state * merges)
    assert [size for name, size in sent if name == 'broadcast'] == [8 + 16] * 3
    verified = results[4][0]['verified']  # verify_top=2
    assert verified['sent'].count(('all_reduce', 4)) == 3 * (2 + 1)
    assert verified['sent'].count(('broadcast', 8 + 16)) == 3 + 3  # candidates and decisions
    swin = results[2][0]['swin']
    crossed = sum(row['from'] is not None and row['from'] // 2 != row['to'] // 2 for row in swin['rows'])
    assert crossed >= 1
    assert [size for name, size in swin['sent'] if name == 'broadcast' and size != 24] == [4 * 48] * crossed


def test_sharded_prompts_train_as_others(results, tmp_path):
    """FSDP without relocation: what it gathers is what one process trains."""
    expected = train('sharded', tmp_path, custom_hooks=[], strategy=dict(type='SingleDeviceStrategy'))
    for rank in results[2]:
        for key in ('tokens', 'head'):
            torch.testing.assert_close(rank['sharded'][key], expected[key], rtol=1e-4, atol=1e-5)
    assert sorted(rank['sharded']['local'] for rank in results[2])[0] < expected['tokens'].numel()


def test_sharded_prompts_do_not_move(results):
    for rank in results[2]:
        (relocating, iterations), (saving, others) = rank['refused']
        assert 'PromptRelocationHook needs whole parameters in each process' in relocating
        assert 'PromptCheckpointHook needs whole parameters in each process' in saving
        assert 'MMFullyShardedDataParallel may shard them' in relocating
        assert iterations == others == 0


def test_other_wrappers_are_refused(monkeypatch):

    class Engine(nn.Module):
        """Stands for DeepSpeed's, which is not installed."""

    monkeypatch.setitem(MODEL_WRAPPERS.module_dict, 'Engine', Engine)
    with pytest.raises(ValueError, match='but Engine may shard them: use MMEngine'):
        find_relocating_prompts(Engine())
