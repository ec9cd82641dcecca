"""Batches of random pairs for measuring the training of raters."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.judgments import from_averages
from qurating_jax.data.order import RowOrder
from qurating_jax.data.rater_examples import PackedBatches, RaterExamples
from qurating_jax.models.config import DecoderConfig


class _RandomTokens:
    """Stands for a tokenizer: text number n is random tokens of the n-th length, never id 0 (torch pads with it)."""

    def __init__(self, lengths: NDArray[np.int64], vocab_size: int) -> None:
        generator = np.random.default_rng(0)
        self._texts = [generator.integers(1, vocab_size, length).astype(np.int32) for length in lengths]

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return [self._texts[int(text)] for text in texts]


def random_batches(
    model: DecoderConfig,
    *,
    shorter: bool,
    max_tokens: int,
    batch_pairs: int,
    num_steps: int,
    num_rows: int,
    criteria: tuple[str, ...],
) -> PackedBatches:
    """Batches of random pairs; the two texts of a pair are equally long (REFERENCE step 1).

    Args:
        model: whose vocabulary the tokens are of.
        shorter: half of the pairs have from half of `max_tokens` up, as the paper's; otherwise all have as many.
        max_tokens: of a text.
        batch_pairs: of an update.
        num_steps: updates.
        num_rows: rows of an update.
        criteria: that the random labels are of.
    """
    num_pairs = num_steps * batch_pairs
    generator = np.random.default_rng(1)
    lengths = np.full(num_pairs, max_tokens)
    if shorter:
        some = generator.integers(max_tokens // 2, max_tokens + 1, num_pairs)
        lengths = np.where(generator.random(num_pairs) < 0.5, lengths, some)
    labels = generator.random((num_pairs, 2, 2, len(criteria)))
    labels[:, 1, 0] = 1 - labels[:, 0, 1]
    texts: list[tuple[str, ...]] = [(str(2 * pair), str(2 * pair + 1)) for pair in range(num_pairs)]
    examples = RaterExamples(
        from_averages(texts, texts, texts, criteria, labels),
        _RandomTokens(np.repeat(lengths, 2), model.vocab_size),  # type: ignore[arg-type]
        max_tokens=max_tokens,
        long_texts="error",
    )
    return PackedBatches.plan(
        examples,
        RowOrder([num_pairs], seed=0, kind="shuffled"),
        num_steps=num_steps,
        batch_size=batch_pairs,
        num_rows=num_rows,
        max_shapes=1,  # a round must not compile
    )
