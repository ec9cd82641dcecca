import jax
import pytest

from qurating_jax.parallel import compilation


@pytest.fixture
def cache_of_nothing(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(("backend", "kept"), [("cpu", False), ("gpu", True), ("tpu", True)])
def test_accelerators_keep_what_is_compiled(monkeypatch, tmp_path, cache_of_nothing, backend, kept):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    compilation.keep_compilations()
    assert jax.config.jax_compilation_cache_dir == (str(tmp_path / "qurating_jax" / "jax") if kept else None)


def test_a_place_that_is_named_stays(monkeypatch, cache_of_nothing):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    compilation.keep_compilations()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"
