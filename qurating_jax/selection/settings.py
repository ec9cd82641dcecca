"""The settings that made a selection, for `selection.json`: every option that counts for its strategy, null elsewhere.

What lies in files is told by the manifest's digests; here stand names: targets and their sizes, columns of scores.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from qurating_jax.selection.options import BudgetOptions, DocumentOptions, SelectOptions

# Options of single strategies, and those that have them.
_RATED = ("top_k", "sample", "threshold", "percentile", "fraction")
_OF_STRATEGIES: Mapping[str, Sequence[str]] = {
    "rating": _RATED,
    "reference": _RATED,
    "inverse": (*_RATED, "mix"),
    "temperature": ("sample", "mix"),
    "target_kl": ("sample",),
    "target_mean": ("sample",),
    "threshold": ("threshold",),
    "percentile": ("percentile",),
    "fraction": ("fraction",),
    "keep": ("perplexity",),
    "dsir_buckets": ("dsir",),
    "dsir_min_words": ("dsir",),
    "dsir_length_norm": ("dsir",),
    "dsir_pseudo_count": ("dsir",),
    "dsir_raw_ngrams": ("dsir",),
    "members": ("mix",),
}
_DRAWN = ("uniform", "sample", "dsir", "mix")
_ALWAYS = tuple(field.name for part in (BudgetOptions, DocumentOptions) for field in dataclasses.fields(part))


def describe(
    options: SelectOptions,
    *,
    seed: int,
    temperature: float,
    sizes: Mapping[str, int],
    scores: Sequence[str],
) -> dict[str, Any]:
    """Plain values by the name of the option.

    Args:
        options: as given.
        seed: of the run; null where nothing is drawn.
        temperature: the given one, or what was found for `target_kl` or `target_mean`.
        sizes: n-grams of the targets, by name.
        scores: columns that came from files of scores.
    """
    strategy = options.strategy
    found: dict[str, Any] = {"strategy": strategy}
    drawn = strategy in _DRAWN
    ordered_at_random = options.order == "shuffled" or options.order_temperature is not None
    found["seed"] = seed if drawn or ordered_at_random else None
    for name, strategies in _OF_STRATEGIES.items():
        found[name] = getattr(options, name) if strategy in strategies else None
    found["temperature"] = temperature if strategy in _OF_STRATEGIES["temperature"] else None
    found["normalize"] = options.normalize if _normalizes(options) else None
    column = "perplexity" if options.perplexity else "log_likelihood"
    for name in ("log_likelihood", "perplexity"):
        found[name] = getattr(options, name) if strategy == "perplexity" and name == column else None
    found["targets"] = dict(sizes) if strategy == "dsir" else None
    found["scores"] = list(scores)
    found["noise_group"] = options.noise_group if drawn else None
    found |= {name: getattr(options, name) for name in _ALWAYS}
    found["tokens_field"] = None if options.tokenizer else options.tokens_field
    found |= {name: getattr(options, name) for name in ("order", "order_by", "order_temperature")}
    return {name: _plain(value) for name, value in found.items()}


def _normalizes(options: SelectOptions) -> bool:
    """True where the way of normalizing can change what is selected, or its order."""
    if options.order_by or options.strategy in ("sample", "mix"):
        return True
    # One column without a weight is cut and ordered as it is; ranks have other thresholds.
    several = list(options.weights.values()) != [1.0]
    return options.strategy in _RATED and (several or options.normalize == "rank")


def _plain(value: Any) -> Any:
    """As JSON has it; what was not given is null."""
    if isinstance(value, tuple | list):
        return list(value) or None
    return None if value == "" else value
