"""The rows and columns of the matrix: a test that asks for ``case`` or ``kind`` runs on each."""
import pytest
from matrix import CASES, KINDS


@pytest.fixture(params=CASES)
def case(request):
    """A backbone."""
    return CASES[request.param]


@pytest.fixture(params=KINDS)
def kind(request):
    """A form of prompts."""
    return KINDS[request.param]
