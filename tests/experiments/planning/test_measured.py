"""Rates from the records of steps: starts told from work, what may stand for larger runs, a plan put to the test."""

import dataclasses
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned_chain import make_graph, node_of

from qurating_jax.experiments.planning import measured, trial
from qurating_jax.experiments.planning.estimates import estimate
from qurating_jax.experiments.planning.measured import fit
from qurating_jax.experiments.planning.rates import Measured
from qurating_jax.experiments.planning.stage_work import Site
from qurating_jax.experiments.step_records import StepRecord, write_step

NOW = Measured(date="2026-11-28", commit="abc", command="a test")
EXPECTED = """
goal: [annotate]
seeded: [annotate]
values: {size: 1000, documents: somewhere}
expected: {documents: {documents: 1000, tokens: 300_000, bytes: 1_200_000}}
steps:
  judge: {stage: judge run, input: [$documents], tokenizer: t, num_pairs: $size}
  rater: {stage: train-rater, base: ngrams, judgments: [$judge]}
  annotate: {input: [$documents], rater: [$rater]}
"""


def record(node, seconds, **changes):
    facts = {"reads": {}, "external": {}, "manifest": "", "cpu_seconds": 2 * seconds, "resumed": False, "device": "cpu",
             "cores": 2, "num_devices": 1}  # fmt: skip
    return StepRecord(stage=node.stage, key=node.key, seconds=seconds, **(facts | changes))


def judged(tmp_path, sizes, seconds, **changes):
    """Rates of runs of `judge run` of these sizes, which took so long."""
    fits = []
    graphs = [make_graph(tmp_path, EXPECTED, given=[f"size={size}"]) for size in sizes]
    nodes = {node_of(graph, "judge").key: node_of(graph, "judge") for graph in graphs}
    merged = dataclasses.replace(graphs[0], nodes=nodes)
    records = {key: record(node, taken, **changes) for (key, node), taken in zip(nodes.items(), seconds, strict=True)}
    for clock in trial.CLOCKS:
        fits += measured.measured_rates(merged, records, NOW, clock=clock)
    return fits


# --- starts and work --------------------------------------------------------------------------------------------------


def test_a_start_is_told_from_work_of_different_sizes():
    assert fit([(100.0, 12.0), (200.0, 14.0), (400.0, 18.0)]) == (
        pytest.approx(50), pytest.approx(10), "start and work apart"
    )  # fmt: skip
    assert fit([(100.0, 10.0), (110.0, 10.0), (100.0, 20.0)]) == (10.0, 0.0, "one size, the start in it")
    assert fit([(100.0, 1.0), (200.0, 4.0)]) == (75.0, 0.0, "start and work apart")  # no start is below nothing


def test_larger_runs_that_took_no_longer_are_all_start():
    per_second, start, told = fit([(100.0, 4.0), (400.0, 4.0), (200.0, 3.0)])
    assert told == "larger runs took no longer"
    assert start == pytest.approx(0.99 * 4)
    assert start + 400 / per_second == pytest.approx(4.0)


@given(
    start=st.floats(0.1, 100),
    rate=st.floats(0.1, 1e6),
    sizes=st.lists(st.integers(1, 1000), min_size=5, max_size=9, unique=True),
    late=st.floats(0.5, 1000),
    data=st.data(),
)
def test_one_run_that_compiled_does_not_move_the_line(start, rate, sizes, late, data):
    """Truth: the line itself. Every size is there twice, and one run of one of them took much longer."""
    points = [(float(size), start + size / rate) for size in sizes for _ in range(2)]
    which = data.draw(st.integers(0, len(points) - 1))
    moved = [(units, seconds + late * (number == which)) for number, (units, seconds) in enumerate(points)]
    spread = max(sizes) / min(sizes)
    pairs = [pair for pair in itertools.combinations(sorted(sizes), 2) if pair[1] >= 1.5 * pair[0]]
    if spread < 1.5 or sum(sizes[which // 2] in pair for pair in pairs) * 2 >= len(pairs):
        return  # too few others to hold against it
    per_second, found, _ = fit(moved)
    assert per_second == pytest.approx(rate, rel=1e-3)
    assert found == pytest.approx(start, rel=1e-3, abs=1e-3 * max(sizes) / rate)


# --- rates of records -------------------------------------------------------------------------------------------------


def test_records_are_read_from_the_output_of_the_experiments(tmp_path):
    graph = make_graph(tmp_path)
    node = node_of(graph, "tokenize")
    assert measured.read_records(graph) == {}
    write_step(graph.output, node.name, record(node, 12.5))
    assert measured.read_records(graph) == {node.key: record(node, 12.5)}


def test_rates_by_the_clock_and_by_cpu(tmp_path):
    wall, cpu = judged(tmp_path, (1000, 2000, 4000), (12.0, 14.0, 18.0))
    assert (wall.rate.per_second, wall.rate.startup_seconds) == (pytest.approx(500), pytest.approx(10))
    assert (cpu.rate.per_second, cpu.rate.startup_seconds) == (pytest.approx(250), pytest.approx(20))
    assert (wall.rate.stage, wall.rate.cores, wall.rate.unit) == ("judge run", 1, "pairs")
    assert wall.rate.work == "3 run(s) of 1000 to 4000 pairs; start and work apart"


@pytest.mark.parametrize(
    ("sizes", "seconds", "carries"),
    [
        ((1000,), (59.0,), False),  # a start may be all of it
        ((1000,), (61.0,), True),
        ((1000, 4000), (11.0, 14.0), False),  # 4 seconds of work, 10 of a start
        ((1000, 4000), (60.0, 75.0), False),  # 20 of work, 55 of a start
        ((1000, 4000), (5.0, 17.0), True),  # 16 of work, 1 of a start
        ((1000, 4000), (0.5, 1.7), False),  # 1.6 of work: starts differ by as much
        ((1000, 4000), (90.0, 90.0), False),
    ],
)
def test_what_may_stand_for_larger_runs(tmp_path, sizes, seconds, carries):
    wall, _ = judged(tmp_path, sizes, seconds)
    assert wall.carries is carries


@pytest.mark.parametrize(
    "changes", [{"resumed": True}, {"device": None}, {"cores": None}, {"device": "a machine that nobody knows"}]
)
def test_records_that_say_nothing_of_speed(tmp_path, changes):
    assert judged(tmp_path, (1000, 2000), (12.0, 14.0), **changes) == []


def test_steps_that_ran_elsewhere_have_no_cpu_time(tmp_path):
    (wall,) = judged(tmp_path, (1000, 2000), (12.0, 14.0), cpu_seconds=None)
    assert wall.rate.startup_seconds == pytest.approx(10)


# --- a plan put to the test -------------------------------------------------------------------------------------------


def test_rows_are_sums_by_stage_and_near_is_within_a_fifth(tmp_path):
    graph = make_graph(tmp_path, EXPECTED, seeds=(0, 1, 2))
    nodes = [node for node in graph.nodes.values() if node.stage == "annotate"]
    judge = node_of(graph, "judge")
    assert len(nodes) == 3
    rates = [found.rate for found in judged(tmp_path, (1000,), (10.0,))]
    planned = [dataclasses.replace(one, hours=100 / 3600) for one in estimate(graph, Site(None, 1, 2), rates)]
    planned = [one for one in planned if one.stage == "annotate"]
    taken = (119.0, 126.0, 84.0)  # ratios 0.84, 0.79, 1.19
    records = {node.key: record(node, seconds) for node, seconds in zip(nodes, taken, strict=True)}
    records[judge.key] = record(judge, 7.0, cpu_seconds=None)
    rows, everything = trial.rows(graph, records, {"seconds": planned, "cpu_seconds": planned})
    by_stage = {row.stage: row for row in rows}
    row = by_stage["annotate"]
    assert (row.steps, row.seconds, row.cpu_seconds) == (3, sum(taken), 2 * sum(taken))
    wall = row.beside["seconds"]
    assert (wall.steps, wall.planned, wall.measured, wall.near) == (3, pytest.approx(300), sum(taken), 2)
    assert wall.ratio == pytest.approx(300 / sum(taken))
    assert row.beside["cpu_seconds"].near == 0
    assert (by_stage["judge run"].seconds, by_stage["judge run"].beside["seconds"].ratio) == (7.0, None)
    assert (by_stage["train-rater"].steps, everything.steps, everything.seconds) == (0, 4, sum(taken) + 7)
    assert everything.beside["seconds"] == wall


def test_a_prediction_is_of_the_others_and_knows_the_first_alone(tmp_path):
    graph = make_graph(tmp_path, EXPECTED, seeds=(0, 1))
    first = trial.keys_of(graph, {"tiny"}) - {graph.runs[1].steps["annotate"]}
    (left,) = set(graph.nodes) - first
    records = {key: record(graph.nodes[key], 20.0) for key in first}
    for clock, seconds in (("seconds", 20), ("cpu_seconds", 40)):
        for other in (5.0, 500.0):  # how long the others took is not looked at
            told = records | {left: record(graph.nodes[left], other)}
            (one,) = trial.predict(graph, told, first, NOW, clock)
            assert (one.key, one.basis) == (left, "measured")
            assert math.isclose(3600 * one.hours, seconds, rel_tol=1e-6)
