import jax
import pytest


@pytest.fixture
def optax_promotion():
    """Optax itself multiplies floats by integers; the suite's strict promotion is for our own code."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module", autouse=True)
def _quick_compiling():
    """Most of the time of these tests would be XLA optimising programs that run three times."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
