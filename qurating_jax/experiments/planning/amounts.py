"""How much every stage run of a graph writes: documents, tokens, bytes of text, as far as can be known before it runs.

What a finished run counted goes before what the experiment expects, and that before what follows from the run's own
inputs. Files outside of the graph are looked at where they are on this machine: footers of Parquet, the text of small
files. Where only bytes are known tokens are bytes by `bytes_per_token`, and the other way round.
"""

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qurating_jax.experiments.files import Amount
from qurating_jax.experiments.graph import Graph, Node
from qurating_jax.experiments.planning import local_amounts
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.training.rater_options import NGRAMS

# Where no tokenizer has been tried on the text; the usual rule of thumb for English, as in `judge run --dry_run`.
BYTES_PER_TOKEN = 4.0

_SIDES = ("train", "heldout")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Found(Amount):
    """An amount of documents.

    Attributes:
        counted: tokens as the documents' own column has them, which budgets are measured in: of a rater of n-grams
            they are words.
        exact: `counted` was counted, and not concluded from bytes or from what other stages are expected to do.
        rows: rows of an output of `tokenize`, where they were counted.
    """

    counted: int | None = None
    exact: bool = False
    rows: int | None = None

    @property
    def mean_tokens(self) -> float | None:
        """Tokens of a document."""
        return self.tokens / self.documents if self.tokens and self.documents else None


NOTHING_KNOWN = Found()


@dataclass(frozen=True)
class Amounts:
    """What is known of a graph's documents.

    Attributes:
        graph: the graph.
        nodes: what a finished run counted or a coming one is expected to hold, by key.
        finished: counts of finished runs, by key.
        bytes_per_token: of the experiments' text.
        measured: whether a tokenizer was tried on the text; otherwise `bytes_per_token` is assumed.
    """

    graph: Graph
    nodes: Mapping[str, Found]
    finished: Mapping[str, Mapping[str, Any]]
    bytes_per_token: float
    measured: bool
    looked_at: dict[tuple[str, str, str], Found] = dataclasses.field(default_factory=dict)

    def of(self, place: str, *, text_field: str = "text", tokens_field: str = "length") -> Found:
        """What is at a path that a config names: a run's output, a part of it, or something outside of the graph."""
        if place in self.graph.external:
            return self._completed(_as_found(self.graph.external[place]))
        found = node_at(self.graph, place)
        if found is not None:
            node, inside = found
            return _side(node, self.nodes[node.key], self.finished.get(node.key), inside)
        key = (place, text_field, tokens_field)
        if key not in self.looked_at:
            self.looked_at[key] = _outside(place, text_field, tokens_field)
        return self._completed(self.looked_at[key])

    def read_by(self, node: Node, option: str = "input") -> Found:
        """What a run reads by an option, all of it together."""
        fields = {
            name: getattr(node.config, name) for name in ("text_field", "tokens_field") if _named(node.config, name)
        }
        value = getattr(node.config, option)
        places = [value] if isinstance(value, str) else value
        return _sum([self.of(place, **fields) for place in places if place])

    def _completed(self, found: Found) -> Found:
        return _completed(found, self.bytes_per_token)


def amounts(graph: Graph, counted: Collection[str] | None = None) -> Amounts:
    """What is known of every run of a graph.

    Args:
        graph: stage runs.
        counted: keys of the runs whose own counts may be used; None: all that are finished.
    """
    looked_at = graph.nodes if counted is None else counted
    finished = {
        key: counts for key, node in graph.nodes.items() if key in looked_at and (counts := _finished(node)) is not None
    }
    ratio = _measured_ratio(graph, finished)
    nodes: dict[str, Found] = {}
    known = Amounts(graph, nodes, finished, ratio or BYTES_PER_TOKEN, ratio is not None)
    for key, node in graph.nodes.items():
        derived = _DERIVED.get(node.stage, lambda known, node: NOTHING_KNOWN)(known, node)
        if node.expected is not None:
            derived = _over(_as_found(node.expected), derived)
        if key in finished and (read := _COUNTED.get(node.stage)) is not None:
            derived = _over(_in_our_tokens(graph, node, read(finished[key])), derived)
        nodes[key] = _completed(derived, known.bytes_per_token)
    return known


def check_budgets(graph: Graph, known: Amounts) -> None:
    """Refuses selections of more than there is, as far as that was counted or is expected.

    Raises:
        UserError: with the step and the run that wants it.
    """
    for node in graph.nodes.values():
        if node.stage != "select" or node.key in known.finished or node.config.allow_all:
            continue
        config, read = node.config, known.read_by(node)
        wanted = None if config.budget_tokens is None else config.budget_tokens / config.num_epochs
        budgets = [("tokens", wanted, read.counted), ("documents", config.budget_documents, read.documents)]
        for name, most, least in budgets:
            if most is None or least is None or most <= least:
                continue
            text = (
                f"{node.used_by[0]}: {node.steps[0]}: budget_{name} asks for {most:,.0f} {name} of {least:,} that its "
                "input holds"
            )
            if name == "tokens" and (config.tokenizer or not read.exact):  # or counted anew, by another tokenizer
                log.warning("%s by an estimate", text)
                continue
            raise UserError(f"{text}; lower it, give more documents, or allow_all to take what there is")


def node_at(graph: Graph, place: str) -> tuple[Node, str] | None:
    """The run whose output a config's text names (`NAME=PATH`, `PATH@STEP`, a file inside), and the path within it."""
    directories = {node.directory: node for node in graph.nodes.values()}
    for text in (place, place.partition("=")[2]):
        path, _, _ = text.partition("@")
        inside = ""
        while path:
            if path in directories:
                return directories[path], inside
            path, _, last = path.rpartition("/")
            inside = f"{last}/{inside}" if inside else last
    return None


# --- what stages counted ----------------------------------------------------------------------------------------------


def _finished(node: Node) -> Mapping[str, Any] | None:
    """The counts of a run whose manifest is there, None where it is not finished."""
    path = storage.join(node.directory, manifest.MANIFEST)
    if not storage.exists(path):
        return None
    try:
        counts: Mapping[str, Any] = manifest.read(node.directory, stages=(node.stage,))["counts"]
    except UserError:
        return None
    return counts


def _corpus_counts(counts: Mapping[str, Any]) -> Found:
    return Found(documents=counts["num_documents"], bytes=counts["num_bytes"])


def _annotate_counts(counts: Mapping[str, Any]) -> Found:
    return Found(documents=counts["documents"], tokens=counts["tokens"], counted=counts["tokens"], exact=True)


def _select_counts(counts: Mapping[str, Any]) -> Found:
    tokens = counts["selected_tokens"]
    return Found(documents=counts["num_selected"], tokens=tokens, counted=tokens, exact=True)


def _tokenize_counts(counts: Mapping[str, Any]) -> Found:
    tokens = counts["document_tokens"]
    return Found(documents=counts["documents"], tokens=tokens, counted=tokens, exact=True, rows=counts["rows"])


_COUNTED: dict[str, Callable[[Mapping[str, Any]], Found]] = {
    "corpus": _corpus_counts,
    "split": _corpus_counts,
    "annotate": _annotate_counts,
    "select": _select_counts,
    "tokenize": _tokenize_counts,
}


# --- what follows from what a stage reads -----------------------------------------------------------------------------


def _in_our_tokens(graph: Graph, node: Node, found: Found) -> Found:
    """A selection's tokens, and those that n-grams are counted in, need not be the experiment's."""
    if node.stage == "select" or (node.stage == "annotate" and _words_only(graph, node)):
        return dataclasses.replace(found, tokens=None)
    return found


def _same(known: Amounts, node: Node) -> Found:
    return known.read_by(node)


def _annotated(known: Amounts, node: Node) -> Found:
    read = known.read_by(node)
    if not _words_only(known.graph, node):
        return dataclasses.replace(read, counted=read.tokens, exact=read.exact and read.counted == read.tokens)
    return dataclasses.replace(read, counted=None, exact=False)  # words, of which nobody knows how many


def _selected(known: Amounts, node: Node) -> Found:
    """The share of the input that the budget is, of documents and bytes as of tokens."""
    config, read = node.config, known.read_by(node)
    share = selected_share(node, read, known.finished.get(node.key))
    tokens = config.budget_tokens and config.budget_tokens // config.num_epochs
    if share is None:
        return Found(tokens=tokens, counted=tokens, documents=config.budget_documents)
    scaled = _scaled(read, share)
    return dataclasses.replace(scaled, exact=False, documents=config.budget_documents or scaled.documents)


def _tokenized(known: Amounts, node: Node) -> Found:
    config = node.config
    return known.of(config.selection) if config.selection else known.read_by(node)


_DERIVED: dict[str, Callable[[Amounts, Node], Found]] = {
    "split": _same,
    "annotate": _annotated,
    "select": _selected,
    "tokenize": _tokenized,
}


def selected_share(node: Node, read: Found, counts: Mapping[str, Any] | None = None) -> float | None:
    """The share of the tokens of its input that a selection takes; None where that is not known before it has run."""
    config = node.config
    if counts is not None and read.counted:
        return min(1.0, counts["selected_tokens"] / read.counted)
    if config.budget_fraction is not None:
        return config.budget_fraction / config.num_epochs
    if config.fraction is not None:
        return config.fraction
    if config.percentile is not None:
        return 1 - config.percentile / 100
    wanted, there = config.budget_documents, read.documents
    if config.budget_tokens is not None:
        wanted, there = config.budget_tokens / config.num_epochs, read.counted or read.tokens
    return None if wanted is None or not there else min(1.0, wanted / there)


def _words_only(graph: Graph, node: Node) -> bool:
    """True where a rater of n-grams counts the tokens, which are words to it."""
    if node.config.language_model:
        return False
    made_by = [node_at(graph, place) for place in node.config.rater]
    bases = [getattr(found[0].config, "base", "") if found else "" for found in made_by]
    return bool(bases) and set(bases) == {NGRAMS}


def _side(node: Node, whole: Found, counts: Mapping[str, Any] | None, inside: str) -> Found:
    """What a part of an output holds: of the two sides of `corpus` and `split` each its share, else all of it."""
    side = inside.split("/")[0]
    if node.stage not in ("corpus", "split") or side not in _SIDES or whole.documents is whole.bytes is None:
        return whole
    if counts is not None:
        documents = counts[f"num_{side}"]
        share = documents / counts["num_documents"]
        text = counts.get(f"num_{side}_bytes", round(share * counts["num_bytes"]))
        return dataclasses.replace(_scaled(whole, share), documents=documents, bytes=text)
    held_out = node.config.heldout_fraction
    return dataclasses.replace(_scaled(whole, held_out if side == "heldout" else 1 - held_out), exact=False)


def _outside(place: str, text_field: str, tokens_field: str) -> Found:
    """What is known of a place that no run of the graph makes: a finished output, or files of this machine."""
    if storage.is_remote(place) or "<" in place:
        return NOTHING_KNOWN
    if storage.is_dir(place) and manifest.is_artifact(place):
        try:
            document = manifest.read(place)
        except UserError:
            return NOTHING_KNOWN
        if (read := _COUNTED.get(document["stage"])) is not None:
            return read(document["counts"])
    held = local_amounts.held(place, text_field, tokens_field)
    return Found(**vars(held), counted=held.tokens, exact=held.tokens is not None)


# --- arithmetic -------------------------------------------------------------------------------------------------------


def _measured_ratio(graph: Graph, finished: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Bytes of text per token, as a finished `train-tokenizer` found it or as an expectation of both says."""
    for key, counts in finished.items():
        if graph.nodes[key].stage == "train-tokenizer":
            return float(counts["bytes_per_token"])
    expected = [*graph.external.values(), *(node.expected for node in graph.nodes.values() if node.expected)]
    return next((one.bytes / one.tokens for one in expected if one.bytes and one.tokens), None)


def _as_found(amount: Amount) -> Found:
    known = dataclasses.asdict(amount)
    return Found(**known, counted=amount.tokens, exact=amount.tokens is not None)


def _completed(found: Found, bytes_per_token: float) -> Found:
    """Tokens from bytes and bytes from tokens, where one of them lacks."""
    changed = found
    if found.tokens is None and found.bytes is not None:
        changed = dataclasses.replace(changed, tokens=round(found.bytes / bytes_per_token))
    if found.bytes is None and found.tokens is not None:
        changed = dataclasses.replace(changed, bytes=round(found.tokens * bytes_per_token))
    return changed


def _over(first: Found, second: Found) -> Found:
    """What the first knows, else what the second does; of `exact` what belongs to `counted`."""
    mixed = {
        field.name: getattr(second, field.name) if getattr(first, field.name) is None else getattr(first, field.name)
        for field in dataclasses.fields(Found)
    }
    return Found(**(mixed | {"exact": (first if first.counted is not None else second).exact}))


def _scaled(found: Found, share: float) -> Found:
    scaled: dict[str, Any] = {}
    for name in ("documents", "tokens", "bytes", "counted"):
        value = getattr(found, name)
        scaled[name] = None if value is None else round(share * value)
    return dataclasses.replace(found, **scaled, rows=None)


def _sum(found: Iterable[Found]) -> Found:
    """All together; what is not known of one is not known of them."""
    several = list(found)
    if not several:
        return NOTHING_KNOWN
    summed = {}
    for name in ("documents", "tokens", "bytes", "counted", "rows"):
        values = [getattr(one, name) for one in several]
        summed[name] = None if None in values else sum(values)
    return Found(**summed, exact=all(one.exact for one in several))


def _named(config: Any, name: str) -> bool:
    return isinstance(getattr(config, name, None), str) and bool(getattr(config, name))
