import json

import numpy as np
import pytest
import tiny_hf as tiny

from qurating_jax.data.judgments import from_averages, write_judgments
from qurating_jax.method.bradley_terry import win_probability
from qurating_jax.pipeline import annotate, combine_raters
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.scoring.ngrams import fit
from qurating_jax.scoring.options import NgramConfig
from qurating_jax.scoring.rater import Rater

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon"]


def judgments_of(rng, num_groups, criteria=tiny.CRITERIA):
    """Longer texts are better, whatever is asked."""
    groups = [tuple(" ".join(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(2)) for _ in range(num_groups)]
    lengths = np.array([[len(text) / 5.0 for text in group] for group in groups])
    averages = np.repeat(win_probability(lengths)[..., None], len(criteria), axis=3)
    return from_averages(groups, groups, [("d", "d")] * num_groups, criteria, averages)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two n-gram raters, a neural one, one of another criterion, and held-out judgments."""
    root = tmp_path_factory.mktemp("raters")
    rng = np.random.default_rng(0)
    config = NgramConfig(bits=10, ridge=1.0)
    for name, criteria in (("a", tiny.CRITERIA), ("b", tiny.CRITERIA), ("other", ("easiness",))):
        fit(judgments_of(rng, 40, criteria), config).save(str(root / name))
    tiny.make_model(root / "made", 3).rename(root / "net")
    held_out = judgments_of(rng, 60)
    nothing = np.full(held_out.probabilities.shape, np.nan)
    write_judgments(str(root / "held_out.parquet"), [(held_out, nothing, nothing)])
    return root


def run(places, output, raters, **options):
    config = combine_raters.Config(
        raters=tuple(str(places / name) for name in raters),
        output=str(output),
        window_tokens=48,
        batch_tokens=512,
        **options,
    )
    return combine_raters.main(config)


def test_without_judgments_weights_are_equal_or_given(tmp_path, places):
    assert run(places, tmp_path / "equal", ["a", "b"])["weights"] == {name: [0.5, 0.5] for name in tiny.CRITERIA}
    counts = run(places, tmp_path / "given", ["a", "b"], weights=(2.0, -1.0))
    assert counts["weights"]["writing_style"] == [2.0, -1.0]
    texts = ["alpha beta", "gamma " * 100]
    one, other, both = (Rater.load(str(place)).score(texts) for place in
                        (places / "a", places / "b", tmp_path / "given" / "rater"))  # fmt: skip
    np.testing.assert_allclose(both, 2.0 * one - other, rtol=1e-5, atol=1e-6)
    assert run(places, tmp_path / "given", ["a", "b"], weights=(2.0, -1.0)) == counts  # finished: nothing to do


def test_weights_fitted_to_judgments_are_calibrated(tmp_path, places):
    counts = run(places, tmp_path / "out", ["a", "b", "net"], judgments=(f"mine={places / 'held_out.parquet'}",))
    assert counts["judgments"] == 60
    for criterion in tiny.CRITERIA:
        row = counts["eval"][criterion]
        assert row["num_pairs"] == 60
        assert row["accuracy_in_sample"] > 0.75
        assert len(row["accuracy_of_members"]) == 3
        assert min(counts["weights"][criterion]) >= 0.0
    assert json.loads((tmp_path / "out" / "eval.json").read_text()) == counts["eval"]
    # No other scale fits the judgments better.
    from qurating_jax.data.judgment_files import read_judgments
    from qurating_jax.method.calibration import logistic_slope

    held_out = read_judgments([str(places / "held_out.parquet")])
    rater = Rater.load(str(tmp_path / "out" / "rater"), window_tokens=48)
    scores = np.array([rater.score(list(group)) for group in held_out.texts]).astype(np.float64)
    for number in range(3):
        fitted = logistic_slope(scores[:, 1, number] - scores[:, 0, number], held_out.probabilities[:, 0, 1, number])
        assert fitted.slope == pytest.approx(1.0, abs=1e-4)


def test_the_output_stands_alone_and_annotates(tmp_path, places):
    import shutil

    import pyarrow.parquet as pq

    copies = tmp_path / "copies"
    for name in ("a", "net"):
        shutil.copytree(places / name, copies / name)
    run(copies, tmp_path / "out", ["a", "net"])
    shutil.rmtree(copies)
    assert manifest.exported(str(tmp_path / "out"), *manifest.RATER_STAGES) == str(tmp_path / "out" / "rater")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.TEXTS))
    annotate.main(
        annotate.Config(
            input=(str(tmp_path / "in.jsonl"),), rater=(str(tmp_path / "out"),), output=str(tmp_path / "rated"),
            window_tokens=48, batch_tokens=512,
        )
    )  # fmt: skip
    table = pq.read_table(tmp_path / "rated" / "part-00000.parquet")
    expected = Rater.load(str(tmp_path / "out" / "rater"), window_tokens=48).score(tiny.TEXTS)
    for number, criterion in enumerate(tiny.CRITERIA):
        found = table[f"{criterion}_average"].to_numpy(zero_copy_only=False).astype(np.float32)
        np.testing.assert_allclose(found, expected[:, number], atol=1e-5)
    identity = Rater.load(str(places / "net"), window_tokens=48).model.tokenizer.identity
    assert manifest.read(str(tmp_path / "rated"))["determined"]["inputs"]["tokenizer"] == identity


def test_bad_input_is_refused_before_anything_is_written(tmp_path, places):
    with pytest.raises(UsageError, match="at least two"):
        run(places, tmp_path / "out", ["a"])
    with pytest.raises(UserError, match="a rater of easiness; raters are combined with others of the same criteria"):
        run(places, tmp_path / "out", ["a", "other"])
    with pytest.raises(UserError, match="no such directory"):
        run(places, tmp_path / "out", ["a", "missing"])
    with pytest.raises(UserError, match="easiness"):
        run(places, tmp_path / "out", ["other", "other"], judgments=(str(places / "held_out.parquet"),))
    for options, message in (
        ({"weights": (1.0,)}, "1 weights for 2 raters"),
        ({"weights": (1.0, 1.0), "judgments": ("x",)}, "not both"),
    ):
        with pytest.raises(ValueError, match=message):
            combine_raters.Config(raters=("a", "b"), **options)


def test_a_dry_run_writes_nothing(tmp_path, places, capsys):
    assert run(places, tmp_path / "out", ["a", "b"], dry_run=True) == {"raters": 2, "criteria": list(tiny.CRITERIA)}
    assert "would combine 2 raters of educational_value" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
