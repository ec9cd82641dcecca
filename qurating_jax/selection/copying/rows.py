"""The selected rows of an input part, taken out, checked against the key files, with the columns that are added."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data.document_columns import conform
from qurating_jax.method import gumbel
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.copying.id_list import KEY, MEMBER, RANK, id_schema
from qurating_jax.selection.copying.ranks import Picks, Ranking
from qurating_jax.selection.keys.table import KeyTable

ORDER_KEY = "order_key"
REMEDY = "as a selection has: select from the annotated documents instead, or rename them"

# Behind the rows on their way: what they are sorted by. Found by position, so that no column of theirs is in the way.
_SORTED_BY = [pa.field("place", pa.uint64()), pa.field("hash", pa.uint64())]
_PLAIN = (
    pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string,
    pa.types.is_large_string, pa.types.is_string_view,
)  # fmt: skip


def added_names(*, ranked: bool, by: bool, members: bool) -> list[str]:
    """Names of the columns that stand beside the source's own.

    Args:
        ranked: the order is another one than the source's.
        by: it is that of another rating.
        members: several members share the selection.
    """
    return [KEY, *([MEMBER] if members else []), *([ORDER_KEY] if by else []), *([RANK] if ranked else [])]


class RowSource(Protocol):
    """Reads the parts that the key table was made from (`SelectionSource`)."""

    @property
    def schema(self) -> pa.Schema | None:
        """Common schema of all parts."""

    def read(self, number: int, fields: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part, in the positions that they have in the key table."""

    def ids(self, table: pa.Table) -> pa.Array:
        """The ids of rows, text [n]."""

    def close(self) -> None:
        """Closes what is open."""


@dataclass(frozen=True, eq=False)
class CopyInputs:
    """What is copied: the documents' keys, which of them are selected, and their rows."""

    table: KeyTable
    picks: Picks
    source: RowSource

    def close(self) -> None:
        """Closes the source."""
        self.source.close()


@dataclass(frozen=True, eq=False)
class SelectedRows:
    """The selected rows of a part, m of them in input order.

    Attributes:
        rows: the source's columns and those that are added, except the rank.
        ids: columns of `ids.parquet` except the rank, then places and hashes.
        places, hashes: uint64 [m], the order of the selection (in the order `source`: of its list of ids).
    """

    rows: pa.Table
    ids: pa.Table
    places: NDArray[np.uint64]
    hashes: NDArray[np.uint64]

    def rows_at(self, places: NDArray[np.uint64]) -> pa.Table:
        """The rows with places (of the output) and hashes behind them."""
        return _with_places(self.rows, places, self.hashes)


class PartRows:
    """Reads the selected rows of parts."""

    def __init__(self, inputs: CopyInputs, ranking: Ranking, *, keeps_rows: bool) -> None:
        schema = inputs.source.schema
        if schema is None:
            raise ValueError("rows are copied with the common schema of all parts; give it to the source")
        self._inputs, self._ranking, self._keeps_rows = inputs, ranking, keeps_rows
        self._members = inputs.picks.member_names
        self._source_schema = pa.schema([field.with_type(_decoded(field.type)) for field in schema])
        self._added = [pa.field(KEY, pa.float64())]
        if len(self._members) > 1:
            self._added.append(pa.field(MEMBER, pa.string()))
        if ranking.by is not None:
            self._added.append(pa.field(ORDER_KEY, pa.float64()))
        self._ids = id_schema(members=len(self._members) > 1)

    @property
    def row_schema(self) -> pa.Schema:
        """Of rows on their way; dictionaries are decoded, since every part has its own."""
        return pa.schema([*self._source_schema, *self._added, *_SORTED_BY])

    @property
    def id_schema(self) -> pa.Schema:
        """Of ids on their way."""
        return self.spilled(self._ids)

    @staticmethod
    def spilled(ids: pa.Schema) -> pa.Schema:
        """Ids on their way: `id_list.id_schema` without the rank, with places and hashes."""
        return pa.schema([*(field for field in ids if field.name != RANK), *_SORTED_BY])

    def ids_of(self, table: pa.Table) -> list[str]:
        """The ids of rows."""
        return self._inputs.source.ids(table).to_pylist()

    def check(self, *, json: bool) -> None:
        """Refuses what could not be written, before any work.

        Args:
            json: rows are written as JSON lines.

        Raises:
            UserError: the source has a column that is added, or one that JSON cannot hold.
        """
        if not self._keeps_rows:
            return
        added = added_names(
            ranked=self._ranking.kind != "source", by=self._ranking.by is not None, members=len(self._members) > 1
        )
        clash = [name for name in added if name in self._source_schema.names]
        if clash:
            raise UserError(f"the documents already have columns {', '.join(clash)}; {REMEDY}")
        unfit = [field for field in self._source_schema if json and not _is_plain(field.type)]
        if unfit:
            raise UserError(
                f"column `{unfit[0].name}` is of type {unfit[0].type}, which JSON cannot hold; write parquet instead, "
                "or drop the column"
            )

    def read(self, number: int, count: int) -> SelectedRows:
        """The selected rows of a part.

        Args:
            number: of the part.
            count: how many there should be.

        Raises:
            UserError: the source is not what the key table was made from.
        """
        block = self._inputs.table.block(number)
        picked = self._inputs.picks.pick(block)
        table = self._inputs.source.read(number, None if self._keeps_rows else [])
        if len(picked.rows) != count or len(table) != len(block):
            raise _changed(number)
        table = table.take(pa.array(picked.rows))
        ids = self._inputs.source.ids(table)
        if not np.array_equal(gumbel.hash_ids(ids.to_pylist()), picked.hashes):
            raise _changed(number)
        order_keys = self._ranking.order_keys(block, picked)
        places, hashes = self._ranking.places(picked, order_keys), np.asarray(picked.hashes)
        columns = {
            "id": ids,
            "tokens": pa.array(picked.tokens.astype(np.int64)),
            "domain": self._names(self._inputs.table.domain_names, picked.domains, count),
            KEY: pa.array(picked.keys),
            MEMBER: self._names(self._members, picked.members, count),
            ORDER_KEY: pa.array(order_keys, pa.float64(), from_pandas=True) if order_keys is not None else None,
        }
        rows = table
        if self._keeps_rows:
            rows = conform(f"part {number} of the input", table, self._source_schema)
            for field in self._added:
                rows = rows.append_column(field, columns[field.name])
        listed = pa.table({field.name: columns[field.name] for field in self._ids if field.name != RANK})
        return SelectedRows(rows, _with_places(listed, places, hashes), places, hashes)

    def _names(self, names: Sequence[str], numbers: NDArray[np.integer] | None, count: int) -> pa.Array:
        """Names by number, text [count]; nulls where there are no numbers."""
        if numbers is None:
            return pa.nulls(count, pa.string())
        return pa.array(names, pa.string()).take(pa.array(numbers))


def in_order(
    places: NDArray[np.uint64], hashes: NDArray[np.uint64], ids_of: Callable[[NDArray[np.int64]], Sequence[str]]
) -> NDArray[np.int64]:
    """Positions of rows in the order of their places, hashes and, where these are all equal, ids: int64 [n].

    Args:
        places, hashes: uint64 [n].
        ids_of: ids of rows by position; asked only for rows that are equal in both.

    Raises:
        UserError: an id stands twice.
    """
    order = np.lexsort((hashes, places))
    places, hashes = places[order], hashes[order]
    tied = (places[1:] == places[:-1]) & (hashes[1:] == hashes[:-1])
    if not tied.any():
        return order
    rows = np.flatnonzero(np.append(tied, False) | np.append(False, tied))
    ids = ids_of(order[rows])
    keys = list(zip(places[rows].tolist(), hashes[rows].tolist(), ids, strict=True))
    by_id = sorted(range(len(rows)), key=keys.__getitem__)
    for before, after in itertools.pairwise(by_id):
        if keys[before] == keys[after]:
            raise UserError(f"the id `{ids[after]}` is selected twice; make ids unique, or remove duplicates by id")
    order[rows] = order[rows][by_id]
    return order


def _with_places(table: pa.Table, places: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> pa.Table:
    return table.append_column(_SORTED_BY[0], pa.array(places)).append_column(_SORTED_BY[1], pa.array(hashes))


def _decoded(kind: pa.DataType) -> pa.DataType:
    """The type without dictionaries."""
    if pa.types.is_dictionary(kind):
        return _decoded(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_decoded(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_decoded(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_decoded(kind.value_type)))
    return kind


def _is_plain(kind: pa.DataType) -> bool:
    """True for types whose values JSON has."""
    if pa.types.is_struct(kind):
        return all(_is_plain(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    return any(is_kind(kind) for is_kind in _PLAIN)


def _changed(number: int) -> UserError:
    return UserError(
        f"part {number} of the input holds other documents than when its keys were read; put the old files back, or "
        "select again with --overwrite"
    )
