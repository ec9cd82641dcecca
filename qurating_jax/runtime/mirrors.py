"""A local mirror of the hub: `DIR/owner/name/...` (data sets also below `DIR/datasets/`), as `hf download` lays it out.

What a copy is compared with: a `files.json` in the repository's folder (`qurating fetch` leaves one), else what
`hf download --local-dir` noted of each file, else nothing but the size.
"""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from qurating_jax.runtime import storage
from qurating_jax.runtime.downloads import PIECE_BYTES, RemoteFile
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.hub import COMMIT, SHA256, Listing, Repository

FILES = "files.json"  # repository, commit, and name, size, sha256 of each file
SCHEMA_VERSION = 1

_NOTES = ".cache/huggingface/download"


def find(mirror: str, repository: Repository) -> str:
    """The folder of a repository in a mirror; raises `UserError` where there is none, or it leads out of the mirror."""
    places = [storage.join(mirror, repository.name)]
    if repository.type == "dataset":
        places.insert(0, storage.join(mirror, "datasets", repository.name))
    found = next((place for place in places if os.path.isdir(place)), None)
    if found is None:
        raise UserError(f"{mirror}: has no {repository.name} (looked for {' and '.join(places)})")
    _require_inside(found, mirror)
    return found


def list_files(place: str, mirror: str) -> Listing:
    """The files of a repository's folder, by name, without hidden ones; links out of the mirror are errors.

    Raises:
        UserError: a link or a special file, a `files.json` that is not ours.
    """
    stated = storage.join(place, FILES)
    if os.path.isfile(stated):
        return _stated(stated)
    files: list[RemoteFile] = []
    commits: set[str] = set()
    for directory, folders, names in os.walk(place):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *names]:
            _require_inside(storage.join(directory, name), mirror)
        for folder in folders:
            if os.path.islink(storage.join(directory, folder)):
                raise UserError(f"{storage.join(directory, folder)}: a link to a folder, which is not followed")
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(directory, name)
            if not path.is_file():
                raise UserError(f"{path}: no regular file")
            relative = path.relative_to(place).as_posix()
            commit, etag = _note(place, relative)
            commits.add(commit)
            sha256, git_sha1 = (etag if form.fullmatch(etag) else None for form in (SHA256, COMMIT))
            files.append(RemoteFile(relative, path.stat().st_size, sha256, git_sha1))
    agreed = commits.pop() if len(commits) == 1 else ""  # a folder filled from two commits is of neither
    return Listing(agreed or None, tuple(sorted(files, key=lambda file: file.name)))


def read(place: str, mirror: str, file: RemoteFile, offset: int) -> Generator[bytes, None, None]:
    """The bytes of a file from `offset` on; raises `UserError` where it is missing or leads out of the mirror."""
    path = storage.join(place, file.name)
    _require_inside(path, mirror)
    with storage.open_read(path) as stream:
        stream.seek(offset)
        while piece := stream.read(PIECE_BYTES):
            yield piece


def record(path: str, repository: Repository, listing: Listing) -> None:
    """Writes the `files.json` of fetched files, each with its sha256."""
    files = [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in listing.files]
    document = {"schema_version": SCHEMA_VERSION, "repo": repository.name, "repo_type": repository.type}
    storage.write_json(path, document | {"commit": listing.commit, "files": files})


def _stated(path: str) -> Listing:
    document = storage.read_json(path)
    try:
        if document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema {document['schema_version']}")
        commit = document["commit"]
        if commit is not None and not COMMIT.fullmatch(commit):
            raise ValueError(f"commit {commit!r:.80}")
        return Listing(commit, tuple(_entry(entry) for entry in document["files"]))
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}: not the list of files that `qurating fetch` writes ({reason})") from None


def _entry(entry: Any) -> RemoteFile:
    name, size, sha256 = entry["name"], entry["size"], entry["sha256"]
    if not isinstance(name, str) or type(size) is not int or size < 0 or not SHA256.fullmatch(sha256):
        raise ValueError(f"{entry!r:.120}")
    return RemoteFile(name, size, sha256)


def _note(place: str, name: str) -> tuple[str, str]:
    """Commit and checksum that `hf download` noted of a file; empty where it did not."""
    path = Path(place, _NOTES, f"{name}.metadata")
    if not path.is_file():
        return "", ""
    lines = [*storage.read_text(str(path)).split("\n"), "", ""]
    return (lines[0] if COMMIT.fullmatch(lines[0]) else ""), lines[1]


def _require_inside(path: str, directory: str) -> None:
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory)):
        raise UserError(f"{path}: leads out of {directory}, so it is not read")
