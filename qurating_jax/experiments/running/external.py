"""What the steps of a graph read that none of them makes: paths, globs, places on object stores, names on the hub."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qurating_jax import config as configs
from qurating_jax.experiments.graph import Graph, Node
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError

Kind = Literal["path", "remote", "name", "missing"]
Digest = dict[str, Any] | None  # None: known by its name alone

# Options that take a hub id as well.
MODELS = ("rater", "raters", "model", "language_model", "tokenizer", "tokens_tokenizer")

_NAMED = re.compile(r"[A-Za-z]\w*=(.+)", re.DOTALL)
_CHECKPOINT = re.compile(r"(.+)@(?:\d+|all)", re.DOTALL)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FOLDERS = ("mirror",)  # of much that the step does not read: it digests what it takes itself


@dataclass(frozen=True)
class External:
    """One thing that a step reads from outside of the graph.

    Attributes:
        option: of the step's stage.
        path: without a name in front (`NAME=PATH`) and a checkpoint behind (`RUN@STEP`).
        kind: a path or glob of this machine, a place on an object store or of the hub's data sets, a hub id of a
            model, or nothing that there is.
        checkpoint: True where a checkpoint of it is read, so that it may be unfinished.
    """

    option: str
    path: str
    kind: Kind
    checkpoint: bool = False


def externals(node: Node, graph: Graph) -> list[External]:
    """What a node reads that no node makes, in the order of its options."""
    made = [storage.join(graph.nodes[key].directory, "") for key in node.reads]
    found = []
    for option, values in configs.reads(node.config).items():
        for value in values:
            path, checkpoint = _path(value)
            if not any(storage.join(path, "").startswith(directory) for directory in made):
                found.append(External(option, path, _kind(option, path), checkpoint))
    return found


class Digests:
    """Digests of external inputs; each is looked at once, so that a command has one view of it."""

    def __init__(self) -> None:
        self._found: dict[str, Digest] = {}

    def of(self, node: Node, graph: Graph) -> Mapping[str, Digest]:
        """By path, what identifies each thing that a node reads from outside.

        Raises:
            UserError: there is no such thing, or it is an unfinished output of a stage.
        """
        found = externals(node, graph)
        for external in found:
            if external.path not in self._found:
                self._found[external.path] = _digest(external)
        return {external.path: self._found[external.path] for external in found}


def _path(value: str) -> tuple[str, bool]:
    """The path in `NAME=PATH@STEP`, and whether a step was named; what exists as it is written is a path."""
    if storage.is_remote(value) or storage.exists(value):
        return value, False
    named = _NAMED.fullmatch(value)
    path = named[1] if named else value
    kept = None if storage.is_remote(path) or storage.exists(path) else _CHECKPOINT.fullmatch(path)
    return (kept[1], True) if kept else (path, False)


def _kind(option: str, path: str) -> Kind:
    if storage.is_remote(path):
        return "remote"
    if storage.exists(path):
        return "path"
    if any(sign in path for sign in "*?["):
        try:
            storage.expand([path], ("",))
            return "path"
        except UserError:
            return "missing"
    return "name" if option in MODELS and _HUB_ID.fullmatch(path) else "missing"


def _digest(external: External) -> Digest:
    path = external.path
    if external.kind == "name" or external.option in _FOLDERS or path.startswith("hf://"):
        return None
    if external.kind == "missing":
        raise UserError(f"{path}: no such file or directory")
    if external.checkpoint:
        standing, _ = manifest.standing(path)
        return None if standing is None else {"run": manifest.sha256(repr(standing["determined"]))}
    whole = storage.is_dir(path) and manifest.is_artifact(path)
    return manifest.input_digest([path], [] if whole else storage.expand([path], ("",)))
