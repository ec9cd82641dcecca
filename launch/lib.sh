# shellcheck shell=bash
# What the launch scripts share. With DRY_RUN=1 `run` and `setting` print what they would do, one quoted line each.

quote() { # WORDS: the words as one line that a shell reads back as the same words
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

run() { # COMMAND: executes it
  if [[ ${DRY_RUN:-} == 1 ]]; then quote "$@"; else "$@"; fi
}

setting() { # NAME VALUE: exports the variable, with the value that it has already, or this one
  export "$1=${!1:-$2}"
  if [[ ${DRY_RUN:-} == 1 ]]; then quote export "$1=${!1}"; fi
}

die() { # MESSAGE
  echo "error: $1" >&2
  exit 1
}

usage() { # SCRIPT: the comment at its head, and exit 2
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1" >&2
  exit 2
}

tpu_runtime() { # TPU_TYPE: the image that Google documents for its generation
  case $1 in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die "TPU_TYPE $1: v4-, v5litepod-, v5p- or v6e-, then the size" ;;
  esac
}

# Starts PROCESSES processes on this machine, one JAX program on loopback, and ends with the code of one that failed.
# `compose NUMBER` (of the calling script) gives the words before the stage in `prefix`.
run_processes() { # STAGE [OPTIONS]
  local number pids=() code=0
  for ((number = 0; number < PROCESSES; number++)); do
    compose "$number"
    # shellcheck disable=SC2153,SC2154  # COMMAND and prefix are the calling script's
    local command=(${prefix[@]+"${prefix[@]}"} "$COMMAND" "$@")
    if ((PROCESSES > 1)); then
      command+=(--distributed.mode explicit --distributed.coordinator "127.0.0.1:$PORT"
        --distributed.num_processes "$PROCESSES" --distributed.process_id "$number")
    fi
    if [[ ${DRY_RUN:-} == 1 ]]; then quote "${command[@]}"; continue; fi
    "${command[@]}" &
    pids+=($!)
  done
  trap 'kill -TERM "${pids[@]}" 2>/dev/null' INT TERM # each saves and ends; the loop below waits again
  for pid in "${pids[@]}"; do
    while true; do
      local ended=0
      wait "$pid" || ended=$?
      kill -0 "$pid" 2>/dev/null || break
    done
    ((ended == 0)) || code=$ended
  done
  return "$code"
}
