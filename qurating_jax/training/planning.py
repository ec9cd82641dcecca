"""What a language-model run comes to before it is started: size, work, memory, storage, time. No device is touched."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from qurating_jax.data.batches import micro_batches
from qurating_jax.models.config import DecoderConfig
from qurating_jax.models.flops import forward_flops, num_parameters, training_flops
from qurating_jax.parallel.devices import DeviceModel
from qurating_jax.parallel.mesh import make_abstract_mesh
from qurating_jax.runtime.errors import UserError
from qurating_jax.training.lm_options import LmOptions
from qurating_jax.training.step_memory import Batch, StateBytes, StepBytes, estimate, state_bytes, train_state

Verdict = Literal["fits", "close", "does not fit"]

# Share of the model FLOPs of a device's peak where nobody gives a measured rate. What is published of dense models of
# 1 to 8 billion parameters in bfloat16 lies between 33 and 67 % (H100 33 to 50, TPUs 42 to 67).
ASSUMED_MFU = 0.40
# An estimate was up to 15 % off in compiled steps (docs/plan.md); a compiler's own figure lacks what the runtime takes.
_MARGINS = {"estimate": 0.15, "compiler": 0.03}
_MOST_ACCUMULATION = 64


@dataclass(frozen=True)
class Rows:
    """The rows that are trained on: how many, their length, and whether a row holds several texts."""

    num_rows: int
    tokens: int
    packed: bool


@dataclass(frozen=True)
class Machine:
    """Devices of one kind; `price` of a device for an hour."""

    device: DeviceModel
    num_devices: int
    price: float | None = None


@dataclass(frozen=True)
class Size:
    """Parameters: all, the token embedding's, and without embedding and head."""

    parameters: int
    embedding: int
    without_embeddings: int


@dataclass(frozen=True)
class Work:
    """What a run computes. Every row counts as one text without padding, so that FLOPs are the most there can be.

    Attributes:
        steps: updates.
        epochs: rows trained on, as a multiple of all rows.
        tokens: of all updates, padding included.
        tokens_per_step: of one update.
        forward_flops_per_token: the mean over a row, attention causal.
        training_flops_per_token: forward and backward pass; nothing for what is recomputed.
        flops: of the run.
    """

    steps: int
    epochs: float
    tokens: int
    tokens_per_step: int
    forward_flops_per_token: float
    training_flops_per_token: float
    flops: float


@dataclass(frozen=True)
class Memory:
    """Bytes per device. `other` stands for what a compiled step needs beside its state, where a compiler said it."""

    state: StateBytes
    step: StepBytes | None
    other: int
    usable: int
    source: Literal["estimate", "compiler"]

    @property
    def peak(self) -> int:
        """State and all else."""
        return self.state.total + self.other

    @property
    def verdict(self) -> Verdict:
        """Whether the peak lies below what is usable by more than what the figure may be off."""
        margin, share = _MARGINS[self.source], self.peak / self.usable
        return "fits" if share <= 1 - margin else "close" if share <= 1 + margin else "does not fit"


@dataclass(frozen=True)
class Storage:
    """Bytes on disk: a checkpoint, all that stay at the end (`kept` many), and the exported float32 model."""

    checkpoint: int
    kept: int
    checkpoints: int
    export: int


@dataclass(frozen=True)
class Time:
    """How long the updates take; compiling, validating and saving come on top.

    Attributes:
        tokens_per_second: of all devices together.
        mfu: share of the devices' peak, given or following from a given rate.
        basis: where the speed comes from: a given or assumed MFU, or a given rate.
        hours: of the run.
        device_hours: hours times devices.
        cost: device hours times the price, where one is given.
    """

    tokens_per_second: float
    mfu: float
    basis: Literal["mfu given", "mfu assumed", "tokens_per_second given"]
    hours: float
    device_hours: float
    cost: float | None


@dataclass(frozen=True)
class Plan:
    """All of it."""

    size: Size
    work: Work
    memory: Memory
    storage: Storage
    time: Time
    mesh: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self) | {
            "memory": dataclasses.asdict(self.memory)
            | {"peak": self.memory.peak, "verdict": self.memory.verdict, "state_total": self.memory.state.total}
        }


def plan(
    options: LmOptions,
    model: DecoderConfig,
    rows: Rows,
    machine: Machine,
    *,
    mfu: float | None = None,
    tokens_per_second: float | None = None,
) -> Plan:
    """What a run of `train-lm` comes to.

    Args:
        options: of the run.
        model: the architecture that they lead to.
        rows: what it is trained on.
        machine: where.
        mfu: expected share of the peak; None: `ASSUMED_MFU`.
        tokens_per_second: measured rate of all devices together, which goes before `mfu`.

    Raises:
        UserError: as training would: a mesh that does not cover the devices, sizes or a batch that do not divide, more
            rows per update than there are.
    """
    if rows.num_rows < options.batch_sequences:
        raise UserError(f"{rows.num_rows} rows are fewer than one batch of {options.batch_sequences}")
    done = work(options, model, rows)
    return Plan(
        size=size(model),
        work=done,
        memory=memory(options, model, rows, machine),
        storage=storage(options, model, done.steps),
        time=time(done, machine, mfu=mfu, tokens_per_second=tokens_per_second),
        mesh=dict(make_abstract_mesh(options.mesh, machine.num_devices).shape),
    )


def size(model: DecoderConfig) -> Size:
    """Parameters of a model; a tied head counts once."""
    total, embedding = num_parameters(model), model.vocab_size * model.embed_dim
    head = 0 if model.tie_embeddings else embedding
    return Size(total, embedding, total - embedding - head)


def work(options: LmOptions, model: DecoderConfig, rows: Rows) -> Work:
    """Steps, tokens and FLOPs of a run."""
    steps = options.steps(rows.num_rows)
    seen = steps * options.batch_sequences
    length = float(rows.tokens)
    return Work(
        steps=steps,
        epochs=seen / rows.num_rows,
        tokens=seen * rows.tokens,
        tokens_per_step=options.batch_sequences * rows.tokens,
        forward_flops_per_token=float(forward_flops(model, length)) / length,
        training_flops_per_token=float(training_flops(model, length)) / length,
        flops=seen * float(training_flops(model, length)),
    )


def batch_of(options: LmOptions, rows: Rows) -> Batch:
    """The rows of one update as the loss gets them."""
    several = rows.packed and options.document_attention == "within"
    return Batch(options.batch_sequences, rows.tokens, options.accumulation, several)


def memory(options: LmOptions, model: DecoderConfig, rows: Rows, machine: Machine) -> Memory:
    """Memory of one device: the state exactly, the rest estimated; errors as of `plan`."""
    mesh = make_abstract_mesh(options.mesh, machine.num_devices)
    micro_batches(options.batch_sequences, options.accumulation, mesh)
    state = train_state(model, options.optim, options.steps(rows.num_rows), mesh)
    step = estimate(
        model,
        options.compute,
        batch_of(options, rows),
        state,
        mesh,
        platform=machine.device.platform,
        z_loss=options.z_loss,
    )
    return Memory(state_bytes(state), step, step.total, machine.device.usable_bytes, "estimate")


def storage(options: LmOptions, model: DecoderConfig, steps: int) -> Storage:
    """Bytes of the checkpoints that stay at the end of a run, and of what it exports; uncompressed."""
    parameters = num_parameters(model)
    every = options.loop.checkpoint_steps
    saved = sorted({*range(every, steps + 1, every), steps})
    newest = set(saved[-options.loop.keep_checkpoints :])
    forever = options.loop.keep_every_steps
    kept = len(newest | {step for step in saved if forever and step % forever == 0})
    if options.held_out.max_rows and options.held_out.export == "best":
        kept += 1  # the best one, unless it is one of these
    checkpoint = 3 * 4 * parameters
    return Storage(checkpoint, kept, kept * checkpoint, 4 * parameters)


def time(done: Work, machine: Machine, *, mfu: float | None, tokens_per_second: float | None) -> Time:
    """Hours = FLOPs / (peak * MFU * devices), or tokens / rate where a rate is given."""
    peak = machine.device.peak_flops * machine.num_devices
    if tokens_per_second is not None:
        rate, share, basis = tokens_per_second, tokens_per_second * done.training_flops_per_token / peak, "rate"
    else:
        share = ASSUMED_MFU if mfu is None else mfu
        rate, basis = share * peak / done.training_flops_per_token, "assumed" if mfu is None else "given"
    hours = done.tokens / rate / 3600
    device_hours = hours * machine.num_devices
    names: dict[str, Any] = {"rate": "tokens_per_second given", "assumed": "mfu assumed", "given": "mfu given"}
    cost = None if machine.price is None else machine.price * device_hours
    return Time(rate, share, names[basis], hours, device_hours, cost)


@dataclass(frozen=True)
class Alternative:
    """Changed settings of a run, as they are given on the command line, and the memory that they lead to."""

    change: str
    memory: Memory


def alternatives(options: LmOptions, model: DecoderConfig, rows: Rows, machine: Machine) -> list[Alternative]:
    """What would make a run fit: of every kind of change the smallest that does, by the estimate."""
    found = []
    for kind in (_more_accumulation, _more_remat, _more_fsdp):
        for change, changed in kind(options, machine.num_devices):
            try:
                needed = memory(changed, model, rows, machine)
            except UserError:  # a batch or a matrix that does not divide
                continue
            if needed.verdict == "fits":
                found.append(Alternative(change, needed))
                break
    return found


def _more_accumulation(options: LmOptions, num_devices: int) -> Iterator[tuple[str, LmOptions]]:
    for factor in (2**power for power in range(1, int(math.log2(_MOST_ACCUMULATION)) + 1)):
        accumulation = options.accumulation * factor
        yield f"--accumulation {accumulation}", dataclasses.replace(options, accumulation=accumulation)


def _more_remat(options: LmOptions, num_devices: int) -> Iterator[tuple[str, LmOptions]]:
    kinds: dict[str, tuple[Literal["dots", "full"], ...]] = {"none": ("dots", "full"), "dots": ("full",)}
    for remat in kinds.get(options.compute.remat, ()):
        compute = dataclasses.replace(options.compute, remat=remat)
        yield f"--compute.remat {remat}", dataclasses.replace(options, compute=compute)


def _more_fsdp(options: LmOptions, num_devices: int) -> Iterator[tuple[str, LmOptions]]:
    fsdp = make_abstract_mesh(options.mesh, num_devices).shape["fsdp"]
    while (fsdp := 2 * fsdp) <= num_devices:
        mesh = dataclasses.replace(options.mesh, data=-1, fsdp=fsdp)
        yield f"--mesh.fsdp {fsdp}", dataclasses.replace(options, mesh=mesh)
