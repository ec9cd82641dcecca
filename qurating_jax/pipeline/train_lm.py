"""Train a language model on token shards, from a preset or from a checkpoint."""

import logging
from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.models.config import PRESETS, ArchitectureOverrides, ComputeConfig
from qurating_jax.parallel.options import Distributed, MeshShape
from qurating_jax.runtime import manifest, storage
from qurating_jax.stage import StageConfig, open_run, require, require_local
from qurating_jax.training.options import LoopConfig, OptimConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating train-lm`."""

    tokens: str = option("", "output of `qurating tokenize`", runtime=True)
    model: str = option("debug", f"preset ({', '.join(PRESETS)}), or Hugging Face directory or hub id to start from")
    revision: str | None = option(None, "revision of a hub id")
    architecture: ArchitectureOverrides = ArchitectureOverrides()
    num_steps: int | None = option(None, "updates; null: as many as `num_epochs` gives")
    num_epochs: float = option(1.0, "passes over the tokens (where num_steps is null)")
    batch_sequences: int = option(2048, "rows per update, over all devices")
    accumulation: int = option(1, "micro-batches per update")
    optim: OptimConfig = OptimConfig()
    loop: LoopConfig = LoopConfig()
    mesh: MeshShape = MeshShape()
    compute: ComputeConfig = ComputeConfig()
    distributed: Distributed = Distributed()

    def __post_init__(self) -> None:
        if min(self.batch_sequences, self.accumulation) < 1 or (self.num_steps is not None and self.num_steps < 1):
            raise ValueError("batch_sequences, accumulation and num_steps must be at least 1")
        if self.num_epochs <= 0:
            raise ValueError("num_epochs must be positive")


def main(config: Config) -> dict[str, Any]:
    """Writes `checkpoints/`, `metrics.jsonl` and, at the end, the exported model in `hf/`."""
    from qurating_jax.data.batches import BatchBuilder, batches_of_order, micro_batches
    from qurating_jax.data.order import RowOrder
    from qurating_jax.data.tokenizer import load_tokenizer
    from qurating_jax.data.tokens import TokenRows
    from qurating_jax.models.base import resolve_base
    from qurating_jax.parallel import distributed
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.training.fit import export, fit
    from qurating_jax.training.losses import next_token_loss
    from qurating_jax.training.state import full_fine_tuning

    require(config, "tokens")
    require_local(config)
    distributed.initialize(config.distributed)
    tokenized = manifest.read(config.tokens, stages=("tokenize",))["counts"]
    rows = TokenRows(storage.join(config.tokens, "tokens"))
    base = resolve_base(
        config.model,
        revision=config.revision,
        architecture=config.architecture,
        vocab_size=tokenized["vocab_size"],
        sequence_tokens=rows.sequence_tokens,
    )
    num_steps = config.num_steps or max(1, round(config.num_epochs * rows.num_rows / config.batch_sequences))
    counts: dict[str, Any] = {
        "num_steps": num_steps,
        "num_epochs": round(num_steps * config.batch_sequences / rows.num_rows, 4),
        "sequence_tokens": rows.sequence_tokens,
        "seen_tokens": num_steps * config.batch_sequences * rows.sequence_tokens,
    }
    log.info("train-lm: %(num_steps)d steps, %(num_epochs)s epochs, %(seen_tokens)d tokens with padding", counts)
    if config.dry_run:
        print(f"would train {config.model} for {num_steps} steps on {rows.num_rows} rows into {config.output}")
        return counts

    mesh = make_mesh(config.mesh)
    shape = micro_batches(config.batch_sequences, config.accumulation, mesh)
    order = RowOrder([rows.num_rows], seed=config.seed, kind="shuffled")
    fetch = batches_of_order(order, lambda _, wanted: rows.fetch(wanted), config.batch_sequences)
    inputs = {"tokens": manifest.input_digest([config.tokens], []), "base": base.digest()}
    with open_run(config, "train-lm", inputs, distributed=config.distributed) as run:
        if run.state == "finished":
            return run.counts
        trained = fit(
            base.config,
            full_fine_tuning(base, mesh, seed=config.seed),
            lambda params, batch: next_token_loss(params, base.config, batch, compute=config.compute),
            BatchBuilder(fetch, shape=shape, mesh=mesh),
            mesh=mesh,
            num_steps=num_steps,
            optim_config=config.optim,
            loop_config=config.loop,
            title="train-lm",
            directory=run.output,
        )
        tokenizer = load_tokenizer(storage.join(config.tokens, "tokenizer"))
        export(run.path("hf"), trained.params, base.config, tokenizer)
        manifest.finish(run, counts)
        return counts
