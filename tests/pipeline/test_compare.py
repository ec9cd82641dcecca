"""`qurating compare` as a command: what it prints and writes, selections of every strategy, and what it refuses."""

import json
import shutil

import compared_runs as made
import numpy as np
import pyarrow.parquet as pq
import pytest
import select_runs
from select_runs import EXPERTISE, RATING, STYLE

from qurating_jax import __main__ as command
from qurating_jax.method.perplexity import ratio_difference

HOSTILE = "[red]we\x1b[2Jb\u202e"


def run_here(*argv):
    return command.main(["compare", *map(str, argv)])


def lines_of(text):
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return made.two_experiments(tmp_path_factory.mktemp("compared"))


def test_tables_and_notes(output, capsys):
    assert run_here(output / "runs" / "uniform", output / "runs" / "top") == 0
    lines = lines_of(capsys.readouterr().out)
    assert lines[0] == "Experiments, 95% intervals, less uniform"
    for row in (
        "uniform 0 1 11.31 3.5000 - -",  # 2^3.5
        "top 0 1 5.66 2.5000 -1.0000 \N{PLUS-MINUS SIGN} 1.4305 0.0925",  # 2^2.5; 5/16 and 1.88 degrees of freedom
        "experiment mean of domains a b",
        "top -1.0000 -1.2500 \N{PLUS-MINUS SIGN} 644.8582 -0.7500",
        "top 2.5 50 25.00 % 10 4 40.00 %",
        "top 2.5",  # mean rating
        "top 0 1 1.5 45 0.4167 0.7483",
        "top 0 1 1,000 2 640 2",
        "differences are less uniform, below 0 is better; \N{PLUS-MINUS SIGN} half of the interval; p is adjusted for "
        "all differences (Holm)",
        "windows of up to 32 tokens, 31 further each time, bos none",
        "2 seeds: intervals may hold the truth less often than they say (uniform, top)",
        "a domain of one document has no interval, and the mean of domains with it has none either",
    ):
        assert row in lines
    assert sum(line.startswith("uniform ") for line in lines) == 4  # not among differences and overlaps


def test_of_one_seed_the_table_says_so(output, capsys):
    records = [output / "runs" / name / "seed1.json" for name in ("uniform", "top")]
    assert run_here(*records, "--level", "0.9") == 0
    out = capsys.readouterr().out
    assert "Experiments, 90% intervals, less uniform" in out
    assert "1 seed: says nothing of other seeds (uniform, top)" in out
    assert run_here(records[0], output / "runs" / "top") == 0
    out = capsys.readouterr().out
    assert "1 seed: says nothing of other seeds (uniform)" in out
    assert "top: the difference is of 1 seed and says nothing of other seeds" in out


def test_json_is_the_last_line_and_the_file(output, tmp_path, capsys):
    place = tmp_path / "made" / "compare.json"
    assert run_here(output, "--baseline", "top", "--output", place, "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(place.read_text()) == result
    assert result["baseline"] == "top"
    assert result["experiments"]["uniform"]["difference"]["all"]["bits_per_byte"]["value"] == pytest.approx(1.0)
    before = place.read_bytes()
    assert run_here(output, "--baseline", "top", "--output", place) == 0  # an earlier comparison is replaced
    assert place.read_bytes() == before


def test_what_is_left_out_unpaired_or_unfinished_is_noted(output, tmp_path, capsys):
    copied = tmp_path / "out"
    shutil.copytree(output, copied)
    (copied / "runs" / "top" / "seed1.json").unlink()
    for seed, bits in ((7, (1, 3, 5)), (8, (3, 3, 3))):
        made.record(copied, "apart", seed, scale="laptop")
        made.evaluate(made.step(copied, "eval_lm", "apart", seed), bits)
    made.record(copied, "fewer", 0)
    made.evaluate(made.step(copied, "eval_lm", "fewer", 0), (1, 3), ids=("d0", "d1"), domains="aa", sizes=(1, 1))
    made.record(copied, "later", 0)
    assert run_here(copied) == 0
    lines = lines_of(capsys.readouterr().out)
    for line in (
        "apart: no seed in common with uniform (7 8; 0 1), so seeds are unpaired",
        "fewer: the difference is on 2 documents; 1 left out, which not every run has",
        "1 seed: says nothing of other seeds (fewer, top)",
        "runs of different scales: debug, laptop",
        "later, seed 0: not begun",
        "fewer, seed 0: select not begun, train-lm not begun",
    ):
        assert line in lines
    assert "later 0 - - - -" in lines
    assert any(line.startswith("top 0 4.76 2.2500 ") for line in lines)


def test_many_domains_are_rows_and_names_cannot_move_the_cursor(tmp_path, capsys):
    domains = [HOSTILE, *(f"k{number:02d}" for number in range(44))]
    for name, less in (("uniform", 0), ("top", 1)):
        made.record(tmp_path, name, 0, title=HOSTILE)
        bits = 5 + np.arange(90) % 7 - less * (np.arange(90) % 3)
        ids = [f"d{number}" for number in range(90)]
        made.evaluate(made.step(tmp_path, "eval_lm", name, 0), bits, ids=ids, domains=domains * 2, sizes=[2] * 90)
    assert run_here(tmp_path) == 0
    out = capsys.readouterr().out
    assert not any(sign in out for sign in "\x1b\u202e")
    lines = lines_of(out)
    assert "domain top" in lines
    assert "[red]we?[2Jb? 0.0000 \N{PLUS-MINUS SIGN} 0.0000" in lines  # documents 0 and 45, which lose nothing
    assert "k00 -0.5000 \N{PLUS-MINUS SIGN} 0.0000" in lines  # 1 and 46 lose 1 of 2 bytes each
    assert "... 5 more" in lines
    assert any(line.startswith("mean of domains ") for line in lines)


def test_of_one_experiment_the_figure_has_its_interval(output, capsys):
    assert run_here(output / "runs" / "uniform") == 0
    lines = lines_of(capsys.readouterr().out)
    assert any(line.startswith("uniform 0 1 11.31 3.5000 \N{PLUS-MINUS SIGN} ") for line in lines)


@pytest.mark.parametrize("domain", ["[/none]", "[red]x[/red]"])
def test_names_above_columns_are_no_markup(domain, tmp_path, capsys):
    for name, bits in (("uniform", (1, 2, 3)), ("top", (2, 3, 4))):
        made.record(tmp_path, name, 0)
        made.evaluate(made.step(tmp_path, "eval_lm", name, 0), bits, domains=(domain, domain, "b"))
    assert run_here(tmp_path) == 0
    assert domain in capsys.readouterr().out


LONG = ("inverse_required_expertise_temperature_2", "inverse_facts_and_trivia_temperature_1", "educational_value_top_k")


def test_in_eighty_columns_numbers_are_whole_and_names_broken_behind_their_words(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    ids, domains = [f"d{n}" for n in range(60)], [f"RedPajamaStackExchange{n % 6}" for n in range(60)]
    for name in ("uniform", *LONG):
        for seed in (0, 1, 2):
            made.record(tmp_path, name, seed)
            place = made.step(tmp_path, "eval_lm", name, seed)
            made.evaluate(place, rng.normal(30, 3, 60), ids=ids, domains=domains, sizes=[9] * 60)
            chosen = {f"{name}{n}": 100_000_000 + n for n in range(300)}
            made.select(made.step(tmp_path, "select", name, seed), chosen, rating=0.123456, effective=123.4)
    assert run_here(tmp_path) == 0
    wide = capsys.readouterr().out
    assert all(sum(line.startswith(f" {name} ") for line in wide.splitlines()) >= 4 for name in LONG)
    monkeypatch.setattr("qurating_jax.runtime.terminal.PLAIN_WIDTH", 80)
    assert run_here(tmp_path) == 0
    narrow = capsys.readouterr().out
    tables = narrow[: narrow.index("differences are less")]
    assert max(map(len, tables.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in tables
    firsts = {line[1:].split("  ")[0].strip() for line in tables.splitlines()}
    assert {"inverse_required_", "expertise_", "temperature_2"} <= firsts  # the first table, which has the least room
    numbers = {word for word in wide.split() if word.replace("-", "").replace(".", "").isdigit()}
    assert numbers <= set(narrow.split())


# ---- selections of every strategy, by the stage itself


@pytest.fixture(scope="module")
def selections(tmp_path_factory):
    root = tmp_path_factory.mktemp("strategies")
    source = select_runs.write(root / "in", select_runs.corpus())
    (root / "target.jsonl").write_text("".join(json.dumps({"text": f"text{n} of a target"}) + "\n" for n in range(9)))
    targets = (f"a={root}/target.jsonl", f"b={root}/target.jsonl")
    strategies = {
        "uniform": {"strategy": "uniform", "rating": (RATING,)},
        "sample": {"strategy": "sample", "rating": (RATING, STYLE), "temperature": 2.0},
        "inverse": {"strategy": "sample", "inverse": True},
        "top_k": {"strategy": "top_k", "budget_documents": 30},
        "threshold": {"strategy": "threshold", "threshold": 3.0},
        "perplexity": {"strategy": "perplexity", "rating": (), "perplexity": "perplexity", "keep": "lowest"},
        "dsir": {"strategy": "dsir", "rating": (), "targets": targets[:1], "dsir_min_words": 1},
        "dsir_two": {"strategy": "dsir", "rating": (), "targets": targets, "dsir_min_words": 1},
        "mix": {"strategy": "mix", "rating": (), "members": (RATING, EXPERTISE), "domain_field": ("domain",)},
    }
    found = {}
    for name, options in strategies.items():
        for seed in (0, 1):
            made.record(root / "out", name, seed)
            directory = made.step(root / "out", "select", name, seed)
            found[name, seed] = select_runs.select(directory, source, seed=seed, write="ids", **options)
    return root / "out", list(strategies), found


def test_selections_of_every_strategy(selections, capsys):
    output, names, found = selections
    capsys.readouterr()
    assert run_here(output, "--json") == 0
    *printed, last = capsys.readouterr().out.splitlines()
    experiments = json.loads(last)["experiments"]
    assert set(experiments) == set(names)
    for name in names:
        of, (one, two) = experiments[name]["selection"], (found[name, seed] for seed in (0, 1))
        both = [len(outcome.chosen) for outcome in (one, two)]
        assert of["num_selected"] == {"mean": np.mean(both), "minimum": min(both), "maximum": max(both)}
        tokens = [sum(outcome.ids["tokens"].to_pylist()) for outcome in (one, two)]
        assert of["selected_tokens"]["mean"] == np.mean(tokens)
        assert list(of["ratings"]) == list(one.explained["ratings"])
        for column, sides in of["ratings"].items():
            means = [outcome.explained["ratings"][column]["selected"]["mean"] for outcome in (one, two)]
            assert sides["selected"]["mean"] == pytest.approx(np.mean(means), rel=1e-12)
        if name != "uniform":
            common = [len(set(found[name, seed].chosen) & set(found["uniform", seed].chosen)) for seed in (0, 1)]
            assert of["overlap"]["common_documents"]["mean"] == np.mean(common)
    assert list(experiments["mix"]["selection"]["members"]) == [RATING, EXPERTISE]
    assert list(experiments["dsir_two"]["selection"]["members"]) == ["a", "b"]
    assert experiments["mix"]["selection"]["effective_sample_size"] is None
    assert experiments["sample"]["selection"]["effective_sample_size"]["mean"] > 1
    assert experiments["top_k"]["selection"]["overshoot_documents"] == {"mean": 0, "minimum": 0, "maximum": 0}
    assert experiments["threshold"]["selection"]["overshoot_tokens"] is None
    lines = lines_of("\n".join(printed))
    start = lines.index("Mean ratings of the selected documents, means over seeds")
    mean = found["top_k", 0].explained["ratings"][RATING]["selected"]["mean"]
    assert any(line.startswith(f"top_k - - {mean:.4g} - -") for line in lines[start:])
    assert "threshold 0 1 - - - -" in lines
    assert not any(line.startswith("Bits per byte less") for line in lines)


# ---- what is refused


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 2, "--runs is required"),
        (["nowhere"], 1, "nowhere: no run record here"),
        (["{out}", "--baseline", "topp"], 2, "--baseline topp: no such experiment among the runs; did you mean `top`?"),
        (["{out}", "--level", "1"], 2, "level is 1.0; it must be between 0 and 1"),
        (["{out}", "--output", "{out}"], 2, "a directory; name a file"),
        (["{out}", "--output", "{out}/runs/top/seed0.json"], 2, "another file stands there, not an earlier comparison"),
        (["{out}/steps"], 1, "no run record here"),
    ],
)
def test_mistakes_are_one_line(output, argv, code, words, capsys):
    before = (output / "runs/top/seed0.json").read_bytes()
    assert run_here(*(word.format(out=output) for word in argv)) == code
    captured = capsys.readouterr()
    [line] = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert words in line
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert (output / "runs/top/seed0.json").read_bytes() == before


def test_runs_evaluated_in_other_windows_are_refused_in_one_line(output, tmp_path, capsys):
    made.record(tmp_path, "wide", 0)
    made.evaluate(made.step(tmp_path, "eval_lm", "wide", 0), (1, 2, 3), context_tokens=64)
    assert run_here(output, tmp_path) == 1
    assert "wide-seed0 with 64; evaluate all runs in one way" in capsys.readouterr().err


def test_figures_follow_from_the_documents_of_the_stage(tmp_path, capsys):
    """A difference of one seed, from the stage's own table to the difference that eval-lm itself would have found."""
    rng = np.random.default_rng(0)
    many = {"ids": [f"d{n}" for n in range(40)], "domains": ["k"] * 40, "sizes": rng.integers(1, 30, 40)}
    for name in ("uniform", "top"):
        made.record(tmp_path, name, 0)
        made.evaluate(made.step(tmp_path, "eval_lm", name, 0), rng.normal(30, 3, 40), **many)
    assert run_here(tmp_path, "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    ours, theirs = (
        pq.read_table(made.step(tmp_path, "eval_lm", name, 0) / "documents.parquet") for name in ("top", "uniform")
    )
    columns = [side[name].to_numpy() for side in (ours, theirs) for name in ("nats", "num_tokens")]
    truth = ratio_difference(*columns)
    found = result["experiments"]["top"]["difference"]["all"]["nats_per_token"]
    assert (found["value"], found["high"]) == (pytest.approx(truth.value), pytest.approx(truth.high))
