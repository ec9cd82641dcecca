"""Passes by processes give what passes in one process give; what cannot be sent stays here."""

import os
import signal
from functools import partial

import numpy as np
import pytest

from qurating_jax.method import gumbel
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.benching import draws
from qurating_jax.selection.copying import ranks
from qurating_jax.selection.drawing.cuts import Draw
from qurating_jax.selection.drawing.decision import Decision, Step
from qurating_jax.selection.explaining.explanation import Asked, Scanned, explain
from qurating_jax.selection.explaining.overlap import chosen_by
from qurating_jax.selection.keys import passes, statistics
from qurating_jax.selection.keys.table import KeyBlock, ListTable, Order
from qurating_jax.selection.search import temperature_for_kl

NUM = 30_000
ORDER = Order("rating", 0.5, 0.25, gumbel.noise_stream(0, "passes"))


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("numbers"))
    draws.write(directory, NUM, 3)
    return draws.Setting(directory, NUM, 3, 0.2, 2.0, 1 << 30, 2)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(passes, "_MANY_ROWS", 1)
    monkeypatch.setattr(passes, "PIECE_ROWS", 7_000)


def _process_of(_: KeyBlock) -> int:
    return os.getpid()


def _first_hash(piece: KeyBlock) -> int:
    return int(piece.hashes[0])


def _die(_: KeyBlock) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_in_the_order_of_the_rows(setting):
    found = list(passes.over(setting, partial(_first_hash), 2))
    assert found == setting.column("hashes")[::7_000].tolist()
    assert os.getpid() not in set(passes.over(setting, partial(_process_of), 2))


def test_small_tables_and_what_cannot_be_sent_stay_in_this_process(setting, monkeypatch):
    blocks = [setting.block(number) for number in range(len(setting))]
    here = {os.getpid()}
    assert set(passes.over(setting, partial(_process_of), 1)) == here
    assert set(passes.over(setting, lambda piece: os.getpid(), 2)) == here
    assert set(passes.over(ListTable(blocks), partial(_process_of), 2)) == here
    monkeypatch.setattr(passes, "_MANY_ROWS", NUM + 1)
    assert set(passes.over(setting, partial(_process_of), 2)) == here


def test_a_killed_process_is_an_error_and_the_next_pass_works(setting):
    with pytest.raises(UserError, match="was killed"):
        list(passes.over(setting, partial(_die), 2))
    assert len(list(passes.over(setting, partial(_first_hash), 2))) == 5


def test_every_pass_can_be_sent(setting):
    found = []
    for workers in (1, 2):
        moments = statistics.moments(setting, "rating", workers)
        held = statistics.totals(setting, ["rating"], workers)
        targets = (held.tokens // 5).tolist()
        options = {"table": setting, "order": ORDER, "targets": targets, "available": held.tokens, "workers": workers}
        drawn = Draw(**options).run()
        narrowed = Draw(memory_bytes=1, **options).run()
        assert narrowed.cuts.to_json() == drawn.cuts.to_json()
        decision = Decision(("",), (), (Step(0, ORDER, drawn.cuts),))
        asked = Asked(orders=(ORDER,), ratings=("rating",), budget=sum(targets), targets=np.array(targets))
        chosen = chosen_by(setting, decision, name="it", workers=workers)
        ranking = ranks.Ranking("key_ascending", by=Order("rating"))
        order = ranks.rank(setting, decision, ranking, [100], memory_bytes=1 << 12, workers=workers)
        found.append(
            {
                "moments": moments,
                "tokens": held.tokens.tolist(),
                "cuts": drawn.cuts.to_json(),
                "quantiles": statistics.quantiles(setting, "rating", [0.1, 0.5], workers, decision.taken).tolist(),
                "ranks": [scale(np.array([0.5, -1.0], np.float32)).tolist()
                          for scale in statistics.midranks(setting, "rating", 1 << 30, workers)],
                "explanation": explain(setting, decision, asked, Scanned(), workers=workers, memory_bytes=1),
                "chosen": chosen.hashes.tolist(),
                "order": [ranges.to_json() for ranges in order.ranges],
                "temperature": temperature_for_kl(setting, Order("rating"), 0.3, workers=workers),
            }
        )  # fmt: skip
    assert found[0] == found[1]
