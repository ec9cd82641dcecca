"""What is known of a step's runs beside its output: what it was started on, and how long it took.

`starts/NAME.json` is written before a step is started and says what it reads, so that a change is seen while the step
is unfinished as well. `records/NAME.json` is written when it has ended well.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qurating_jax.experiments.running.external import Digest
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

RECORDS, STARTS = "records", "starts"
SCHEMA_VERSION = 1

_TYPES: dict[str, type | tuple[type, ...]] = {
    "stage": str, "key": str, "manifest": str, "replaces": str, "device": str, "cores": int, "num_devices": int,
    "seconds": (int, float), "cpu_seconds": (int, float), "resumed": bool,
}  # fmt: skip
_MAY_BE_NULL = ("replaces", "cpu_seconds", "device", "cores", "num_devices")


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What a step reads.

    Attributes:
        reads: digest of the manifest of every step that it reads, by directory below the output of the experiments;
            None where that is unfinished.
        external: digests of everything else, by path.
    """

    reads: Mapping[str, str | None]
    external: Mapping[str, Digest]

    def difference(self, now: "Reads") -> str:
        """What has changed since; what is not known now does not count. Empty where nothing has."""
        changed = [
            f"{directory} was made anew"
            for directory, digest in now.reads.items()
            if digest is not None and digest != self.reads.get(directory)
        ]
        changed += [
            f"{path} was {_say(self.external.get(path))}, now {_say(digest)}"
            for path, digest in now.external.items()
            if digest != self.external.get(path)
        ]
        return "; ".join(changed)


@dataclass(frozen=True, kw_only=True)
class Start(Reads):
    """What a step was started on, and what it was to replace.

    Attributes:
        replaces: digest of the run that stood in its directory and was to be made anew; None where there was none.
    """

    replaces: str | None


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A step that has ended well.

    Attributes:
        stage: of the step.
        key: of its node.
        reads, external: as of `Reads`.
        manifest: digest of the manifest that it left.
        seconds: wall time of the process that finished it.
        cpu_seconds: of that process and those that it waited for; None where a launcher ran it elsewhere.
        resumed: True where that process went on with what another one had begun.
        device: "cpu", or the kind of accelerator; None where a launcher ran it elsewhere.
        cores: CPU cores that it could use; None likewise.
        num_devices: accelerators, or 1; None likewise.
    """

    stage: str
    key: str
    reads: Mapping[str, str | None]
    external: Mapping[str, Digest]
    manifest: str
    seconds: float
    cpu_seconds: float | None
    resumed: bool
    device: str | None
    cores: int | None
    num_devices: int | None


def write_start(output: str, name: str, start: Start) -> None:
    """Says what a step is started on, under the output of the experiments."""
    storage.write_json(_path(output, STARTS, name), {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(start)})


def write_step(output: str, name: str, record: StepRecord) -> None:
    """Writes the record of a step."""
    storage.write_json(_path(output, RECORDS, name), {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(record)})


def read_start(output: str, name: str) -> Start | None:
    """What a step was started on; None where nobody wrote it down."""
    document = _read(_path(output, STARTS, name), Start)
    return None if document is None else Start(**document)


def read_step(output: str, name: str) -> StepRecord | None:
    """The record of a step; None where there is none that can be read."""
    document = _read(_path(output, RECORDS, name), StepRecord)
    return None if document is None else StepRecord(**document)


def _path(output: str, folder: str, name: str) -> str:
    return storage.join(output, folder, f"{name}.json")


def _read(path: str, kind: type) -> dict[str, Any] | None:
    """A record without its version; None where it is missing, broken, or of another version: it can be made again."""
    if not storage.exists(path):
        return None
    try:
        document = storage.read_json(path)
    except UserError:
        return None
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(document, dict) or document.pop("schema_version", None) != SCHEMA_VERSION:
        return None
    return document if set(document) == names and all(map(_is_sound, names, map(document.get, names))) else None


def _is_sound(name: str, value: Any) -> bool:
    """True where the value of a field is of the type that it is written as."""
    if name == "reads":
        return isinstance(value, dict) and all(digest is None or isinstance(digest, str) for digest in value.values())
    if name == "external":
        return isinstance(value, dict) and all(digest is None or isinstance(digest, dict) for digest in value.values())
    if value is None:
        return name in _MAY_BE_NULL
    return isinstance(value, _TYPES[name]) and (name == "resumed" or not isinstance(value, bool))


def _say(digest: Digest) -> str:
    parts = [part for value in (digest or {}).values() for part in (value if isinstance(value, list) else [value])]
    hashes = [part for part in parts if isinstance(part, str)]  # of a manifest, else of what files hold
    files = f"{digest['files']} file(s) " if digest and digest.get("files") else ""
    return f"{files}{hashes[0][:12]}" if hashes else "unknown"
