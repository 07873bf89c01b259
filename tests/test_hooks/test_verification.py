"""``verify_top``: the candidates are really taken away on held batches, and nothing else is touched by that."""
import json
import random

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from test_hooks.toy_run import make_runner

from mmprovpt.hooks.verification import HeldBatches
from mmprovpt.relocation import IdlenessPruner, Relocator, UniformAllocator

ALL = 6  # prompts of the toy, and batches of its data


class BruteForce(Hook):
    """Before each relocation: which prompt's absence lowers the loss on all the data most, by how much."""
    priority = 'VERY_HIGH'

    def __init__(self):
        self.found = []

    def before_train_epoch(self, runner):
        if runner.epoch == 0:
            return
        model, data = runner.model, runner.train_dataloader.dataset
        with torch.no_grad():
            whole = model(data.inputs, data.targets, mode='loss')['loss']
            scores = []
            for prompt in range(ALL):
                with model.prompts.without(prompt):
                    scores.append(float(whole - model(data.inputs, data.targets, mode='loss')['loss']))
        self.found.append((int(np.argmax(scores)), max(scores)))


def train(folder, **kwargs):
    torch.manual_seed(0)
    runner = make_runner(folder, **kwargs)
    runner.train()
    path, = folder.glob('*/relocations.jsonl')
    return runner, [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize('criterion', ['taylor', 'taylor_norm'])
def test_the_truly_idlest_moves(tmp_path, criterion):
    truth = BruteForce()
    pruner = dict(type='IdlenessPruner', criterion=criterion, verify_top=ALL, verify_batches=ALL)
    _, rows = train(tmp_path, hook=dict(pruner=pruner), hooks=[truth], epochs=6)
    moved = 0
    for row, (prompt, score) in zip(rows, truth.found):
        assert row['prompt'] == (prompt if score > 0 else None)
        if score > 0:
            assert row['idleness'] == pytest.approx(score, abs=1e-6)
            moved += 1
    assert len(truth.found) == 5 and moved > 0


def test_only_candidates_may_move():
    pruner = IdlenessPruner(verify_top=2)
    relocator = Relocator(3, pruner, UniformAllocator(3))
    idleness, index = torch.tensor([3., 2., 1.]), torch.tensor([0, 1, 2])
    move, = relocator.step(1., idleness, index, verified={0: -0.5, 1: 0.25})
    assert (move.prompt, move.source, move.idleness) == (1, 1, 0.25)
    assert relocator.step(1., idleness, index, verified={0: -0.5, 1: -0.25}) == []


def states():
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def test_held_batches_disturb_nothing_and_are_drawn_by_seed(tmp_path):
    runner, _ = train(tmp_path, hook=dict(), epochs=1)
    before, wrapper = states(), runner.optim_wrapper
    runner.model.train()
    held = [HeldBatches(runner, wrapper, 2, seed) for seed in (1, 1, 2)]
    losses = [float(batches.loss()) for batches in held]
    assert losses[0] == losses[1] == float(held[0].loss()) != losses[2]
    assert states() == before and runner.model.training
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in runner.model.parameters())


def test_resumed_run_verifies_alike(tmp_path):
    pruner = dict(type='IdlenessPruner', verify_top=3)
    _, whole = train(tmp_path / 'whole', hook=dict(pruner=pruner), epochs=6)
    train(tmp_path / 'first', hook=dict(pruner=pruner), epochs=3)
    _, resumed = train(tmp_path / 'second', hook=dict(pruner=pruner), epochs=6, resume=True,
                       load_from=str(tmp_path / 'first' / 'epoch_3.pth'))
    keys = ('loss', 'prompt', 'from', 'to', 'idleness', 'distribution')
    assert len(whole) == 6
    assert [[row[key] for key in keys] for row in resumed[:5]] == [[row[key] for key in keys] for row in whole[:5]]


@pytest.mark.parametrize('kwargs', [dict(verify_top=-1), dict(verify_top=2, verify_batches=0)])
def test_bad_numbers(kwargs):
    with pytest.raises(ValueError, match='verify_top must be at least 0 and verify_batches at least 1'):
        IdlenessPruner(**kwargs)


def test_too_few_for_the_moves():
    with pytest.raises(ValueError, match='verify_top is 2, too few for relocate_per_period=3'):
        Relocator(3, IdlenessPruner(verify_top=2), UniformAllocator(3), relocate_per_period=3)
