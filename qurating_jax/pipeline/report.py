"""Finished stages -> one HTML file to open first, and its short form on stdout; docs/report.md."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qurating_jax.config import option
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    from qurating_jax.experiments.records import RunRecord
    from qurating_jax.reporting.artifacts import Artifact
    from qurating_jax.reporting.evidence import Evidence

PAGE, SUMMARY = "report.html", "summary.txt"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating report`."""

    run: str = option("", "a stage output, a folder of them, or the output of `qurating run`", reads=True)
    title: str = option("", "title of the report [QuRating run: and the folder's name]")
    baseline: str | None = option(
        None, "what the models are compared with; null: `uniform` where it is, else the first"
    )
    no_text: bool = option(False, "leave out every text and id of a document")
    max_bytes: int = option(8_000_000, "size of the file; texts and rows of the explorers are left out for it")
    max_documents: int = option(2000, "documents in the explorer")
    max_pairs: int = option(1000, "judged pairs in the explorer")

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes {self.max_bytes} is to be at least 1")
        if min(self.max_documents, self.max_pairs) < 0:
            raise ValueError("max_documents and max_pairs are 0 or above")


def main(config: Config) -> dict[str, Any]:
    """Writes `report.html` and `summary.txt`, prints the summary, returns the counts."""
    from qurating_jax.reporting import html, text
    from qurating_jax.reporting.artifacts import find_artifacts
    from qurating_jax.reporting.collecting import collect
    from qurating_jax.runtime import manifest, storage

    require(config, "run", *([] if config.dry_run else ["output"]))
    if not storage.is_dir(config.run):
        raise UserError(f"{config.run}: no such directory (--run)")
    artifacts, unfinished = find_artifacts(config.run)
    if not artifacts:
        raise UserError(f"{config.run}: holds no finished stage output; run the stages first")
    if config.dry_run:
        for artifact in artifacts:
            print(f"{artifact.name}: {artifact.stage}")
        for broken in unfinished:
            print(f"{broken.name}: left out, {broken.why.removeprefix(f'{broken.name}: ')}")
        print(f"would report {len(artifacts)} outputs{f' into {config.output}' if config.output else ''}")
        return {
            "stages": {artifact.name: artifact.stage for artifact in artifacts},
            "unfinished": [of.name for of in unfinished],
        }
    records = _records(config.run)
    inputs = {
        "artifacts": {of.name: manifest.sha256(storage.read_text(f"{of.path}/manifest.json")) for of in artifacts},
        "unfinished": [of.name for of in unfinished],
        "runs": {record.name: dict(record.steps) for record in records},
        "beside": _beside(artifacts),
    }
    with open_run(config, "report", inputs) as run:
        if run.state == "finished":
            _print(storage.read_text(run.path(SUMMARY)))
            return run.counts
        evidence = _evidence(config, artifacts, unfinished, records)
        report = collect(evidence, config.title or f"QuRating run: {_folder(config.run)}")
        page = html.render(report, with_texts=not config.no_text, max_bytes=config.max_bytes)
        storage.write_text(run.path(PAGE), page)
        summary = text.summary(report) + f"\nThe whole report: {run.path(PAGE)}\n"
        storage.write_text(run.path(SUMMARY), summary)
        counts = {
            "num_artifacts": len(artifacts),
            "num_unfinished": len(unfinished),
            "num_pages": len(report.pages),
            "num_bytes": len(page.encode()),
        }
        manifest.finish(run, counts)
        _print(summary)
        return counts


def _folder(path: str) -> str:
    """The last name of a path; `.` and `..` by where they lead to."""
    import os

    name = path.rstrip("/").rsplit("/", 1)[-1]
    return os.path.basename(os.path.abspath(path)) if name in ("", ".", "..") else name


def _records(directory: str) -> "list[RunRecord]":
    """The runs of `qurating run`; none where it made nothing here. One that cannot be read stands for itself."""
    from qurating_jax.experiments.records import RUNS, find_runs, read_run
    from qurating_jax.runtime import storage

    try:
        return find_runs([directory])
    except UserError as error:
        records, root = [], storage.join(directory, RUNS)
        for name in storage.list_dir(root):
            for file in storage.list_dir(storage.join(root, name)):
                try:
                    records.append(read_run(storage.join(root, name, file)))
                except UserError as broken:
                    log.warning("report: left out: %s", broken)
        if storage.list_dir(root) and not records:
            log.warning("report: no run record: %s", error)
        return records


def _beside(artifacts: "Sequence[Artifact]") -> dict[str, Any]:
    """Digests of what a report reads and no manifest speaks of: the audit of a judge is made after its judgments."""
    from qurating_jax.runtime import storage

    audits = {of.name: storage.join(of.path, "audit.json") for of in artifacts if of.stage == "judge run"}
    return {name: storage.digest(path) for name, path in audits.items() if storage.exists(path)}


def _evidence(
    config: Config, artifacts: "Sequence[Artifact]", unfinished: Sequence[Any], records: "Sequence[RunRecord]"
) -> "Evidence":
    """What the report is made from: the outputs, whose they are, how the models compare, what they took."""
    from qurating_jax.experiments.step_records import read_step
    from qurating_jax.reporting.evidence import STEPS, Evidence, RunOf, Settings

    costs: dict[str, Mapping[str, Any]] = {}
    for artifact in artifacts:
        if artifact.name.startswith(STEPS):
            step = read_step(config.run, artifact.name.removeprefix(STEPS))
            costs |= {artifact.name: vars(step)} if step is not None else {}
    comparison, why = _compare(config, artifacts, records)
    return Evidence(
        directory=config.run,
        artifacts=artifacts,
        unfinished=unfinished,
        runs=[RunOf(record.experiment, record.title, record.seed, record.steps) for record in records],
        comparison=comparison,
        not_compared=why,
        costs=costs,
        settings=Settings(
            with_texts=not config.no_text,
            max_documents=config.max_documents,
            max_pairs=config.max_pairs,
            seed=config.seed,
        ),
    )


def _compare(
    config: Config, artifacts: "Sequence[Artifact]", records: "Sequence[RunRecord]"
) -> tuple[dict[str, Any] | None, str]:
    """The comparison of the runs, or of evaluations of one model each that stand side by side; or why there is none."""
    from qurating_jax.experiments.comparing.compare import compare
    from qurating_jax.experiments.records import RunRecord

    evaluations = [of.name for of in artifacts if of.stage == "eval-lm"]
    if not records:
        records = [
            RunRecord(experiment=name, seed=0, scale="", file="", title="", published="", steps={"eval_lm": name},
                      goal=(), output=config.run)
            for name in evaluations
        ]  # fmt: skip
    if len({record.experiment for record in records}) < 2:
        return None, ""
    baseline = config.baseline
    if baseline is None:
        named = [record.experiment for record in records if record.experiment.endswith("uniform")]
        baseline = named[0] if len(set(named)) == 1 else None
    try:
        return compare(records, baseline=baseline), ""
    except UserError as error:  # evaluated in ways that do not compare, or files that are broken
        if config.baseline is not None:
            raise
        log.warning("report: not compared: %s", error)
        return None, str(error)


def _print(text: str) -> None:
    """Prints what the terminal's encoding can show."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="")
