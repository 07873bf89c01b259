"""CUB-200-2011, NABirds, Oxford Flowers, Stanford Dogs and Stanford Cars with VPT's or the official splits."""
import json
import os.path as osp
from pathlib import Path

from mmpretrain.datasets import BaseDataset

from mmprovpt.errors import ConfigError
from mmprovpt.registry import DATASETS
from mmprovpt.shipped import shipped

from .fgvc_archives import find_split
from .fgvc_tasks import FGVC_ADVICE, FGVC_SPLITS, find_fgvc_task
from .image_lists import check_samples, raise_problems

_JSON_SPLITS = ('train', 'val', 'test')


@DATASETS.register_module()
class FGVC(BaseDataset):
    """One split of a fine-grained data set, as VPT uses it.

    With train.json, val.json and test.json in the data set's folder, each an object `{path of an image: class}`, these
    are the splits; paths are relative to ``FGVCTask.images``. Without them the official lists in the archive give
    'trainval' and 'test' (and 'train' and 'val' of flowers), the same images as VPT's train and val together and test.
    Class ids, sorted, become labels from 0, the same in all splits.

    Args:
        data_root: Holds a folder for each data set (``FGVCTask.folder``).
        task: 'cub', 'nabirds', 'flowers', 'dogs' or 'cars'.
        split: 'train', 'val', 'trainval' (train and val) or 'test'.
        **kwargs: Of mmpretrain's BaseDataset (``pipeline``, ``metainfo``, ``classes``, ``lazy_init``, …).

    Raises:
        ConfigError: An unknown task or split; or, when the split is loaded, lists that are missing or corrupt, and all
            images that are missing, empty or truncated, and numbers of images and classes that are not the data set's.
    """

    def __init__(self, data_root: str = 'data/fgvc', task: str = '', split: str = 'trainval', **kwargs):
        if split not in FGVC_SPLITS:
            raise ConfigError(f'FGVC has no split {split!r}; known: {", ".join(FGVC_SPLITS)}')
        entry = find_fgvc_task(task)
        self.task, self.split, self.num_classes = task, split, entry.num_classes
        super().__init__(ann_file='', data_root=osp.join(osp.expanduser(data_root), entry.folder), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Dicts with ``img_path`` and ``gt_label``, in the order of the lists."""
        entry = find_fgvc_task(self.task)
        folder = Path(self.data_root)
        if not folder.is_dir():
            raise ConfigError(f'no such directory: {folder.absolute()}\nwhat to do: {FGVC_ADVICE}')
        if any((folder / f'{split}.json').exists() for split in _JSON_SPLITS):
            samples, ids = read_json_splits(folder, entry.images, self.split)
        else:
            samples, ids = find_split(self.task, folder, self.split)
        problems = []
        if len(ids) != entry.num_classes:
            problems.append(f'the lists name {len(ids)} classes; {self.task} has {entry.num_classes}')
        expected = dict(trainval=entry.num_trainval, test=entry.num_test).get(self.split)
        if expected not in (None, len(samples)):
            problems.append(f'{len(samples)} images are listed; {self.task} has {expected}')
        labels = {class_id: label for label, class_id in enumerate(ids)}
        samples = [(osp.join(self.data_root, path), labels[class_id]) for path, class_id in samples]
        problems += check_samples(samples, len(ids))
        raise_problems(problems, f'{self.data_root}, {self.split}', FGVC_ADVICE)
        return [dict(img_path=path, gt_label=label) for path, label in samples]


def read_json_splits(folder: Path, images: str, split: str) -> tuple[list[tuple[str, int]], list[int]]:
    """A split of VPT's JSON files.

    Args:
        folder: Of train.json, val.json and test.json; all three are read, since one may lack a class.
        images: Folder that the paths in them are relative to.
        split: 'train', 'val', 'trainval' or 'test'.

    Returns:
        Path relative to ``folder`` and class id of each image, and the sorted ids of all classes.

    Raises:
        ConfigError: A file is missing or corrupt, or a class id is no integer.
    """
    contents = {}
    for name in _JSON_SPLITS:
        path = folder / f'{name}.json'
        try:
            content = json.loads(path.read_text(encoding='utf-8-sig'))
            contents[name] = [(osp.join(images, image), int(class_id)) for image, class_id in content.items()]
        except FileNotFoundError:
            raise ConfigError(f"no such file: {path.absolute()}\nwhat to do: put VPT's train.json, val.json and "
                              f'test.json there ({shipped("docs/how-to/datasets.md")}); without any of them the '
                              'official splits are used') from None
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f'{path.absolute()} is corrupt, or is no object of image paths and integer classes '
                              f'({error})') from None
    ids = sorted({class_id for samples in contents.values() for _, class_id in samples})
    names = ('train', 'val') if split == 'trainval' else (split,)
    return [sample for name in names for sample in contents[name]], ids
