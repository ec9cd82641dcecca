"""Comparisons of experiments against numbers made by hand, and what cannot be compared."""

import json
import math

import compared_runs as made
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from qurating_jax.experiments.comparing.compare import compare
from qurating_jax.experiments.records import find_runs
from qurating_jax.method.perplexity import ratio_difference
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UsageError, UserError


def compared(output, **options):
    return compare(find_runs([str(output)]), **options)


def simple(output, experiment, seed, bits=(2, 4, 6), **more):
    """A run of an evaluation alone."""
    made.record(output, experiment, seed, steps={"eval_lm": f"steps/{made.folder('eval_lm', experiment, seed)}"})
    made.evaluate(made.step(output, "eval_lm", experiment, seed), bits, **more)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return made.two_experiments(tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def result(output):
    return compared(output)


# ---- by hand: 3 documents of 1, 1 and 2 bytes, 2 seeds


def test_the_whole_is_plain_json_and_in_the_order_of_the_runs(output, result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result == compared(output)
    assert (result["baseline"], result["level"]) == ("uniform", 0.95)
    assert result["windows"] == {"context_tokens": 32, "stride_tokens": 31, "bos": "none"}
    assert list(result["experiments"]) == result["names"] == ["top", "uniform"]
    places = [f"{output}/runs/uniform", f"{output}/runs/top"]
    assert list(compare(find_runs(places))["experiments"]) == ["uniform", "top"]
    for name, of in result["experiments"].items():
        assert (of["title"], of["seeds"], of["scales"], of["missing"]) == (
            f"The title of {name}",
            [0, 1],
            ["debug"],
            [],
        )


def test_figures_of_two_seeds_are_the_mean_with_both_errors(result):
    of = result["experiments"]["uniform"]["evaluation"]
    assert (of["seeds"], of["documents_left_out"], of["tokenizers"]) == ([0, 1], 0, ["bytes"])
    everything = of["all"]
    assert (everything["num_documents"], everything["num_tokens"], everything["num_bytes"]) == (3, 4, 4)
    # ratios 12 / 4 and 16 / 4; variances as in tests/method/test_seeds.py: 3/64 + 1/4 - 3/64
    per_byte = everything["bits_per_byte"]
    assert per_byte["value"] == pytest.approx(3.5, rel=1e-12)
    assert per_byte["standard_error"] == pytest.approx(0.5, rel=1e-12)
    assert per_byte["standard_error_documents"] == pytest.approx(math.sqrt(3) / 8, rel=1e-12)
    assert per_byte["standard_error_seeds"] == pytest.approx(0.5, rel=1e-12)
    assert everything["nats_per_token"]["value"] == pytest.approx(3.5 * math.log(2), rel=1e-12)
    assert everything["perplexity"]["value"] == pytest.approx(2**3.5, rel=1e-12)
    assert everything["perplexity"]["low"] == pytest.approx(2 ** per_byte["low"], rel=1e-9)
    assert {name: row["bits_per_byte"]["value"] for name, row in of["domains"].items()} == {
        "a": pytest.approx((3 + 4) / 2),  # 6/2 and 8/2
        "b": pytest.approx((3 + 4) / 2),  # 6/2 and 8/2
    }
    assert of["domains"]["b"]["bits_per_byte"]["standard_error"] is None  # one document
    assert (of["macro"]["num_domains"], of["macro"]["bits_per_byte"]["standard_error"]) == (2, None)
    assert of["macro"]["perplexity"]["value"] == pytest.approx(2**3.5, rel=1e-12)
    assert {seed: row["bits_per_byte"] for seed, row in of["by_seed"].items()} == {
        "0": pytest.approx(3.0),
        "1": pytest.approx(4.0),
    }
    assert of["by_seed"]["1"]["perplexity"] == pytest.approx(16.0)


def test_the_difference_is_paired_by_document_and_seed(result):
    """Ratios of top are 9/4 and 11/4, so differences 3/4 and 5/4 of uniform less top, and the moves of a difference
    (1/4 1/4 -1/2) / 8 and (-1/4 3/4 -1/2) / 8: V = 12/256 + 16/256 - 3/256 = (5/16)^2."""
    assert result["experiments"]["uniform"]["difference"] is None
    of = result["experiments"]["top"]["difference"]
    assert (of["paired_seeds"], of["seeds"], of["baseline_seeds"]) == (True, [0, 1], [0, 1])
    assert (of["num_documents"], of["documents_left_out"]) == (3, 0)
    found = of["all"]["bits_per_byte"]
    assert found["value"] == pytest.approx(-1.0, rel=1e-12)
    assert found["standard_error"] == pytest.approx(5 / 16, rel=1e-12)
    assert found["standard_error_documents"] == pytest.approx(math.sqrt(12) / 16, rel=1e-12)
    assert found["standard_error_seeds"] == pytest.approx(1 / 4, rel=1e-12)
    degrees = 25**2 / (12**2 / 2 + 16**2 / 1 + 3**2 / 2)
    assert found["degrees_of_freedom"] == pytest.approx(degrees, rel=1e-10)
    low, high = stats.t.interval(0.95, degrees, -1.0, 5 / 16)
    assert (found["low"], found["high"]) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))
    assert found["p_value"] == of["p_holm"] == pytest.approx(2 * stats.t.cdf(-16 / 5, degrees), rel=1e-9)
    assert of["all"]["nats_per_token"]["value"] == pytest.approx(-math.log(2), rel=1e-12)  # a byte is a token here
    # a: -1 and -3/2; b: -1/2 and -1
    assert of["domains"]["a"]["bits_per_byte"]["value"] == pytest.approx(-1.25, rel=1e-12)
    assert of["domains"]["b"]["bits_per_byte"]["value"] == pytest.approx(-0.75, rel=1e-12)
    assert of["macro"]["bits_per_byte"]["value"] == pytest.approx(-1.0, rel=1e-12)
    assert of["domains"]["b"]["bits_per_byte"]["low"] is None


def test_selections_and_their_overlap_by_hand(result):
    of = result["experiments"]["top"]["selection"]
    assert of["num_selected"] == {"mean": 2.5, "minimum": 2, "maximum": 3}
    assert of["selected_tokens"] == {"mean": 50.0, "minimum": 45, "maximum": 55}
    assert of["overshoot_tokens"] == {"mean": 10.0, "minimum": 5, "maximum": 15}
    assert of["share_tokens"] == {"mean": 0.25, "minimum": 0.225, "maximum": 0.275}
    assert of["effective_sample_size"] == {"mean": 4.0, "minimum": 4.0, "maximum": 4.0}
    assert of["kl_from_uniform"] is of["overshoot_documents"] is None
    assert of["ratings"] == {
        "quality_average": {
            "eligible": {"mean": 0.5, "minimum": 0.5, "maximum": 0.5},
            "selected": {"mean": 2.5, "minimum": 2.0, "maximum": 3.0},
        }
    }
    # b c of seed 0, d of seed 1
    assert of["overlap"] == {
        "seeds": [0, 1],
        "common_documents": {"mean": 1.5, "minimum": 1, "maximum": 2},
        "common_tokens": {"mean": 45.0, "minimum": 40, "maximum": 50},
        "jaccard_documents": {"mean": (2 / 4 + 1 / 3) / 2, "minimum": 1 / 3, "maximum": 2 / 4},
        "jaccard_tokens": {"mean": (50 / 65 + 40 / 55) / 2, "minimum": 40 / 55, "maximum": 50 / 65},
    }
    uniform = result["experiments"]["uniform"]["selection"]
    assert uniform["overlap"] is uniform["effective_sample_size"] is None


def test_trainings_by_hand(result):
    assert result["experiments"]["top"]["training"] == {
        "seeds": [0, 1],
        "parameters": {"mean": 1000, "minimum": 1000, "maximum": 1000},
        "num_steps": {"mean": 2, "minimum": 2, "maximum": 2},
        "seen_tokens": {"mean": 640, "minimum": 640, "maximum": 640},
        "final_loss": {"mean": 2.0, "minimum": 1.5, "maximum": 2.5},
    }


# ---- seeds


def test_of_one_seed_the_figures_are_those_of_the_evaluation(tmp_path):
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 40, 60)
    many = {"ids": [f"d{n}" for n in range(60)], "domains": [f"k{n % 4}" for n in range(60)], "sizes": sizes}
    bits = {name: sizes * rng.normal(3, 0.5, 60) for name in ("uniform", "top")}
    for name, one in bits.items():
        simple(tmp_path, name, 5, one, level=0.9, **many)
    result = compared(tmp_path, level=0.9)
    for name in bits:
        directory = made.step(tmp_path, "eval_lm", name, 5)
        truth = json.loads((directory / "eval.json").read_text())["models"]["lm"]
        found = result["experiments"][name]["evaluation"]
        for part, row in {"all": truth["all"], "macro": truth["macro"], **truth["domains"]}.items():
            ours = found[part] if part in ("all", "macro") else found["domains"][part]
            for key, value in row.items():
                if isinstance(value, dict):
                    assert {each: ours[key][each] for each in value} == pytest.approx(value, rel=1e-10)
                else:
                    assert ours[key] == value
    counting = sizes > 0
    y, z, x = (one[counting] for one in (bits["top"], bits["uniform"], sizes))
    truth = ratio_difference(y, x, z, x, 0.9)
    found = result["experiments"]["top"]["difference"]["all"]["bits_per_byte"]
    for key in ("value", "standard_error", "low", "high"):
        assert found[key] == pytest.approx(getattr(truth, key), rel=1e-10)
    assert found["degrees_of_freedom"] is None


def test_only_seeds_that_both_have_are_paired(tmp_path):
    for seed in (0, 1, 2):
        simple(tmp_path, "uniform", seed, (2 + seed, 4, 6))
    for seed in (1, 2, 7):
        simple(tmp_path, "top", seed, (1, 3 + seed, 5))
    of = compared(tmp_path)["experiments"]["top"]["difference"]
    assert (of["paired_seeds"], of["seeds"]) == (True, [1, 2])
    assert of["all"]["bits_per_byte"]["value"] == pytest.approx(((10 + 11) - (13 + 14)) / 2 / 4)


def test_without_a_common_seed_the_means_are_compared_and_seeds_are_unpaired(tmp_path):
    for seed, bits in ((0, (2, 4, 6)), (1, (4, 4, 8))):
        simple(tmp_path, "uniform", seed, bits)
    for seed, bits in ((2, (1, 3, 5)), (3, (3, 2, 6))):
        simple(tmp_path, "top", seed, bits)
    of = compared(tmp_path)["experiments"]["top"]["difference"]
    assert (of["paired_seeds"], of["seeds"], of["baseline_seeds"]) == (False, [2, 3], [0, 1])
    found = of["all"]["bits_per_byte"]
    assert found["value"] == pytest.approx(-1.0)
    # ratios 3 4 and 9/4 11/4: (1/2)^2 + (1/4)^2
    assert found["standard_error_seeds"] == pytest.approx(math.sqrt(5) / 4, rel=1e-12)


def test_p_values_are_adjusted_for_all_differences(tmp_path):
    rng = np.random.default_rng(1)
    many = {"ids": [f"d{n}" for n in range(50)], "domains": ["k"] * 50, "sizes": [9] * 50}
    first = rng.normal(20, 1, 50)
    for name, less in (("uniform", 0.0), ("b", 1.0), ("c", 0.4), ("d", 0.0)):
        simple(tmp_path, name, 0, first - less + (name != "uniform") * rng.normal(0, 1, 50), **many)
    rows = [row["difference"] for row in compared(tmp_path)["experiments"].values() if row["difference"]]
    p_values = sorted(row["all"]["bits_per_byte"]["p_value"] for row in rows)
    adjusted = np.minimum(np.maximum.accumulate(np.array([3, 2, 1]) * p_values), 1)
    assert sorted(row["p_holm"] for row in rows) == pytest.approx(adjusted.tolist())


# ---- documents


def test_documents_that_not_all_have_are_left_out_and_counted(tmp_path):
    four = {"ids": ("d0", "d1", "d2", "d3"), "domains": ("a", "a", "b", "b"), "sizes": (1, 1, 2, 5)}
    other_order = {"ids": ("d3", "d1", "d0"), "domains": ("b", "a", "a"), "sizes": (5, 1, 1)}
    simple(tmp_path, "uniform", 0, (2, 4, 6, 5), **four)
    simple(tmp_path, "top", 0, (10, 3, 1), **other_order)
    result = compared(tmp_path)
    of = result["experiments"]["top"]["difference"]
    assert (of["num_documents"], of["documents_left_out"]) == (3, 1)
    assert of["all"]["bits_per_byte"]["value"] == pytest.approx(((1 + 3 + 10) - (2 + 4 + 5)) / 7)
    assert result["experiments"]["uniform"]["evaluation"]["all"]["num_documents"] == 4
    simple(tmp_path, "uniform", 1, (2, 4, 6))
    of = compared(tmp_path)["experiments"]["uniform"]["evaluation"]
    assert (of["all"]["num_documents"], of["documents_left_out"]) == (3, 1)


def test_an_id_that_stands_twice_is_two_documents(tmp_path):
    simple(tmp_path, "uniform", 0, (2, 4, 6), ids=("d", "d", "e"))
    simple(tmp_path, "top", 0, (1, 3, 5), ids=("d", "d", "e"))
    of = compared(tmp_path)["experiments"]["top"]["difference"]
    assert (of["num_documents"], of["documents_left_out"]) == (3, 0)
    assert of["all"]["bits_per_byte"]["value"] == pytest.approx(-3 / 4)


def test_of_different_tokenizers_bits_per_byte_are_compared_alone(tmp_path):
    simple(tmp_path, "uniform", 0)
    simple(tmp_path, "top", 0, (3, 3, 3), sizes=(2, 1, 3), tokenizer="other")
    of = compared(tmp_path)["experiments"]["top"]["difference"]
    assert of["all"]["nats_per_token"] is of["macro"]["nats_per_token"] is None
    assert of["all"]["bits_per_byte"]["value"] == pytest.approx(9 / 6 - 12 / 4)


def test_runs_on_other_documents_or_in_another_way_are_refused(tmp_path):
    simple(tmp_path, "uniform", 0)
    simple(tmp_path, "a", 0, ids=("x", "y", "z"))
    places = [made.folder("eval_lm", name, 0) for name in ("a", "uniform")]
    with pytest.raises(UserError, match=rf"{places[0]} and .*{places[1]} have no held-out document in common"):
        compared(tmp_path)
    other = tmp_path / "other"
    simple(other, "uniform", 0)
    simple(other, "a", 0, sizes=(1, 3, 2))
    with pytest.raises(
        UserError, match=rf"document d1 has 3 tokens in .*{places[0]} and 1 in .*{places[1]}: not the same"
    ):
        compared(other)
    for number, (name, value) in enumerate({"context_tokens": 64, "stride_tokens": 7, "bos": "eos"}.items()):
        third = tmp_path / f"third{number}"
        simple(third, "uniform", 0)
        simple(third, "a", 0, **{name: value})
        before = {"context_tokens": 32, "stride_tokens": 31, "bos": "none"}[name]
        with pytest.raises(UserError, match=f"a-seed0 was evaluated with {name} {value}, uniform-seed0 with {before}"):
            compared(third)


# ---- what is not there


def test_runs_that_are_not_finished_are_listed(tmp_path):
    made.two_experiments(tmp_path)
    made.record(tmp_path, "top", 2)
    made.begin(made.step(tmp_path, "eval_lm", "top", 2), "eval-lm")
    made.train(made.step(tmp_path, "train_lm", "top", 2), [1.0])
    made.record(tmp_path, "later", 0)
    made.record(tmp_path, "curve", 0)
    made.evaluate(made.step(tmp_path, "eval_lm", "curve", 0), (1, 2, 3), names=("lm@1", "lm@2"))
    made.record(tmp_path, "twice", 0, steps={"one": "steps/one", "two": "steps/two"})
    made.record(tmp_path, "other", 0, steps={"select": "steps/three"})
    made.select(tmp_path / "steps" / "three", {"a": 1})
    for name in ("one", "two"):
        made.evaluate(tmp_path / "steps" / name, (1, 2, 3))
    found = compared(tmp_path)["experiments"]
    assert found["top"]["missing"] == ["seed 2: select not begun, eval-lm unfinished"]
    assert found["top"]["evaluation"]["seeds"] == found["top"]["difference"]["seeds"] == [0, 1]
    assert found["top"]["training"]["seeds"] == [0, 1, 2]
    of = found["later"]
    assert of["missing"] == ["seed 0: not begun"]
    assert of["evaluation"] is of["selection"] is of["training"] is of["difference"] is None
    told = "eval-lm of 2 models (lm@1, lm@2), one can be compared"
    assert found["curve"]["missing"] == [f"seed 0: select not begun, train-lm not begun, {told}"]
    assert found["twice"]["missing"] == ["seed 0: 2 steps of eval-lm (one, two), none called eval_lm"]
    assert found["other"]["missing"] == ["seed 0: no step of eval-lm"]


def test_steps_are_known_by_their_stage_not_by_their_name(tmp_path):
    made.record(tmp_path, "uniform", 0, steps={"held_out": "steps/x", "choose": "steps/y"})
    made.evaluate(tmp_path / "steps" / "x", (2, 4, 6))
    made.select(tmp_path / "steps" / "y", {"a": 3})
    of = compared(tmp_path)["experiments"]["uniform"]
    assert of["evaluation"]["all"]["bits_per_byte"]["value"] == pytest.approx(3.0)
    assert of["selection"]["selected_tokens"]["mean"] == 3


def test_a_baseline_without_evaluation_leaves_no_differences(tmp_path):
    made.record(tmp_path, "uniform", 0)
    simple(tmp_path, "top", 0)
    found = compared(tmp_path)["experiments"]
    assert found["top"]["difference"] is found["uniform"]["evaluation"] is None
    assert found["top"]["evaluation"]["all"]["perplexity"]["value"] == pytest.approx(8.0)


def test_selections_alone_are_compared_too(tmp_path):
    for name in ("uniform", "top"):
        made.record(tmp_path, name, 0)
        made.select(made.step(tmp_path, "select", name, 0), {"a": 3, name: 4})
    result = compared(tmp_path)
    assert result["windows"] is None
    assert result["experiments"]["top"]["selection"]["overlap"]["common_tokens"]["mean"] == 3


def test_nothing_at_all_is_an_error(tmp_path):
    made.record(tmp_path, "uniform", 0)
    with pytest.raises(UserError, match=r"nothing to compare: .*uniform-seed0: not begun\); `qurating run`"):
        compared(tmp_path)


def test_the_baseline_is_named_or_uniform_or_the_first(output, tmp_path):
    named = compared(output, baseline="top")
    assert named["baseline"] == "top"
    assert named["experiments"]["uniform"]["difference"]["all"]["bits_per_byte"]["value"] == pytest.approx(1.0)
    for name in ("second", "alpha"):
        simple(tmp_path, name, 0)
    assert compared(tmp_path)["baseline"] == "alpha"
    with pytest.raises(
        UsageError, match=r"--baseline unifrom: no such experiment among the runs; did you mean `uniform`"
    ):
        compared(output, baseline="unifrom")
    with pytest.raises(UsageError, match=r"there are top, uniform"):
        compared(output, baseline="xyz")


# ---- broken files


def test_broken_files_of_finished_steps_are_one_line(tmp_path):
    made.two_experiments(tmp_path)
    documents = made.step(tmp_path, "eval_lm", "top", 0) / "documents.parquet"
    whole = documents.read_bytes()
    table = pq.read_table(documents)
    for broken in (table.drop_columns("nats"), table.set_column(5, "nats", [[math.inf, 1.0, 1.0]])):
        pq.write_table(broken, documents)
        with pytest.raises(UserError, match=r"documents.parquet: not written by `qurating eval-lm`"):
            compared(tmp_path)
    documents.write_bytes(whole[:50])
    with pytest.raises(UserError, match=r"documents.parquet: not written by `qurating eval-lm`"):
        compared(tmp_path)
    documents.write_bytes(whole)
    for name, stage in (("eval_lm", "eval.json"), ("select", "selection.json")):
        path = made.step(tmp_path, name, "top", 0) / stage
        before = path.read_text()
        path.write_text("{}")
        with pytest.raises(UserError, match=rf"{stage}: not written by"):
            compared(tmp_path)
        path.write_text(before)
    place = made.step(tmp_path, "train_lm", "top", 0) / "manifest.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"schema_version": manifest.SCHEMA_VERSION + 1}))
    with pytest.raises(UserError, match="manifest of schema"):
        compared(tmp_path)
