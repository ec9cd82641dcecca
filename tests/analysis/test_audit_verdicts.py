import numpy as np
import pytest

from qurating_jax.analysis import audit
from qurating_jax.analysis.verdicts import Bounds, verdict
from qurating_jax.method import gumbel

LESS, MORE = Bounds(good=0.2, bad=0.5), Bounds(good=0.75, bad=0.6, chance=0.5)


@pytest.mark.parametrize(
    ("low", "high", "bounds", "expected"),
    [
        (0.0, 0.19, LESS, "passes"),
        (-0.1, 0.2, LESS, "caution"),  # not all of it is below
        (0.25, 0.3, LESS, "caution"),
        (0.3, 0.9, LESS, "caution"),
        (0.5, 0.9, LESS, "fails"),
        (0.1, 0.5, LESS, "unknown"),  # from one side to the other
        (0.75, 0.8, MORE, "passes"),
        (0.74, 0.99, MORE, "caution"),
        (0.61, 0.7, MORE, "caution"),
        (0.55, 0.74, MORE, "caution"),
        (0.55, 0.9, MORE, "unknown"),
        (0.51, 0.59, MORE, "fails"),
        (0.5, 0.9, MORE, "fails"),  # guessing gets that
        (0.2, 0.3, MORE, "fails"),
    ],
)
def test_a_verdict_holds_at_the_end_that_speaks_against_it(low, high, bounds, expected):
    assert verdict(low, high, bounds) == expected


def audited(n, num_topics, seed=0, **labels):
    generator = np.random.default_rng(seed)
    return audit.tables(
        gumbel.hash_ids([str(number) for number in range(n)]),
        np.zeros(n, np.int32),
        ["web"],
        np.full(n, 100),
        {"quality": generator.normal(size=n)},
        np.arange(n),
        generator.integers(num_topics, size=n).astype(np.int32),
        labels=labels,
        judged=None,
        budget_fraction=0.1,
        temperature=2.0,
        level=0.95,
        seed=seed,
    )


def test_many_topics_raise_no_alarm():
    found = audited(900, 200)
    (topic,) = (row for row in found["audit_explained"].to_pylist() if row["by"] == "topic")
    assert topic["low"] < 0.0 < topic["high"] < 0.2
    said = {row["question"]: row for row in found["audit_verdicts"].to_pylist()}
    assert said["Is it topic in disguise?"]["verdict"] == "passes"


def test_few_documents_do_not_show_that_it_guesses():
    few = {row["question"]: row for row in audited(40, 2, label=np.arange(40.0))["audit_verdicts"].to_pylist()}
    row = few["Does it agree with `label`?"]
    assert row["verdict"] == "unknown"
    assert "100 or more could show it" in row["because"]
    many = {row["question"]: row for row in audited(400, 2, label=np.arange(400.0))["audit_verdicts"].to_pylist()}
    assert many["Does it agree with `label`?"]["verdict"] == "fails"
    reversed_label = {"label": -np.random.default_rng(0).normal(size=40)}
    worse = {row["question"]: row for row in audited(40, 2, **reversed_label)["audit_verdicts"].to_pylist()}
    assert worse["Does it agree with `label`?"]["verdict"] == "fails"  # -1: that is shown


def test_sentences_name_figure_interval_and_number():
    for row in audited(300, 3, label=np.arange(300.0))["audit_verdicts"].to_pylist():
        assert row["because"]
        if row["value"] is not None and "different values" not in row["question"]:
            assert f"{row['value']:.3f} (" in row["because"]
            assert "300" in row["because"] or "of 300" in row["because"]
