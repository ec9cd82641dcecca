"""From the records of finished steps to rates, and back: what was planned beside what it took."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qurating_jax.experiments.graph import Graph
from qurating_jax.experiments.planning.amounts import amounts
from qurating_jax.experiments.planning.estimates import Estimate
from qurating_jax.experiments.planning.rates import CPU, Measured, Rate
from qurating_jax.experiments.planning.stage_work import Site, Work, work_of
from qurating_jax.experiments.step_records import StepRecord, read_step
from qurating_jax.parallel.devices import find_device

_SPREAD = 1.5  # of sizes, from which on a start can be told from work


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


def measured_rates(graph: Graph, records: Mapping[str, StepRecord], measured: Measured) -> list[Rate]:
    """A rate for each kind of work that finished steps did: a stage, on a device, with a model of one size.

    Where a kind of work was done in sizes that differ by half and more, the start is told from the work by a line of
    least squares; elsewhere the rate has the start in it, and is right for work of this size. Steps that were resumed
    do not count: their time is that of the last process alone. Neither do steps without work in it.

    Args:
        graph: of experiments; their outputs say how much was done.
        records: by key.
        measured: what the rates say of their origin.
    """
    known = amounts(graph)
    kinds: dict[tuple[object, ...], list[tuple[Work, float]]] = {}
    for key, record in records.items():
        node = graph.nodes.get(key)
        if node is None or record.resumed or record.device is None or record.cores is None or not record.seconds > 0:
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
        kinds.setdefault((node.stage, work.unit, *place, per_unit), []).append((work, record.seconds))
    return [_rate(kind, done, measured) for kind, done in kinds.items()]


def compare_with_records(estimates: Sequence[Estimate], records: Mapping[str, StepRecord]) -> list[Comparison]:
    """Planned and measured seconds of all steps that have both; resumed steps do not count."""
    return [
        Comparison(one.stage, one.steps, one.key, 3600 * one.hours, records[one.key].seconds)
        for one in estimates
        if one.hours is not None and one.key in records and not records[one.key].resumed
    ]


def _rate(kind: tuple[object, ...], done: list[tuple[Work, float]], measured: Measured) -> Rate:
    stage, unit, device, number, _ = kind
    points = [(float(work.units or 0), seconds) for work, seconds in done]
    per_second, start = _line(points)
    sizes = sorted(units for units, _ in points)
    what = f"{len(points)} run(s) of {sizes[0]:.4g} to {sizes[-1]:.4g} {unit}"
    return Rate(
        stage=str(stage),
        device=str(device),
        cores=int(str(number)) if device == CPU else None,
        num_devices=None if device == CPU else int(str(number)),
        work=what,
        unit=unit,  # type: ignore[arg-type]
        per_second=per_second,
        flops_per_unit=statistics.fmean(per_unit) if (per_unit := _per_unit(done)) else None,
        startup_seconds=start,
        measured=measured,
    )


def _per_unit(done: list[tuple[Work, float]]) -> list[float]:
    return [work.flops_per_unit for work, _ in done if work.flops_per_unit is not None]


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """(units per second, seconds to start) of (units, seconds)."""
    sizes = [units for units, _ in points]
    if max(sizes) >= _SPREAD * min(sizes):
        slope, start = statistics.linear_regression(sizes, [seconds for _, seconds in points])
        if slope > 0 and start >= 0:
            return 1 / slope, start
    return statistics.median(units / seconds for units, seconds in points), 0.0
