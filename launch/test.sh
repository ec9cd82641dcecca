#!/usr/bin/env bash
# Lint, types, every test. On a fresh machine it sets itself up; extra arguments go to pytest: `-n 0` for one process.
# Two processes: many tests wait for processes of their own, and one that has compiled for hundreds of tests holds 5 GB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh dev

export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}

ruff check .
ruff format --check .
mypy
python -m pytest -n 2 --dist loadfile "$@"
