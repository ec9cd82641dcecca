"""Judged groups of texts as rows of fixed shape for training a rater."""

import logging
from collections.abc import Mapping

import numpy as np

from qurating_jax.data.judgments import Judgments
from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.runtime.errors import UserError

# Rows are padded to a multiple of this: one compiled shape per run, not one per longest text.
_LENGTH_MULTIPLE = 64

log = logging.getLogger(__name__)


class RaterExamples:
    """Tokenized groups, right-padded to one length.

    Args:
        judgments: n groups of k texts.
        tokenizer: no special tokens are added.
        max_tokens: longer texts are cut at their end (counted in `num_cut`).

    Raises:
        UserError: a text without tokens, which no score could be read from.
    """

    def __init__(self, judgments: Judgments, tokenizer: TextTokenizer, *, max_tokens: int) -> None:
        n, k = len(judgments.texts), len(judgments.texts[0])
        encoded = tokenizer.encode([text for group in judgments.texts for text in group])
        empty = [index for index, ids in enumerate(encoded) if not len(ids)]
        if empty:
            raise UserError(f"judgment {empty[0] // k}: text {empty[0] % k} is empty; leave such rows out")
        lengths = np.array([len(ids) for ids in encoded])
        self.num_cut = int((lengths > max_tokens).sum())
        if self.num_cut:
            log.info("%d of %d texts are longer than %d tokens and are cut", self.num_cut, len(encoded), max_tokens)
        lengths = np.minimum(lengths, max_tokens)
        padded = min(-(-int(lengths.max()) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, max_tokens)
        tokens = np.zeros((n * k, padded), np.int32)
        for row, ids in enumerate(encoded):
            tokens[row, : lengths[row]] = ids[:padded]
        self._arrays = {
            "tokens": tokens.reshape(n, k, padded),
            "lengths": lengths.astype(np.int32).reshape(n, k),
            "labels": np.where(judgments.valid, judgments.probabilities, np.float32(0.5)),
            "valid": judgments.valid,
        }
        self.padding_fraction = 1 - float(lengths.sum()) / tokens.size

    def fetch(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
        """Rows (int64 [m]) as `tokens` [m, k, T], `lengths` [m, k], `labels` and `valid` [m, k, k, C]."""
        return {name: array[rows] for name, array in self._arrays.items()}
