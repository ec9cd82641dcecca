"""Before jax is imported: eight fake CPU devices, so that every mesh of the suite exists on any machine."""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis
import pytest

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("QURATING_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def _strict_jax():
    import jax

    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def real_data():
    """The folder of real data; tests that use it are skipped where it is absent (a user's machine)."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA} (QURATING_TEST_DATA names the folder)")
    return REAL_DATA
