"""What a report is made from: the outputs under a folder, whose runs they are, and what the pages ask of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from qurating_jax.reporting.artifacts import Artifact, Notes, Unfinished, read_json, read_table
from qurating_jax.reporting.blocks import Note
from qurating_jax.reporting.values import at, mappings

if TYPE_CHECKING:
    import pyarrow as pa

    from qurating_jax.reporting.annotated import Annotated

_Users = tuple[tuple[str, ...], str]  # titles of the experiments that use an output, and their step

STEPS = "steps/"  # where `qurating run` keeps the outputs that its records name


@dataclass(frozen=True)
class Settings:
    """How much a report shows.

    Attributes:
        with_texts: False leaves out every text and id of a document.
        max_documents: of the explorer.
        max_pairs: of the explorer.
        seed: of the samples.
    """

    with_texts: bool = True
    max_documents: int = 2000
    max_pairs: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class RunOf:
    """A run of an experiment with a seed: which output is which step of it (step -> folder under the run)."""

    experiment: str
    title: str
    seed: int
    steps: Mapping[str, str]


@dataclass(frozen=True)
class Group:
    """Outputs of one stage that are shown as one: those of an experiment's seeds, or a single one."""

    label: str
    artifacts: tuple[Artifact, ...]


@dataclass(frozen=True)
class Evidence:
    """All that a report is made from.

    Attributes:
        directory: the folder, as the user named it.
        artifacts: its finished outputs.
        unfinished: what else stands there.
        runs: the runs that the outputs belong to; none where `qurating run` was not used.
        comparison: what `experiments.comparing.compare` says of the runs, None where there is nothing to compare.
        not_compared: why not, in words; empty where it is or where there is no more than one.
        costs: by folder: `seconds`, `cpu_seconds`, `device`, `cores` of the process that finished it, where known.
        settings: how much is shown.
    """

    directory: str
    artifacts: Sequence[Artifact]
    unfinished: Sequence[Unfinished] = ()
    runs: Sequence[RunOf] = ()
    comparison: Mapping[str, Any] | None = None
    not_compared: str = ""
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Settings = Settings()

    def label(self, artifact: Artifact) -> str:
        """What an output is called where there is not more than one of its kind in a run: its step, or its folder."""
        found = self.groups(artifact.stage)
        return next((of.label for of in found if artifact in of.artifacts and len(of.artifacts) == 1), artifact.name)

    @cached_property
    def shown(self) -> list[Artifact]:
        """The outputs that the pages are about: without those of `qurating run` that no record names any more."""
        used = {folder for run in self.runs for folder in run.steps.values()}
        return [of for of in self.artifacts if not (used and of.name.startswith(STEPS) and of.name not in used)]

    @cached_property
    def left_over(self) -> list[Artifact]:
        """The others."""
        shown = {artifact.name for artifact in self.shown}
        return [artifact for artifact in self.artifacts if artifact.name not in shown]

    def of(self, *stages: str) -> list[Artifact]:
        """The outputs of some stages."""
        return [artifact for artifact in self.shown if artifact.stage in stages]

    @cached_property
    def titles(self) -> dict[str, str]:
        """Experiment -> what it is called: its title, with its name where another one is called the same.

        Without records the evaluations that are compared are called by what their folders' names do not share.
        """
        found = {run.experiment: run.title or run.experiment for run in self.runs}
        if not self.runs:
            found = _told_apart([name for name, _ in mappings(at(self.comparison, "experiments"))])
        shared = {title for title in found.values() if list(found.values()).count(title) > 1}
        return {name: f"{title} ({name})" if title in shared else title for name, title in found.items()}

    def called(self, name: str) -> str:
        """What an experiment is called; another name as it is."""
        return self.titles.get(name, name)

    def groups(self, *stages: str) -> list[Group]:
        """The outputs of some stages, seeds of an experiment together, in the order of their first ones."""
        members: dict[_Users, list[tuple[int, Artifact]]] = {}
        for artifact in self.of(*stages):
            users = [(run, step) for run in self.runs for step, folder in run.steps.items() if folder == artifact.name]
            experiments = tuple(dict.fromkeys(self.called(run.experiment) for run, _ in users))
            steps = ", ".join(dict.fromkeys(step for _, step in users))
            key = (experiments, steps) if users else ((artifact.name,), "")
            members.setdefault(key, []).append((min((run.seed for run, _ in users), default=0), artifact))
        labels = _labels(list(members), len(self.titles))
        groups = [
            Group(labels[key], tuple(artifact for _, artifact in sorted(of, key=lambda one: (one[0], one[1].name))))
            for key, of in members.items()
        ]
        order = list(self.titles.values())
        return sorted(groups, key=lambda group: order.index(group.label) if group.label in order else len(order))

    def annotated(self, notes: Notes) -> "dict[str, Annotated]":
        """The rated documents as they are, by output, where no analysis is there to speak of them; read once."""
        from qurating_jax.reporting.annotated import read_annotated

        if not self.analysis and not self._annotated:
            for artifact in self.of("annotate"):
                self._annotated[self.label(artifact)] = read_annotated(
                    artifact, notes, max_documents=self.settings.max_documents, seed=self.settings.seed
                )
        return self._annotated

    @cached_property
    def _annotated(self) -> "dict[str, Annotated]":
        return {}

    @cached_property
    def analysis(self) -> "Analysis":
        """The tables of `qurating analyze`; empty where it has not run."""
        found = self.of("analyze")
        return Analysis(found[-1] if found else None)

    @cached_property
    def baseline(self) -> str:
        """The title of the experiment that the others are compared with; empty where nothing is compared."""
        return self.called(str(self.comparison["baseline"])) if self.comparison else ""

    @cached_property
    def experiments(self) -> list[tuple[str, dict[str, Any]]]:
        """The experiments of the comparison by their titles, the baseline first."""
        found = [(self.called(name), of) for name, of in mappings(at(self.comparison, "experiments"))]
        return sorted(found, key=lambda entry: entry[0] != self.baseline)


def _told_apart(names: list[str]) -> dict[str, str]:
    """Names without the words that all of them begin with: `eval_lm_a`, `eval_lm_b_c` are `a`, `b c`."""
    words = {name: name.replace("-", "_").split("_") for name in names}
    shared = 0
    if len(names) > 1:
        places = enumerate(zip_longest(*words.values()))
        shared = next((place for place, found in places if len(set(found)) > 1), len(words[names[0]]))
    if any(len(of) == shared for of in words.values()):
        return {name: name for name in names}
    return {name: " ".join(of[shared:]) if shared else name for name, of in words.items()}


_LISTS = ("terms", "selected", "chunk_lengths")
_NAMES = (
    "criterion", "domain", "covariate", "first", "second", "column", "group", "name", "kind", "part", "script", "id",
    "text", "excerpt", "by", "source", "within", "measure", "question", "verdict", "because", "judge", "strategy",
    "controlled", "scale", "first_text", "second_text", "first_id", "second_id", "first_domain", "second_domain",
)  # fmt: skip


def _is_of_its_kind(column: "pa.Field") -> bool:
    """False for a column that has another type than one of this name has in tables of an analysis."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_null(kind):
        return True
    if column.name in _LISTS:
        return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
    if column.name in _NAMES:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    return bool(column.name != "topic" or pa.types.is_integer(kind))


class Analysis:
    """The tables of an output of `qurating analyze` as rows, each read once; what cannot be read is noted."""

    def __init__(self, artifact: Artifact | None) -> None:
        self.artifact = artifact
        self.notes: Notes = []
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def __bool__(self) -> bool:
        return self.artifact is not None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`analysis.json`."""
        return {} if self.artifact is None else read_json(self.artifact, "analysis.json", self.notes)

    def rows(self, name: str, *columns: str) -> list[dict[str, Any]]:
        """The rows of a table that has these columns; none where it was not written or is not as expected."""
        if self.artifact is None:
            return []
        if name not in self._rows:
            table = read_table(self.artifact, f"tables/{name}.parquet", columns, self.notes)
            wrong = [] if table is None else [of.name for of in table.schema if not _is_of_its_kind(of)]
            if wrong:
                self.notes.append(f"{self.place(name)} is left out: of another type than expected: {', '.join(wrong)}.")
            self._rows[name] = [] if table is None or wrong else table.to_pylist()
        rows = self._rows[name]
        lacking = [column for column in columns if rows and column not in rows[0]]  # another page asked for less
        if lacking:
            self.notes.append(f"{self.place(name)} is left out: it has no column {', '.join(lacking)}.")
        return [] if lacking else rows

    def place(self, name: str) -> str:
        """Where a reader finds all of a table."""
        return f"tables/{name}.parquet of {self.artifact.name}" if self.artifact else ""


def _labels(keys: Sequence[_Users], num_experiments: int) -> dict[_Users, str]:
    """What stands for the outputs of (experiments, steps): the experiment, or the step where experiments share it."""
    labels: dict[_Users, str] = {}
    for users, step in keys:
        name = ", ".join(users)
        several = sum(others == users for others, _ in keys) > 1
        label = step if step and len(users) > 1 else f"{name}: {step}" if step and several else name
        if label in labels.values():
            label = f"{step} of {name}" if step else name
        labels[users, step] = label if num_experiments else name
    return labels


def missing(what: str, command: str = "") -> Note:
    """A note that something is not there, with the command that makes it."""
    return Note(f"{what} `{command}` makes it." if command else what, "missing")
