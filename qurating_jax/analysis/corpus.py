"""Rated documents as arrays: the few numbers and names of every document, without its text.

Read part by part, so that memory holds 28 bytes per document, 8 for each rating, label or covariate and 4 for each
column of groups: 0.6 GB for ten million documents with four ratings (and for a while one column more). Documents
stand in the order of the hashes of their ids: nothing that is computed from them depends on the order of the input or
on how it was cut into files, down to the last bit of a sum.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qurating_jax.analysis.groups import Grouping
from qurating_jax.analysis.means import Floats
from qurating_jax.data import document_columns as columns
from qurating_jax.data.parts import Parts
from qurating_jax.method import gumbel
from qurating_jax.runtime.errors import UserError

MISSING_DOMAIN = "(missing)"
MOST_NAMES = 10_000  # of a column of groups or domains
_GREATEST, _LEAST = 1e100, 1e-100  # sizes of numbers whose squares can be added up; below the least they are 0

log = logging.getLogger(__name__)


class RowSource(Protocol):
    """The rows of an input, again and again (a selection's source is one)."""

    parts: Parts
    rejected: dict[str, int]

    def read(self, number: int, fields: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part, with the columns of these fields that there are, and the ids."""
        ...

    def ids(self, table: pa.Table) -> pa.Array:
        """The ids of the rows of a table that `read` gave."""
        ...


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is read of every document: names of columns, or dotted paths.

    Attributes:
        numbers: columns of numbers: ratings, labels, covariates.
        groups: columns of names.
        domain: column of the domain; empty: there is one.
        tokens: column of token counts; empty: each document counts 1.
    """

    numbers: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    domain: str = ""
    tokens: str = ""

    @property
    def fields(self) -> list[str]:
        """All of them."""
        return [*self.numbers, *self.groups, *filter(None, (self.domain, self.tokens))]


@dataclass(frozen=True, eq=False)
class Corpus:
    """n documents in ascending order of their hashes.

    Attributes:
        hashes: uint64 [n], of the ids, strictly ascending.
        positions: int64 [n], their rows in the input, rejected rows not counted.
        part_starts: int64 [parts + 1], rows before each part.
        domains: int32 [n], numbers into `domain_names`.
        domain_names: ascending; one empty name where there is no domain field.
        tokens: int64 [n].
        numbers: float64 [n] by column, NaN for a null, a NaN or an infinity.
        groups: by column.
        num_rejected: rows that are no documents.
        num_repeated: documents beyond the first of their id. Of an id the one counts whose numbers, tokens, domain
            and groups are the least, so that the order of the input decides only between documents that differ in
            their texts alone.
        num_differing: of the repeated ones, those with other numbers, tokens, domain or groups.
    """

    hashes: NDArray[np.uint64]
    positions: NDArray[np.int64]
    part_starts: NDArray[np.int64]
    domains: NDArray[np.int32]
    domain_names: list[str]
    tokens: NDArray[np.int64]
    numbers: dict[str, Floats]
    groups: dict[str, Grouping]
    num_rejected: int
    num_repeated: int
    num_differing: int

    def __len__(self) -> int:
        return len(self.hashes)

    def rows_of(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Rows of documents by hash, int64 [k]; -1 where there is none."""
        if not len(self.hashes):
            return np.full(len(hashes), -1, np.int64)
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[places] == hashes, places, -1).astype(np.int64)


@dataclass(eq=False)
class _Filling:
    """Arrays of all rows, filled part by part."""

    hashes: NDArray[np.uint64]
    domains: NDArray[np.int32]
    tokens: NDArray[np.int64]
    numbers: dict[str, Floats]
    groups: dict[str, NDArray[np.int32]]
    known: dict[str, dict[str, int]] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)


def read_corpus(source: RowSource, wanted: Wanted, on_read: Callable[[int], None] = lambda _: None) -> Corpus:
    """Reads the columns of all documents.

    Args:
        source: of the rows.
        wanted: the columns.
        on_read: called with numbers of documents read.

    Raises:
        UserError: a column that no part of the input has, that holds something else, or has too many names.
    """
    num_rows = source.parts.num_rows
    filling = _Filling(
        np.zeros(num_rows, np.uint64),
        np.zeros(num_rows, np.int32),
        np.ones(num_rows, np.int64),
        {name: np.full(num_rows, np.nan) for name in wanted.numbers},
        {name: np.full(num_rows, -1, np.int32) for name in wanted.groups},
        {name: {} for name in (*wanted.groups, *([wanted.domain] if wanted.domain else []))},
    )
    starts, num_rejected, seen = [0], 0, dict[str, None]()
    for number in range(len(source.parts)):
        table = source.read(number, wanted.fields)
        num_rejected += sum(source.rejected.values())
        seen.update(dict.fromkeys(table.column_names))
        _fill(filling, wanted, table, source.ids(table), starts[-1])
        starts.append(starts[-1] + len(table))
        on_read(len(table))
    missing = [name for name in wanted.fields if name not in filling.present]
    if missing and starts[-1]:
        raise UserError(f"no document has a column `{missing[0]}`; name the right one")
    return _ordered(filling, wanted, np.array(starts, np.int64), num_rejected)


def _fill(filling: _Filling, wanted: Wanted, table: pa.Table, ids: pa.Array, start: int) -> None:
    """Writes a part's rows behind the rows before it."""
    rows = slice(start, start + len(table))
    filling.hashes[rows] = gumbel.hash_ids(ids.to_pylist())
    for name in wanted.numbers:
        if (values := _find(table, name, filling)) is not None:
            filling.numbers[name][rows] = _numbers(values, name)
    for name in wanted.groups:
        if (values := _find(table, name, filling)) is not None:
            filling.groups[name][rows] = _codes(values, name, filling.known[name])
    if wanted.domain:
        values = _find(table, wanted.domain, filling)
        names = pa.chunked_array([pa.nulls(len(table), pa.string())]) if values is None else values
        names = _names(names, wanted.domain).fill_null(MISSING_DOMAIN)
        filling.domains[rows] = _codes(names, wanted.domain, filling.known[wanted.domain])
    if wanted.tokens and (values := _find(table, wanted.tokens, filling)) is not None:
        counts = _numbers(values, wanted.tokens)
        if len(counts) and not np.nanmin(np.append(counts, 0.0)) >= 0.0:
            raise UserError(f"column `{wanted.tokens}` holds a negative number, not token counts (--tokens_field)")
        filling.tokens[rows] = np.nan_to_num(counts).astype(np.int64)


def _find(table: pa.Table, name: str, filling: _Filling) -> pa.ChunkedArray | None:
    values = columns.find(table, name)
    if values is not None:
        filling.present.add(name)
    return values


def _numbers(values: pa.ChunkedArray, name: str) -> Floats:
    """Numbers as float64, NaN for nulls and what is not finite."""
    kind = values.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise UserError(f"column `{name}` holds {kind}, not numbers")
    if pa.types.is_float16(kind):
        values = values.cast(pa.float32())
    found = pc.fill_null(values.cast(pa.float64(), safe=False), float("nan")).to_numpy()
    size = np.abs(found)
    if (np.isfinite(size) & (size > _GREATEST)).any():
        raise UserError(f"column `{name}` holds numbers beyond {_GREATEST:g}, which cannot be averaged")
    found = np.where(size < _LEAST, 0.0, found)
    return np.where(np.isfinite(found), found + 0.0, np.nan)  # no negative zeros: equal ratings have equal bits


def _names(values: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    kind = values.type
    kinds = (columns.is_text, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    if not any(is_kind(kind) for is_kind in kinds):
        raise UserError(f"column `{name}` holds {kind}, not names of groups")
    return values.cast(pa.string())


def _codes(values: pa.ChunkedArray, name: str, known: dict[str, int]) -> NDArray[np.int32]:
    codes = columns.name_codes(_names(values, name), known)
    if len(known) > MOST_NAMES:
        raise UserError(f"column `{name}` has more than {MOST_NAMES:,} different values; it does not group documents")
    return codes


def _ordered(filling: _Filling, wanted: Wanted, starts: NDArray[np.int64], num_rejected: int) -> Corpus:
    """The corpus in the order of hashes, each id once. Columns are reordered one by one, which bounds the memory."""
    filled = int(starts[-1])
    order = np.argsort(filling.hashes[:filled], kind="stable")
    hashes = filling.hashes[:filled][order]
    again = np.zeros(filled, bool)
    again[1:] = hashes[1:] == hashes[:-1]
    num_differing = 0
    if again.any():
        several = again.copy()
        several[:-1] |= again[1:]
        order[several], num_differing = _settled(filling, wanted, order[several], again[several])
        order, hashes = order[~again], hashes[~again]
    for name in filling.numbers:
        filling.numbers[name] = filling.numbers[name][order]
    groups = {name: _renumbered(filling.groups.pop(name)[order], filling.known[name]) for name in wanted.groups}
    domains = Grouping(np.zeros(len(order), np.int32), [""])
    if wanted.domain:
        domains = _renumbered(filling.domains[order], filling.known[wanted.domain])
    return Corpus(
        hashes=hashes,
        positions=order.astype(np.int64),
        part_starts=starts,
        domains=domains.codes,
        domain_names=list(domains.names),
        tokens=filling.tokens[order],
        numbers=filling.numbers,
        groups=groups,
        num_rejected=num_rejected,
        num_repeated=int(again.sum()),
        num_differing=num_differing,
    )


def _settled(
    filling: _Filling, wanted: Wanted, rows: NDArray[np.int64], again: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], int]:
    """Rows of repeated ids, of each id the one first that counts, and how many differ from theirs.

    Args:
        filling: the columns.
        wanted: which they are.
        rows: int64 [k], ids one after another, each in the order of the input.
        again: bool [k], False at the first row of each id.
    """
    # NaN is the greatest: a rated document counts before one without rating.
    facts: list[Floats] = [values[rows] for values in filling.numbers.values()]
    facts.append(filling.tokens[rows].astype(np.float64))
    codes = {name: filling.groups[name] for name in wanted.groups}
    codes |= {wanted.domain: filling.domains} if wanted.domain else {}
    for name, numbers in codes.items():
        known = filling.known[name]
        places = np.full(len(known) + 1, -1.0)  # of a null, the last one
        places[[known[one] for one in sorted(known)]] = np.arange(len(known))
        facts.append(places[numbers[rows]])
    order = np.lexsort((*reversed(facts), np.cumsum(~again)))
    firsts = np.maximum.accumulate(np.where(again, 0, np.arange(len(rows))))
    differ = np.zeros(len(rows), bool)
    for values in facts:
        one, other = values[order][firsts], values[order]
        differ |= ~((one == other) | (np.isnan(one) & np.isnan(other)))
    return rows[order], int(differ.sum())


def _renumbered(codes: NDArray[np.int32], known: dict[str, int]) -> Grouping:
    """Names in ascending order, those that no document that counts has left out."""
    used = np.zeros(len(known) + 1, bool)
    used[codes] = True  # -1, a null, is the last one
    names = sorted(name for name, number in known.items() if used[number])
    numbers = np.full(len(known) + 1, -1, np.int32)
    for place, name in enumerate(names):
        numbers[known[name]] = place
    return Grouping(numbers[codes], names)
