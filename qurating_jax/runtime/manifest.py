"""The contract between stages: an output directory is an artifact once its `manifest.json` is there.

`begin` claims a directory for a run and says whether it is fresh, resumable or finished; `finish` writes the manifest
last, atomically. In between `run.json` holds the run's fingerprint, so that a directory of another run is never mixed
into this one. Several workers of one run may begin in the same directory, at the same time or later. No clock time is
recorded: equal runs leave equal manifests.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from qurating_jax.runtime import claims, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.logs import LOG, LOGS

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
RUN = "run.json"
CACHE = "cache"  # what any run may leave behind for the next one, under names that say what it is
RATER_STAGES = ("train-rater", "combine-raters")

_PACKAGES = ("qurating-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pyarrow", "tensorstore",
             "tokenizers", "transformers")  # fmt: skip

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """A claimed output directory. `state`: "fresh", "resumed", or "finished" (then `counts` are the recorded ones).

    `determined` is the fingerprint (stage, config and inputs as far as they can change the result). `primary` is True
    in the one process of the run that writes files which all share.
    """

    output: str
    stage: str
    config: dict[str, Any]
    inputs: dict[str, Any]
    state: Literal["fresh", "resumed", "finished"]
    counts: dict[str, Any]
    determined: dict[str, Any]
    primary: bool = True

    def path(self, *parts: str) -> str:
        """A path inside the output directory."""
        return storage.join(self.output, *parts)


def begin(
    output: str,
    *,
    stage: str,
    config: Mapping[str, Any],
    identity: Mapping[str, Any],
    inputs: Mapping[str, Any],
    overwrite: bool,
) -> Run:
    """Claims `output` for a run; see `at_work` for the time of the work itself.

    Of several workers that begin the same run at the same time one gets "fresh" and the others "resumed"; of two
    different runs one is refused. (On an object store, and on a disk without hard links, two may both get "fresh".)

    Args:
        output: directory, local or remote.
        stage: the stage's name.
        config: the whole resolved config (recorded).
        identity: the part of the config that can change the result; with `inputs` it makes the fingerprint.
        inputs: digests of what the stage reads (see `input_digest`).
        overwrite: remove a run that does not fit instead of refusing.

    Raises:
        UserError: the directory holds another run, or files that no run of ours left; or, with `overwrite`, another
            process is at work in it.
    """
    determined = _determined(stage, identity, inputs)

    def run(state: Literal["fresh", "resumed", "finished"], counts: Mapping[str, Any]) -> Run:
        return Run(output, stage, dict(config), dict(inputs), state, dict(counts), determined)

    found, left = standing(output)
    if left:
        instead = "--overwrite does not remove it, empty it by hand" if overwrite else "choose another --output"
        raise UserError(f"{output}: not empty and not a run of ours ({left[0]} ...); {instead}")
    with contextlib.ExitStack() as stack:
        if found is not None and overwrite:
            if not stack.enter_context(claims.alone(output)):
                raise UserError(f"{output}: another process is at work here; --overwrite would take its files away")
            _remove_run(output)
            found = None
        if found is None:
            _make_directory(output)
            made = storage.create_json(
                storage.join(output, RUN), {"schema_version": SCHEMA_VERSION, "determined": determined}
            )
            found = _found(output)  # that of a worker who was faster, or who came at the same time where both may write
            if found is None:
                raise UserError(f"{output}: another process empties it; start again when that has ended")
            if made and found["determined"] == determined:
                return run("fresh", {})
    _refuse_another(output, found, determined)
    finished = "counts" in found
    log.info("%s: %s %s", stage, output, "is complete" if finished else "is unfinished: resuming")
    return run("finished" if finished else "resumed", found.get("counts", {}))


def standing(output: str) -> tuple[dict[str, Any] | None, list[str]]:
    """What stands in a directory.

    Returns:
        The manifest of a finished run, else the fingerprint of an unfinished one (without `counts`), else None; and
        where it is None, the names of files that no run of ours left.
    """
    # Listed first, read second: what another worker of ours had written by the time of the listing came after its
    # run.json, which is therefore found. The other way round its first files would look like somebody else's.
    left = [name for name in storage.list_dir(output) if name not in (LOG, LOGS, CACHE) and not _unborn(name)]
    found = _found(output)
    return found, left if found is None else []


def mismatch(document: Mapping[str, Any], *, stage: str, identity: Mapping[str, Any]) -> str:
    """How a run of this stage and config differs from the one in `document`, whatever both read; empty where not."""
    before = document["determined"]
    return "; ".join(_differences(before, _determined(stage, identity, before.get("inputs", {}))))


def digest(document: Mapping[str, Any]) -> str:
    """What identifies a finished artifact, by its manifest.

    Its `config` does not count: what of it determines the result stands in `determined`, the rest (output directory,
    worker counts) would make equal artifacts differ.
    """
    return sha256(json.dumps({**document, "config": None}, sort_keys=True))


def difference(run: Run, *, stage: str, identity: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """How a run of these would differ from `run`; empty where they are one and the same."""
    return "; ".join(_differences(run.determined, _determined(stage, identity, inputs)))


@contextlib.contextmanager
def at_work(run: Run) -> Iterator[None]:
    """While the block runs, `begin` with `overwrite` is refused to every process that sees this one's locks.

    Locks of a directory are seen by processes of the same host. On other hosts `verify` finds the harm.

    Raises:
        UserError: the run has been replaced since it began.
    """
    with claims.present(run.output):
        verify(run)
        yield


def verify(run: Run) -> None:
    """Costs one small read, so that a worker may do it before each file that it commits.

    Raises:
        UserError: the directory no longer holds this run: somebody replaced it (--overwrite) after this one began.
    """
    found = _read_if_there(run.path(RUN))
    if found is None or found["determined"] != run.determined:
        raise UserError(
            f"{run.output}: another run has replaced this one (--overwrite) or removed it; choose another --output"
        )


def withdraw(run: Run) -> None:
    """Gives up a claim that came to nothing: another run may begin here, and finds the cache. For fresh runs alone."""
    for name in storage.list_dir(run.output):
        if name not in (LOG, LOGS, CACHE, RUN):
            storage.remove_tree(run.path(name))
    storage.remove_tree(run.path(RUN))  # last: killed half-way, the directory is still known as ours


def finish(run: Run, counts: Mapping[str, Any]) -> None:
    """Writes the manifest: from here on the directory is a finished artifact. Only the primary process does.

    Temporary files that killed writers left directly in the directory are removed.

    Raises:
        UserError: another run has replaced this one.
    """
    if not run.primary:
        return
    verify(run)
    storage.remove_temporaries(run.output)
    document = storage.read_json(run.path(RUN))
    document |= {
        "stage": run.stage,
        "config": run.config,
        "counts": dict(counts),
        "versions": versions(),
        "git_revision": git_revision(),
    }
    storage.write_json(run.path(MANIFEST), document)


def reopen(directory: str) -> None:
    """Takes the manifest of a finished run away: what it was made of has changed, its command finishes it again."""
    storage.remove_tree(storage.join(directory, MANIFEST))


def read(directory: str, *, stages: Sequence[str] = ()) -> dict[str, Any]:
    """The manifest of a finished artifact.

    Raises:
        UserError: the artifact is unfinished, or was made by none of `stages`.
    """
    document = _read_if_there(storage.join(directory, MANIFEST))
    if document is None:
        unfinished = _read_if_there(storage.join(directory, RUN))
        if unfinished is not None:
            stage = unfinished["determined"]["stage"]
            raise UserError(
                f"{directory}: unfinished output of `qurating {stage}`; run that command again to complete it"
            )
        wanted = " or ".join(f"`qurating {stage}`" for stage in stages) or "a stage"
        raise UserError(f"{directory}: not an output of {wanted} (no {MANIFEST})")
    if document["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{directory}: manifest of schema {document['schema_version']}, this version reads {SCHEMA_VERSION}"
        )
    if stages and document["stage"] not in stages:
        raise UserError(
            f"{directory}: output of `qurating {document['stage']}`, expected one of `qurating {' | '.join(stages)}`"
        )
    return document


def is_artifact(directory: str) -> bool:
    """True where a finished or unfinished stage output stands (a foreign `manifest.json` does not make one)."""
    return any(_read_if_there(storage.join(directory, name)) is not None for name in (MANIFEST, RUN))


def exported(path: str, *stages: str) -> str:
    """The model inside a finished run: `rater/` (n-gram and combined raters) or `hf/`; other paths stay as they are.

    Raises:
        UserError: unfinished, made by another stage than `stages`, `convert` or `fetch`, or fetched and no model.
    """
    if not is_artifact(path):
        return path
    made_by = read(path, stages=(*stages, "convert", "fetch"))["stage"]
    own, foreign = storage.join(path, "rater"), storage.join(path, "hf")
    if made_by == "fetch" and not storage.is_dir(foreign):
        raise UserError(f"{path}: fetched data, not a model")
    return own if storage.is_dir(own) else foreign


def input_digest(patterns: Sequence[str], files: Sequence[str]) -> dict[str, Any]:
    """What identifies an input: the manifests of artifact directories (`digest`), size and edge hash of other files.

    Raises:
        UserError: a named directory, or one that holds a named file, is (or lies in) an unfinished artifact.
    """
    manifests = {}
    places = {pattern.rstrip("/") for pattern in patterns if not any(sign in pattern for sign in "*?[")}
    parents = {_parent(file) for file in files}
    for place in sorted(places | parents | {_parent(path) for path in places | parents}):
        if place and is_artifact(place):
            document = read(place)
            if place in places:
                manifests[place] = digest(document)
    others = [file for file in files if not any(file.startswith(storage.join(root, "")) for root in manifests)]
    digests = [[Path(file).name, storage.digest(file)] for file in others]
    return {"manifests": sorted(manifests.values()), "files": len(others), "sha256": sha256(json.dumps(digests))}


def sha256(text: str) -> str:
    """Hex digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of what a result can depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The commit of the checkout this package runs from, `-dirty` where changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        ask = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _found(output: str) -> dict[str, Any] | None:
    """The manifest of a finished run, else the fingerprint of an unfinished one, else None."""
    return _read_if_there(storage.join(output, MANIFEST)) or _read_if_there(storage.join(output, RUN))


def _unborn(name: str) -> bool:
    """True for a `run.json` that a worker has not finished to write: it may be the first file of a directory."""
    return name.startswith(RUN) and storage.is_temporary(name)


def _refuse_another(output: str, found: Mapping[str, Any], determined: Mapping[str, Any]) -> None:
    if found["determined"] != determined or found["schema_version"] != SCHEMA_VERSION:
        difference = "; ".join(_differences(found["determined"], determined)) or "written by another version"
        raise UserError(
            f"{output}: holds another run ({difference}); choose another --output, or --overwrite to replace it"
        )


def _read_if_there(path: str) -> dict[str, Any] | None:
    """The document at `path`, None where there is none or it is not one of ours."""
    if not storage.exists(path) or storage.is_dir(path):
        return None
    with storage.open_read(path) as stream:
        content = stream.read()
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    ours = isinstance(document, dict) and isinstance(document.get("determined"), dict) and "schema_version" in document
    return document if ours else None


def _parent(path: str) -> str:
    """The directory of a path, without going above a scheme's root; empty for the working directory."""
    head, slash, _ = path.rpartition("/")
    return "" if head.endswith(("/", ":")) else head or slash


def _make_directory(output: str) -> None:
    try:
        storage.make_dirs(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be made an output directory ({error.strerror})") from None


def _as_json(value: Any) -> Any:
    """`value` as it comes back from a file, so that a tuple equals the list it was written as."""
    return json.loads(json.dumps(value))


# Where things lie does not determine a result: inputs are known by their digests.
_PLACES = ("output",)


def _without_places(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key not in _PLACES}


def _determined(stage: str, identity: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return _as_json({"stage": stage, "config": _without_places(identity), "inputs": inputs})


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            text for key in keys for text in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"{path} was {_short(old)}, now {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _remove_run(output: str) -> None:
    """Removes a run of ours and everything beside it."""
    # Killed half-way, the directory is neither a finished artifact nor resumable, and still known as ours.
    document = {"schema_version": SCHEMA_VERSION, "determined": {"stage": "unknown", "being_replaced": True}}
    storage.write_json(storage.join(output, RUN), document)
    names = storage.list_dir(output)
    for name in sorted(names, key=lambda name: (name == RUN, name != MANIFEST)):
        storage.remove_tree(storage.join(output, name))
