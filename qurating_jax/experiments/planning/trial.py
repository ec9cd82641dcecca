"""A plan put to the test: rates from the first experiments of several, what they say of the others, what these took."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qurating_jax.experiments.graph import Graph
from qurating_jax.experiments.planning.amounts import amounts
from qurating_jax.experiments.planning.estimates import Estimate, estimate
from qurating_jax.experiments.planning.measured import Clock, compare_with_records, measured_rates
from qurating_jax.experiments.planning.rates import CPU, Measured
from qurating_jax.experiments.planning.stage_work import Site
from qurating_jax.experiments.step_records import StepRecord
from qurating_jax.parallel.devices import find_device

CLOCKS: tuple[Clock, ...] = ("seconds", "cpu_seconds")
NEAR = 0.2  # a plan is near where it is off by so much at most


@dataclass(frozen=True)
class Beside:
    """Stage runs by one clock: what was planned of those that can be compared, and what they took.

    Attributes:
        steps: that are compared.
        planned, measured: seconds of them together.
        near: how many are planned within 20 % of what they took.
    """

    steps: int
    planned: float
    measured: float
    near: int

    @property
    def ratio(self) -> float | None:
        """Planned over measured; None where nothing is compared."""
        return self.planned / self.measured if self.measured else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self) | {"ratio": self.ratio}


@dataclass(frozen=True)
class Row:
    """What the runs of a stage took, and the plan beside it by every clock; `stage` is empty of all stages together."""

    stage: str
    steps: int
    seconds: float
    cpu_seconds: float
    beside: Mapping[Clock, Beside]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        plain = {name: getattr(self, name) for name in ("stage", "steps", "seconds", "cpu_seconds")}
        return plain | {"plan": {clock: beside.as_dict() for clock, beside in self.beside.items()}}


def keys_of(graph: Graph, experiments: Collection[str]) -> set[str]:
    """Keys of all stage runs of some experiments, what they share with others too."""
    return {key for run in graph.runs if run.experiment in experiments for key in run.steps.values()}


def predict(
    graph: Graph, records: Mapping[str, StepRecord], first: Collection[str], measured: Measured, clock: Clock
) -> list[Estimate]:
    """Estimates of all stage runs but the first ones, from what these counted and how long they took.

    Nothing else is used: neither outputs nor records of the others, nor rates from elsewhere.

    Args:
        graph: of the experiments.
        records: by key.
        first: keys of the runs that are finished.
        measured: what their rates say of their origin.
        clock: whose seconds are estimated.
    """
    known = amounts(graph, counted=first)
    seen = {key: record for key, record in records.items() if key in first}
    rates = [fit.rate for fit in measured_rates(graph, seen, measured, clock=clock, known=known)]
    return [one for one in estimate(graph, _site(seen), rates, known) if one.key not in first]


def rows(
    graph: Graph, records: Mapping[str, StepRecord], planned: Mapping[Clock, Sequence[Estimate]]
) -> tuple[list[Row], Row]:
    """A row for every stage, and one for all of them together."""
    stages = dict.fromkeys(node.stage for node in graph.nodes.values())
    return [_row(graph, records, planned, {stage}, stage) for stage in stages], _row(
        graph, records, planned, stages, ""
    )


def _row(
    graph: Graph,
    records: Mapping[str, StepRecord],
    planned: Mapping[Clock, Sequence[Estimate]],
    stages: Collection[str],
    name: str,
) -> Row:
    own = [record for key, record in records.items() if graph.nodes[key].stage in stages]
    beside: dict[Clock, Beside] = {}
    for clock, estimates in planned.items():
        compared = [one for one in compare_with_records(estimates, records, clock) if one.stage in stages]
        beside[clock] = Beside(
            steps=len(compared),
            planned=sum(one.planned_seconds for one in compared),
            measured=sum(one.measured_seconds for one in compared),
            near=sum(abs(one.ratio - 1) <= NEAR for one in compared),
        )
    cpu_seconds = sum(record.cpu_seconds or 0.0 for record in own)
    return Row(name, len(own), sum(record.seconds for record in own), cpu_seconds, beside)


def _site(records: Mapping[str, StepRecord]) -> Site:
    """Where the steps ran that ran on this machine."""
    here = [record for record in records.values() if record.device is not None and record.cores is not None]
    if not here:
        return Site(None, 1, 1)
    one = here[-1]
    device = None if one.device in (None, CPU) else find_device(one.device)
    return Site(device, one.num_devices or 1, one.cores or 1)
