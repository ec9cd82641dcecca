"""Documents in, from whatever they come in: JSONL (plain, gzip, zstd), Parquet, Arrow IPC, `datasets` directories.

Files lie on local disk or behind fsspec (`gs://`, `s3://`, `hf://owner/name`) and are streamed: memory holds one line,
one slice of a Parquet row group, or one Arrow record batch. Every row is untrusted: what cannot be a document follows
the policy of `Rejects`; a file that is truncated or corrupt is always an error, because nobody knows what it lacks.

Identity. A document's id is the value of its id column. Without one it is a hash of its source and text, so that it
depends neither on the order of rows nor on file names, shards or the machine. Two rows with equal source and text
are then one document, under one id: they draw the same noise and get the same rating, in whatever order they come.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qurating_jax.data.columnar import read_columnar
from qurating_jax.data.document_writers import ShardWriter, write_table
from qurating_jax.data.jsonl import JSONL_CODECS, read_jsonl
from qurating_jax.data.rejects import EXCERPT_CHARACTERS, Rejects
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError, UserError

__all__ = [
    "Document",
    "Rejects",
    "ShardWriter",
    "find_files",
    "get_field",
    "read_documents",
    "read_rows",
    "write_table",
]

SUFFIXES = (*JSONL_CODECS, ".parquet", ".arrow")
REJECTED = "rejected.jsonl"
STATE = "state.json"  # lists the shards of a `datasets` directory in their order


@dataclass(frozen=True)
class Document:
    """One document. `row` is the whole source row in plain Python values, `text` and `id` what was found in it."""

    id: str
    text: str
    row: dict[str, Any]


def find_files(patterns: Sequence[str]) -> list[str]:
    """The document files that paths, globs, directories and hub ids (`hf://owner/name[@revision][/path]`) name.

    A directory stands for the files below it, in sorted order: of a `datasets` directory its shards in their own
    order, of a stage's output its `part-*` files (not its tables or rejected rows), elsewhere all of a known format.

    Raises:
        UserError: a pattern matches nothing, a file is of no known format, or a directory is an unfinished output.
    """
    if not patterns:
        raise UsageError("no input given: name files, globs or directories")
    files: dict[str, None] = {}
    for pattern in patterns:
        found = storage.expand([pattern], SUFFIXES)
        unknown = [file for file in found if not file.endswith(SUFFIXES)]
        if unknown:
            raise UserError(f"{unknown[0]}: not a format of documents ({', '.join(SUFFIXES)})")
        if storage.is_dir(pattern):
            groups: dict[str, list[str]] = {}
            for file in found:
                groups.setdefault(file.rpartition("/")[0], []).append(file)
            found = [file for directory, group in groups.items() for file in _documents_of(directory, group)]
            if not found:
                raise UserError(f"{pattern}: holds no documents")
        files.update(dict.fromkeys(found))
    return list(files)


def read_documents(
    files: Sequence[str], *, text_field: str = "text", id_field: str = "id", rejects: Rejects
) -> Iterator[Document]:
    """Streams the documents of `files` in order.

    Args:
        files: what `find_files` returned.
        text_field: column with the text; a dotted path reaches into nested values. An empty text is a document.
        id_field: column with the id, text or whole number; where it is absent or null the id is a hash (see above).
        rejects: policy for rows without a text, with values of a wrong type, or not readable at all.

    Raises:
        UserError: a bad row under policy "error"; a truncated or corrupt file; a columnar file without `text_field`.
    """
    for file in files:
        for line, row in read_rows(file, rejects=rejects, needed_field=text_field):
            try:
                text = _text(row, text_field)
                document = Document(document_id(row, text, id_field), text, row)
            except ValueError as error:
                rejects.add(file, line, str(error), excerpt(row))
                continue
            yield document


def read_rows(file: str, *, rejects: Rejects, needed_field: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Streams (line or row number from 1, row) of one file; `needed_field` must be a column of a columnar file."""
    if file.endswith(tuple(JSONL_CODECS)):
        return read_jsonl(file, rejects)
    return read_columnar(file, rejects, needed_field)


def get_field(row: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, None where there is none; a column whose own name has the dots comes first."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _text(row: dict[str, Any], field: str) -> str:
    text = get_field(row, field)
    if text is None:
        raise ValueError(f"no text in `{field}` (columns: {', '.join(map(str, row))[:EXCERPT_CHARACTERS]})")
    if not isinstance(text, str):
        raise ValueError(f"`{field}` is of type {type(text).__name__}, not text")
    return text


def content_id(source: Any, text: str) -> str:
    """The id of a document that has none: a hash of its source (none where that is not text) and its text."""
    name = source.encode() if isinstance(source, str) else b""
    # The length in front keeps ("ab", "c") and ("a", "bc") apart.
    return hashlib.sha256(b"%d:%b%b" % (len(name), name, text.encode())).hexdigest()[:32]


def document_id(row: dict[str, Any], text: str, field: str) -> str:
    """The id of a row: the value of its id column, or its `content_id`; `ValueError` says why a value is no id."""
    value = get_field(row, field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        return content_id(row.get("source"), text)
    if not isinstance(value, str):
        raise ValueError(f"`{field}` is of type {type(value).__name__}, not text or a whole number")
    if not value:
        raise ValueError(f"`{field}` is empty")
    return value


def excerpt(row: dict[str, Any]) -> str:
    """The beginnings of a row's values, for lists of rejected rows."""
    return ", ".join(f"{key}={str(value)[:60]!r}" for key, value in list(row.items())[:20])


# ---- directories


def _documents_of(directory: str, files: list[str]) -> list[str]:
    state = storage.join(directory, STATE)
    if any(file.endswith(".arrow") for file in files) and storage.exists(state):
        return _dataset_shards(directory, storage.read_json(state))
    if manifest.is_artifact(directory):
        manifest.read(directory)
        return [file for file in files if file.rpartition("/")[2].startswith("part-")]
    return [file for file in files if file.rpartition("/")[2] != REJECTED]


def _dataset_shards(directory: str, state: Any) -> list[str]:
    """The shards of a directory written by `Dataset.save_to_disk` (its caches lie beside them)."""
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        indices = state.get("_indices_data_files")
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{directory}: {STATE} is not that of a `datasets` directory (no _data_files)") from None
    if indices:
        raise UserError(f"{directory}: rows are chosen by an indices file; save it again after flatten_indices()")
    missing = [name for name in names if "/" in name or not storage.exists(storage.join(directory, name))]
    if missing:
        raise UserError(f"{directory}: {STATE} names {missing[0]}, which is not there; copy the whole directory")
    return [storage.join(directory, name) for name in names]
