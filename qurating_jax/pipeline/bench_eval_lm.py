"""How many requests of tasks per second are answered here, beside the harness's own `hf` model where it is installed.

Both sides load the same exported checkpoint, a given one or random weights, and get the same requests; that they give
the same answers is measured too. Sides take turns, task by task and round by round, since machines are noisy. Requests
and tokens are counted as the task has them, each request with its whole context: what is read once for several of them
shows as speed. On a CPU set `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` before: huge pages help both sides.
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from typing import Any, Literal

from qurating_jax.config import option
from qurating_jax.models.config import PRESETS, ArchitectureOverrides, AttentionChoice
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.stage import InspectConfig, require


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating bench eval-lm`; configs/bench_eval_lm/ has the figures that are quoted."""

    tasks: tuple[str, ...] = option(("local",), "tasks, as of eval-lm")
    data: str | None = option(None, "folder of the tasks' files (the preset `local`)")
    limit: int | None = option(None, "questions of each task at most; of MMLU, of each subject")
    num_fewshot: int | None = option(None, "examples before a question; null: each task's own number")
    model: str = option("debug", f"a Hugging Face directory, or random weights of {', '.join(PRESETS)}")
    architecture: ArchitectureOverrides = ArchitectureOverrides()
    tokenizer: str | None = option(None, "tokenizer for random weights: directory, tokenizer.json or hub id")
    context_tokens: int = option(1024, "the longest sequence that the models are shown")
    batch_tokens: int | None = option(None, "tokens per batch of ours over all devices; null: what suits them")
    rounds: int = option(3, "turns of every side")
    against: Literal["none", "hf"] = option("hf", "the harness's own model: not at all, or beside ours")
    against_batch: int = option(16, "its batch_size")
    dtype: Literal["float32", "bfloat16"] = option("float32", "of both sides")
    attention: AttentionChoice = option("auto", "our attention kernels")
    seed: int = option(0, "of the draws of examples")
    mesh: MeshShape = MeshShape()

    def __post_init__(self) -> None:
        if self.model not in PRESETS and self.architecture.any():
            raise ValueError("architecture.* changes a preset; a model that is loaded keeps its own architecture")
        for name in ("context_tokens", "rounds", "against_batch", "limit", "batch_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


def main(config: Config) -> dict[str, Any]:
    """Prints a line per task as soon as it is measured, and returns all figures."""
    import jax

    from qurating_jax.scoring.tasks import loading, presets

    require(config, "tasks")
    if config.model in PRESETS and config.tokenizer is None:
        raise UsageError(f"random weights ({config.model}) need --tokenizer")
    loading.require_harness()
    tasks = loading.load_tasks(
        presets.choose(config.tasks),
        folder=config.data,
        include=(),
        num_fewshot=config.num_fewshot,
        seed=config.seed,
    )
    result: dict[str, Any] = {"device": jax.devices()[0].device_kind, "devices": jax.device_count(), "tasks": {}}
    with tempfile.TemporaryDirectory() as directory:
        models = _models(config, _checkpoint(config, directory))
        for task in tasks:
            result["tasks"][task.name] = _measure(config, models, task)
    result["total"] = _total(result["tasks"])
    print(f"all tasks: {_line(result['total'])}", flush=True)
    return result


def _checkpoint(config: Config, directory: str) -> str:
    """The model's directory; random weights are written to the given one."""
    import jax

    from qurating_jax.data.tokenizer import load_tokenizer
    from qurating_jax.models import hf, llama
    from qurating_jax.models.base import resolve_base
    from qurating_jax.runtime import manifest
    from qurating_jax.training.fit import export

    if config.model not in PRESETS:
        return hf.resolve(manifest.exported(config.model, "train-lm"), None)
    tokenizer = load_tokenizer(str(config.tokenizer))
    base = resolve_base(
        config.model,
        revision=None,
        architecture=config.architecture,
        vocab_size=tokenizer.vocab_size,
        sequence_tokens=config.context_tokens,
    )
    params = jax.jit(lambda key: llama.init(base.config, key))(jax.random.key(0))
    export(directory, params, base.config, tokenizer, dtype=config.dtype)
    return directory


def _models(config: Config, directory: str) -> dict[str, Any]:
    from qurating_jax.scoring.benching import tasks as benching
    from qurating_jax.scoring.tasks.running import make_model

    arguments = {
        "model": directory,
        "context_tokens": config.context_tokens,
        "dtype": config.dtype,
        "batch_tokens": config.batch_tokens,
        "attention": config.attention,
        **dataclasses.asdict(config.mesh),
    }
    models = {benching.OURS: make_model(arguments)}
    if config.against == "none":
        return models
    if reason := benching.hf_obstacle():
        print(reason, flush=True)
        return models
    models[benching.HF] = benching.hf_model(
        directory,
        context_tokens=config.context_tokens,
        dtype=config.dtype,
        batch_size=config.against_batch,
    )
    return models


def _measure(config: Config, models: dict[str, Any], task: Any) -> dict[str, Any]:
    from qurating_jax.scoring.benching import tasks as benching

    requests = benching.requests_of(task, config.limit)
    if not requests:
        raise UserError(f"{task.name}: no question in it")
    found = benching.contest(models, requests, config.rounds)
    seconds = {name: found["requests"] / of["requests_per_second"]["median"] for name, of in found["sides"].items()}
    found["seconds"] = seconds
    print(f"{task.name}: {_line(found)}", flush=True)
    return found


def _total(tasks: dict[str, Any]) -> dict[str, Any]:
    """All tasks one after another, by the medians of their times; the worst agreement."""
    parts = list(tasks.values())
    names = parts[0]["seconds"]
    found: dict[str, Any] = {
        "requests": sum(part["requests"] for part in parts),
        "tokens": sum(part["tokens"] for part in parts),
        "seconds": {name: sum(part["seconds"][name] for part in parts) for name in names},
    }
    if all("agreement" in part for part in parts):
        worst: dict[str, float] = {}
        for part in parts:
            for name, value in part["agreement"].items():
                worst[name] = (min if "same" in name else max)(worst.get(name, value), value)
        found["agreement"] = worst
    return found


def _line(found: dict[str, Any]) -> str:
    requests, tokens, seconds = found["requests"], found["tokens"], found["seconds"]
    parts = [f"{requests} requests of {tokens / requests:.0f} tokens"]
    parts += [f"{name} {requests / of:.1f} requests/s, {tokens / of:.0f} tokens/s" for name, of in seconds.items()]
    if len(seconds) > 1:
        parts.append(f"ours / hf {seconds['hf'] / seconds['ours']:.2f}")
    parts += [f"{name.replace('_', ' ')} {value:.3g}" for name, value in found.get("agreement", {}).items()]
    return "; ".join(parts)
