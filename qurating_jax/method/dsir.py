"""Data selection by importance resampling: log importance weights of hashed n-grams (DSIR, Xie et al. 2023).

A document is the bag of its words and pairs of neighbouring words, hashed into buckets (arXiv 2302.03169, section 3;
`method.hashed_ngrams`). With the bucket frequencies p of a target and q of the raw corpus, both normalised to 1, the
log importance weight of a document is the sum over its n-grams of log(p + 1e-8) - log(q + 1e-8): a likelihood ratio of
two bags of words. Gumbel noise on it samples the corpus towards the target. The constants are those of the authors'
package `data-selection`, whose weights come out here too.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method import elementary
from qurating_jax.method.hashed_ngrams import NUM_BUCKETS, Ngrams

MIN_TOKENS = 100
SMOOTHING = 1e-8  # added to both probabilities before the logarithm, as published

_SUM_NGRAMS = 1 << 20  # n-grams of the documents that are summed at a time


def num_tokens(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Tokens of documents with so many n-grams, int64 [n]."""
    return (lengths.astype(np.int64) + 1) // 2


def bucket_counts(
    ngrams: Ngrams, num_buckets: int = NUM_BUCKETS, documents: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """How often every bucket occurs, int64 [num_buckets]; counts of several parts add up.

    Args:
        ngrams: of n documents.
        num_buckets: how many there are.
        documents: bool [n], those that count; None: all.

    Raises:
        ValueError: there are n-grams in other buckets.
    """
    counts = np.zeros(num_buckets, np.int64)
    for start, stop in _runs(ngrams.offsets):  # `bincount` takes 8 bytes per n-gram
        buckets = ngrams.buckets[ngrams.offsets[start] : ngrams.offsets[stop]]
        if documents is not None:
            buckets = buckets[np.repeat(documents[start:stop], np.diff(ngrams.offsets[start : stop + 1]))]
        found = np.bincount(buckets, minlength=num_buckets)
        if len(found) > num_buckets:
            raise ValueError(f"an n-gram is in bucket {len(found) - 1} of {num_buckets}")
        counts += found
    return counts


def log_ratios(target: NDArray[np.int64], raw: NDArray[np.int64], *, pseudo_count: float = 0.0) -> NDArray[np.float64]:
    """log(p + 1e-8) - log(q + 1e-8) of every bucket, in nats, float64 [B]; the same bits on every machine.

    Args:
        target: int64 [B], `bucket_counts` of the target; p are these divided by their sum.
        raw: int64 [B], of the raw corpus; q likewise.
        pseudo_count: added to all counts before they are normalised (Laplace); 0 is the published rule.

    Raises:
        ValueError: one of them has no n-grams, or the pseudo-count is negative or not finite.
    """
    if not 0 <= pseudo_count < np.inf:
        raise ValueError(f"the pseudo-count is {pseudo_count}, not 0 or more")
    return _log_probabilities(target, pseudo_count) - _log_probabilities(raw, pseudo_count)


def log_weights(
    ngrams: Ngrams, ratios: NDArray[np.float64], *, min_tokens: int = MIN_TOKENS, length_norm: bool = False
) -> NDArray[np.float64]:
    """Log importance weights of documents, in nats.

    The terms of a document are added one after the other in the order of their buckets, so that the sum has the same
    bits wherever the document stands, and is that of every document with the same n-grams.

    Args:
        ngrams: of n documents, in buckets below B.
        ratios: float64 [B], `log_ratios`.
        min_tokens: documents with fewer tokens have no weight; 1 or more.
        length_norm: the mean over a document's n-grams instead of their sum (the published rule is the sum).

    Returns:
        float64 [n]; NaN where a document is too short.
    """
    if min_tokens < 1:
        raise ValueError(f"min_tokens is {min_tokens}; a document without tokens has no weight")
    lengths, weights = ngrams.lengths(), np.empty(len(ngrams))
    for start, stop in _runs(ngrams.offsets):
        buckets = ngrams.buckets[ngrams.offsets[start] : ngrams.offsets[stop]]
        of_document = np.repeat(np.arange(stop - start), lengths[start:stop])
        weights[start:stop] = np.bincount(of_document, ratios[buckets], minlength=stop - start)
    if length_norm:
        weights /= np.maximum(lengths, 1)
    weights[num_tokens(lengths) < min_tokens] = np.nan
    return weights


def _runs(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of documents of about `_SUM_NGRAMS` n-grams each."""
    start, end = 0, len(offsets) - 1
    while start < end:
        fitting = int(np.searchsorted(offsets, offsets[start] + _SUM_NGRAMS, side="right")) - 1
        stop = min(max(fitting, start + 1), end)
        yield start, stop
        start = stop


def _log_probabilities(counts: NDArray[np.int64], pseudo_count: float) -> NDArray[np.float64]:
    total = int(counts.sum())
    if total < 1:
        raise ValueError("there are no n-grams")
    probabilities = (counts + np.float64(pseudo_count)) / (total + pseudo_count * len(counts))
    return elementary.log(probabilities + SMOOTHING)
