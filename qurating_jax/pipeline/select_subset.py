"""Rated documents -> a token budget of them, by rating, by sampling with a temperature, or at random."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    import numpy as np

    from qurating_jax.selection.keys import Candidates, Fields
    from qurating_jax.selection.tables import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating select`."""

    input: tuple[str, ...] = option((), "rated documents: files, globs, directories, hf:// ids", runtime=True)
    strategy: Literal["uniform", "top_k", "sample"] = option(
        "sample",
        "uniform: at random; top_k: highest ratings; sample: without replacement from softmax(rating/temperature)",
    )
    rating: str = option("educational_value_average", "column of the rating (uniform only reports it)")
    temperature: float = option(2.0, "temperature of `sample`: towards 0 it is top_k, large it is uniform")
    inverse: bool = option(False, "prefer low ratings: ratings are negated first")
    normalize: bool = option(True, "bring ratings to mean 0, standard deviation 1 over the documents")
    on_null_rating: Literal["drop", "error"] = option(
        "drop", "documents without a rating: never selected (and counted), or an error"
    )
    on_duplicate_id: Literal["error", "drop"] = option(
        "error", "documents whose id stood before with the same values: an error, or never selected (and counted)"
    )
    budget_tokens: int | None = option(None, "tokens to select")
    budget_fraction: float | None = option(None, "share of the selectable tokens to select, above 0 and at most 1")
    tokens_field: str = option("length", "column of the documents' token counts")
    domain_field: str = option("", "column of the domain whose token shares are kept; empty: one pool")
    id_field: str = option("id", "column (or dotted path) of the unique document id")
    text_field: str = option("text", "column (or dotted path) of the text, to read formats other than Parquet")
    rows_per_shard: int = option(50_000, "rows of an output file")

    def __post_init__(self) -> None:
        if (self.budget_tokens is None) == (self.budget_fraction is None):
            raise ValueError("give exactly one of --budget_tokens and --budget_fraction")
        if self.budget_tokens is not None and self.budget_tokens < 1:
            raise ValueError(f"--budget_tokens {self.budget_tokens} selects nothing; give a positive number")
        if self.budget_fraction is not None and not 0 < self.budget_fraction <= 1:
            raise ValueError(
                f"--budget_fraction {self.budget_fraction} is not a share; give a number above 0 and at most 1"
            )
        if self.strategy == "sample" and not self.temperature > 0:
            raise ValueError(
                f"--temperature {self.temperature} samples nothing; use --strategy top_k for the highest ratings, "
                "--strategy uniform for a random choice, or a temperature above 0"
            )
        if self.strategy == "uniform" and self.inverse:
            raise ValueError("--inverse has no meaning with --strategy uniform, which reads no rating")
        if self.strategy != "uniform" and not self.rating:
            raise ValueError(f"--strategy {self.strategy} needs --rating")
        if self.rows_per_shard < 1:
            raise ValueError("--rows_per_shard must be at least 1")


def main(config: Config) -> dict[str, Any]:
    """Selects and returns the counts; `selection.json` explains the selection."""
    from qurating_jax.data import documents
    from qurating_jax.runtime import manifest, storage
    from qurating_jax.runtime.progress import progress
    from qurating_jax.selection import copier
    from qurating_jax.selection.tables import Source

    require(config, "input", *([] if config.dry_run else ["output"]))
    files = documents.find_files(config.input)
    inputs = {"documents": manifest.input_digest(config.input, files)}
    source = Source(files, text_field=config.text_field, id_field=config.id_field)
    if config.dry_run:
        return _counts(_decide(config, source).explanation)
    # Decided before the directory is claimed, so that a budget that cannot be filled leaves nothing behind.
    decision = None if manifest.is_artifact(config.output) else _decide(config, source)
    with open_run(config, "select", inputs) as run:
        if run.state == "finished":
            return run.counts
        decision = decision or _decide(config, source)
        with progress("copy", len(decision.keys), "documents") as advance:
            num_shards = copier.copy(
                source,
                decision.fields,
                decision.keys,
                decision.selected,
                config.output,
                rows_per_shard=config.rows_per_shard,
                advance=advance,
            )
        storage.write_json(run.path("selection.json"), decision.explanation)
        counts = _counts(decision.explanation) | {"num_shards": num_shards}
        manifest.finish(run, counts)
        return counts


@dataclass(frozen=True)
class _Decision:
    """Which documents are selected (bool [n]), by which keys (float64 [n], NaN: not eligible), and what that means."""

    fields: "Fields"
    selected: "np.ndarray"
    keys: "np.ndarray"
    explanation: dict[str, Any]


def _decide(config: Config, source: "Source") -> _Decision:
    import numpy as np

    from qurating_jax.method import budget
    from qurating_jax.selection import copier
    from qurating_jax.selection.keys import logits, perturbed, read_candidates

    copier.check_columns(source)
    fields = _fields(config, source)
    candidates = read_candidates(source, fields)
    eligible = _eligible(config, candidates)
    try:
        values = logits(
            candidates.ratings[eligible],
            strategy=config.strategy,
            temperature=config.temperature,
            inverse=config.inverse,
            normalized=config.normalize,
        )
        hashes, tokens = candidates.id_hashes[eligible], candidates.tokens[eligible]
        eligible_keys = perturbed(values, hashes, strategy=config.strategy, seed=config.seed)
        budget_tokens = config.budget_tokens or max(1, round((config.budget_fraction or 0) * int(tokens.sum())))
        if config.domain_field:
            domains, names = candidates.domains[eligible], candidates.domain_names
            held = budget.tokens_by_domain(tokens, domains, len(names))
            targets = budget.domain_targets(held, budget_tokens, names=names)
            chosen = budget.fill_domains(eligible_keys, hashes, tokens, domains, targets)
        else:
            chosen = budget.fill(eligible_keys, hashes, tokens, budget_tokens)
    except ValueError as error:
        raise UserError(f"{' '.join(config.input)}: {error}") from None
    keys = np.full(len(eligible), np.nan)
    keys[eligible] = eligible_keys
    selected = np.zeros(len(eligible), dtype=bool)
    selected[eligible] = chosen
    explanation = _explain(config, fields, candidates, eligible, values, keys, selected, budget_tokens)
    log.info(
        "selected %s of %s documents, %s tokens for a budget of %s (%.2f %%)%s",
        f"{explanation['num_selected']:,}",
        f"{len(selected):,}",
        f"{explanation['selected_tokens']:,}",
        f"{budget_tokens:,}",
        100 * explanation["share_tokens"],
        "" if config.domain_field else f", keys of {explanation['threshold_key']:.4f} and above",
    )
    return _Decision(fields, selected, keys, explanation)


def _explain(
    config: Config,
    fields: "Fields",
    candidates: "Candidates",
    eligible: "np.ndarray",
    logits: "np.ndarray",
    keys: "np.ndarray",
    selected: "np.ndarray",
    budget_tokens: int,
) -> dict[str, Any]:
    """The content of `selection.json`: the settings that count for this strategy, and what came of them."""
    from qurating_jax.selection import explain

    settings = {
        "strategy": config.strategy,
        "seed": None if config.strategy == "top_k" else config.seed,
        "rating": fields.rating or None,
        "temperature": config.temperature if config.strategy == "sample" else None,
        "inverse": config.inverse,
        "normalize": config.normalize,
        "domain_field": config.domain_field or None,
    }
    result = explain.explain(
        candidates,
        eligible,
        None if config.strategy == "top_k" else logits,
        keys,
        selected,
        budget_tokens=budget_tokens,
        by_domain=bool(config.domain_field),
    )
    return settings | result | ({} if fields.rating else {"num_null_ratings": None})


def _eligible(config: Config, candidates: "Candidates") -> "np.ndarray":
    """The documents that can be selected: with tokens and, where the strategy needs it, with a rating."""
    import numpy as np

    eligible = candidates.tokens > 0
    num_empty = int((~eligible).sum())
    if num_empty:
        log.info("%s documents without tokens are not selected", f"{num_empty:,}")
    if candidates.duplicates.any():
        found = f"{int(candidates.duplicates.sum()):,} documents repeat an id (`{candidates.duplicate_example}`)"
        if config.on_duplicate_id == "error":
            raise UserError(f"{found}; make ids unique, or --on_duplicate_id drop to count each id once")
        log.warning("%s: each id counts once", found)
        eligible &= ~candidates.duplicates
    unrated = np.isnan(candidates.ratings)
    if config.strategy != "uniform" and unrated.any():
        found = f"{int(unrated.sum()):,} documents have no rating in `{config.rating}`"
        if config.on_null_rating == "error":
            raise UserError(f"{found}; annotate them, or --on_null_rating drop to leave them out")
        log.warning("%s: they are not selected", found)
        eligible &= ~unrated
    if not eligible.any():
        raise UserError(f"{' '.join(config.input)}: none of {len(eligible):,} documents has tokens and a rating")
    return eligible


def _fields(config: Config, source: "Source") -> "Fields":
    from qurating_jax.selection.keys import Fields

    rating = config.rating
    if config.strategy == "uniform" and rating and not source.has(rating):
        log.info("no column `%s`: the random selection is reported without ratings", rating)
        rating = ""
    return Fields(id=config.id_field, tokens=config.tokens_field, rating=rating, domain=config.domain_field)


def _counts(explanation: dict[str, Any]) -> dict[str, Any]:
    """The scalar part of the explanation that a manifest records."""
    names = (
        "num_documents",
        "num_eligible",
        "num_selected",
        "num_rejected",
        "num_null_ratings",
        "num_zero_token_documents",
        "num_duplicates",
        "budget_tokens",
        "selected_tokens",
        "overshoot_tokens",
    )
    return {name: explanation[name] for name in names}
