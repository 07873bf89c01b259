"""The six tasks of the miniature of VTAB-1k. Needs NumPy alone, so configs and tools can import it.

tools/dataset_converters/miniature_vtab.py draws and writes their images. A class of the last three tasks is a range of
what is drawn: where an article lies, how far it is turned, how large it is.
"""
from typing import NamedTuple

import numpy as np

from mmprovpt.errors import ConfigError

SIZE = 56  # px, of every image
LOCATED = 20  # px, side of an article that is to be located
LOCATION_EDGES = np.ceil(np.linspace(0, SIZE - LOCATED + 1, 9)).astype(int)  # px, from the left to the article
ORIENTATION_EDGES = np.linspace(0, 360, 9)  # degrees, counter-clockwise
SIZE_EDGES = np.arange(12, 53, 5)  # px, side of the article's square


class Task(NamedTuple):
    """One task of the miniature.

    Attributes:
        group: As VTAB groups its tasks.
        classes: Name of each class, in the order of their numbers.
    """
    group: str
    classes: tuple[str, ...]


def _bins(unit: str, edges) -> tuple[str, ...]:
    return tuple(f'{low:g}-{high:g} {unit}' for low, high in zip(edges, edges[1:]))


TASKS: dict[str, Task] = dict(
    category=Task('Natural', ('t-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag',
                              'ankle boot')),
    digits=Task('Natural', tuple('0123456789')),
    count=Task('Structured', tuple('123456')),
    location=Task('Structured', _bins('px', LOCATION_EDGES)),
    orientation=Task('Structured', _bins('degrees', ORIENTATION_EDGES)),
    size=Task('Structured', _bins('px', SIZE_EDGES)))


def find_miniature_task(task: str) -> Task:
    """The entry of a task.

    Raises:
        ConfigError: An unknown task; the known ones are listed.
    """
    if task not in TASKS:
        raise ConfigError(f'the miniature of VTAB has no task {task!r}; known: {", ".join(TASKS)}')
    return TASKS[task]
