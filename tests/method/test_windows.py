import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.method.windows import weighted_means, window_spans


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 9))
def test_windows_cover_every_token_once_and_in_order(lengths, window_tokens):
    documents, starts, sizes = window_spans(np.array(lengths, np.int64), window_tokens)
    covered = [(d, t) for d, s, n in zip(documents, starts, sizes, strict=True) for t in range(s, s + n)]
    assert covered == [(d, t) for d, length in enumerate(lengths) for t in range(length)]
    assert all(1 <= n <= window_tokens for n in sizes)
    # Only a document's last window is short.
    assert all(n == window_tokens or s + n == lengths[d] for d, s, n in zip(documents, starts, sizes, strict=True))


def test_a_window_needs_a_token():
    with pytest.raises(ValueError, match="window_tokens is 0"):
        window_spans(np.array([3]), 0)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 1000))
def test_means_are_weighted_by_tokens(lengths, window_tokens, seed):
    documents, _, sizes = window_spans(np.array(lengths, np.int64), window_tokens)
    values = np.random.default_rng(seed).normal(size=(len(documents), 2))
    means = weighted_means(values, sizes, documents, len(lengths))
    for number, length in enumerate(lengths):
        own = documents == number
        if length:
            np.testing.assert_allclose(means[number], np.average(values[own], axis=0, weights=sizes[own]), rtol=1e-12)
        else:
            assert np.isnan(means[number]).all()
