"""Whether a rater agrees with labels and judgments, over all documents and where domain or topic cannot be the reason.

A rater that tells domains apart and nothing else agrees with every label that differs between domains; within a domain
it does not. Pairs of one domain and pairs of two are therefore counted apart.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.analysis.audited import LEAST_DOCUMENTS, Audited, Floats
from qurating_jax.analysis.correlations import WITHIN, associations
from qurating_jax.analysis.judged import JudgedPairs
from qurating_jax.data.judgments import UNKNOWN
from qurating_jax.method.bradley_terry import is_confident
from qurating_jax.method.intervals import wilson

JUDGMENTS = "judgments"
SPEARMAN, PAIR_ACCURACY = "spearman", "pair accuracy"
POOLED, DOMAIN, TOPIC, BETWEEN = "pooled", "domain", "topic", "different domains"
NEAR_LENGTH = "near length"  # lengths differ by a factor of 1.1 at most: characters of two texts, tokens of documents
HELD_OUT = "held out"
ALL_KNOWN, ALL_UNKNOWN = "all, some of them trained on", "all, training unknown"
MARGINS = (0.0, 0.5, 0.8)
ENOUGH_HELD_OUT = 100  # pairs, to leave the others out
_NEAR = math.log(1.1) + 1e-9

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("criterion", "source", "within", "part", "measure", "pairs")]
    + [("margin", pa.float64()), ("num", pa.int64())]
    + [(name, pa.float64()) for name in ("value", "low", "high")]
)


def label_rows(
    criterion: str, rating: Floats, documents: Audited, labels: Mapping[str, Floats], level: float
) -> list[dict[str, Any]]:
    """Rank correlations with labels, pooled, by domain, and averaged within domains, topics and classes of length.

    Averages have an empty `part`. The classes of length are powers of 1.1.

    Args:
        criterion: its name.
        rating: float64 [n], NaN where a document has none.
        documents: what they are.
        labels: float64 [n] by name, NaN where a document has none.
        level: of the intervals.

    Returns:
        Rows of `SCHEMA`; correlations of fewer than `LEAST_DOCUMENTS` documents, or with what does not vary, are left
        out.
    """
    rows = []
    steps = np.floor(np.log(np.maximum(documents.tokens, 1)) / _NEAR).astype(np.int64)
    lengths, classes = np.unique(steps, return_inverse=True)
    for source, label in labels.items():
        for place, groups, names in (
            (DOMAIN, documents.domains, documents.domain_names),
            (TOPIC, documents.topics, [str(number) for number in range(int(documents.topics.max(initial=-1)) + 1)]),
            (NEAR_LENGTH, classes.astype(np.int32), [str(length) for length in lengths]),
        ):
            known = (groups >= 0) & ~np.isnan(rating) & ~np.isnan(label)
            if known.sum() > len(documents.whole):
                known &= np.isin(np.arange(len(known)), documents.whole)
            for found in associations(rating[known], label[known], groups[known], names, level):
                one = found.spearman
                if one.value is None or one.num < LEAST_DOCUMENTS:
                    continue
                if place != DOMAIN and found.domain != WITHIN:  # numbers of topics and lengths say nothing
                    continue
                within = place if found.domain else POOLED
                part = "" if found.domain == WITHIN else found.domain
                rows.append(_row(criterion, source, within, part, SPEARMAN, one.num, one.value, (one.low, one.high)))
    return rows


def judgment_rows(criterion: str, judged: JudgedPairs, documents: Audited | None, level: float) -> list[dict[str, Any]]:
    """Shares of pairs that the rater orders as the judge does, at each margin of the judge's confidence.

    Pairs of all kinds, of one domain (all together, and by domain), of different domains, of nearly the same length,
    and of one topic, where both documents are in the sample. Pairs that the judge is undecided about (exactly 0.5) do
    not count; where the rater is, they count half. Where `ENOUGH_HELD_OUT` pairs were held out of the rater's
    training, only those are counted. Wilson's intervals take pairs for independent: where a document is in many pairs
    they are too narrow.

    Args:
        criterion: its name.
        judged: the pairs, with the rater's probabilities.
        documents: for the topics; None: not known.
        level: of the intervals.
    """
    if criterion not in judged.criteria:
        return []
    column = judged.criteria.index(criterion)
    label, p = judged.average[:, column], judged.rater[:, column]
    counted = ~(np.isnan(label) | np.isnan(p)) & (label != 0.5)
    pairs = ALL_UNKNOWN
    if judged.held_out is not None:
        pairs = ALL_KNOWN
        if (counted & judged.held_out).sum() >= ENOUGH_HELD_OUT or judged.held_out[counted].all():
            counted, pairs = counted & judged.held_out, HELD_OUT
    hits = np.where(p == 0.5, 0.5, (p > 0.5) == (label > 0.5))
    rows = []
    for within, part, members in _kinds(judged, documents):
        for margin in MARGINS:
            chosen = members & counted & is_confident(label, margin)
            if num := int(chosen.sum()):
                share = float(hits[chosen].mean())
                ends = wilson(float(hits[chosen].sum()), num, level)
                rows.append(
                    _row(
                        criterion, JUDGMENTS, within, part, PAIR_ACCURACY, num, share, ends, pairs=pairs, margin=margin
                    )
                )
    return rows


def _kinds(judged: JudgedPairs, documents: Audited | None) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Kinds of pairs and their members [m]."""
    names = sorted({name for both in judged.domains for name in both})
    numbers = {name: number for number, name in enumerate(names)}
    sides = np.array([[numbers[first], numbers[second]] for first, second in judged.domains], np.int64).reshape(-1, 2)
    same = sides[:, 0] == sides[:, 1]
    kinds = [(POOLED, "", np.ones(len(judged), bool))]
    if len(names) > 1:
        known = (sides != numbers.get(UNKNOWN, -1)).all(axis=1)
        kinds += [(DOMAIN, "", same & known), (BETWEEN, "", ~same & known)]
        kinds += [(DOMAIN, name, same & known & (sides[:, 0] == number)) for name, number in numbers.items()]
    length = np.maximum([len(text) for text in judged.texts], 1)
    log_ratio = np.log(length[judged.second] / length[judged.first])
    kinds.append((NEAR_LENGTH, "", np.abs(log_ratio) <= _NEAR))
    if documents is not None and len(judged):
        topics = [documents.topics_of([both[side] for both in judged.ids]) for side in (0, 1)]
        kinds.append((TOPIC, "", (topics[0] == topics[1]) & (topics[0] >= 0)))
    return kinds


def _row(
    criterion: str,
    source: str,
    within: str,
    part: str,
    measure: str,
    num: int,
    value: float,
    ends: tuple[float | None, float | None],
    *,
    pairs: str | None = None,
    margin: float | None = None,
) -> dict[str, Any]:
    return {
        "criterion": criterion,
        "source": source,
        "within": within,
        "part": part,
        "measure": measure,
        "pairs": pairs,
        "margin": margin,
        "num": num,
        "value": value,
        "low": ends[0],
        "high": ends[1],
    }
