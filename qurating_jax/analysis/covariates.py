"""What ratings go along with: length, characters, script; the numbers that a rater may have learned instead."""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.analysis.correlations import associations
from qurating_jax.analysis.means import Floats, moments, nullable

NUM_BINS = 10
# What is measured on texts. Shares are of the characters that are not white space.
TEXT_FEATURES = (
    "characters",
    "digit_share",
    "non_ascii_share",
    "uppercase_share",
    "punctuation_share",
    "mean_word_length",
    "words_per_line",
    "repeated_line_share",
)
_SPACE, _DIGITS, _PUNCTUATION = re.compile(r"\s+"), re.compile(r"\d"), re.compile(r"[^\w\s]")
_UPPERCASE, _NON_ASCII = re.compile(r"[A-Z]"), re.compile(r"[^\x00-\x7f]")

COVARIATES = pa.schema(
    [("criterion", pa.string()), ("covariate", pa.string()), ("domain", pa.string()), ("num_documents", pa.int64())]
    + [(name, pa.float64()) for name in ("spearman", "low", "high")]
)
BINS = pa.schema(
    [("criterion", pa.string()), ("covariate", pa.string()), ("bin", pa.int64()), ("low", pa.float64())]
    + [("high", pa.float64()), ("num_documents", pa.int64())]
    + [(name, pa.float64()) for name in ("mean", "mean_low", "mean_high")]
)
SCRIPT_RATINGS = pa.schema(
    [("script", pa.string()), ("criterion", pa.string()), ("num_documents", pa.int64())]
    + [(name, pa.float64()) for name in ("mean", "low", "high")]
)


def text_features(text: str, num_characters: int) -> tuple[float, ...]:
    """The numbers of `TEXT_FEATURES` of a text, which may be cut; `num_characters` are those of the whole.

    Uppercase is A to Z. A word is what stands between white space. A line is repeated where it stood before (blank
    lines do not count). A text without visible characters has 0 everywhere but for its characters.
    """
    words = text.split()
    visible = sum(map(len, words))
    if not visible:
        return (float(num_characters), *(0.0,) * (len(TEXT_FEATURES) - 1))
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    ascii_only = text.isascii()
    return (
        float(num_characters),
        len(_DIGITS.findall(text)) / visible,
        0.0 if ascii_only else len(_NON_ASCII.findall(_SPACE.sub("", text))) / visible,
        len(_UPPERCASE.findall(text)) / visible,
        len(_PUNCTUATION.findall(text)) / visible,
        visible / len(words),
        len(words) / len(lines) if lines else 0.0,
        1.0 - len(set(lines)) / len(lines) if lines else 0.0,
    )


def correlated(
    ratings: Mapping[str, Floats],
    covariates: Mapping[str, Floats],
    domains: NDArray[np.int32],
    domain_names: Sequence[str],
    level: float,
) -> pa.Table:
    """Spearman's correlation of every criterion with every covariate: pooled, within domains, by domain.

    Args:
        ratings: float64 [n] by criterion, NaN where a document has none.
        covariates: float64 [n] by name, NaN where a document has none.
        domains: int32 [n], numbers into `domain_names`.
        domain_names: of the domains.
        level: of the intervals, see `correlations`.
    """
    rows = [
        {
            "criterion": criterion,
            "covariate": covariate,
            "domain": found.domain,
            "num_documents": found.spearman.num,
            "spearman": found.spearman.value,
            "low": found.spearman.low,
            "high": found.spearman.high,
        }
        for criterion, rating in ratings.items()
        for covariate, values in covariates.items()
        for found in associations(rating, values, domains, domain_names, level)
    ]
    return pa.Table.from_pylist(rows, COVARIATES)


def binned(ratings: Mapping[str, Floats], covariates: Mapping[str, Floats], level: float) -> pa.Table:
    """Mean rating by tenth of each covariate, with Student's t intervals; arguments as in `correlated`.

    Edges are the covariate's deciles (Hyndman and Fan 1996, type 7). Where more than a tenth of the documents have the
    least value, as of a share that is mostly 0, these are a bin of their own, and the others are cut into as many
    equal parts as they are tenths. A bin holds its lower edge, the last one its upper edge too.
    """
    rows = []
    for criterion, rating in ratings.items():
        for covariate, values in covariates.items():
            known = ~(np.isnan(rating) | np.isnan(values))
            if known.any():
                for place, entry in _bins(rating[known], values[known], level):
                    rows.append({"criterion": criterion, "covariate": covariate, "bin": place} | entry)
    return pa.Table.from_pylist(rows, BINS)


def _bins(rating: Floats, values: Floats, level: float) -> Iterator[tuple[int, dict[str, float | int | None]]]:
    least = values.min()
    others = values[values > least]
    first = int(len(others) < 0.9 * len(values))  # a bin of the least value alone comes first
    lows, highs = np.full(first, least), np.full(first, least)
    members = np.zeros(len(values), np.int64)
    if len(others):
        num_bins = max(round(NUM_BINS * len(others) / len(values)), 1) if first else NUM_BINS
        edges = np.unique(np.quantile(others if first else values, np.linspace(0.0, 1.0, num_bins + 1)))
        edges = np.repeat(edges, 2) if len(edges) == 1 else edges
        places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        members = np.where(values > least, places + first, 0)
        lows, highs = np.append(lows, edges[:-1]), np.append(highs, edges[1:])
    found = moments(rating, members, len(lows))
    low, high = found.interval(level)
    for place in range(len(lows)):
        yield (
            place,
            {
                "low": float(lows[place]),
                "high": float(highs[place]),
                "num_documents": int(found.count[place]),
                "mean": nullable(found.mean[place]),
                "mean_low": nullable(low[place]),
                "mean_high": nullable(high[place]),
            },
        )


def by_script(
    ratings: Mapping[str, Floats], scripts: NDArray[np.int32], script_names: Sequence[str], level: float
) -> pa.Table:
    """Mean rating of the documents of each script, with Student's t intervals.

    Args:
        ratings: float64 [m] by criterion, NaN where a document has none.
        scripts: int32 [m], numbers into `script_names`.
        script_names: of the scripts.
        level: of the intervals.
    """
    rows = []
    for criterion, rating in ratings.items():
        known = ~np.isnan(rating)
        found = moments(rating[known], scripts[known], len(script_names))
        low, high = found.interval(level)
        for number, name in enumerate(script_names):
            if found.count[number]:
                rows.append(
                    {
                        "script": name,
                        "criterion": criterion,
                        "num_documents": int(found.count[number]),
                        "mean": nullable(found.mean[number]),
                        "low": nullable(low[number]),
                        "high": nullable(high[number]),
                    }
                )
    return pa.Table.from_pylist(rows, SCRIPT_RATINGS)
