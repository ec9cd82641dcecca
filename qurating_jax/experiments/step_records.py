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


def write_start(output: str, name: str, reads: Reads) -> None:
    """Says what a step is started on, under the output of the experiments."""
    storage.write_json(_path(output, STARTS, name), {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(reads)})


def write_step(output: str, name: str, record: StepRecord) -> None:
    """Writes the record of a step."""
    storage.write_json(_path(output, RECORDS, name), {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(record)})


def read_start(output: str, name: str) -> Reads | None:
    """What a step was started on; None where nobody wrote it down."""
    document = _read(_path(output, STARTS, name), Reads)
    return None if document is None else Reads(**document)


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
    tables = all(isinstance(document.get(name), dict) for name in ("reads", "external"))
    return document if tables and set(document) == names else None


def _say(digest: Digest) -> str:
    if digest is None:
        return "unknown"
    *_, content = digest.values()
    files = f"{digest['files']} file(s) " if digest.get("files") else ""
    return f"{files}{(digest.get('manifests') or [content])[0][:12]}"
