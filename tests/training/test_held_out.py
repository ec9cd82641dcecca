"""Held-out losses by domain against full logits of every text by itself in float64, on any mesh."""

import functools

import jax
import numpy as np
import pytest
from tiny_training import FLOAT32, LM, init_params, mesh
from token_set_samples import T, random_documents, rows_of, write_token_set

from qurating_jax.data.order import RowOrder
from qurating_jax.data.token_sets import open_token_sets
from qurating_jax.models import heads
from qurating_jax.runtime.errors import UserError
from qurating_jax.training.held_out import HeldOut
from qurating_jax.training.state import abstract_params

FORMS = [("packed", "within"), ("packed", "across"), ("segments", "within")]
HELD_OUT = {1: random_documents(14, seed=1), 2: random_documents(10, seed=2, domains=("code", "web"))}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Two sets of each layout."""
    root = tmp_path_factory.mktemp("tokens")
    return {
        layout: [
            write_token_set(root / f"{layout}-{number}", held_out=documents, layout=layout)
            for number, documents in HELD_OUT.items()
        ]
        for layout in ("packed", "segments")
    }


def held_out(directories, *, attention="within", max_rows=1000, batch_rows=8, seed=0, on=(1, 1, 1)):
    sets = open_token_sets(directories, split="validation")
    return HeldOut(
        sets,
        LM,
        max_rows=max_rows,
        batch_rows=batch_rows,
        seed=seed,
        document_attention=attention,
        compute=FLOAT32,
        mesh=mesh(*on),
    )


def params_on(on, seed=0):
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(LM, mesh(*on)))
    return jax.device_put(init_params(LM, seed), shardings)


@functools.cache
def logits_of():
    return jax.jit(lambda params, tokens: heads.logits(params, LM, tokens, compute=FLOAT32))


def truth(layout, attention, *, rows=None, seed=0):
    """The losses of predicted tokens by domain, each text run by itself: dict of lists; of some (set, row) alone."""
    texts = []
    for number, documents in enumerate(HELD_OUT.values()):
        tokens, segments, pieces = rows_of(documents, layout)
        names = np.full(tokens.shape, None, object)
        for row, start, count, _, document in pieces:
            names[row, start : start + count] = documents[document][0] or "unknown"
        for row in range(len(tokens)):
            if rows is not None and (number, row) not in rows:
                continue
            runs = [(start, count) for at, start, count, _, _ in pieces if at == row]
            if attention == "across":
                runs = [(0, int((segments[row] != 0).sum()))]
            texts += [(tokens[row, a : a + n], names[row, a : a + n]) for a, n in runs]
    padded = np.zeros((len(texts), T), np.int32)
    for place, (ids, _) in enumerate(texts):
        padded[place, : len(ids)] = ids
    logits = np.asarray(logits_of()(init_params(LM, seed), padded), np.float64)
    losses = np.log(np.exp(logits).sum(axis=-1, keepdims=True)) - logits
    found = {}
    for place, (ids, domains) in enumerate(texts):
        for at in range(1, len(ids)):
            found.setdefault(domains[at], []).append(losses[place, at - 1, ids[at]])
    return found


def assert_equal(found, want):
    everything = np.concatenate(list(want.values()))
    assert found.pop("num_tokens") == len(everything)
    assert found.pop("loss") == pytest.approx(everything.mean(), rel=2e-6)
    assert found == {f"loss/{name}": pytest.approx(np.mean(losses), rel=2e-6) for name, losses in want.items()}


@pytest.mark.parametrize(("layout", "attention"), FORMS)
def test_losses_by_domain_are_those_of_every_text_by_itself(directories, layout, attention):
    one = held_out(directories[layout], attention=attention, batch_rows=7)
    want = truth(layout, attention)
    assert set(one.domains) == set(want) == {"news", "web", "unknown", "code"}
    assert one.num_rows % 7  # the last batch is not full
    assert_equal(one.evaluate(params_on((1, 1, 1))), want)
    assert_equal(one.evaluate(params_on((1, 1, 1), seed=1)), truth(layout, attention, seed=1))
    assert one._sums._cache_size() == 1


@pytest.mark.parametrize("on", [(8, 1, 1), (2, 2, 2)], ids=lambda sizes: "x".join(map(str, sizes)))
@pytest.mark.parametrize(("layout", "attention"), FORMS[:2])
def test_any_mesh_finds_the_same(directories, layout, attention, on):
    found = held_out(directories[layout], attention=attention, on=on, batch_rows=5).evaluate(params_on(on))
    assert_equal(found, truth(layout, attention))


def test_the_sample_is_fixed_by_its_seed_and_drawn_from_all_sets(directories):
    total = sum(open_token_sets(directories["packed"], split="validation").num_rows)
    samples = set()
    for seed in (0, 1, 0):
        one = held_out(directories["packed"], max_rows=20, seed=seed)
        assert one.num_rows == 20 < total
        rows = set(zip(one._numbers.tolist(), one._rows.tolist(), strict=True))
        assert len(rows) == 20
        assert {number for number, _ in rows} == {0, 1}
        samples.add(frozenset(rows))
        assert_equal(one.evaluate(params_on((1, 1, 1))), truth("packed", "within", rows=rows))
    assert len(samples) == 2
    order = RowOrder(open_token_sets(directories["packed"], split="validation").num_rows, seed=1, kind="shuffled")
    assert set(zip(*(column.tolist() for column in order.places(np.arange(20))), strict=True)) in samples


def test_texts_of_one_token_predict_nothing(tmp_path):
    directory = write_token_set(tmp_path / "x", held_out=[("web", np.ones(1, int))] * 3, layout="segments")
    with pytest.raises(UserError, match="no text of two tokens"):
        held_out([directory]).evaluate(params_on((1, 1, 1)))
