"""Classes of an image folder that do not fit, before anything is trained."""
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mmprovpt.registry import HOOKS
from mmprovpt.utils.preflight import ConfigError

from .find import unwrapped


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Compare the classes that data sets find with the head's number, and those of validation with those of training.

    A data set that reads its classes off folders numbers them by itself: with another folder in validation the same
    number would mean another class. MMPretrain's ClassNumCheckHook looks at numbers only, and at validation only when
    it starts.

    Raises:
        ConfigError: Before training (or testing), if they differ.
    """

    def before_train(self, runner: Runner) -> None:
        """Check training's data set and validation's."""
        train = runner.train_dataloader.dataset
        _check_number(runner, train, 'train_dataloader')
        if runner.val_loop is None:
            return
        val = runner.val_dataloader.dataset
        _check_number(runner, val, 'val_dataloader')
        if _classes(train) != _classes(val):
            differing = sorted(set(_classes(train)) ^ set(_classes(val))) or 'their order'
            raise ConfigError(f'train_dataloader and val_dataloader have other classes, they differ in {differing}: '
                              'both need a folder for each class')

    def before_test(self, runner: Runner) -> None:
        """Check the data set of the test."""
        _check_number(runner, runner.test_dataloader.dataset, 'test_dataloader')


def _check_number(runner: Runner, dataset: Dataset, key: str) -> None:
    wanted, found = unwrapped(runner.model).head.num_classes, len(_classes(dataset))
    if wanted != found:
        raise ConfigError(f'model.head.num_classes is {wanted}, but {key}.dataset has {found} classes: '
                          f'{", ".join(_classes(dataset)[:20])}{", …" if found > 20 else ""}')


def _classes(dataset: Dataset) -> tuple:
    classes = dataset.metainfo.get('classes')
    if not classes:
        raise ConfigError(f'{type(dataset).__name__} knows no names of its classes: set metainfo=dict(classes=[...])')
    return tuple(classes)
