"""Our model in the harness by itself: what must not change its answers, what it refuses, how it is made."""

import random

import harness_runs as runs
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.runtime.turns import Compiling
from qurating_jax.scoring.tasks import harness_model

pytestmark = pytest.mark.usefixtures("quick_compiling")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return runs.make_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def model(directory):
    return runs.ours(directory, batch_tokens=512)


@pytest.fixture(scope="module")
def answers(model):
    return model.loglikelihood(runs.instances("loglikelihood", runs.PAIRS))


def assert_same(got, want):
    np.testing.assert_allclose([value for value, _ in got], [value for value, _ in want], rtol=1e-5)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want]


@settings(max_examples=8)
@given(order=st.permutations(range(len(runs.PAIRS))), size=st.integers(1, len(runs.PAIRS)))
def test_neither_order_nor_company_changes_an_answer(model, answers, order, size):
    found = {}
    for start in range(0, len(order), size):
        members = order[start : start + size]
        batch = runs.instances("loglikelihood", [runs.PAIRS[number] for number in members])
        found |= dict(zip(members, model.loglikelihood(batch), strict=True))
    assert_same([found[number] for number in range(len(runs.PAIRS))], answers)


@pytest.mark.parametrize("batch_tokens", [64, 8192])
def test_nor_does_the_size_of_a_batch(directory, answers, batch_tokens):
    other = runs.ours(directory, batch_tokens=batch_tokens)
    assert_same(other.loglikelihood(runs.instances("loglikelihood", runs.PAIRS)), answers)


@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 8}, {"tensor": 2}])
def test_nor_does_the_mesh(directory, model, answers, mesh):
    other = runs.ours(directory, batch_tokens=512, **mesh)
    assert_same(other.loglikelihood(runs.instances("loglikelihood", runs.PAIRS)), answers)
    texts = runs.instances("loglikelihood_rolling", [(text,) for text in runs.TEXTS])
    np.testing.assert_allclose(other.loglikelihood_rolling(texts), model.loglikelihood_rolling(texts), rtol=1e-5)
    prompts = runs.instances("generate_until", runs.PROMPTS)
    assert other.generate_until(prompts) == model.generate_until(prompts)


def test_generations_do_not_depend_on_their_batch(directory, model):
    together = model.generate_until(runs.instances("generate_until", runs.PROMPTS))
    assert len(set(together)) == len(together)
    order = list(range(len(runs.PROMPTS)))
    random.Random(0).shuffle(order)
    small = runs.ours(directory, batch_tokens=64)
    for number in order:
        assert small.generate_until(runs.instances("generate_until", [runs.PROMPTS[number]])) == [together[number]]


def test_the_same_requests_compile_nothing_again(model, answers):
    with Compiling() as compiling:
        assert_same(model.loglikelihood(runs.instances("loglikelihood", runs.PAIRS)), answers)
    assert compiling.programs == 0


def test_it_is_made_from_a_name_and_arguments(directory, answers):
    from lm_eval.api.registry import get_model

    harness_model.register()
    harness_model.register()
    made = get_model("qurating").create_from_arg_string(
        f"model=mine={directory},batch_tokens=512,dtype=float32", {"batch_size": 3, "device": None}
    )
    assert made.source.name == "mine"
    assert made.max_length == 64
    assert made.tok_encode("The cell wall") == made.source.tokenizer.encode(["The cell wall"])[0].tolist()
    assert made.eot_token_id == made.prefix_token_id == made.source.tokenizer.eos_id
    assert_same(made.loglikelihood(runs.instances("loglikelihood", runs.PAIRS)), answers)
    short = runs.ours(directory, context_tokens=16)
    assert short.max_length == 16


def test_rolling_likelihood_is_the_sum_of_its_windows(model):
    """The definition: blocks of 64 tokens, the first after EOS, each later one after the token before it."""
    text = runs.TEXTS[4]
    ids, eos = model.tok_encode(text), model.eot_token_id
    assert len(ids) > 2 * 64
    windows = [(None, [eos, *ids][start : start + 1], ids[start : start + 64]) for start in range(0, len(ids), 64)]
    windows[-1] = (None, [eos, *ids][-65 : -len(windows[-1][2])], windows[-1][2])
    want = sum(value for value, _ in model._loglikelihood_tokens(windows))
    got = model.loglikelihood_rolling(runs.instances("loglikelihood_rolling", [(text,), ("",)]))
    assert got == pytest.approx([want, 0.0], rel=1e-6)


def test_a_continuation_longer_than_the_context_is_predicted_token_by_token(model, caplog):
    """The definition: every token from the 32 to 63 before it, where the parts begin at multiples of 32."""
    context, tail = model.tok_encode("A context."), model.tok_encode(" A theorem needs a proof." * 30)
    assert len(tail) > 2 * 64
    whole = [*context, *tail]
    one_by_one = []
    for number in range(len(tail)):
        place = len(context) + number
        part = number // 32 * 32
        size = min(32, len(tail) - part)  # what the part itself takes of the 64
        first = max(0, len(context) + part + size - 1 - 64)
        one_by_one.append((None, whole[first:place], whole[place : place + 1]))
    want = model._loglikelihood_tokens(one_by_one)
    with caplog.at_level("WARNING"):
        (value, greedy), short = model._loglikelihood_tokens([(None, context, tail), (None, context, tail[:9])])
    assert value == pytest.approx(sum(value for value, _ in want), rel=1e-5)
    assert greedy == all(greedy for _, greedy in want)
    assert short[0] == pytest.approx(sum(value for value, _ in want[:9]), rel=1e-5)
    assert "1 continuations are longer than the 64 tokens" in caplog.text


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("A context", ""), "request 1: no token of the continuation is left"),
        (("", ""), "request 1: no token of the continuation is left"),
        (("A", "\ud800"), "not valid Unicode"),
    ],
)
def test_requests_that_cannot_be_scored(model, pair, message):
    with pytest.raises(UserError, match=message):
        model.loglikelihood(runs.instances("loglikelihood", [("fine", " too"), pair]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"do_sample": True, "temperature": 0.7}, "do_sample or a temperature above 0"),
        ({"temperature": 0.7}, "do_sample or a temperature above 0"),
        ({"num_beams": 4}, "num_beams cannot be done here"),
        ({"max_gen_toks": 64}, "max_gen_toks 64 leaves no room"),
        ({}, "max_gen_toks 256 leaves no room"),
        ({"max_gen_toks": 0}, "max_gen_toks 0 leaves no room"),
    ],
)
def test_generations_that_cannot_be_done(model, given, message):
    with pytest.raises(UserError, match=message):
        model.generate_until(runs.instances("generate_until", [("A", {"until": ["\n"], **given})]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "float64"}, UsageError, "dtype 'float64' is none of"),
        ({"attention": "flash"}, UsageError, "attention 'flash' is none of"),
        ({"context_tokens": 65}, UserError, "made for texts of up to 64 tokens"),
        ({"data": 3}, UserError, "does not cover 8 device"),
        ({"model": "nowhere/at/all"}, UserError, "nowhere/at/all"),
    ],
)
def test_models_that_cannot_be_made(directory, options, error, message):
    with pytest.raises(error, match=message):
        runs.ours(options.pop("model", directory), **options)


def test_answers_reach_the_harness_cache(model):
    kept = []
    before = model.cache_hook
    model.cache_hook = type("Hook", (), {"add_partial": lambda self, *entry: kept.append(entry)})()
    try:
        model.loglikelihood(runs.instances("loglikelihood", runs.PAIRS[:2]))
        model.loglikelihood_rolling(runs.instances("loglikelihood_rolling", [("ok",)]))
        model.generate_until(runs.instances("generate_until", runs.PROMPTS[:1]))
    finally:
        model.cache_hook = before
    assert [entry[0] for entry in kept] == ["loglikelihood"] * 2 + ["loglikelihood_rolling", "generate_until"]
    assert [entry[1] for entry in kept] == [*runs.PAIRS[:2], ("ok",), runs.PROMPTS[0]]


def test_it_is_on_every_device(model):
    """The default mesh takes all there are."""
    leaf = jax.tree.leaves(model._continuations._params)[0]
    assert len(leaf.sharding.device_set) == 8
