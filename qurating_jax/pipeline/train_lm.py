"""Train a language model on token shards, from a preset or from a checkpoint."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qurating_jax.runtime import manifest, tracking
from qurating_jax.stage import StageConfig, open_run, require, require_checkpoint_store
from qurating_jax.training.lm_options import LmOptions

if TYPE_CHECKING:
    from qurating_jax.models.base import BaseModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig, LmOptions):
    """Options of `qurating train-lm`."""


def main(config: Config) -> dict[str, Any]:
    """Writes `checkpoints/`, `metrics.jsonl` and, at the end, the exported model in `hf/`."""
    from qurating_jax.data.token_sets import open_token_sets
    from qurating_jax.data.tokenizer import load_tokenizer
    from qurating_jax.parallel import distributed
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.training import lm_fit
    from qurating_jax.training.fit import export

    require(config, "tokens")
    require_checkpoint_store(config)
    tracking.require_trackers(config.tracking)
    distributed.initialize(config.distributed)
    sets = open_token_sets(config.tokens)
    order = lm_fit.row_order(config, config.seed, sets)
    base = lm_fit.base_model(config, sets)
    counts = lm_fit.plan_counts(config, base, sets, order)
    log.info("train-lm: %s", ", ".join(f"{name} {value}" for name, value in counts.items()))
    if config.dry_run:
        rows = " + ".join(map(str, sets.num_rows))
        print(f"would train {config.model} for {counts['num_steps']} steps on {rows} rows into {config.output}")
        return counts

    mesh = make_mesh(config.mesh)
    builder = lm_fit.batches(config, sets, order, mesh)
    validation = lm_fit.held_out(config, config.seed, base, mesh)
    # The sets in their order: mixture weights and the place of a row belong to it.
    inputs = {
        "tokens": [manifest.input_digest([directory], []) for directory in config.tokens],
        "base": base.digest(),
    }
    with open_run(config, "train-lm", inputs, distributed=config.distributed) as run:
        if run.state == "finished":
            return run.counts
        _say_what_is_done(config, base, counts)
        tracked = tracking.of_run(
            run, config.tracking, directory=config.tracking_directory, project=config.tracking_project
        )
        trained = lm_fit.fit_lm(
            config, config.seed, base, sets, order, builder,
            validation=validation, mesh=mesh, directory=run.output, tracking=tracked,
        )  # fmt: skip
        export(run.path("hf"), trained.params, base.config, load_tokenizer(sets.tokenizer_directory))
        counts |= {"seen_tokens": trained.seen_tokens, "exported_step": trained.step}
        manifest.finish(run, counts)
        return counts


def _say_what_is_done(config: Config, base: "BaseModel", counts: dict[str, Any]) -> None:
    import jax

    from qurating_jax.models.flops import peak_flops
    from qurating_jax.training.lm_fit import most_flops

    kind, order = jax.devices()[0].device_kind, config.order
    peak = peak_flops(kind)
    speed = "no MFU: the peak of this device is not known" if peak is None else f"MFU of {peak / 1e12:.0f} TFLOP/s each"
    log.info(
        "train-lm: at most %.3g FLOPs in all; %d x %s, %s", most_flops(base, counts), jax.device_count(), kind, speed
    )
    turns = [f"{order.num_buckets} buckets"] * (order.num_buckets > 0) + ["reversed"] * order.reverse
    log.info("train-lm: rows %s, attention %s documents", ", ".join([order.kind, *turns]), config.document_attention)
