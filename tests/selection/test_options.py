import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.selection.options import SelectOptions, parse_weights

NAMES = st.text(min_size=1, max_size=8).filter(lambda name: "=" not in name)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(NAMES | NAMES.map(lambda name: f"{name}=x"), NUMBERS, max_size=5))
def test_weights_come_back(weights):
    entries = [f"{name}={value!r}" for name, value in weights.items()]
    assert parse_weights(entries, "--rating") == weights
    assert list(parse_weights(entries, "--rating")) == list(weights)
    assert parse_weights(entries, "--domain_caps", need=True) == weights


@given(st.lists(NAMES, unique=True, max_size=5))
def test_a_bare_name_weighs_one(names):
    assert parse_weights(names, "--rating") == dict.fromkeys(names, 1.0)


@pytest.mark.parametrize(
    ("entries", "need", "message"),
    [
        (["a=x"], False, "--here a=x: 'x' is no number"),
        (["a="], False, "--here a=: '' is no number"),
        (["=1"], False, "--here =1: give NAME=NUMBER"),
        ([""], False, "--here : give NAME=NUMBER"),
        (["a"], True, "--here a: give NAME=NUMBER"),
        (["a", "b", "a=2"], False, "--here names a twice"),
        (["a=nan"], False, "--here a=nan: 'nan' is no finite number"),
        (["a=1", "b=-inf"], False, "--here b=-inf: '-inf' is no finite number"),
    ],
)
def test_weights_that_are_none(entries, need, message):
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(") + "$"):
        parse_weights(entries, "--here", need=need)


GOOD = {
    "sample": {"budget_tokens": 1},
    "uniform": {"strategy": "uniform", "budget_documents": 1},
    "top_k": {"strategy": "top_k", "budget_fraction": 1.0},
    "threshold": {"strategy": "threshold", "threshold": 0.0},
    "percentile": {"strategy": "percentile", "percentile": 0.0},
    "fraction": {"strategy": "fraction", "fraction": 1.0},
    "perplexity": {"strategy": "perplexity", "budget_tokens": 1},
    "dsir": {"strategy": "dsir", "targets": ("a=b",), "budget_tokens": 1},
    "mix": {"strategy": "mix", "members": ("a", "b"), "budget_tokens": 1},
}


@pytest.mark.parametrize("strategy", GOOD)
def test_every_strategy_has_options_that_do(strategy):
    options = SelectOptions(**GOOD[strategy])
    options.check()
    assert options.ends_by_rating == (strategy in ("threshold", "percentile", "fraction"))


@pytest.mark.parametrize("strategy", GOOD)
@pytest.mark.parametrize(
    ("name", "value"),
    [("threshold", 0.0), ("percentile", 0.0), ("fraction", 1.0), ("targets", ("a=b",)), ("members", ("a", "b"))],
)
def test_an_option_of_another_strategy(strategy, name, value):
    options = dataclasses.replace(SelectOptions(**GOOD[strategy]), **{name: value})
    if name in GOOD[strategy]:
        options.check()
        return
    with pytest.raises(ValueError, match=f"--{name} and --strategy .* go together"):
        options.check()


@pytest.mark.parametrize("strategy", GOOD)
def test_a_temperature_is_looked_at_where_it_counts(strategy):
    for temperature in (0.0, -1.0, math.nan):
        options = dataclasses.replace(SelectOptions(**GOOD[strategy]), temperature=temperature)
        if strategy in ("sample", "mix"):
            with pytest.raises(ValueError, match="use --strategy top_k for the highest ratings"):
                options.check()
        else:
            options.check()


@pytest.mark.parametrize("strategy", GOOD)
def test_exactly_one_budget(strategy):
    budgets = {"budget_tokens": 5, "budget_fraction": 0.5, "budget_documents": 5}
    bare = dataclasses.replace(SelectOptions(**GOOD[strategy]), **dict.fromkeys(budgets))
    ends = bare.ends_by_rating
    for given_names in ((), *((name,) for name in budgets), ("budget_tokens", "budget_fraction"), tuple(budgets)):
        options = dataclasses.replace(bare, **{name: budgets[name] for name in given_names})
        if len(given_names) == (0 if ends else 1):
            options.check()
        else:
            with pytest.raises(ValueError, match="takes no budget" if ends else "give exactly one of"):
                options.check()


@pytest.mark.parametrize("fraction", [-0.5, 1.0000001, math.nan])
def test_fractions_are_shares(fraction):
    with pytest.raises(ValueError, match="is not a share"):
        SelectOptions(budget_fraction=fraction).check()
    with pytest.raises(ValueError, match="is no share"):
        SelectOptions(strategy="fraction", fraction=fraction).check()


def test_shares_and_caps_by_name():
    options = SelectOptions(budget_tokens=1, domain_field=("d",), domain_targets=("a=0.25", "*=0.75"))
    options.check()
    assert options.shares == {"a": 0.25, "*": 0.75}
    assert options.caps is None
    assert SelectOptions(budget_tokens=1, domain_caps=("x=y=0.5",)).caps == {"x=y": 0.5}
    assert SelectOptions(rating=("a=2", "b")).weights == {"a": 2.0, "b": 1.0}
