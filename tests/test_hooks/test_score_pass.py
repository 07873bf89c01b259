"""Scores of a pass of their own: what they are, that nothing else is touched, and what the authors' profile does."""
import copy
import json

import pytest
import torch
from mmengine.config import Config
from test_hooks.toy_run import make_runner

from mmprovpt.hooks.score_pass import clip_factor
from mmprovpt.relocation import ALLOCATORS, PRUNERS, Allocator, IdlenessPruner
from mmprovpt.relocation.session import check_session_options


@PRUNERS.register
class NoPruner(IdlenessPruner):
    """Measures, and lets all stay."""

    def prune(self, idleness, eligible=None):
        return None


@ALLOCATORS.register
class Stay(Allocator):
    """The prompt's own block."""

    def act(self, state, signals=None):
        return int(state[2 * self.num_blocks:].argmax())


HOOK = dict(score_pass=True, allocator=dict(type='UniformAllocator'))


def rows(folder):
    path, = folder.glob('*/relocations.jsonl')
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(folder, **kwargs):
    torch.manual_seed(0)
    runner = make_runner(folder, **kwargs)
    runner.train()
    return runner


@pytest.mark.parametrize('clip', [None, 0.25])
@pytest.mark.parametrize('wrapper', [{}, dict(type='ScaledOptimWrapper')], ids=['plain', 'scaled'])
def test_scores_by_hand(tmp_path, clip, wrapper):
    """Idleness and loss of the first period against a slow loop over the weights that the checkpoint holds."""
    runner = train(tmp_path, hook=dict(HOOK, score_clip=clip), epochs=2, optim_wrapper=wrapper)
    model = copy.deepcopy(runner.model)
    state = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict']
    model.load_state_dict(state)
    data, losses, scores = runner.train_dataloader.dataset, [], 0
    for start in range(0, 24, 4):
        model.zero_grad()
        loss = model(data.inputs[start:start + 4], data.targets[start:start + 4], mode='loss')['loss']
        loss.backward()
        tokens = model.prompts.tokens
        norm = sum(float(p.grad.square().sum()) for p in model.parameters())**0.5
        factor = min(1., clip / (norm + 1e-6)) if clip else 1.
        scores = scores + factor * (tokens.grad * tokens.detach()).sum(1) / 6
        losses.append(float(loss.detach()))
    first = rows(tmp_path)[0]
    assert first['loss'] == pytest.approx(sum(losses) / 6, rel=1e-5)
    assert first['idleness'] == pytest.approx(float(scores.max()), rel=1e-4)
    assert first['prompt'] == int(scores.argmax())


@pytest.mark.parametrize('noisy, workers', [(False, 0), (True, 0), (True, 2)])
def test_training_is_not_disturbed(tmp_path, noisy, workers):
    """With an allocator that leaves prompts where they are, weights are those of a run without relocation."""
    options = dict(noisy=noisy, workers=workers, epochs=3)
    plain = train(tmp_path / 'a', **options)
    moving = train(tmp_path / 'b', hook=dict(score_pass=True, allocator=dict(type='Stay')), **options)
    assert sum(row['prompt'] is not None for row in rows(tmp_path / 'b')) > 0
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, moving.model.state_dict()[name]), name


def test_waiting_gradients_wait(tmp_path):
    """An accumulation over the boundary of a period goes on with what had been accumulated."""
    options = dict(optim_wrapper=dict(accumulative_counts=4), epochs=3)
    plain = train(tmp_path / 'a', **options)
    moving = train(tmp_path / 'b', hook=dict(score_pass=True, allocator=dict(type='Stay'),
                                             pruner=dict(type='NoPruner')), **options)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, moving.model.state_dict()[name]), name


def test_resumed_bit_for_bit(tmp_path):
    hook = dict(HOOK, arrival='shrink', state='standardised', reward_idleness='largest')
    train(tmp_path / 'a', hook=hook, noisy=True)
    train(tmp_path / 'b', hook=hook, noisy=True, epochs=2)
    train(tmp_path / 'c', hook=hook, noisy=True, resume=True, load_from=str(tmp_path / 'b/epoch_2.pth'))
    whole, again = (torch.load(tmp_path / name / 'epoch_4.pth', weights_only=False)['state_dict'] for name in 'ac')
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_clip_factor():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3., 4.]) * 8
    assert float(clip_factor([parameter], torch.tensor(8.), 0.5)) == pytest.approx(0.1, rel=1e-5)
    assert float(clip_factor([parameter], torch.tensor(8.), 50.)) == 1.0
    assert parameter.grad.tolist() == [24., 32.]


@pytest.mark.parametrize('name', ['paper', 'authors'])
def test_profiles_are_what_they_say(name):
    """The rows of docs/method/authors_code.md, and nothing of them in the paper's."""
    cfg = Config.fromfile(f'configs/_base_/methods/provpt_{name}.py')
    hook = {key: value for key, value in cfg.custom_hooks[0].items() if key not in (
        'type', 'interval', 'by_epoch', 'score_pass', 'score_clip')}
    options = check_session_options(**hook)
    authors = name == 'authors'
    assert cfg.param_scheduler == [] and options['pruner']['criterion'] == 'taylor'
    assert options['allocator']['type'] == 'PPOAllocator' and options['relocate_per_period'] == 1
    assert (cfg.optim_wrapper.get('clip_grad') or {}).get('max_norm') == (0.25 if authors else None)
    assert cfg.custom_hooks[0].get('score_pass', False) == authors
    assert options['reward_idleness'] == ('largest' if authors else 'moved')
    assert options['state'] == ('standardised' if authors else 'scaled')
    assert options['arrival'] == (dict(type='shrink', factor=1e-3) if authors else 'keep')
