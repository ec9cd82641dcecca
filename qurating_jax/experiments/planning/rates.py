"""Measured speeds of stages, from small files that people and `qurating bench ... --rates FILE` add to.

A file is YAML: `rates`, a list of entries (`Rate`). The one that ships has what was measured for this repository
(docs/log.md). What is planned without a measurement of its own is scaled from the nearest one.
"""

import dataclasses
import datetime
import difflib
import math
import os
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock

from qurating_jax import config as configs
from qurating_jax.config import option
from qurating_jax.parallel.devices import find_device
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError
from qurating_jax.runtime.processes import num_cores

Unit = Literal["tokens", "documents", "pairs", "bytes"]
Basis = Literal["measured", "scaled"]

CPU = "cpu"
SHIPPED = str(Path(__file__).with_name("rates.yaml"))

# What no machine does: a slip of the pen, or a file that means ill, from which sums would overflow.
_SLOWEST, _FASTEST, _MOST_FLOPS, _MOST_SECONDS = 1e-9, 1e15, 1e18, 1e8
_SAME_WORK = 0.01  # FLOPs per unit within this are the same work
# What costs the same per operation: where a stage was not measured, its sister was.
_SISTERS = {"train-lm": "train-rater", "train-rater": "train-lm", "annotate": "eval-lm", "eval-lm": "annotate"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Where a rate comes from."""

    date: str = option("", "day, YYYY-MM-DD")
    commit: str = option("", "of this repository; empty where it was not recorded")
    command: str = option("", "what was run, or the document that tells")

    def __post_init__(self) -> None:
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"measured.date {self.date!r} is no day like 2026-11-28") from None


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast a stage was somewhere."""

    stage: str = option("", "as on the command line")
    device: str = option(CPU, "cpu, or an accelerator as `qurating plan --device` knows it")
    cores: int | None = option(None, "cpu: cores that worked")
    num_devices: int | None = option(None, "accelerators that worked")
    work: str = option("", "what was run, for people")
    unit: Unit = option("tokens", "what was counted")
    per_second: float = option(0.0, "units per second of all cores or devices together")
    flops_per_unit: float | None = option(None, "operations of the model per unit; null: no model")
    startup_seconds: float = option(0.0, "before the first unit and after the last one")
    measured: Measured = Measured(date="1970-01-01")

    def __post_init__(self) -> None:
        if not self.stage or not self.per_second > 0 or not math.isfinite(self.per_second):
            raise ValueError("a rate needs a stage and a positive per_second")
        if self.measured == Measured(date="1970-01-01"):
            raise ValueError(f"the rate of {self.stage} does not say where it was measured (`measured`)")
        if self.startup_seconds < 0 or (self.flops_per_unit is not None and not self.flops_per_unit > 0):
            raise ValueError("startup_seconds must be at least 0, flops_per_unit positive")
        if not _SLOWEST <= self.per_second <= _FASTEST or (self.flops_per_unit or 1) > _MOST_FLOPS:
            raise ValueError(
                f"per_second {self.per_second:g} of {self.flops_per_unit or 0:g} FLOPs each: not the speed of a machine"
            )
        if self.startup_seconds > _MOST_SECONDS:
            raise ValueError(f"startup_seconds {self.startup_seconds:g} are years")
        wanted, other = ("cores", "num_devices") if self.device == CPU else ("num_devices", "cores")
        if (getattr(self, wanted) or 0) < 1 or getattr(self, other) is not None:
            raise ValueError(f"a rate of device {self.device} has {wanted}, at least 1, and no {other}")
        if self.device != CPU and find_device(self.device) is None:
            raise ValueError(f"device {self.device!r} is neither cpu nor an accelerator that `qurating plan` knows")

    @property
    def number(self) -> int:
        """Cores or devices."""
        return self.cores or self.num_devices or 1

    def describe(self) -> str:
        """One line for people."""
        what = f"{self.number} {'core(s)' if self.device == CPU else 'x ' + self.device}"
        return f"{self.stage}, {what}, {self.measured.date}: {self.work}"


@dataclass(frozen=True)
class Speed:
    """A speed for planned work: units per second, seconds that do not depend on how much it is, and where from."""

    per_second: float
    startup_seconds: float
    basis: Basis
    rate: Rate


def load_rates(paths: Sequence[str], *, stages: Collection[str] | None = None) -> list[Rate]:
    """The entries of several files in their order; later ones are preferred where two fit alike.

    Args:
        paths: of the files.
        stages: names that stages have; None: they are not looked at.

    Raises:
        UsageError: with file and entry.
    """
    found = []
    for path in paths:
        rates = _parse(configs.load_yaml(path), path)
        for number, rate in enumerate(rates):
            if stages is not None and rate.stage not in stages:
                close = difflib.get_close_matches(rate.stage, stages, n=1)
                hint = f" (did you mean `{close[0]}`?)" if close else ""
                raise UsageError(f"{path}: rates[{number}]: no stage `{rate.stage}`{hint}")
        found += rates
    return found


def append(path: str, rate: Rate) -> None:
    """Adds an entry at the end of a local file, whose text stays as it is; a file that is not there is begun.

    Raises:
        UsageError: the file is no file of rates, or its list is written so that nothing can be put behind it.
    """
    check_file(path)
    with FileLock(_lock(path)):
        text = storage.read_text(path) if storage.exists(path) else "rates:\n"
        before = _parse(_values(text, path), path)
        entry = {name: value for name, value in configs.resolved(rate).items() if value is not None}
        lines = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True, width=120).splitlines()
        for indent in ("", "  ", "    "):
            longer = text.rstrip("\n") + "\n" + "".join(f"{indent}{line}\n" for line in lines)
            try:
                after = _parse(_values(longer, path), path)
            except UsageError:
                continue
            if after == [*before, rate]:
                storage.write_text(path, longer)
                return
    raise UsageError(f"{path}: an entry cannot be added behind its last one; write `rates` as a plain list at the end")


def find_speed(
    rates: Sequence[Rate], stage: str, unit: Unit, *, device: str, number: int, flops_per_unit: float | None
) -> Speed | None:
    """The speed of some work by the nearest measurement; None where nothing like it was measured.

    Nearest is the same stage before its sister (training, or reading, of another model), then the least ratio of FLOPs
    per unit, then of cores or devices, then what stands last. A speed goes with cores or devices, and against FLOPs per
    unit: that is arithmetic, and small models reach a smaller share of a machine's operations than large ones.

    Args:
        rates: what was measured.
        stage: the planned one.
        unit: what the work is counted in.
        device: `cpu` or the name of an accelerator.
        number: cores or devices of the plan.
        flops_per_unit: of the model; None where there is none.
    """
    fitting = []
    for place, rate in enumerate(rates):
        if rate.unit != unit or not _same_device(rate.device, device):
            continue
        if (rate.flops_per_unit is None) != (flops_per_unit is None):
            continue
        if rate.stage != stage and (flops_per_unit is None or rate.stage != _SISTERS.get(stage)):
            continue
        apart = 0.0 if flops_per_unit is None else abs(math.log(flops_per_unit / (rate.flops_per_unit or 1)))
        apart = 0.0 if apart < _SAME_WORK else apart
        fitting.append((rate.stage != stage, apart, abs(math.log(number / rate.number)), -place, rate))
    if not fitting:
        return None
    other_stage, apart, other_number, _, rate = min(fitting, key=lambda fit: fit[:4])
    scale = number / rate.number
    if flops_per_unit is not None and apart:
        scale *= (rate.flops_per_unit or 1) / flops_per_unit
    basis: Basis = "scaled" if other_stage or apart or other_number else "measured"
    return Speed(rate.per_second * scale, rate.startup_seconds, basis, rate)


def check_file(path: str) -> None:
    """Raises `UsageError` where `append` would refuse a file, before hours are spent on what is to go there."""
    if storage.is_remote(path):
        raise UsageError(f"--rates {path}: give a local file")
    if storage.exists(path):
        load_rates([path])


def of_devices(
    stage: str, per_second: float, *, flops_per_token: float, num_devices: int, work: str, command: str
) -> Rate:
    """A rate in tokens of the devices that JAX has here; of a CPU its cores count.

    Raises:
        UsageError: an accelerator that `parallel.devices` does not know.
    """
    import jax

    kind = jax.devices()[0].device_kind
    if jax.default_backend() == CPU:
        return Rate(
            stage=stage, cores=num_cores(), work=work, per_second=per_second, flops_per_unit=flops_per_token,
            measured=now(command),
        )  # fmt: skip
    device = find_device(kind)
    if device is None:
        raise UsageError(f"--rates: {kind} is not in the table of devices (qurating_jax/parallel/devices.py)")
    return Rate(
        stage=stage, device=device.name, num_devices=num_devices, work=work, per_second=per_second,
        flops_per_unit=flops_per_token, measured=now(command),
    )  # fmt: skip


def now(command: str) -> Measured:
    """Where something comes from that is measured at this moment."""
    today = datetime.datetime.now(datetime.UTC).date()
    return Measured(date=today.isoformat(), commit=manifest.git_revision() or "", command=command)


def _lock(path: str) -> str:
    """A lock of this user's for a file, apart from it: people commit the folders that files of rates are in."""
    name = f"qurating-rates-{os.getuid()}-{manifest.sha256(os.path.realpath(path))[:16]}.lock"
    return os.path.join(tempfile.gettempdir(), name)


def _same_device(measured: str, planned: str) -> bool:
    if CPU in (measured, planned):
        return measured == planned
    one, other = find_device(measured), find_device(planned)
    return one is not None and one == other


def _values(text: str, path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return values if isinstance(values, dict) else {"rates": values}


def _parse(values: dict[str, Any], path: str) -> list[Rate]:
    if unknown := set(values) - {"rates"}:
        raise UsageError(f"{path}: unknown key `{sorted(map(str, unknown))[0]}`; a file of rates has `rates`")
    entries = values.get("rates")
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise UsageError(f"{path}: rates: a list of entries, not {type(entries).__name__}")
    found = []
    for number, entry in enumerate(entries):
        where = f"{path}: rates[{number}]"
        if not isinstance(entry, dict):
            raise UsageError(f"{where}: a group of settings, not {type(entry).__name__}")
        missing = {"stage", "device", "unit", "per_second", "work", "measured"} - set(entry)
        if missing:
            raise UsageError(f"{where}: without {', '.join(sorted(missing))}")
        found.append(configs.decode(Rate, entry, where=where))
    return found


def as_plain(rate: Rate) -> dict[str, Any]:
    """Plain values, ready for JSON."""
    return dataclasses.asdict(rate)
