"""Preferences, budgets and decisions of the strategies on tables in memory, against masks and sorting in NumPy."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.method import gumbel
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection import strategies
from qurating_jax.selection.keys.table import KeyBlock, ListTable
from qurating_jax.selection.options import SelectOptions

MEMORY = 1 << 20


class _Table(ListTable):
    """A table that says its scores, as key files do."""

    @property
    def score_names(self):
        return tuple(self.block(0).scores)


RATING = st.none() | st.integers(-3, 3).map(float) | st.floats(-1e6, 1e6, width=32)
DOCUMENT = st.tuples(st.integers(0, 9), st.integers(0, 2), RATING, RATING)
DOCUMENTS = st.lists(DOCUMENT, min_size=1, max_size=40)


def _table(documents, cuts=()):
    tokens, domains, *scores = zip(*documents, strict=True)
    scores = [np.array([math.nan if value is None else value for value in score], np.float32) for score in scores]
    block = KeyBlock(
        np.random.default_rng(0).permutation(len(documents)).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15),
        np.array(tokens, np.int32),
        np.array(domains, np.int32),
        dict(zip("ab", scores, strict=True)),
    )
    bounds = [0, *sorted(cut % (len(documents) + 1) for cut in cuts), len(documents)]
    blocks = [block.rows(start, stop) for start, stop in itertools.pairwise(bounds)]
    return block, _Table(blocks, ("d0", "d1", "d2"))


def _options(**options):
    if options.get("strategy") not in ("threshold", "percentile", "fraction"):
        options.setdefault("budget_tokens", 1)
    made = SelectOptions(**{"rating": ("a",)} | options)
    made.check()
    return made


def _prefer(table, options, seed=0):
    if options.strategy == "mix":
        return strategies.prefer_mix(options, table, {}, seed, MEMORY)
    return strategies.prefer(options, table, seed, MEMORY)


def _taken(table, decision):
    return np.concatenate([decision.taken(table.block(number)) for number in range(len(table))])


PREFERENCES = {
    "uniform": {"strategy": "uniform"},
    "top_k": {"strategy": "top_k"},
    "mix": {"strategy": "mix", "members": ("a", "b"), "normalize": "none"},
}


@given(DOCUMENTS, st.lists(st.integers(0, 100), max_size=3), st.sampled_from(list(PREFERENCES)))
def test_what_is_available(documents, cuts, name):
    block, table = _table(documents, cuts)
    preference = _prefer(table, _options(**PREFERENCES[name]))
    known = {score: ~np.isnan(values) for score, values in block.scores.items()}
    held = {"uniform": np.ones(len(block), bool), "top_k": known["a"], "mix": known["a"] | known["b"]}[name]
    held &= block.tokens > 0
    for measure in ("tokens", "documents"):
        found = strategies.count_available(preference, measure)
        weights = block.tokens if measure == "tokens" else (block.tokens > 0)
        expected = [int(weights[held & (block.domains == domain)].sum()) for domain in range(3)]
        assert found.tolist() == expected
        assert found.dtype == np.int64


def _equal(num, tokens):
    return _table([(tokens, number % 3, 1.0, 2.0) for number in range(num)])[1]


@pytest.mark.parametrize(
    ("options", "amount"),
    [
        ({"budget_fraction": 0.1}, 3),  # of 30: the decimal 0.1, not a little more
        ({"budget_fraction": 0.7}, 21),
        ({"budget_fraction": 0.3, "num_epochs": 3}, 3),
        ({"budget_fraction": 1e-9}, 1),
        ({"budget_fraction": 1.0}, 30),
        ({"budget_tokens": 30}, 30),
        ({"budget_tokens": 31, "num_epochs": 2}, 16),
        ({"budget_tokens": 300, "num_epochs": 10}, 30),
        ({"budget_tokens": 31, "allow_all": True}, 30),
        ({"budget_documents": 7}, 7),
        ({"budget_documents": 7, "num_epochs": 2}, 4),
        ({"budget_documents": 99, "allow_all": True}, 15),
    ],
)
def test_amounts(options, amount):
    table = _equal(15, 2)
    options = _options(strategy="uniform", **{"budget_tokens": None} | options)
    budget = strategies.measure_budget(options, _prefer(table, options))
    assert budget.amount == amount == budget.targets.sum()
    assert budget.measure == ("documents" if options.budget_documents else "tokens")
    assert budget.available.tolist() == [5, 5, 5] if options.budget_documents else [10, 10, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_tokens": 31}, "the budget of 31 tokens is more than the 30 that can be selected"),
        ({"budget_tokens": 62, "num_epochs": 2}, "the budget of 31 tokens is more"),
        ({"budget_documents": 16, "budget_tokens": None}, "the budget of 16 documents is more than the 15"),
    ],
)
def test_more_than_there_is(options, message):
    options = _options(strategy="uniform", **options)
    with pytest.raises(UserError, match=message):
        strategies.measure_budget(options, _prefer(_equal(15, 2), options))


@pytest.mark.parametrize("strategy", ["uniform", "top_k", "threshold", "percentile", "fraction"])
def test_nothing_to_select(strategy):
    _, table = _table([(0, 0, 1.0, 1.0), (5 if strategy != "uniform" else 0, 1, None, 1.0)])
    cut = {"threshold": 0.0, "percentile": 50.0, "fraction": 0.5}
    options = _options(strategy=strategy, **{name: value for name, value in cut.items() if name == strategy})
    preference = _prefer(table, options)
    decide = strategies.decide_by_rating if options.ends_by_rating else strategies.measure_budget
    arguments = (options, preference, *([MEMORY] if options.ends_by_rating else []))
    with pytest.raises(UserError, match="no document can be selected: none has tokens"):
        decide(*arguments)


def _decide_by_rating(table, **options):
    options = _options(**options)
    return strategies.decide_by_rating(options, _prefer(table, options), MEMORY)


def _able(block):
    return (block.tokens > 0) & ~np.isnan(block.scores["a"])


@given(DOCUMENTS, st.lists(st.integers(0, 100), max_size=3), st.integers(-4, 4) | st.floats(-1e6, 1e6), st.booleans())
def test_a_threshold_is_a_mask(documents, cuts, threshold, inverse):
    block, table = _table(documents, cuts)
    ratings, bound = block.scores["a"], np.float32(threshold)
    expected = _able(block) & (ratings <= bound if inverse else ratings >= bound)
    if not expected.any():
        with pytest.raises(UserError, match=r"no rating in `a` reaches|no document can be selected"):
            _decide_by_rating(table, strategy="threshold", threshold=float(threshold), inverse=inverse)
        return
    decision, budget = _decide_by_rating(table, strategy="threshold", threshold=float(threshold), inverse=inverse)
    assert np.array_equal(_taken(table, decision), expected)
    assert (budget.amount, budget.measure, budget.targets) == (expected.sum(), "documents", None)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_threshold_has_the_precision_of_the_rating(kind):
    values = np.array([0.1, 3.1, 3.2, 1e30], kind)
    block = KeyBlock(np.arange(4, dtype=np.uint64), np.ones(4, np.int32), None, {"a": values})
    for threshold, inverse, expected in (
        (3.1, False, [0, 1, 1, 1]), (3.1, True, [1, 1, 0, 0]), (0.1, True, [1, 0, 0, 0]), (3.2, False, [0, 0, 1, 1]),
    ):  # fmt: skip
        decision, _ = _decide_by_rating(_Table([block]), strategy="threshold", threshold=threshold, inverse=inverse)
        assert _taken(_Table([block]), decision).tolist() == expected
    with pytest.raises(UserError, match=r"no rating in `a` reaches 1e\+300"):
        _decide_by_rating(_Table([block]), strategy="threshold", threshold=1e300)


@given(DOCUMENTS, st.lists(st.integers(0, 100), max_size=3), st.floats(0, 100), st.booleans())
def test_a_percentile_is_the_rating_of_a_document(documents, cuts, percentile, inverse):
    block, table = _table(documents, cuts)
    able = _able(block)
    if not able.any():
        return
    decision, _ = _decide_by_rating(table, strategy="percentile", percentile=percentile, inverse=inverse)
    ratings = block.scores["a"].astype(np.float64)
    share = 1 - percentile / 100 if inverse else percentile / 100
    bound = np.quantile(ratings[able], share, method="inverted_cdf")
    expected = able & (ratings <= bound if inverse else ratings >= bound)
    assert np.array_equal(_taken(table, decision), expected)


@given(DOCUMENTS, st.lists(st.integers(0, 100), max_size=3), st.floats(0, 1, exclude_min=True), st.booleans())
def test_a_fraction_takes_the_best_of_every_domain(documents, cuts, fraction, inverse):
    block, table = _table(documents, cuts)
    able = _able(block)
    if not able.any():
        return
    decision, budget = _decide_by_rating(table, strategy="fraction", fraction=fraction, inverse=inverse)
    taken = _taken(table, decision)
    amount = max(1, round(Fraction(str(fraction)) * int(able.sum())))
    assert taken.sum() == budget.amount == amount
    assert not taken[~able].any()
    ratings = np.where(inverse, -1.0, 1.0) * block.scores["a"]
    for domain in range(3):
        own = able & (block.domains == domain)
        assert abs(taken[own].sum() - amount * own.sum() / able.sum()) < 1
        best = np.flatnonzero(own)[np.lexsort((block.hashes[own], -ratings[own]))]
        assert taken[best[: taken[own].sum()]].all()


def test_preferences_name_their_noise():
    _, table = _table([(1, 0, float(number), float(number % 3)) for number in range(9)])
    for options, groups in (
        ({"strategy": "uniform"}, ["uniform"]),
        ({"strategy": "sample"}, ["sample a"]),
        ({"strategy": "sample", "inverse": True}, ["sample a inverse"]),
        ({"strategy": "sample", "noise_group": "g"}, ["g"]),
        ({"strategy": "mix", "members": ("a", "b")}, ["sample a", "sample b"]),
        ({"strategy": "mix", "members": ("b", "a"), "noise_group": "g"}, ["g", "g"]),
        ({"strategy": "top_k"}, [None]),
        ({"strategy": "perplexity", "log_likelihood": "a"}, [None]),
    ):
        members = _prefer(table, _options(**options), seed=5).members
        streams = [None if group is None else gumbel.noise_stream(5, group) for group in groups]
        assert [member.order.stream for member in members] == streams
        assert sum(member.share for member in members) == 1


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"log_likelihood": "a"}, 1.0),
        ({"log_likelihood": "a", "keep": "highest"}, -1.0),
        ({"perplexity": "a"}, -1.0),
        ({"perplexity": "a", "keep": "highest"}, 1.0),
    ],
)
def test_low_perplexity_is_high_likelihood(options, scale):
    _, table = _table([(1, 0, 1.0, 1.0)])
    (member,) = _prefer(table, _options(strategy="perplexity", **options)).members
    assert (member.order.score, member.order.scale) == ("a", scale)


def test_members_of_dsir_share_by_size():
    _, table = _table([(1, 0, 1.0, 1.0)])
    options = _options(strategy="dsir", targets=("x=1", "y=2"))
    preference = strategies.prefer_dsir(options, table, {"x": ("a", 30), "y": ("b", 10)}, 2)
    assert [(member.name, member.order.score, member.share) for member in preference.members] == [
        ("x", "a", Fraction(3, 4)),
        ("y", "b", Fraction(1, 4)),
    ]
    assert [member.order.stream for member in preference.members] == [
        gumbel.noise_stream(2, "dsir x"), gumbel.noise_stream(2, "dsir y"),
    ]  # fmt: skip
    assert preference.labels == {"a": "log weight of x", "b": "log weight of y"}


@pytest.mark.parametrize(
    ("options", "order_by", "columns"),
    [
        ({"rating": ("a=2", "b")}, "", ["a", "b"]),
        ({"rating": ("a",), "reference": "r"}, "o", ["a", "r", "o"]),
        ({"strategy": "uniform"}, "a", ["a"]),
        ({"strategy": "uniform"}, "o", ["a", "o"]),
        ({"strategy": "mix", "members": ("b", "path", "c")}, "", ["b", "c"]),
        ({"strategy": "perplexity"}, "", ["log_likelihood_average"]),
        ({"strategy": "perplexity", "perplexity": "p"}, "", ["p"]),
        ({"strategy": "dsir", "targets": ("x=y",)}, "", []),
        ({"strategy": "dsir", "targets": ("x=y",)}, "o", ["o"]),
    ],
)
def test_the_columns_that_are_read(options, order_by, columns):
    assert strategies.needed_columns(_options(**options), order_by, ["path"]) == columns
