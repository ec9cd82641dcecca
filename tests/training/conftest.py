import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick_compiling():
    """Most of the time of these tests would be XLA optimising programs that run three times."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
