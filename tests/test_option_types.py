"""Every option of every class that a config chooses is of its type, or the error says what it must be."""
import inspect

import pytest

from mmprovpt.errors import ConfigError
from mmprovpt.hooks import PromptRelocationHook
from mmprovpt.kinds import arguments_of, check_types
from mmprovpt.prompts import FORMS
from mmprovpt.relocation import ALLOCATORS, PRUNERS

WRONG = {int: (True, 2.5, None, '3', [1], float('nan')), float: (True, None, '0.1', [0.1], float('nan'), float('inf')),
         str: (True, None, 3, ['mean']), bool: (1, None, 'True', 0.0)}
RUNTIME = ('num_blocks', 'widths', 'mergings', 'patch_fan_in')  # what a config cannot give


def plain_options():
    """(registry, class, option, its plain type) of all that is registered."""
    for kinds in (PRUNERS, ALLOCATORS, FORMS):
        for cls in dict.fromkeys(kinds.values()):
            for base in reversed(cls.__mro__):
                parameters = inspect.signature(base.__init__).parameters if '__init__' in vars(base) else {}
                for name, parameter in parameters.items():
                    if parameter.annotation in WRONG and name in arguments_of(cls) and name not in RUNTIME:
                        yield kinds, cls, name, parameter.annotation


OPTIONS = list({(kinds.what, cls.__name__, name): (kinds, cls, name, type_)
                for kinds, cls, name, type_ in plain_options()}.values())


@pytest.mark.parametrize('kinds, cls, name, type_', OPTIONS, ids=[f'{each[1].__name__}-{each[2]}' for each in OPTIONS])
def test_wrong_types_are_named(kinds, cls, name, type_):
    for value in WRONG[type_]:
        with pytest.raises(ConfigError) as error:
            kinds.check({'type': cls.__name__, name: value})
        assert '\n' not in str(error.value) and f'{cls.__name__}: {name}={value!r}, but it must be ' in str(error.value)


def test_there_are_such_options():
    assert len(OPTIONS) > 30 and {kinds.what for kinds, *_ in OPTIONS} == {'pruner', 'allocator', 'prompts'}


@pytest.mark.parametrize('option, value', [
    ('interval', True), ('interval', 2.5), ('interval', None), ('interval', '1'), ('interval', 0),
    ('by_epoch', 1), ('by_epoch', 'False'), ('by_epoch', None),
    ('relocate_per_period', True), ('relocate_per_period', 1.0), ('relocate_per_period', '1'),
    ('relocate_per_period', None), ('relocate_per_period', 0),
    ('loss_tail', True), ('loss_tail', None), ('loss_tail', '1'), ('loss_tail', 0), ('loss_tail', float('nan')),
    ('reward_baseline', 3), ('reward_baseline', True), ('reward_baseline', 'median'),
    ('pruner', None), ('pruner', 'RandomPruner'), ('pruner', dict(type='RandomPruner', seed=1.5)),
    ('pruner', dict(type='IdlenessPruner', verify_top=True)), ('pruner', dict(type='IdlenessPruner', criterion=None)),
    ('allocator', None), ('allocator', dict(type='PPOAllocator', horizon=True)),
    ('allocator', dict(type='PPOAllocator', gamma=2)), ('allocator', dict(type='NeedAllocator', temperature='1')),
    ('allocator', dict(type='PPOAllocator', seed=2.5))])
def test_the_hook_refuses_when_it_is_built(option, value):
    with pytest.raises(ConfigError) as error:
        PromptRelocationHook(**{option: value})
    name, given = list(value.items())[-1] if isinstance(value, dict) else (option, value)
    assert name in str(error.value) and str(given) in str(error.value)


def test_right_types_pass():
    PromptRelocationHook(interval=3, by_epoch=False, relocate_per_period=2, loss_tail=1, reward_baseline='mean',
                         pruner=dict(type='RandomPruner', seed=3), allocator=dict(type='PPOAllocator', gamma=1))
    PRUNERS.check(dict(type='IdlenessPruner', score_interval=None))
    PRUNERS.check(dict(type='IdlenessPruner', score_interval=2))


def test_what_has_no_plain_annotation_is_left_to_the_class():
    class Own:
        def __init__(self, a, b: list, c: int | list = 3, d: 'int' = 3, e: int | None = None):
            pass

    check_types(Own, dict(a=True, b='b', c=True, d=2.5, e=None, other=1))
    for value in (True, 2.5, 'None'):
        with pytest.raises(ConfigError, match=f'^Own: e={value!r}, but it must be an int or None$'):
            check_types(Own, dict(e=value))
