import dsir_runs as runs
import numpy as np
import pytest
from input_samples import put_rows

from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.benching import dsir as bench


@pytest.fixture
def inputs(tmp_path):
    rows = [row | {"text": row["text"] or "none"} for row in runs.rows_of(40, 1)]
    return [put_rows(tmp_path, "raw.jsonl", rows)], [put_rows(tmp_path, "target.jsonl.zst", rows[:20])]


def test_both_sides_in_turns(inputs):
    pytest.importorskip("data_selection", reason="data-selection is in the extra `dev`")
    found = bench.contest(*inputs, num_documents=30, rounds=2)
    assert found["documents"] == 30
    assert found["no_peer"] is None
    for name in ("features", "weights"):
        contest = found[name]
        assert set(contest["sides"]) == {"ours", "data-selection"}
        for side in contest["sides"].values():
            rates = side["documents_per_wall_second"]
            assert 0 < rates["low"] <= rates["median"] <= rates["high"]
            median = side["bytes_per_wall_second"]["median"]
            assert median == pytest.approx(rates["median"] * found["bytes"] / 30)
        assert set(contest["ratios"]) == {"wall", "cpu"}
    assert found["largest_difference"] < 1e-9


def test_without_a_peer(inputs, monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    found = bench.contest(*inputs, num_documents=1000, rounds=1)
    assert "not installed" in found["no_peer"]
    assert found["documents"] == 40
    assert found["weights"]["ratios"] == {}
    assert set(found["weights"]["sides"]) == {"ours"}


def test_weights_that_differ_are_said():
    ours = np.array([1.0, -250.0, np.nan])
    assert bench._difference(ours, np.array([1.0, -250.0, 0.0])) == 0
    with pytest.raises(UserError, match="nltk"):
        bench._difference(ours, np.array([1.0, -250.001, 0.0]))
    with pytest.raises(UserError, match="nltk"):
        bench._difference(ours, np.array([1.0, -250.0, 3.0]))
