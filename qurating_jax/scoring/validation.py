"""Held-out pairs, scored again and again while a rater is trained."""

from typing import Literal

import numpy as np

from qurating_jax.data.judgments import Judgments, distinct_texts
from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.method.bradley_terry import pair_accuracy
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.neural import NeuralModel
from qurating_jax.scoring.pairs import cross_entropy, pairs_of


class Validator:
    """Judgments whose texts are tokenized once.

    Attributes:
        num_tokens: tokens of all texts together.

    Args:
        judgments: the held-out groups.
        tokenizer: the rater's.
        max_tokens: the longest text.
        long_texts: whether longer texts are an error or cut there, as the training texts are.
        margin: least confidence of a label that counts.

    Raises:
        UserError: a criterion without such a label, a text without tokens, or one that is too long.
    """

    def __init__(
        self,
        judgments: Judgments,
        tokenizer: TextTokenizer,
        *,
        max_tokens: int,
        long_texts: Literal["error", "cut"],
        margin: float,
    ) -> None:
        self._judgments, self._margin = judgments, margin
        texts, self._places = distinct_texts(judgments)
        self._tokens, offsets = tokenizer.encode_flat(texts)
        lengths = np.diff(offsets)
        if not lengths.all():
            raise UserError("held-out judgments: a text is empty; leave such rows out")
        num_long = int((lengths > max_tokens).sum())
        if num_long and long_texts == "error":
            raise UserError(
                f"held-out judgments: {num_long} of {len(texts)} texts are longer than max_tokens ({max_tokens}); "
                "raise it, or --long_texts cut"
            )
        self._starts, self._sizes = offsets[:-1], np.minimum(lengths, max_tokens)
        self.num_tokens = int(self._sizes.sum())
        self._pairs = [
            pairs_of(judgments, self._places, number, margin=margin, label_temperature=1.0)
            for number in range(len(judgments.criteria))
        ]

    def __call__(self, model: NeuralModel) -> dict[str, float]:
        """`accuracy` and `loss` (nats per pair), means over the criteria, and `accuracy_{criterion}` of each."""
        scores = model.score_tokens(self._tokens, self._starts, self._sizes)
        accuracies, losses = {}, []
        for number, (criterion, pairs) in enumerate(zip(self._judgments.criteria, self._pairs, strict=True)):
            labels, valid = self._judgments.probabilities[..., number], self._judgments.valid[..., number]
            found = pair_accuracy(scores[self._places][..., number], labels, valid, margin=self._margin).accuracy
            accuracies[f"accuracy_{criterion}"] = 0.5 if found is None else found  # all labels are ties
            differences = pairs.differences(scores[:, number].astype(np.float64))
            losses.append(cross_entropy(differences, pairs.targets) / len(pairs))
        return {"accuracy": float(np.mean(list(accuracies.values()))), "loss": float(np.mean(losses)), **accuracies}
