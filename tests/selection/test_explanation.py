import itertools
import json
import math
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import special

from qurating_jax.method import budget, gumbel
from qurating_jax.selection.drawing.decision import Decision, Picked, Step
from qurating_jax.selection.drawing.members import Drawer, Member, cut_at
from qurating_jax.selection.explaining.explanation import QUANTILES, Asked, Scanned, explain
from qurating_jax.selection.keys.table import Cuts, KeyBlock, ListTable, Order

SAMPLE = Order("rating", 0.5, 0.25, gumbel.noise_stream(1, "explained"))
TOP = Order("rating", 1.0)
UNIFORM = Order("", stream=gumbel.noise_stream(2, "explained"))


def _block(num=3000, *, num_domains=5, seed=0, kind=np.float32):
    rng = np.random.default_rng(seed)
    rating, other = rng.normal(2, 3, num).astype(kind), rng.gamma(2.0, 1.0, num)
    rating[rng.random(num) < 0.1] = np.nan
    other[rng.random(num) < 0.2] = np.nan
    tokens = rng.integers(0, 40, num).astype(np.int32)
    domains = rng.integers(0, num_domains, num).astype(np.int32) if num_domains > 1 else None
    hashes = rng.permutation(np.arange(1, num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return KeyBlock(hashes, tokens, domains, {"rating": rating, "other": other})


def _table(block, ends=(), num_domains=5):
    bounds = [0, *sorted(ends), len(block)]
    return ListTable(
        [block.rows(start, stop) for start, stop in itertools.pairwise(bounds)],
        tuple(f"d{number}" for number in range(num_domains)),
    )


def _one(block, order, wanted, num_domains=5):
    """A selection by one order, with its targets."""
    able = block.tokens > 0 if not order.score else (block.tokens > 0) & ~np.isnan(block.scores[order.score])
    domains = np.zeros(len(block), np.int32) if block.domains is None else block.domains
    held = np.bincount(domains[able], block.tokens[able], num_domains).astype(np.int64)
    targets = budget.domain_targets(held, wanted, names=[f"d{number}" for number in range(num_domains)])
    drawer = Drawer(_table(block, (), num_domains), "tokens", held, 1 << 20, 1)
    return drawer.one(order, targets.tolist()), targets, able


def _check_rating(found, values, tokens):
    """A described rating against NumPy on whole arrays."""
    rated = ~np.isnan(values)
    values, tokens = values[rated].astype(np.float64), tokens[rated]
    assert found["num_rated"] == len(values)
    assert found["mean"] == float(sum(map(Fraction, values.tolist())) / len(values))  # rounded once
    assert found["std"] == pytest.approx(values.std(), rel=1e-12)
    assert (found["minimum"], found["maximum"]) == (values.min(), values.max())
    assert found["mean_by_tokens"] == pytest.approx(np.average(values, weights=tokens), rel=1e-12)
    expected = np.quantile(values, QUANTILES, method="inverted_cdf")
    assert found["quantiles"] == dict(zip(("0.05", "0.25", "0.5", "0.75", "0.95"), expected, strict=True))


@pytest.mark.parametrize("order", [SAMPLE, TOP, UNIFORM, Order("other", -1.0)], ids=["sample", "top", "uniform", "low"])
@pytest.mark.parametrize("num_domains", [1, 5])
def test_against_whole_arrays(order, num_domains):
    block = _block(num_domains=num_domains)
    decision, targets, able = _one(block, order, 9000, num_domains)
    by_domain = num_domains > 1
    asked = Asked(orders=(order,), ratings=("rating", "other"), budget=9000, targets=targets if by_domain else None)
    found = explain(_table(block, (70, 2000), num_domains), decision, asked, Scanned())
    chosen = decision.taken(block)
    tokens = block.tokens
    assert found["selected_tokens"] == tokens[chosen].sum()
    assert found["overshoot_tokens"] == tokens[chosen].sum() - 9000 >= 0
    assert found["overshoot_documents"] is None
    assert found["eligible_tokens"] == tokens[able].sum()
    assert (found["num_documents"], found["num_eligible"], found["num_selected"]) == (3000, able.sum(), chosen.sum())
    assert found["num_rejected"] == sum(found["rejected"].values()) == 3000 - chosen.sum()
    assert found["rejected"] == {
        "bad_row": 0,
        "no_tokens": (tokens == 0).sum(),
        "duplicate_id": 0,
        "duplicate_text": 0,
        "no_rating": 3000 - (tokens == 0).sum() - able.sum(),
        "below_cut": able.sum() - chosen.sum(),
    }
    assert found["share_tokens"] == pytest.approx(tokens[chosen].sum() / tokens[able].sum())
    for name in ("rating", "other"):
        _check_rating(found["ratings"][name]["eligible"], block.scores[name][able], tokens[able])
        _check_rating(found["ratings"][name]["selected"], block.scores[name][chosen], tokens[chosen])
    assert found["mean_rating_selected"] == found["ratings"]["rating"]["selected"]["mean"]
    _check_sampling(found, order, block, able)
    picked = decision.pick(block)
    if not by_domain:
        assert found["domains"] == []
        assert found["threshold_key"] == picked.keys.min()
        if order.stream is None:
            last = block.scores[order.score][picked.rows[picked.keys.argmin()]]
            assert found["threshold_rating"] == last
        else:
            assert found["threshold_rating"] is None
    else:
        assert found["threshold_key"] is None
        _check_domains(found["domains"], block, able, chosen, targets, picked, order)
    json.dumps(found, allow_nan=False)


def _check_sampling(found, order, block, able):
    if order.stream is None:
        assert found["effective_sample_size"] is found["effective_share"] is found["kl_from_uniform"] is None
        return
    logits = block.scores["rating"][able] * np.float64(0.5) + 0.25 if order.score else np.zeros(able.sum())
    weights = special.softmax(logits)
    assert found["effective_sample_size"] == pytest.approx(1 / np.square(weights).sum(), rel=1e-10)
    assert found["effective_share"] == pytest.approx(found["effective_sample_size"] / able.sum())
    uniform = np.full(len(weights), 1 / len(weights))
    assert found["kl_from_uniform"] == pytest.approx(special.rel_entr(weights, uniform).sum(), rel=1e-8, abs=1e-12)


def _check_domains(rows, block, able, chosen, targets, picked, order):
    assert [row["domain"] for row in rows] == [f"d{number}" for number in range(5)]
    assert sum(row["target_tokens"] for row in rows) == 9000
    for number, row in enumerate(rows):
        members = block.domains == number
        before, after = members & able, members & chosen
        assert row["num_documents"] == members.sum()
        assert (row["num_eligible"], row["num_selected"]) == (before.sum(), after.sum())
        assert (row["eligible_tokens"], row["selected_tokens"]) == (
            block.tokens[before].sum(),
            block.tokens[after].sum(),
        )
        assert row["target_tokens"] == targets[number]
        assert abs(row["selected_tokens"] - row["target_tokens"]) < 40
        assert row["share_eligible"] == pytest.approx(block.tokens[before].sum() / block.tokens[able].sum())
        assert row["share_selected"] == pytest.approx(block.tokens[after].sum() / block.tokens[chosen].sum())
        assert row["mean_rating_eligible"] == pytest.approx(np.nanmean(block.scores["rating"][before]), rel=1e-5)
        assert row["mean_rating_selected"] == pytest.approx(np.nanmean(block.scores["rating"][after]), rel=1e-5)
        last = picked.keys[picked.domains == number]
        assert row["threshold_key"] == last.min()
        if order.stream is None:
            rows_of = picked.rows[picked.domains == number]
            assert row["threshold_rating"] == block.scores[order.score][rows_of[last.argmin()]]


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_neither_order_nor_sharding_nor_threads_change_a_bit(data):
    block = _block(400, kind=data.draw(st.sampled_from([np.float32, np.float64])))
    if data.draw(st.booleans()):
        block.scores["rating"][:] = np.round(block.scores["rating"])  # ties, and zeros of both signs
    decision, targets, _ = _one(block, SAMPLE, 1500)
    asked = Asked(orders=(SAMPLE,), ratings=("rating", "other"), budget=1500, targets=targets)
    expected = json.dumps(explain(_table(block), decision, asked, Scanned()))
    moved = block.take(np.random.default_rng(data.draw(st.integers(0, 99))).permutation(400))
    table = _table(moved, data.draw(st.lists(st.integers(0, 400), max_size=4)))
    limits = {"workers": data.draw(st.integers(1, 3)), "memory_bytes": data.draw(st.sampled_from([0, 1 << 20]))}
    assert json.dumps(explain(table, decision, asked, Scanned(), **limits)) == expected


def test_what_the_scan_counted():
    block = _block(500)
    decision, targets, _ = _one(block, TOP, 1000)
    scanned = Scanned(
        bad_rows={"no object": 3, "no text": 2},
        duplicate_ids=4,
        duplicate_texts=1,
        null_ratings={"rating": 7},
        infinite_ratings={"rating": 2},
        missing_scores={"other": 9},
        missing_domains=11,
    )
    asked = Asked(orders=(TOP,), ratings=("rating", "other"), budget=1000, targets=targets)
    found = explain(_table(block), decision, asked, scanned)
    assert found["num_documents"] == 505 == found["num_selected"] + sum(found["rejected"].values())
    empty = int((block.tokens == 0).sum())
    rejected = found["rejected"]
    assert (rejected["bad_row"], rejected["no_tokens"]) == (5, empty - 5)
    assert (rejected["duplicate_id"], rejected["duplicate_text"]) == (4, 1)
    assert found["bad_rows"] == {"no object": 3, "no text": 2}
    gaps = {name: tuple(about[f"num_{why}"] for why in ("null", "infinite", "missing"))
            for name, about in found["ratings"].items()}  # fmt: skip
    assert gaps == {"rating": (7, 2, 0), "other": (0, 0, 9)}
    assert found["num_missing_domains"] == 11
    with pytest.raises(ValueError, match="duplicates of"):
        explain(_table(block), decision, asked, Scanned(duplicate_ids=empty + 1))


def test_a_pick_of_what_cannot_be_selected_is_noticed():
    block = _block(200)

    class Wrong:
        member_names = ("",)

        def pick(self, block):
            rows = np.arange(len(block))
            members = np.zeros(len(rows), np.int16)
            return Picked(rows, np.zeros(len(rows)), members, block.hashes, block.tokens, block.domains)

    with pytest.raises(AssertionError, match=r"not eligible|below_cut"):
        explain(_table(block), Wrong(), Asked(orders=(UNIFORM,)), Scanned())


def test_members_of_a_mix():
    block = _block()
    members = [
        Member("good", SAMPLE, Fraction(1, 2)),
        Member("other", Order("other", 1.0), Fraction(1, 4)),
        Member("any", UNIFORM, Fraction(1, 4)),
    ]
    able = block.tokens > 0
    held = np.bincount(block.domains[able], block.tokens[able], 5).astype(np.int64)
    targets = budget.domain_targets(held, 8000, names=[f"d{number}" for number in range(5)])
    decision = Drawer(_table(block), "tokens", held, 1 << 20, 1).mix(members, targets.tolist(), seed=3)
    asked = Asked(
        orders=tuple(member.order for member in members),
        ratings=("rating",),
        budget=8000,
        targets=targets,
        quotas=[member.share * 8000 for member in members],
    )
    found = explain(_table(block, (999,)), decision, asked, Scanned(), drafts=decision.drafts, workers=2)
    picked = decision.pick(block)
    assert found["num_eligible"] == able.sum()  # the uniform member takes any document with tokens
    assert found["rejected"]["no_rating"] == 0
    assert found["effective_sample_size"] is None
    assert [row["member"] for row in found["members"]] == ["good", "other", "any"]
    for number, row in enumerate(found["members"]):
        mine = picked.members == number
        assert row["num_selected"] == mine.sum()
        assert row["selected_tokens"] == picked.tokens[mine].sum()
        assert row["quota_tokens"] == [4000, 2000, 2000][number]
        assert abs(row["selected_tokens"] - row["quota_tokens"]) < 80
        if row["score"]:
            scores = block.scores[row["score"]][picked.rows[mine]]
            assert row["mean_score_selected"] == pytest.approx(math.fsum(scores) / len(scores), rel=1e-12)
    good, other, anyone = found["members"]
    assert anyone["mean_score_selected"] is None
    assert good["effective_sample_size"] < anyone["effective_sample_size"] == able.sum()
    assert (other["effective_sample_size"], anyone["kl_from_uniform"]) == (None, 0.0)
    masks = np.zeros((3, len(block)), bool)
    for mask, step in zip(masks, decision.drafts, strict=True):
        mask[step.pick(block)[0]] = True
    for left, right in itertools.product(range(3), repeat=2):
        both = masks[left] & masks[right]
        assert found["drafts"]["documents"][left][right] == both.sum()
        assert found["drafts"]["tokens"][left][right] == block.tokens[both].sum()
    json.dumps(found, allow_nan=False)


def test_members_without_domains_have_thresholds_in_their_own_units():
    block = _block(num_domains=1)
    steps = tuple(
        Step(number, order, Cuts(np.array([cut]), np.array([2**64 - 1], np.uint64)))
        for number, (order, cut) in enumerate([(TOP, 7.0), (Order("other", -1.0), -0.5)])
    )
    decision = Decision(("high", "low"), (), steps)
    asked = Asked(orders=tuple(step.order for step in steps))
    found = explain(_table(block, (5,), 1), decision, asked, Scanned())
    rating, other = block.scores["rating"], block.scores["other"].copy()
    high = (rating >= 7) & (block.tokens > 0)
    low = (other <= 0.5) & (block.tokens > 0) & ~high
    assert found["members"][0]["threshold_rating"] == rating[high].min()
    assert found["members"][1]["threshold_rating"] == other[low].max()
    assert found["budget_tokens"] is found["overshoot_tokens"] is found["members"][0]["quota_tokens"] is None


def test_budgets_of_documents_and_selections_of_nothing():
    block = _block()
    decision, *_ = _one(block, TOP, 9000)
    num_selected = int(decision.taken(block).sum())
    asked = Asked(orders=(TOP,), budget=100, measure="documents", targets=np.array([20] * 5))
    found = explain(_table(block), decision, asked, Scanned())
    assert (found["budget_documents"], found["budget_tokens"]) == (100, None)
    assert (found["overshoot_documents"], found["overshoot_tokens"]) == (num_selected - 100, None)
    assert found["domains"][0]["target_documents"] == 20
    assert sum(row["share_selected"] for row in found["domains"]) == pytest.approx(1)
    assert found["domains"][0]["share_selected"] == found["domains"][0]["num_selected"] / num_selected

    found = explain(_table(block), decision, Asked(orders=(TOP,), targets=np.zeros(5, np.int64)), Scanned())
    assert {row["target_tokens"] for row in found["domains"]} == {None}
    assert {row["share_target"] for row in found["domains"]} == {None}
    assert found["domains"][0]["threshold_rating"] > 0

    nothing = cut_at(SAMPLE, math.inf, 5)
    found = explain(_table(block), nothing, Asked(orders=(SAMPLE,), ratings=("rating",)), Scanned())
    assert found["num_selected"] == found["selected_tokens"] == 0
    assert found["threshold_key"] is found["mean_rating_selected"] is None
    assert found["ratings"]["rating"]["selected"]["quantiles"]["0.5"] is None
    assert found["rejected"]["below_cut"] == found["num_eligible"] > 0
    json.dumps(found, allow_nan=False)
