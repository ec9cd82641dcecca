"""What an annotation reads: documents with texts, documents with token ids, or the token shards of `tokenize`."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data import documents
from qurating_jax.data.part_documents import DocumentParts, PartDocuments, check_columns
from qurating_jax.data.parts import Parts, cut_parts
from qurating_jax.data.rejects import Rejects
from qurating_jax.data.token_documents import TokenDocuments
from qurating_jax.data.tokenizer import TextTokenizer, load_tokenizer
from qurating_jax.method.windows import window_spans
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.scoring.model_set import ModelSet
from qurating_jax.scoring.part_files import Plan

log = logging.getLogger(__name__)

_TOKENIZED = "rows.parquet"  # stands in an output of `tokenize`
_SAMPLED_PARTS, _SAMPLED_DOCUMENTS, _SAMPLED_CHARACTERS = 8, 256, 4 << 20


class PartSource(Protocol):
    """Documents by part."""

    parts: Parts

    def read(self, number: int, rejects: Rejects) -> PartDocuments:
        """The documents of a part; `UserError` where they cannot be read."""

    def close(self) -> None:
        """Closes what is open; reading on opens it again."""


@dataclass(frozen=True)
class AnnotationInput:
    """An input by its options (see `annotate`'s config).

    Attributes:
        patterns: files, globs, directories, hub ids; or one output of `tokenize`.
        text_field: field of the text.
        id_field: field of the document id.
        tokens_field: field of token ids; None: texts are rated.
        tokens_tokenizer: what made these ids.
        rows_per_part: rows of a part at most.
        bytes_per_part: bytes of a part at most.
    """

    patterns: tuple[str, ...]
    text_field: str
    id_field: str
    tokens_field: str | None
    tokens_tokenizer: str | None
    rows_per_part: int
    bytes_per_part: int

    @property
    def is_tokenized(self) -> bool:
        """True for an output of `tokenize`."""
        return any(storage.exists(storage.join(path, _TOKENIZED)) for path in self.patterns)

    @property
    def has_texts(self) -> bool:
        """False where token ids are rated."""
        return self.tokens_field is None and not self.is_tokenized

    def find_files(self) -> list[str]:
        """The files of documents; none for an output of `tokenize`."""
        return [] if self.is_tokenized else documents.find_files(self.patterns)

    def digest(self, files: Sequence[str]) -> dict[str, Any]:
        """What identifies the input, for a manifest."""
        return manifest.input_digest(self.patterns, files)

    def check(self, files: Sequence[str], models: ModelSet, added: Sequence[str]) -> None:
        """Refuses what headers show to be wrong, before any work.

        Args:
            files: as `find_files` gives them.
            models: what is to rate the input.
            added: columns that will be added to the documents' own.

        Raises:
            UserError: token ids of another tokenizer, or for a rater that reads texts; a column that is not there, or
                one that would be overwritten.
        """
        if self.is_tokenized and len(self.patterns) > 1:
            raise UsageError("--input: an output of `tokenize` is rated alone; name one")
        if not self.has_texts:
            self._check_tokens(models)
        if files:
            check_columns(files, needed=[self.tokens_field or self.text_field], added=added)

    def _check_tokens(self, models: ModelSet) -> None:
        if self.is_tokenized:
            where = self.patterns[0]
            made_by = manifest.read(where, stages=("tokenize",))["counts"]["tokenizer"]
        else:
            where = self.tokens_tokenizer or ""
            made_by = load_tokenizer(where).identity
        if models.reads_texts:
            raise UserError("a rater of n-grams reads texts, not token ids; rate the documents they were made of")
        if made_by != models.tokenizer:
            raise UserError(f"{where}: token ids of another tokenizer than the models read; rate the texts instead")

    def open(self, files: Sequence[str], parts: Parts | None) -> PartSource:
        """Opens the input; `parts` is its cut where that is known."""
        if self.is_tokenized:
            return TokenDocuments.open(self.patterns[0], max_rows=self.rows_per_part, max_bytes=self.bytes_per_part)
        return DocumentParts(
            files,
            parts or cut_parts(files, max_rows=self.rows_per_part, max_bytes=self.bytes_per_part),
            text_field=self.text_field,
            id_field=self.id_field,
            tokens_field=self.tokens_field,
        )


def make_plan(
    source: AnnotationInput,
    files: Sequence[str],
    tokenizer_path: str | None,
    window_tokens: int,
    max_windows: int | None,
) -> Plan:
    """Cuts an input into parts and samples its windows; `UserError` where there is nothing to rate."""
    with contextlib.closing(source.open(files, None)) as opened:
        if not len(opened.parts):
            raise UserError("no documents in the input; nothing was rated")
        log.info("annotate: %d rows in %d parts", opened.parts.num_rows, len(opened.parts))
        tokenizer = None if tokenizer_path is None else load_tokenizer(tokenizer_path)
        return Plan(opened.parts, sample_window_sizes(opened, tokenizer, window_tokens, max_windows))


def sample_window_sizes(
    source: PartSource, tokenizer: TextTokenizer | None, window_tokens: int, max_windows: int | None
) -> NDArray[np.int64]:
    """Sizes of the windows of some documents, from parts all over the input: int64 [m]. Bad rows are passed over.

    Nothing is compiled for words (`tokenizer` None), so nothing is sampled.
    """
    sizes = [np.zeros(0, np.int64)]
    num_parts = 0 if tokenizer is None else len(source.parts)
    for number in np.unique(np.linspace(0, num_parts - 1, min(num_parts, _SAMPLED_PARTS)).round().astype(int)).tolist():
        try:
            with Rejects(None, "skip") as rejects:
                found = source.read(number, rejects)
        except UserError:
            continue  # said when the part is rated
        if found.tokens is not None:
            lengths = np.diff(found.tokens[1][: _SAMPLED_DOCUMENTS + 1])
        else:
            assert tokenizer is not None
            texts = texts_of(found)[:_SAMPLED_DOCUMENTS]
            ends = np.cumsum([len(text) for text in texts])  # a sample of books stops early, every worker waits for it
            texts = texts[: 1 + int(np.searchsorted(ends, _SAMPLED_CHARACTERS))]
            lengths = np.diff(tokenizer.encode_flat(texts)[1])
        sizes.append(window_spans(lengths, window_tokens, max_windows)[2])
    return np.concatenate(sizes)


def texts_of(found: PartDocuments) -> list[str]:
    """The documents' texts, empty where they have none."""
    assert found.texts is not None
    return [text or "" for text in found.texts]
