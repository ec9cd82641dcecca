"""How many tokens per second rater training does here, beside PyTorch's `transformers` where it is installed.

The real path is measured: packed batches built on the host, the jitted update with AdamW and clipping. Texts are random
tokens and weights are random. Both sides take turns, round by round, since machines are noisy; ratios are of medians.
The first update of a turn is not counted: memory that lay idle while the other side ran may have to be paged in again.
On a CPU set `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` before: huge pages help both sides.
"""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.models.config import PRESETS, ArchitectureOverrides, ComputeConfig, DecoderConfig
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import InspectConfig
from qurating_jax.training.options import OptimConfig

if TYPE_CHECKING:
    from qurating_jax.data.rater_examples import PackedBatches
    from qurating_jax.experiments.planning.rates import Rate

_CRITERIA = ("writing_style", "required_expertise", "facts_and_trivia", "educational_value")
_OPTIM = OptimConfig(learning_rate=5e-5, schedule="linear", warmup_fraction=0.1, final_fraction=0.0, beta2=0.999)


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating bench train-rater`; configs/bench_train_rater/ has the figures that are quoted."""

    model: str = option("debug", f"architecture: {', '.join(PRESETS)}")
    architecture: ArchitectureOverrides = ArchitectureOverrides()
    texts: Literal["full", "mixture"] = option("full", "all texts of max_tokens, or the paper's: half of them shorter")
    max_tokens: int = option(512, "longest text")
    batch_pairs: int = option(8, "pairs per update")
    accumulation: int = option(2, "micro-batches per update")
    num_steps: int = option(2, "counted updates per round")
    rounds: int = option(5, "measured rounds, after one that warms up")
    rates: str = option("", "file of rates for `qurating plan` that ours is added to; made where it is not there")
    against: Literal["torch", "none"] = option("torch", "what to measure beside it, where it is installed")
    mesh: MeshShape = MeshShape()
    compute: ComputeConfig = ComputeConfig(scan_layers=False)

    def __post_init__(self) -> None:
        if self.model not in PRESETS:
            raise ValueError(f"model {self.model!r} is none of {', '.join(PRESETS)}")
        if min(self.max_tokens, self.batch_pairs, self.accumulation, self.num_steps, self.rounds) < 1:
            raise ValueError("sizes and counts must be at least 1")


def main(config: Config) -> dict[str, Any]:
    """Prints and returns tokens per second, their ratio, MFU, padding and memory."""
    import jax
    import numpy as np

    from qurating_jax.experiments.planning import rates
    from qurating_jax.models.flops import peak_flops, training_flops
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.parallel.rules import num_batch_shards
    from qurating_jax.training.benching import rater_batches

    if config.rates:
        rates.check_file(config.rates)
    model = config.architecture.apply(dataclasses.replace(PRESETS[config.model], max_positions=config.max_tokens))
    model = model.with_head(len(_CRITERIA))
    batches = rater_batches.random_batches(
        model,
        shorter=config.texts == "mixture",
        max_tokens=config.max_tokens,
        batch_pairs=config.batch_pairs,
        num_steps=(config.num_steps + 1) * (config.rounds + 1),
        num_rows=config.accumulation * num_batch_shards(make_mesh(config.mesh)),
        criteria=_CRITERIA,
    )
    lengths = np.concatenate([part.ravel() for part in batches.text_lengths()]).astype(float)
    tokens = lengths.reshape(config.rounds + 1, config.num_steps + 1, -1)[:, 1:].sum(axis=(1, 2))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        contestants = {"ours": _ours(config, model, batches, directory if config.against == "torch" else None)}
        if config.against == "torch":
            contestants |= _torch(config, batches, directory)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    losses: dict[str, float] = {}
    for turn in range(config.rounds + 1):
        for name, run in contestants.items():
            losses.setdefault(name, run(1))
            start = time.perf_counter()
            run(config.num_steps)
            seconds[name].append(time.perf_counter() - start)
        if turn == 0:
            _require_same_loss(losses, config.compute.dtype)
            print(f"compiled and warmed up in {time.perf_counter() - began:.0f} s; first losses: {losses}", flush=True)
    result: dict[str, Any] = {"device": jax.devices()[0].device_kind, "padding_fraction": batches.padding_fraction}
    for name, spent in seconds.items():
        speeds = tokens[1:] / np.array(spent[1:])
        result[f"{name}_tokens_per_second"] = {"median": float(np.median(speeds)), "best": float(speeds.max())}
    flops = float(training_flops(model, lengths).sum() / lengths.sum())
    speed = result["ours_tokens_per_second"]["median"] * flops
    result |= {"flops_per_token": flops, "flops_per_second": speed}
    if peak := peak_flops(result["device"]):
        result["mfu"] = speed / (peak * jax.device_count())
    if memory := jax.devices()[0].memory_stats():
        result["peak_memory_bytes"] = memory["peak_bytes_in_use"]
    if "torch" in seconds:
        result["ratio"] = float(np.median(np.array(seconds["torch"][1:]) / np.array(seconds["ours"][1:])))
    print(*(f"{name:<26} {value}" for name, value in result.items()), sep="\n")
    if config.rates:
        rates.append(config.rates, _rate(config, model, result))
    return result


def _rate(config: Config, model: DecoderConfig, result: dict[str, Any]) -> "Rate":
    import jax

    from qurating_jax.experiments.planning import rates

    pairs = f"{config.batch_pairs} pairs of texts of up to {config.max_tokens} tokens an update"
    return rates.of_devices(
        "train-rater",
        result["ours_tokens_per_second"]["median"],
        flops_per_token=result["flops_per_token"],
        num_devices=jax.device_count(),
        work=f"hidden {model.embed_dim}, {model.num_layers} layers, {pairs}, {config.compute.dtype}; updates alone",
        command="qurating bench train-rater",
    )


def _ours(
    config: Config, model: DecoderConfig, batches: "PackedBatches", directory: str | None
) -> Callable[[int], float]:
    """Makes so many updates and returns the first loss; the random weights are exported to `directory`."""
    import jax

    from qurating_jax.data.batches import BatchBuilder, micro_batches
    from qurating_jax.models import hf
    from qurating_jax.models.base import BaseModel
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.parallel.rules import num_batch_shards
    from qurating_jax.training.losses import bradley_terry_loss
    from qurating_jax.training.optim import optimizer
    from qurating_jax.training.state import abstract_state, create_state, full_fine_tuning
    from qurating_jax.training.step import make_step

    mesh = make_mesh(config.mesh)
    micro_batches(config.batch_pairs, config.accumulation, mesh)
    builder = BatchBuilder(batches.fetch, shape=(config.accumulation, num_batch_shards(mesh)), mesh=mesh)
    tx = optimizer(_OPTIM, batches.num_steps)
    trainable = full_fine_tuning(BaseModel(model, None), mesh, seed=0)
    step = make_step(
        lambda params, batch: bradley_terry_loss(
            params, model, batch, batches.classes, margin=0.0, label_temperature=1.0, compute=config.compute
        ),
        tx,
    )
    with jax.set_mesh(mesh):
        params = trainable.create()
        if directory is not None:
            hf.save(directory, params, model, labels=_CRITERIA)
        state = create_state(params, abstract_state(trainable.abstract, tx, mesh), tx)

    steps = builder.batches(0, batches.num_steps)  # one reader for the whole run, as in training

    def run(num_steps: int) -> float:
        nonlocal state
        losses = []
        with jax.set_mesh(mesh):
            for batch in itertools.islice(steps, num_steps):
                state, metrics = step(state, batch)
                losses.append(metrics["loss"])
        return float(jax.device_get(losses)[0])  # waits for the last step too

    return run


def _torch(config: Config, batches: "PackedBatches", directory: str) -> dict[str, Callable[[int], float]]:
    """The same update of the same weights in PyTorch, texts padded to the longest of their micro-batch."""
    try:
        import torch
    except ImportError:
        print("torch is not installed: nothing to compare with")
        return {}
    import numpy as np
    import transformers

    from qurating_jax.data.packing import text_starts

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if config.compute.dtype == "float32" else torch.bfloat16
    network = transformers.LlamaForSequenceClassification.from_pretrained(
        directory, dtype=dtype, attn_implementation="sdpa", pad_token_id=0
    )
    network = network.to(device).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=_OPTIM.learning_rate, betas=(_OPTIM.beta1, _OPTIM.beta2), weight_decay=0.1, fused=True
    )

    def update(step: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for place in range(config.accumulation):
            row = batches.fetch(step, np.array([place]))
            sizes, tokens = row["lengths"][0], row["tokens"][0]
            starts = text_starts(sizes, len(tokens), batches.classes)
            texts = [torch.from_numpy(tokens[b : b + n]).long() for b, n in zip(starts, sizes, strict=True)]
            ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(device)
            scores = network(input_ids=ids, attention_mask=(ids != 0).long(), use_cache=False).logits.float()
            pairs = scores[torch.from_numpy(row["members"][0].astype(np.int64)).to(device)]
            targets = torch.from_numpy(row["labels"][0][:, 0, 1]).to(device)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(pairs[:, 1] - pairs[:, 0], targets)
            (loss / config.accumulation).backward()
            total += float(loss.detach()) / config.accumulation
        torch.nn.utils.clip_grad_norm_(network.parameters(), _OPTIM.clip_norm)
        optimizer.step()
        return total

    steps = itertools.count()

    def run(num_steps: int) -> float:
        losses = [update(next(steps)) for _ in range(num_steps)]
        return losses[0]

    return {"torch": run}


def _require_same_loss(losses: dict[str, float], dtype: str) -> None:
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    if "torch" in losses and abs(losses["torch"] - losses["ours"]) > tolerance:
        raise UserError(f"the two sides do not compute the same loss: {losses}")
