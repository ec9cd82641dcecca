"""Who is rated how: ratings by the groups of a column, such as role, region or language.

Ratings do not measure social or literary value. A lower mean says that selecting by this rating leaves more of a
group's texts out, not that they are worse; see docs/analysis.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.analysis.means import Floats, moments, nullable, welch_difference
from qurating_jax.method.intervals import wilson

MOST_GROUPS = 200  # of a column in the table: the largest
CAUTION = (
    "Ratings do not measure social or literary value: a group's lower mean says that a selection by this rating leaves "
    "more of its texts out, not that they are worth less."
)

GROUPS = pa.schema(
    [("column", pa.string()), ("group", pa.string()), ("criterion", pa.string()), ("num_documents", pa.int64())]
    + [
        (name, pa.float64())
        for name in (
            "mean", "low", "high", "threshold", "share_above", "share_low", "share_high", "difference",
            "difference_low", "difference_high",
        )
    ]
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Grouping:
    """A column of names.

    Attributes:
        codes: int32 [n], numbers into `names`, negative where the column is null.
        names: in ascending order.
    """

    codes: NDArray[np.int32]
    names: Sequence[str]


def by_group(
    ratings: Mapping[str, Floats],
    tokens: NDArray[np.int64],
    groupings: Mapping[str, Grouping],
    *,
    budget_fraction: float,
    level: float,
) -> pa.Table:
    """Means, shares above the selection's threshold, and differences from all other documents.

    Args:
        ratings: float64 [n] by criterion, NaN where a document has none.
        tokens: int64 [n].
        groupings: by column, of the same n documents. Documents of no group are not among the "others" either.
        budget_fraction: of the tokens: the threshold is the least rating that `top_k` with this budget takes.
        level: of the intervals: Student's t of means, Wilson's of shares, Welch's of differences.
    """
    rows = []
    thresholds = {name: threshold(rating, tokens, budget_fraction) for name, rating in ratings.items() if groupings}
    for column, grouping in groupings.items():
        sizes = np.bincount(grouping.codes[grouping.codes >= 0], minlength=len(grouping.names))
        shown = sorted(np.argsort(-sizes, kind="stable")[:MOST_GROUPS].tolist())
        for criterion, rating in ratings.items():
            known = ~np.isnan(rating)
            values, codes = rating[known], grouping.codes[known]
            found = moments(values, codes, len(grouping.names))
            low, high = found.interval(level)
            difference = welch_difference(found, found.others(), level)
            cut = thresholds[criterion]
            member = codes >= 0
            above = np.bincount(codes[member & (values >= cut)], minlength=len(grouping.names))
            for number in (number for number in shown if found.count[number]):
                count = int(found.count[number])
                share = wilson(int(above[number]), count, level)
                rows.append(
                    {"column": column, "group": grouping.names[number], "criterion": criterion, "num_documents": count}
                    | {"mean": nullable(found.mean[number]), "low": nullable(low[number])}
                    | {"high": nullable(high[number]), "threshold": cut, "share_above": above[number] / count}
                    | {"share_low": share[0], "share_high": share[1], "difference": nullable(difference[0][number])}
                    | {"difference_low": nullable(difference[1][number])}
                    | {"difference_high": nullable(difference[2][number])}
                )
    return pa.Table.from_pylist(rows, GROUPS)


def threshold(rating: Floats, tokens: NDArray[np.int64], budget_fraction: float) -> float:
    """The least rating among the best documents that together hold this share of the rated tokens; NaN for none.

    What `select --strategy top_k --normalize none` without domains takes; equal ratings count as above.
    """
    known = ~np.isnan(rating)
    if not known.any():
        return float("nan")
    order = np.argsort(-rating[known], kind="stable")
    held = np.cumsum(tokens[known][order])
    place = int(np.searchsorted(held, budget_fraction * held[-1]))
    return float(rating[known][order[min(place, len(order) - 1)]])
