import gc
import importlib.util
import sys
from pathlib import Path

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer


@pytest.fixture(autouse=True)
def no_leftovers():
    """MMEngine's default scope is one for the process, and so is a visualizer of a name, with the folder it writes to.

    Whoever runs a Runner or a tool leaves them behind; MMDetection's and MMSegmentation's configs all have one name.
    """
    _forget()
    yield
    _forget()


@pytest.fixture
def call(monkeypatch):
    """Call a tool, by its path below tools/, in this process, which saves importing torch again."""

    def call(tool, *args):
        _forget()  # as another process would not know
        path = Path(__file__).parents[1] / 'tools' / f'{tool}.py'
        spec = importlib.util.spec_from_file_location(f'tools_{path.stem}', path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.syspath_prepend(path.parent)  # as Python does, for the modules beside it
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, 'argv', [path.stem, *map(str, args)])
        module.main()

    return call


@pytest.fixture
def unformatted(monkeypatch):
    """Formatting the configs that Runners write takes most of the time otherwise."""
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **kwargs: (text, True))


@pytest.fixture(autouse=True, scope='module')
def frozen_garbage():
    """MMEngine collects garbage for every data set, and looks at all objects of all codebases each time: a second.

    What is imported by then is not looked at again.
    """
    gc.collect()
    gc.freeze()


def _forget():
    DefaultScope._instance_dict.clear()
    # Runs are named by the second: one begun within another's would write into that one's log.
    for kind in (MMLogger, Visualizer, *Visualizer.__subclasses__()):
        kind._instance_dict.clear()
