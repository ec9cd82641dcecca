"""Loss spikes: found by a robust rule, described, the same however often a run was interrupted."""

import json

import numpy as np
import pytest

from qurating_jax.runtime.tracker import JsonlTracker
from qurating_jax.training.spikes import Spikes


def losses(num_steps=150, seed=0):
    return (3 + 0.1 * np.random.default_rng(seed).normal(size=num_steps)).tolist()


def see(path, values, *, deviations=10.0, first=1, recent=(), **options):
    tracker = JsonlTracker(str(path), resume_step=first - 1)
    spikes = Spikes(deviations, tracker, title="test", recent=recent, **options)
    for step, loss in enumerate(values, first):
        spikes.see(step, {"loss": loss, "grad_norm": 2.0})
    return spikes


def found(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_spike_is_told_with_its_documents(tmp_path, caplog):
    values = losses()
    values[120] = 5.0
    see(tmp_path / "s", values, describe=lambda step: {"documents": [f"batch {step}"]})
    median = float(np.median(values[20:120]))
    assert found(tmp_path / "s") == [
        {"step": 121, "loss": 5.0, "median": median, "grad_norm": 2.0, "documents": ["batch 121"]}
    ]
    assert caplog.messages == [
        f"test: step 121 has a loss of 5.0000, the median of the steps before it is {median:.4f} (see spikes.jsonl)"
    ]


def test_the_rule_by_numpy(tmp_path):
    values = losses(400, seed=1)
    values[50], values[200] = 3.9, 4.4
    see(tmp_path / "s", values, deviations=3.0)
    expected = []
    for index in range(20, len(values)):
        window = np.array(values[max(0, index - 100) : index])
        spread = 1.4826 * np.median(np.abs(window - np.median(window)))
        if values[index] - np.median(window) > 3.0 * spread:
            expected.append(index + 1)
    assert {51, 201} <= set(expected)
    assert [line["step"] for line in found(tmp_path / "s")] == expected


@pytest.mark.parametrize(
    ("values", "deviations"),
    [
        ([*losses(15), 50.0], 10.0),  # too early to tell
        ([1.0] * 50 + [1.0005], 10.0),  # losses that do not vary make no spike of rounding
        ([*losses(), 1.0], 10.0),  # a fall
        ([*losses(), 50.0], 0.0),  # switched off
    ],
    ids=["early", "constant", "fall", "off"],
)
def test_no_spike(tmp_path, values, deviations):
    see(tmp_path / "s", values, deviations=deviations)
    assert found(tmp_path / "s") == []
    assert not (tmp_path / "s").exists()


def test_a_falling_loss_is_followed(tmp_path):
    """The median of a run that learns quickly lies above its loss."""
    see(tmp_path / "s", (10 * np.exp(-np.arange(300) / 60) + np.array(losses(300))).tolist())
    assert found(tmp_path / "s") == []


@pytest.mark.parametrize("stop", [5, 60, 149])
def test_a_resumed_run_finds_the_same(tmp_path, stop):
    values = losses()
    values[70] = values[149] = 9.0
    whole = see(tmp_path / "whole", values)
    first = see(tmp_path / "halves", values[:stop])
    second = see(tmp_path / "halves", values[stop:], first=stop + 1, recent=json.loads(json.dumps(first.recent)))
    assert found(tmp_path / "halves") == found(tmp_path / "whole")
    assert second.recent == whole.recent == values[-100:]
    assert [line["step"] for line in found(tmp_path / "whole")] == [71, 150]
