import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def no_default_scope():
    """MMEngine's default scope is one for the process, and whoever runs a Runner or a tool leaves one behind."""
    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()
