#!/usr/bin/env bash
# Does a rater learn what people judge? The CLEAR corpus (Crossley et al. 2022, CC BY-NC-SA) has 4 724 excerpts with an
# easiness from teachers' pairwise comparisons (Bradley-Terry). This takes its file (JSON lines, also .gz or .zst, with
# id, text, BT_easiness), holds a fifth of the excerpts out, makes pairs with p = sigmoid(difference) within each side,
# trains a small rater from random weights, and prints its pair accuracy and Spearman correlation on the held-out side
# beside those of the Flesch formula and of text length. Under ten minutes on 2 CPU cores. Results: docs/log.md.
#
# usage: bash launch/human_truth.sh CLEAR_FILE [OUTPUT_DIRECTORY]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
file=${1:?usage: bash launch/human_truth.sh CLEAR_FILE [OUTPUT_DIRECTORY]}
out=${2:-runs/human_truth}
source launch/setup.sh base

export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

mkdir -p "$out"
python - "$file" "$out" <<'PY'
import hashlib, json, sys
from qurating_jax.data.documents import Rejects, read_documents

file, out = sys.argv[1:]
sides = {"train": [], "heldout": []}
with Rejects(None, "error") as rejects:
    for document in read_documents([file], rejects=rejects):
        held_out = hashlib.sha256(document.id.encode()).digest()[0] < 256 // 5
        row = {"id": document.id, "text": document.text, "easiness": float(document.row["BT_easiness"])}
        sides["heldout" if held_out else "train"].append(row)
for side, rows in sides.items():
    with open(f"{out}/{side}.jsonl", "w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"{side}: {len(rows)} excerpts")
PY

judge=(--judge.kind column --judge.score_field easiness --judge.criterion easiness --whole_documents)
qurating train-tokenizer --input "$out/train.jsonl" --vocab_size 4096 --output "$out/tokenizer"
qurating judge run --input "$out/train.jsonl" "${judge[@]}" --num_pairs 6000 --output "$out/judge_train"
qurating judge run --input "$out/heldout.jsonl" "${judge[@]}" --num_pairs 3000 --output "$out/judge_heldout"
qurating train-rater --config configs/train_rater/human_truth.yaml --judgments "$out/judge_train" \
  --validation "$out/judge_heldout" --tokenizer "$out/tokenizer" --output "$out/train_rater"
qurating eval-rater --rater "$out/train_rater" --judgments "$out/judge_heldout" --documents "$out/heldout.jsonl" \
  --baseline_judgments "$out/judge_train" --truth_field easiness --window_tokens 320 --output "$out/eval_rater"
