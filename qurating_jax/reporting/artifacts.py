"""The stage outputs under a folder and their files, read so that a broken one is told of and nothing more."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

REPORT = "report"  # the stage; reports are passed over

Notes = list[str]


@dataclass(frozen=True)
class Artifact:
    """One stage output: its folder under the run (`name`), its path, and its manifest."""

    name: str
    path: str
    manifest: dict[str, Any]

    @property
    def stage(self) -> str:
        """The stage that made it."""
        return str(self.manifest["stage"])

    @property
    def config(self) -> dict[str, Any]:
        """The options that it was made with."""
        return self.manifest["config"] if isinstance(self.manifest.get("config"), dict) else {}

    @property
    def counts(self) -> dict[str, Any]:
        """What its stage counted."""
        return self.manifest["counts"] if isinstance(self.manifest.get("counts"), dict) else {}


@dataclass(frozen=True)
class Unfinished:
    """An output that is no finished one, and why in words."""

    name: str
    stage: str
    why: str


def find_artifacts(directory: str) -> tuple[list[Artifact], list[Unfinished]]:
    """The finished stage outputs that a folder is, or holds as plain sub-folders or one level below these.

    Reports are passed over. What is unfinished or cannot be read is returned beside them.
    """
    found, unfinished = [], []
    for name, path in _folders(directory):
        try:
            artifact: Artifact | Unfinished = _look(name, path)
        except UserError as error:
            artifact = Unfinished(name, "", str(error))
        if artifact.stage == REPORT:
            continue
        if isinstance(artifact, Artifact):
            found.append(artifact)
        else:
            unfinished.append(artifact)
    return found, unfinished


def _look(name: str, path: str) -> Artifact | Unfinished:
    marks = [mark for mark in (manifest.MANIFEST, manifest.RUN) if storage.exists(storage.join(path, mark))]
    if not manifest.is_artifact(path):
        return Unfinished(name, "", f"{name}: {' and '.join(marks)} cannot be read")
    if manifest.MANIFEST in marks:
        return Artifact(name, path, manifest.read(path))
    run = storage.read_json(storage.join(path, manifest.RUN))
    stage = run["determined"].get("stage")
    return Unfinished(name, str(stage), f"{name} is unfinished; run its command again to complete it")


def _folders(directory: str) -> Iterator[tuple[str, str]]:
    root = directory.rstrip("/") or directory
    if _is_output(root):
        yield root.rsplit("/", 1)[-1], root
        return
    for name in storage.list_dir(root):
        path = storage.join(root, name)
        if _is_output(path):
            yield name, path
            continue
        for inner in storage.list_dir(path):
            if _is_output(storage.join(path, inner)):
                yield f"{name}/{inner}", storage.join(path, inner)


def _is_output(path: str) -> bool:
    """True for outputs of ours, and for what was one as far as its file names say."""
    if not storage.exists(storage.join(path, manifest.RUN)) and not storage.exists(
        storage.join(path, manifest.MANIFEST)
    ):
        return False
    return manifest.is_artifact(path) or storage.exists(storage.join(path, manifest.RUN))


def read_json(artifact: Artifact, name: str, notes: Notes, *, needed: bool = True) -> dict[str, Any]:
    """A JSON file of an output; empty, with a note, where it is missing (if `needed`), broken, or no mapping."""
    path = storage.join(artifact.path, name)
    if not storage.exists(path):
        if needed:
            notes.append(f"{artifact.name} has no {name}.")
        return {}
    try:
        document = storage.read_json(path)
    except UserError as error:
        notes.append(f"{artifact.name}/{name} is left out: {_one_line(error)}")
        return {}
    if not isinstance(document, dict):
        notes.append(f"{artifact.name}/{name} is left out: not what `qurating {artifact.stage}` writes.")
        return {}
    return document


def read_lines(artifact: Artifact, name: str, notes: Notes) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines, none where there is no such file; broken ones are counted in a note."""
    path = storage.join(artifact.path, name)
    if not storage.exists(path):
        return []
    with storage.open_read(path) as stream:
        lines = stream.read().decode(errors="replace").splitlines()
    rows, broken = [], 0
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            broken += 1
    if broken:
        notes.append(f"{artifact.name}/{name}: {broken:,} of {len(lines):,} lines cannot be read and are left out.")
    return rows


def read_table(artifact: Artifact, name: str, columns: Sequence[str], notes: Notes) -> "pa.Table | None":
    """A Parquet file of an output with at least these columns; None where it is missing, or, with a note, broken."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = storage.join(artifact.path, name)
    if not storage.exists(path):
        return None
    try:
        with storage.open_read(path) as stream:
            table = pq.read_table(stream)
    except (pa.ArrowException, OSError, ValueError) as error:
        notes.append(f"{artifact.name}/{name} is left out: not a Parquet file that can be read ({_one_line(error)}).")
        return None
    lacking = [column for column in columns if column not in table.column_names]
    if lacking:
        notes.append(f"{artifact.name}/{name} is left out: it has no column {', '.join(lacking)}.")
        return None
    return table


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
