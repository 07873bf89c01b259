"""The five fine-grained tasks of VPT. Needs no mmpretrain, so configs and tools can import it."""
from typing import NamedTuple

from mmprovpt.errors import ConfigError
from mmprovpt.shipped import shipped


class FGVCTask(NamedTuple):
    """One fine-grained task.

    Attributes:
        title: As tables print it.
        folder: Below data_root, as VPT names it.
        images: Below the folder: what the paths in VPT's JSON splits are relative to.
        num_classes: Labels are in [0, num_classes).
        num_trainval, num_test: Images of the official splits (VPT, arXiv:2203.12119, Table 8).
    """
    title: str
    folder: str
    images: str
    num_classes: int
    num_trainval: int
    num_test: int


FGVC_TASKS: dict[str, FGVCTask] = dict(
    cub=FGVCTask('CUB-200-2011', 'CUB_200_2011', 'images', 200, 5994, 5794),
    nabirds=FGVCTask('NABirds', 'nabirds', 'images', 555, 23929, 24633),
    flowers=FGVCTask('Oxford Flowers', 'OxfordFlower', '', 102, 2040, 6149),
    dogs=FGVCTask('Stanford Dogs', 'Stanford-dogs', 'Images', 120, 12000, 8580),
    cars=FGVCTask('Stanford Cars', 'Stanford-cars', '', 196, 8144, 8041),
)
FGVC_SPLITS = ('train', 'val', 'trainval', 'test')
FGVC_ADVICE = (f'put the official archive there as {shipped("docs/how-to/datasets.md")} describes, or override '
               'data_root')


def find_fgvc_task(task: str) -> FGVCTask:
    """The entry of a task.

    Raises:
        ConfigError: An unknown task; the known ones are listed.
    """
    if task not in FGVC_TASKS:
        raise ConfigError(f'FGVC has no task {task!r}; known: {", ".join(FGVC_TASKS)}')
    return FGVC_TASKS[task]
