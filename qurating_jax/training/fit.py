"""From parameters, a loss and batches to trained parameters: what rater and language model have in common."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from qurating_jax.data.batches import BatchBuilder
from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.models import hf
from qurating_jax.models.config import DecoderConfig
from qurating_jax.models.llama import Params
from qurating_jax.parallel import distributed
from qurating_jax.parallel.compilation import keep_compilations
from qurating_jax.runtime.tracking import Tracking
from qurating_jax.training import optim
from qurating_jax.training.journal import Notes
from qurating_jax.training.loop import Trained, Training, train
from qurating_jax.training.options import LoopConfig, OptimConfig
from qurating_jax.training.state import Trainable, abstract_state, create_state
from qurating_jax.training.step import LossFn, make_step
from qurating_jax.training.validation import Validation

log = logging.getLogger(__name__)


def fit(
    model: DecoderConfig,
    trainable: Trainable,
    loss_fn: LossFn,
    builder: BatchBuilder,
    *,
    mesh: Mesh,
    num_steps: int,
    optim_config: OptimConfig,
    loop_config: LoopConfig,
    title: str,
    directory: str,
    labels: Sequence[str] = (),
    validation: Validation | None = None,
    notes: Notes | None = None,
    tracking: Tracking | None = None,
) -> Trained:
    """Trains for `num_steps` updates, or what is left of them after the newest checkpoint in `directory`.

    Args:
        model: the architecture, stored with every checkpoint.
        trainable: the parameters to train, and where they come from.
        loss_fn: see `step.LossFn`; its sums include `tokens`, the measure of throughput.
        builder: batch of a step.
        mesh: the device mesh.
        num_steps: updates in all.
        optim_config, loop_config: settings.
        title, directory, notes, tracking: see `loop.Training`.
        labels: names of a rater's scores, stored with every checkpoint.
        validation: on held-out data, of the whole model's parameters.

    Returns:
        The parameters of the whole model, in their shards. Errors as of `loop.train`.
    """
    keep_compilations()  # a run that resumes need not compile again
    tx = optim.optimizer(optim_config, num_steps)
    merge = jax.jit(trainable.merge) if trainable.frozen else trainable.merge
    if validation is not None:
        validation = _of_whole_models(validation, lambda params: merge(params, trainable.frozen))
    abstract = abstract_state(trainable.abstract, tx, mesh)
    rates = optim.learning_rates(optim_config, num_steps)
    step_fn = make_step(loss_fn, tx, frozen=trainable.frozen, assemble=trainable.assemble, learning_rates=rates)
    with jax.set_mesh(mesh):
        run = Training(
            create=lambda: create_state(trainable.create(), abstract, tx),
            abstract=abstract,
            step_fn=step_fn,
            builder=builder,
            num_steps=num_steps,
            title=title,
            directory=directory,
            document={"model": dataclasses.asdict(model), "labels": list(labels), "adapters": bool(trainable.frozen)},
            config=loop_config,
            validation=validation,
            notes=notes or Notes(),
            tracking=tracking or Tracking(),
        )
        trained = train(run)
        return dataclasses.replace(trained, params=merge(trained.params, trainable.frozen))


def _of_whole_models(validation: Validation, whole: Callable[[Params], Params]) -> Validation:
    """The validation, of what is trained."""
    evaluate = validation.evaluate
    return dataclasses.replace(validation, evaluate=lambda params: evaluate(whole(params)))


def export(
    directory: str,
    params: Params,
    model: DecoderConfig,
    tokenizer: TextTokenizer | None,
    *,
    labels: Sequence[str] = (),
    dtype: str = "float32",
) -> None:
    """Writes a Hugging Face directory: weights, config and, where given, tokenizer. Every process has to call it."""
    special_tokens: dict[str, Any] = {}
    if tokenizer is not None and tokenizer.eos_id is not None:
        special_tokens = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.eos_id}
    if tokenizer is not None and distributed.is_primary():
        tokenizer.save(directory)
        if model.family == "qwen2" and not tokenizer.is_qwen2:
            log.warning(
                "%s: transformers.AutoTokenizer splits texts as Qwen2 does beside a model of that family, and this "
                "tokenizer does not; load it there with PreTrainedTokenizerFast.from_pretrained",
                directory,
            )
    hf.save(directory, params, model, labels=labels, dtype=dtype, special_tokens=special_tokens)
