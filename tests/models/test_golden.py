"""Golden files (tests/golden/make_golden.py): what `transformers` computed, checked where torch is not installed."""

from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import FLOAT32, QUICK, one_device

from qurating_jax.models import heads, hf

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir() if (path / "expected.npz").exists()))
def test_logits_of_golden_files(name):
    config, labels = hf.read_config(str(GOLDEN / name))
    params = hf.load(str(GOLDEN / name), one_device())
    with np.load(GOLDEN / name / "expected.npz", allow_pickle=False) as expected:
        tokens, positions, want = expected["tokens"], expected["positions"], expected["logits"]

    def forward(params, tokens):
        if labels:
            return heads.scores(params, config, tokens, tokens >= 0, compute=FLOAT32)
        return heads.logits(params, config, tokens, compute=FLOAT32)[:, positions]

    got = np.asarray(jax.jit(forward, compiler_options=QUICK)(params, tokens))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_golden_files_are_there_and_small():
    assert {path.name for path in GOLDEN.iterdir() if path.is_dir()} >= {"llama-gqa-lm", "llama-gqa-rater", "qwen3-lm"}
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 150_000
