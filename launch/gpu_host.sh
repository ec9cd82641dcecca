#!/usr/bin/env bash
# A stage on the NVIDIA GPUs of this machine: `bash launch/gpu_host.sh STAGE [OPTIONS]`.
#
# One process drives all GPUs. PROCESSES=n starts n that work as one JAX program, each with an equal share of GPUS, as
# on a SLURM node. DRY_RUN=1 prints the commands and executes none.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"
[[ $# -gt 0 ]] || usage "$0"

PROCESSES=${PROCESSES:-1}
GPUS=${GPUS:-}                          # numbers, 0,1,2,3; empty: all (PROCESSES > 1 needs them)
PORT=${PORT:-8476}                      # of process 0, on loopback
COMMAND=${COMMAND:-qurating}

IFS=, read -r -a gpus <<<"$GPUS"
if ((PROCESSES > 1)) && ((${#gpus[@]} == 0 || ${#gpus[@]} % PROCESSES != 0)); then
  die "GPUS='$GPUS' cannot be shared by $PROCESSES processes; name a multiple of them: GPUS=0,1,2,3"
fi

setting JAX_COMPILATION_CACHE_DIR "$PWD/.cache/jax"
# JAX takes this share of a GPU's memory at its start; its default of 0.75 leaves a quarter unused.
setting XLA_PYTHON_CLIENT_MEM_FRACTION 0.92
# Communication beside computation: off by default, and without effect on one GPU.
setting XLA_FLAGS --xla_gpu_enable_latency_hiding_scheduler=true
if [[ $COMMAND == qurating && ${DRY_RUN:-} != 1 ]]; then source "$here/setup.sh" cuda; fi

compose() { # NUMBER: shows process NUMBER its GPUs alone
  local share=$((${#gpus[@]} / PROCESSES)) mine
  printf -v mine '%s,' "${gpus[@]:$1*share:share}"
  prefix=()
  if [[ $GPUS ]]; then prefix=(env "CUDA_VISIBLE_DEVICES=${mine%,}"); fi
}

run_processes "$@"
