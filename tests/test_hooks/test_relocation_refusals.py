"""What the hook of relocation refuses: when it is built, and before training."""
import pytest
from test_hooks.toy_run import ToyModel, make_runner
from torch import nn

from mmprovpt.hooks import PromptRelocationHook
from mmprovpt.relocation import ALLOCATORS, PRUNERS


@pytest.mark.parametrize('hook,message', [
    (dict(interval=0), 'interval must be an int >= 1, but is 0'),
    (dict(interval=1.5), 'interval must be an int'),
    (dict(pruner=dict(type='Pruner')), "type='Pruner' is unknown; known are .*IdlenessPruner"),
    (dict(pruner=dict(type='IdlenessPruner', criterion='x')), "criterion 'x'; known are taylor"),
    (dict(allocator=dict(type='PPOAllocator', lr=1)), 'no argument lr; known are .*lr_actor'),
    (dict(allocator=dict(type='PPOAllocator', prior='need')), 'no prior any more: .*NeedAllocator'),
    (dict(allocator=dict(type='VirtualAllocator')), 'no VirtualAllocator any more: .*use PPOAllocator'),
    (dict(draw_interval=0), 'no draw_interval any more: the picture is drawn after training'),
    (dict(feature_stability=3), 'no feature_stability any more: benchmarks/feature_stability.py'),
    (dict(draw=3), "no argument 'draw'"),
])
def test_wrong_arguments_raise_when_built(hook, message):
    with pytest.raises(ValueError, match=message):
        PromptRelocationHook(**hook)


@pytest.mark.parametrize('kinds, name', [(PRUNERS, 'ShrinkingPruner'), (ALLOCATORS, 'JointPPOAllocator')])
def test_ablations_say_where_they_are(kinds, name, monkeypatch):
    monkeypatch.setitem(kinds, name, None)  # somebody else may have imported them
    with pytest.raises(ValueError, match=f'no {name} any more: .*import benchmarks.table3.ablations by custom_imports'):
        kinds.check(dict(type=name))


class Two(ToyModel):
    def __init__(self):
        super().__init__()
        self.teacher = ToyModel()


class Without(ToyModel):
    def __init__(self):
        super().__init__()
        self.prompts = nn.Identity()


class Frozen(ToyModel):
    def __init__(self):
        super().__init__()
        self.prompts.tokens.requires_grad_(False)


@pytest.mark.parametrize('model,hook,options,message', [
    (Two, dict(), dict(), 'must have one set of prompts, but has 2: prompts, teacher.prompts'),
    (Without, dict(), dict(), 'must have one set of prompts, but has 0; give'),
    (Frozen, dict(), dict(), 'needs trained prompts'),
    (lambda: ToyModel(num_tokens=0), dict(), dict(), 'no prompt to relocate'),
    (ToyModel, dict(), dict(iters=4), 'by_epoch=True.* set by_epoch=False'),
])
def test_what_cannot_work_raises_before_training(tmp_path, model, hook, options, message):
    runner = make_runner(tmp_path, hook, model=model(), **options)
    with pytest.raises(ValueError, match=message):
        runner.train()


def test_a_second_hook_is_refused(tmp_path):
    runner = make_runner(tmp_path, dict(), hooks=[dict(type='mmprovpt.PromptRelocationHook')])
    with pytest.raises(ValueError, match='more than one PromptRelocationHook, .*leave one'):
        runner.train()
