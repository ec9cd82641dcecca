"""What stands under a folder, a sentence for each stage."""

from collections.abc import Callable, Mapping
from typing import Any

from qurating_jax.reporting.blocks import Table
from qurating_jax.reporting.evidence import Evidence
from qurating_jax.reporting.values import number, series, short, words

Counts = Mapping[str, Any]


def table(evidence: Evidence) -> Table:
    """A row per stage: how many outputs, and what the first one holds. All counts are on the page on provenance."""
    found = dict.fromkeys(of.stage for of in evidence.shown)
    stages = [
        *(stage for stage in _SENTENCES if stage in found),
        *(stage for stage in found if stage not in _SENTENCES),
    ]
    rows = []
    for stage in stages:
        of = evidence.of(stage)
        told = _SENTENCES[stage](of[0].counts) if stage in _SENTENCES else ""
        rows.append((stage, len(of), f"each about {told}" if told and len(of) > 1 else told))
    note = "Of several outputs the first one's figures. All counts, times and digests: page Provenance."
    return Table("What is here", ("stage", "outputs", "what"), tuple(rows), note=note)


def _parts(counts: Counts, *named: tuple[str, str]) -> str:
    """`1,484 documents, 1,685,824 tokens`, of what was counted."""
    known = [(number(counts.get(key)), name) for key, name in named]
    return ", ".join(f"{short(value)} {name}" for value, name in known if value is not None)


def _judge(counts: Counts) -> str:
    criteria = counts.get("criteria")
    told = _parts(counts, ("num_groups", "groups of texts"), ("num_verdicts", "verdicts"))
    names = series([words(str(name)) for name in criteria]) if isinstance(criteria, Mapping) else ""
    return f"{told} on {names}" if told and names else told


def _annotate(counts: Counts) -> str:
    return _parts(counts, ("documents", "documents"), ("windows", "windows"), ("tokens", "tokens of the rater"))


_SENTENCES: dict[str, Callable[[Counts], str]] = {
    "corpus": lambda of: _parts(of, ("num_train", "documents to choose from"), ("num_heldout", "held out")),
    "split": lambda of: _parts(of, ("num_train", "documents to choose from"), ("num_heldout", "held out")),
    "train-tokenizer": lambda of: _parts(of, ("vocab_size", "tokens in the vocabulary"),
                                         ("bytes_per_token", "bytes per token")),
    "judge run": _judge,
    "train-rater": lambda of: _parts(of, ("train_groups", "groups to learn from"), ("validation_groups", "to check")),
    "annotate": _annotate,
    "select": lambda of: _parts(of, ("num_selected", "documents"), ("selected_tokens", "tokens")),
    "tokenize": lambda of: _parts(of, ("rows", "rows"), ("tokens", "tokens")),
    "train-lm": lambda of: _parts(of, ("parameters", "parameters"), ("num_steps", "steps"), ("seen_tokens", "tokens")),
    "eval-lm": lambda of: _parts(of, ("documents", "held-out documents"), ("domains", "domains")),
    "analyze": lambda of: _parts(of, ("documents", "documents"), ("sampled", "of them read"), ("tables", "tables")),
}  # fmt: skip
