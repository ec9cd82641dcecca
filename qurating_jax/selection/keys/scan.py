"""The scan of a part: out of its columns the few numbers per document that decide, without Python values where it can.

Reads the columns that are asked for, so of 5 KB of a document a selection by columns reads a few dozen bytes. Texts are
read where tokens are counted here, where texts are hashed, or where an id is missing.
"""

import hashlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qurating_jax.data import document_columns as columns
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.keys.files import KeyCounts, PartKeys
from qurating_jax.selection.keys.source import SelectionSource
from qurating_jax.selection.keys.table import KeyBlock

if TYPE_CHECKING:
    from qurating_jax.data.tokenizer import TextTokenizer

MISSING_DOMAIN = "(missing)"
_PRODUCT = " × "
_MAX_TOKENS = np.iinfo(np.int32).max
_ENCODE_DOCUMENTS = 1024


@dataclass(frozen=True)
class KeyFields:
    """What the scan reads: names of columns, or dotted paths into nested ones.

    Attributes:
        id: document ids.
        text: texts.
        tokens: token counts; empty: counted with a tokenizer or, without one, 1 for every document.
        domains: their values make a document's domain, of several joined by ` × `; none: there is one pool.
        ratings: numbers that selections may order by.
        text_hash: hash texts, to find equal ones.
    """

    id: str = "id"
    text: str = "text"
    tokens: str = ""
    domains: tuple[str, ...] = ()
    ratings: tuple[str, ...] = ()
    text_hash: bool = False

    def options(self, *, counts_tokens: bool) -> dict[str, str]:
        """The columns that some part of the input has to have, and the option that names each."""
        found = dict.fromkeys(self.ratings, "rating") | dict.fromkeys(self.domains, "domain_field")
        found |= {self.tokens: "tokens_field"} if self.tokens else {}
        return found | ({self.text: "text_field"} if self.text_hash or counts_tokens else {})

    def names(self, *, counts_tokens: bool) -> list[str]:
        """The fields to read."""
        text = [self.text] if self.text_hash or counts_tokens else []
        return [self.id, *([self.tokens] if self.tokens else []), *self.domains, *self.ratings, *text]


def scan_part(
    source: SelectionSource, number: int, fields: KeyFields, tokenizer: "TextTokenizer | None" = None
) -> PartKeys:
    """What a selection needs of a part.

    Args:
        source: with the id and text fields of `fields`.
        number: of the part.
        fields: what to read. A rating or domain column that this part lacks is null in all its rows.
        tokenizer: counts the tokens where `fields` name no column for them.

    Raises:
        UserError: what `SelectionSource.read` raises; a column that is not of its kind; a token count that is null,
            negative or above 2^31 - 1.
    """
    counts_tokens = not fields.tokens and tokenizer is not None
    table, schema = source.scan(number, fields.names(counts_tokens=counts_tokens))
    ids = source.ids(table)
    texts = _texts(table, fields) if fields.text_hash or counts_tokens else None
    if fields.tokens:
        tokens = _tokens(table, fields.tokens, ids)
    elif tokenizer is not None and texts is not None:
        tokens = _counted(texts, tokenizer)
    else:
        tokens = np.ones(len(table), np.int32)
    domains, domain_names, num_missing = _domains(table, fields.domains)
    scores, null, infinite = {}, {}, {}
    for name in fields.ratings:
        scores[name], null[name], infinite[name] = _ratings(table, name)
    counts = KeyCounts(
        documents=len(table),
        rejected=source.rejected,
        null_ratings=null,
        infinite_ratings=infinite,
        no_tokens=int((tokens == 0).sum()),
        missing_domains=num_missing,
    )
    return PartKeys(
        KeyBlock(hash_texts(ids), tokens, domains, scores),
        domain_names,
        hash_texts(texts) if fields.text_hash and texts is not None else None,
        counts,
        tuple(name for name in fields.options(counts_tokens=counts_tokens) if columns.has(schema, name)),
        schema,
    )


def hash_texts(values: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """64-bit BLAKE2b digests of texts, uint64 [n]: what `gumbel.hash_ids` gives, without Python strings.

    A null counts as the empty text.
    """
    return _digests(values, 8)


def digest_texts(values: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """128-bit BLAKE2b digests of texts, uint64 [n, 2]: equal for equal texts, and for no others that anybody can find.

    A null counts as the empty text.
    """
    return _digests(values, 16).reshape(-1, 2)


def _digests(values: pa.Array | pa.ChunkedArray, num_bytes: int) -> NDArray[np.uint64]:
    chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    digests: list[bytes] = []
    copy = hashlib.blake2b(digest_size=num_bytes).copy  # copies cost half of new ones
    for chunk in chunks:
        texts = chunk.cast(pa.large_string())
        texts = texts.fill_null("") if texts.null_count else texts
        if not len(texts):
            continue
        _, offsets, data = texts.buffers()
        ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
        content = memoryview(data if data is not None else b"")
        for start, stop in itertools.pairwise(ends):
            digest = copy()
            digest.update(content[start:stop])
            digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64, copy=False)


def _texts(table: pa.Table, fields: KeyFields) -> pa.ChunkedArray:
    values = columns.find(table, fields.text)
    if values is None:  # of JSON lines a part whose rows have no text; that all parts lack it is said at the end
        values = pa.chunked_array([pa.nulls(len(table), pa.string())])
    if pa.types.is_null(values.type):
        values = values.cast(pa.string())
    if not columns.is_text(values.type):
        raise UserError(f"column `{fields.text}` holds {values.type}, not texts (--text_field)")
    return values


def _counted(texts: pa.ChunkedArray, tokenizer: "TextTokenizer") -> NDArray[np.int32]:
    counts = [np.zeros(0, np.int64)]
    for start in range(0, len(texts), _ENCODE_DOCUMENTS):
        batch = [text or "" for text in texts.slice(start, _ENCODE_DOCUMENTS).to_pylist()]
        counts.append(np.diff(tokenizer.encode_flat(batch)[1]))
    return np.concatenate(counts).astype(np.int32)


def _tokens(table: pa.Table, field: str, ids: pa.Array) -> NDArray[np.int32]:
    if not len(table):  # every row of the part was rejected, and with the rows went their columns
        return np.zeros(0, np.int32)
    values = columns.find(table, field)
    if values is None:
        raise _missing(table, field, "tokens_field")
    if not (pa.types.is_integer(values.type) or pa.types.is_null(values.type)):
        raise UserError(f"column `{field}` holds {values.type}, not token counts (--tokens_field)")
    if values.null_count:
        first = ids[int(np.flatnonzero(values.is_null().to_numpy())[0])]
        raise UserError(
            f"{values.null_count:,} documents have no token count in `{field}` (--tokens_field), one is `{first}`"
        )
    for bound, wrong in (("min", lambda count: count < 0), ("max", lambda count: count > _MAX_TOKENS)):
        count = pc.min_max(values)[bound].as_py()
        if wrong(count):
            raise UserError(f"document `{ids[pc.index(values, count).as_py()]}` has {count} tokens (--tokens_field)")
    return _numbers(values, pa.int32())


def _domains(table: pa.Table, fields: tuple[str, ...]) -> tuple[NDArray[np.int32] | None, tuple[str, ...], int]:
    """Numbers int32 [n] into names, the names in ascending order, and the number of rows where a field is null."""
    if not fields:
        return None, (), 0
    found = []
    missing = np.zeros(len(table), bool)
    for field in fields:
        values = columns.find(table, field)
        if values is None:
            values = pa.chunked_array([pa.nulls(len(table), pa.string())])
        kind = values.type
        if not (
            columns.is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
        ):
            raise UserError(f"column `{field}` holds {kind}, not names of domains (--domain_field)")
        if values.null_count:
            missing |= values.is_null().to_numpy()
        found.append(values.cast(pa.string()).fill_null(MISSING_DOMAIN))
    joined = found[0] if len(found) == 1 else pc.binary_join_element_wise(*found, _PRODUCT)
    encoded = joined.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    renumber = np.zeros(len(names), np.int32)
    renumber[order] = np.arange(len(names), dtype=np.int32)
    return renumber[encoded.indices.to_numpy()], tuple(names[place] for place in order), int(missing.sum())


def _ratings(table: pa.Table, field: str) -> tuple[NDArray[np.floating], int, int]:
    """Ratings with NaN where there is none, and how many were null or NaN, and how many infinite."""
    values = columns.find(table, field)
    if values is None or pa.types.is_null(values.type):
        return np.full(len(table), np.nan, np.float32), len(table), 0
    kind = values.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise UserError(f"column `{field}` holds {kind}, not ratings (--rating)")
    wanted = pa.float32() if pa.types.is_float16(kind) or pa.types.is_float32(kind) else pa.float64()
    ratings = _numbers(pc.fill_null(values.cast(wanted, safe=False), float("nan")), wanted)
    ratings = ratings + ratings.dtype.type(0)  # no negative zeros: equal ratings have equal bits
    infinite = np.isinf(ratings)
    num_null = int(np.isnan(ratings).sum())
    ratings[infinite] = np.nan
    return ratings, num_null, int(infinite.sum())


def _numbers(values: pa.ChunkedArray, kind: pa.DataType) -> NDArray:
    return np.ascontiguousarray(values.cast(kind).to_numpy())


def _missing(table: pa.Table, field: str, option: str) -> UserError:
    return UserError(
        f"the documents have no column `{field}` (--{option}); columns read: {', '.join(table.column_names)}"
    )
