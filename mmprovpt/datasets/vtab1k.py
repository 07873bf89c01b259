"""VTAB-1k in the layout that the field shares, for mmpretrain."""
import os
import os.path as osp
from typing import List, Optional

from mmpretrain.datasets import BaseDataset

from mmprovpt.registry import DATASETS

from .vtab1k_tasks import SPLITS, VTAB1K

_SHOWN = 20  # faults that an error names
_ENDS = {'.jpg': b'\xff\xd9', '.jpeg': b'\xff\xd9', '.png': b'IEND\xaeB`\x82'}  # of a file that is complete


@DATASETS.register_module()
class VTAB1k(BaseDataset):
    """One split of one task, with mmpretrain's data samples::

        data_root/task/images/...                                                     (any folders below)
        data_root/task/{train800,val200,train800val200,test}.txt      lines "path label", path from data_root/task

    Every file is looked at when the data set is built: one that is missing or truncated raises, as does a wrong number
    of images.

    Args:
        task (str): A key of ``mmprovpt.datasets.vtab1k_tasks.VTAB1K``; or, with ``num_classes``, any folder.
        split (str): 'train800', 'val200', 'train800val200' or 'test'.
        data_root (str): Folder of the tasks.
        num_classes (int, optional): Of a task that is none of VTAB's. Its test split may have any size.
        **kwargs: Of ``mmpretrain.datasets.BaseDataset``, such as ``pipeline``.

    Raises:
        ValueError: Task or split is unknown, or ``num_classes`` is not that of the task; or, when the data are read,
            files, labels or counts are wrong. It lists what is wrong.
    """

    def __init__(self, task: str, split: str, data_root: str = 'data/vtab-1k', num_classes: Optional[int] = None,
                 metainfo: Optional[dict] = None, **kwargs) -> None:
        if split not in SPLITS:
            raise ValueError(f'unknown split {split!r}; known are {", ".join(SPLITS)}')
        if num_classes is None and task not in VTAB1K:
            raise ValueError(f'unknown task {task!r}; known are {", ".join(VTAB1K)}. (Another folder of this layout '
                             'needs num_classes.)')
        known = VTAB1K.get(task)
        if known and num_classes not in (None, known.num_classes):
            raise ValueError(f'{task} has {known.num_classes} classes, but num_classes={num_classes}')
        self.task = task
        self.split = split
        self.num_images = known.num_test if known and split == 'test' else SPLITS[split]
        count = known.num_classes if known else num_classes
        metainfo = dict(dict(classes=tuple(map(str, range(count)))), **(metainfo or {}))
        super().__init__(ann_file=f'{split}.txt', data_root=osp.join(data_root, task), metainfo=metainfo, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Read the list and look at each file.

        Returns:
            list[dict]: ``img_path`` and ``gt_label``.
        """
        if not osp.isfile(self.ann_file):
            raise FileNotFoundError(f'no such file: {self.ann_file}. docs/datasets.md says how to get {self.task}')
        images, faults = [], []
        with open(self.ann_file, encoding='utf-8') as file:
            for number, line in enumerate(file.read().splitlines(), 1):
                path, _, label = line.strip().rpartition(' ')
                path = osp.join(self.data_root, path)
                images.append(dict(img_path=path, gt_label=int(label) if label.isdecimal() else -1))
                fault = self._fault(line, images[-1])
                faults += [f'line {number}: {fault}'] * bool(fault)
        if self.num_images not in (None, len(images)):
            faults.append(f'{len(images)} images, but there must be {self.num_images}')
        if faults or not images:
            more = f'\n  and {len(faults) - _SHOWN} more' if len(faults) > _SHOWN else ''
            raise ValueError(f'{self.ann_file}: {len(faults) or "no image"} faults\n  ' + '\n  '.join(faults[:_SHOWN])
                             + more)
        return images

    def _fault(self, line: str, image: dict) -> Optional[str]:
        """What is wrong with a line of the list, or with its file."""
        if not 0 <= image['gt_label'] < len(self.CLASSES):
            return f'{line!r} is no path and a label below {len(self.CLASSES)}'
        path = image['img_path']
        try:
            with open(path, 'rb') as file:
                end = _ENDS.get(osp.splitext(path)[1].lower(), b'')
                file.seek(0, os.SEEK_END)
                if not file.tell():
                    return f'{path} is empty'
                file.seek(-min(len(end) + 16, file.tell()), os.SEEK_END)  # some cameras pad behind the end
                return None if end in file.read() else f'{path} is truncated'
        except OSError as error:
            return f'{path}: {error.strerror}'
