"""How many tokens per second language-model training does here, beside PyTorch's `transformers` where it is installed.

Measured is the jitted update of `train-lm` with AdamW and clipping, batches built on the host; rows are full texts of
random tokens, weights are random, and both sides must find the same first loss. Sides take turns, round by round, since
machines are noisy. Parts: `step` (both sides), `choices` (each way to compute in `--choices.*` beside ours as it is),
`input` (reading batches alone) and `checkpoint` (what a save holds up, and restoring).
On a CPU set `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` before: huge pages help both sides.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.models.config import PRESETS, ArchitectureOverrides, AttentionChoice, ComputeConfig
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import InspectConfig

if TYPE_CHECKING:
    from qurating_jax.experiments.planning.rates import Rate
    from qurating_jax.training.benching.ours import Setting, Trainer, Variant

Part = Literal["step", "choices", "input", "checkpoint"]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Other ways to compute the update, each measured beside ours as it is."""

    attentions: tuple[AttentionChoice, ...] = option((), "attention kernels")
    remats: tuple[Literal["none", "dots", "full"], ...] = option((), "what the backward pass recomputes")
    loss_chunks: tuple[int, ...] = option((), "tokens of a chunk of the cross-entropy")
    accumulations: tuple[int, ...] = option((), "micro-batches of an update")

    def of(self, compute: ComputeConfig, accumulation: int) -> dict[str, tuple[ComputeConfig, int]]:
        """Settings by name."""
        replace = dataclasses.replace
        found = {f"attention {name}": replace(compute, attention=name) for name in self.attentions}
        found |= {f"remat {name}": replace(compute, remat=name) for name in self.remats}
        found |= {f"loss_chunk_tokens {size}": replace(compute, loss_chunk_tokens=size) for size in self.loss_chunks}
        others = {f"micro-batches {number}": (compute, number) for number in self.accumulations}
        return {name: (changed, accumulation) for name, changed in found.items()} | others


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating bench train-lm`; configs/bench_train_lm/ has the figures that are quoted."""

    parts: tuple[Part, ...] = option(("step", "choices", "input", "checkpoint"), "what is measured")
    model: str = option("debug", f"architecture: {', '.join(PRESETS)}")
    architecture: ArchitectureOverrides = ArchitectureOverrides()
    sequence_tokens: int = option(512, "tokens of a row")
    batch_sequences: int = option(8, "rows of an update")
    accumulation: int = option(1, "micro-batches of an update")
    num_steps: int = option(2, "counted updates of a turn")
    rounds: int = option(5, "turns of every side")
    against: Literal["none", "eager", "compile"] = option("eager", "`transformers`: not at all, as it is, compiled")
    choices: Choices = Choices()
    checkpoint_steps: int = option(500, "updates between two checkpoints")
    input_steps: int = option(50, "batches of the part `input`")
    rates: str = option("", "file of rates for `qurating plan` that ours is added to; made where it is not there")
    mesh: MeshShape = MeshShape()
    compute: ComputeConfig = ComputeConfig(scan_layers=False)

    def __post_init__(self) -> None:
        if self.model not in PRESETS:
            raise ValueError(f"model {self.model!r} is none of {', '.join(PRESETS)}")
        for name in (
            "sequence_tokens", "batch_sequences", "accumulation", "num_steps", "rounds", "checkpoint_steps",
            "input_steps",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


def main(config: Config) -> dict[str, Any]:
    """Prints and returns tokens per second, ratios, MFU, memory, compile seconds, and what stands around the update."""
    import jax
    import numpy as np

    from qurating_jax.experiments.planning import rates
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.training.benching import around
    from qurating_jax.training.benching.ours import Setting, Trainer

    if config.rates:
        rates.check_file(config.rates)
    preset = dataclasses.replace(PRESETS[config.model], max_positions=config.sequence_tokens)
    setting = Setting(
        config.architecture.apply(preset),
        make_mesh(config.mesh),
        config.sequence_tokens,
        config.batch_sequences,
        config.num_steps,
    )
    result: dict[str, Any] = {"device": jax.devices()[0].device_kind, "devices": setting.mesh.size}
    trainer = Trainer(setting)
    other = _peer(config, setting, trainer)
    ours = trainer.variant(config.compute, config.accumulation)
    if {"step", "checkpoint", "input"} & set(config.parts):
        result["step"] = _step(config, setting, ours, other)
    if "choices" in config.parts:
        del other
        result["choices"] = _choices(config, trainer, ours)
    if "input" in config.parts:
        found = around.input_speed(setting, config.accumulation, config.input_steps)
        rate = result["step"]["sides"]["ours"]["tokens_per_second"]["median"]
        result["input"] = found | {"of_training": found["tokens_per_second"] / rate}
    if "checkpoint" in config.parts:
        rate = result["step"]["sides"]["ours"]["tokens_per_second"]["median"]
        seconds = config.batch_sequences * config.sequence_tokens / rate
        result["checkpoint"] = around.checkpoint_times(ours, config.checkpoint_steps, seconds)
    memory = [device.memory_stats() for device in jax.local_devices()]
    if all(memory):
        result["peak_memory_bytes"] = int(np.max([stats["peak_bytes_in_use"] for stats in memory if stats]))
    for part in ("input", "checkpoint"):
        for name, value in result.get(part, {}).items():
            print(f"{part + ' ' + name:<36} {value:.4g}")
    if config.rates and "step" in result:
        rates.append(config.rates, _rate(config, setting, result["step"]["sides"]["ours"]))
    return result


def _rate(config: Config, setting: "Setting", ours: dict[str, Any]) -> "Rate":
    from qurating_jax.experiments.planning import rates

    model, rows = setting.model, f"{config.batch_sequences} rows of {config.sequence_tokens} tokens an update"
    shape = f"hidden {model.embed_dim}, {model.num_layers} layers, vocabulary {model.vocab_size}"
    return rates.of_devices(
        "train-lm",
        ours["tokens_per_second"]["median"],
        flops_per_token=setting.amount.flops / setting.amount.tokens,
        num_devices=setting.mesh.size,
        work=f"{shape}, {rows}, {config.compute.dtype}; updates alone",
        command="qurating bench train-lm",
    )


def _peer(config: Config, setting: "Setting", trainer: "Trainer") -> Any:
    from qurating_jax.training.benching import peer

    if config.against == "none" or "step" not in config.parts:
        return None
    if reason := peer.obstacle():
        print(reason, flush=True)
        return None
    compiled = config.against == "compile"
    return peer.TorchTrainer(setting, trainer.state.params, config.compute, config.accumulation, compiled)


def _step(config: Config, setting: "Setting", ours: "Variant", other: Any) -> dict[str, Any]:
    from qurating_jax.runtime import turns

    sides = {"ours": ours} | ({"torch": other} if other else {})
    losses = {name: side.update(1) for name, side in sides.items()}
    tolerance = 1e-4 if config.compute.dtype == "float32" else 2e-2
    if max(losses.values()) - min(losses.values()) > tolerance:
        raise UserError(f"the two sides do not compute the same loss: {losses}")
    measured = turns.in_turns({name: side.side() for name, side in sides.items()}, config.rounds)
    found: dict[str, Any] = {"first_losses": losses, "sides": {n: turns.summary(m) for n, m in measured.items()}}
    found["sides"]["ours"] |= _program(ours) | {"mfu": _mfu(found["sides"]["ours"], setting)}
    if other:
        found["ratio"] = turns.ratios(measured["ours"], measured["torch"])
    for name, side in found["sides"].items():
        print(f"{name}: first loss {losses[name]:.5f}, {_line(side)}", flush=True)
    if other:
        print(f"ours / torch, tokens per second: {_shown(found['ratio'])}", flush=True)
    return found


def _choices(config: Config, trainer: "Trainer", ours: "Variant") -> dict[str, Any]:
    """Every choice in turns with ours as it is, one after the other, since memory holds few programs' buffers."""
    from qurating_jax.runtime import turns

    found = {}
    for name, (compute, accumulation) in config.choices.of(config.compute, config.accumulation).items():
        variant = trainer.variant(compute, accumulation)
        measured = turns.in_turns({"ours": ours.side(), name: variant.side()}, config.rounds)
        found[name] = turns.summary(measured[name]) | _program(variant)
        found[name]["ratio"] = turns.ratios(measured[name], measured["ours"])
        print(f"{name} / ours: {_shown(found[name]['ratio'])}; {_line(found[name])}", flush=True)
    return found


def _program(variant: "Variant") -> dict[str, float]:
    return {"compile_seconds": variant.compile_seconds, "temporary_bytes": variant.temporary_bytes}


def _mfu(side: dict[str, Any], setting: "Setting") -> float | None:
    import jax

    from qurating_jax.models.flops import peak_flops

    peak = peak_flops(jax.devices()[0].device_kind)
    return side["flops_per_second"] / (peak * setting.mesh.size) if peak else None


def _line(side: dict[str, Any]) -> str:
    of = side["tokens_per_second"]
    parts = [f"{of['median']:.0f} tokens/s ({of['low']:.0f} to {of['high']:.0f})"]
    parts.append(f"{side['tokens_per_cpu_second']['median']:.0f} tokens/CPU-s")
    if side.get("mfu"):
        parts.append(f"MFU {side['mfu']:.1%}")
    if "temporary_bytes" in side:
        parts.append(f"{side['temporary_bytes'] / 1e9:.2f} GB beside the state")
        parts.append(f"compiled in {side['compile_seconds']:.0f} s")
    return ", ".join(parts)


def _shown(ratio: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{clock} {of['of_medians']:.3f}" for clock, of in ratio.items()) + " (of medians)"
