"""What a plan of an experiment says against real runs, the paper's own figures, and sums by hand."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from planned_chain import make_graph, node_of, run

from qurating_jax.data.documents import Rejects, read_rows
from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.data.tokens import TokenRowsWriter
from qurating_jax.experiments.planning import estimates, measured, rates, stage_work
from qurating_jax.experiments.planning.amounts import Found, amounts
from qurating_jax.experiments.planning.lengths import are_equal, capped_share, tokenized_rows, windows_of
from qurating_jax.experiments.planning.rates import Measured, Rate
from qurating_jax.experiments.planning.stage_work import Site, work_of
from qurating_jax.experiments.step_records import StepRecord
from qurating_jax.models import hf
from qurating_jax.models.config import PRESETS
from qurating_jax.models.flops import forward_flops, training_flops
from qurating_jax.parallel.devices import find_device
from qurating_jax.runtime import manifest
from qurating_jax.tokenizing.layouts import Segments
from qurating_jax.tokenizing.options import TokenizeOptions
from qurating_jax.training import planning

CPU = Site(None, 1, 2)
NOW = Measured(date="2026-11-28", commit="abc", command="a test")

PAPER = """
goal: [eval_lm]
seeded: [select, train_lm]
values: {documents: null, heldout: null, budget: 30_000_000_000}
expected:
  documents: {documents: 254_000_000, tokens: 260_000_000_000}
  heldout: {documents: 500_000, tokens: 500_000_000}
steps:
  rater: {stage: fetch, name: qurater-1.3b}
  tokenizer: {stage: fetch, name: sheared-llama-1.3b, include: [tokenizer*]}
  annotate: {input: [$documents], rater: [$rater], compute: {dtype: bfloat16}}
  select: {input: [$annotate], strategy: uniform, budget_tokens: $budget, write: ids}
  tokenize: {input: [$annotate], selection: $select, tokenizer: $tokenizer, layout: segments, sequence_tokens: 1024}
  train_lm:
    {tokens: [$tokenize], model: sheared-llama-1.3b, batch_sequences: 2048, accumulation: 16,
     mesh: {fsdp: 8}, compute: {dtype: bfloat16, remat: dots}}
  eval_lm: {model: [model=$train_lm], input: [$heldout]}
"""


def paper(tmp_path, device, number, *given, seeds=(0,)):
    graph = make_graph(tmp_path, PAPER, given=given, seeds=seeds)
    return graph, estimates.estimate(graph, Site(find_device(device), number, 16, 2.0, 0.5), [])


def of_step(found, step):
    return next(one for one in found if step in one.steps)


# --- beside real runs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """(graph, work as it was planned when only corpus and tokenizer were there) of a chain that has run since."""
    graph = make_graph(tmp_path_factory.mktemp("chain"))
    run(graph, "corpus", "tokenizer")
    known = amounts(graph)
    planned = {step: work_of(known, node, CPU) for node in graph.nodes.values() for step in node.steps}
    run(graph)
    return graph, planned


def counts(graph, step):
    return manifest.read(node_of(graph, step).directory)["counts"]


def size_of(directory):
    return sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())


def test_tokens_and_rows_are_those_of_the_run(chain):
    graph, planned = chain
    for step in ("tokenize", "windows"):
        assert planned[step].units == pytest.approx(counts(graph, step)["document_tokens"], rel=0.05)
        assert planned[step].facts["rows"] == pytest.approx(counts(graph, step)["rows"], rel=0.05)
    assert planned["select"].units == counts(graph, "select")["num_documents"]
    assert planned["annotate"].units == pytest.approx(counts(graph, "annotate")["tokens"], rel=0.02)


def test_steps_and_flops_of_a_training_are_those_of_the_run(chain):
    graph, planned = chain
    ran = counts(graph, "train_lm")
    assert planned["train_lm"].facts["steps"] == pytest.approx(ran["num_steps"], rel=0.05)
    assert planned["train_lm"].facts["parameters"] == ran["parameters"]
    model, _ = hf.read_config(os.path.join(node_of(graph, "train_lm").directory, "hf"))
    flops = ran["num_steps"] * 64 * training_flops(model, 64.0)
    assert planned["train_lm"].flops == pytest.approx(flops, rel=0.05)
    assert not planned["train_lm"].refused


def test_flops_of_reading_are_those_of_the_windows_that_were_read(chain):
    graph, planned = chain
    model, _ = hf.read_config(os.path.join(node_of(graph, "train_lm").directory, "hf"))
    parts = sorted(Path(node_of(graph, "annotate").directory).glob("part-*.parquet"))
    windows = np.concatenate(
        [np.concatenate(pq.read_table(part)["chunk_lengths"].to_pylist()) for part in parts]
    ).astype(float)
    assert planned["annotate"].flops == pytest.approx(forward_flops(model, windows).sum(), rel=0.1)
    read = manifest.read(node_of(graph, "eval_lm").directory)["counts"]["models"]["model"]["tokens"]
    assert planned["eval_lm"].units == pytest.approx(read, rel=0.2)


def test_bytes_on_disk_are_those_of_the_run(chain):
    graph, planned = chain
    directory = Path(node_of(graph, "train_lm").directory)
    facts = planned["train_lm"].facts
    assert facts["kept_checkpoints"] == len([path for path in (directory / "checkpoints").iterdir() if path.is_dir()])
    assert facts["kept_checkpoints"] * facts["checkpoint_bytes"] == pytest.approx(
        size_of(directory / "checkpoints"), rel=0.2
    )
    assert facts["export_bytes"] == pytest.approx((directory / "hf" / "model.safetensors").stat().st_size, rel=0.2)
    rows = Path(node_of(graph, "tokenize").directory)
    on_disk = size_of(rows / "tokens") + size_of(rows / "validation")
    on_disk += (rows / "rows.parquet").stat().st_size
    assert planned["tokenize"].storage == pytest.approx(on_disk, rel=0.2)


def test_what_is_done_is_told_apart(chain, tmp_path):
    graph, _ = chain
    found = estimates.estimate(graph, CPU, rates.load_rates([rates.SHIPPED]))
    assert all(one.done for one in found)
    changed = make_graph(tmp_path)
    assert not any(one.done for one in estimates.estimate(changed, CPU, []))
    assert estimates.totals(one for one in found if not one.done).runs == 0


def test_tokens_of_real_text_take_the_bytes_that_are_planned(real_data, tmp_path):
    tokenizer = load_tokenizer(str(real_data / "tokenizers" / "redpajama-incite-neox.tokenizer.json"))
    with Rejects(None, "skip") as rejects:
        read = itertools.islice(read_rows(str(real_data / "raw" / "news_reuters21578.jsonl.zst"), rejects=rejects), 800)
        values, _ = tokenizer.encode_flat([row["text"] for _, row in read])
    num_rows = len(values) // 1024
    writer = TokenRowsWriter(str(tmp_path), num_rows=num_rows, sequence_tokens=1024, vocab_size=tokenizer.vocab_size)
    for number in range(writer.num_shards):
        start, stop = writer.span(number)
        rows = values[start * 1024 : stop * 1024].reshape(-1, 1024)
        writer.write(number, rows, np.ones_like(rows))
    assert stage_work.token_bytes(num_rows * 1024, tokenizer.vocab_size) == pytest.approx(size_of(tmp_path), rel=0.2)


# --- lengths of documents ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [90, 400, 3000])
@pytest.mark.parametrize(("overlap", "tail"), [(1, 128), (64, 32)])
def test_windows_of_drawn_lengths(mean, overlap, tail):
    lengths = np.maximum(1, np.random.default_rng(0).exponential(mean, 200_000)).astype(np.int64)
    found = Found(documents=len(lengths), tokens=int(lengths.sum()))
    options = TokenizeOptions(layout="segments", sequence_tokens=512, overlap_tokens=overlap, min_tail_tokens=tail)
    truth = Segments(512, overlap, tail).tally(lengths).rows
    assert tokenized_rows(options, found) == pytest.approx(truth, rel=0.03)
    assert windows_of(found, 512) == pytest.approx(np.ceil(lengths / 512).mean(), rel=0.03)
    assert capped_share(found, 700) == pytest.approx(np.minimum(lengths, 700).sum() / lengths.sum(), rel=0.03)


def test_rows_of_one_length_are_told_by_their_mean():
    rated = Found(documents=254_000_000, tokens=260_000_000_000)
    assert are_equal(rated)
    assert not are_equal(Found(documents=100, tokens=90_000))
    assert not are_equal(Found(documents=100, tokens=6_400))  # 64 is short for a row
    options = TokenizeOptions(layout="segments", sequence_tokens=1024)
    assert tokenized_rows(options, rated) == 254_000_000
    assert (windows_of(rated, 512), capped_share(rated, 512)) == (2.0, pytest.approx(512 / (260_000 / 254)))
    packed = TokenizeOptions(sequence_tokens=1000, validation_fraction=0.5)
    assert tokenized_rows(packed, Found(documents=100, tokens=9_900)) == 5  # 10 000 tokens with EOS, half held out


# --- the paper --------------------------------------------------------------------------------------------------------


def test_the_paper_s_hours_on_h100s(tmp_path):
    """514 to 520 H100 hours to rate 260B tokens, about 200 for a model: the paper's own figures, at its own speed."""
    _, found = paper(tmp_path, "H100", 8)
    assert of_step(found, "annotate").basis == "assumed"
    assert 350 < of_step(found, "annotate").device_hours < 700
    assert 120 < of_step(found, "train_lm").device_hours < 270
    assert of_step(found, "train_lm").work.memory.verdict == "fits"
    assert of_step(found, "annotate").work.flops == pytest.approx(2.48e9 * 260e9, rel=0.01)  # docs/annotate.md
    at_its_rate = [Rate(stage="annotate", device="H100", num_devices=1, work="the paper", unit="tokens",
                        per_second=140_000, flops_per_unit=2.48e9, measured=NOW)]  # fmt: skip
    graph = make_graph(tmp_path, PAPER)
    again = of_step(estimates.estimate(graph, Site(find_device("H100"), 64, 16), at_its_rate), "annotate")
    assert again.basis == "scaled"  # from one device to 64
    assert 510 < again.device_hours < 521
    assert again.hours == pytest.approx(8.1, abs=0.05)


def test_the_paper_s_training_is_that_of_the_plan_of_its_recipe(tmp_path):
    _, found = paper(tmp_path, "TPU v5e", 256, "train_lm.accumulation=1", "train_lm.mesh.fsdp=16")
    one = of_step(found, "train_lm")
    options = dataclasses.replace(node_of(make_graph(tmp_path, PAPER), "train_lm").config, accumulation=1)
    rows = planning.Rows(one.work.facts["rows"], 1024, False)
    model = dataclasses.replace(PRESETS["sheared-llama-1.3b"], max_positions=1024)
    done = planning.work(options, model, rows)
    machine = planning.Machine(find_device("TPU v5e"), 256)
    assert one.work.flops == pytest.approx(done.flops)
    assert one.hours == pytest.approx(planning.time(done, machine, mfu=None, tokens_per_second=None).hours)
    assert one.work.facts["steps"] == pytest.approx(14_305, rel=0.01)  # of 30B tokens, tests of `plan`
    assert one.work.memory.verdict == "fits"


def test_what_training_refuses_is_told_in_its_row(tmp_path):
    _, found = paper(tmp_path, "H100", 8, "train_lm.mesh.fsdp=3")
    one = of_step(found, "train_lm")
    assert "does not cover 8 device" in one.work.refused
    assert one.hours > 0
    assert of_step(found, "annotate").work.refused == ""


def test_what_would_fit_is_told_as_it_is_given(tmp_path):
    _, found = paper(tmp_path, "H100", 8, "train_lm.accumulation=1")
    one = of_step(found, "train_lm")
    assert one.work.memory.verdict == "does not fit"
    (note,) = one.work.notes
    assert "--set train_lm.accumulation=" in note
    change = note.partition("--set ")[2].split(" ")[0]
    _, mended = paper(tmp_path, "H100", 8, change)
    assert of_step(mended, "train_lm").work.memory.verdict == "fits"
    assert of_step(mended, "train_lm").work.notes == ()


def test_models_that_are_not_there_are_those_of_the_registry(tmp_path):
    """By name, by name in a registry of one's own, and by hub id in whatever case; of others nothing is known."""
    own = tmp_path / "own.yaml"
    own.write_text(
        "artifacts:\n  big: {kind: rater, repo: me/big, architecture: sheared-llama-2.7b, labels: [a, b]}\n"
        "  plain: {kind: rater, repo: me/plain}\n"
    )
    sizes = {"sheared-llama-1.3b": 2.48e9, "sheared-llama-2.7b": 5.16e9}  # forward, windows of 512 tokens
    for given, wanted in (
        (["rater.name=sheared-llama-2.7b"], sizes["sheared-llama-2.7b"]),
        ([f"rater.registry={own}", "rater.name=big"], sizes["sheared-llama-2.7b"]),
        (["annotate.rater=[princeton-nlp/QURATER-1.3b]"], sizes["sheared-llama-1.3b"]),
        ([f"rater.registry={own}", "rater.name=plain"], None),
        (["annotate.rater=[me/unknown]"], None),
    ):
        _, found = paper(tmp_path, "H100", 8, *given)
        flops = of_step(found, "annotate").work.flops
        assert flops == (None if wanted is None else pytest.approx(wanted * 260e9, rel=0.01)), given
    _, found = paper(tmp_path, "H100", 8, "rater.name=qurater")
    assert "no published artifact `qurater`; did you mean qurater-1.3b" in of_step(found, "annotate").work.refused


def test_costs_and_sums_by_hand(tmp_path):
    graph, found = paper(tmp_path, "H100", 8, seeds=(0, 1))
    assert len(graph.runs) == 2
    assert sum(one.stage == "train-lm" for one in found) == 2
    annotate = of_step(found, "annotate")
    assert annotate.runs == 2
    assert annotate.hours == pytest.approx(annotate.work.flops / (8 * 989e12 * 0.4) / 3600)
    assert annotate.cost == pytest.approx(annotate.hours * 8 * 2.0)
    sums = estimates.totals(found)
    assert sums.device_hours == pytest.approx(sum(one.hours * 8 for one in found if one.on_device))
    assert sums.unknown == sum(one.hours is None for one in found) == 6  # fetch x 2, select and tokenize of two seeds
    assert sums.at_least
    given = estimates.estimate(graph, Site(find_device("H100"), 8, 16, mfu=0.8), [])
    assert of_step(given, "annotate").hours == pytest.approx(annotate.hours / 2)
    assert of_step(given, "annotate").basis == "given"


def test_without_a_rate_nothing_is_known_of_a_cpu(tmp_path):
    graph = make_graph(tmp_path, PAPER)
    one = of_step(estimates.estimate(graph, CPU, []), "train_lm")
    assert (one.hours, one.basis, one.device_hours) == (None, "unknown", 0.0)
    assert one.work.flops > 1e20
    shipped = estimates.estimate(graph, Site(None, 1, 16, host_price=0.5), rates.load_rates([rates.SHIPPED]))
    assert of_step(shipped, "train_lm").basis == "scaled"
    tokenize = of_step(shipped, "tokenize")
    assert tokenize.hours == pytest.approx(tokenize.work.units / (16 * 625_000) / 3600)
    assert tokenize.cost == pytest.approx(0.5 * tokenize.hours)
    assert (of_step(shipped, "select").number, of_step(shipped, "select").basis) == (1, "measured")


# --- rates from records -----------------------------------------------------------------------------------------------


def record(node, seconds, **changes):
    facts = {"reads": {}, "external": {}, "manifest": "", "cpu_seconds": seconds, "resumed": False, "device": "cpu",
             "cores": 2, "num_devices": 1}  # fmt: skip
    return StepRecord(stage=node.stage, key=node.key, seconds=seconds, **(facts | changes))


def test_rates_of_records_give_the_seconds_again(chain):
    graph, _ = chain
    seconds = {
        step: 3.0 + number for number, step in enumerate(("tokenizer", "tokenize", "windows", "train_lm", "eval_lm"))
    }
    records = {node_of(graph, step).key: record(node_of(graph, step), taken) for step, taken in seconds.items()}
    found = [fit.rate for fit in measured.measured_rates(graph, records, NOW)]
    assert {rate.stage for rate in found} == {"train-tokenizer", "tokenize", "train-lm", "eval-lm"}
    compared = measured.compare_with_records(estimates.estimate(graph, CPU, found), records)
    assert {one.steps[0]: one.measured_seconds for one in compared} == seconds
    assert all(one.ratio == pytest.approx(1, rel=0.01) for one in compared if one.stage != "tokenize")
    resumed = {key: dataclasses.replace(one, resumed=True) for key, one in records.items()}
    assert measured.measured_rates(graph, resumed, NOW) == []
    assert measured.compare_with_records(estimates.estimate(graph, CPU, found), resumed) == []


# --- judgments and raters ---------------------------------------------------------------------------------------------

RATERS = """
goal: [annotate, plain]
values: {documents: null}
expected: {documents: {documents: 1000, tokens: 300_000, bytes: 1_200_000}}
steps:
  tokenizer: {stage: train-tokenizer, input: [$documents], vocab_size: 4000}
  judge: {stage: judge run, input: [$documents], tokenizer: $tokenizer, num_pairs: 500, tokens_min: 64, tokens_max: 128}
  rater:
    {stage: train-rater, base: debug, tokenizer: $tokenizer, judgments: [$judge], max_tokens: 512, num_epochs: 3,
     num_members: 2}
  words: {stage: train-rater, base: ngrams, judgments: [$judge]}
  annotate: {input: [$documents], rater: [a=$rater, b=$words]}
  plain: {stage: annotate, input: [$documents], rater: [$words], write: sidecar}
"""


def test_judgments_raters_and_n_grams(tmp_path):
    graph = make_graph(tmp_path, RATERS)
    known = amounts(graph)
    works = {step: work_of(known, node, CPU) for node in graph.nodes.values() for step in node.steps}
    assert (works["judge"].unit, works["judge"].units) == ("pairs", 500)
    mean = 0.5 * 128 + 0.5 * (64 + 128) / 2  # half of the texts are of 128 tokens, the others of 64 to 128
    assert works["rater"].units == pytest.approx(450 * 2 * mean * 3 * 2)
    model = dataclasses.replace(PRESETS["debug"], vocab_size=4096).with_head(4)
    assert works["rater"].flops == pytest.approx(450 * 2 * 3 * 2 * training_flops(model, mean))
    assert (works["words"].unit, works["words"].where) == ("pairs", "host")
    assert (works["plain"].unit, works["plain"].units, works["plain"].where) == ("bytes", 1_200_000, "host")
    assert (works["annotate"].unit, works["annotate"].units) == ("tokens", 300_000)
    window = works["annotate"].facts["mean_window_tokens"]
    once = forward_flops(model, window) / window * 300_000
    assert works["annotate"].flops == pytest.approx(2 * once, rel=0.001)  # the rater has two members
    asked = make_graph(
        tmp_path,
        RATERS.replace("tokens_max: 128}", "tokens_max: 128, judge: {kind: openai, model: m, method: samples}}"),
    )
    work = work_of(amounts(asked), node_of(asked, "judge"), CPU)
    assert work.where == "elsewhere"
    assert work.facts["requests"] == 500 * 2 * 4 * 20


def test_values_are_plain_enough_for_json(chain):
    graph, _ = chain
    found = estimates.estimate(graph, Site(find_device("H100"), 8, 2), [])
    assert len(json.loads(json.dumps([one.as_dict() for one in found]))) == len(graph.nodes)


def test_a_model_that_cannot_be_is_told_and_is_no_traceback(tmp_path):
    graph = make_graph(tmp_path, PAPER, given=["train_lm.architecture.max_positions=512"])
    work = work_of(amounts(graph), node_of(graph, "train_lm"), CPU)
    assert "up to 512 tokens, not 1024; give qurating tokenize --sequence_tokens 512 or less" in work.refused
