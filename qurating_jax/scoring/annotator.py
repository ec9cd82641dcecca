"""Ratings as columns: several raters and language models over the windows of the same documents, in one pass.

The columns are those of the published QuRatedPajama data: `length`, `chunk_lengths`, per criterion `{criterion}_chunks`
and `{criterion}_average`; a language model adds `log_likelihood_chunks`, `log_likelihood_average` (mean per predicted
token, in nats) and `bits_per_byte`. Everything is arrays; no token and no score becomes a Python number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data.document_columns import AVERAGE
from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.method.windows import first_windows, weighted_means
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.likelihood import LanguageModel, predicted_bytes
from qurating_jax.scoring.scorer import Work
from qurating_jax.scoring.windows import OnShare, WindowModel, Windows, cut, cut_tokens

LENGTH, CHUNK_LENGTHS = "length", "chunk_lengths"
LOG_LIKELIHOOD, BITS_PER_BYTE = "log_likelihood", "bits_per_byte"

# What a document's rating is beside the token-weighted mean of its windows'.
Aggregate = Literal["max", "min", "first"]
_REDUCE: dict[Aggregate, Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]] = {
    "max": np.maximum.reduceat,
    "min": np.minimum.reduceat,
    "first": np.take,
}


@dataclass(frozen=True)
class Layout:
    """Which columns are written.

    Attributes:
        raters: criteria by the prefix of a rater's columns, in the order of the columns.
        language_models: prefixes of the language models' columns.
        aggregates: what a document's rating is beside the mean.
        prefix: in front of every column.
        chunks: whether the scores of windows are columns too.
        bytes: whether bits per byte are (every token of a document's text has to be in a window for it).
    """

    raters: Mapping[str, tuple[str, ...]]
    language_models: tuple[str, ...] = ()
    aggregates: tuple[Aggregate, ...] = ()
    prefix: str = ""
    chunks: bool = True
    bytes: bool = True

    def names(self) -> list[str]:
        """The columns' names."""
        names = [LENGTH, *([CHUNK_LENGTHS] if self.chunks else [])]
        for rater, criteria in self.raters.items():
            names += [name for criterion in criteria for name in self._rating_names(rater + criterion)]
        for model in self.language_models:
            names += [*self._rating_names(model + LOG_LIKELIHOOD), *([model + BITS_PER_BYTE] if self.bytes else [])]
        return [self.prefix + name for name in names]

    def _rating_names(self, rating: str) -> list[str]:
        kinds = (*(["chunks"] if self.chunks else []), "average", *self.aggregates)
        return [f"{rating}_{kind}" for kind in kinds]


@dataclass(frozen=True, eq=False)
class Annotator:
    """Raters and language models by the prefix of their columns; all that read tokens read the same ones."""

    raters: Mapping[str, WindowModel]
    language_models: Mapping[str, LanguageModel]
    tokenizer: TextTokenizer | None
    window_tokens: int
    max_windows: int | None
    layout: Layout

    @property
    def work(self) -> Work:
        """What the devices have computed so far."""
        works = [rater.work for rater in self.raters.values()]
        return sum([*works, *(model.work for model in self.language_models.values())], Work())

    def suited_to(self, sizes: NDArray[np.int64], max_shapes: int) -> "Annotator":
        """The same, compiled for windows of sizes like these (int64 [k], a sample) in so many shapes a model."""
        return replace(
            self,
            raters={name: model.suited_to(sizes, max_shapes) for name, model in self.raters.items()},
            language_models={name: model.suited_to(sizes, max_shapes) for name, model in self.language_models.items()},
        )

    def cut(self, texts: Sequence[str]) -> Windows:
        """The windows of texts."""
        with_texts = any(model.reads_texts for model in self.raters.values())
        return cut(texts, self.tokenizer, self.window_tokens, with_texts=with_texts, max_windows=self.max_windows)

    def cut_tokens(self, values: NDArray[np.int32], offsets: NDArray[np.int64]) -> Windows:
        """The windows of documents that this tokenizer has made token ids (values [N], offsets [n + 1]).

        Raises:
            UserError: ids that it does not have.
        """
        assert self.tokenizer is not None
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < self.tokenizer.vocab_size:
            raise UserError(
                f"token ids from {values.min()} to {values.max()}, but the tokenizer has {self.tokenizer.vocab_size}"
            )
        return cut_tokens(values, offsets, self.tokenizer.identity, self.window_tokens, max_windows=self.max_windows)

    def columns(
        self, windows: Windows, texts: Sequence[str] | None, on_share: OnShare | None = None
    ) -> dict[str, pa.Array]:
        """The columns of n documents, as `layout` names them; null where a document has no rating.

        Args:
            windows: as `cut` made them.
            texts: of the documents, for bits per byte; None: they are not wanted.
            on_share: called with shares of the work.
        """
        groups = len(self.raters) + len(self.language_models)
        report: OnShare | None = None
        if on_share is not None:
            whole = on_share
            report = lambda share: whole(share / groups)  # noqa: E731
        columns: dict[str, pa.Array] = {LENGTH: pa.array(windows.lengths.astype(np.int32))}
        if self.layout.chunks:
            columns[CHUNK_LENGTHS] = _lists(windows, windows.sizes.astype(np.int32))
        for prefix, rater in self.raters.items():
            scores = _finite(rater.score_windows(windows, report), prefix)
            for number, criterion in enumerate(self.layout.raters[prefix]):
                columns |= self._ratings(prefix + criterion, windows, scores[:, number], windows.sizes)
        for prefix, model in self.language_models.items():
            totals, predicted = model.log_likelihoods(windows, report)
            _finite(totals, prefix)
            with np.errstate(invalid="ignore"):
                means = (totals / predicted).astype(np.float32)  # NaN for the window of a single token
            columns |= self._ratings(prefix + LOG_LIKELIHOOD, windows, means, predicted)
            if self.layout.bytes and texts is not None and self.tokenizer is not None:
                columns[prefix + BITS_PER_BYTE] = _bits_per_byte(windows, totals, texts, self.tokenizer)
        return {self.layout.prefix + name: column for name, column in columns.items()}

    def _ratings(
        self, name: str, windows: Windows, scores: NDArray[np.float32], weights: NDArray[np.int64]
    ) -> dict[str, pa.Array]:
        """The columns of one score per window (NaN: none), of which `weights` tokens tell."""
        columns: dict[str, pa.Array] = {}
        if self.layout.chunks:
            columns[f"{name}_chunks"] = _lists(windows, scores)
        n, known = windows.num_documents, weights > 0
        documents, values = windows.documents[known], scores[known]
        means = weighted_means(values.astype(np.float64)[:, None], weights[known], documents, n)[:, 0]
        columns[name + AVERAGE] = _nullable(means)
        rated, places = first_windows(documents)
        for aggregate in self.layout.aggregates:
            ratings = np.full(n, np.nan)
            if len(rated):
                ratings[rated] = _REDUCE[aggregate](values, places)
            columns[f"{name}_{aggregate}"] = _nullable(ratings)
        return columns


def _finite(scores: NDArray, prefix: str) -> NDArray:
    """A model with broken weights must not look like one that has no ratings."""
    if not np.isfinite(scores).all():
        which = f"the model {prefix[:-1]}" if prefix else "the model"
        raise UserError(
            f"{which} gives scores that are no numbers ({int((~np.isfinite(scores)).sum())} of {scores.size}); its "
            "weights are broken, or overflow in this compute.dtype"
        )
    return scores


def _bits_per_byte(
    windows: Windows, totals: NDArray[np.float64], texts: Sequence[str], tokenizer: TextTokenizer
) -> pa.Array:
    """Bits per byte of every text; see `likelihood` for what is left out."""
    assert windows.values is not None
    nats = -np.bincount(windows.documents, weights=totals, minlength=windows.num_documents)
    num_bytes = np.zeros(windows.num_documents)
    for number in np.flatnonzero(windows.lengths > 1).tolist():
        begin, end = windows.offsets[number], windows.offsets[number + 1]
        num_bytes[number] = predicted_bytes(texts[number], windows.values[begin:end], tokenizer)
    with np.errstate(invalid="ignore", divide="ignore"):
        bits = nats / np.log(2) / num_bytes
    return _nullable(np.where(num_bytes > 0, bits, np.nan))


def _lists(windows: Windows, values: NDArray) -> pa.Array:
    """One list per document of its windows' values; NaN becomes null."""
    ends = np.searchsorted(windows.documents, np.arange(windows.num_documents + 1))
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(values, from_pandas=True))


def _nullable(values: NDArray[np.float64]) -> pa.Array:
    """float32, null where NaN."""
    return pa.array(values.astype(np.float32), from_pandas=True)
