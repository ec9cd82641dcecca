"""The rater's own part of training: its batches, its loss and what it starts from."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from qurating_jax.data.batches import BatchBuilder, micro_batches
from qurating_jax.data.order import RowOrder
from qurating_jax.data.rater_examples import PackedBatches, RaterExamples
from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.models.base import BaseModel
from qurating_jax.models.config import DecoderConfig
from qurating_jax.models.flops import training_flops
from qurating_jax.models.llama import Params
from qurating_jax.parallel.rules import num_batch_shards
from qurating_jax.runtime.tracking import Tracking
from qurating_jax.training.fit import fit
from qurating_jax.training.loop import Trained
from qurating_jax.training.losses import bradley_terry_loss, regression_loss
from qurating_jax.training.rater_data import RaterData
from qurating_jax.training.rater_options import RaterOptions
from qurating_jax.training.state import full_fine_tuning, low_rank
from qurating_jax.training.step import LossFn
from qurating_jax.training.validation import Validation

_STEPS_PER_SHAPE = 50  # in a shorter run one more program takes longer to compile than it saves


def plan(
    options: RaterOptions, seed: int, data: RaterData, tokenizer: TextTokenizer, mesh: Mesh
) -> list[PackedBatches]:
    """The batches of every member of the run.

    Raises:
        UserError: an empty or too long text, or a batch that does not divide over micro-batches and devices.
    """
    micro_batches(options.batch_pairs, options.accumulation, mesh)
    examples = RaterExamples(
        data.train, tokenizer, max_tokens=options.max_tokens, long_texts=options.long_texts, extra=data.extra
    )
    num_steps = max(1, round(options.num_epochs * len(examples) / options.batch_pairs))
    return [
        PackedBatches.plan(
            examples,
            RowOrder([len(examples)], seed=seed + member, kind="shuffled"),
            num_steps=num_steps,
            batch_size=options.batch_pairs,
            num_rows=options.accumulation * num_batch_shards(mesh),
            max_shapes=min(options.num_shapes, 1 + num_steps // _STEPS_PER_SHAPE),
        )
        for member in range(options.num_members)
    ]


def plan_counts(config: DecoderConfig, plans: list[PackedBatches]) -> dict[str, Any]:
    """What the batches come to: steps, shapes, tokens, padding, and the operations that they need."""
    examples = plans[0].examples
    flops = sum(float(training_flops(config, lengths).sum()) for plan in plans for lengths in plan.text_lengths())
    return {
        "num_steps": plans[0].num_steps,
        "cut_texts": examples.num_cut,
        "tokens_per_epoch": int(examples.lengths.sum()),
        "row_tokens": [int(length) for length in plans[0].row_tokens],
        "padding_fraction": round(max(plan.padding_fraction for plan in plans), 4),
        "petaflops": float(f"{flops / 1e15:.4g}"),
    }


def fit_rater(
    options: RaterOptions,
    seed: int,
    base: BaseModel,
    batches: PackedBatches,
    mesh: Mesh,
    directory: str,
    criteria: tuple[str, ...],
    evaluate: Callable[[Params], dict[str, float]],
    tracking: Tracking | None = None,
) -> Trained:
    """Trains one rater; with `lora.rank` only adapters and head, merged in what is returned.

    Args:
        options: all settings.
        seed: of what is drawn.
        base: the model to start from.
        batches: as planned for this seed and mesh.
        mesh: the device mesh.
        directory: gets `checkpoints/` and `metrics.jsonl`.
        criteria: names of the scores, stored with every checkpoint.
        evaluate: see `validation.Validation`.
        tracking: where metrics go besides.

    Raises:
        Interrupted, UserError: as of `loop.train`.
    """
    if options.lora.rank:
        trainable = low_rank(base, options.lora, mesh, seed=seed, dtype=options.compute.dtype)
    else:
        trainable = full_fine_tuning(base, mesh, seed=seed)
    return fit(
        base.config,
        trainable,
        _loss(options, base.config, batches),
        BatchBuilder(batches.fetch, shape=(options.accumulation, num_batch_shards(mesh)), mesh=mesh),
        mesh=mesh,
        num_steps=batches.num_steps,
        optim_config=options.optim,
        loop_config=options.loop,
        title="train-rater",
        directory=directory,
        labels=criteria,
        validation=Validation(evaluate, options.validate),
        tracking=tracking,
    )


def _loss(options: RaterOptions, model: DecoderConfig, batches: PackedBatches) -> LossFn:
    """Of a teacher's ratings, or of pairs."""
    weights, compute = options.criterion_weights or None, options.compute

    def loss(params: Any, batch: dict[str, Any]) -> Any:
        if options.objective == "regression":
            return regression_loss(params, model, batch, batches.classes, weights=weights, compute=compute)
        return bradley_terry_loss(
            params,
            model,
            batch,
            batches.classes,
            margin=options.margin,
            label_temperature=options.label_temperature,
            weights=weights,
            compute=compute,
        )

    return loss
