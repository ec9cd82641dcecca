"""What a table of documents holds: texts, ids and tokens, found by column name or dotted path."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qurating_jax.data.documents import content_id
from qurating_jax.runtime.errors import UserError

_MAX_TOKEN = np.iinfo(np.int32).max

AVERAGE = "_average"  # a criterion's name and this: the column of a document's ratings
NO_NAME = -1  # the number of a null among `name_codes`


@dataclass(frozen=True)
class Fields:
    """Columns, or dotted paths into nested ones, that documents are read from."""

    text: str
    id: str
    tokens: str | None

    def sources(self) -> list[str]:
        """Names that the top-level columns of these fields may have."""
        fields = [field for field in (self.text, self.id, self.tokens) if field is not None]
        return [*fields, *(field.split(".")[0] for field in fields)]


def has(schema: pa.Schema, field: str) -> bool:
    """True where a column of this name, or else this path into nested columns, exists."""
    if field in schema.names:
        return True
    name, *path = field.split(".")
    if name not in schema.names:
        return False
    kind = schema.field(name).type
    for part in path:
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return False
        kind = kind.field(part).type
    return True


def find(table: pa.Table, field: str) -> pa.ChunkedArray | None:
    """The values of a column or path, dictionaries decoded; None where `has` says that there is none."""
    if not has(table.schema, field):
        return None
    name, *path = [field] if field in table.schema.names else field.split(".")
    values = pc.struct_field(table[name], path) if path else table[name]
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def texts(table: pa.Table, field: str) -> tuple[list[str | None], int]:
    """The texts of a column, None for what is null or no text, and the number of values that are no text."""
    values = find(table, field)
    if values is None or not is_text(values.type):
        return [None] * len(table), 0 if values is None else len(values) - values.null_count
    return values.to_pylist(), 0


def bad_ids(table: pa.Table, field: str) -> list[tuple[int, str]]:
    """(position, reason) of every row whose id is neither text nor a whole number nor null, or is empty."""
    values = find(table, field)
    if values is None or pa.types.is_integer(values.type) or pa.types.is_null(values.type):
        return []
    if is_text(values.type):
        bad, reason = pc.equal(pc.binary_length(values), 0), f"`{field}` is empty"
    else:
        bad, reason = pc.is_valid(values), f"`{field}` is of type {values.type}, not text or a whole number"
    return [(int(position), reason) for position in np.flatnonzero(pc.fill_null(bad, False).to_numpy())]


def with_ids(table: pa.Table, field: str, texts: Sequence[str | None] | None, tokens: Any) -> pa.Table:
    """The table with an id in every row: nulls of the id column filled, a column `id` in front where there is none.

    An id that is not there is `content_id` of the row's source and text; where there is no text column, of the source
    and the token ids written as decimal numbers.

    Args:
        table: n rows whose ids are not `bad_ids`.
        field: the id column or path.
        texts: [n]; a null text counts as the empty one.
        tokens: (values, offsets) of the rows, or None.
    """
    values = find(table, field)
    fills = field in table.column_names and values is not None and values.null_count > 0
    if not fills and "id" in table.column_names:
        return table
    ids: list[str | None] = [None] * len(table)
    if values is not None and (is_text(values.type) or pa.types.is_integer(values.type)):
        ids = values.cast(pa.string()).to_pylist()
    missing = [position for position, value in enumerate(ids) if value is None]
    sources = find(table, "source") if "source" in table.column_names else None
    names = sources.take(pa.array(missing, pa.int64())).to_pylist() if sources is not None else [None] * len(missing)
    for position, source in zip(missing, names, strict=True):
        ids[position] = content_id(source, _content(position, texts, tokens))
    if fills:
        kind = table.schema.field(field).type
        holds_text = is_text(kind.value_type if pa.types.is_dictionary(kind) else kind)
        filled = pa.array(ids, kind if holds_text else pa.string())
        table = table.set_column(table.column_names.index(field), field, filled)
    if "id" not in table.column_names:
        table = table.add_column(0, "id", pa.array(ids, pa.string()))
    return table


def make_ids_alike(rows: Iterable[dict[str, Any]], field: str) -> None:
    """Turns whole-number ids into text where other rows have ids of text, or where a number is large."""
    found = [row for row in rows if row.get(field) is not None]
    kinds = {type(row[field]) for row in found}
    if kinds <= {str} or (kinds == {int} and all(-(2**63) <= row[field] < 2**63 for row in found)):
        return
    for row in found:
        row[field] = str(row[field])


def clear_field(row: dict[str, Any], path: str) -> None:
    """Sets the value that `get_field` finds at a path to None."""
    if path in row:
        row[path] = None
        return
    *above, last = path.split(".")
    for part in above:
        row = row[part]
    row[last] = None


def token_lists(table: pa.Table, field: str, index: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """A column of lists of token ids as flat values int32 [N] and offsets int64 [n + 1].

    Args:
        table: n rows.
        field: the column or path.
        index: numbers of the rows in the input, for errors.

    Raises:
        UserError: no lists of whole numbers, a null, or a number that is no token id.
    """
    column = find(table, field)
    if column is None:
        raise UserError(f"no column `{field}` (columns: {', '.join(table.column_names)[:400]}); name the right one")
    if column.null_count:
        first = int(index[np.flatnonzero(column.is_null().to_numpy())[0]])
        raise UserError(f"row {first + 1} of the documents: `{field}` is null; every document needs its tokens")
    kinds = pa.types
    if not (kinds.is_list(column.type) or kinds.is_large_list(column.type) or kinds.is_fixed_size_list(column.type)):
        raise UserError(f"the documents' column `{field}` is of type {column.type}, not lists of token ids")
    inner = column.type.value_type
    if not (kinds.is_integer(inner) or kinds.is_null(inner)):
        raise UserError(f"the documents' column `{field}` holds lists of {inner}, not of token ids")
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    flat = [_token_values(chunk.flatten(), field) for chunk in column.chunks]
    return flat[0] if len(flat) == 1 else np.concatenate([np.zeros(0, np.int32), *flat]), offsets


def join_tokens(lists: Sequence[tuple[NDArray[np.int32], NDArray[np.int64]]]) -> Any:
    """Flat values and offsets of one list of token lists after another; None where there are none."""
    if not lists:
        return None
    lengths = np.concatenate([np.diff(offsets) for _, offsets in lists])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return np.concatenate([values for values, _ in lists]), offsets


def common_schema(schemas: Sequence[tuple[str, pa.Schema]]) -> pa.Schema:
    """One schema for the rows of several files: (file, schema) each.

    Raises:
        UserError: two files give one column types that do not fit.
    """
    kinds: dict[str, set[pa.DataType]] = {}
    for _, schema in schemas:
        for column in schema:
            kinds.setdefault(column.name, set()).add(column.type)
    common: pa.Schema | None = None
    for file, schema in schemas:
        for place, column in enumerate(schema):
            # Arrow unifies no dictionary with its own values.
            if pa.types.is_dictionary(column.type) and len(kinds[column.name]) > 1:
                schema = schema.set(place, column.with_type(column.type.value_type))
        try:
            common = schema if common is None else pa.unify_schemas([common, schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise UserError(f"{file}: its columns do not fit the files before it ({_one_line(error)})") from None
    assert common is not None
    return common


def conform(file: str, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the schema's columns, null where it lacks one; `UserError` where a value does not fit."""
    conformed = []
    for column in schema:
        if column.name not in table.column_names:
            conformed.append(pa.nulls(len(table), column.type))
            continue
        values = table[column.name]
        try:
            conformed.append(values if values.type == column.type else _cast(values, column.type))
        except pa.ArrowException as error:
            reason = f"column `{column.name}` does not fit the other files ({_one_line(error)})"
            raise UserError(f"{file}: {reason}") from None
    return pa.Table.from_arrays(conformed, schema=schema)


def _cast(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_nested(values.type):  # Arrow's cast takes the nulls inside a slice for those of the whole
        values = pa.chunked_array([pa.concat_arrays([chunk]) for chunk in values.chunks], values.type)
    return values.cast(kind)


def is_text(kind: pa.DataType) -> bool:
    """True for the types of text columns, whose values are all UTF-8 once they are validated."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def name_codes(column: pa.Array | pa.ChunkedArray, known: dict[str, int]) -> NDArray[np.int32]:
    """Numbers of names: int32 [n], `NO_NAME` for a null; `known` gets the next number for every new name."""
    encoded = (column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column).dictionary_encode()
    names = encoded.dictionary.to_pylist()
    numbers = np.array([*(known.setdefault(name, len(known)) for name in names), NO_NAME], np.int32)
    return numbers[encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)]


def _content(position: int, texts: Sequence[str | None] | None, tokens: Any) -> str:
    if texts is not None:
        return texts[position] or ""
    if tokens is None:
        return ""
    values, offsets = tokens
    return " ".join(map(str, values[offsets[position] : offsets[position + 1]].tolist()))


def _token_values(values: pa.Array, field: str) -> NDArray[np.int32]:
    """Token ids of a chunk, without a copy where they are int32 already."""
    if not len(values):
        return np.zeros(0, np.int32)
    if values.null_count:
        raise UserError(f"the documents' column `{field}` holds a null among the token ids of a document")
    least, most = (pc.min_max(values)[name].as_py() for name in ("min", "max"))
    if least < 0 or most > _MAX_TOKEN:
        raise UserError(f"the documents' column `{field}` holds {least if least < 0 else most}, which is no token id")
    return values.cast(pa.int32()).to_numpy(zero_copy_only=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
