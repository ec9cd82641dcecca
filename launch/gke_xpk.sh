#!/usr/bin/env bash
# A stage on TPU slices of a GKE cluster, by xpk (`pip install xpk`; it needs gcloud, kubectl and docker).
#
#   bash launch/gke_xpk.sh cluster                 makes the cluster, once
#   bash launch/gke_xpk.sh image                   builds and pushes the image of this checkout
#   bash launch/gke_xpk.sh run STAGE [OPTIONS]     runs `qurating STAGE` on all hosts; restarted pods resume
#   bash launch/gke_xpk.sh follow                  shows the logs of all pods as they grow
#   bash launch/gke_xpk.sh delete                  ends the workload
#   bash launch/gke_xpk.sh delete-cluster          gives the machines back
#
# RUN_ID names the workload. OUTPUT is one directory for all hosts: gs://BUCKET/RUN, or one on the mounted STORAGE.
# DRY_RUN=1 prints the commands and executes none.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"

action=${1:-}
shift $(($# > 0))
: "${CLUSTER:?set CLUSTER, the name of the GKE cluster}"
: "${PROJECT:?set PROJECT, the Google Cloud project}"
: "${ZONE:?set ZONE, for example us-east5-b}"
RUN_ID=${RUN_ID:-qurating}
TPU_TYPE=${TPU_TYPE:-v5litepod-16}
NUM_SLICES=${NUM_SLICES:-1}
CAPACITY=${CAPACITY:---spot}            # --spot, --on-demand, or --reservation=NAME
IMAGE=${IMAGE:-gcr.io/$PROJECT/qurating:$RUN_ID}
STORAGE=${STORAGE:-}                    # name of an `xpk storage` (gcsfuse, Filestore) to mount, where OUTPUT is on it
MAX_RESTARTS=${MAX_RESTARTS:-20}
place=("--cluster=$CLUSTER" "--project=$PROJECT" "--zone=$ZONE")

case $action in
  cluster)
    run xpk cluster create "${place[@]}" "--tpu-type=$TPU_TYPE" "--num-slices=$NUM_SLICES" "$CAPACITY" ;;
  image)
    run docker build "--tag=$IMAGE" "--file=$here/Dockerfile" "$here/.."
    run docker push "$IMAGE" ;;
  run)
    [[ $# -gt 0 ]] || usage "$0"
    : "${OUTPUT:?set OUTPUT, for example gs://BUCKET/runs/lm}"
    # A pod gets TERM and then two minutes to save; exit code 130 means that the same command resumes.
    run xpk workload create "${place[@]}" "--workload=$RUN_ID" "--docker-image=$IMAGE" "--tpu-type=$TPU_TYPE" \
      "--num-slices=$NUM_SLICES" "--max-restarts=$MAX_RESTARTS" --termination-grace-period-seconds=120 \
      ${STORAGE:+"--storage=$STORAGE"} \
      "--command=$(quote qurating "$@" --output "$OUTPUT" --distributed.mode auto)" ;;
  follow)
    run kubectl logs --follow --prefix --max-log-requests=256 "--selector=jobset.sigs.k8s.io/jobset-name=$RUN_ID" ;;
  delete)
    run xpk workload delete "${place[@]}" "--workload=$RUN_ID" --force ;;
  delete-cluster)
    run xpk cluster delete "${place[@]}" --force ;;
  *) usage "$0" ;;
esac
