"""Outputs of `qurating run` for tests of what is read from them: tiny stage outputs by the stages' own writers."""

import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from qurating_jax.data.document_writers import write_table
from qurating_jax.experiments.records import RunRecord, write_run
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.tracker import JsonlTracker
from qurating_jax.scoring import lm_evaluation
from qurating_jax.selection.copying.id_list import IdListWriter, id_schema

IDS, DOMAINS, SIZES = ("d0", "d1", "d2"), ("a", "a", "b"), (1, 1, 2)
# Bits of the three documents under seeds 0 and 1; their tokens and bytes are SIZES.
UNIFORM = {0: (2, 4, 6), 1: (4, 4, 8)}
TOP = {0: (1, 3, 5), 1: (3, 2, 6)}
# Documents with their tokens that are selected under seeds 0 and 1.
CHOSEN_UNIFORM = {0: {"a": 10, "b": 20, "c": 30}, 1: {"a": 10, "d": 40}}
CHOSEN_TOP = {0: {"b": 20, "c": 30, "e": 5}, 1: {"d": 40, "e": 5}}


def begin(directory, stage):
    """A claimed output that is no other's."""
    return manifest.begin(
        str(directory), stage=stage, config={}, identity={"of": str(directory)}, inputs={}, overwrite=False
    )


def evaluate(
    directory, bits, *, ids=IDS, domains=DOMAINS, sizes=SIZES, tokenizer="bytes", level=0.95, names=("lm",), **windows
):
    """A finished eval-lm, one token a byte."""
    run = begin(directory, "eval-lm")
    tokens = np.array(sizes, np.int64)
    found = [
        lm_evaluation.Likelihoods(
            SimpleNamespace(name=name, step=None, tokenizer=SimpleNamespace(identity=tokenizer)),
            tokens,
            tokens,
            np.array(bits, np.float64) * math.log(2),
        )
        for name in names
    ]
    texts = lm_evaluation.HeldOutTexts(list(ids), list(domains), {})
    how = {"context_tokens": 32, "stride_tokens": 31, "bos": "none", "level": level} | windows
    storage.write_json(run.path("eval.json"), how | lm_evaluation.evaluation(texts, found, level))
    write_table(run.path("documents.parquet"), lm_evaluation.documents_table(texts, found))
    manifest.finish(run, {})


TASKS = {  # task: title, group, metric, shots, chance
    "easy": ("ARC-easy", "reading comprehension", "acc", 15, 0.25),
    "logic": ("LogiQA", "reading comprehension", "acc_norm", 2, 0.25),
    "open": ("NQ-open", "world knowledge", "exact_match", 10, None),
}


def ask(directory, values, *, items=None, limit=None, shots=None, bits=None, name="lm"):
    """A finished eval-lm of tasks, with held-out documents too where there are `bits` of them.

    `values`: task -> the main metric of its items, called by `items[task]` or by their place.
    """
    if bits is None:
        run = begin(directory, "eval-lm")
        document = {"names": [name], "baseline": name, "models": {}, "differences": {}, "level": 0.95}
    else:
        evaluate(directory, bits, names=(name,))
        run, document = None, storage.read_json(f"{directory}/eval.json")
    shown = {}
    for task, of in values.items():
        title, group, metric, num_fewshot, chance = TASKS[task]
        shown[task] = {
            "group": group, "title": title, "preset": "paper", "num_fewshot": (shots or {}).get(task, num_fewshot),
            "version": 1, "metric": metric, "num_items": len(of), "value": float(np.mean(of)), "chance": chance,
        }  # fmt: skip
    document["tasks"] = {"given": ["paper"], "harness": "0.4.13", "limit": limit, "models": {name: shown}}
    rows = [
        {"model": name, "task": task, "item": str(item), "value": float(value)}
        for task, of in values.items()
        for item, value in zip((items or {}).get(task, range(len(of))), of, strict=True)
    ]
    write_table(f"{directory}/task_items.parquet", pa.Table.from_pylist(rows))
    storage.write_json(f"{directory}/eval.json", document)
    if run is not None:
        manifest.finish(run, {})


def select(directory, chosen, *, rating=None, effective=None):
    """A finished select whose `selection.json` holds what a comparison reads of it."""
    run = begin(directory, "select")
    ids, num = list(chosen), len(chosen)
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "tokens": pa.array([chosen[name] for name in ids], pa.int64()),
            "domain": pa.nulls(num, pa.string()),
            "selection_key": np.arange(num)[::-1].astype(np.float64),
            "selection_rank": np.arange(num),
        }
    )
    with (
        open(run.path("ids.parquet"), "wb") as stream,
        IdListWriter(stream, id_schema(members=False), order="source", num_shards=1, num_last=0) as writer,
    ):
        writer.write(table)
    described = {} if rating is None else {"quality_average": {"eligible": {"mean": 0.5}, "selected": {"mean": rating}}}
    explanation = {
        "num_selected": num,
        "selected_tokens": sum(chosen.values()),
        "share_tokens": sum(chosen.values()) / 200,
        "overshoot_tokens": sum(chosen.values()) - 40,
        "overshoot_documents": None,
        "effective_sample_size": effective,
        "effective_share": None if effective is None else effective / 10,
        "kl_from_uniform": None,
        "ratings": described,
        "members": [],
    }
    storage.write_json(run.path("selection.json"), explanation)
    manifest.finish(run, {})


def train(directory, losses, *, seen_tokens=640):
    """A finished train-lm of a step for each loss."""
    run = begin(directory, "train-lm")
    tracker = JsonlTracker(run.path("metrics.jsonl"), resume_step=0)
    for step, loss in enumerate(losses, 1):
        tracker.log(step, {"loss": loss})
    counts = {"parameters": 1000, "num_steps": len(losses), "seen_tokens": seen_tokens, "num_epochs": [1.0, 2.0]}
    manifest.finish(run, counts)


def record(output, experiment, seed, **more):
    """Writes the record of a run with the usual steps, called by experiment and seed; returns its path."""
    steps = {name: f"steps/{folder(name, experiment, seed)}" for name in ("select", "train_lm", "eval_lm")}
    values = {
        "experiment": experiment, "seed": seed, "scale": "debug", "file": f"{experiment}.yaml",
        "title": f"The title of {experiment}", "published": "", "steps": steps, "goal": ("eval_lm",),
    }  # fmt: skip
    return write_run(str(output), RunRecord(**(values | more)))


def step(output, name, experiment, seed):
    """The directory of a step of `record`."""
    return output / "steps" / folder(name, experiment, seed)


def folder(name, experiment, seed):
    """Stage and key."""
    return f"{name.replace('_', '-')}-{manifest.sha256(f'{experiment} {seed}')[:16]}"


def two_experiments(output):
    """`uniform` and `top` with seeds 0 and 1, everything finished; returns the output."""
    for experiment, bits, chosen, rating in (("uniform", UNIFORM, CHOSEN_UNIFORM, 0.5), ("top", TOP, CHOSEN_TOP, 2.0)):
        for seed in (0, 1):
            record(output, experiment, seed)
            effective = 4.0 if experiment == "top" else None
            select(step(output, "select", experiment, seed), chosen[seed], rating=rating + seed, effective=effective)
            train(step(output, "train_lm", experiment, seed), [3.0, 2.5 - seed])
            evaluate(step(output, "eval_lm", experiment, seed), bits[seed])
    return output
