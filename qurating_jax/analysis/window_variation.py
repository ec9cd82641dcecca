"""How ratings vary between the windows of a document: is one rating per document enough?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.analysis.means import Floats, moments, nullable

NUM_POSITIONS = 10

WINDOWS = pa.schema(
    [("criterion", pa.string()), ("domain", pa.string()), ("num_documents", pa.int64())]
    + [(name, pa.float64()) for name in ("variance_between", "variance_within", "intraclass_correlation", "mean_range")]
)
POSITIONS = pa.schema(
    [("criterion", pa.string()), ("position", pa.int64()), ("num_windows", pa.int64())]
    + [(name, pa.float64()) for name in ("mean_difference", "low", "high")]
)


@dataclass(frozen=True, eq=False)
class WindowRatings:
    """Ratings of the windows of m documents, of one criterion.

    Attributes:
        values: float64 [w], finite; the windows of a document follow each other.
        offsets: int64 [m + 1], where the windows of each document begin; a document may have none.
    """

    values: Floats
    offsets: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Windows of each document, int64 [m]."""
        return np.diff(self.offsets)


def variation(
    windows: Mapping[str, WindowRatings], domains: NDArray[np.int32], domain_names: Sequence[str]
) -> pa.Table:
    """Variance between documents and within them, over the documents of at least two windows.

    One-way random effects with unequal numbers of windows k_i (Searle, Casella and McCulloch 1992, section 3.6):
    the mean square within is the variance within; that between documents less it, over
    k_0 = (K - sum k_i^2 / K) / (d - 1), K = sum k_i, is the variance between, at least 0. The intraclass correlation
    is the share of the variance between: 1 where a document has one rating throughout, 0 where its windows are no
    more alike than windows of different documents. Windows count alike; `sample.window_ratings` leaves short last
    ones out before.

    Args:
        windows: by criterion.
        domains: int32 [m], numbers into `domain_names`.
        domain_names: of the domains; one domain or none makes no rows of its own.
    """
    rows = []
    for criterion, found in windows.items():
        for domain, members in _parts(found.counts >= 2, domains, domain_names):
            if members.any():
                rows.append({"criterion": criterion, "domain": domain} | _components(found, members))
    return pa.Table.from_pylist(rows, WINDOWS)


def positions(windows: Mapping[str, WindowRatings], level: float) -> pa.Table:
    """How far windows lie from the mean of their document, by tenth of the document.

    Of k windows the one with number i (from 0) stands at position floor(10 i / k): the first one always at 0, and a
    document of few windows at few positions. Means and Student's t intervals are over documents, of each the mean
    of its windows at the position, because windows of one document are not independent.

    Args:
        windows: by criterion; documents of at least two windows count.
        level: of the intervals.
    """
    rows = []
    for criterion, found in windows.items():
        counts = found.counts
        owner = np.repeat(np.arange(len(counts)), counts)
        place = (np.arange(len(owner)) - found.offsets[:-1][owner]) * NUM_POSITIONS // np.maximum(counts, 1)[owner]
        kept = counts[owner] >= 2
        if not kept.any():
            continue
        means = moments(found.values, owner, len(counts)).mean
        difference = (found.values - means[owner])[kept]
        cell = (owner * NUM_POSITIONS + place)[kept]
        cells, member = np.unique(cell, return_inverse=True)
        of_cell = moments(difference, member, len(cells)).mean
        over = moments(of_cell, cells % NUM_POSITIONS, NUM_POSITIONS)
        low, high = over.interval(level)
        num_windows = np.bincount(place[kept], minlength=NUM_POSITIONS)
        for position in np.flatnonzero(num_windows).tolist():
            rows.append(
                {
                    "criterion": criterion,
                    "position": position,
                    "num_windows": int(num_windows[position]),
                    "mean_difference": nullable(over.mean[position]),
                    "low": nullable(low[position]),
                    "high": nullable(high[position]),
                }
            )
    return pa.Table.from_pylist(rows, POSITIONS)


def _parts(
    wanted: NDArray[np.bool_], domains: NDArray[np.int32], domain_names: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    yield "", wanted
    if len(domain_names) > 1:
        for number, name in enumerate(domain_names):
            yield name, wanted & (domains == number)


def _components(found: WindowRatings, members: NDArray[np.bool_]) -> dict[str, float | int | None]:
    counts = found.counts[members]
    owner = np.repeat(np.arange(len(counts)), counts)
    values = found.values[np.repeat(members, found.counts)]
    of_document = moments(values, owner, len(counts))
    starts = np.cumsum(counts) - counts
    spread = np.maximum.reduceat(values, starts) - np.minimum.reduceat(values, starts)
    num_windows, num_documents = len(values), len(counts)
    within = float(of_document.squares.sum()) / (num_windows - num_documents)
    row: dict[str, float | int | None] = {
        "num_documents": num_documents,
        "variance_within": within,
        "mean_range": float(spread.mean()),
    }
    if num_documents > 1:
        center = values.mean()
        mean_square = float((counts * np.square(of_document.mean - center)).sum()) / (num_documents - 1)
        typical = (num_windows - float(np.square(counts).sum()) / num_windows) / (num_documents - 1)
        between = max(mean_square - within, 0.0) / typical
        row["variance_between"] = between
        if between + within > 0:
            row["intraclass_correlation"] = between / (between + within)
    return row
