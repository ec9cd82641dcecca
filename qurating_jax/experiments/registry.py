"""The registry of published artifacts: names, repositories, licences and what their files hold.

A registry is a YAML file with `artifacts` (name -> `Artifact`) and `families` (name -> `Family`): near-equal artifacts,
of which only the end of the repository's name differs.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qurating_jax import config as configs
from qurating_jax.config import option
from qurating_jax.models.config import PRESETS
from qurating_jax.runtime.errors import UsageError

Kind = Literal["rater", "base_model", "language_model", "judgments", "rated_corpus"]

_SHIPPED = Path(__file__).with_name("registry.yaml")
_DATA_SETS = ("judgments", "rated_corpus")
_WORDS, _TEXT = "a list of words", "text (put it in quotes)"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One published artifact."""

    kind: Kind = option("language_model", "what it is")
    repo: str = option("", "hub id, owner/name")
    revision: str = option("main", "branch, tag or commit")
    licence: str = option("see the repository", "terms of use, where they are certain")
    columns: tuple[str, ...] = option((), "data sets: columns that are to be there")
    labels: tuple[str, ...] = option((), "raters: names of the scores, in order")
    architecture: str = option("", "models: the preset of its architecture, which plans go by")
    documents: int | None = option(None, "data sets: rows as published, rounded")
    tokens: int | None = option(None, "data sets: tokens of these as published, rounded")
    about: str = option("", "one line")
    url: str = option("", "where it is described")

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.repo) or ".." in self.repo:
            raise ValueError(f"repo {self.repo!r} is not a hub id (owner/name)")
        if not self.revision:
            raise ValueError("revision is empty; a branch, tag or commit is needed")
        if self.columns and self.repo_type == "model":
            raise ValueError(f"columns belong to data sets, and this is a {self.kind}")
        if self.labels and self.kind != "rater":
            raise ValueError(f"labels belong to raters, and this is a {self.kind}")
        if self.architecture and self.repo_type == "dataset":
            raise ValueError(f"an architecture belongs to models, and this is a {self.kind}")
        if self.architecture and self.architecture not in PRESETS:
            raise ValueError(f"architecture {self.architecture!r} is no preset; there are {', '.join(PRESETS)}")

    @property
    def repo_type(self) -> Literal["model", "dataset"]:
        """The hub's word for what it is."""
        return "dataset" if self.kind in _DATA_SETS else "model"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Artifacts `FAMILY/MEMBER` whose repositories are `repo` and the member's ending; the rest they share.

    Attributes:
        each: placeholder -> values; a member with `{placeholder}` in its name stands for one per value.
        members: name -> ending.
    """

    kind: Kind = "language_model"
    repo: str = ""
    revision: str = "main"
    licence: str = "see the repository"
    architecture: str = ""
    about: str = ""
    url: str = ""
    each: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    members: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _File:
    artifacts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    families: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def load(path: str | None = None) -> dict[str, Artifact]:
    """Reads a registry, by default the one that ships: name -> artifact, in the order of the file.

    Raises:
        UsageError: no such file, an unknown key, a wrong value, one name twice.
    """
    path = path or str(_SHIPPED)
    document = configs.load_yaml(path)
    for key, table in document.items():
        _require_table(table, f"{path}: `{key}`")
    file = configs.decode(_File, document, where=path)
    found: dict[str, Artifact] = {}
    for name, values in file.artifacts.items():
        found[name] = configs.decode(Artifact, values, where=f"{path}: {name}")
    for family, values in file.families.items():
        for name, artifact in _members(family, values, where=f"{path}: {family}").items():
            if name in found:
                raise UsageError(f"{path}: {name} stands twice")
            found[name] = artifact
    return found


def find(artifacts: Mapping[str, Artifact], name: str) -> Artifact:
    """The artifact of a name; raises `UsageError` with the closest names where there is none."""
    if name in artifacts:
        return artifacts[name]
    close = difflib.get_close_matches(name, artifacts, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "`qurating fetch` without a name lists them"
    raise UsageError(f"no published artifact `{name}`; {hint}")


def find_repo(artifacts: Mapping[str, Artifact], repo: str) -> Artifact | None:
    """The artifact of a hub id, in whatever case; None where it is none of these."""
    return next((artifact for artifact in artifacts.values() if artifact.repo.lower() == repo.lower()), None)


def _require_table(table: Any, where: str, kind: str = "a group of settings") -> None:
    """Raises `UsageError` where `table` does not lead from names to values of a kind."""
    if not isinstance(table, dict):
        raise UsageError(f"{where} is a table of names, not {table!r:.80}")
    for name, value in table.items():
        if kind == _WORDS:
            well_formed = isinstance(value, list) and all(isinstance(word, str) for word in value)
        else:
            well_formed = isinstance(value, str if kind == _TEXT else dict)
        if not isinstance(name, str) or not well_formed:
            raise UsageError(f"{where}: {name!r:.80} is to be a name, and stand for {kind}, not {value!r:.80}")


def _members(family: str, values: Mapping[str, Any], *, where: str) -> dict[str, Artifact]:
    for key in {"each", "members"} & {*values}:
        _require_table(values[key], f"{where}: `{key}`", _WORDS if key == "each" else _TEXT)
    shared = configs.decode(Family, values, where=where)
    plain = {field.name: getattr(shared, field.name) for field in dataclasses.fields(shared)
             if field.name not in ("repo", "each", "members")}  # fmt: skip
    pairs = list(shared.members.items())
    for placeholder, words in shared.each.items():
        sign = f"{{{placeholder}}}"
        pairs = [
            (name.replace(sign, word), ending.replace(sign, word))
            for name, ending in pairs
            for word in (words if sign in name else ("",))
        ]
    found = {}
    for name, ending in pairs:
        if f"{family}/{name}" in found:
            raise UsageError(f"{where}: {name} stands twice")
        entry = plain | {"repo": shared.repo + ending}
        found[f"{family}/{name}"] = configs.decode(Artifact, entry, where=f"{where}/{name}")
    return found
