import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick_compiling(quick_compiling):
    """All of these tests train something tiny."""
