"""What comes with the package beside its code: configs, tools, documents and lists of requirements."""
import difflib
from pathlib import Path

from mmprovpt.errors import ConfigError

_PACKAGE = Path(__file__).parent


def shipped(path: str) -> str:
    """Where a file lies that comes with the package: inside it once it is installed, else in the clone around it.

    Args:
        path: From the root of the repository, such as ``'docs/how-to/datasets.md'``.

    Returns:
        The absolute path. That there is such a file is not checked.
    """
    installed = _PACKAGE / '.mim'  # MIM's name for it
    return str((installed if installed.is_dir() else _PACKAGE.parent) / path)


def configs() -> list[str]:
    """The names that :func:`config` knows, in order."""
    root = Path(shipped('configs'))
    return sorted(path.relative_to(root).as_posix() for path in root.rglob('*.py'))


def config(name: str) -> str:
    """The path of a config that comes with the package.

    ``Config.fromfile(mmprovpt.config('vtab1k/vit_b_provpt.py'))`` reads one. A config of yours inherits one by
    ``_base_ = __import__('mmprovpt').config('vtab1k/vit_b_provpt.py')``.

    Args:
        name: Of the file, below ``configs/``.

    Returns:
        The absolute path.

    Raises:
        ConfigError: There is none of that name; says which are near.
    """
    path = Path(shipped('configs'), name)
    known = configs()
    if name in known:
        return str(path)
    last = {each.rpartition('/')[2]: each for each in known}
    near = difflib.get_close_matches(name, known, 3) or [
        last[each] for each in difflib.get_close_matches(name.rpartition('/')[2], last, 3)]
    advice = f'did you mean {" or ".join(near)}?' if near else '`mmprovpt config` lists all'
    raise ConfigError(f'mmprovpt has no config {name!r}: {advice}')
