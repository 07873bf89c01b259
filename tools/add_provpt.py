#!/usr/bin/env python
"""Write the config that adds PRO-VPT to an existing config.

    python tools/add_provpt.py mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py --out my_provpt.py

The existing config is a file, or CODEBASE::PATH for one that is installed with a codebase. The new one inherits it. It
goes to --out, or to the standard output; what was found in the existing one goes to the standard error.
"""
import argparse
import contextlib
import difflib
import logging
import os
import os.path as osp
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import NamedTuple

# Nothing is downloaded, nor waited for. MMEngine imports transformers, which reads it then.
os.environ.setdefault('HF_HUB_OFFLINE', '1')

from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import get_installed_path
from torch import nn

from mmprovpt.attention.support import Block, find_blocks
from mmprovpt.backbones.registered import PROMPTED, find_upstream
from mmprovpt.cli.config_parts import (
    BACKBONES,
    HOOK,
    find_backbones,
    find_hooks,
    find_prompts_config,
    scope_of,
    type_name,
)
from mmprovpt.cli.options import read_config
from mmprovpt.cli.parameters import build_uninitialised, count_config, count_trainable
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.errors import ConfigError
from mmprovpt.prompts import find_prompts
from mmprovpt.prompts.prompt_set import check_num_tokens
from mmprovpt.shipped import shipped

PERIODS = 100  # of the paper's classification runs


class Place(NamedTuple):
    """Where a config has its backbone.

    Attributes:
        path: Below ``model``, with dots.
        nodes: The dicts on the way, from the model's to the backbone's.
    """
    path: str
    nodes: list[dict]

    def inherited(self, key: str, default):
        """The innermost value of a key on the way."""
        return next((node[key] for node in reversed(self.nodes) if node.get(key) is not None), default)


def locate(name: str) -> str:
    """The file of a config.

    Raises:
        ConfigError: There is none, or it is of a kind that no other kind can inherit.
    """
    package, installed, below = name.partition('::')
    path = name
    if installed:
        try:
            folder = Path(get_installed_path(package)) / '.mim' / 'configs'
        except ImportError as error:
            raise ConfigError(f'{name}: {package} is not installed') from error
        path = str(folder / below)
        if not osp.isfile(path):
            known = [str(file.relative_to(folder)) for file in folder.rglob('*.py')]
            near = difflib.get_close_matches(below, known, n=3, cutoff=0.5)
            raise ConfigError(f'{package} has no config {below} (looked in {folder})'
                              + (f'; similar are: {", ".join(near)}' if near else ''))
    if osp.isfile(path) and Config._is_lazy_import(path):
        raise ConfigError(
            f"{name} is a config of MMEngine's pure Python kind (read_base, imported classes), which a file with "
            f'_base_ cannot inherit. Write one of its kind, beside it:\n\n{pure_python_heir(path)}')
    return path


def pure_python_heir(path: str) -> str:
    """A config of MMEngine's pure Python kind that adds prompts to such a one in the same folder."""
    cfg = read_config(path)
    place = find_backbone(cfg)
    type_ = place.nodes[-1]['type']
    # Such configs have no default scope, so that the library must be said.
    library = getattr(type_, '__module__', str(type_)).partition('.')[0]
    prompted = PROMPTED.get(type_name(place.nodes[-1]))
    if prompted is None:
        raise ConfigError(f'there is no prompted type for {type_name(place.nodes[-1])}, only for {", ".join(PROMPTED)}')
    where = ''.join(f'[{part!r}]' for part in place.path.split('.'))
    hooks = '*custom_hooks, ' * bool(cfg.get('custom_hooks'))
    hook, _ = schedule(cfg, None)
    lines = [f'{key}.update({", ".join(f"{name}={value!r}" for name, value in added.items())})\n' if cfg.get(key) else
             f'{key} = {added!r}\n' for key, added in guards(cfg).items()]
    return f"""from mmengine.config import read_base

with read_base():
    from .{Path(path).stem} import *

model{where}.update(
    type={prompted!r}, _scope_={library!r}, prompts=dict(type='StaticPrompts', num_tokens=10))
custom_hooks = [{hooks}dict(type={hook["type"]!r}, interval={hook["interval"]}, by_epoch={hook["by_epoch"]})]
{''.join(lines)}"""


def find_backbone(cfg: Config) -> Place:
    """The outermost backbone.

    Raises:
        ConfigError: There is none, or several, or it has prompts already.
    """
    model = cfg.get('model') or {}
    if find_prompts_config(model) or find_hooks(cfg):
        raise ConfigError(f'the config has prompts=dict(...) in its model or a {HOOK} already')
    paths = list(find_backbones(model))
    outer = [path for path in paths if path.count('.') == paths[0].count('.')]
    if len(outer) != 1:
        raise ConfigError('the config needs one backbone=dict(type=...) in its model, but it has '
                          f'{len(outer)}{": " if outer else ""}{", ".join(outer)}')
    nodes = [model]
    for part in outer[0].split('.'):
        nodes.append(nodes[-1].get(part) if isinstance(nodes[-1], dict) else None)
    if None in nodes:
        raise ConfigError(f'model.{outer[0]} lies in a list, of which a config that inherits can only give the whole')
    return Place(outer[0], nodes)


def require_tuning(cfg: Config) -> None:
    """Raise ConfigError if a config pre-trains its backbone."""
    name = type_name(cfg.model)
    model = MODELS.get(f'{scope_of(cfg)}.{name}') if isinstance(cfg.model.get('type'), str) else cfg.model.get('type')
    if getattr(model, '__module__', '').startswith('mmpretrain.models.selfsup.'):
        raise ConfigError(f'the config pre-trains its backbone, by {name}. Prompts are for one that is pre-trained and '
                          'stays as it is: take a config that tunes or tests it, as those in benchmarks/ beside it')


def build(cfg: Config, place: Place) -> tuple[nn.Module, str]:
    """The model, or its backbone alone, and why, where a package or a download is missing for other parts.

    Raises:
        ConfigError: Neither can be built.
    """
    try:
        try:
            return build_uninitialised(cfg), ''
        except (ImportError, OSError, NotImplementedError) as error:  # the last one says that fairscale is missing
            if place.path not in BACKBONES:
                raise
            return build_uninitialised(cfg, place.path), _in_a_line(error)
    except ConfigError:
        raise
    except Exception as error:  # whatever a library says to a config that it does not take
        raise ConfigError(f'the config cannot be built: {_in_a_line(error)}') from error


def _in_a_line(error: Exception) -> str:
    return textwrap.shorten(f'{type(error).__name__}: {error}', 300)


def inspect_backbone(model: nn.Module, place: Place) -> tuple[nn.Module, list[Block]]:
    """The built backbone and its blocks.

    Raises:
        ConfigError: It is not built once, or it has no supported attention, or no prompted type.
    """
    built = [name for name, _ in model.named_modules() if name.split('.')[-1] == place.path.split('.')[-1]]
    if place.path not in built:
        raise ConfigError(f'model.{place.path} is built as {" and ".join(built) or "something without a backbone"}, '
                          'but relocation is for one backbone of that name')
    backbone = model.get_submodule(place.path)
    try:
        blocks = find_blocks(backbone)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if type_name(place.nodes[-1]) not in PROMPTED:
        raise ConfigError(f'{type(backbone).__name__} has supported attention, but there is no prompted type for it, '
                          f'only for {", ".join(PROMPTED)}. From Python: mmprovpt.inject_prompts(backbone, prompts)')
    return backbone, blocks


def prompted_backbone(cfg: Config, place: Place, backbone: nn.Module, kind: str, num_tokens) -> dict:
    """What changes in the backbone's config."""
    name = type_name(place.nodes[-1])
    change = dict(type=PROMPTED[name], prompts=dict(type=kind, num_tokens=num_tokens, dropout=0.1))
    with DefaultScope.overwrite_default_scope(place.inherited('_scope_', cfg.get('default_scope', 'mmengine'))):
        if find_upstream(name) is not type(backbone):
            change['_scope_'] = _library(backbone)
    return change


def schedule(cfg: Config, interval) -> tuple[dict, int]:
    """The hook, and how many periods it has.

    Raises:
        ConfigError: The config does not train, or less than a period.
    """
    loop = cfg.get('train_cfg') or {}
    unit = next((unit for unit in ('iters', 'epochs') if loop.get(f'max_{unit}')), None)
    if unit is None:
        raise ConfigError('the config has no train_cfg with max_epochs or max_iters: relocation needs a training')
    length = loop[f'max_{unit}']
    if interval is None:
        interval = 1 if unit == 'epochs' else max(1, length // PERIODS)
    if not 1 <= interval <= length:
        raise ConfigError(f'--interval {interval}, but it must be from 1 to {length}, the {unit} of the training')
    return dict(type=f'mmprovpt.{HOOK}', interval=interval, by_epoch=unit == 'epochs'), length // interval


def guards(cfg: Config) -> dict:
    """What resumes bit for bit and leaves out steps that are not finite, where the config has MMEngine's own."""
    found = {}
    hooks = (cfg.get('default_hooks') or {}).values()
    if 'IterationSeedHook' not in [type_name(hook) for hook in [*hooks, *(cfg.get('custom_hooks') or [])] if hook]:
        found['default_hooks'] = dict(seed=dict(type='mmprovpt.IterationSeedHook'))
    wrapper = cfg.get('optim_wrapper') or {}
    # Another type is meant. Without one, and without an optimizer, it is a dict of several.
    if type_name(wrapper) == 'OptimWrapper' or 'type' not in wrapper and 'optimizer' in wrapper:
        found['optim_wrapper'] = dict(type='mmprovpt.FiniteOptimWrapper')
    return found


def full_learning_rate(cfg: Config, prompts: str) -> dict:
    """An entry of custom_keys for the prompts, if the one that they fall under has a learning rate of its own."""
    custom = ((cfg.get('optim_wrapper') or {}).get('paramwise_cfg') or {}).get('custom_keys') or {}
    # As MMEngine chooses: the longest key that is part of the name, of equal ones the first.
    key = next((key for key in sorted(sorted(custom), key=len, reverse=True) if key in f'{prompts}.tokens'), None)
    if key is None or custom[key].get('lr_mult', 1.) == 1:
        return {}
    return {prompts: dict(custom[key], lr_mult=1.)}


def overrides(cfg: Config, options: dict) -> dict:
    """--cfg-options as the nested dicts that a config file has."""
    changes = {}
    for key in options:
        node, target, parts = cfg, changes, key.split('.')
        for part in parts[:-1]:
            if isinstance(node[part], (list, tuple)):  # a file can only give the whole of a list
                parts[-1] = part
                break
            node, target = node[part], target.setdefault(part, {})
        target[parts[-1]] = node[parts[-1]]
    return changes


def has_weights(cfg: Config, place: Place) -> bool:
    """Whether something loads weights into the backbone."""
    for node in place.nodes:
        init = node.get('init_cfg') or []
        inits = [init] if isinstance(init, dict) else init
        if any(type_name(each) in ('Pretrained', 'PretrainedInit') for each in inits):
            return True
    backbone = place.nodes[-1]
    return bool(cfg.get('load_from') or place.inherited('pretrained', False) or backbone.get('checkpoint_path'))


def notes(cfg: Config, place: Place, hook: dict, periods: int, rates: dict[str, dict]) -> list[str]:
    """What the user should know."""
    found = []
    if hook['by_epoch'] and periods < PERIODS // 2:
        found.append(f'{periods} periods are few (the paper has {PERIODS}): for more, give the hook by_epoch=False and '
                     'an interval in iterations')
    if place.nodes[-1].get('frozen_stages', -1) >= 0:
        found.append(f'frozen_stages={place.nodes[-1]["frozen_stages"]} no longer matters: all weights of the backbone '
                     'are frozen, and the prompts of those stages are trained as the others are')
    if rates:
        found.append('the config gives the backbone a learning rate of its own; prompts, which are new, get lr_mult=1')
    if cfg.get('custom_hooks'):
        found.append('the custom_hooks of the existing config are repeated, because a list replaces a list')
    if not has_weights(cfg, place):
        found.append('the config loads no weights, and a frozen backbone needs some: set '
                     f'model.{place.path}.init_cfg or load_from')
    return found


def base_text(name: str, folder: str) -> str:
    """The line ``_base_ = ...`` of a file in that folder."""
    package, installed, below = name.partition('::')
    if not installed:
        return f'_base_ = {osp.relpath(name, folder)!r}\n'
    if package != 'mmseg':
        return f'_base_ = {name!r}\n'
    # 'mmseg::...' makes MMEngine look for a distribution called mmsegmentation, but OneDL's has another name.
    return ("_base_ = (__import__('mmengine').utils.get_installed_path('mmseg') +\n"
            f"          {'/.mim/configs/' + below!r})\n")


def add_provpt(name: str, kind: str, num_tokens, interval, options: dict) -> tuple[Config, list[str]]:
    """What is to be added to a config, and a report.

    Raises:
        ConfigError: It takes no prompts; says why.
    """
    path = locate(name)
    cfg = read_config(path, options)
    place = find_backbone(cfg)
    require_tuning(cfg)
    hook, periods = schedule(cfg, interval)
    model, missing = build(cfg, place)
    backbone, blocks = inspect_backbone(model, place)
    try:
        counts = check_num_tokens(num_tokens, len(blocks))
    except (TypeError, ValueError) as error:
        raise ConfigError(f'--num-tokens: {error}') from error
    if not sum(counts):
        raise ConfigError('--num-tokens: without a prompt there is nothing to relocate')

    added = Config(overrides(cfg, options))
    added.merge_from_dict({f'model.{place.path}': prompted_backbone(cfg, place, backbone, kind, num_tokens)})
    rates = full_learning_rate(cfg, f'{place.path}.prompts')
    if rates:
        added.merge_from_dict(dict(optim_wrapper=dict(paramwise_cfg=dict(custom_keys=rates))))
    added.merge_from_dict(guards(cfg))
    added.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    new = _load(f'_base_ = {osp.abspath(path)!r}\n' + added.pretty_text)
    prompted, _ = build(new, place)
    kinds = sorted({f'{_library(block.attention)} {type(block.attention).__name__}' for block in blocks})
    unit = 'epochs' if hook['by_epoch'] else 'iters'
    report = [
        f'model.{place.path}: {type(backbone).__name__} of {_library(backbone)}, {len(blocks)} blocks with '
        f'{", ".join(kinds)}, of width {", ".join(map(str, sorted({block.width for block in blocks})))}',
        f'prompts: {sum(counts)}, of {find_prompts(prompted).num_active:,} trained numbers',
        f'trainable parameters: {count_trainable(model):,} before, {count_config(new, prompted):,} after (prompts, the '
        f"networks of the relocation's policy{'' if missing else ', and all that is not in the backbone'})",
        f'relocation: every {hook["interval"]} of {cfg.train_cfg["max_" + unit]} {unit}, {periods} periods']
    found = notes(cfg, place, hook, periods, rates)
    if missing:
        found.append(f'only the backbone was built and counted, because the rest cannot be built here: {missing}')
    return added, report + [f'note: {note}' for note in found]


def _library(module: nn.Module) -> str:
    return type(module).__module__.partition('.')[0]


def _load(text: str) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'config.py'
        path.write_text(text, encoding='utf-8')
        return Config.fromfile(path)


@user_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a file, or CODEBASE::PATH')
    parser.add_argument('--prompts', choices=('StaticPrompts', 'AdaptivePrompts'), default='StaticPrompts',
                        help="PRO-VPT's, the default, or those of VAPT, functions of the input: "
                        + shipped('docs/method/vapt.md'))
    parser.add_argument('--num-tokens', type=int, nargs='+', default=[10], metavar='N',
                        help='prompts of each block, one number or one for each block (default: 10)')
    parser.add_argument('--interval', type=int, metavar='N',
                        help='length of a period, in epochs or iterations, whichever train_cfg counts (default: an '
                        f'epoch, or a {PERIODS}th of the iterations)')
    parser.add_argument('--out', help='the new file')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='overrides, which the new config has too')
    args = parser.parse_args()
    MMLogger.get_instance('mmengine', log_level=logging.WARNING)  # what every built backbone says
    if args.out and osp.exists(args.out):
        raise ConfigError(f'{args.out} exists already: remove it, or give another --out')
    num_tokens = args.num_tokens if len(args.num_tokens) > 1 else args.num_tokens[0]
    with contextlib.redirect_stdout(sys.stderr):  # codebases print what they cannot import, and ours is a file
        added, report = add_provpt(args.config, args.prompts, num_tokens, args.interval, args.cfg_options)
    print('\n'.join(report), file=sys.stderr)
    text = base_text(args.config, osp.dirname(args.out or '') or '.') + added.pretty_text
    if not args.out:
        # In ASCII, so that a file that it is redirected to is UTF-8 in any locale.
        print(text.encode('ascii', 'backslashreplace').decode(), end='')
        return
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
