"""The official splits of the fine-grained data sets, as their archives have them."""
from collections.abc import Callable
from pathlib import Path

from mmprovpt.errors import ConfigError
from mmprovpt.shipped import shipped

from .fgvc_tasks import FGVC_ADVICE

# Path relative to the data set's folder, class id as the archive has it.
Samples = list[tuple[str, int]]


def read_archive(task: str, folder: Path) -> dict[str, Samples]:
    """Read a data set's own lists.

    Args:
        task: 'cub', 'nabirds', 'flowers', 'dogs' or 'cars'.
        folder: Of the unpacked archive.

    Returns:
        'trainval' and 'test'; of flowers, whose archive divides the two, 'train' and 'val' too.

    Raises:
        ConfigError: A list is not there or cannot be read, or scipy, which reads .mat files, is missing.
    """
    try:
        return _READERS[task](folder)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f'the lists of {task} in {folder.absolute()} are corrupt or of another kind '
                          f'({type(error).__name__}: {error})') from error


def _find(folder: Path, *places: str) -> Path:
    """The first of several places where there is a file."""
    for place in places:
        if (folder / place).is_file():
            return folder / place
    raise ConfigError(f'no {" or ".join(places)} in {folder.absolute()}\nwhat to do: {FGVC_ADVICE}')


def _load_mat(path: Path) -> dict:
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError:
        raise ConfigError(f'{path} can only be read with scipy: pip install scipy') from None
    try:
        return loadmat(path, squeeze_me=True)
    except Exception as error:  # ValueError, OSError, zlib.error, MatReadError, … according to where it ends
        raise ConfigError(f'{path.absolute()} is truncated, or no .mat file ({error})\nwhat to do: '
                          f'{FGVC_ADVICE}') from None


def _read_birds(folder: Path) -> dict[str, Samples]:
    """CUB and NABirds: three lists of `<image id> <value>`."""
    images, labels, is_train = (
        dict(line.split(None, 1) for line in _find(folder, name).read_text(encoding='utf-8-sig').splitlines()
             if line.strip())
        for name in ('images.txt', 'image_class_labels.txt', 'train_test_split.txt'))
    if not images.keys() == labels.keys() == is_train.keys():
        raise ConfigError(f'{folder.absolute()}: images.txt, image_class_labels.txt and train_test_split.txt are not '
                          'of the same images')
    splits = dict(trainval=[], test=[])
    for key, path in images.items():
        splits['trainval' if int(is_train[key]) else 'test'].append((f'images/{path.strip()}', int(labels[key])))
    return splits


def _read_flowers(folder: Path) -> dict[str, Samples]:
    labels = _load_mat(_find(folder, 'imagelabels.mat'))['labels']
    ids = _load_mat(_find(folder, 'setid.mat'))
    splits = {split: [(f'jpg/image_{number:05d}.jpg', int(labels[number - 1])) for number in ids[name]]
              for split, name in (('train', 'trnid'), ('val', 'valid'), ('test', 'tstid'))}
    return dict(splits, trainval=splits['train'] + splits['val'])


def _read_dogs(folder: Path) -> dict[str, Samples]:
    splits = {}
    for split, name in (('trainval', 'train_list.mat'), ('test', 'test_list.mat')):
        content = _load_mat(_find(folder, name, f'lists/{name}'))
        splits[split] = [(f'Images/{path}', int(label)) for path, label in zip(content['file_list'], content['labels'])]
    return splits


def _read_cars(folder: Path) -> dict[str, Samples]:
    """One list for all (car_ims/), or one for each of cars_train/ and cars_test/."""
    if (folder / 'cars_annos.mat').is_file():
        splits = dict(trainval=[], test=[])
        for row in _load_mat(folder / 'cars_annos.mat')['annotations']:
            splits['test' if row['test'] else 'trainval'].append((str(row['relative_im_path']), int(row['class'])))
        return splits
    train = _find(folder, 'devkit/cars_train_annos.mat', 'cars_train_annos.mat', 'cars_annos.mat')
    # The devkit's own list of test images has no classes; this one is distributed beside it.
    name = 'cars_test_annos_withlabels.mat'
    test = _find(folder, name, f'devkit/{name}')
    return {split: [(f'{images}/{row["fname"]}', int(row['class'])) for row in _load_mat(path)['annotations']]
            for split, path, images in (('trainval', train, 'cars_train'), ('test', test, 'cars_test'))}


_READERS: dict[str, Callable[[Path], dict[str, Samples]]] = dict(
    cub=_read_birds, nabirds=_read_birds, flowers=_read_flowers, dogs=_read_dogs, cars=_read_cars)


def find_split(task: str, folder: Path, split: str) -> tuple[Samples, list[int]]:
    """Images of a split of the archive and the ids of all classes.

    Raises:
        ConfigError: As ``read_archive``; or the archive does not divide the training images.
    """
    splits = read_archive(task, folder)
    if split not in splits:
        raise ConfigError(
            f'split = {split!r}: there is no {split}.json in {folder.absolute()}, and the split of the training images '
            f"into train and val is VPT's own, which cannot be derived from the archive\nwhat to do: get train.json, "
            f'val.json and test.json from VPT ({shipped("docs/how-to/datasets.md")}), or use the splits trainval '
            'and test')
    return splits[split], sorted({label for samples in splits.values() for _, label in samples})
