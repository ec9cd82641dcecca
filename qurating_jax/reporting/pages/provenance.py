"""How did all of this come about? Configs, versions, digests, times."""

import re
from collections.abc import Iterator
from typing import Any

from qurating_jax.reporting.artifacts import Artifact, Notes
from qurating_jax.reporting.blocks import Block, Cell, Note, Page, Table
from qurating_jax.reporting.evidence import Evidence
from qurating_jax.reporting.values import at, flat, mappings, number, number_at, plain, series, short, words
from qurating_jax.runtime import manifest

MOST_STAGES = 200
_MOST_INPUTS = 4
_MOST_NAMES = 10
_DIGEST_CHARACTERS = 16
_USER = re.compile(r"://[^/@\s]*@")  # a name or key inside an address
_REVISION = "git revision"


def page(evidence: Evidence, notes: Notes) -> Page:
    """Every output, where versions differ, and the options of every stage."""
    blocks: list[Block] = [*_differing(evidence), _stages(evidence), *_versions(evidence), *_settings(evidence)]
    if evidence.left_over:
        names = [of.name for of in evidence.left_over[:_MOST_NAMES]]
        more = " ..." if len(evidence.left_over) > _MOST_NAMES else "."
        count = len(evidence.left_over)
        told = f"{count:,} outputs belong to no run any more and are in no figure: {', '.join(names)}{more}"
        blocks.insert(0, Note(told))
    blocks.insert(0, _place(evidence))
    lead = "How did all of this come about, and could it be made again?"
    return Page("provenance", "Provenance", lead, tuple(blocks))


def _place(evidence: Evidence) -> Note:
    """Where it stands, and from which revisions of the code it came."""
    revisions = dict.fromkeys(
        _short_revision(str(of.manifest.get("git_revision") or "unknown")) for of in evidence.shown
    )
    return Note(
        f"All of this was read from {evidence.directory}, where {len(evidence.shown):,} finished outputs of stages "
        f"stand, made by code of revision {series(list(revisions))}."
    )


def _short_revision(revision: str) -> str:
    return revision[:12] + ("-dirty" if revision.endswith("-dirty") else "")


def seconds(evidence: Evidence) -> float | None:
    """Wall time of all stages of which it is known."""
    known = [number_at(evidence.costs, of.name, "seconds") for of in evidence.shown]
    found = [value for value in known if value is not None]
    return sum(found) if found else None


def devices(evidence: Evidence) -> list[str]:
    """What the stages ran on, each with its cores where that is known."""
    found = dict.fromkeys(
        (str(plain(at(cost, "device"))), number_at(cost, "cores"))
        for of in evidence.shown
        if (cost := evidence.costs.get(of.name)) and at(cost, "device")
    )
    return [
        f"{short(cores)} {device.upper() if device == 'cpu' else device} cores" if cores and "cpu" in device.lower()
        else device.upper() if device == "cpu" else device
        for device, cores in found
    ]  # fmt: skip


def _stages(evidence: Evidence) -> Table:
    rows = tuple(
        (
            of.name,
            of.stage,
            _users(evidence, of),
            counts(of),
            number_at(evidence.costs, of.name, "seconds"),
            number_at(evidence.costs, of.name, "cpu_seconds"),
            plain(at(evidence.costs.get(of.name), "device")),
            number(of.counts.get("cost")),
            manifest.digest(of.manifest)[:_DIGEST_CHARACTERS],
            _inputs(of),
        )
        for of in evidence.shown[:MOST_STAGES]
    )
    headings = ("folder", "stage", "of", "counts", "seconds", "CPU seconds", "device", "cost", "digest", "reads")
    kept = [
        place for place, name in enumerate(headings) if place < 2 or any(row[place] not in (None, "") for row in rows)
    ]
    rest = len(evidence.shown) - MOST_STAGES
    return Table(
        "Stages",
        tuple(headings[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in rows),
        note=f"{rest:,} more are not listed." if rest > 0 else "Digests are cut; the manifests hold them whole.",
    )


def _users(evidence: Evidence, artifact: Artifact) -> str:
    """The runs that an output is part of; where several experiments share it, how many do."""
    users = [run for run in evidence.runs if artifact.name in run.steps.values()]
    experiments = list(dict.fromkeys(run.experiment for run in users))
    if len(experiments) > 1:
        return f"{len(experiments)} experiments"
    return ", ".join(f"{evidence.called(run.experiment)}, seed {run.seed}" for run in users)


def counts(artifact: Artifact) -> str:
    """What a stage counted, in a line."""
    parts = (
        (words(name.replace(" num_", " ")), value)
        for name, value in flat(artifact.counts)
        if value is not None and not isinstance(value, list)
    )
    return ", ".join(f"{name} {_short(value)}" for name, value in parts)


def _short(value: Any) -> str:
    known = number(value)
    return short(known) if known is not None else str(plain(value))


def _inputs(artifact: Artifact) -> str:
    """Digests of what a stage read, cut."""
    found = [
        (name.removesuffix(" sha256"), value)
        for name, value in flat(at(artifact.manifest, "determined", "inputs") or {})
        if isinstance(value, str) and len(value) == 64
    ]
    rest = f" and {len(found) - _MOST_INPUTS} more" if len(found) > _MOST_INPUTS else ""
    return ", ".join(f"{words(name)} {value[:_DIGEST_CHARACTERS]}" for name, value in found[:_MOST_INPUTS]) + rest


def _made_with(artifact: Artifact) -> dict[str, str]:
    """Versions and git revision of what made an output."""
    versions = artifact.manifest.get("versions")
    found = {str(name): str(value) for name, value in versions.items()} if isinstance(versions, dict) else {}
    return {_REVISION: str(artifact.manifest.get("git_revision") or "unknown")} | found


def _differing(evidence: Evidence) -> Iterator[Block]:
    made = [_made_with(of) for of in evidence.shown]
    names = dict.fromkeys(name for of in made for name in of)
    differing = [name for name in names if len({of.get(name) for of in made}) > 1]
    if differing:
        yield Note(
            f"Not all outputs were made with the same versions, see the table below: {', '.join(differing)}.",
            "caution",
        )


def _versions(evidence: Evidence) -> Iterator[Table]:
    made: dict[str, dict[str, list[str]]] = {}
    for artifact in evidence.shown:
        for name, value in _made_with(artifact).items():
            made.setdefault(name, {}).setdefault(value, []).append(artifact.stage)
    rows = tuple(
        (name, value, "all" if len(of) == 1 else ", ".join(dict.fromkeys(stages)))
        for name, of in made.items()
        for value, stages in of.items()
    )
    if rows:
        yield Table("Versions", ("of", "version", "stages"), rows)


def _settings(evidence: Evidence) -> Iterator[Table]:
    """The options of every stage; of several outputs all values that an option has."""
    for stage in dict.fromkeys(of.stage for of in evidence.shown):
        artifacts = evidence.of(stage)
        options: dict[str, dict[str, None]] = {}
        for artifact in artifacts:
            for name, value in _leaves(artifact.config):
                if value is not None:
                    options.setdefault(name, {})[_USER.sub("://", str(value))] = None
        rows: tuple[tuple[Cell, ...], ...] = tuple((name, "; ".join(values)) for name, values in options.items())
        if rows:
            count = f" ({len(artifacts)} outputs)" if len(artifacts) > 1 else ""
            yield Table(f"Options of {stage}{count}", ("option", "value"), rows)


def _leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Cell]]:
    inner = dict(mappings(config))
    for name, value in config.items():
        if inner.get(name):
            yield from _leaves(inner[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", plain(value)
