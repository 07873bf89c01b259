"""Write docs/reference/arguments.md: all classes that a config may name, with their arguments, from the code.

    python docs/arguments.py

A test compares the page with what this would write.
"""
import inspect
import re
from pathlib import Path

from mmengine.hooks import Hook
from torch import nn

from mmprovpt.kinds import Kinds, arguments_of
from mmprovpt.prompts import FORMS
from mmprovpt.registry import DATASETS, HOOKS, MODELS, OPTIM_WRAPPERS
from mmprovpt.relocation import ALLOCATORS, ARRIVALS, CRITERIA, PRUNERS, RelocationSession

PAGE = Path(__file__).parent / 'reference/arguments.md'
INTRODUCTION = """\
# All arguments

Written by `docs/arguments.py` from signatures and docstrings; what to choose is in [options.md](options.md).
A dash: it has to be given. What a program gives and a config cannot (numbers and widths of blocks) is left out.
"""
RUNTIME = {'num_blocks', 'widths', 'mergings', 'patch_fan_in'}
# What stands in a config, and the classes that it may name.
PLACES = {
    'Prompts: `model.backbone.prompts`': FORMS,
    'Hooks: `custom_hooks`, `default_hooks`': HOOKS,
    'Pruners: `pruner` of `PromptRelocationHook`': PRUNERS,
    'Criteria: `criterion` of a pruner, by their short names': CRITERIA,
    'Allocators: `allocator` of `PromptRelocationHook`': ALLOCATORS,
    'Arrivals: `arrival` of `PromptRelocationHook`': ARRIVALS,
    'Optimizer wrappers: `optim_wrapper`': OPTIM_WRAPPERS,
    'Models, backbones and necks: `model`, `model.backbone`, `model.neck`': MODELS,
    'Data sets: `dataset` of a dataloader': DATASETS,
}


def registered(place) -> dict[str, type]:
    """Name in a config → class, of the package's own."""
    if isinstance(place, Kinds):
        found = dict(place)
    else:
        place.import_from_location()
        found = {f'mmprovpt.{name}': cls for name, cls in sorted(place.module_dict.items())}
    return {name: cls for name, cls in found.items() if cls.__module__.startswith('mmprovpt.')}


def markdown(text: str) -> str:
    """A line of Markdown from reStructuredText."""
    text = re.sub(r':math:`([^`]*)`', r'$\1$', re.sub(r'\s+', ' ', text))
    text = re.sub(r':\w+:`~?([^`]*)`', lambda found: f'`{found[1].rpartition(".")[2]}`', text)
    text = re.sub(r'docs/([\w-]+)/([\w-]+\.md)', r'[\1/\2](../\1/\2)', text)
    return text.replace('``', '`').replace('|', '\\|').strip()


def bases(cls: type) -> list[type]:
    """The class and its bases, but for those of other packages."""
    return [base for base in cls.__mro__ if base.__module__.startswith('mmprovpt.')]


def descriptions(cls: type) -> dict[str, str]:
    """Argument → what its docstring says of it; those of bases where it says nothing."""
    found = {}
    for base in bases(cls):
        block = re.search(r'^Args:\n(.*?)(?=^\S|\Z)', inspect.cleandoc(base.__doc__ or ''), re.M | re.S)
        for entry in re.split(r'^ {4}(?=\S)', block[1] if block else '', flags=re.M):
            names, _, text = entry.partition(': ')
            for name in [each.strip(' *') for each in re.sub(r'\([^)]*\)', '', names).split(',')]:
                if found.get(name, f'See `{base.__name__}`').startswith(f'See `{base.__name__}`'):
                    found[name] = markdown(text)
    return found


def signature(cls: type) -> dict[str, inspect.Parameter]:
    """Those of its arguments that a config can give, and what is known of them."""
    parameters = {}
    for base in bases(cls):
        if '__init__' in vars(base):
            for name, each in inspect.signature(base.__init__).parameters.items():
                parameters.setdefault(name, each)
    return {name: parameters[name] for name in arguments_of(cls) if name in parameters and name not in RUNTIME}


def table(cls: type, without: set[str]) -> str:
    """One row for each argument; nothing for a class without any."""
    said, rows = descriptions(cls), []
    for name, each in signature(cls).items():
        kind = '' if each.annotation is each.empty else inspect.formatannotation(each.annotation)
        default = '–' if each.default is each.empty else f'`{each.default!r}`'
        if name not in without:
            kind = markdown(re.sub(r'[\w.]+\.(?=\w)', '', kind))
            rows.append(f'| `{name}` | {kind} | {default} | {said.get(name, "")} |')
    return '\n'.join(['| argument | type | default | |', '|---|---|---|---|', *rows]) + '\n' if rows else ''


def section(name: str, cls: type, without: set[str] = frozenset()) -> str:
    """A class: its first sentence and its arguments."""
    purpose = markdown(inspect.cleandoc(cls.__doc__ or '').partition('\n\n')[0])
    upstream = [base for base in cls.__mro__ if base not in bases(cls) and base not in (object, nn.Module, Hook)]
    rest = [f"The rest is `{each.__name__}`'s of {each.__module__.partition('.')[0]}.\n" for each in upstream[:1]]
    return '\n'.join([f'### {name}', '', purpose, '', table(cls, without), *rest]).rstrip('\n') + '\n'


def page() -> str:
    """All of it."""
    parts = [INTRODUCTION]
    for title, place in PLACES.items():
        parts.append(f'## {title}\n')
        without = {'prompts', 'score_interval'} if place is CRITERIA else set()  # which the pruner gives
        for name, cls in registered(place).items():
            one_width = place is FORMS and name != 'StaticPrompts'
            parts.append(section(name, cls, without | ({'cross_stage'} if one_width else set())))
        if place is HOOKS:
            parts.append(section('More of mmprovpt.PromptRelocationHook', RelocationSession, {
                'prompts', 'optimizers', 'pruner', 'allocator', 'averages', 'seed'}))
    return '\n'.join(parts)


if __name__ == '__main__':
    PAGE.write_text(page(), encoding='utf-8')
