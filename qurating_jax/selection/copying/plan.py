"""What all workers that copy a selection agree on: which rows are gathered together, and where they go."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qurating_jax.runtime import storage
from qurating_jax.runtime.claims import Claims
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.copying.ranks import Ranges

_TIMEOUT_SECONDS = 6 * 3600.0
_MAX_PARTS = 64  # of a run
_MAX_SHARDS = 100_000  # names have five digits, and their order is that of the selection


@dataclass(frozen=True, eq=False)
class CopyPlan:
    """The plan.

    Attributes:
        counts: int64 [parts], selected documents of every input part.
        shards: ranges of ranks of the output files; in the input's order only their `starts`. None: no output files.
        ids: ranges of ranks in which `ids.parquet` is written.
        rows_per_run: selected documents after which a run of parts ends.
        num_last: documents that come last because the order's score is missing.
    """

    counts: NDArray[np.int64]
    shards: Ranges | None
    ids: Ranges
    rows_per_run: int
    num_last: int

    @property
    def num_selected(self) -> int:
        """Selected documents."""
        return int(self.counts.sum())

    @cached_property
    def firsts(self) -> NDArray[np.int64]:
        """Selected documents before every part, and of all: int64 [parts + 1]."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts)])

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Runs of consecutive parts (first, stop), each gathered into one file; parts without a selected one in none.

        Few parts have many selected documents or all are small: a run ends with the part that fills an output file, so
        that its rows are about as many as those of an output file, or after `_MAX_PARTS` parts.
        """
        runs, start, held = [], 0, 0
        for number, count in enumerate(self.counts.tolist()):
            held += count
            if held >= self.rows_per_run or number + 1 - start == _MAX_PARTS or number + 1 == len(self.counts):
                if held:
                    runs.append((start, number + 1))
                start, held = number + 1, 0
        return runs

    def count_rows(self, run: int) -> int:
        """Selected documents of a run."""
        start, stop = self.runs[run]
        return int(self.firsts[stop] - self.firsts[start])

    def runs_of(self, shard: int) -> list[int]:
        """The runs that feed an output file: in the input's order neighbours, else all."""
        assert self.shards is not None
        if len(self.shards.places) or len(self.shards) <= 1:
            return list(range(len(self.runs)))
        first, stop = int(self.shards.starts[shard]), int(self.shards.starts[shard + 1])
        return [
            number
            for number, (start, end) in enumerate(self.runs)
            if self.firsts[start] < stop and self.firsts[end] > first
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes back."""
        return {
            "counts": self.counts.tolist(),
            "shards": None if self.shards is None else self.shards.to_json(),
            "ids": self.ids.to_json(),
            "rows_per_run": self.rows_per_run,
            "num_last": self.num_last,
        }

    @classmethod
    def from_json(cls, value: Any) -> "CopyPlan":
        """The plan of `to_json`; `KeyError`, `TypeError`, `ValueError` or `OverflowError` if it is none."""
        shards = value["shards"]
        return cls(
            np.array(value["counts"], np.int64),
            None if shards is None else Ranges.from_json(shards),
            Ranges.from_json(value["ids"]),
            int(value["rows_per_run"]),
            int(value["num_last"]),
        )


def in_input_order(num_selected: int, rows_per_shard: int) -> Ranges:
    """Ranges of ranks that are positions in the input: they need no documents at their bounds."""
    starts = np.array([*range(0, num_selected, rows_per_shard), num_selected], np.int64)
    return Ranges(starts, np.zeros(0, np.uint64), np.zeros(0, np.uint64))


def shared_plan(path: str, make: Callable[[], CopyPlan], claims: Claims | None) -> CopyPlan:
    """The plan at a path: made by the first worker, who writes it there; the others wait for it.

    Raises:
        UserError: what stands there is no plan, there are too many output files, or the first worker takes longer than
            six hours.
    """
    with contextlib.ExitStack() as stack:
        if claims is not None:
            stack.enter_context(claims.wait("plan", timeout=_TIMEOUT_SECONDS, purpose="ranks the selected documents"))
        if not storage.exists(path):
            plan = make()
            if plan.shards is not None and len(plan.shards) > _MAX_SHARDS:
                raise UserError(
                    f"{plan.num_selected:,} selected documents make {len(plan.shards):,} files, more than "
                    f"{_MAX_SHARDS:,}; raise --rows_per_shard"
                )
            storage.write_json(path, plan.to_json())
        return read_plan(path)


def read_plan(path: str) -> CopyPlan:
    """The plan at a path; `UserError` where it is missing or is none."""
    try:
        return CopyPlan.from_json(storage.read_json(path))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{path}: not a plan of this version; start again with --overwrite") from None
