"""VTAB-1k in the layout that NOAH, RepAdapter, ConvPass and others share."""
import os.path as osp

from mmpretrain.datasets import BaseDataset

from mmprovpt.errors import ConfigError
from mmprovpt.registry import DATASETS

from .image_lists import check_samples, raise_problems
from .vtab1k_tasks import ADVICE, BY_NAME, SPLITS, find_num_classes


@DATASETS.register_module()
class VTAB1k(BaseDataset):
    """One split of one task of VTAB-1k.

    ::

        <data_root>/<task>/
        ├── images/…
        ├── train800.txt          lines `<path relative to the task's folder> <label>`
        ├── val200.txt
        ├── train800val200.txt
        └── test.txt

    Args:
        data_root: The folder of all tasks.
        task: Name of the task's folder: one of the 19 in ``vtab1k_tasks``, or any other if ``num_classes`` is given.
        split: 'train800', 'val200', 'train800val200' or 'test'.
        num_classes: Of a task that is not one of the 19. Its splits may be of any size.
        **kwargs: Of mmpretrain's BaseDataset (``pipeline``, ``metainfo``, ``classes``, ``lazy_init``, …).

    Raises:
        ConfigError: An unknown task or split; or, when the split is loaded, lines that cannot be read, files that are
            missing, empty or truncated, labels out of range and a number of images that is not the benchmark's, all
            of them in one message.
    """

    def __init__(self, data_root: str = 'data/vtab-1k', task: str = '', split: str = 'train800val200',
                 num_classes: int | None = None, **kwargs):
        if split not in SPLITS:
            raise ConfigError(f'VTAB1k has no split {split!r}; known: {", ".join(SPLITS)}')
        self.task, self.split = task, split
        self.num_classes = find_num_classes(task, num_classes)
        super().__init__(ann_file=f'{split}.txt', data_root=osp.join(osp.expanduser(data_root), task), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Dicts with ``img_path`` and ``gt_label``, in the order of the list."""
        samples, problems = read_list(self.ann_file, self.data_root)
        expected = self._expected_size()
        if expected is None and not samples and not problems:
            problems.append('no images are listed')
        elif expected is not None and len(samples) + len(problems) != expected:
            problems.append(f'{len(samples) + len(problems)} images are listed; the task has {expected}')
        problems += check_samples(samples, self.num_classes)
        raise_problems(problems, self.ann_file, ADVICE)
        return [dict(img_path=path, gt_label=label) for path, label in samples]

    def _expected_size(self) -> int | None:
        if self.task not in BY_NAME:
            return None
        return SPLITS[self.split] or BY_NAME[self.task].num_test


def read_list(ann_file: str, folder: str) -> tuple[list[tuple[str, int]], list[str]]:
    """Read lines of `<path> <label>`; empty ones do not count.

    Args:
        ann_file: The list.
        folder: What its paths are relative to.

    Returns:
        Joined paths and labels, and a line for each line that cannot be read.

    Raises:
        ConfigError: There is no such file, or it is not in UTF-8.
    """
    try:
        with open(ann_file, encoding='utf-8-sig') as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        raise ConfigError(f'no such file: {osp.abspath(ann_file)}\nwhat to do: {ADVICE}') from None
    except UnicodeDecodeError as error:
        raise ConfigError(f'{osp.abspath(ann_file)} is not in UTF-8 ({error})\nwhat to do: save it as UTF-8') from None
    samples, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            path, label = line.rsplit(None, 1)
            samples.append((osp.join(folder, path), int(label)))
        except ValueError:
            problems.append(f'line {number}: expected `<path> <label>`, found {line!r}')
    return samples, problems
