"""Files that are whole or not there, and are not written over what is read."""
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mmprovpt.errors import ConfigError


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


def refuse_overwriting(out: str | Path, *inputs: str | Path | None) -> None:
    """Check that what a tool is to write is none of the files that it reads, by whatever name or link.

    Args:
        out: Where it writes; need not exist.
        inputs: What it reads; None is passed over.

    Raises:
        ConfigError: ``out`` is one of them.
    """
    for path in inputs:
        if path is None:
            continue
        linked = os.path.exists(out) and os.path.exists(path) and os.path.samefile(out, path)
        if linked or os.path.realpath(out) == os.path.realpath(path):
            raise ConfigError(f'{out} is what is read, and would be overwritten: give another name to what is written')


@contextmanager
def removing_empty(folder: str | Path) -> Iterator[None]:
    """Afterwards, remove ``folder`` and those above it that were not there before, if they are empty."""
    folder = Path(folder).absolute()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        remove_empty(missing)


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, inner ones first, up to the first that holds something or is not there."""
    try:
        for folder in folders:
            folder.rmdir()
    except OSError:
        pass
