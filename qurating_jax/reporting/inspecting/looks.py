"""A path to what is to be said of it: a file of rows, a JSON document, an artifact, a folder of artifacts or files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from qurating_jax.reporting.inspecting import sources, summaries
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError, UserError

_INSIDE = ("", "steps", "tables", "train", "heldout")  # where files or outputs may stand in a folder
_MOST_TABLES = 40
_ABOUT = ("stage", "counts", "config")
_MAIN = ("parts", "ids", "judgments", "rows", "documents", "verdicts")  # beginnings of names; the first is shown


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which rows are shown, and of how many the figures are; see `qurating inspect --help`."""

    num_rows: int
    id: str
    sort: str
    ascending: bool
    max_rows: int
    id_field: str
    text_field: str


def look(path: str, wanted: Wanted) -> dict[str, Any]:
    """What stands at a path.

    Returns:
        Plain values for JSON: `path`, `about`, `artifacts` (of a folder: `name`, `stage`, `state`, `counts`), `tables`
        (`name`, `files`, `how`, `num_rows`, `schema`, and of the first `columns` as `summaries.summarize` and `rows`),
        `num_more_tables` beyond these.

    Raises:
        UserError: nothing there, or nothing that can be looked at; a broken file.
        UsageError: an id or a column that is not there.
    """
    found: dict[str, Any] = {"path": path, "about": {}, "artifacts": [], "tables": [], "num_more_tables": 0}
    if not storage.exists(path):
        raise UserError(f"{path}: nothing stands there")
    if not storage.is_dir(path):
        return found | _file(path, wanted)
    if manifest.is_artifact(path):
        found["about"] = _about(path)
    else:
        found["artifacts"] = _artifacts(path)
    files = {} if found["artifacts"] else _tables_in(path)
    for name, paths in list(files.items())[:_MOST_TABLES]:
        found["tables"].append(_briefly(name, paths, wanted) if found["tables"] else _table(name, paths, wanted))
    found["num_more_tables"] = max(len(files) - _MOST_TABLES, 0)
    if not (found["about"] or found["artifacts"] or found["tables"]):
        raise UserError(f"{path}: holds no output of a stage and no Parquet or JSON Lines file")
    return found


def _file(path: str, wanted: Wanted) -> dict[str, Any]:
    if sources.is_rows(path):
        return {"tables": [_table(path.rsplit("/", 1)[-1], [path], wanted)]}
    if path.endswith(".json"):
        document = storage.read_json(path)
        return {"about": dict(document) if isinstance(document, Mapping) else {"content": document}}
    raise UserError(f"{path}: neither Parquet nor JSON Lines nor JSON (by its name)")


def _about(path: str) -> dict[str, Any]:
    """The summary of a manifest, and the JSON documents beside it by their keys."""
    if storage.exists(storage.join(path, manifest.MANIFEST)):
        document = manifest.read(path)
        about = {"state": "finished", **{key: document[key] for key in _ABOUT if key in document}}
    else:
        document = storage.read_json(storage.join(path, manifest.RUN))
        about = {"state": "unfinished", "stage": str(document.get("determined", {}).get("stage"))}
    for name in storage.list_dir(path):
        if name.endswith(".json") and name not in (manifest.MANIFEST, manifest.RUN):
            try:
                content = storage.read_json(storage.join(path, name))
            except UserError as error:
                about[name] = str(error)
                continue
            about[name] = content if isinstance(content, Mapping) else [content]
    return about


def _artifacts(path: str) -> list[dict[str, Any]]:
    rows = []
    for inside in ("", "steps"):
        root = storage.join(path, inside) if inside else path
        for name in storage.list_dir(root):
            place = storage.join(root, name)
            try:
                about = _about_briefly(place) if manifest.is_artifact(place) else None
            except UserError as error:
                about = {"stage": "", "state": str(error), "counts": {}}
            if about is not None:
                rows.append({"name": storage.join(inside, name) if inside else name, **about})
    return rows


def _about_briefly(place: str) -> dict[str, Any]:
    if not storage.exists(storage.join(place, manifest.MANIFEST)):
        document = storage.read_json(storage.join(place, manifest.RUN))
        return {"stage": str(document["determined"].get("stage")), "state": "unfinished", "counts": {}}
    document = manifest.read(place)
    return {"stage": str(document["stage"]), "state": "finished", "counts": document.get("counts") or {}}


def _tables_in(path: str) -> dict[str, list[str]]:
    """Files of rows by what they are called, parts of one output together; the most telling first."""
    found: dict[str, list[str]] = {}
    for inside in _INSIDE:
        root = storage.join(path, inside) if inside else path
        for name in storage.list_dir(root):
            if sources.is_rows(name):
                called = "parts" if name.startswith("part-") else name
                found.setdefault(f"{inside}/{called}" if inside else called, []).append(storage.join(root, name))
    return {name: found[name] for name in sorted(found, key=_rank)}


def _rank(name: str) -> tuple[int, bool, str]:
    own = name.rsplit("/", 1)[-1]
    place = next((place for place, main in enumerate(_MAIN) if own.startswith(main)), len(_MAIN))
    return place, name.endswith(sources.JSON_LINES), name


def _table(name: str, files: Sequence[str], wanted: Wanted) -> dict[str, Any]:
    """Figures of the columns, and rows."""
    rows = sources.sample(files, wanted.max_rows, wanted.text_field)
    shown = sources.rows_at(files, _places(files, rows, wanted))
    return _entry(name, files, rows, rows.how) | {"columns": summaries.summarize(rows.table), "rows": shown}


def _briefly(name: str, files: Sequence[str], wanted: Wanted) -> dict[str, Any]:
    """What there is beside the table that is shown."""
    rows = sources.sample(files, 1, wanted.text_field)
    how = "rows" if rows.num_rows is None else "1 row" if rows.num_rows == 1 else f"{rows.num_rows:,} rows"
    return _entry(name, files, rows, how)


def _entry(name: str, files: Sequence[str], rows: sources.Rows, how: str) -> dict[str, Any]:
    schema = [list(entry) for entry in rows.schema]
    return {"name": name, "files": len(files), "how": how, "num_rows": rows.num_rows, "schema": schema,
            "columns": {}, "rows": []}  # fmt: skip


def _places(files: Sequence[str], rows: sources.Rows, wanted: Wanted) -> list[tuple[int, int, int]]:
    if wanted.id:
        place = sources.find_id(files, wanted.id_field, wanted.id)
        if place is None:
            raise UsageError(f"--id {wanted.id}: no row has it in `{wanted.id_field}`")
        return [place]
    if not wanted.sort:
        return rows.places[: wanted.num_rows]
    kinds = {name: rows.table.schema.field(name).type for name in rows.table.column_names}
    numbers = [name for name, kind in kinds.items() if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
    if wanted.sort not in numbers:
        raise UsageError(f"--sort {wanted.sort}: no column of numbers; there are {', '.join(numbers) or 'none'}")
    values = rows.table[wanted.sort].cast(pa.float64()).to_numpy()
    order = np.argsort(values if wanted.ascending else -values, kind="stable")  # what is not there comes last
    return [rows.places[row] for row in order[: wanted.num_rows]]
