"""From the verdicts of one or several judges to soft labels."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qurating_jax.method.judgments import combine_orders


def dense(
    verdicts: pa.Table, criteria: Sequence[str], judges: Sequence[str], num_groups: int, group_size: int
) -> NDArray[np.float64]:
    """The usable verdicts as an array [J, n, k, k, C], NaN = none.

    [v, g, i, j, c] = p(text j is preferred | i shown first, j second). Usable are verdicts of purpose "main" and
    outcome "ok" with a probability; those on other criteria or by other judges are left out.

    Args:
        verdicts: a table of `data.verdicts.SCHEMA`.
        criteria: C names, the order of the last axis.
        judges: J names, the order of the first axis.
        num_groups: n.
        group_size: k.

    Raises:
        ValueError: a group or slot out of range, or two verdicts for one place.
    """
    criterion = pc.index_in(verdicts["criterion"], value_set=pa.array(criteria, pa.string()))
    judge = pc.index_in(verdicts["judge"], value_set=pa.array(judges, pa.string()))
    usable = pc.equal(verdicts["purpose"], "main")
    for condition in (
        pc.equal(verdicts["outcome"], "ok"),
        pc.is_valid(verdicts["p_second"]),
        pc.is_valid(criterion),
        pc.is_valid(judge),
    ):
        usable = pc.and_(usable, condition)
    columns = (judge, verdicts["group"], verdicts["first_slot"], verdicts["second_slot"], criterion)
    index = [column.filter(usable).to_numpy().astype(np.int64) for column in columns]
    p = np.full((len(judges), num_groups, group_size, group_size, len(criteria)), np.nan)
    flat = np.ravel_multi_index(index, p.shape)  # raises ValueError where one is out of range
    cells, counts = np.unique(flat, return_counts=True)
    if len(cells) < len(flat):
        place = np.unravel_index(cells[counts > 1][0], p.shape)
        raise ValueError(
            f"two verdicts of {judges[place[0]]} on {criteria[place[4]]} for texts {place[2]} and {place[3]} "
            f"of group {place[1]}"
        )
    p.reshape(-1)[flat] = verdicts["p_second"].filter(usable).to_numpy()
    return p


def aggregate(
    p: NDArray[np.float64], how: Literal["mean", "majority"] = "mean"
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Soft labels of several judges, about "text j preferred to text i" (see `method.judgments.SoftLabels`).

    - mean: for each order the mean over the judges with a verdict, then both orders together.
    - majority: each judge with both orders has one vote, for the text that its average of both orders prefers, half for
      each in a tie; the average is the mean of the votes. For the two orders apart, each judge's verdict on the order
      is its vote.

    Args:
        p: [J, n, k, k, C] of `dense`.
        how: see above.

    Returns:
        average, votes_a, votes_b [n, k, k, C], NaN = missing.
    """
    if how == "mean":
        labels = combine_orders(np.moveaxis(_mean(p), -1, 1))
        average, votes_a, votes_b = (np.moveaxis(m, 1, -1) for m in (labels.average, labels.votes_a, labels.votes_b))
        return average, votes_a, votes_b
    if how != "majority":
        raise ValueError(f"judges are aggregated by mean or majority, not {how!r}")
    # The sign of p_ij - p_ji is that of the average less 0.5, without the rounding of 1 - p_ji.
    average = _mean((np.sign(p - np.swapaxes(p, 2, 3)) + 1.0) / 2.0)
    votes_b = _mean((np.sign(p - 0.5) + 1.0) / 2.0)
    return average, 1.0 - np.swapaxes(votes_b, 1, 2), votes_b


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis of what is there, NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    return np.where(count > 0, np.where(there, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
