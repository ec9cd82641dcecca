"""What of a graph stands already: read from manifests, records and the digests of what is read."""

from dataclasses import dataclass
from typing import Literal

from qurating_jax import config as configs
from qurating_jax.experiments.graph import STEPS, Graph, Node
from qurating_jax.experiments.running.external import Digests
from qurating_jax.experiments.step_records import Reads, read_start, read_step
from qurating_jax.runtime import manifest, storage

Kind = Literal["done", "unrecorded", "unfinished", "changed", "to do"]


@dataclass(frozen=True)
class State:
    """How far a step is.

    Attributes:
        kind: "done"; "unrecorded": finished, as far as its manifest says, by a process whose end nobody saw;
            "unfinished": the same command goes on with it; "changed": what stands there is not what is wanted now;
            "to do": nothing stands there.
        why: the difference, where it is changed.
    """

    kind: Kind
    why: str = ""


def look(node: Node, graph: Graph, digests: Digests) -> State:
    """The state of a node. Of steps that it reads and that are unfinished nothing is compared.

    Raises:
        UserError: something that it reads from outside is not there.
    """
    document, left = manifest.standing(node.directory)
    if document is None:
        return State("changed", f"holds files of somebody else ({left[0]} ...)") if left else State("to do")
    if why := manifest.mismatch(document, stage=node.stage, identity=configs.identity(node.config)):
        return State("changed", why)
    now = what_is_read(node, graph, digests)
    record = read_step(graph.output, node.name)
    if is_finished(document) and record is not None and record.manifest == manifest.digest(document):
        why = Reads(reads=record.reads, external=record.external).difference(now)
        return State("changed", why) if why else State("done")
    start = read_start(graph.output, node.name)
    if start is not None and start.replaces == manifest.digest(document):
        return State("changed", "was to be made anew, and is still what it was")
    if start is not None and (why := start.difference(now)):
        return State("changed", why)
    return State("unrecorded" if is_finished(document) else "unfinished")


def what_is_read(node: Node, graph: Graph, digests: Digests) -> Reads:
    """Digests of all that a node reads, as it is now; errors as of `look`."""
    reads = {}
    for key in node.reads:
        document, _ = manifest.standing(graph.nodes[key].directory)
        finished = is_finished(document)
        reads[storage.join(STEPS, graph.nodes[key].name)] = manifest.digest(document or {}) if finished else None
    return Reads(reads=reads, external=digests.of(node, graph))


def is_finished(document: dict[str, object] | None) -> bool:
    """True for a manifest, False for the fingerprint of an unfinished run, and for nothing at all."""
    return document is not None and "counts" in document
