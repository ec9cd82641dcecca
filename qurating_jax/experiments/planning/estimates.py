"""How long the stage runs of a graph take, and what they cost: work over speed, and where the speed comes from.

A speed is measured (the same stage and FLOPs per unit on the same device), scaled from the nearest measurement, or, on
accelerators, assumed as a share of the peak (`training.planning.ASSUMED_MFU`). Where there is none of these, hours are
unknown, and sums are `at_least`.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qurating_jax.experiments.graph import Graph, Node
from qurating_jax.experiments.planning.amounts import Amounts, amounts
from qurating_jax.experiments.planning.rates import CPU, Rate, find_speed
from qurating_jax.experiments.planning.stage_work import Site, Work, work_of
from qurating_jax.training.planning import ASSUMED_MFU

Basis = Literal["measured", "scaled", "assumed", "given", "unknown"]


@dataclass(frozen=True)
class Estimate:
    """What a stage run takes.

    Attributes:
        key, stage, steps: of its node.
        runs: how many runs of experiments need it.
        done: its output is finished.
        work: units, FLOPs, storage, memory.
        documents: that it writes, or makes its output of.
        tokens: of these documents.
        device: where it runs: an accelerator's name or `cpu`; empty for what runs elsewhere.
        number: accelerators, or cores that it uses.
        per_second: units per second of all of them.
        hours: of the run; None where no speed is known.
        basis: of `per_second`.
        source: the measurement or assumption, for people.
        cost: at the user's prices; None where they are not given or hours are not known.
    """

    key: str
    stage: str
    steps: tuple[str, ...]
    runs: int
    done: bool
    work: Work
    documents: int | None
    tokens: int | None
    device: str
    number: int
    per_second: float | None
    hours: float | None
    basis: Basis
    source: str
    cost: float | None

    @property
    def device_hours(self) -> float | None:
        """Hours of accelerators; 0 for what runs on hosts."""
        if not self.on_device:
            return 0.0
        return None if self.hours is None else self.hours * self.number

    @property
    def host_hours(self) -> float | None:
        """Hours of hosts without accelerators; 0 for what runs on these or elsewhere."""
        return self.hours if self.device == CPU else 0.0

    @property
    def on_device(self) -> bool:
        """True where accelerators work."""
        return self.device not in (CPU, "")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        memory = self.work.memory
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "work"}
        return plain | {
            "unit": self.work.unit,
            "units": self.work.units,
            "flops": self.work.flops,
            "device_hours": self.device_hours,
            "host_hours": self.host_hours,
            "storage_bytes": self.work.storage,
            "memory_bytes": None if memory is None else memory.peak,
            "memory_verdict": None if memory is None or not self.on_device else memory.verdict,
            "refused": self.work.refused or None,
            "notes": self.work.notes,
            "facts": self.work.facts,
        }


@dataclass(frozen=True)
class Totals:
    """Sums over stage runs; `unknown` counts the runs whose hours are not in them, so that sums are at least so much.

    Storage is that of finished outputs; memory the most that one device needs.
    """

    runs: int
    flops: float
    hours: float
    device_hours: float
    host_hours: float
    cost: float | None
    storage_bytes: int
    memory_bytes: int | None
    unknown: int
    unknown_storage: int

    @property
    def at_least(self) -> bool:
        """True where hours of some run are not known."""
        return self.unknown > 0


def estimate(graph: Graph, site: Site, rates: Sequence[Rate], known: Amounts | None = None) -> list[Estimate]:
    """An estimate for every stage run of a graph, in its order.

    Args:
        graph: stage runs.
        site: where they run.
        rates: what was measured.
        known: what is known of amounts; None: what can be found out.
    """
    known = known or amounts(graph)
    return [_estimate(known, node, site, rates) for node in graph.nodes.values()]


def totals(estimates: Iterable[Estimate]) -> Totals:
    """Sums. Hours are of one run after the other."""
    several = list(estimates)
    priced = [one.cost for one in several if one.cost is not None]
    peaks = [one.work.memory.peak for one in several if one.work.memory is not None]
    return Totals(
        runs=len(several),
        flops=sum(one.work.flops or 0.0 for one in several),
        hours=sum(one.hours or 0.0 for one in several),
        device_hours=sum(one.device_hours or 0.0 for one in several),
        host_hours=sum(one.host_hours or 0.0 for one in several),
        cost=sum(priced) if priced else None,
        storage_bytes=sum(one.work.storage or 0 for one in several),
        memory_bytes=max(peaks, default=None),
        unknown=sum(one.hours is None for one in several),
        unknown_storage=sum(one.work.storage is None for one in several),
    )


def _estimate(known: Amounts, node: Node, site: Site, rates: Sequence[Rate]) -> Estimate:
    work = work_of(known, node, site)
    on_device = work.where == "device" and site.device is not None
    device = "" if work.where == "elsewhere" else site.device.name if on_device and site.device else CPU
    number = site.num_devices if on_device else work.cores_of(site.cores)
    per_second, startup, basis, source = _speed(node.stage, work, site, rates, device, number)
    hours = None
    if per_second is not None and work.units is not None:
        hours = (startup + work.units / per_second) / 3600
    price = site.device_price if on_device else site.host_price
    cost = None if price is None or hours is None or not device else price * hours * (number if on_device else 1)
    found = known.nodes[node.key]
    return Estimate(
        node.key, node.stage, node.steps, len(node.used_by), node.key in known.finished, work, found.documents,
        found.tokens, device, number, per_second, hours, basis, source, cost,
    )  # fmt: skip


def _speed(
    stage: str, work: Work, site: Site, rates: Sequence[Rate], device: str, number: int
) -> tuple[float | None, float, Basis, str]:
    """Units per second, seconds to start, and where they come from."""
    per_unit = work.flops_per_unit
    if work.unit is None or not device or work.units is None:
        return None, 0.0, "unknown", ""
    on_device = device != CPU
    if not (on_device and site.mfu is not None):
        found = find_speed(rates, stage, work.unit, device=device, number=number, flops_per_unit=per_unit)
        if found is not None:
            return found.per_second, found.startup_seconds, found.basis, found.rate.describe()
    if not on_device or per_unit is None or site.device is None:
        return None, 0.0, "unknown", f"no rate of `{stage}` in {work.unit} on {device}"
    mfu = ASSUMED_MFU if site.mfu is None else site.mfu
    basis: Basis = "assumed" if site.mfu is None else "given"
    per_second = mfu * site.device.peak_flops * site.num_devices / per_unit
    return per_second, 0.0, basis, f"MFU {mfu:.0%} of {site.device.peak_flops / 1e12:.0f} TFLOP/s"
