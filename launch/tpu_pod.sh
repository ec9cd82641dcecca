#!/usr/bin/env bash
# A stage on a Cloud TPU slice of one or more hosts, by queued resources; resumed after every preemption.
#   bash launch/tpu_pod.sh create                  asks for the slice and waits until it is there
#   bash launch/tpu_pod.sh setup                   copies this checkout (what is committed) and installs it on all hosts
#   bash launch/tpu_pod.sh run STAGE [OPTIONS]     runs `qurating STAGE` on all hosts; their logs come to LOGS/
#   bash launch/tpu_pod.sh follow                  shows the logs of all hosts as they grow
#   bash launch/tpu_pod.sh babysit STAGE [OPTIONS] all of it, again after every loss, until the stage is complete
#   bash launch/tpu_pod.sh delete                  gives the slice back
# OUTPUT is one directory for all hosts and all attempts, so that a new slice resumes: gs://BUCKET/RUN, or one on a disk
# that all hosts mount. DRY_RUN=1 prints the commands and executes none.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"
action=${1:-} && shift $(($# > 0))
: "${TPU_NAME:?set TPU_NAME, the name that the slice gets}" "${ZONE:?set ZONE, for example us-east5-b}"
TPU_TYPE=${TPU_TYPE:-v5litepod-16}      # v4-32, v5litepod-16, v5p-32, v6e-16, ...
CAPACITY=${CAPACITY---spot}             # --spot, --reserved, --guaranteed, or empty: on demand
SETUP=${SETUP:-true}                    # a command for every host, before the installation: a mount
LOGS=${LOGS:-logs/$TPU_NAME}             # on this machine: one file for each host, and the checkout
WAIT_SECONDS=${WAIT_SECONDS:-60}        # between two looks at the queue
MAX_WAITS=${MAX_WAITS:-1440}            # how often to look before giving up: a day
MAX_ATTEMPTS=${MAX_ATTEMPTS:-20}        # how many slices babysit may use up
runtime=$(tpu_runtime "$TPU_TYPE")
queue=(gcloud compute tpus queued-resources)
path="export PATH=\$HOME/qurating/.venv/bin:\$HOME/.local/bin:\$PATH" # for the shells of the hosts
on_all=(gcloud compute tpus tpu-vm ssh "$TPU_NAME" "--zone=$ZONE" --worker=all)

state() { # ACTIVE, SUSPENDED, ...; ABSENT where there is none; UNKNOWN where gcloud itself fails
  [[ ${DRY_RUN:-} == 1 ]] || "${queue[@]}" describe "$TPU_NAME" "--zone=$ZONE" '--format=value(state.state)' 2>/dev/null ||
    { "${queue[@]}" list "--zone=$ZONE" >/dev/null 2>&1 && echo ABSENT; } || echo UNKNOWN
}
create() {
  run "${queue[@]}" create "$TPU_NAME" "--node-id=$TPU_NAME" "--zone=$ZONE" "--accelerator-type=$TPU_TYPE" \
    "--runtime-version=$runtime" ${CAPACITY:+"$CAPACITY"} || return 1
  [[ ${DRY_RUN:-} == 1 ]] && return
  local waits now
  for ((waits = 0; waits < MAX_WAITS; waits++)); do
    now=$(state)
    [[ $now == ACTIVE ]] && return
    [[ $now == FAILED || $now == SUSPEND* ]] && break
    sleep "$WAIT_SECONDS"
  done
  echo "error: $TPU_NAME is $now after $waits waits of $WAIT_SECONDS s" >&2 && return 1
}
setup() { # the images have Python 3.10: uv fetches a newer one
  local archive=$LOGS/checkout.tar.gz unpack='mkdir -p qurating && tar -xzf qurating.tar.gz -C qurating'
  run mkdir -p "$LOGS" && run git "--git-dir=$here/../.git" archive --format=tar.gz "--output=$archive" HEAD &&
    run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:qurating.tar.gz" "--zone=$ZONE" --worker=all &&
    run "${on_all[@]}" "--command=$SETUP && $unpack && python3 -m pip install --quiet --user uv && $path && \
bash qurating/launch/setup.sh tpu,gcs"
}
stage() { # STAGE [OPTIONS]
  run mkdir -p "$LOGS"
  run "${on_all[@]}" "--output-directory=$LOGS" "--command=cd qurating && $path && $(quote qurating "$@" \
    --output "$OUTPUT" --distributed.mode auto)"
}
follow() { run tail -n +1 -F "$LOGS"/*; }
delete() { run "${queue[@]}" delete "$TPU_NAME" "--zone=$ZONE" --force --quiet; }
babysit() { # STAGE [OPTIONS]
  local attempt now ready=
  for ((attempt = 1; attempt <= MAX_ATTEMPTS; attempt++)); do
    now=$(state)
    if [[ $now != ACTIVE && $now != UNKNOWN ]]; then
      ready='' && delete || true # what is left of the one before
      create || continue
    fi
    [[ $ready ]] || setup || { sleep "$WAIT_SECONDS"; continue; } # a new host may not answer at once
    ready=1
    stage "$@" && return
    sleep "$WAIT_SECONDS"; [[ $(state) != ACTIVE ]] || die "the stage failed on a healthy slice; see $LOGS" # a loss shows late
  done
  die "not complete after $MAX_ATTEMPTS attempts; the same command goes on"
}
[[ $action != run && $action != babysit ]] || : "${OUTPUT:?set OUTPUT, for example gs://BUCKET/runs/lm}"
case $action:$# in
  create:0 | setup:0 | follow:0 | delete:0 | babysit:[1-9]*) "$action" "$@" ;;
  run:[1-9]*) stage "$@" ;;
  *) usage "$0" ;;
esac
