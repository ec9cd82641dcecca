"""What selections do to a corpus: its ratings, its mix by domain, topic and script, what repeats, before and after.

Numbers are those of all documents where all are known; topics, scripts and texts are those of the sample. Memory is
about 60 bytes per document beside what is given. Columns:

- `effective_sample_size`, `effective_share`, `kl_from_uniform`: of the sampling distribution, as in the stage's
  `selection.json` (and from there, for selections that were made); null where nothing is sampled by a temperature.
- `mean_rating`: of the selection's own criterion, over documents; normalized by mean and standard deviation of the
  documents with tokens. `selection_ratings` has it for every criterion, with Student's t intervals.
- `mix_change_*`: total variation between the mixes before and after; null where there is one part only.
- `topic_entropy`: of the topics' shares of the tokens, in nats.
- `duplicate_share`, `near_duplicate_share`: of the `num_sampled` selected documents that are in the sample, those
  with a copy (a near copy) anywhere in the sample; `repeated_share`: copies beyond the first among the selected.
  Where the sample is a part of the corpus most pairs are not seen in it: these are lower bounds.
- `distinct_1` to `distinct_3`: different over all n-grams of `ngram_words` words of selected documents in random
  order, the same number for every selection; null for a selection of fewer than 2,000 words.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.analysis.diversity import Copies, count_words, distinct_ngrams, find_copies
from qurating_jax.analysis.means import moments, nullable
from qurating_jax.analysis.mixes import Mix, entropy, mix
from qurating_jax.analysis.selection_grid import Floats, Grid, Made, Selection
from qurating_jax.method import gumbel
from qurating_jax.method.stats import mean_and_std
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.progress import progress

NGRAM_SIZES = (1, 2, 3)
NO_TOPIC = "(no words)"
_MOST_WORDS, _LEAST_WORDS = 200_000, 2_000  # of a selection, for its distinct n-grams

SELECTION_EFFECT = pa.schema(
    [(name, pa.string()) for name in ("name", "criterion", "strategy")]
    + [("temperature", pa.float64()), ("kind", pa.string())]
    + [(name, pa.int64()) for name in ("num_selected", "selected_tokens")]
    + [
        (name, pa.float64())
        for name in (
            "share_tokens", "effective_sample_size", "effective_share", "kl_from_uniform", "mean_rating",
            "mean_rating_normalized", "mix_change_domain", "mix_change_topic", "mix_change_script", "topic_entropy",
            "topic_entropy_before",
        )
    ]
    + [("num_sampled", pa.int64())]
    + [(name, pa.float64()) for name in ("duplicate_share", "near_duplicate_share", "repeated_share")]
    + [("ngram_words", pa.int64())]
    + [(f"distinct_{size}", pa.float64()) for size in NGRAM_SIZES]
)  # fmt: skip
SELECTION_MIX = pa.schema(
    [(name, pa.string()) for name in ("name", "kind", "part")]
    + [(name, pa.int64()) for name in ("documents_before", "documents_after")]
    + [(name, pa.float64()) for name in ("share_before", "share_after", "ratio", "low", "high")]
)
SELECTION_RATINGS = pa.schema(
    [("name", pa.string()), ("criterion", pa.string()), ("num_documents", pa.int64())]
    + [(name, pa.float64()) for name in ("mean", "low", "high", "mean_normalized")]
)


@dataclass(frozen=True, eq=False)
class Studied:
    """All n documents, and m of them with texts.

    Attributes:
        hashes: uint64 [n], `gumbel.hash_ids` of the ids.
        domains: int32 [n], numbers into `domain_names`.
        domain_names: ascending, as the stage has them.
        tokens: int64 [n].
        ratings: float64 [n] by criterion, NaN where there is none; the stage's column is `<criterion>_average`.
        rows: int64 [m], the sample's rows among the n.
        topics: int32 [m], numbers into `topic_names`, negative for none.
        topic_names: empty where there are no topics.
        scripts: int32 [m], numbers into `script_names`.
        script_names: of the scripts.
        texts: m of them.
    """

    hashes: NDArray[np.uint64]
    domains: NDArray[np.int32]
    domain_names: Sequence[str]
    tokens: NDArray[np.int64]
    ratings: Mapping[str, Floats]
    rows: NDArray[np.int64]
    topics: NDArray[np.int32]
    topic_names: Sequence[str]
    scripts: NDArray[np.int32]
    script_names: Sequence[str]
    texts: Sequence[str]


def tables(
    studied: Studied,
    *,
    temperatures: Sequence[float],
    budget_fraction: float,
    by_domain: bool,
    seed: int,
    selections: Mapping[str, Made],
    level: float = 0.95,
    noise_group: str = "",
) -> dict[str, pa.Table]:
    """The tables `selection_effect`, `selection_mix` and `selection_ratings`; those without rows are left out.

    The grid holds what `qurating select` with the same options selects, id for id. Shares and mixes are weighted by
    tokens. "Before" are all documents with tokens, rated or not. What the columns mean stands at the top.

    Args:
        studied: the documents and their sample.
        temperatures: of the grid, above 0.
        budget_fraction: share of the tokens to select, above 0 and at most 1.
        by_domain: every domain gives its share, as with `--domain_field`; else one pool.
        seed: of the noise.
        selections: made before, by name.
        level: of the intervals.
        noise_group: as in the stage.

    Raises:
        UserError: a temperature or a budget that selects nothing.
    """
    grid = _grid(studied, temperatures, budget_fraction, by_domain, seed, noise_group)
    copies, scales = find_copies(studied.texts), _scales(studied)
    effects, mixed, rated, sampled = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]](), []
    with progress("selections", len(grid) + len(selections), "selections") as advance:
        for found in chain(_renamed(grid.draw(), selections), grid.made(selections)):
            mixes = _mixes(studied, found.chosen, level)
            means = _rating_rows(studied, found, scales, level)
            effects.append(_effect(studied, found, mixes, means, copies))
            mixed += [row for kind, (names, one) in mixes.items() for row in _mix_rows(found.name, kind, names, one)]
            rated += means
            sampled.append(found.chosen[studied.rows])
            advance(1)
    for row, shares in zip(effects, _distinct(studied, sampled, seed), strict=True):
        row.update(shares)
    made = {
        "selection_effect": (effects, SELECTION_EFFECT),
        "selection_mix": (mixed, SELECTION_MIX),
        "selection_ratings": (rated, SELECTION_RATINGS),
    }
    return {name: pa.Table.from_pylist(rows, schema) for name, (rows, schema) in made.items() if rows}


def _renamed(tried: Iterable[Selection], made: Collection[str]) -> Iterator[Selection]:
    """Selections that are tried, under another name where one that was made has theirs."""
    for found in tried:
        yield replace(found, name=f"{found.name} (tried)") if found.name in made else found


def _grid(
    studied: Studied,
    temperatures: Sequence[float],
    budget_fraction: float,
    by_domain: bool,
    seed: int,
    noise_group: str,
) -> Grid:
    if not 0.0 < budget_fraction <= 1.0:
        raise UserError(f"a budget of {budget_fraction:g} of the tokens: give a share above 0 and at most 1")
    for temperature in temperatures:
        if not 0.0 < temperature < float("inf"):
            raise UserError(f"the temperature {temperature:g} samples nothing; give numbers above 0")
    return Grid(
        studied.hashes,
        studied.domains if by_domain else None,
        len(studied.domain_names) if by_domain else 1,
        studied.tokens,
        studied.ratings,
        temperatures,
        budget_fraction,
        seed,
        noise_group,
    )


def _mixes(studied: Studied, chosen: NDArray[np.bool_], level: float) -> dict[str, tuple[Sequence[str], Mix]]:
    """Names of parts and the mix by domain (of all), topic and script (of the sample), where there are several."""
    topics = np.where(studied.topics < 0, len(studied.topic_names), studied.topics)
    topic_names = [*studied.topic_names, NO_TOPIC] if studied.topic_names else []
    tokens, picked = studied.tokens[studied.rows], chosen[studied.rows]
    kinds = {
        "domain": (studied.domains, studied.domain_names, studied.tokens, chosen),
        "topic": (topics, topic_names, tokens, picked),
        "script": (studied.scripts, studied.script_names, tokens, picked),
    }
    found = {}
    for kind, (parts, names, weights, mask) in kinds.items():
        if len(names) > 1 and len(np.unique(parts[weights > 0])) > 1:
            found[kind] = (names, mix(parts, len(names), weights, mask, level))
    return found


def _effect(
    studied: Studied,
    found: Selection,
    mixes: Mapping[str, tuple[Sequence[str], Mix]],
    means: Sequence[Mapping[str, Any]],
    copies: Copies,
) -> dict[str, Any]:
    tokens, every = int(studied.tokens[found.chosen].sum()), int(studied.tokens.sum())
    own: Mapping[str, Any] = next((row for row in means if row["criterion"] == found.criterion), {})
    picked = np.flatnonzero(found.chosen[studied.rows])
    changes = {kind: nullable(one.total_variation) for kind, (_, one) in mixes.items()}
    topics = mixes["topic"][1] if "topic" in mixes else None
    known = found.sampling
    return {
        "name": found.name,
        "criterion": found.criterion,
        "strategy": found.strategy,
        "temperature": found.temperature,
        "kind": found.kind,
        "num_selected": int(np.count_nonzero(found.chosen)),
        "selected_tokens": tokens,
        "share_tokens": tokens / every if every else None,
        "effective_sample_size": known.effective_sample_size if known else None,
        "effective_share": known.effective_share if known else None,
        "kl_from_uniform": known.kl_from_uniform if known else None,
        "mean_rating": own.get("mean"),
        "mean_rating_normalized": own.get("mean_normalized"),
        **{f"mix_change_{kind}": changes.get(kind) for kind in ("domain", "topic", "script")},
        "topic_entropy": nullable(entropy(topics.after)) if topics else None,
        "topic_entropy_before": nullable(entropy(topics.before)) if topics else None,
        "num_sampled": len(picked),
        "duplicate_share": float(copies.is_copy[picked].mean()) if len(picked) else None,
        "near_duplicate_share": float(copies.is_near_copy[picked].mean()) if len(picked) else None,
        "repeated_share": 1.0 - len(np.unique(copies.same[picked])) / len(picked) if len(picked) else None,
    }


def _mix_rows(name: str, kind: str, parts: Sequence[str], found: Mix) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "kind": kind,
            "part": parts[part],
            "documents_before": int(found.documents_before[part]),
            "documents_after": int(found.documents_after[part]),
            "share_before": nullable(found.before[part]),
            "share_after": nullable(found.after[part]),
            "ratio": nullable(found.ratio[part]),
            "low": nullable(found.low[part]),
            "high": nullable(found.high[part]),
        }
        for part in np.flatnonzero(found.documents_before).tolist()
    ]


def _scales(studied: Studied) -> dict[str, tuple[float, float]]:
    """Mean and population standard deviation of every criterion over the documents with tokens; NaN for none."""
    found = {}
    for criterion, values in studied.ratings.items():
        known = values[~np.isnan(values) & (studied.tokens > 0)]
        found[criterion] = mean_and_std(known) if known.size else (float("nan"), 0.0)
    return found


def _rating_rows(
    studied: Studied, found: Selection, scales: Mapping[str, tuple[float, float]], level: float
) -> list[dict[str, Any]]:
    rows = []
    for criterion, values in studied.ratings.items():
        own = values[found.chosen]
        own = np.sort(own[~np.isnan(own)])  # sums do not depend on the order of the documents
        of_selected = moments(own, np.zeros(len(own), np.int64), 1)
        low, high = of_selected.interval(level)
        mean, std = scales[criterion]
        rows.append(
            {
                "name": found.name,
                "criterion": criterion,
                "num_documents": len(own),
                "mean": nullable(of_selected.mean[0]),
                "low": nullable(low[0]),
                "high": nullable(high[0]),
                "mean_normalized": nullable((of_selected.mean[0] - mean) / std) if std else None,
            }
        )
    return rows


def _distinct(studied: Studied, sampled: Sequence[NDArray[np.bool_]], seed: int) -> list[dict[str, Any]]:
    """Distinct n-grams of every selection, in the same number of words."""
    stream = gumbel.noise_stream(seed, "texts for distinct n-grams")
    order = np.argsort(gumbel.uniform_bits(studied.hashes[studied.rows], stream), kind="stable")
    texts = [[studied.texts[row] for row in order[mask[order]].tolist()] for mask in sampled]
    counts = [count_words(some, _MOST_WORDS) for some in texts]
    num_words = min((count for count in counts if count >= _LEAST_WORDS), default=0)
    rows = []
    for some, count in zip(texts, counts, strict=True):
        enough = count >= _LEAST_WORDS
        shares = distinct_ngrams(some, num_words if enough else 0, NGRAM_SIZES)
        names = [f"distinct_{size}" for size in NGRAM_SIZES]
        rows.append({"ngram_words": num_words if enough else None, **dict(zip(names, shares, strict=True))})
    return rows
