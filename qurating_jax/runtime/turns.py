"""Measurements in turns: machines are noisy, so every side does a little, one after the other, again and again.

A turn is measured by the wall clock and by the CPU seconds of this process (all its threads). What two sides are
compared by is the ratio of their medians and the median of the ratios within a round.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

# Worker threads of OpenMP go on spinning for a while after their last work; that must not count as the next side's.
_PAUSE_SECONDS = 0.25
_COMPILED = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"


@dataclass(frozen=True)
class Amount:
    """What a side has done in a turn.

    Attributes:
        tokens: of texts.
        places: of the batches they were in, padding included; 0: there are none.
        flops: operations that the model needs for these texts, padding excluded; 0: there is no model.
    """

    tokens: int
    places: int = 0
    flops: float = 0.0


@dataclass(frozen=True)
class Turn:
    """An amount, the seconds it took by the wall clock and in CPU time, and what was compiled before or meanwhile."""

    amount: Amount
    wall: float
    cpu: float
    compiling: "Compiling"


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        warm: a little of the work, not counted, right before a turn: memory that lay idle may have to be paged in.
        run: the work of a round, by its number.
    """

    warm: Callable[[], object]
    run: Callable[[int], Amount]


class Compiling:
    """While the block runs, counts what XLA compiles.

    Attributes:
        programs: programs that were not compiled in this process yet.
        from_cache: how many of them came out of the persistent cache.
        seconds: in the compiler, or in reading the cache.
    """

    def __init__(self) -> None:
        self.programs, self.from_cache, self.seconds = 0, 0, 0.0

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._on_seconds)
        jax.monitoring.register_event_listener(self._on_event)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_seconds)
        jax.monitoring.unregister_event_listener(self._on_event)

    def _on_seconds(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            self.programs += 1
            self.seconds += duration_secs

    def _on_event(self, event: str, **_: str | int) -> None:
        self.from_cache += event == _FROM_CACHE


def in_turns(sides: Mapping[str, Side], rounds: int) -> dict[str, list[Turn]]:
    """Every side once a round, in changing order; a turn in which something was compiled is done again.

    Returns:
        `rounds` turns of every side.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            turn = _turn(sides[name], number)
            if turn.compiling.programs:
                turn = replace(_turn(sides[name], number), compiling=turn.compiling)
            turns[name].append(turn)
    return turns


def _turn(side: Side, number: int) -> Turn:
    gc.collect()
    time.sleep(_PAUSE_SECONDS)
    side.warm()
    with Compiling() as compiling:
        wall, cpu = time.perf_counter(), time.process_time()
        amount = side.run(number)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Turn(amount, wall, cpu, compiling)


def compiled(parts: Sequence[Compiling]) -> dict[str, Any]:
    """Sums over parts of a run."""
    return {
        "programs": sum(part.programs for part in parts),
        "from_cache": sum(part.from_cache for part in parts),
        "compiler_seconds": sum(part.seconds for part in parts),
    }


def summary(turns: Sequence[Turn]) -> dict[str, Any]:
    """Tokens per second of a side by wall clock and by CPU seconds, its FLOP/s (median) and its padding."""
    tokens, places = (sum(getattr(turn.amount, name) for turn in turns) for name in ("tokens", "places"))
    return {
        "tokens_per_second": spread([turn.amount.tokens / turn.wall for turn in turns]),
        "tokens_per_cpu_second": spread([turn.amount.tokens / turn.cpu for turn in turns]),
        "flops_per_second": float(np.median([turn.amount.flops / turn.wall for turn in turns])),
        "padding": 1 - tokens / places if places else None,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest value."""
    return {"median": float(np.median(values)), "low": float(np.min(values)), "high": float(np.max(values))}


def ratios(ours: Sequence[Turn], theirs: Sequence[Turn]) -> dict[str, dict[str, float]]:
    """How many times as many tokens per second one side does: of medians, and the median of the rounds' ratios."""
    found = {}
    for clock in ("wall", "cpu"):
        mine, other = (np.array([t.amount.tokens / getattr(t, clock) for t in side]) for side in (ours, theirs))
        found[clock] = {
            "of_medians": float(np.median(mine) / np.median(other)),
            "median_of_rounds": float(np.median(mine / other)),
        }
    return found
