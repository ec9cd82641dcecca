from fractions import Fraction

import numpy as np
import pytest

from qurating_jax.method import budget, gumbel
from qurating_jax.selection.drawing.members import Drawer, Member
from qurating_jax.selection.explaining import overlap, show
from qurating_jax.selection.explaining.explanation import Asked, Scanned, explain
from qurating_jax.selection.keys.table import KeyBlock, ListTable, Order

HOSTILE = "[red]we\x1b[2Jb\u202e\ncut"


def _selection(names, *, order=None, members=(), seed=0):
    """What a selection of a tenth of the tokens explains, and its documents."""
    rng = np.random.default_rng(0)
    num, num_domains = 3000, len(names)
    hashes = rng.permutation(np.arange(1, num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    scores = {"rating": rng.normal(size=num), "other": rng.normal(size=num)}
    scores["rating"][:7] = np.nan
    tokens = rng.integers(1, 50, num).astype(np.int32)
    table = ListTable([KeyBlock(hashes, tokens, rng.integers(0, num_domains, num).astype(np.int32), scores)], names)
    domains = table.block(0).domains
    held = np.bincount(domains[7:], tokens[7:], num_domains).astype(np.int64)
    wanted = int(held.sum()) // 10
    shares = {names[0]: 0.5} if num_domains > 1 else None
    targets = budget.domain_targets(held, wanted, names=names, shares=shares, allow_short=True)
    drawer = Drawer(table, "tokens", held, 1 << 20, 1)
    order = order or Order("rating", 0.5, 0.0, gumbel.noise_stream(seed, "shown"))
    decision = drawer.mix(members, targets.tolist(), 0) if members else drawer.one(order, targets.tolist())
    asked = Asked(
        orders=tuple(member.order for member in members) or (order,),
        ratings=("rating",),
        budget=wanted,
        targets=targets if num_domains > 1 else None,
        quotas=[member.share * wanted for member in members] or None,
    )
    scanned = Scanned(bad_rows={"no object": 12_345})
    found = explain(table, decision, asked, scanned, drafts=decision.drafts)
    return found, overlap.chosen_by(table, decision, name=f"seed {seed}")


def _lines(capsys):
    return [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_everything_of_one_selection(capsys):
    found, ours = _selection((HOSTILE, "code", "web"))
    found["overlap"] = overlap.compare(ours, [_selection(("a", "b", "c"), seed=seed)[1] for seed in (1, 2)])
    show.show(found)
    out = "\n".join(_lines(capsys))
    assert not any(sign in out for sign in "\x1b\u202e")
    assert "[red]we?[2Jb??cut" in out
    row = next(line for line in out.splitlines() if line.startswith("[red]"))
    first = found["domains"][0]
    for words in (f"{first['selected_tokens']:,}", "50.00 %", f"{first['threshold_key']:.4g}"):
        assert words in row
    assert "12,345" in next(line for line in out.splitlines() if "no documents" in line)
    assert "without a rating" in out
    assert "without tokens" not in out  # there is none
    selected = next(line for line in out.splitlines() if line.startswith("selected"))
    assert f"{found['num_selected']:,}" in selected
    assert f"{100 * found['share_tokens']:.2f} %" in selected
    for words in ("KL from uniform", "effective sample size", "budget", "overshoot", "95 %", "Jaccard by tokens"):
        assert words in out
    other = found["overlap"]["with"][0]
    line = next(line for line in out.splitlines() if line.startswith("seed 1"))
    assert f"{other['common_documents']:,}" in line
    assert f"{100 * other['share_of_ours']:.2f} %" in line
    assert "Members" not in out


def test_of_many_domains_the_most_changed_are_shown(capsys):
    names = tuple(f"d{number:02d}" for number in range(50))
    found, _ = _selection(names)
    show.show(found)
    lines = _lines(capsys)
    shown = [line.split()[0] for line in lines if line.startswith("d") and line[1:3].isdecimal()]
    change = {row["domain"]: abs(row["share_selected"] - row["share_eligible"]) for row in found["domains"]}
    assert len(shown) == show.MOST_DOMAINS
    assert shown[0] == "d00"
    assert [change[name] for name in shown] == sorted(change.values(), reverse=True)[: show.MOST_DOMAINS]
    (rest,) = [line for line in lines if "more domains" in line]
    tokens = sum(row["selected_tokens"] for row in found["domains"] if row["domain"] not in shown)
    largest = max(value for name, value in change.items() if name not in shown)
    assert rest.startswith(f"20 more domains with {tokens:,} selected tokens")
    assert f"at most {100 * largest:.2f} percentage points" in rest


def test_members_and_noise_free_orders(capsys):
    stream = gumbel.noise_stream(0, "shown")
    members = (
        Member(HOSTILE, Order("rating", 0.5, 0.0, stream), Fraction(1, 2)),
        Member("plain", Order("other"), Fraction(1, 2)),
    )
    found, _ = _selection(("a", "b"), members=members)
    show.show(found)
    out = "\n".join(_lines(capsys))
    row = next(line for line in out.splitlines() if line.startswith("plain"))
    assert f"{found['members'][1]['selected_tokens']:,}" in row
    assert "Drafted by both" in out
    found, _ = _selection(("",), order=Order("rating"))
    show.show(found)
    out = "\n".join(_lines(capsys))
    assert f"{found['threshold_rating']:.4g}" in next(line for line in out.splitlines() if "threshold (rating)" in line)
    assert "KL from uniform" not in out
    assert "Domains" not in out


def test_a_sweep_has_a_row_per_setting(capsys):
    first, ours = _selection(("a", "b"))
    rows = [("temperature=2", first, 1.0)]
    other, theirs = _selection(("a", "b"), order=Order("rating"))
    rows.append((f"temperature={HOSTILE}", other, overlap.compare(ours, [theirs])["with"][0]["jaccard_documents"]))
    show.terminal.show([show.sweep(rows)])
    lines = _lines(capsys)
    row = next(line for line in lines if line.startswith("temperature=2"))
    assert f"{first['effective_sample_size']:.4g}" in row
    assert f"{first['mean_rating_selected']:.4g}" in row
    row = next(line for line in lines if line.startswith("temperature=[red]"))
    assert row.split()[-2:] == ["-", f"{rows[1][2]:.4g}"]


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (12345, "12,345"), (12345.6, "12,346"), (0.123456, "0.1235"), (-2.0, "-2")]
)
def test_figures(value, shown):
    assert show.figure(value) == shown


def test_percent():
    assert [show.percent(value) for value in (None, 0.12345, 1.0)] == ["-", "12.35 %", "100.00 %"]
