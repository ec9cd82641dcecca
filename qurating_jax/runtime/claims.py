"""Who works on what: several processes, on one host or many, share one output directory without a server.

A claim is a lock of the kernel (`flock`) on a file in `OUTPUT/claims/`. It ends with the process that holds it, even by
kill -9, so that no claim is ever left behind, and no clock is compared. Over NFS (since Linux 2.6.12) and Lustre
(mounted with `flock`) the server keeps the locks of all hosts. A mount that keeps them on the host (`nolock`,
`localflock`, most FUSE filesystems) cannot be told apart from here: there two hosts may claim the same thing. So a
claim saves work; what keeps a result right is that it is committed by one rename.
"""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
from collections.abc import Iterator

import filelock

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

DIRECTORY = "claims"

# How a filesystem says that it has no locks. EINVAL and EBADF come from filesystems that lock no such file.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
_POLL_SECONDS = 0.1  # how often a waiting process asks; over NFS each asking is a message to the server
_ATTEMPTS = 100

log = logging.getLogger(__name__)


class Claims:
    """The claims on one output directory. Its methods may be called from any thread."""

    def __init__(self, output: str) -> None:
        self.directory = storage.join(output, DIRECTORY)

    def obstacle(self) -> str | None:
        """Why nothing can be claimed here (an object store, a filesystem without locks), None where claims work.

        Raises:
            UserError: the directory cannot be written.
        """
        if storage.is_remote(self.directory):
            return "an object store has no locks"
        probe = f"probe-{secrets.token_hex(8)}"
        try:
            with self._lock(probe, 0.0) as first, self._lock(probe, 0.0) as second:
                works = first and not second
        except NotImplementedError:
            return "its filesystem has no locks"
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._path(probe))
        return None if works else "the locks of its filesystem do not exclude anybody"

    @contextlib.contextmanager
    def take(self, name: str) -> Iterator[bool]:
        """Claims `name` for the time of the block, without waiting.

        Yields:
            True where this caller holds the claim until the block ends; False where another process or another thread
            holds it, or this thread already does. What the last holder left is seen only under the claim: look at it
            then, not before. The block may end in another thread than it began in.

        Raises:
            UserError: nothing can be claimed here (see `obstacle`).
        """
        with self._lock_or_say(name, 0.0) as mine:
            yield mine

    @contextlib.contextmanager
    def wait(self, name: str, *, timeout: float, purpose: str) -> Iterator[None]:
        """Claims `name` for the time of the block, and waits for it as long as another holds it.

        Args:
            name: what is claimed.
            timeout: the longest wait, seconds.
            purpose: what the other does meanwhile, for the log and the error ("plans the parts").

        Raises:
            UserError: the time is up, or nothing can be claimed here.
        """
        with contextlib.ExitStack() as stack:
            if not stack.enter_context(self._lock_or_say(name, 0.0)):
                log.info("waiting for the worker that %s (%s)", purpose, self._path(name))
                if not stack.enter_context(self._lock_or_say(name, timeout)):
                    raise UserError(
                        f"{self._path(name)}: held for more than {timeout:g} s by the worker that {purpose}; "
                        "look whether it still works, end it, and start again"
                    )
            yield

    def hold(self, name: str) -> int | None:
        """Claims `name` for as long as a descriptor is open, here or in a process that it was handed to.

        So a claim outlives the process that took it, where one that was started by it is still at work.

        Returns:
            The open descriptor, to be closed by the caller; None where another holds the claim.

        Raises:
            UserError: nothing can be claimed here (see `obstacle`).
        """
        while True:
            try:
                storage.make_dirs(self.directory)
                descriptor = os.open(self._path(name), os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise UserError(f"{self.directory}: nothing can be claimed there ({error.strerror})") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError as error:
                os.close(descriptor)
                raise UserError(f"{self.directory}: nothing can be claimed there ({error.strerror})") from None
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)  # `remove` took the file between the two

    def remove(self) -> None:
        """Removes the lock files that nobody holds, and their directory if it is empty then.

        For the end of a run. Safe while others still claim: only the holder of a lock removes its file, and whoever
        opened that file before gets a lock that counts for nothing and tries again.
        """
        if storage.is_remote(self.directory):
            return
        for name in storage.list_dir(self.directory):
            if name.startswith("."):  # of an NFS client: a removed file that is still open
                continue
            with contextlib.suppress(OSError, NotImplementedError, UserError), self._lock(name, 0.0) as mine:
                if mine:
                    os.unlink(self._path(name))
        with contextlib.suppress(OSError):
            os.rmdir(self.directory)

    def _path(self, name: str) -> str:
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"{name!r} cannot be the name of a claim")
        return storage.join(self.directory, name)

    @contextlib.contextmanager
    def _lock_or_say(self, name: str, timeout: float) -> Iterator[bool]:
        """`_lock` whose failure is the user's to mend."""
        reason = "an object store has no locks" if storage.is_remote(self.directory) else ""
        with contextlib.ExitStack() as stack:
            try:
                mine = not reason and stack.enter_context(self._lock(name, timeout))
            except NotImplementedError:
                reason = "its filesystem has no locks"
            if reason:
                raise UserError(f"{self.directory}: cannot be shared by claims, {reason}")
            yield mine

    @contextlib.contextmanager
    def _lock(self, name: str, timeout: float) -> Iterator[bool]:
        """Yields whether the lock could be had within `timeout` seconds; `NotImplementedError` without locks."""
        # A lock object of its own for every claim: one that is shared would be re-entrant, and then two threads, or one
        # thread twice, would both be let in. Not bound to a thread, so that a writing thread may end what a reading one
        # began. Never a lock by existence (`fallback_to_soft`), which a killed process leaves behind; and the file
        # stays on release, because removing it can let two in.
        lock = filelock.UnixFileLock(
            self._path(name), thread_local=False, is_singleton=False, fallback_to_soft=False, preserve_lock_file=True
        )
        try:
            _acquire(lock, timeout)
        except filelock.Timeout:
            yield False
            return
        except NotImplementedError:
            raise
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise NotImplementedError from None
            raise UserError(f"{self.directory}: nothing can be claimed there ({error.strerror})") from None
        try:
            yield True
        finally:
            lock.release()


def _acquire(lock: filelock.BaseFileLock, timeout: float) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            lock.acquire(timeout=timeout, blocking=timeout > 0, poll_interval=_POLL_SECONDS)
            return
        except (FileNotFoundError, FileExistsError):  # `remove` took the directory before the file was made in it
            if attempt == _ATTEMPTS - 1:
                raise


def claims_on(output: str) -> Claims | None:
    """The claims on an output directory, None where nothing can be claimed there."""
    claims = Claims(output)
    reason = claims.obstacle()
    if reason is not None:
        log.info("%s: %s; several workers there need to be told their share (--shard i/n)", output, reason)
    return claims if reason is None else None


@contextlib.contextmanager
def present(directory: str) -> Iterator[None]:
    """Says that this process works in `directory`, until the block ends or the process dies; any number may.

    Waits while another process has the directory alone. Nothing happens on an object store or without locks.
    """
    with contextlib.ExitStack() as stack:
        if not storage.is_remote(directory):
            with contextlib.suppress(OSError):
                fcntl.flock(_open_directory(directory, stack), fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def alone(directory: str) -> Iterator[bool]:
    """Yields False where a living process is `present` in `directory`; else none can become so until the block ends.

    Most network filesystems keep the locks of directories on the host: processes of other hosts are not seen there. On
    an object store, without locks, or where there is no such directory, it is True and keeps nobody out.
    """
    with contextlib.ExitStack() as stack:
        free = True
        if not storage.is_remote(directory):
            try:
                fcntl.flock(_open_directory(directory, stack), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            except OSError:
                pass
        yield free


def _open_directory(directory: str, stack: contextlib.ExitStack) -> int:
    descriptor = os.open(directory or ".", os.O_RDONLY)
    stack.callback(os.close, descriptor)
    return descriptor
