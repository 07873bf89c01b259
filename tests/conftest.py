import pytest
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


def _forget():
    DefaultScope._instance_dict.clear()
    for kind in (Visualizer, *Visualizer.__subclasses__()):
        kind._instance_dict.clear()
