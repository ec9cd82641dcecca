"""What ratings look like: documents at percentiles of each criterion, and which documents are shown in full."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.analysis.means import Floats
from qurating_jax.method import gumbel

PERCENTILES = (1, 5, 30, 50, 70, 95, 99)
EXCERPT_CHARACTERS = 400
STRATA = (0.0, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 100.0)  # edges, in per cent, of each criterion

EXAMPLES = pa.schema(
    [(name, pa.string()) for name in ("criterion", "domain")]
    + [("percentile", pa.int64()), ("id", pa.string()), ("rating", pa.float64()), ("excerpt", pa.string())]
)


def percentiles_among(values: Floats, rows: NDArray[np.int64]) -> Floats:
    """Mid-rank percentiles 100 (rank - 1/2) / n of some documents among all rated ones, equal ratings sharing theirs.

    Args:
        values: float64 [n], NaN where a document has none.
        rows: int64 [m], of the documents that are asked for.

    Returns:
        float64 [m], NaN where unrated.
    """
    rising = np.sort(values)  # NaN at the end
    num_rated = len(values) - int(np.isnan(values).sum())
    asked = values[rows]
    below, upto = (np.searchsorted(rising[:num_rated], asked, side=side) for side in ("left", "right"))
    return np.where(np.isnan(asked), np.nan, 100.0 * (below + upto) / (2.0 * max(num_rated, 1)))


def examples(
    ratings: Mapping[str, Floats], domains: NDArray[np.int32], domain_names: Sequence[str]
) -> list[tuple[str, str, int, int]]:
    """Documents nearest to each percentile: (criterion, domain, percentile, row), among all ("") and by domain.

    Args:
        ratings: float64 [m] by criterion, NaN where a document has none.
        domains: int32 [m], numbers into `domain_names`.
        domain_names: of the domains; one domain or none makes no rows of its own.
    """
    found = []
    for criterion, values in ratings.items():
        for domain, members in _parts(values, domains, domain_names):
            order = members[np.argsort(values[members], kind="stable")]
            if len(order):
                for percentile in PERCENTILES:
                    place = min(int(percentile * len(order) / 100.0), len(order) - 1)
                    found.append((criterion, domain, percentile, int(order[place])))
    return found


def examples_table(
    found: Sequence[tuple[str, str, int, int]], ratings: Mapping[str, Floats], ids: Sequence[str], texts: Sequence[str]
) -> pa.Table:
    """`examples` with ids, ratings and the first `EXCERPT_CHARACTERS` characters of the texts [m]."""
    rows = [
        {
            "criterion": criterion,
            "domain": domain,
            "percentile": percentile,
            "id": ids[row],
            "rating": float(ratings[criterion][row]),
            "excerpt": texts[row][:EXCERPT_CHARACTERS],
        }
        for criterion, domain, percentile, row in found
    ]
    return pa.Table.from_pylist(rows, EXAMPLES)


def shown_documents(
    ids_hash: NDArray[np.uint64],
    percentiles: Mapping[str, Floats],
    always: Sequence[int],
    num_shown: int,
    stream: int,
) -> NDArray[np.int64]:
    """The documents whose texts are shown, ascending rows of the sample, at most `num_shown`.

    First those in `always` (the examples at percentiles), as far as there is room. Then the strata of `STRATA` of
    every criterion take turns, each with the next one of its documents in the order of a hash of the ids, until the
    places are filled: the tails, which hold few documents, have as many places as the middle.

    Args:
        ids_hash: uint64 [m].
        percentiles: float64 [m] by criterion, NaN where unrated.
        always: rows that come first.
        num_shown: places.
        stream: of `gumbel.noise_stream`.
    """
    noise = gumbel.uniform(ids_hash, stream)
    chosen = dict.fromkeys(list(dict.fromkeys(always))[:num_shown])
    queues = []
    for values in percentiles.values():
        for low, high in itertools.pairwise(STRATA):
            members = np.flatnonzero((values >= low) & (values < high))
            queues.append(iter(members[np.argsort(noise[members], kind="stable")].tolist()))
    while queues and len(chosen) < num_shown:
        left = []
        for queue in queues:
            row = next((row for row in queue if row not in chosen), None)
            if row is None:
                continue
            left.append(queue)
            if len(chosen) < num_shown:
                chosen[row] = None
        queues = left
    return np.array(sorted(chosen), np.int64)


def _parts(
    values: Floats, domains: NDArray[np.int32], domain_names: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    known = ~np.isnan(values)
    yield "", np.flatnonzero(known)
    if len(domain_names) > 1:
        for number, name in enumerate(domain_names):
            yield name, np.flatnonzero(known & (domains == number))
