"""Files on local disk or behind fsspec (`gs://`, `s3://`, `hf://`): listing, atomic writing, digests.

A path is a string. A write becomes visible under its final name only when it is complete: by rename on local disk,
by the object store's own semantics elsewhere.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from qurating_jax.runtime.errors import UserError

_EDGE_BYTES = 1 << 16  # a large local file is identified by its size and this much of both ends


def is_remote(path: str) -> bool:
    """True for `scheme://...` paths (`file://` too: it goes through fsspec)."""
    return "://" in path


def join(path: str, *parts: str) -> str:
    """Joins path parts with `/` whatever the scheme."""
    return "/".join([path.rstrip("/") or "/", *parts]) if path != "/" else "/" + "/".join(parts)


def exists(path: str) -> bool:
    """True where a file or directory stands at `path`."""
    if is_remote(path):
        filesystem, name = _filesystem(path)
        return bool(filesystem.exists(name))
    return os.path.exists(path)


def is_dir(path: str) -> bool:
    """True where `path` is a directory (or a key prefix that holds something)."""
    if is_remote(path):
        filesystem, name = _filesystem(path)
        return bool(filesystem.isdir(name))
    return os.path.isdir(path)


def list_dir(path: str) -> list[str]:
    """Names directly inside a directory, sorted; empty where there is none."""
    if is_remote(path):
        filesystem, name = _filesystem(path)
        if not filesystem.isdir(name):
            return []
        return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(name, detail=False))
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def make_dirs(path: str) -> None:
    """Creates a directory and its parents; nothing to do on an object store."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def remove_tree(path: str) -> None:
    """Removes a file or a whole directory; nothing happens where there is none."""
    if is_remote(path):
        filesystem, name = _filesystem(path)
        if filesystem.exists(name):
            filesystem.rm(name, recursive=True)
    elif os.path.isdir(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def open_read(path: str) -> IO[bytes]:
    """Opens a file for reading bytes."""
    if is_remote(path):
        import fsspec

        return fsspec.open(path, "rb").open()
    return open(path, "rb")


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[IO[bytes]]:
    """A binary stream whose content stands at `path` only if the block ends without an exception.

    Locally: a temporary file in the same directory, fsync, rename, fsync of the directory. Remotely: the object is
    uploaded when the stream closes and discarded where the block raises.
    """
    if is_remote(path):
        import fsspec

        stream = fsspec.open(path, "wb").open()
        try:
            yield stream
        except BaseException:
            if hasattr(stream, "discard"):
                stream.discard()
            raise
        stream.close()
        return
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_directory(os.path.dirname(path) or ".")
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_text(path: str, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    with atomic_write(path) as stream:
        stream.write(text.encode())


def write_json(path: str, value: Any) -> None:
    """Writes indented JSON with sorted keys atomically; NaN and infinity are refused (`ValueError`)."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_text(path: str) -> str:
    """Reads a UTF-8 text file; raises `UserError` where it is missing."""
    try:
        with open_read(path) as stream:
            return stream.read().decode()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None


def read_json(path: str) -> Any:
    """Reads a JSON file; raises `UserError` where it is missing or broken."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def digest(path: str) -> dict[str, Any]:
    """What identifies a file without reading all of it: size and a hash of both ends, or the store's own key."""
    if is_remote(path):
        filesystem, name = _filesystem(path)
        return {"bytes": int(filesystem.size(name)), "key": str(filesystem.ukey(name))}
    size = os.path.getsize(path)
    hasher = hashlib.sha256()
    with open(path, "rb") as stream:
        hasher.update(stream.read(_EDGE_BYTES))
        if size > 2 * _EDGE_BYTES:
            stream.seek(-_EDGE_BYTES, os.SEEK_END)
        hasher.update(stream.read())
    return {"bytes": size, "key": hasher.hexdigest()[:32]}


def expand(patterns: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """The files that paths, globs and directories name: sorted within each pattern, no file twice.

    A directory stands for the files below it that end in one of `suffixes`; hidden files and manifests' neighbours of
    other kinds are passed over. Raises `UserError` where a pattern matches nothing.
    """
    files: dict[str, None] = {}
    for pattern in patterns:
        matched = _expand_one(pattern, tuple(suffixes))
        if not matched:
            raise UserError(f"{pattern}: no such file, or no files ending in {', '.join(suffixes)} below it")
        files.update(dict.fromkeys(matched))
    return list(files)


def _expand_one(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    import fsspec

    filesystem, name = fsspec.core.url_to_fs(pattern)
    scheme = pattern.split("://", 1)[0] + "://" if is_remote(pattern) else ""
    if filesystem.isfile(name):
        return [pattern]
    if filesystem.isdir(name):
        found = [path for path in filesystem.find(name) if path.endswith(suffixes) and not _hidden(path, name)]
    elif any(sign in name for sign in "*?["):
        found = [path for path in filesystem.glob(name) if filesystem.isfile(path)]
    else:
        found = []
    if not scheme and not os.path.isabs(pattern):
        found = [os.path.relpath(path) for path in found]
    return sorted(scheme + path for path in found)


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "_")) for part in path[len(root) :].split("/"))


def _filesystem(path: str) -> tuple[Any, str]:
    import fsspec

    return fsspec.core.url_to_fs(path)


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
