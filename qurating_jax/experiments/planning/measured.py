"""From the records of finished steps to rates, and back: what was planned beside what it took."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qurating_jax.experiments.graph import Graph
from qurating_jax.experiments.planning.amounts import Amounts, amounts
from qurating_jax.experiments.planning.estimates import Estimate
from qurating_jax.experiments.planning.rates import CPU, Measured, Rate
from qurating_jax.experiments.planning.stage_work import Site, Work, work_of
from qurating_jax.experiments.step_records import StepRecord, read_step
from qurating_jax.parallel.devices import find_device

Clock = Literal["seconds", "cpu_seconds"]  # on the wall, or of all cores: this one knows no other load
Told = Literal["start and work apart", "one size, the start in it", "larger runs took no longer"]

_SPREAD = 1.5  # of sizes, from which on a start can be told from work
_UNSEEN = 0.01  # of the time of a run is taken for its work where larger ones took no longer
_LONG_SECONDS = 60.0  # of a run, beside which its start is little
# Of the largest run's time, from which on its work says something of larger ones, and how long that has to be at least:
# starts differ by seconds.
_LARGE_SHARE, _LARGE_SECONDS = 0.5, 10.0


@dataclass(frozen=True)
class Fit:
    """The rate of one kind of work: a stage, on a device, with a model of one size.

    Attributes:
        rate: units per second, and the seconds of a start.
        runs: that it comes from.
        least, most: units of them.
        told: how the start was told from the work.
        carries: True where the rate may stand for runs of other sizes; elsewhere it is right for runs like these, whose
            time is mostly their start.
    """

    rate: Rate
    runs: int
    least: float
    most: float
    told: Told
    carries: bool


@dataclass(frozen=True)
class Comparison:
    """A stage run: seconds that were planned, and that it took."""

    stage: str
    steps: tuple[str, ...]
    key: str
    planned_seconds: float
    measured_seconds: float

    @property
    def ratio(self) -> float:
        """Planned over measured."""
        return self.planned_seconds / self.measured_seconds


def read_records(graph: Graph) -> dict[str, StepRecord]:
    """The records of a graph's steps by key, as far as there are some."""
    found = {key: read_step(graph.output, node.name) for key, node in graph.nodes.items()}
    return {key: record for key, record in found.items() if record is not None}


def measured_rates(
    graph: Graph,
    records: Mapping[str, StepRecord],
    measured: Measured,
    *,
    clock: Clock = "seconds",
    known: Amounts | None = None,
) -> list[Fit]:
    """A rate for each kind of work that finished steps did.

    Steps that were resumed do not count: their time is that of the last process alone. Neither do steps without work in
    it, nor those that a launcher ran elsewhere.

    Args:
        graph: of experiments; their outputs say how much was done.
        records: by key.
        measured: what the rates say of their origin.
        clock: what is a second.
        known: what is known of amounts; None: what can be found out.
    """
    known = known or amounts(graph)
    kinds: dict[tuple[object, ...], list[tuple[Work, float]]] = {}
    for key, record in records.items():
        node, seconds = graph.nodes.get(key), getattr(record, clock)
        if node is None or record.resumed or record.device is None or record.cores is None or not seconds:
            continue
        device = None if record.device == CPU else find_device(record.device)
        if device is None and record.device != CPU:
            continue
        work = work_of(known, node, Site(device, record.num_devices or 1, record.cores))
        if not work.units or work.unit is None or work.where == "elsewhere":
            continue
        on_device = work.where == "device" and device is not None
        place = (device.name, record.num_devices or 1) if on_device and device else (CPU, work.cores_of(record.cores))
        per_unit = None if work.flops_per_unit is None else f"{work.flops_per_unit:.2e}"  # within a percent
        kinds.setdefault((node.stage, work.unit, *place, per_unit), []).append((work, seconds))
    return [_fit_of(kind, done, measured) for kind, done in kinds.items()]


def compare_with_records(
    estimates: Sequence[Estimate], records: Mapping[str, StepRecord], clock: Clock = "seconds"
) -> list[Comparison]:
    """Planned and measured seconds of all steps that have both; resumed steps do not count."""
    return [
        Comparison(one.stage, one.steps, one.key, 3600 * one.hours, seconds)
        for one in estimates
        if one.hours is not None
        and (record := records.get(one.key)) is not None
        and not record.resumed
        and (seconds := getattr(record, clock))
    ]


def fit(points: Sequence[tuple[float, float]]) -> tuple[float, float, Told]:
    """Units per second, and the seconds of a start, of runs.

    The median of the slopes between runs whose sizes differ by half and more, and the median of what is left (Theil
    1950, Sen 1968): a run that compiled, or that had to share the machine, does not move it.

    Args:
        points: (units, seconds) of each run, both above 0.
    """
    sizes, times = zip(*points, strict=True)
    if max(sizes) < _SPREAD * min(sizes):
        return (
            statistics.median(units / seconds for units, seconds in points),
            0.0,
            "one size, the start in it",
        )
    pairs = (sorted(pair) for pair in itertools.combinations(points, 2))
    slope = statistics.median(
        (longer - shorter) / (more - less) for (less, shorter), (more, longer) in pairs if more >= _SPREAD * less
    )
    if slope <= 0:
        typical = statistics.median(times)
        return max(sizes) / (_UNSEEN * typical), (1 - _UNSEEN) * typical, "larger runs took no longer"
    start = statistics.median(seconds - slope * units for units, seconds in points)
    if start < 0:
        return statistics.median(units / seconds for units, seconds in points), 0.0, "start and work apart"
    return 1 / slope, start, "start and work apart"


def _fit_of(kind: tuple[object, ...], done: list[tuple[Work, float]], measured: Measured) -> Fit:
    stage, unit, device, number, _ = kind
    points = [(float(work.units or 0), seconds) for work, seconds in done]
    per_second, start, told = fit(points)
    sizes = sorted(units for units, _ in points)
    largest = sizes[-1] / per_second
    if told == "one size, the start in it":
        carries = min(seconds for _, seconds in points) >= _LONG_SECONDS
    else:
        carries = largest >= max(_LARGE_SECONDS, _LARGE_SHARE * (start + largest))
    rate = Rate(
        stage=str(stage),
        device=str(device),
        cores=int(str(number)) if device == CPU else None,
        num_devices=None if device == CPU else int(str(number)),
        work=f"{len(points)} run(s) of {sizes[0]:.4g} to {sizes[-1]:.4g} {unit}; {told}",
        unit=unit,  # type: ignore[arg-type]
        per_second=per_second,
        flops_per_unit=statistics.fmean(per_unit) if (per_unit := _per_unit(done)) else None,
        startup_seconds=start,
        measured=measured,
    )
    return Fit(rate, len(points), sizes[0], sizes[-1], told, carries)


def _per_unit(done: list[tuple[Work, float]]) -> list[float]:
    return [work.flops_per_unit for work, _ in done if work.flops_per_unit is not None]
