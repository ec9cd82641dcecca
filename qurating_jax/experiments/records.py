"""Run records, `OUT/runs/EXPERIMENT/seedN.json`: which steps a run of an experiment is made of, and where they are."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

RUNS = "runs"
SCHEMA_VERSION = 1

_FILE = re.compile(r"seed([0-9]+)\.json")
_NAME = re.compile(r"[^./\\][^/\\]*")  # one part of a path, and not hidden
_KINDS: dict[str, type] = {
    "experiment": str,
    "seed": int,
    "scale": str,
    "file": str,
    "title": str,
    "published": str,
    "steps": dict,
    "goal": list,
}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run: an experiment with a seed.

    Attributes:
        experiment: its name.
        seed: 0 or above.
        scale: name of the scale; empty where none was given.
        file: the experiment file.
        title: what a reader is told of the experiment.
        published: hub id of weights that somebody published of it; empty where there are none.
        steps: step -> its directory, relative to the output of the experiments.
        goal: the steps that were wanted.
        output: where the record was found, the directory that `steps` is relative to; it is not written.
    """

    experiment: str
    seed: int
    scale: str
    file: str
    title: str
    published: str
    steps: Mapping[str, str]
    goal: tuple[str, ...]
    output: str = ""

    @property
    def name(self) -> str:
        """`uniform-seed0`."""
        return f"{self.experiment}-seed{self.seed}"

    def directory(self, step: str) -> str:
        """Where a step's output stands, or will."""
        return storage.join(self.output, self.steps[step])


def is_name(name: str) -> bool:
    """True for what an experiment may be called: its records stand in a folder of this name."""
    return _NAME.fullmatch(name) is not None and name.isprintable()


def run_path(output: str, experiment: str, seed: int) -> str:
    """Where the record of a run stands."""
    return storage.join(output, RUNS, experiment, f"seed{seed}.json")


def write_run(output: str, record: RunRecord) -> str:
    """Writes a record under the output of the experiments and returns its path.

    Raises:
        ValueError: a name that makes no path, a negative seed, or a step outside of the output.
    """
    if not is_name(record.experiment) or record.seed < 0:
        raise ValueError(f"no run record for experiment {record.experiment!r} with seed {record.seed}")
    for step, place in record.steps.items():
        if not _inside(place):
            raise ValueError(f"step {step}: {place!r} is not inside the output")
    path = run_path(output, record.experiment, record.seed)
    document = {
        "schema_version": SCHEMA_VERSION,
        "experiment": record.experiment,
        "title": record.title,
        "published": record.published,
        "scale": record.scale,
        "seed": record.seed,
        "file": record.file,
        "steps": dict(record.steps),
        "goal": list(record.goal),
    }
    storage.write_json(path, document)
    return path


def read_run(path: str) -> RunRecord:
    """Reads a record.

    Raises:
        UserError: no such file, not valid JSON, another schema, not a record of ours, or a step outside of the output.
    """
    document = storage.read_json(path)
    if not isinstance(document, dict) or "schema_version" not in document:
        raise UserError(f"{path}: not a run record of `qurating run`")
    if document["schema_version"] != SCHEMA_VERSION:
        found = document["schema_version"]
        raise UserError(f"{path}: run record of schema {found}, this version reads {SCHEMA_VERSION}")
    for key, kind in _KINDS.items():
        if not isinstance(document.get(key), kind) or isinstance(document.get(key), bool):
            raise UserError(f"{path}: not a run record of `qurating run` (`{key}` is missing or of another type)")
    steps, goal = document["steps"], document["goal"]
    if document["seed"] < 0 or not is_name(document["experiment"]):
        raise UserError(f"{path}: not a run record of `qurating run` (experiment or seed)")
    for step, place in steps.items():
        if not isinstance(place, str) or not _inside(place):
            raise UserError(f"{path}: step `{step}` is at {place!r}, which is not inside the output of the experiments")
    return RunRecord(
        experiment=document["experiment"],
        seed=document["seed"],
        scale=document["scale"],
        file=document["file"],
        title=document["title"],
        published=document["published"],
        steps=steps,
        goal=tuple(map(str, goal)),
        output=_output_of(path),
    )


def find_runs(places: Sequence[str]) -> list[RunRecord]:
    """The runs that records, or directories that hold them, name; in this order, seeds ascending within a directory.

    Args:
        places: records; the output of `qurating run`, its `runs`, or the folder of one experiment there. A record that
            is named twice counts once.

    Raises:
        UserError: a place without records, a broken record, or the same experiment and seed in two places.
    """
    found: dict[tuple[str, int], tuple[str, RunRecord]] = {}
    for place in places:
        paths = list(_records(place))
        if not paths:
            raise UserError(
                f"{place}: no run record here ({RUNS}/EXPERIMENT/seedN.json); name the output of `qurating run`"
            )
        for path in paths:
            record = read_run(path)
            before, _ = found.setdefault((record.experiment, record.seed), (path, record))
            if _same_place(before) != _same_place(path):
                raise UserError(
                    f"{record.experiment} with seed {record.seed} stands in {before} and in {path}; name one of them"
                )
    return [record for _, record in found.values()]


def _records(place: str) -> Iterator[str]:
    """Paths of the records that a place names."""
    place = place.rstrip("/") or place
    if place.endswith(".json") and not storage.is_dir(place):
        yield place
        return
    for root in (storage.join(place, RUNS), place):
        for name in ("", *storage.list_dir(root)):
            folder = storage.join(root, name) if name else root
            seeds = [int(match[1]) for entry in storage.list_dir(folder) if (match := _FILE.fullmatch(entry))]
            yield from (storage.join(folder, f"seed{seed}.json") for seed in sorted(seeds))


def _output_of(path: str) -> str:
    """The directory three levels above a record."""
    folder = path.rpartition("/")[0]
    if storage.is_remote(path):
        return folder.rpartition("/")[0].rpartition("/")[0]
    return os.path.normpath(os.path.join(folder or ".", "..", ".."))


def _inside(place: str) -> bool:
    return not storage.is_remote(place) and all(part not in ("", ".", "..") for part in place.split("/"))


def _same_place(path: str) -> str:
    return path if storage.is_remote(path) else os.path.realpath(path)
