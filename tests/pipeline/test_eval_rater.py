import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_hf as tiny

from qurating_jax.__main__ import main as command
from qurating_jax.data.judgment_files import read_judgments
from qurating_jax.pipeline import eval_rater
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.scoring.judged_pairs import judged_pairs
from qurating_jax.scoring.options import NgramConfig
from qurating_jax.scoring.rater import Rater

WORDS = ["the", "cell", "wall", "of", "a", "plant", "is", "made", "cellulose", "in", "1815", "Napoleon", "lost", "at"]
SMALL = NgramConfig(ridge=1.0, bits=8, num_folds=2)
FILES = ("metrics", "pairs", "reliability", "roc")


@pytest.fixture(scope="module")
def rater(tmp_path_factory):
    return str(tiny.make_model(tmp_path_factory.mktemp("rater"), 2))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Pairs of people (votes) and of a machine (probabilities) on two criteria; others to learn from; documents."""
    root = tmp_path_factory.mktemp("judgments")
    generator = np.random.default_rng(0)

    def text(number):
        return f"{number}: " + " ".join(generator.choice(WORDS, generator.integers(3, 30)))

    for name, n in (("people", 24), ("machine", 20), ("train", 30)):
        rows = []
        for number in range(n):
            pair = {"text_a": text(f"{name}{number}a"), "text_b": text(f"{name}{number}b"), "domain": "ab"[number % 2]}
            for criterion in tiny.CRITERIA[:2]:
                if name == "people":
                    votes = int(generator.integers(0, 6))
                    rows.append(pair | {"criterion": criterion, "votes_a": 5 - votes, "votes_b": votes})
                else:
                    rows.append(pair | {"criterion": criterion, "p_b": round(generator.random(), 2)})
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = [{"id": str(n), "text": text(f"doc{n}"), "grade": n % 7} for n in range(12)]
    (root / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    return root


def _config(places, rater, output, **options):
    judgments = (f"people={places / 'people.jsonl'}", f"machine={places / 'machine.jsonl'}")
    defaults = {"judgments": judgments, "window_tokens": 48, "batch_tokens": 512, "ngrams": SMALL, "num_folds": 3}
    return eval_rater.Config(rater=rater, output=str(output), **defaults | options)


@pytest.fixture(scope="module")
def evaluated(places, rater, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated") / "out"
    documents = {"documents": (str(places / "documents.jsonl"),), "truth_field": "grade", "criterion": "writing_style"}
    counts = eval_rater.main(_config(places, rater, output, **documents))
    return output, counts


def test_everything_is_written(evaluated):
    output, counts = evaluated
    result = json.loads((output / "eval.json").read_text())
    criteria = list(tiny.CRITERIA[:2])
    assert counts["criteria"] == list(result["judgments"]) == criteria
    assert (counts["pairs"], counts["texts"], counts["documents"]) == (44, 88, 12)
    assert set(result["pair_accuracy"]) == {"rater", "length", "flesch_reading_ease", "ngrams"}
    assert counts["accuracy"] == {name: row["accuracy"] for name, row in result["pair_accuracy"]["rater"].items()}
    for of in result["judgments"].values():
        assert (set(of["sources"]), set(of["domains"])) == ({"people", "machine"}, {"a", "b"})
        assert set(of["all"]) == {"labels", "rater", "length", "flesch_reading_ease", "ngrams"}
        assert of["sources"]["people"]["labels"]["noise_ceiling_0"]["value"] > 0.5
        assert of["sources"]["machine"]["labels"]["noise_ceiling_0"]["value"] is None
    assert "3 models" in result["baselines"]["ngrams"]
    assert set(result["rank_correlation"]) == {"rater", "length", "flesch_reading_ease"}
    assert counts["spearman"] == result["rank_correlation"]["rater"]["writing_style"]["spearman"]["value"]
    tables = {name: pq.read_table(output / f"{name}.parquet") for name in FILES}
    assert tables["pairs"].num_rows == 88
    assert set(tables["metrics"]["source"].to_pylist()) == {None, "people", "machine"}
    assert set(tables["roc"]["model"].to_pylist()) == set(result["pair_accuracy"])
    assert manifest.read(str(output))["counts"] == counts


def test_differences_are_those_of_the_raters_scores(evaluated, places, rater):
    output, _ = evaluated
    row = pq.read_table(output / "pairs.parquet").to_pylist()[-1]
    pairs = judged_pairs(read_judgments([f"machine={places / 'machine.jsonl'}"], tiny.CRITERIA[:2]))
    first, second = Rater.load(rater, window_tokens=48, batch_tokens=512).score(
        [pairs.texts[pairs.first[-1]], pairs.texts[pairs.second[-1]]]
    )
    assert row["difference"] == pytest.approx(float(second[1] - first[1]), rel=1e-4, abs=1e-5)
    swapped = json.loads((output / "eval.json").read_text())["swapped"]
    assert (swapped["num_pairs"], swapped["num_changed_winners"]) == (44, 0)
    # Batch mates change at most the last bits of a float32 score.
    assert swapped["max_swap_deviation"] <= 1e-5 * swapped["mean_difference"]


def test_differences_change_sign_exactly_where_the_sides_are_swapped(evaluated, places, tmp_path, rater):
    rows = [json.loads(line) for line in (places / "machine.jsonl").read_text().splitlines()]
    swapped = [row | {"text_a": row["text_b"], "text_b": row["text_a"], "p_b": 1 - row["p_b"]} for row in rows]
    tables = []
    for name, content in (("once", rows), ("swapped", swapped)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        options = {
            "judgments": (str(tmp_path / f"{name}.jsonl"),),
            "baseline_judgments": (str(places / "train.jsonl"),),
        }
        eval_rater.main(_config(places, rater, tmp_path / name, **options))
        tables.append(pq.read_table(tmp_path / name / "pairs.parquet"))
    once, other = tables
    assert once["first_id"].equals(other["second_id"])
    for name in ("length_difference", "flesch_reading_ease_difference", "ngrams_difference"):
        np.testing.assert_array_equal(other[name].to_numpy(), -once[name].to_numpy())
    # A neural score may have other last bits in another batch, and texts are met in another order.
    differences = once["difference"].to_numpy()
    np.testing.assert_allclose(other["difference"].to_numpy(), -differences, atol=1e-5 * np.abs(differences).max())
    results = [json.loads((tmp_path / name / "eval.json").read_text())["pair_accuracy"] for name in ("once", "swapped")]
    assert results[0] == results[1]


def test_the_screen_shows_it_and_a_second_run_does_nothing(places, rater, tmp_path, capsys):
    config = _config(places, rater, tmp_path / "out", judgments=(f"people={places / 'people.jsonl'}",))
    counts = eval_rater.main(config)
    out = capsys.readouterr().out
    assert all(name in out for name in ("rater", "length", "ngrams", "(at best)", "educational_value", "log loss"))
    assert "learned from other folds of these judgments" in out
    assert "below one half, the reverse does better" in out
    assert "0 of 24 winners changed" in out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert eval_rater.main(config) == counts
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_baseline_from_other_judgments_is_used_for_documents_too(places, rater, tmp_path):
    options = {
        "baseline_judgments": (str(places / "train.jsonl"),),
        "documents": (str(places / "documents.jsonl"),),
        "truth_field": "grade",
        "criterion": "educational_value",
    }
    eval_rater.main(_config(places, rater, tmp_path / "out", **options))
    result = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert result["baselines"]["ngrams"] == "learned from the baseline judgments"
    assert "ngrams" in result["rank_correlation"]
    eval_rater.main(_config(places, rater, tmp_path / "alone", **options, judgments=()))
    alone = json.loads((tmp_path / "alone" / "eval.json").read_text())
    assert "judgments" not in alone
    assert alone["rank_correlation"]["rater"] == result["rank_correlation"]["rater"]
    assert not (tmp_path / "alone" / "pairs.parquet").exists()


def test_some_criteria_under_other_names_without_ngrams(places, rater, tmp_path):
    options = {"labels": ("other", "writing_style"), "criteria": ("writing_style",), "fit_ngrams": False}
    counts = eval_rater.main(_config(places, rater, tmp_path / "out", **options))
    result = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert list(result["judgments"]) == counts["criteria"] == ["writing_style"]
    assert set(result["pair_accuracy"]) == {"rater", "length", "flesch_reading_ease"}


def test_dry_run_writes_nothing(places, rater, tmp_path, capsys):
    assert eval_rater.main(_config(places, rater, tmp_path / "out", dry_run=True)) == {
        "criteria": ["educational_value", "writing_style"]
    }
    assert "would evaluate" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"judgments": ()}, UsageError, "give --judgments"),
        ({"labels": ("one",)}, UsageError, "--labels must give 2 different names"),
        ({"criteria": ("depth",)}, UserError, "the rater has no depth; it has educational_value, writing_style"),
        (
            {"baseline_judgments": ("{}/people.jsonl",)},
            UserError,
            "texts of the held-out judgments are in the training",
        ),
        ({"judgments": ("{}/nothing.jsonl",)}, UserError, "nothing.jsonl"),
        ({"documents": ("{}/documents.jsonl",), "truth_field": "grade"}, UserError, "--criterion must name one"),
        (
            {"documents": ("{}/documents.jsonl",), "truth_field": "id", "criterion": "writing_style"},
            UserError,
            "id is '0', not a number",
        ),
    ],
)
def test_a_wrong_option_is_one_line(places, rater, tmp_path, options, error, message):
    options = {
        name: tuple(one.replace("{}", str(places)) for one in value) if isinstance(value, tuple) else value
        for name, value in options.items()
    }
    with pytest.raises(error, match=message) as found:
        eval_rater.main(_config(places, rater, tmp_path / "out", fit_ngrams=False, **options))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "options",
    [{"truth_field": "grade"}, {"level": 1.0}, {"num_folds": 1}, {"swapped_pairs": -1}, {"window_tokens": 0}],
)
def test_a_setting_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match=r"expected|together|at least"):
        eval_rater.Config(**options)


def test_a_text_without_tokens_is_an_error_that_counts_it(places, rater, tmp_path):
    rows = [{"text_a": "", "text_b": "b", "p_b": 0.9, "criterion": name} for name in tiny.CRITERIA[:2]]
    (tmp_path / "empty.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="1 of 2 texts have no tokens"):
        eval_rater.main(_config(places, rater, tmp_path / "out", judgments=(str(tmp_path / "empty.jsonl"),)))


def test_the_command_takes_named_sources(places, rater, tmp_path, capsys):
    code = command([
        "eval-rater", "--rater", rater, "--judgments", f"one={places / 'people.jsonl'}", "--fit_ngrams", "false",
        "--window_tokens", "48", "--swapped_pairs", "0", "--output", str(tmp_path / "out"), "--json",
    ])  # fmt: skip
    assert code == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["pairs"] == 24
    assert set(pq.read_table(tmp_path / "out" / "pairs.parquet")["source"].to_pylist()) == {"one"}
