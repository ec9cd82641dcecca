"""Compiled programs kept on disk, so that a worker that starts again does not compile again."""

import logging
import os
from pathlib import Path

import jax

log = logging.getLogger(__name__)


def keep_compilations() -> None:
    """Turns on JAX's persistent compilation cache on accelerators, under the user's cache directory.

    `JAX_COMPILATION_CACHE_DIR` names another directory, and turns it on for a CPU too. It is not on there by default:
    programs for one CPU may not run on another that shares the home directory, and JAX does not tell them apart.
    """
    if jax.config.jax_compilation_cache_dir or jax.default_backend() == "cpu":  # type: ignore[attr-defined]
        return
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = str(Path(base) / "qurating_jax" / "jax")
    jax.config.update("jax_compilation_cache_dir", directory)
    log.info("compiled programs are kept in %s (JAX_COMPILATION_CACHE_DIR names another place)", directory)
