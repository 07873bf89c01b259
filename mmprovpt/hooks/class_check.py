"""Classes of the data that do not fit the model, before anything is trained."""
from collections.abc import Iterator

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mmprovpt.errors import ConfigError
from mmprovpt.registry import HOOKS
from mmprovpt.tasks import loaders_by_task

from .find import unwrapped

# Their numbers are not those of the data set's classes: features, objects against background, stuff beside things.
_OTHER_CLASSES = {'backbone', 'rpn_head', 'semantic_head'}


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Compare the classes of data sets with the heads' numbers, and those of validation with those of training.

    It serves classification, detection and segmentation. A data set that reads its classes off folders numbers them by
    itself: with another folder in validation the same number would mean another class. One that takes their names from
    its metainfo leaves out the annotations of all others. MMPretrain's ClassNumCheckHook and MMDetection's
    NumClassCheckHook look at numbers only, and at validation only when it starts; MMSegmentation has none.

    The tools of this package have it by themselves, with ``heads_only``.

    Args:
        heads_only: Compare the heads' numbers with what data sets say of their classes, and nothing else.

    Raises:
        ConfigError: Before training (or testing), if they differ.
    """

    def __init__(self, heads_only: bool = False) -> None:
        self.heads_only = heads_only

    def before_train(self, runner: Runner) -> None:
        """Check training's data set and validation's."""
        train = self._check(runner, runner.train_dataloader, 'train_dataloader')
        if runner.val_loop is None:
            return
        val = self._check(runner, runner.val_dataloader, 'val_dataloader')
        for task in train if not self.heads_only else ():
            if task in val and _classes(train[task]) != _classes(val[task]):
                differing = sorted(set(_classes(train[task])) ^ set(_classes(val[task]))) or 'their order'
                raise ConfigError('train_dataloader and val_dataloader have other classes, they differ in '
                                  f'{differing}: both need the same, from metainfo or from a folder for each class')

    def before_test(self, runner: Runner) -> None:
        """Check the data set of the test."""
        self._check(runner, runner.test_dataloader, 'test_dataloader')

    def _check(self, runner: Runner, loader: DataLoader, key: str) -> dict[str, Dataset]:
        """Returns the data set; of a MultiTaskModel those of its tasks, by name."""
        model, datasets = unwrapped(runner.model), {}
        for task, each in loaders_by_task(loader).items():
            datasets[task] = dataset = each.dataset
            if self.heads_only and not isinstance(_metainfo(dataset).get('classes'), (list, tuple)):
                continue
            _check_heads(model.tasks[task] if task else model, dataset, f'{key}.{task}'.rstrip('.'))
            if not self.heads_only:
                _check_categories(dataset, key)
        return datasets


def _check_heads(model: nn.Module, dataset: Dataset, key: str) -> None:
    classes = _classes(dataset)
    # Of a panoptic data set, the boxes have the things alone.
    allowed = len(classes), len(_metainfo(dataset).get('thing_classes', classes))
    for head, wanted in _class_numbers(model):
        if wanted not in allowed:
            raise ConfigError(f'model.{head}.num_classes is {wanted}, but {key}.dataset has {len(classes)} classes: '
                              f'{", ".join(classes[:20])}{", …" if len(classes) > 20 else ""}')


def _check_categories(dataset: Dataset, key: str) -> None:
    for inner in _innermost(dataset):
        # Of the categories in a COCO file, those whose names are among the classes.
        if len(getattr(inner, 'cat_ids', _classes(inner))) < len(_classes(inner)):
            raise ConfigError(f'{key}.dataset: {inner.ann_file} has categories for only {len(inner.cat_ids)} of the '
                              f'{len(_classes(inner))} classes: {", ".join(_classes(inner)[:20])}. Names in '
                              "metainfo=dict(classes=(...)) must be the file's")


def _class_numbers(model: nn.Module) -> Iterator[tuple[str, int]]:
    for name, module in model.named_modules():
        number = getattr(module, 'num_classes', None)
        # MMPretrain's preprocessor needs its number for soft labels alone: else that of the head is enough.
        unused = not getattr(module, 'to_onehot', True)
        # MMSegmentation's segmentors repeat the number of their (last) head.
        if name and type(number) is int and not unused and not _OTHER_CLASSES.intersection(name.split('.')):
            yield name, number


def _innermost(dataset: Dataset) -> Iterator[Dataset]:
    """The data sets in wrappers (RepeatDataset, ConcatDataset), or the data set itself."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        yield dataset
    else:
        for part in inner:
            yield from _innermost(part)


def _metainfo(dataset: Dataset) -> dict:
    return getattr(dataset, 'metainfo', None) or {}  # others than MMEngine's have none


def _classes(dataset: Dataset) -> tuple[str, ...]:
    classes = _metainfo(dataset).get('classes')
    if not classes or isinstance(classes, str):
        raise ConfigError(f'{type(dataset).__name__} has {classes!r} for names of its classes: set '
                          "metainfo=dict(classes=('first', 'second')), and with one class ('first', )")
    return tuple(classes)
