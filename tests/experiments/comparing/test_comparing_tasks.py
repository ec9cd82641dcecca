"""Task results of several runs against scipy and loops over items and seeds, and what cannot be compared."""

import json
import math

import compared_runs as made
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from qurating_jax.experiments.comparing import tables
from qurating_jax.experiments.comparing.compare import compare
from qurating_jax.experiments.records import find_runs
from qurating_jax.method.seeds import holm
from qurating_jax.runtime.errors import UserError

READING, WORLD = "reading comprehension", "world knowledge"
SIZES = {"easy": 40, "logic": 25, "open": 30}


def compared(output, **options):
    return compare(find_runs([str(output)]), **options)


def asked(output, experiment, seed, values, **more):
    made.record(output, experiment, seed, steps={"eval_lm": f"steps/{made.folder('eval_lm', experiment, seed)}"})
    made.ask(made.step(output, "eval_lm", experiment, seed), values, **more)


def answers(seed, share=0.5, sizes=None):
    rng = np.random.default_rng(seed)
    return {task: (rng.random(size) < share).astype(float) for task, size in (sizes or SIZES).items()}


def by_loops(values, level=0.95):
    """Value, error, degrees of freedom of an average of tasks by the formulas of `method.seeds`: values [n, S] each."""
    num_seeds, num_tasks = next(iter(values.values())).shape[1], len(values)
    documents = cells = 0.0
    per_seed = np.zeros(num_seeds)
    total_items = 0
    for of in values.values():
        n = len(of)
        total_items += n
        means = of.mean(axis=0)
        per_seed += means / num_tasks
        v = (of - means) / n / num_seeds / num_tasks
        documents += n / (n - 1) * sum(row.sum() ** 2 for row in v)
        for row in v:
            for cell in row:
                cells += n / (n - 1) * num_seeds / (num_seeds - 1) * (cell - row.mean()) ** 2
    seeds = num_seeds / (num_seeds - 1) * sum(((r - per_seed.mean()) / num_seeds) ** 2 for r in per_seed)
    cells = min(cells, documents, seeds)
    return per_seed.mean(), math.sqrt(documents + seeds - cells), (documents, seeds)


# ---- numbers


def test_of_one_seed_a_task_is_a_paired_test_and_an_average_adds_independent_tasks(tmp_path):
    ours, theirs = answers(1, 0.6), answers(2, 0.5)
    asked(tmp_path, "top", 0, ours)
    asked(tmp_path, "uniform", 0, theirs)
    of = compared(tmp_path)["experiments"]["top"]["task_difference"]
    errors = {}
    for task, found in of["tasks"].items():
        truth = stats.ttest_rel(ours[task], theirs[task])
        less = ours[task] - theirs[task]
        assert found["value"] == pytest.approx(less.mean(), abs=1e-12)
        errors[task] = less.mean() / truth.statistic
        assert found["standard_error"] == pytest.approx(errors[task], rel=1e-9)
        low, high = stats.norm.interval(0.95, less.mean(), errors[task])
        assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
        assert found["p_value"] == pytest.approx(2 * stats.norm.sf(abs(truth.statistic)))
        assert found["num_items"] == SIZES[task]
    for name, tasks in {"all": list(SIZES), READING: ["easy", "logic"], WORLD: ["open"]}.items():
        found = of["averages"][name]
        assert found["num_tasks"] == len(tasks)
        assert found["value"] == pytest.approx(np.mean([of["tasks"][task]["value"] for task in tasks]), abs=1e-12)
        error = math.sqrt(sum(errors[task] ** 2 for task in tasks)) / len(tasks)
        assert found["standard_error"] == pytest.approx(error, rel=1e-9)


def test_over_seeds_items_and_seeds_are_crossed(tmp_path):
    ours, theirs = ([answers(10 * side + seed, 0.4 + 0.1 * seed) for seed in range(3)] for side in (1, 2))
    for seed in range(3):
        asked(tmp_path, "top", seed, ours[seed])
        asked(tmp_path, "uniform", seed, theirs[seed])
    result = compared(tmp_path)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    stacked = [{task: np.stack([one[task] for one in side], axis=1) for task in SIZES} for side in (ours, theirs)]
    less = {task: stacked[0][task] - stacked[1][task] for task in SIZES}
    of = result["experiments"]["top"]
    for found, values in ((of["tasks"], stacked[0]), (of["task_difference"], less)):
        for name, tasks in {"all": list(SIZES), READING: ["easy", "logic"], WORLD: ["open"]}.items():
            value, error, (items, seeds) = by_loops({task: values[task] for task in tasks})
            row = found["averages"][name]
            assert row["value"] == pytest.approx(value, abs=1e-12)
            assert row["standard_error"] == pytest.approx(error, rel=1e-9)
            assert row["standard_error_documents"] == pytest.approx(math.sqrt(items), rel=1e-9)
            assert row["standard_error_seeds"] == pytest.approx(math.sqrt(seeds), rel=1e-9)
        for task in SIZES:
            assert found["tasks"][task]["standard_error"] == pytest.approx(by_loops({task: values[task]})[1], rel=1e-9)
    means = [np.mean([one[task].mean() for task in SIZES]) for one in ours]
    assert of["tasks"]["by_seed"] == {str(seed): pytest.approx(mean) for seed, mean in enumerate(means)}
    assert result["experiments"]["uniform"]["task_difference"] is None
    assert of["difference"] is of["evaluation"] is result["windows"] is None


def test_p_is_adjusted_over_experiments_and_over_all_tasks_of_all(tmp_path):
    for number, name in enumerate(("uniform", "a", "b", "c")):
        asked(tmp_path, name, 0, answers(number, 0.4 + 0.1 * number))
    rows = [row["task_difference"] for row in compared(tmp_path)["experiments"].values() if row["task_difference"]]
    averages = [row["averages"]["all"] for row in rows]
    assert [one["p_holm"] for one in averages] == holm([one["p_value"] for one in averages])
    each = [one for row in rows for one in row["tasks"].values()]
    assert len(each) == 9
    assert [one["p_holm"] for one in each] == holm([one["p_value"] for one in each])
    assert any(one["p_holm"] > one["p_value"] for one in each)
    assert "p_holm" not in rows[0]["averages"][WORLD]


def test_items_are_matched_by_what_they_are_and_not_by_their_place(tmp_path):
    asked(tmp_path, "uniform", 0, {"easy": [0, 1, 1, 0]}, items={"easy": ["p", "q", "r", "r"]})
    asked(tmp_path, "top", 0, {"easy": [1, 0, 1, 1]}, items={"easy": ["r", "q", "p", "x"]})
    of = compared(tmp_path)["experiments"]["top"]["task_difference"]
    assert of["tasks"]["easy"]["num_items"] == 3  # the second r and x are of one run alone
    assert of["items_left_out"] == 2
    assert of["tasks"]["easy"]["value"] == pytest.approx(((1 - 0) + (0 - 1) + (1 - 1)) / 3)


# ---- held-out texts, tasks, or both


def test_runs_of_held_out_texts_alone_of_tasks_alone_and_of_both(tmp_path, capsys):
    asked(tmp_path, "uniform", 0, answers(0), bits=(2, 4, 6))
    asked(tmp_path, "both", 0, answers(1), bits=(1, 3, 5))
    asked(tmp_path, "only_tasks", 0, answers(2))
    made.record(tmp_path, "only_texts", 0, steps={"eval_lm": f"steps/{made.folder('eval_lm', 'only_texts', 0)}"})
    made.evaluate(made.step(tmp_path, "eval_lm", "only_texts", 0), (3, 3, 3))
    result = compared(tmp_path)
    there = {
        name: (of["evaluation"] is not None, of["tasks"] is not None) for name, of in result["experiments"].items()
    }
    assert there == {
        "uniform": (True, True), "both": (True, True), "only_tasks": (False, True), "only_texts": (True, False),
    }  # fmt: skip
    assert all(not of["missing"] for of in result["experiments"].values())
    shown = printed(result, capsys)
    for text in ("perplexity", "tasks,", "ARC-easy", "NQ-open", "world knowledge", "only_texts: no tasks"):
        assert text in shown
    assert "tasks of 1 seed: over items alone, says nothing of other seeds" in shown
    assert "tasks, by chance: ARC-easy 25%, LogiQA 25%" in shown
    of = result["experiments"]["both"]
    row, less = of["tasks"]["tasks"]["easy"], of["task_difference"]["tasks"]["easy"]
    half = (less["high"] - less["low"]) / 2
    assert f"{100 * row['value']:.2f} {100 * less['value']:+.2f} \N{PLUS-MINUS SIGN} {100 * half:.2f}" in shown


def test_tasks_alone_have_no_table_of_perplexities(tmp_path, capsys):
    for name in ("uniform", "top"):
        asked(tmp_path, name, 0, answers(0), limit=50)
    shown = printed(compared(tmp_path), capsys)
    assert "perplexity" not in shown
    assert "bits" not in shown
    assert "tasks: at most 50 items of each were asked" in shown


def test_many_tasks_are_rows(tmp_path, capsys, monkeypatch):
    many = {f"t{number:02}": (f"Task {number}", "other", "acc", 0, None) for number in range(50)}
    monkeypatch.setattr(made, "TASKS", many)
    for seed, name in enumerate(("uniform", "top")):
        asked(tmp_path, name, 0, answers(seed, sizes=dict.fromkeys(many, 5)))
    shown = printed(compared(tmp_path), capsys)
    assert "Task 39" in shown
    assert "Task 40" not in shown
    assert "... 10 more" in shown


def printed(result, capsys):
    from qurating_jax.runtime.terminal import show

    show(tables.tables(result), *tables.notes(result))
    return capsys.readouterr().out


# ---- what does not compare, and broken files


@pytest.mark.parametrize(
    ("values", "options", "told"),
    [
        (answers(1, sizes={"easy": 40, "logic": 25}), {}, r"different tasks \(open in one of them alone\)"),
        (answers(1), {"limit": 7}, "top-seed0 was asked 7 items of each task, uniform-seed0 all items"),
        (answers(1), {"shots": {"easy": 3}}, "top-seed0 was asked easy with num_fewshot 3, uniform-seed0 with 15"),
        (answers(1), {"items": {"open": [f"x{n}" for n in range(30)]}}, "open: .* have no item in common"),
    ],
)
def test_other_tasks_limits_shots_and_items_are_refused_in_one_line(tmp_path, values, options, told):
    asked(tmp_path, "uniform", 0, answers(0))
    asked(tmp_path, "top", 0, values, **options)
    with pytest.raises(UserError, match=told) as error:
        compared(tmp_path)
    assert "\n" not in str(error.value)


def test_broken_files_are_one_line(tmp_path):
    asked(tmp_path, "uniform", 0, answers(0))
    directory = made.step(tmp_path, "eval_lm", "uniform", 0)
    items, document = directory / "task_items.parquet", directory / "eval.json"
    whole, text, table = items.read_bytes(), document.read_text(), pq.read_table(directory / "task_items.parquet")
    for broken in (
        table.drop_columns("value"),
        table.set_column(3, "value", [[math.nan] * len(table)]),
        table.slice(0, SIZES["easy"]),
    ):
        pq.write_table(broken, items)
        with pytest.raises(UserError, match=r"task_items.parquet: not written by `qurating eval-lm`"):
            compared(tmp_path)
    items.write_bytes(whole[:40])
    with pytest.raises(UserError, match=r"task_items.parquet: not written by"):
        compared(tmp_path)
    items.write_bytes(whole)
    for key in ("models", "harness"):
        other = json.loads(text)
        del other["tasks"][key]
        document.write_text(json.dumps(other))
        with pytest.raises(UserError, match=r"eval.json: no `tasks` of `qurating eval-lm`"):
            compared(tmp_path)
