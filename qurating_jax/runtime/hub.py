"""Repositories of the Hugging Face Hub: what they hold at a commit, and the bytes of a file from any offset on.

`huggingface_hub` knows where the hub is (`HF_ENDPOINT`), the token and the protocol. Its own downloads are not used: in
2.4 they begin an unfinished file anew in every process (its name is random), and they compare sizes, no checksum.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from qurating_jax.runtime.downloads import RemoteFile
from qurating_jax.runtime.errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")

_RETRIES = 5  # in a row without a byte
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 300.0
_BUSY = (408, 429, 500, 502, 503, 504)
_RESET = re.compile(r"\bt=(\d+)")  # in a header `RateLimit: "api";r=0;t=55`

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repository:
    """A repository: `owner/name`, and its kind."""

    name: str
    type: Literal["model", "dataset"]


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit (None: a mirror that does not say)."""

    commit: str | None
    files: tuple[RemoteFile, ...]


class _Busy(Exception):
    """The hub asks to come again; `seconds` as its headers say, or 0."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(f"it answers {status}")
        after, reset = headers.get("Retry-After", ""), _RESET.search(headers.get("RateLimit", ""))
        self.seconds = float(after) if after.isdecimal() else float(reset[1]) if reset else 0.0


def resolve(repository: Repository, revision: str) -> str:
    """The commit that a branch, tag or commit stands for now.

    Raises:
        UserError: no such repository or revision, no right to read it, no answer, or HF_HUB_OFFLINE is set.
    """
    api = _api(repository)

    def ask() -> Any:
        return api.repo_info(repository.name, revision=revision, repo_type=repository.type, timeout=_timeout()).sha

    commit = _asked(repository, revision, ask)
    if commit is None or not COMMIT.fullmatch(commit):
        raise UserError(f"{repository.name}: the hub names no commit for revision {revision}")
    return commit


def list_files(repository: Repository, commit: str) -> Listing:
    """All files at a commit, by name; errors as of `resolve`, and a listing without sizes and checksums."""
    from huggingface_hub.hf_api import RepoFile

    api = _api(repository)

    def ask() -> list[RemoteFile]:
        tree = api.list_repo_tree(repository.name, recursive=True, revision=commit, repo_type=repository.type)
        return [_remote_file(repository, entry) for entry in tree if isinstance(entry, RepoFile)]

    files = _asked(repository, commit, ask)
    return Listing(commit, tuple(sorted(files, key=lambda file: file.name)))


def read(repository: Repository, commit: str, file: RemoteFile, offset: int) -> Generator[bytes, None, None]:
    """The bytes of a file from `offset` on; a cut connection is taken up where it broke. Empty pieces while it waits.

    Raises:
        UserError: no right to read it, or no byte came in several attempts.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import httpx

    _api(repository)
    endpoint = _endpoint()
    url = hf_hub_url(repository.name, file.name, repo_type=repository.type, revision=commit, endpoint=endpoint)
    failures = 0
    while True:
        seconds = 0.0
        try:
            with _errors(repository, commit, passing=(httpx.TransportError, httpx.StreamError)):
                for piece in _body(url, offset):
                    yield piece
                    offset += len(piece)
                    failures = 0
            if offset >= file.size:
                return
            problem = "the connection was cut"
        except (httpx.TransportError, httpx.StreamError, _Busy) as error:
            problem = _one_line(error)
            seconds = error.seconds if isinstance(error, _Busy) else 0.0
        failures += 1
        if failures > _RETRIES:
            raise UserError(
                f"{repository.name}: {file.name}: stopped at byte {offset} of {file.size}: {problem}; "
                "the same command goes on there"
            )
        log.info("%s: %s at byte %d of %d; again", file.name, problem, offset, file.size)
        yield from _wait(_seconds(failures, seconds))


def _body(url: str, offset: int) -> Iterator[bytes]:
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    # Not compressed on the way: offsets count the file's own bytes.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    headers |= {"Range": f"bytes={offset}-"} if offset else {}
    with get_session().stream("GET", url, headers=headers, timeout=_timeout()) as response:
        if response.status_code in _BUSY:
            raise _Busy(response.status_code, response.headers)
        hf_raise_for_status(response)
        skipped = 0 if response.status_code == 206 else offset  # a server without ranges sends the whole file
        for piece in response.iter_bytes():  # as they come: with a size of pieces, a cut would lose the last one
            kept = piece[skipped:]
            skipped -= len(piece) - len(kept)
            if kept:
                yield kept


def _asked(repository: Repository, revision: str, ask: Callable[[], T]) -> T:
    """What `ask` gives; a busy hub is asked again."""
    failures = 0
    while True:
        try:
            with _errors(repository, revision):
                return ask()
        except _Busy as busy:
            failures += 1
            if failures > _RETRIES:
                raise UserError(f"{repository.name}@{revision}: {_endpoint()} is busy: {busy}") from None
            log.info("%s: %s; again", repository.name, busy)
            time.sleep(_seconds(failures, busy.seconds))


def _seconds(failures: int, wanted: float) -> float:
    """How long to wait after so many failures in a row, where the hub wants so many seconds."""
    return min(max(wanted, _FIRST_WAIT_SECONDS * 2 ** (failures - 1)), _LONGEST_WAIT_SECONDS)


def _wait(seconds: float) -> Iterator[bytes]:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))
        yield b""


def _api(repository: Repository) -> Any:
    """The client, without its telemetry, warnings and bars."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when it is imported
    import huggingface_hub
    from huggingface_hub.utils import logging as client_logging

    client_logging.set_verbosity_error()
    if huggingface_hub.is_offline_mode():
        raise UserError(
            f"{repository.name}: HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or name a local copy by "
            "--mirror DIR"
        )
    return huggingface_hub.HfApi(endpoint=_endpoint())


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _timeout() -> float:
    from huggingface_hub import constants

    return constants.HF_HUB_DOWNLOAD_TIMEOUT


def _remote_file(repository: Repository, entry: Any) -> RemoteFile:
    sha256 = entry.lfs.sha256 if entry.lfs is not None else None
    checksum, form = (entry.blob_id, COMMIT) if sha256 is None else (sha256, SHA256)
    if not isinstance(entry.path, str):
        raise ValueError(f"a file called {entry.path!r:.80}")
    if not isinstance(entry.size, int) or entry.size < 0 or not form.fullmatch(checksum):
        raise UserError(
            f"{repository.name}: {_endpoint()} states no size and checksum of {entry.path!r}; get the files by "
            "`hf download --local-dir` and name that folder by --mirror"
        )
    return RemoteFile(entry.path, entry.size, sha256, None if sha256 is not None else checksum)


@contextlib.contextmanager
def _errors(repository: Repository, revision: str, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What the client raises, as one line, or `_Busy`. Its own texts are left out: they may hold signed addresses."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx

    name, endpoint = repository.name, _endpoint()
    page = f"{endpoint}/{'datasets/' if repository.type == 'dataset' else ''}{name}"
    refused = f"{name}: access is refused; accept its terms at {page} and set HF_TOKEN to a token of that account"
    try:
        yield
    except (UserError, _Busy):
        raise
    except errors.GatedRepoError:
        raise UserError(refused) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name}: has no revision {revision} on {endpoint}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{name}@{revision}: no such {repository.type} repository on {endpoint}, or a private one (then set "
            "HF_TOKEN to a token that may read it)"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in _BUSY:
            raise _Busy(status, error.response.headers) from None
        raise UserError(
            refused if status in (401, 403) else f"{name}@{revision}: {endpoint} answers {status}"
        ) from None
    except (httpx.HTTPError, OSError) as error:
        if isinstance(error, passing):
            raise
        raise UserError(f"{name}: {endpoint} does not answer ({_one_line(error)})") from None
    except httpx.InvalidURL:  # its text may hold a proxy's password
        raise UserError(
            f"{name}: an address is not well formed; look at HF_ENDPOINT, HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name}@{revision}: no answer of a hub from {endpoint} ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
