"""Before jax is imported: eight fake CPU devices, so that every mesh of the suite exists on any machine."""

import os
import signal
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ and "JAX_COMPILATION_CACHE_DIR" in os.environ:
    # JAX does not write its entries at once: another worker would read half of one.
    os.environ["JAX_COMPILATION_CACHE_DIR"] += "/" + os.environ["PYTEST_XDIST_WORKER"]

import hypothesis
import pytest

# A shell starts what runs in its background with SIGINT ignored, and so would be the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("QURATING_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def _strict_jax():
    import jax

    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session", autouse=True)
def _programs_of_processes(_strict_jax, tmp_path_factory):
    """What a process of a test compiles, the ones after it load. JAX here has read its own settings already.

    Not the cache of this process: one that is killed may leave half a file, and it is gone with the session.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture(scope="module")
def quick_compiling():
    """For tests whose time would mostly be XLA optimising programs that run a few times."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def real_data():
    """The folder of real data; tests that use it are skipped where it is absent (a user's machine)."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA} (QURATING_TEST_DATA names the folder)")
    return REAL_DATA
