"""How many tokens per second are rated here, beside PyTorch's `transformers` where it is installed, and what bounds it.

Weights and tokens are random; lengths are those of documents (`--documents` with `--tokenizer`) or drawn. All sides
take turns, round by round, since machines are noisy. Parts: `scorer` (tokens in, scores out, both sides), `host`
(reading, tokenizing, laying out, writing), `rounding` (bfloat16 beside float32), `scaling` (1 to 8 devices), `ceilings`
(matrix product and copy) and `end_to_end` (Parquet of token ids to Parquet of ratings beside the scorer alone).
On a CPU set `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` before: huge pages help both sides.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.models.config import PRESETS, ArchitectureOverrides, AttentionChoice, ComputeConfig
from qurating_jax.parallel.options import MeshShape
from qurating_jax.stage import InspectConfig

if TYPE_CHECKING:
    from qurating_jax.data.tokenizer import TextTokenizer
    from qurating_jax.experiments.planning.rates import Rate
    from qurating_jax.models.llama import Params
    from qurating_jax.scoring.benching.samples import Sample
    from qurating_jax.scoring.benching.setting import Setting

Part = Literal["scorer", "host", "rounding", "scaling", "ceilings", "end_to_end"]


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating bench annotate`; configs/bench_annotate/ has the figures that are quoted."""

    parts: tuple[Part, ...] = option(("scorer", "host", "rounding", "scaling"), "what is measured")
    model: str = option("debug", f"architecture: {', '.join(PRESETS)}")
    architecture: ArchitectureOverrides = ArchitectureOverrides()
    documents: tuple[str, ...] = option((), "documents: files, globs, directories; none: lengths are drawn")
    tokenizer: str | None = option(None, "tokenizer for them: directory, tokenizer.json or hub id")
    text_field: str = option("text", "field of the text; dots reach nested fields")
    num_documents: int = option(2048, "documents of the mixture of lengths, about")
    window_tokens: int = option(512, "longest window")
    num_shapes: int = option(8, "most static shapes of batches, chosen from the windows' lengths")
    batch_tokens: int | None = option(None, "tokens per batch of ours over all devices; null: what suits them")
    turn_tokens: int = option(16_384, "tokens of a turn, about")
    rounds: int = option(5, "turns of every side")
    attentions: tuple[AttentionChoice, ...] = option(("auto",), "our attention kernels to measure, the first in all")
    against: Literal["none", "eager", "both"] = option("eager", "`transformers`: not at all, as it is, also compiled")
    against_windows: int = option(16, "windows of a batch of `transformers`; the original's script has 16")
    max_devices: int = option(8, "most devices of the part `scaling`")
    matmul_size: int = option(2048, "size of the matrices of the part `ceilings`")
    copy_bytes: int = option(256 << 20, "bytes that the part `ceilings` copies")
    file_tokens: int = option(16_384, "tokens of the documents of the part `end_to_end`, about")
    file_rounds: int = option(3, "turns of either side of the part `end_to_end`")
    rows_per_part: int = option(10_000, "documents per output file of the part `end_to_end`")
    rates: str = option("", "file of rates for `qurating plan` that the part `scorer` adds ours on full windows to")
    mesh: MeshShape = MeshShape()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        if self.model not in PRESETS:
            raise ValueError(f"model {self.model!r} is none of {', '.join(PRESETS)}")
        if bool(self.documents) != (self.tokenizer is not None):
            raise ValueError("documents and tokenizer go together: lengths are counted in tokens")
        if self.rates and "scorer" not in self.parts:
            raise ValueError("rates are those of the part scorer")
        if not self.parts or not self.attentions:
            raise ValueError("parts and attentions need at least one entry")
        for name in (
            "num_documents", "window_tokens", "num_shapes", "turn_tokens", "rounds", "against_windows", "max_devices",
            "matmul_size", "copy_bytes", "file_tokens", "file_rounds", "rows_per_part",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


def main(config: Config) -> dict[str, Any]:
    """Prints a table per part as soon as it is measured, and returns all figures."""
    import numpy as np

    from qurating_jax.data.tokenizer import load_tokenizer
    from qurating_jax.experiments.planning import rates
    from qurating_jax.scoring.benching import device, samples
    from qurating_jax.scoring.benching import scaling as many_devices

    if config.rates:
        rates.check_file(config.rates)
    setting = _setting(config)
    tokenizer = None if config.tokenizer is None else load_tokenizer(config.tokenizer)
    texts = samples.read_texts(config.documents, config.text_field, config.num_documents) if tokenizer else []
    lengths = np.diff(tokenizer.encode_flat(texts)[1]) if tokenizer else samples.synthetic_lengths(config.num_documents)
    mixture = samples.sample_of(lengths, config.window_tokens, setting.model.vocab_size)
    params = setting.params()
    result: dict[str, Any] = {"machine": _machine()}
    print(*(f"{name:<16} {value}" for name, value in result["machine"].items()), sep="\n", flush=True)
    for part in config.parts:
        if part == "scorer":
            found = _contest(config, setting, params, mixture)
        elif part == "host":
            found = _host(config, setting, mixture, texts, tokenizer)
        elif part == "rounding":
            found = device.rounding(setting, params, mixture)
        elif part == "scaling":
            found = many_devices.scaling(config.max_devices, config.rounds)
        elif part == "ceilings":
            found = device.ceilings(config.matmul_size, config.copy_bytes, config.compute.dtype, config.rounds)
        else:
            found = device.end_to_end(
                setting, params, mixture,
                tokens=config.file_tokens, rows_per_part=config.rows_per_part, rounds=config.file_rounds,
            )  # fmt: skip
        result[part] = found
        _show(part, found)
    result["peak_memory_bytes"] = device.memory_bytes()
    _show_bounds(result)
    if config.rates:
        rates.append(config.rates, _rate(config, setting, result["scorer"]["full"]["sides"]))
    return result


def _rate(config: Config, setting: "Setting", sides: dict[str, Any]) -> "Rate":
    from qurating_jax.experiments.planning import rates
    from qurating_jax.models.flops import forward_flops

    model, tokens = setting.model, float(config.window_tokens)
    shape = f"hidden {model.embed_dim}, {model.num_layers} layers, {model.num_criteria} criteria"
    return rates.of_devices(
        "annotate",
        sides[f"ours ({config.attentions[0]})"]["tokens_per_second"]["median"],
        flops_per_token=float(forward_flops(model, tokens)) / tokens,
        num_devices=setting.mesh.size,
        work=f"{shape}, windows of {config.window_tokens} tokens, {config.compute.dtype}; the scorer alone",
        command="qurating bench annotate",
    )


def _setting(config: Config) -> "Setting":
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.scoring.benching.setting import CRITERIA, Setting

    preset = dataclasses.replace(PRESETS[config.model], max_positions=config.window_tokens)
    return Setting(
        config.architecture.apply(preset).with_head(len(CRITERIA)),
        dataclasses.replace(config.compute, attention=config.attentions[0]),
        make_mesh(config.mesh),
        config.window_tokens,
        config.num_shapes,
        config.batch_tokens,
        config.rounds,
        config.turn_tokens,
    )


def _machine() -> dict[str, Any]:
    import os
    import platform

    import jax

    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "compiled_programs": jax.config.jax_compilation_cache_dir or "not cached",  # type: ignore[attr-defined]
    }


def _contest(config: Config, setting: "Setting", params: "Params", mixture: "Sample") -> dict[str, Any]:
    from qurating_jax.scoring.benching.contest import Contest, peers

    modes = {"none": (), "eager": ("eager",), "both": ("eager", "compile")}[config.against]
    others, reason = peers(setting, params, modes)
    if reason:
        print(reason, flush=True)
    contest = Contest(setting, params, config.attentions, others, config.against_windows)
    found: dict[str, Any] = {"full": contest.full(), "mixture": contest.mixture(mixture)}
    found["lengths"] = "documents" if config.documents else "drawn"
    found["torch_peak_memory_bytes"] = next(iter(others.values())).peak_memory_bytes() if others else None
    return found


def _host(
    config: Config, setting: "Setting", mixture: "Sample", texts: list[str], tokenizer: "TextTokenizer | None"
) -> dict[str, Any]:
    from qurating_jax.scoring.benching import host
    from qurating_jax.scoring.neural import suited_shapes

    shapes = suited_shapes(
        mixture.sizes, setting.model, setting.compute, max_tokens=config.window_tokens, max_shapes=config.num_shapes
    )
    found: dict[str, Any] = {"layout": host.layout_speed(mixture, shapes, config.rounds)}
    if tokenizer is None:
        print("host: reading and tokenizing are measured with --documents and --tokenizer only", flush=True)
    else:
        found["pipeline"] = host.pipeline_speed(texts, tokenizer, config.window_tokens, config.rounds)
    return found


def _show(part: Part, found: dict[str, Any]) -> None:
    from qurating_jax.runtime.terminal import show
    from qurating_jax.scoring.benching import tables

    if part != "scorer":
        show(getattr(tables, part)(found))
        return
    mixture = "windows of documents" if found["lengths"] == "documents" else "windows of drawn lengths"
    for texts, title in (("full", "full windows"), ("mixture", mixture)):
        of = found[texts]
        apart = ", ".join(f"{name} {value:.1e}" for name, value in of["score_differences"].items())
        line = f"scores apart at most: {apart} (standard deviation {of['score_std']:.2g})" if apart else ""
        show(tables.contest(f"scorer, {title}", of), *([line] if line else []))


def _show_bounds(result: dict[str, Any]) -> None:
    """Our speed against what the matrix product reached, and the memory."""
    if "scorer" in result and "ceilings" in result:
        devices = result["machine"]["devices"]
        roof = result["ceilings"]["matmul_flops_per_second"]["median"] * devices
        for name, side in result["scorer"]["full"]["sides"].items():
            if name.startswith("ours"):
                side["of_measured_ceiling"] = side["flops_per_second"] / roof
                print(f"{name}: {side['of_measured_ceiling']:.1%} of the matrix product's FLOP/s, full windows")
    for name, peak in (("JAX", result["peak_memory_bytes"]),
                       ("torch", result.get("scorer", {}).get("torch_peak_memory_bytes"))):  # fmt: skip
        if peak is not None:
            print(f"peak memory of {name} on the device: {peak / 1e9:.2f} GB")
