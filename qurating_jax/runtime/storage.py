"""Files on local disk or behind fsspec (`gs://`, `s3://`, `hf://`): listing, atomic writing, digests.

A path is a string. A write becomes visible under its final name only when it is complete: by rename on local disk,
by one upload of the finished file elsewhere. `hf://owner/name[@revision]/path` is a dataset repository of the hub
(`hf://datasets/owner/name` says the same). A path that cannot be opened is a `UserError` that names it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from qurating_jax.runtime.errors import UsageError, UserError

CHECKPOINT_STORE = "gs://"  # the one object store that Orbax writes to

_EDGE_BYTES = 1 << 16  # a large file is identified by its size and this much of both ends
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}$")
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # of this package, by scheme
_CONTENT_KEYS = ("blob_id", "md5Hash", "crc32c", "ETag", "etag")  # what hub, gs and s3 call a hash of the content


def is_remote(path: str) -> bool:
    """True for `scheme://...` paths; `file://` is refused (`UsageError`) for the plain path it stands for."""
    if path.startswith("file://"):
        raise UsageError(f"{path}: name a local file by its path alone, {path.removeprefix('file://')}")
    return _SCHEME.match(path) is not None


def join(path: str, *parts: str) -> str:
    """Joins path parts with `/` whatever the scheme; the empty path is the working directory."""
    return ("" if not path or path.endswith("/") else "/").join([path, "/".join(parts)])


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
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


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
    """Opens a file for reading bytes; raises `UserError` where it is missing, a directory or not readable."""
    try:
        if not is_remote(path):
            return open(path, "rb")
        filesystem, name = _filesystem(path)
        with _hub_errors(path):
            return filesystem.open(name, "rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[IO[bytes]]:
    """A seekable binary stream whose content stands at `path` only if the block ends without an exception.

    Locally: a temporary file in the same directory, fsync, rename, fsync of the directory; of several writers of one
    path the last rename wins. Remotely: a local temporary file, uploaded when the block has ended (a stream of the
    store's own would upload what it has when it is closed or collected after an exception). Missing parent directories
    are made.

    Raises:
        UserError: the place cannot be written.
    """
    if is_remote(path):
        with tempfile.NamedTemporaryFile() as copy:
            yield copy.file
            copy.flush()
            upload(copy.name, path)
        return
    with _temporary(path) as (temporary, stream):
        yield stream
        _sync(stream)
        os.replace(temporary, path)
        _sync_directory(os.path.dirname(path) or ".")


@contextlib.contextmanager
def atomic_file(path: str) -> Iterator[str]:
    """As `atomic_write`, for what a library writes by name: the name of a local file that becomes the one at `path`."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as directory:
            copy = os.path.join(directory, "file")
            yield copy
            upload(copy, path)
        return
    with _temporary(path) as (temporary, _):
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_directory(os.path.dirname(path) or ".")


def upload(local: str, path: str) -> None:
    """Copies a finished local file to a remote place; raises `UserError` where it cannot be written."""
    filesystem, name = _filesystem(path)
    try:
        filesystem.put_file(local, name)
    except Exception as error:  # each store's client has errors of its own
        raise UserError(f"{path}: cannot be written ({_one_line(error)})") from None


def create_json(path: str, value: Any) -> bool:
    """Writes a JSON file, whole at once, where nothing stands at `path`; of several writers at a time one gets True.

    On an object store, and on a disk without hard links, two that start within the same moment may both get True (the
    last one's file stands): read it back.

    Raises:
        UserError: the place cannot be written.
    """
    content = _json_text(value).encode()
    if is_remote(path):
        if exists(path):
            return False
        write_json(path, value)
        return True
    with _temporary(path) as (temporary, stream):
        stream.write(content)
        _sync(stream)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a filesystem without hard links
            if os.path.exists(path):
                return False
            os.replace(temporary, path)
        _sync_directory(os.path.dirname(path) or ".")
    return True


def is_temporary(name: str) -> bool:
    """True for the names that unfinished files have while they are written here."""
    return _TEMPORARY.search(name) is not None


def remove_temporaries(directory: str) -> list[str]:
    """Removes what killed writers left directly inside a local directory; returns the names.

    A file that a living process writes, on this host or another, is locked and stays. Where the filesystem has no
    locks nothing is removed.
    """
    removed = []
    for name in [] if is_remote(directory) else filter(is_temporary, list_dir(directory)):
        path = join(directory, name)
        with contextlib.suppress(OSError), open(path, "rb+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
            removed.append(name)
    return removed


def write_text(path: str, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    with atomic_write(path) as stream:
        stream.write(text.encode())


def write_json(path: str, value: Any) -> None:
    """Writes indented JSON with sorted keys atomically; NaN and infinity are refused (`ValueError`)."""
    write_text(path, _json_text(value))


def read_text(path: str) -> str:
    """Reads a UTF-8 text file; raises `UserError` where it is missing or not UTF-8."""
    with open_read(path) as stream:
        content = stream.read()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_json(path: str) -> Any:
    """Reads a JSON file; raises `UserError` where it is missing or broken."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def digest(path: str) -> dict[str, Any]:
    """What identifies a file without reading all of it: its size, and a hash of both ends or the store's content hash.

    Nothing in it depends on where or when the file was written, or on what the store's client happens to have cached.

    Raises:
        UserError: no such file.
    """
    if is_remote(path):
        filesystem, name = _filesystem(path)
        try:
            found = filesystem.info(name)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        key = next((str(found[key]).strip('"') for key in _CONTENT_KEYS if found.get(key)), None)
        if key is not None:
            return {"bytes": int(found["size"]), "key": key}
    hasher = hashlib.sha256()
    with open_read(path) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        hasher.update(stream.read(size if size <= 2 * _EDGE_BYTES else _EDGE_BYTES))
        if size > 2 * _EDGE_BYTES:
            stream.seek(size - _EDGE_BYTES)
            hasher.update(stream.read(_EDGE_BYTES))
    return {"bytes": size, "key": hasher.hexdigest()[:32]}


def expand(patterns: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """The files that paths, globs and directories name: sorted within each pattern, no file twice.

    A directory stands for the files below it that end in one of `suffixes`, without hidden ones (`.` or `_` in front of
    any part); a glob stands for the files it matches with one of `suffixes`; a file named in full needs none.
    Raises `UserError` where a pattern matches nothing.
    """
    files: dict[str, None] = {}
    for pattern in patterns:
        with _hub_errors(pattern):
            matched = _expand_one(pattern, tuple(suffixes))
        if not matched:
            raise UserError(f"{pattern}: no such file, or no files ending in {', '.join(suffixes)} below it")
        files.update(dict.fromkeys(matched))
    return list(files)


def _expand_one(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    scheme = pattern.split("://", 1)[0] + "://" if is_remote(pattern) else ""
    pattern = pattern if scheme else os.path.expanduser(pattern)
    filesystem, name = _filesystem(pattern)
    if filesystem.isfile(name):
        return [pattern]
    if filesystem.isdir(name):
        found = [path for path in filesystem.find(name) if path.endswith(suffixes) and not _hidden(path, name)]
    elif any(sign in name for sign in "*?["):
        matched = filesystem.glob(name, detail=True)
        found = [path for path, info in matched.items() if info["type"] == "file" and path.endswith(suffixes)]
    else:
        found = []
    if not scheme and not os.path.isabs(pattern):
        found = [os.path.relpath(path) for path in found]
    return sorted(scheme + path for path in found)


def _hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "_")) for part in path[len(root) :].split("/"))


def _filesystem(path: str) -> tuple[Any, str]:
    """The fsspec filesystem of a path and the path's name there; raises `UserError` where it cannot be had."""
    import fsspec

    if path.startswith("hf://"):
        return fsspec.core.url_to_fs(_hub_dataset(path))
    try:
        # Without the listings cache, files that another process wrote since the last listing would be missing.
        return fsspec.core.url_to_fs(path, **({"use_listings_cache": False} if is_remote(path) else {}))
    except ImportError as error:
        extra = _EXTRAS.get(path.split("://")[0])
        how = f"pip install 'qurating-jax[{extra}]'" if extra else _one_line(error)
        raise UserError(f"{path}: the client of this store is not installed: {how}") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be opened ({error})") from None


@contextlib.contextmanager
def _hub_errors(path: str) -> Iterator[None]:
    """The hub's client lets failures of the network through as its HTTP library raises them, not as `OSError`."""
    if not path.startswith("hf://"):
        yield
        return
    from huggingface_hub.utils import httpx

    try:
        yield
    except httpx.HTTPError as error:
        raise UserError(f"{path}: the hub does not answer ({' '.join(str(error).split())})") from None


def _hub_dataset(path: str) -> str:
    """`hf://owner/name/...` as the hub's filesystem spells it, `hf://datasets/owner/name/...`."""
    import huggingface_hub

    name = path.removeprefix("hf://").removeprefix("datasets/")
    if huggingface_hub.is_offline_mode():
        raise UserError(
            f"{path}: HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or name a local folder made by "
            f"`hf download --repo-type dataset {'/'.join(name.split('@')[0].split('/')[:2])} --local-dir DIR`"
        )
    return f"hf://datasets/{name}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _temporary(path: str) -> Iterator[tuple[str, IO[bytes]]]:
    """A new file beside `path` and its name; what still has the name when the block ends is removed."""
    temporary, stream = _create(path)
    try:
        with stream:
            yield temporary, stream
    finally:
        with contextlib.suppress(OSError):  # gone after the rename
            os.unlink(temporary)


def _create(path: str) -> tuple[str, IO[bytes]]:
    """Opens a temporary file and locks it for as long as it is open (see `remove_temporaries`)."""
    try:
        make_dirs(os.path.dirname(path) or ".")
        while True:
            # Random, because two hosts or two containers can share process and thread numbers.
            temporary = f"{path}.tmp-{secrets.token_hex(8)}"
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with contextlib.suppress(OSError):  # a filesystem without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return temporary, os.fdopen(descriptor, "wb")
            os.close(descriptor)  # taken for a killed writer's between its creation and its lock
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def _sync(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some network and FUSE filesystems cannot sync a directory; the rename itself has been done.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
