"""From a base model, a loss and rows of data to trained parameters: what rater and language model have in common."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from qurating_jax.data.batches import BatchBuilder, FetchRows, row_order
from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.models import hf
from qurating_jax.models.base import BaseModel
from qurating_jax.models.config import DecoderConfig
from qurating_jax.models.llama import Params
from qurating_jax.parallel import distributed
from qurating_jax.training import optim
from qurating_jax.training.loop import train
from qurating_jax.training.options import LoopConfig, OptimConfig
from qurating_jax.training.state import abstract_state, create_state
from qurating_jax.training.step import LossFn, make_step


def fit(
    base: BaseModel,
    loss_fn: LossFn,
    fetch: FetchRows,
    *,
    mesh: Mesh,
    num_rows: int,
    num_steps: int,
    batch_size: int,
    accumulation: int,
    seed: int,
    optim_config: OptimConfig,
    loop_config: LoopConfig,
    title: str,
    directory: str,
    labels: Sequence[str] = (),
) -> Params:
    """Trains for `num_steps` updates, or what is left of them after the newest checkpoint in `directory`.

    Args:
        base: the model to start from.
        loss_fn: see `step.LossFn`; its sums include `tokens`, the measure of throughput.
        fetch: rows (int64 [n] below `num_rows`) -> arrays of a batch.
        mesh: the device mesh.
        num_rows: rows of the data set; every epoch goes through them in another order.
        num_steps: updates in all.
        batch_size: rows per update, over all devices.
        accumulation: micro-batches per update.
        seed: of initialisation and order.
        optim_config: optimiser settings.
        loop_config: logging and checkpoints.
        title: for progress and log lines.
        directory: gets `checkpoints/` and `metrics.jsonl`.
        labels: names of a rater's scores, stored with every checkpoint.

    Returns:
        The parameters, in their shards. Errors as of `loop.train` and `BatchBuilder`.
    """
    tx = optim.optimizer(optim_config, num_steps)
    order = row_order(num_rows, seed)
    builder = BatchBuilder(order, fetch, batch_size=batch_size, accumulation=accumulation, mesh=mesh)
    with jax.set_mesh(mesh):
        state = train(
            lambda: create_state(base.config, tx, mesh, seed=seed, params=base.load(mesh, seed=seed)),
            abstract_state(base.config, tx, mesh),
            make_step(loss_fn, tx),
            builder,
            num_steps=num_steps,
            title=title,
            unit="tokens",
            directory=directory,
            document={"model": dataclasses.asdict(base.config), "labels": list(labels)},
            config=loop_config,
        )
    return state.params


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
    hf.save(directory, params, model, labels=labels, dtype=dtype, special_tokens=special_tokens)
