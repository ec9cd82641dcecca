"""A plan as people read it: a table on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qurating_jax.runtime import terminal
from qurating_jax.training.lm_options import LmOptions
from qurating_jax.training.planning import Alternative, Machine, Memory, Plan, Rows

_NO_TABLE = "{:<26}{}"


def show(
    recipe: str,
    plan: Plan,
    machine: Machine,
    rows: Rows,
    options: LmOptions,
    others: Sequence[Alternative],
    compiled: Mapping[str, Any],
) -> None:
    """Prints a plan on stdout.

    Args:
        recipe: name of the config file.
        plan: what it comes to.
        machine: where.
        rows: what is trained on.
        options: of the run.
        others: changes that make it fit.
        compiled: what the compiler found; empty where nothing was compiled.
    """
    title = f"{recipe} on {machine.num_devices} x {machine.device.name}"
    lines = [*_size(plan), *_work(plan, rows, options), *_memory(plan, options), *_outcome(plan, machine, compiled)]
    advice = [f"to make it fit: {other.change} (about {gigabytes(other.memory.peak)})" for other in others]
    if plan.memory.verdict != "fits" and not others:
        advice = ["no single change of accumulation, compute.remat or mesh.fsdp makes it fit: take more devices"]
    if sys.stdout.isatty():
        table = terminal.table(title, "", "")
        for name, value in lines:
            terminal.add_row(table, name, value)
        terminal.show([table], *advice)
        return
    print(title)
    for name, value in lines:
        print(_NO_TABLE.format(name, value))
    for line in advice:
        print(line)


def gigabytes(size: float) -> str:
    """Bytes as GB (10^9) with three digits or so."""
    return f"{size / 1e9:.2f} GB" if size < 1e11 else f"{size / 1e9:,.0f} GB"


def _size(plan: Plan) -> Iterator[tuple[str, str]]:
    size = plan.size
    yield "parameters", f"{size.parameters:,}"
    yield "  of the embedding", f"{size.embedding:,}"
    yield "  without embedding, head", f"{size.without_embeddings:,}"


def _work(plan: Plan, rows: Rows, options: LmOptions) -> Iterator[tuple[str, str]]:
    work = plan.work
    yield "rows", f"{rows.num_rows:,} of {rows.tokens:,} tokens"
    yield "steps", f"{work.steps:,} ({work.epochs:.4g} epochs)"
    yield "tokens per step", f"{work.tokens_per_step:,} ({options.batch_sequences:,} rows)"
    yield "tokens", f"{work.tokens:,}"
    forward, training = work.forward_flops_per_token / 1e9, work.training_flops_per_token / 1e9
    yield "GFLOP per token", f"{forward:.4g} forward, {training:.4g} training (causal attention)"
    yield "FLOPs of the run", f"{work.flops:.4g}"


def _memory(plan: Plan, options: LmOptions) -> Iterator[tuple[str, str]]:
    memory, step = plan.memory, plan.memory.step
    yield "mesh", ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    yield "per device: parameters", gigabytes(memory.state.parameters)
    yield "  Adam's moments", gigabytes(memory.state.moments)
    if memory.source == "compiler":
        yield "  all else (compiler)", gigabytes(memory.other)
    elif step is not None:
        yield "  gradients", f"{gigabytes(step.gradients)} ({options.accumulation} micro-batches)"
        yield "  activations", f"{gigabytes(step.activations)} (estimate, remat {options.compute.remat})"
        yield "  gradient of the head", gigabytes(step.head)
        yield "  one layer's work", f"{gigabytes(step.layer)} (estimate)"
        yield "  or a chunk of logits", f"{gigabytes(step.logits)} ({options.compute.loss_chunk_tokens} tokens)"
    yield "  peak", f"{gigabytes(memory.peak)} of {gigabytes(memory.usable)} usable: {_verdict(memory)}"


def _verdict(memory: Memory) -> str:
    words = {"fits": "fits", "close": "close", "does not fit": "DOES NOT FIT"}[memory.verdict]
    return f"{words} ({'the compiler' if memory.source == 'compiler' else 'an estimate'}'s figure)"


def _outcome(plan: Plan, machine: Machine, compiled: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    storage, time = plan.storage, plan.time
    yield "checkpoint", f"{gigabytes(storage.checkpoint)}, {storage.kept} kept: {gigabytes(storage.checkpoints)}"
    yield "exported model", gigabytes(storage.export)
    if compiled:
        yield "compiled in", f"{compiled['seconds']:.0f} s on this machine"
    yield "speed", f"{time.tokens_per_second:,.0f} tokens/s, MFU {time.mfu:.1%} ({time.basis})"
    yield "hours", f"{time.hours:,.2f}, {time.device_hours:,.1f} device-hours"
    if time.cost is not None:
        yield "cost", f"{time.cost:,.2f} at {machine.price:g} per device-hour"
