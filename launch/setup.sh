#!/usr/bin/env bash
# Makes .venv in the checkout and installs the project into it. Argument: `base`, or an extra (for example `dev`).
# Needs Python 3.11 or newer; PYTHON names another interpreter. Uses uv where it is there (which can fetch a Python too),
# else venv and pip.
# Does nothing where the environment already fits pyproject.toml. The other scripts source this file.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extra=${1:?usage: source launch/setup.sh base|EXTRA}
stamp=$root/.venv/.installed-$extra

find_python() {
  local name
  for name in ${PYTHON:-} python3 python3.12 python3.11 python3.13 python; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  if command -v uv >/dev/null; then
    echo 3.12 # uv fetches it
    return
  fi
  echo "error: no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3 bash $0" >&2
  exit 1
}

if [[ ! $stamp -nt $root/pyproject.toml ]]; then
  echo "setting up $root/.venv (once; packages only)" >&2
  python=$(find_python)
  target=$root
  [[ $extra == base ]] || target="${root}[$extra]"
  if command -v uv >/dev/null; then
    [[ -x $root/.venv/bin/python ]] || uv venv --quiet --python "$python" "$root/.venv"
    uv pip install --quiet --python "$root/.venv/bin/python" --editable "$target"
  else
    [[ -x $root/.venv/bin/python ]] || "$python" -m venv "$root/.venv"
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$target"
  fi
  touch "$stamp"
fi
export PATH="$root/.venv/bin:$PATH"
