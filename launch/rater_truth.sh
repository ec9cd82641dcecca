#!/usr/bin/env bash
# How well does a rater learn what people (or an LLM) judge, from nothing but the text at hand and in minutes on 2 cores?
#   clear   easiness of 3 307 excerpts from teachers' comparisons (CLEAR corpus); a fifth of the excerpts held out
#   ukp     more convincing arguments of 12 debates (UKPConvArg1, 4-5 votes a pair); 3 debates held out
#   alpaca  preferences of an LLM between answers (alpaca_eval, log-probabilities); a fifth of the instructions held out
# First the held-out part is rated by a rater that has not seen it (OUTPUT/eval), then all of the data trains the rater
# that stays: OUTPUT/rater, for `qurating annotate --rater OUTPUT/rater`. Results and time: docs/rater.md.
#
# usage: [SEED=0] [QURATING_TEST_DATA=FOLDER] bash launch/rater_truth.sh clear|ukp|alpaca OUTPUT
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
task=${1:?usage: bash launch/rater_truth.sh clear|ukp|alpaca OUTPUT}
out=${2:?usage: bash launch/rater_truth.sh clear|ukp|alpaca OUTPUT}
seed=${SEED:-0}
data=${QURATING_TEST_DATA:-../shared/data}
source launch/setup.sh base
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

python launch/rater_truth.py "$task" "$data" "$out/data" --seed "$seed"
config=configs/train_rater/truth_$task.yaml
evaluate=(--config configs/eval_rater/truth.yaml --rater "$out/trained_on_part")

case $task in
  clear)
    judge=(--judge.kind column --judge.score_field easiness --judge.criterion easiness --whole_documents --seed "$seed")
    qurating judge run --input "$out/data/train.jsonl" "${judge[@]}" --num_pairs 10000 --output "$out/judge_train"
    qurating judge run --input "$out/data/heldout.jsonl" "${judge[@]}" --num_pairs 5000 --output "$out/judge_heldout"
    qurating judge run --input "$out/data/all.jsonl" "${judge[@]}" --num_pairs 12000 --output "$out/judge_all"
    part=$out/judge_train heldout=(heldout="$out/judge_heldout") all=$out/judge_all
    evaluate+=(--documents "$out/data/heldout.jsonl" --truth_field easiness)
    ;;
  ukp)
    part=$out/data/train.jsonl all=$out/data/all.jsonl
    heldout=(strict="$out/data/heldout_strict.jsonl" votes="$out/data/heldout.jsonl")
    ;;
  alpaca)
    part=$out/data/train.jsonl heldout=(heldout="$out/data/heldout.jsonl") all=$out/data/all.jsonl
    ;;
esac

qurating train-rater --config "$config" --judgments "$part" --corpus "$data/raw" --seed "$seed" \
  --output "$out/trained_on_part"
qurating eval-rater "${evaluate[@]}" --judgments "${heldout[@]}" --baseline_judgments "$part" --output "$out/eval"
qurating train-rater --config "$config" --judgments "$all" --corpus "$data/raw" --seed "$seed" --output "$out/rater"
