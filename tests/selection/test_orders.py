"""One rating from columns, against scipy and NumPy in float64; and that nothing depends on parts or memory."""

import math

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from input_samples import parquet, put

from qurating_jax.method import gumbel
from qurating_jax.runtime import manifest
from qurating_jax.selection import orders
from qurating_jax.selection.drawing.screen import Screen
from qurating_jax.selection.keys.cache import ScanOptions, prepare
from qurating_jax.selection.keys.scan import KeyFields

NUM = 200
MEMORY = 1 << 20


def _columns(seed=0):
    rng = np.random.default_rng(seed)
    columns = {
        "a": rng.normal(2.0, 3.0, NUM).astype(np.float32),
        "b": rng.normal(size=NUM) * 1e6,
        "ties": np.round(rng.normal(size=NUM) * 2),
        "other": rng.normal(size=NUM).astype(np.float32),
    }
    columns["a"][::17] = np.nan
    columns["b"][5::19] = np.nan
    return columns, np.where(np.arange(NUM) % 13 == 4, 0, rng.integers(1, 50, NUM))


@pytest.fixture
def make_keys(tmp_path):
    columns, tokens = _columns()
    table = pa.table({"id": [f"d{n}" for n in range(NUM)], "length": tokens, **columns})
    file = put(tmp_path, "d.parquet", parquet(table, row_group_size=20))

    def make(max_rows=NUM):
        fields = KeyFields(tokens="length", ratings=tuple(columns))
        options = ScanOptions(max_rows=max_rows)
        return prepare(str(tmp_path / "cache"), [file], fields, options, inputs=manifest.input_digest([file], [file]))

    return make


def _scores(keys, name):
    return np.concatenate([keys.block(number).scores[name].astype(np.float64) for number in range(len(keys))])


def _combine(keys, weights, *, reference="", normalize="z", memory_bytes=MEMORY):
    return orders.combine(keys, weights, reference=reference, normalize=normalize, memory_bytes=memory_bytes)


def _z(values, tokens):
    known = values[(tokens > 0) & ~np.isnan(values)]
    return (values - known.mean()) / known.std()


def _ranks(values, tokens):
    """Mid-ranks by scipy; a document without tokens is ranked among those that have some."""
    counted = (tokens > 0) & ~np.isnan(values)
    found = np.full(NUM, np.nan)
    for row in np.flatnonzero(~np.isnan(values)):
        if counted[row]:
            quantile = (scipy.stats.rankdata(values[counted])[np.flatnonzero(counted) == row][0] - 0.5) / counted.sum()
        else:
            quantile = scipy.stats.percentileofscore(values[counted], values[row], kind="mean") / 100
        found[row] = (quantile - 0.5) * math.sqrt(12)
    return found


@pytest.mark.parametrize("normalize", ["z", "rank", "none"])
@pytest.mark.parametrize("reference", ["", "other"])
@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 2.0}, {"a": 1.0, "b": -0.5}, {"b": 1.0, "a": 1.0, "ties": 3.0}])
def test_a_rating_made_of_columns(make_keys, weights, reference, normalize):
    columns, tokens = _columns()
    scale = {"z": _z, "rank": _ranks, "none": lambda values, tokens: values}[normalize]
    values = {name: columns[name].astype(np.float64) - (columns[reference] if reference else 0) for name in weights}
    if weights == {"a": 1.0}:
        expected = values["a"] if normalize == "z" else scale(values["a"], tokens)
    else:
        expected = sum(weight * scale(values[name], tokens) for name, weight in weights.items())
    ratings = _combine(make_keys(50), weights, reference=reference, normalize=normalize)
    np.testing.assert_allclose(_scores(ratings.keys, ratings.score), expected, rtol=1e-12, atol=1e-12)
    found = ratings.order(temperature=0.5, inverse=False, stream=None)
    logits = _scores(ratings.keys, found.score) * found.scale + found.shift
    alone = weights == {"a": 1.0}
    whole = expected if normalize == "none" or (normalize == "rank" and alone) else _z(expected, tokens)
    np.testing.assert_allclose(logits, whole / 0.5, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("normalize", ["z", "rank", "none"])
def test_no_bit_depends_on_parts_or_memory(make_keys, normalize):
    weights = {"a": 1.0, "b": 2.0}
    found = []
    for max_rows, memory_bytes in ((NUM, MEMORY), (7, MEMORY), (7, 700), (NUM, 400)):
        ratings = _combine(make_keys(max_rows), weights, normalize=normalize, memory_bytes=memory_bytes)
        order = ratings.order(temperature=2.0, inverse=False, stream=3)
        found.append((_scores(ratings.keys, ratings.score).tobytes(), order.scale, order.shift))
    assert len(set(found)) == 1


@pytest.mark.parametrize("normalize", ["z", "rank", "none"])
def test_the_inverse_is_the_negated_rating(make_keys, normalize):
    ratings = _combine(make_keys(), {"a": 1.0, "ties": 1.0}, normalize=normalize)
    keys = [
        Screen(ratings.order(temperature=temperature, inverse=inverse, stream=None)).keys(ratings.keys.block(0))
        for temperature in (2.0, None)
        for inverse in (False, True)
    ]
    np.testing.assert_array_equal(keys[0], -keys[1])
    np.testing.assert_array_equal(keys[2], -keys[3])
    assert ratings.order(temperature=None, inverse=False, stream=None).scale == 1.0


def test_scores_are_computed_once(make_keys, monkeypatch):
    weights = {"a": 1.0, "b": 2.0}
    first = _combine(make_keys(30), weights, reference="ties", normalize="rank")
    keys = make_keys(30)
    monkeypatch.setattr(type(keys), "write_scores", None)
    again = _combine(keys, weights, reference="ties", normalize="rank")
    assert again.score == first.score
    for other in ({"a": 1.0, "b": 3.0}, {"a": 1.0, "ties": 2.0}):
        with pytest.raises(TypeError):  # something is written
            _combine(keys, other, reference="ties", normalize="rank")


def test_the_label_says_what_was_combined(make_keys):
    keys = make_keys()
    assert _combine(keys, {"a": 1.0}).label == "a"
    assert _combine(keys, {"a": 2.0, "b": 1.0}, reference="ties").label == "2 a + b - ties"
    assert _combine(keys, {"a": -0.5}).label == "-0.5 a"


def test_ratings_that_order_nothing(tmp_path):
    table = pa.table({"id": ["x", "y"], "length": [1, 2], "same": [3.0, 3.0], "none": pa.nulls(2, pa.float32()),
                      "empty": [math.nan, 1.0]})  # fmt: skip
    file = put(tmp_path, "d.parquet", parquet(table.set_column(1, "length", pa.array([1, 0]))))
    fields = KeyFields(tokens="length", ratings=("same", "none", "empty"))
    keys = prepare(str(tmp_path), [file], fields, ScanOptions(), inputs=manifest.input_digest([file], [file]))
    for name, normalize, message in (
        ("same", "z", "all ratings in `same` are equal, they order nothing"),
        ("none", "z", "no document has a rating in `none`"),
        ("empty", "z", "no document has a rating in `empty`"),
        ("none", "rank", "no document has a rating in `none`"),
    ):
        with pytest.raises(ValueError, match=message):
            _combine(keys, {name: 1.0}, normalize=normalize).order(temperature=1.0, inverse=False, stream=None)
    with pytest.raises(ValueError, match="all ratings in `same` are equal"):
        _combine(keys, {"same": 1.0, "none": 1.0})
    order = _combine(keys, {"same": 1.0}, normalize="none").order(temperature=4.0, inverse=True, stream=None)
    assert (order.scale, order.shift) == (-0.25, 0.0)


def test_streams_of_noise():
    own = {
        orders.noise_stream(seed, "", strategy=strategy, label=label, inverse=inverse)
        for seed in (0, 1)
        for strategy in ("sample", "uniform", "dsir")
        for label in ("a", "b")
        for inverse in (False, True)
    }
    assert len(own) == 24
    grouped = {
        orders.noise_stream(4, "g", strategy=strategy, label=label)
        for strategy in ("sample", "uniform")
        for label in ("a", "b")
    }
    assert grouped == {gumbel.noise_stream(4, "g")}
    assert orders.noise_stream(0, "", strategy="uniform") == gumbel.noise_stream(0, "uniform")
    assert orders.noise_stream(0, "", strategy="sample", label="a", inverse=True) == gumbel.noise_stream(
        0, "sample a inverse"
    )
