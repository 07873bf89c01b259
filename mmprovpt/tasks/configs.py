"""Configs of single tasks made one of several, and the way back."""
import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmprovpt.errors import ConfigError
from mmprovpt.registry import MODELS

from .model import MultiTaskModel

_PREFIX = 'mmprovpt.Prompted'
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_EVALUATORS = ('val_evaluator', 'test_evaluator')
_LOOPS = dict(val_cfg=dict(type='mmprovpt.MultiTaskValLoop'), test_cfg=dict(type='mmprovpt.MultiTaskTestLoop'))


def join_tasks(configs: dict[str, str | Path | dict], backbone: dict | None = None) -> dict:
    """What a config of several tasks has of those of single ones: model, data, evaluators and loops of tests.

    The schedule (``train_cfg``, ``optim_wrapper``, ``param_scheduler``) and hooks are for the joined config to say.

    Args:
        configs: By name of the task, a config whose backbone is one of mmprovpt; a file or a dict.
        backbone: What all of them share in place of their own, without ``prompts``; by default that of the first. All
            heads must fit its outputs.

    Returns:
        dict, in plain types: ``model``, ``train_dataloader``, ``val_evaluator``, ...

    Raises:
        ConfigError: A config has no backbone of mmprovpt.
    """
    joined: dict[str, Any] = {key: {} for key in (*_LOADERS, *_EVALUATORS)}
    tasks: dict[str, dict] = {}
    for name, given in configs.items():
        cfg = (Config(given) if isinstance(given, dict) else Config.fromfile(given)).to_dict()
        scope, model = cfg['default_scope'], cfg['model']
        if cfg.get('data_preprocessor'):
            model.setdefault('data_preprocessor', cfg['data_preprocessor'])
        own, prompts = _without_prompts(model['backbone'], scope, name)
        backbone = backbone or own
        tasks[name] = dict(model, _scope_=scope, backbone=dict(prompts=prompts))
        for key in _LOADERS:
            joined[key][name] = dict(cfg[key], _scope_=scope)
        for key in _EVALUATORS:
            joined[key][name] = cfg[key]
    joined['model'] = dict(type='mmprovpt.MultiTaskModel', backbone=backbone, tasks=tasks)
    return dict(joined, default_scope='mmengine', **copy.deepcopy(_LOOPS))


def single_task(cfg: Config | dict, name: str) -> Config:
    """The config of one task of a MultiTaskModel by itself; it takes ``task_state_dict(name)``.

    Args:
        cfg: Of the several; it is not changed. Its schedule and hooks stay.
        name: Of the task.

    Raises:
        ConfigError: There is no such task.
    """
    single = copy.deepcopy(cfg if isinstance(cfg, Config) else Config(cfg))
    tasks = single.model.tasks
    if name not in tasks:
        raise ConfigError(f'there is no task {name!r}; there are {", ".join(tasks)}')
    model, backbone = tasks[name], single.model.backbone
    single.default_scope = model.pop('_scope_', single.get('default_scope'))
    scope = backbone.get('_scope_') or single.default_scope
    model.backbone = dict(backbone, type=_PREFIX + backbone.type, _scope_=scope, prompts=model.backbone.prompts)
    single.model = model
    for key in (*_LOADERS, *_EVALUATORS):
        if single.get(key):
            single[key] = single[key][name]
    for key in _LOADERS:
        if single.get(key):
            single[key].pop('_scope_', None)
    for key in _LOOPS:
        if single.get(key):
            single[key] = {option: value for option, value in single[key].items() if option not in ('type', 'tasks')}
    if single.get('train_cfg'):
        by_epoch = 'Epoch' in single.train_cfg.pop('type')
        single.train_cfg.by_epoch = by_epoch
    return single


def take_task(model: MultiTaskModel, cfg: Config | dict, name: str) -> nn.Module:
    """A model of its own for one task, with a copy of its weights and of the backbone's.

    Args:
        model: Built of ``cfg``, with its weights.
        cfg: See :func:`single_task`.
        name: Of the task.

    Returns:
        Upstream's model, in eval mode.
    """
    single = single_task(cfg, name)
    with DefaultScope.overwrite_default_scope(single.default_scope):
        alone = MODELS.build(single.model)
    alone.backbone.load_state_dict({key: value for key, value in model.backbone.state_dict().items()
                                    if not key.startswith('prompts.')})
    alone.load_state_dict(model.task_state_dict(name))
    return alone.eval()


def _without_prompts(backbone: dict, scope: str, task: str) -> tuple[dict, dict]:
    """Config of upstream's backbone, and that of the prompts."""
    type_, prompts = str(backbone.get('type')), backbone.get('prompts')
    if not type_.startswith(_PREFIX) or prompts is None:
        raise ConfigError(f'{task}: model.backbone is {type_}, but must be of mmprovpt, with prompts: '
                          '`mmprovpt add CONFIG --out NEW` makes it so')
    name = type_.removeprefix(_PREFIX)
    own = {key: value for key, value in backbone.items() if key != 'prompts'}
    scope = own.get('_scope_', scope)
    # As find_upstream does: of these classes MMDetection has the Swin alone.
    own.update(type=name, _scope_='mmpretrain' if scope == 'mmdet' and name != 'SwinTransformer' else scope)
    return own, prompts
