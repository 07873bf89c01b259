"""Modules of benchmarks/ for tests."""
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'


@contextmanager
def modules_of(folder: str, *names: str) -> Iterator[dict[str, ModuleType]]:
    """Modules that stand beside each other in a folder, by their names, which another folder may have, too.

    So Python forgets them afterwards.
    """
    path = str(BENCHMARKS / folder)
    sys.path.insert(0, path)
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(path)
        for name, module in list(sys.modules.items()):
            if str(Path(getattr(module, '__file__', None) or '').parent) == path:
                del sys.modules[name]
