"""A teacher's ratings as examples: what another rater said of documents, as soft comparisons to learn from.

Ratings are what `annotate` writes, or any documents with numeric columns `{criterion}_average`. A rating of a long
document is a mean over windows, and says little about any of them; where the student cuts text as the teacher did, each
window is an example of its own, with the score that it got.
"""

import hashlib
import json
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data import documents
from qurating_jax.data.documents import Document, Rejects
from qurating_jax.data.judgments import AVERAGE, UNKNOWN, Judgments, from_averages
from qurating_jax.data.splits import split_disjoint
from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError

SOURCE = "teacher"  # the source of judgments that are made of ratings

_CHUNKS, _CHUNK_LENGTHS = "_chunks", "chunk_lengths"
_BATCH_DOCUMENTS = 64
_LARGEST = float(np.finfo(np.float32).max)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Teacher:
    """n rated texts: documents, or windows of documents.

    Attributes:
        texts: the texts, none empty.
        ids: ids of their documents; the windows of one document share its id.
        domains: their domains, "unknown" where there is none.
        criteria: C names.
        scores: float32 [n, C]; NaN where a text has no rating on a criterion.
        num_windows: how many of the texts are windows of a longer document.
        num_unrated: documents and windows that were left out, for want of any rating or of text.
    """

    texts: list[str]
    ids: list[str]
    domains: list[str]
    criteria: tuple[str, ...]
    scores: NDArray[np.float32]
    num_windows: int = 0
    num_unrated: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: NDArray[np.int64]) -> "Teacher":
        """The texts at `indices`, in that order (the two counts stay those of the whole)."""
        return replace(
            self,
            texts=[self.texts[i] for i in indices],
            ids=[self.ids[i] for i in indices],
            domains=[self.domains[i] for i in indices],
            scores=self.scores[indices],
        )


@dataclass(frozen=True)
class _Example:
    text: str
    id: str
    domain: str
    scores: list[float]
    is_window: bool


def read_teacher(
    patterns: Sequence[str],
    *,
    criteria: Sequence[str] | None = None,
    text_field: str = "text",
    id_field: str = "id",
    domain_field: str = "domain",
    tokenizer: TextTokenizer | None = None,
    rejects: Rejects,
) -> Teacher:
    """Reads ratings.

    Args:
        patterns: outputs of `annotate`, or files, globs, directories and hub ids of rated documents.
        criteria: names in the order of the scores; none: every numeric column `{criterion}_average` of the first row.
        text_field: column of the text that was rated.
        id_field: column of the document id.
        domain_field: column of the domain, "unknown" where it is absent or null.
        tokenizer: the student's. Where the manifest of an `annotate` output says that its rater has the same, the
            windows of its documents are examples; elsewhere whole documents are.
        rejects: policy for rows without a text.

    Raises:
        UserError: no such file, no ratings, a rating that is no finite number, or windows that do not fit the text.
    """
    files = documents.find_files(patterns)
    windowed = {} if tokenizer is None else {file: _rated_with(file) == tokenizer.identity for file in files}
    names = tuple(criteria or ())
    examples: list[_Example] = []
    for file in files:
        rows = documents.read_documents([file], text_field=text_field, id_field=id_field, rejects=rejects)
        with closing(cast("Generator[Document]", rows)):
            while batch := list(islice(rows, _BATCH_DOCUMENTS)):
                names = names or _criteria_of(file, batch[0])
                examples += _examples(file, batch, names, domain_field, tokenizer if windowed.get(file) else None)
    rated = [example for example in examples if example.text and not all(np.isnan(example.scores))]
    num_unrated = len(examples) - len(rated)
    if not rated:
        raise UserError(f"{', '.join(patterns)}: no rated text in it ({num_unrated} without a rating)")
    num_windows = sum(example.is_window for example in rated)
    log.info(
        "teacher: %d texts (%d of them windows of longer documents) rated on %s; %d left out, without text or rating",
        len(rated), num_windows, ", ".join(names), num_unrated,
    )  # fmt: skip
    return Teacher(
        texts=[example.text for example in rated],
        ids=[example.id for example in rated],
        domains=[example.domain for example in rated],
        criteria=names,
        scores=np.array([example.scores for example in rated], np.float32),
        num_windows=num_windows,
        num_unrated=num_unrated,
    )


def split_teacher(teacher: Teacher, validation_fraction: float, seed: int) -> tuple[Teacher, Teacher]:
    """Training and held-out texts of a teacher, without a common text or document, alike in domains.

    To be done before groups are made: groups of windows hang together through their documents, so that no split of
    them would be disjoint.

    Raises:
        UserError: see `split_disjoint`.
    """
    singles = from_averages(
        [(text,) for text in teacher.texts],
        [(name,) for name in teacher.ids],
        [(domain,) for domain in teacher.domains],
        (),
        np.zeros((len(teacher), 1, 1, 0)),
    )
    train, validation = split_disjoint(singles, validation_fraction, seed)
    return teacher.take(train), teacher.take(validation)


def teacher_groups(teacher: Teacher, *, group_size: int, seed: int, temperature: float = 1.0) -> Judgments:
    """Ratings as judged groups: p(j > i) = sigmoid((s_j - s_i) / temperature), as Bradley-Terry has it.

    All texts in a random order, which follows from the seed and the texts and not from the order of rows, are cut into
    groups; a text with the same id and text as another counts once, a rest of less than a group is dropped.

    Args:
        teacher: rated texts.
        group_size: k, at least 2.
        seed: of the order.
        temperature: > 0; above 1 makes the labels softer.

    Raises:
        UserError: fewer texts than one group needs.
    """
    if group_size < 2 or temperature <= 0:
        raise ValueError("group_size must be at least 2, temperature positive")
    order = _order(teacher, seed)
    num_groups = len(order) // group_size
    if not num_groups:
        raise UserError(f"the teacher rated {len(order)} different texts; a group needs {group_size}")
    log.info(
        "teacher: %d groups of %d; %d repeated texts and a rest of %d are dropped",
        num_groups, group_size, len(teacher) - len(order), len(order) - num_groups * group_size,
    )  # fmt: skip
    places = np.array(order[: num_groups * group_size], np.int64).reshape(num_groups, group_size)
    scores = teacher.scores[places].astype(np.float64)
    differences = (scores[:, None, :, :] - scores[:, :, None, :]) / temperature
    texts, ids, domains = (
        [tuple(values[i] for i in group) for group in places]
        for values in (teacher.texts, teacher.ids, teacher.domains)
    )
    return from_averages(
        texts,
        ids,
        domains,
        teacher.criteria,
        0.5 * (1 + np.tanh(differences / 2)),  # the sigmoid, without overflow
        sources=[SOURCE] * num_groups,
    )


def _order(teacher: Teacher, seed: int) -> list[int]:
    """Places of the different texts, by a hash of seed, id and text."""

    def key(place: int) -> bytes:
        content = json.dumps([seed, teacher.ids[place], teacher.texts[place]])
        return hashlib.blake2b(content.encode(), digest_size=16).digest()

    order: dict[bytes, int] = {}
    # Of a text that has several ratings, the one that stays is not to depend on the order of rows either.
    for content, _, place in sorted((key(i), teacher.scores[i].tobytes(), i) for i in range(len(teacher))):
        order.setdefault(content, place)
    return list(order.values())


# ---- rows


def _rated_with(file: str) -> str | None:
    """Identity of the tokenizer that a file's ratings were made with; None where it is not known."""
    directory = file.rpartition("/")[0]
    if not manifest.is_artifact(directory):
        return None
    document = manifest.read(directory)
    return document["determined"]["inputs"].get("tokenizer") if document["stage"] == "annotate" else None


def _criteria_of(file: str, document: Document) -> tuple[str, ...]:
    names = [name for name in document.row if name.endswith(AVERAGE) and name != AVERAGE]
    found = [name for name in names if document.row[name] is None or isinstance(document.row[name], int | float)]
    if not found:
        raise UserError(f"{file}: no ratings in it, which are numbers in columns `CRITERION{AVERAGE}`")
    return tuple(name.removesuffix(AVERAGE) for name in found)


def _ratings(file: str, document: Document, criteria: Sequence[str]) -> list[float]:
    """The document's rating on each criterion, NaN where null."""
    ratings = []
    for name in criteria:
        if f"{name}{AVERAGE}" not in document.row:
            raise UserError(f"{file}: document {document.id}: no rating on `{name}` (no column `{name}{AVERAGE}`)")
        ratings.append(_number(file, document, f"{name}{AVERAGE}", document.row[f"{name}{AVERAGE}"]))
    return ratings


def _number(file: str, document: Document, column: str, value: Any) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
        raise UserError(f"{file}: document {document.id}: `{column}` is {value!r:.40}, not a finite number")
    return float(value)


def _examples(
    file: str,
    batch: Sequence[Document],
    criteria: Sequence[str],
    domain_field: str,
    tokenizer: TextTokenizer | None,
) -> Iterator[_Example]:
    """The documents of a batch; with the tokenizer that they were rated with, the windows of the longer ones."""
    spans = _spans(file, batch, tokenizer) if tokenizer else {}
    for place, document in enumerate(batch):
        ratings = _ratings(file, document, criteria)
        domain = documents.get_field(document.row, domain_field)
        domain = UNKNOWN if domain is None else str(domain)
        if place not in spans:
            yield _Example(document.text, document.id, domain, ratings, is_window=False)
            continue
        columns = [_chunk_scores(file, document, name, len(spans[place])) for name in criteria]
        for (start, end), *scores in zip(spans[place], *columns, strict=True):
            yield _Example(document.text[start:end], document.id, domain, scores, is_window=True)


def _chunk_scores(file: str, document: Document, criterion: str, num_windows: int) -> list[float]:
    column = f"{criterion}{_CHUNKS}"
    scores = document.row.get(column)
    if not isinstance(scores, list) or len(scores) != num_windows:
        raise UserError(f"{file}: document {document.id}: `{column}` does not hold {num_windows} scores")
    return [_number(file, document, column, score) for score in scores]


def _spans(file: str, batch: Sequence[Document], tokenizer: TextTokenizer) -> dict[int, list[tuple[int, int]]]:
    """First and last character (exclusive) of every window, for the documents of a batch that have several."""
    lengths = {place: document.row.get(_CHUNK_LENGTHS) for place, document in enumerate(batch)}
    several = {place: value for place, value in lengths.items() if isinstance(value, list) and len(value) > 1}
    encodings = tokenizer.backend.encode_batch([batch[place].text for place in several], add_special_tokens=False)
    spans = {}
    for (place, chunk_lengths), encoding in zip(several.items(), encodings, strict=True):
        if sum(chunk_lengths) != len(encoding.ids):
            raise UserError(
                f"{file}: document {batch[place].id}: its text has {len(encoding.ids)} tokens, its windows "
                f"{sum(chunk_lengths)}; name the --text_field that was rated"
            )
        spans[place] = window_characters(encoding.offsets, chunk_lengths, len(batch[place].text))
    return spans


def window_characters(
    offsets: Sequence[tuple[int, int]], chunk_lengths: Sequence[int], num_characters: int
) -> list[tuple[int, int]]:
    """Where windows of tokens stand in the text: stretches of characters that cover it without overlap.

    White space that a tokenizer leaves out of its offsets belongs to the token after it; a character whose bytes are in
    two windows belongs to the second.

    Args:
        offsets: first and last character (exclusive) of each token.
        chunk_lengths: tokens of each window.
        num_characters: length of the text.
    """
    edges = [0]
    for start in np.cumsum(chunk_lengths)[:-1]:
        edges.append(max(edges[-1], min(offsets[start - 1][1], offsets[start][0])))
    return list(pairwise([*edges, num_characters]))
