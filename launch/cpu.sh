#!/usr/bin/env bash
# A stage on the CPUs of this machine: `bash launch/cpu.sh STAGE [OPTIONS]`.
#
# PROCESSES=n runs it as n processes that work as one JAX program (gloo over loopback), as on a cluster: to rehearse
# one, or for a machine with several sockets. When one fails, the others end too. DRY_RUN=1 prints the commands.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"
[[ $# -gt 0 ]] || usage "$0"

PROCESSES=${PROCESSES:-1}
CORES=${CORES:-}                        # CPU cores for each process; empty: all that there are
PORT=${PORT:-8476}                      # of process 0, on loopback
COMMAND=${COMMAND:-qurating}

setting JAX_PLATFORMS cpu
setting JAX_COMPILATION_CACHE_DIR "$PWD/.cache/jax"
# XLA takes and returns its temporary memory at every step; huge pages spare most of the page faults.
setting GLIBC_TUNABLES glibc.malloc.hugetlb=1
if [[ $COMMAND == qurating && ${DRY_RUN:-} != 1 ]]; then source "$here/setup.sh" base; fi

compose() { # NUMBER: pins process NUMBER to its cores; XLA makes as many threads as it sees cores
  prefix=()
  if [[ $CORES ]]; then prefix=(taskset --cpu-list "$(($1 * CORES))-$((($1 + 1) * CORES - 1))"); fi
}

run_processes "$@"
