"""An evaluation of language models as tables for a terminal, from the document of an eval.json."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qurating_jax.runtime.terminal import NOTHING, add_row, table

if TYPE_CHECKING:
    from rich.table import Table

_MOST_COLUMNS = 6  # models side by side in a table of domains
_MOST_DOMAINS = 40


def tables(result: Mapping[str, Any]) -> "Iterator[Table]":
    """All documents, a row per model; then bits per byte by domain, models side by side where they find room."""
    models, baseline = result["models"], result["baseline"]
    title = f"Held-out documents, {result['level']:.0%} intervals"
    made = table(title, "model", "documents", "tokens", "perplexity", "bits per byte", "mean of domains")
    for name, of in models.items():
        everything = of["all"]
        counts = (f"{everything[key]:,}" for key in ("num_documents", "num_tokens"))
        figures = (_interval(everything["perplexity"], 2), _interval(everything["bits_per_byte"], 4))
        add_row(made, name, *counts, *figures, _number(of["macro"]["bits_per_byte"]["value"], 4))
    yield made
    if result["differences"]:
        title = f"Less {baseline}, on the same documents: below 0 is better"
        made = table(title, "model", "nats per token", "bits per byte", "mean of domains", "better documents")
        for name, of in result["differences"].items():
            everything = of["all"]
            per_token, per_byte = (_interval(everything[key], 4) for key in ("nats_per_token", "bits_per_byte"))
            macro, share = _interval(of["macro"]["bits_per_byte"], 4), everything["share_better"]
            add_row(made, name, per_token, per_byte, macro, NOTHING if share is None else f"{share:.1%}")
        yield made
    domains = list(models[baseline]["domains"])
    if 1 < len(domains) <= _MOST_DOMAINS and len(models) <= _MOST_COLUMNS:
        made = table("Bits per byte by domain", "domain", "documents", *models)
        for domain in domains:
            row = [of["domains"][domain] for of in models.values()]
            add_row(made, domain, f"{row[0]['num_documents']:,}", *(_interval(of["bits_per_byte"], 4) for of in row))
        yield made


def notes(result: Mapping[str, Any]) -> list[str]:
    """What is said below the tables: what was shown and predicted, and what cannot be compared."""
    first = "each document's first token after an EOS" if result["bos"] == "eos" else "but not a document's first token"
    lines = [
        f"windows of up to {result['context_tokens']} tokens, {result['stride_tokens']} further each time; every token "
        f"is predicted once, {first}"
    ]
    if len({of["tokenizer"] for of in result["models"].values()}) > 1:
        lines.append("the models have different tokenizers: compare bits per byte, not perplexities")
    return lines


def _number(value: float | None, decimals: int) -> str:
    return NOTHING if value is None else f"{value:.{decimals}f}"


def _interval(of: Mapping[str, Any] | None, decimals: int) -> str:
    if of is None or of["value"] is None:
        return NOTHING
    value, low, high = (_number(of[key], decimals) for key in ("value", "low", "high"))
    return value if of["low"] is None or of["high"] is None else f"{value} [{low}, {high}]"
