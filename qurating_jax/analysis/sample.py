"""The sample: documents whose texts are read, drawn by a hash of (seed, id), so that nothing else decides."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qurating_jax.analysis.corpus import Corpus, RowSource
from qurating_jax.analysis.window_variation import WindowRatings
from qurating_jax.data import document_columns as columns
from qurating_jax.method import gumbel
from qurating_jax.runtime.errors import UserError

GROUP = "analyze: sample"
SHOWN_GROUP = "analyze: shown documents"
CHUNK_LENGTHS = "chunk_lengths"
LEAST_WINDOW = 0.5  # of the longest window of the document: shorter ones do not count as windows


@dataclass(frozen=True, eq=False)
class Sample:
    """m documents with texts.

    Attributes:
        rows: int64 [m], rows of the corpus, ascending.
        ids: [m].
        texts: [m], cut at so many characters; empty where a document has none.
        characters: int64 [m], of the whole texts.
        chunk_lengths: list<int64> [m], tokens of the windows, null where the input says none.
        chunks: by criterion list<float64> [m], ratings of the windows, null where the input has none.
    """

    rows: NDArray[np.int64]
    ids: list[str]
    texts: list[str]
    characters: NDArray[np.int64]
    chunk_lengths: pa.Array
    chunks: dict[str, pa.Array]


def draw(hashes: NDArray[np.uint64], eligible: NDArray[np.bool_], size: int, seed: int) -> NDArray[np.int64]:
    """The `size` eligible documents with the least hashes of (seed, id): a uniform sample without replacement.

    A document's place does not depend on the others: a larger sample holds a smaller one of the same seed.

    Args:
        hashes: uint64 [n], of the ids, distinct.
        eligible: bool [n].
        size: at most so many.
        seed: of the draw.

    Returns:
        Rows, int64 [m], ascending.
    """
    rows = np.flatnonzero(eligible)
    if len(rows) > size:
        bits = gumbel.uniform_bits(hashes[rows], gumbel.noise_stream(seed, GROUP))
        rows = np.sort(rows[np.argpartition(bits, size)[:size]]) if size else rows[:0]
    return rows.astype(np.int64)


def read_sample(
    source: RowSource,
    corpus: Corpus,
    rows: NDArray[np.int64],
    *,
    text_field: str,
    criteria: Sequence[str],
    most_characters: int,
    on_read: Callable[[int], None] = lambda _: None,
) -> Sample:
    """Reads the texts and window ratings of some documents; parts without any of them are not opened.

    Args:
        source: what the corpus was read from.
        corpus: of all documents.
        rows: int64 [m], rows of the corpus, ascending.
        text_field: column of the text.
        criteria: those whose `CRITERION_chunks` are read.
        most_characters: texts are cut there.
        on_read: called with numbers of documents read.

    Raises:
        UserError: no text column, or windows that are no lists of numbers.
    """
    ids: list[str] = []
    texts: list[str] = []
    characters = [np.zeros(0, np.int64)]
    has_text = not len(rows)
    lists = {name: [pa.nulls(0, kind)] for name, kind in _list_columns(criteria).items()}
    order = _input_order(corpus, rows)
    for table in _pieces(source, corpus, rows[order], [text_field, *lists]):
        ids += source.ids(table).to_pylist()
        found = columns.find(table, text_field)
        has_text |= found is not None
        cut, lengths = _texts(found, len(table), text_field, most_characters)
        texts += cut
        characters.append(lengths)
        for name, parts in lists.items():
            parts.append(_lists(table, name, parts[0].type))
        on_read(len(table))
    if not has_text:
        raise UserError(f"the documents have no column `{text_field}` (--text_field)")
    back = np.argsort(order)  # from the order of the input to that of the rows
    joined = {name: pa.concat_arrays(parts).take(pa.array(back)) for name, parts in lists.items()}
    return Sample(
        rows=rows,
        ids=[ids[place] for place in back],
        texts=[texts[place] for place in back],
        characters=np.concatenate(characters)[back],
        chunk_lengths=joined[CHUNK_LENGTHS],
        chunks={criterion: joined[chunks_column(criterion)] for criterion in criteria},
    )


def with_windows(sample: Sample, side: RowSource, side_corpus: Corpus, hashes: NDArray[np.uint64]) -> Sample:
    """The sample with the windows that files of scores hold, of the documents [m] with these hashes that stand there.

    Documents that have windows of their own keep them.
    """
    found = side_corpus.rows_of(hashes)
    rows = found[found >= 0]
    lists = {name: [pa.nulls(0, kind)] for name, kind in _list_columns(tuple(sample.chunks)).items()}
    order = _input_order(side_corpus, rows)
    for table in _pieces(side, side_corpus, rows[order], [*lists]):
        for name, parts in lists.items():
            parts.append(_lists(table, name, parts[0].type))
    places = np.full(len(found), -1, np.int64)
    places[np.flatnonzero(found >= 0)[order]] = np.arange(len(rows))
    index = pa.array(places, mask=places < 0)
    joined = {name: pa.concat_arrays(parts).take(index) for name, parts in lists.items()}
    return dataclasses.replace(
        sample,
        chunk_lengths=_first_known(sample.chunk_lengths, joined[CHUNK_LENGTHS]),
        chunks={name: _first_known(own, joined[chunks_column(name)]) for name, own in sample.chunks.items()},
    )


def chunks_column(criterion: str) -> str:
    """The column with the ratings of windows."""
    return f"{criterion}_chunks"


def window_ratings(chunks: Mapping[str, pa.Array], chunk_lengths: pa.Array) -> dict[str, WindowRatings]:
    """Ratings of windows as flat values, of the criteria that have any.

    Windows of less than `LEAST_WINDOW` of the tokens of their document's longest one are left out: the last window
    may hold a few words, whose rating says little of the document and would pass for variation. A document whose
    windows hold a null or NaN has none.

    Args:
        chunks: list<float64> [m] by criterion.
        chunk_lengths: list<int64> [m], tokens of the windows; where they are null, or not as many, all windows count.
    """
    found = {}
    sizes, size_owner, tokens = _flat(chunk_lengths)
    longest = np.zeros(len(sizes))
    np.maximum.at(longest, size_owner, tokens)
    for criterion, lists in chunks.items():
        counts, owner, values = _flat(lists)
        kept = np.ones(len(values), bool)
        alike = (counts == sizes) & (counts > 0)
        long_enough = tokens >= LEAST_WINDOW * longest[size_owner]
        kept[alike[owner]] = long_enough[alike[size_owner]]
        broken = np.zeros(len(counts), bool)
        broken[owner[~np.isfinite(values)]] = True
        kept &= ~broken[owner]
        if kept.any():
            left = np.bincount(owner[kept], minlength=len(counts))
            found[criterion] = WindowRatings(values[kept], np.append(0, np.cumsum(left)).astype(np.int64))
    return found


def _flat(lists: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Lists [m] as numbers of values int64 [m], and of every value the list it is in, and itself (NaN for a null)."""
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = pc.list_flatten(lists).cast(pa.float64())
    flat = pc.fill_null(values, float("nan")).to_numpy(zero_copy_only=False)
    return counts, np.repeat(np.arange(len(counts)), counts), flat


def _texts(
    values: pa.ChunkedArray | None, size: int, field: str, most_characters: int
) -> tuple[list[str], NDArray[np.int64]]:
    if values is None or pa.types.is_null(values.type):
        return [""] * size, np.zeros(size, np.int64)
    if not columns.is_text(values.type):
        raise UserError(f"column `{field}` holds {values.type}, not texts (--text_field)")
    filled = pc.fill_null(values.cast(pa.large_string()), "")
    lengths = pc.utf8_length(filled).to_numpy().astype(np.int64)
    return pc.utf8_slice_codeunits(filled, 0, most_characters).to_pylist(), lengths


def _list_columns(criteria: Sequence[str]) -> dict[str, pa.DataType]:
    """Columns about windows and their types."""
    return {CHUNK_LENGTHS: pa.list_(pa.int64())} | {chunks_column(name): pa.list_(pa.float64()) for name in criteria}


def _input_order(corpus: Corpus, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.argsort(corpus.positions[rows])


def _pieces(source: RowSource, corpus: Corpus, rows: NDArray[np.int64], fields: Sequence[str]) -> Iterator[pa.Table]:
    """Rows in the order of the input, as tables of one part each; parts without any are not opened."""
    positions = corpus.positions[rows]
    bounds = np.searchsorted(positions, corpus.part_starts)
    for number in np.flatnonzero(np.diff(bounds)).tolist():
        wanted = positions[bounds[number] : bounds[number + 1]] - corpus.part_starts[number]
        yield source.read(number, fields).take(pa.array(wanted))


def _lists(table: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    values = columns.find(table, name)
    if values is None or pa.types.is_null(values.type):
        return pa.nulls(len(table), kind)
    try:
        return pa.concat_arrays(values.chunks or [pa.nulls(0, values.type)]).cast(kind)
    except pa.ArrowException:
        raise UserError(f"column `{name}` holds {values.type}, not lists of numbers") from None


def _first_known(own: pa.Array, other: pa.Array) -> pa.Array:
    return other if own.null_count == len(own) else own if not own.null_count else pc.coalesce(own, other)
