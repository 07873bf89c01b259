"""Files that are whole or not there."""
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(content: bytes | Callable[[BinaryIO], object], path: str | Path) -> None:
    """Write a file so that at any moment there is the former one or the new one, also after a power failure.

    Of several processes that write one path at once, each writes a whole file, and the last one stays. Who is killed
    leaves ``<path>.<8 letters>.tmp``, which may be deleted.

    Args:
        content: The bytes, or a function that writes them to an open file, such as ``partial(torch.save, state)``.
        path: Of the file. Folders that are missing are made.

    Raises:
        OSError: As of ``open`` and ``write``. Then, as after any exception, the former file is as it was and nothing
            else is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex[:8]}.tmp')
    try:
        with open(temporary, 'xb') as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # a full disk, Ctrl-C
        temporary.unlink(missing_ok=True)
        raise
