"""What follows from how long documents are, where no more is known of them than their mean.

Lengths of documents are spread widely; an exponential distribution of the known mean stands for them. Corpora that are
cut already (QuRatedPajama has rows of exactly 1 024 tokens) are told by a mean that is a power of two: there every
document has the mean length.
"""

import math

import numpy as np

from qurating_jax.experiments.planning.amounts import Found
from qurating_jax.tokenizing.layouts import Segments
from qurating_jax.tokenizing.options import TokenizeOptions

_NEAR = 0.005  # of a power of two
_SHORTEST_ROW = 256


def are_equal(found: Found) -> bool:
    """True where documents seem to be rows of one length."""
    mean = found.mean_tokens
    if mean is None or mean < _SHORTEST_ROW * (1 - _NEAR):
        return False
    return abs(mean / 2 ** round(math.log2(mean)) - 1) < _NEAR


def windows_of(found: Found, window_tokens: int) -> float:
    """Windows of a document on the mean, at least 1: sum over k of P(length > k W)."""
    mean = found.mean_tokens
    if not mean:
        return 1.0
    if are_equal(found):
        return float(max(1, math.ceil(round(mean) / window_tokens)))
    return 1 / -math.expm1(-window_tokens / mean)


def capped_share(found: Found, most: int | None) -> float:
    """Share of the tokens that stay where of every document the first `most` count: E min(L, c) / E L."""
    mean = found.mean_tokens
    if most is None or not mean:
        return 1.0
    return min(1.0, most / mean) if are_equal(found) else -math.expm1(-most / mean)


def tokenized_rows(options: TokenizeOptions, found: Found) -> int | None:
    """Training rows that `tokenize` makes of documents; None where their tokens are not known.

    Packed rows follow from the sum of tokens (and an EOS per document). Windows of one document depend on the lengths:
    window k is there where the document has at least `min_tail_tokens` from k strides on.
    """
    if found.tokens is None:
        return None
    share, size = 1 - options.validation_fraction, options.sequence_tokens
    closed = found.tokens + (found.documents or 0) * options.closes_documents
    if options.layout == "packed":
        return max(1, math.ceil(share * closed / size))
    stride = size - options.overlap_tokens
    if not found.documents or not found.mean_tokens:
        return max(1, round(share * closed / stride))
    if are_equal(found):
        layout = Segments(size, options.overlap_tokens, options.min_tail_tokens)
        each = float(layout.tally(np.array([round(closed / found.documents)], np.int64)).rows)
    else:
        mean = closed / found.documents
        later = max(options.min_tail_tokens, options.overlap_tokens + 1)  # what only repeats the window before is none
        each = math.exp(-options.min_tail_tokens / mean)
        each += math.exp(-(stride + later) / mean) / -math.expm1(-stride / mean)
    return max(1, round(share * found.documents * each))
