"""One frozen backbone and several tasks, each with prompts and with a whole model of upstream behind them."""
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseDataPreprocessor, BaseModel, ModuleDict
from torch import nn

from mmprovpt.backbones import add_prompts, fill_prompts, tuned_state_dict, using_prompts
from mmprovpt.errors import CheckpointError, ConfigError
from mmprovpt.registry import MODELS
from mmprovpt.trust import load_weights

_here = threading.local()


class TaskBackbone:
    """The shared backbone as the model of one task has it: called, it reads this task's prompts.

    It is no module, so the backbone has one name in the state dict, and is trained, moved and copied once. Where this
    thread has the outputs already (``MultiTaskModel.predict_mixed``), it gives those.
    """

    def __init__(self, backbone: nn.Module, name: str) -> None:
        self.shared = backbone
        self.name = name

    def __call__(self, *args, **kwargs) -> Any:
        """As upstream."""
        if getattr(_here, 'outputs', None) is not None:
            return _here.outputs
        with using_prompts(self.shared, self.name):
            return self.shared(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ('shared', 'name') or name.startswith('__'):  # not yet, in a copy that is being made
            raise AttributeError(name)
        return getattr(self.shared, name)


class TaskPreprocessor(BaseDataPreprocessor):
    """Gives a batch to the preprocessor of its task."""

    def __init__(self, tasks: nn.ModuleDict) -> None:
        super().__init__()
        vars(self)['tasks'] = tasks  # they are children of the model already

    def forward(self, data: dict, training: bool = False) -> dict:
        """What the task's gives of ``data`` without ``task``, which says whose batch it is, and that.

        Raises:
            ConfigError: It does not say, or there is no such task.
        """
        data = dict(data)
        task = data.pop('task', None)
        if task not in self.tasks:
            raise ConfigError(f'a batch of task={task!r}, but the tasks are {", ".join(self.tasks)}: the loops of '
                              "mmprovpt (train_cfg=dict(type='mmprovpt.MultiTaskIterTrainLoop', ...)) say which it is")
        return dict(self.tasks[task].data_preprocessor(data, training), task=task)


@MODELS.register_module()
class MultiTaskModel(BaseModel):
    """Detectors, segmentors and classifiers of upstream that share one frozen backbone, each through its own prompts.

    Nothing that is trained is shared. So each task computes, and learns, what it does in a model of its own with this
    backbone, whatever becomes of the others; see :func:`mmprovpt.tasks.single_task`.

    Args:
        backbone: Config of upstream's, without prompts.
        tasks: By name (letters, digits, - and _), the config of a whole model. Of its ``backbone`` it has nothing but
            ``prompts=dict(type=...)``; ``_scope_`` says of which codebase it is.
        train: Names of the tasks that are trained; None for all. Others are frozen, and stay in eval mode.
        init_cfg: Of MMEngine.

    Attributes:
        backbone: With a set of prompts for each task, called as it.
        tasks (ModuleDict): Upstream's models. Each can be called by itself.
        trained (tuple): Names of the tasks that are trained.

    Raises:
        ConfigError: A task's name or config does not fit; or ``train`` names none, or one that is not there.
    """

    def __init__(self, backbone: dict, tasks: dict[str, dict], train: Sequence[str] | None = None,
                 init_cfg: dict | None = None) -> None:
        models = ModuleDict()
        super().__init__(TaskPreprocessor(models), init_cfg)
        self.trained = _check_names(tasks, train)
        self.backbone = MODELS.build(backbone)
        self.tasks = models
        for name, config in tasks.items():
            add_prompts(self.backbone, name, config['backbone']['prompts'])
            model = MODELS.build(ConfigDict(config, backbone=dict(type=nn.Identity)))
            del model.backbone
            model.backbone = TaskBackbone(self.backbone, name)
            models[name] = model
            if name not in self.trained:
                self.backbone.prompts[name].requires_grad_(False)
                model.requires_grad_(False)

    def forward(self, inputs, data_samples: list | None = None, mode: str = 'tensor', *, task: str) -> Any:
        """What the model of the task gives; its losses under ``<task>/<name>``."""
        result = self.tasks[task](inputs, data_samples, mode=mode)
        return {f'{task}/{name}': value for name, value in result.items()} if mode == 'loss' else result

    def train(self, mode: bool = True) -> 'MultiTaskModel':
        """Only tasks that are trained follow ``mode``: the statistics of others' norms are not to change."""
        super().train(mode)
        for name, model in self.tasks.items():
            if name not in self.trained:
                model.eval()
        return self

    @torch.no_grad()
    def predict_mixed(self, batches: Sequence[dict]) -> list[list]:
        """Predictions for batches of different tasks, by one forward of the backbone for all images of a size.

        They are those of ``test_step`` batch by batch, to rounding. Several threads may call it.

        Args:
            batches: As the loops give them, each with ``task``; the model is in eval mode.

        Returns:
            For each batch its predictions.

        Raises:
            ConfigError: A batch has no task, or one that is not there.
        """
        given = [self.data_preprocessor(batch, False) for batch in batches]
        sizes: dict = {}
        for number, each in enumerate(given):
            sizes.setdefault(each['inputs'].shape[1:], []).append(number)
        results: list = [None] * len(given)
        for numbers in sizes.values():
            images = [given[number]['inputs'] for number in numbers]
            names = [given[number]['task'] for number, each in zip(numbers, images) for _ in each]
            with using_prompts(self.backbone, names):
                outputs = self.backbone(torch.cat(images))
            parts = zip(*(output.split([len(each) for each in images]) for output in outputs))
            for number, part in zip(numbers, parts):
                _here.outputs = type(outputs)(part)
                try:
                    results[number] = self._run_forward(given[number], mode='predict')
                finally:
                    _here.outputs = None
        return results

    def task_state_dict(self, name: str) -> dict:
        """The small checkpoint of one task: of its single-task model, key by key (:func:`mmprovpt.tuned_state_dict`).

        Raises:
            ConfigError: There is no such task.
        """
        whole, own = tuned_state_dict(self, prompts=name), f'tasks.{name}'
        state: Any = OrderedDict()
        state._metadata = OrderedDict()
        for source, target in ((whole, state), (whole._metadata, state._metadata)):
            for key, value in source.items():
                if not f'{key}.'.startswith('tasks.') or f'{key}.'.startswith(f'{own}.'):
                    target[key.removeprefix(own).removeprefix('.')] = value
        return state

    def load_task(self, name: str, checkpoint: str | Path | dict) -> None:
        """Load the checkpoint of a single-task model, small or full, into one task; nothing else changes.

        Args:
            name: Of the task.
            checkpoint: A file, or a state dict. Its frozen weights must be those here, so initialise the model first.

        Raises:
            ConfigError: There is no such task, or the file holds more than weights.
            CheckpointError: It does not fit, or was tuned on other frozen weights. The model is as it was.
        """
        if name not in self.tasks:
            raise ConfigError(f'there is no task {name!r}; there are {", ".join(self.tasks)}')
        state: Any = checkpoint if isinstance(checkpoint, dict) else load_weights(checkpoint)
        state = state.get('state_dict', state)
        head = {key: value for key, value in state.items() if not key.startswith('backbone.')}
        wanted = self.tasks[name].state_dict()
        unfit = sorted(head.keys() ^ wanted.keys()) or [
            f'{key}: {tuple(head[key].shape)}, expected {tuple(value.shape)}' for key, value in wanted.items()
            if head[key].shape != value.shape]
        if unfit:
            raise CheckpointError(f'the checkpoint is of another model than task {name}, which would lack or lose: '
                                  f'{", ".join(unfit[:5])}{f" and {len(unfit) - 5} more" if len(unfit) > 5 else ""}')
        fill_prompts(self.backbone, name, state)
        self.tasks[name].load_state_dict(head)


def _check_names(tasks: dict[str, dict], train: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the trained tasks, if all is well with them and with the others."""
    for name, config in tasks.items():
        given = config.get('backbone')
        if not isinstance(given, dict) or set(given) != {'prompts'}:
            raise ConfigError(f'tasks.{name}.backbone={given!r}, but the backbone is shared, and a task has of it only '
                              "dict(prompts=dict(type='StaticPrompts', num_tokens=10)), for example")
        if 'loss' in name:
            raise ConfigError(f'a task cannot be called {name}: MMEngine sums whatever has "loss" in its name')
    trained = tuple(tasks) if train is None else tuple([train] if isinstance(train, str) else train)
    unknown = [name for name in trained if name not in tasks]
    if unknown or not trained:
        raise ConfigError(f'train={train!r}, but the tasks are {", ".join(tasks) or "none"}: name one or more of them, '
                          'or None for all')
    return trained
