"""Held-out figures of runs with several seeds, and their differences, on the documents that the runs have in common."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qurating_jax.experiments.comparing.outcomes import Evaluated
from qurating_jax.method import seeds
from qurating_jax.method.perplexity import Estimate
from qurating_jax.method.seeds import Moves
from qurating_jax.runtime.errors import UserError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Panel:
    """Runs side by side on the n documents that all of them have and that all of them predict something of.

    Attributes:
        domains: [n].
        nats: float64 [n, S], S runs.
        num_tokens, num_bytes: int64 [n, S].
        same_tokenizer: nats per token of all runs count the same tokens.
        num_left_out: documents that some of the runs have and others lack.
    """

    domains: NDArray[np.object_]
    nats: Floats
    num_tokens: Ints
    num_bytes: Ints
    same_tokenizer: bool
    num_left_out: int

    def parts(self) -> dict[str, Ints]:
        """Rows of each domain, in the order of their names."""
        names, member = np.unique(self.domains.astype(str), return_inverse=True)
        return {str(name): np.flatnonzero(member == number) for number, name in enumerate(names)}

    def moves(self, unit: str, rows: Ints, runs: slice) -> Moves | None:
        """Of nats per token ("nats_per_token") or bits per byte ("bits_per_byte"); None where it cannot be known."""
        if unit == "bits_per_byte":
            return seeds.ratio_moves(self.nats[rows, runs] / math.log(2), self.num_bytes[rows, runs])
        return seeds.ratio_moves(self.nats[rows, runs], self.num_tokens[rows, runs]) if self.same_tokenizer else None


def panel(runs: Sequence[Evaluated]) -> Panel:
    """Aligns runs by their documents.

    Raises:
        UserError: no document in common, or one that has other tokens in another run of the same tokenizer.
    """
    first = runs[0]
    common = first.keys
    for run in runs[1:]:
        common = common.filter(pc.is_in(common, value_set=run.keys))
    if not len(common):
        other = next((run for run in runs[1:] if _apart(first, run)), runs[-1])
        raise UserError(
            f"{first.directory} and {other.directory} have no held-out document in common; evaluate all runs on the "
            "same --input"
        )
    every = len(pc.unique(pa.chunked_array([run.keys for run in runs])))
    rows = [pc.index_in(common, value_set=run.keys).to_numpy() for run in runs]
    nats, num_tokens, num_bytes = (
        np.stack([getattr(run, name)[row] for run, row in zip(runs, rows, strict=True)], axis=1)
        for name in ("nats", "num_tokens", "num_bytes")
    )
    for place, run in enumerate(runs):
        differs = num_tokens[:, place] != num_tokens[:, 0]
        if run.tokenizer == first.tokenizer and differs.any():
            number = int(np.argmax(differs))
            raise UserError(
                f"document {common[number]} has {num_tokens[number, 0]} tokens in {first.directory} and "
                f"{num_tokens[number, place]} in {run.directory}: not the same text; evaluate all runs on the same "
                "--input"
            )
    counting = (num_tokens > 0).all(axis=1)  # what a tokenizer makes one token of counts for no run
    return Panel(
        first.domains[rows[0]][counting],
        nats[counting],
        num_tokens[counting],
        num_bytes[counting],
        len({run.tokenizer for run in runs}) == 1,
        every - len(common),
    )


def figures(runs: Sequence[Evaluated], level: float) -> dict[str, Any]:
    """Of one experiment, a run per seed.

    Returns:
        Plain values for JSON: `documents_left_out` (that not every seed has), and `all`, `macro`, `domains` as in an
        eval.json, with the errors of `method.seeds`.
    """
    of = panel(runs)

    def measures(rows: Ints) -> dict[str, Any]:
        counts = {"num_documents": len(rows)}
        counts |= {name: int(getattr(of, name)[rows, 0].sum()) for name in ("num_tokens", "num_bytes")}
        return counts | _with_perplexity(
            {unit: _estimated(of.moves(unit, rows, slice(None)), level) for unit in ("nats_per_token", "bits_per_byte")}
        )

    def average(parts: Sequence[Ints]) -> dict[str, Any]:
        return _with_perplexity(
            {
                unit: _estimated(_mean([of.moves(unit, rows, slice(None)) for rows in parts]), level)
                for unit in ("nats_per_token", "bits_per_byte")
            }
        )

    return {"documents_left_out": of.num_left_out, **_by_domain(of, measures, average)}


def differences(
    ours: Sequence[Evaluated], theirs: Sequence[Evaluated], level: float, *, paired: bool
) -> dict[str, Any]:
    """Of one experiment less another, on the same documents; below 0 the first is the better one.

    Args:
        ours: a run per seed.
        theirs: the same of the other; where `paired` the same seeds in the same order.
        level: of the intervals.
        paired: see `method.seeds.difference`.

    Returns:
        Plain values for JSON: `num_documents`, `documents_left_out` (that not every run has), and `all`, `macro`,
        `domains` with `bits_per_byte` and, of one tokenizer, `nats_per_token` (else null).
    """
    of = panel([*ours, *theirs])
    sides = (slice(0, len(ours)), slice(len(ours), None))

    def contrast(unit: str, parts: Sequence[Ints]) -> dict[str, Any] | None:
        """Of the mean over parts; of a single part it is that part's."""
        one, other = (_mean([of.moves(unit, rows, side) for rows in parts]) for side in sides)
        if one is None or other is None:
            return None
        return asdict(seeds.difference(one, other, level, paired=paired))

    def both(parts: Sequence[Ints]) -> dict[str, Any]:
        return {unit: contrast(unit, parts) for unit in ("nats_per_token", "bits_per_byte")}

    found = _by_domain(of, lambda rows: {"num_documents": len(rows), **both([rows])}, both)
    return {"num_documents": len(of.domains), "documents_left_out": of.num_left_out, **found}


def _by_domain(
    of: Panel, measure: Callable[[Ints], dict[str, Any]], average: Callable[[Sequence[Ints]], dict[str, Any]]
) -> dict[str, Any]:
    parts = of.parts()
    return {
        "all": measure(np.arange(len(of.domains))),
        "macro": {"num_domains": len(parts), **average(list(parts.values()))},
        "domains": {name: measure(rows) for name, rows in parts.items()},
    }


def _mean(parts: Sequence[Moves | None]) -> Moves | None:
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return known[0] if len(known) == 1 else seeds.mean_of_parts(known)


def _estimated(moves: Moves | None, level: float) -> Estimate | None:
    return None if moves is None else seeds.estimate(moves, level)


def _with_perplexity(estimates: Mapping[str, Estimate | None]) -> dict[str, Any]:
    per_token = estimates["nats_per_token"]
    every = {**estimates, "perplexity": None if per_token is None else per_token.exponential()}
    return {unit: None if value is None else asdict(value) for unit, value in every.items()}


def _apart(one: Evaluated, other: Evaluated) -> bool:
    return not pc.any(pc.is_in(one.keys, value_set=other.keys)).as_py()
