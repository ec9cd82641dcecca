"""What an output folder holds that an analysis reads: of `qurating run`, or with one stage's output per directory."""

from dataclasses import dataclass, field

from qurating_jax.experiments.records import RUNS, find_runs
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError

ANNOTATE, SELECT, JUDGE, RATER = "annotate", "select", "judge run", "train-rater"


@dataclass(eq=False)
class RunOutputs:
    """Directories of finished stages.

    Attributes:
        annotate: rated outputs of annotate that no other one was made of.
        selections: by name: of `qurating run` the experiment (its least seed), else the directory.
        judgments: outputs of judge run.
        raters: outputs of train-rater.
    """

    annotate: list[str] = field(default_factory=list)
    selections: dict[str, str] = field(default_factory=dict)
    judgments: list[str] = field(default_factory=list)
    raters: list[str] = field(default_factory=list)


def find_outputs(place: str) -> RunOutputs:
    """Looks through the run records of an output of `qurating run`, or through the directories of a folder.

    Unfinished outputs, and those of other stages, are passed over.

    Raises:
        UserError: no such folder, or nothing in it that was made by `qurating annotate`.
    """
    if not storage.is_dir(place):
        raise UserError(f"{place}: no such directory (--run)")
    named: dict[str, str] = {}  # directory -> name of a selection
    if storage.is_dir(storage.join(place, RUNS)):
        for record in sorted(find_runs([place]), key=lambda record: (record.experiment, record.seed)):
            if record.experiment not in named.values():
                named |= {record.directory(step): record.experiment for step in record.steps}
    else:
        named = {storage.join(place, name): name for name in storage.list_dir(place)}
    found = RunOutputs()
    for directory, name in named.items():
        stage = _stage_of(directory)
        if stage == SELECT:
            found.selections[name] = directory
        for wanted, kept in ((ANNOTATE, found.annotate), (JUDGE, found.judgments), (RATER, found.raters)):
            if stage == wanted:
                kept.append(directory)
    if not found.annotate:
        raise UserError(f"{place}: holds no finished output of `qurating annotate`; name rated documents with --input")
    found.annotate = _last([directory for directory in found.annotate if _has_ratings(directory)] or found.annotate)
    return found


def _stage_of(directory: str) -> str:
    """The stage of a finished output; empty for anything else."""
    try:
        return str(manifest.read(directory)["stage"]) if manifest.is_artifact(directory) else ""
    except UserError:
        return ""


def _has_ratings(directory: str) -> bool:
    """False where annotate was given language models alone: log-likelihoods, as perplexity filtering reads them."""
    config = manifest.read(directory)["config"]
    return bool(config.get("rater")) or not config.get("language_model")


def _last(directories: list[str]) -> list[str]:
    """Outputs of annotate that no other one here read: ratings of several raters are added one after another."""
    read = {
        str(path).rstrip("/").rpartition("/")[2]
        for directory in directories
        for path in manifest.read(directory)["config"]["input"]
    }
    return [directory for directory in directories if directory.rpartition("/")[2] not in read] or directories
