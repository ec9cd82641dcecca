"""Copies of remote files on local disk, for libraries that read and write local files alone."""

import atexit
import fnmatch
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

log = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 24


def scratch_directory() -> str:
    """A new local directory, which goes when the process ends."""
    directory = tempfile.mkdtemp(prefix="qurating-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def download(path: str, local: str) -> None:
    """Copies a remote file to a local place; raises `UserError` where it cannot be read or there is no room."""
    with storage.open_read(path) as stream:
        try:
            with open(local, "wb") as copy:
                shutil.copyfileobj(stream, copy, _PIECE_BYTES)
        except OSError as error:
            raise UserError(f"{path}: cannot be copied to {local} ({error})") from None


def local_directory(directory: str, patterns: Sequence[str]) -> str:
    """The directory itself where it is local, else a copy of its files that fit a pattern, without those below it."""
    if not storage.is_remote(directory):
        return directory
    local = scratch_directory()
    log.info("%s: copying to %s", directory, local)
    for name in storage.list_dir(directory):
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            download(storage.join(directory, name), storage.join(local, name))
    return local


def upload_tree(local: str, directory: str) -> None:
    """Copies all files below a local directory to a remote one; raises `UserError` where one cannot be written."""
    for root, _, names in os.walk(local):
        for name in sorted(names):
            file = Path(root) / name
            storage.upload(str(file), storage.join(directory, *file.relative_to(local).parts))
