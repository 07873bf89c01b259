"""Files that are whole or not there."""
import os
import os.path as osp
from pathlib import Path
from typing import Union


def write_atomically(content: bytes, path: Union[str, Path]) -> None:
    """Write a file so that at any moment there is the former one or the new one, also after a power failure.

    Whoever is killed leaves ``<path>.tmp``, which the next to write this path overwrites.
    """
    os.makedirs(osp.dirname(osp.abspath(path)), exist_ok=True)
    temporary = f'{path}.tmp'
    try:
        with open(temporary, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # a full disk, Ctrl-C
        if osp.exists(temporary):
            os.remove(temporary)
        raise
