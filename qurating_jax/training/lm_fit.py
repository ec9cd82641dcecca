"""The language model's own part of training: its rows and their order, its loss, what it starts from."""

from typing import Any

from jax.sharding import Mesh

from qurating_jax.data.batches import BatchBuilder, batches_of_order, micro_batches
from qurating_jax.data.order import RowOrder
from qurating_jax.data.token_sets import TokenSets, open_token_sets
from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.models.base import BaseModel, resolve_base
from qurating_jax.models.flops import num_parameters, training_flops
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.tracking import Tracking
from qurating_jax.training.batch_documents import BatchDocuments
from qurating_jax.training.fit import fit
from qurating_jax.training.held_out import HeldOut
from qurating_jax.training.journal import Notes
from qurating_jax.training.lm_options import LmOptions
from qurating_jax.training.loop import Trained
from qurating_jax.training.losses import next_token_loss
from qurating_jax.training.state import full_fine_tuning
from qurating_jax.training.validation import Validation

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


def row_order(options: LmOptions, seed: int, sets: TokenSets) -> RowOrder:
    """The order of the rows that the options ask for.

    Raises:
        UserError: a selection's order where a token set does not follow one, or weights that make no mixture.
    """
    kind = options.order.kind
    for directory, order in zip(sets.directories, sets.orders, strict=True):
        if kind == "selection" and order is None:
            raise UserError(
                f"{directory}: its rows follow no selection's order; select with an order and tokenize with "
                "--selection, or take order.kind stored or shuffled"
            )
    return RowOrder(
        sets.num_rows,
        seed=seed,
        kind="shuffled" if kind == "shuffled" else "stored",
        reverse=options.order.reverse,
        num_buckets=options.order.num_buckets,
        weights=options.mixture_weights,
    )


def base_model(options: LmOptions, sets: TokenSets) -> BaseModel:
    """What the run starts from.

    Raises:
        UserError: a model that cannot be trained on these tokens: another tokenizer, a vocabulary smaller than the ids,
            fewer positions than a row has; or as of `resolve_base`.
    """
    base = resolve_base(
        options.model,
        revision=options.revision,
        architecture=options.architecture,
        vocab_size=sets.vocab_size,
        sequence_tokens=sets.sequence_tokens,
    )
    if sets.largest_id >= base.config.vocab_size:
        raise UserError(
            f"{options.model}: vocabulary of {base.config.vocab_size}, but the tokens hold the id {sets.largest_id}; "
            "tokenize with the model's own tokenizer"
        )
    own = _own_tokenizer(base)
    if own is not None and own != sets.tokenizer:
        raise UserError(
            f"{options.model}: its tokenizer is not the one of {sets.directories[0]}; tokenize with "
            f"--tokenizer {options.model}"
        )
    return base


def plan_counts(options: LmOptions, base: BaseModel, sets: TokenSets, order: RowOrder) -> dict[str, Any]:
    """What a run comes to, known before it: steps, epochs of each set, places of tokens, parameters."""
    num_steps = options.steps(sum(sets.num_rows))
    positions = num_steps * options.batch_sequences
    epochs = order.epochs(positions)
    return {
        "num_steps": num_steps,
        "num_epochs": [round(number, 4) for number in epochs] if options.mixture_weights else round(epochs[0], 4),
        "num_rows": sum(sets.num_rows),
        "sequence_tokens": sets.sequence_tokens,
        "row_tokens": positions * sets.sequence_tokens,
        "parameters": num_parameters(base.config),
    }


def most_flops(base: BaseModel, counts: dict[str, Any]) -> float:
    """Operations of the whole run if every row were one text without padding; shorter texts attend to less."""
    rows = counts["row_tokens"] / counts["sequence_tokens"]
    return rows * float(training_flops(base.config, float(counts["sequence_tokens"])))


def batches(options: LmOptions, sets: TokenSets, order: RowOrder, mesh: Mesh) -> BatchBuilder:
    """The batch of every step, on the mesh.

    Raises:
        UserError: a batch that does not divide over micro-batches and devices, or has more rows than there are.
    """
    shape = micro_batches(options.batch_sequences, options.accumulation, mesh)
    fetch = batches_of_order(order, sets.fetcher(options.document_attention), options.batch_sequences)
    return BatchBuilder(fetch, shape=shape, mesh=mesh)


def held_out(options: LmOptions, seed: int, base: BaseModel, mesh: Mesh) -> Validation | None:
    """Losses on validation rows of the token sets that hold some out; None where there is nothing to evaluate.

    Raises:
        UserError: nothing to evaluate for what `held_out` asks, or as of `HeldOut`.
    """
    counts = {directory: manifest.read(directory)["counts"] for directory in options.tokens}
    directories = [name for name, found in counts.items() if (found.get("validation") or {"rows": 0})["rows"]]
    if not directories or not options.held_out.max_rows:
        if options.held_out.export == "best" or options.held_out.patience:
            raise UserError(
                "held_out.export best and held_out.patience need held-out losses: tokenize with a validation_fraction, "
                "and leave held_out.max_rows above 0"
            )
        return None
    evaluated = HeldOut(
        open_token_sets(directories, split="validation"),
        base.config,
        max_rows=options.held_out.max_rows,
        batch_rows=options.batch_sequences // options.accumulation,
        seed=seed,
        document_attention=options.document_attention,
        compute=options.compute,
        mesh=mesh,
    )
    return Validation(evaluated.evaluate, options.held_out)


def fit_lm(
    options: LmOptions,
    seed: int,
    base: BaseModel,
    sets: TokenSets,
    order: RowOrder,
    builder: BatchBuilder,
    *,
    validation: Validation | None,
    mesh: Mesh,
    directory: str,
    tracking: Tracking | None = None,
) -> Trained:
    """Trains, or goes on from the newest checkpoint in `directory`.

    Args:
        options: all settings.
        seed: of the weights that are drawn.
        base: the model to start from.
        sets: the rows.
        order: of the rows.
        builder: as `batches` gives it.
        validation: on held-out rows.
        mesh: the device mesh.
        directory: gets what `loop.Training` says.
        tracking: where metrics go besides.

    Raises:
        Interrupted, UserError: as of `loop.train`.
    """
    size = options.batch_sequences

    def loss(params: Any, batch: dict[str, Any]) -> Any:
        return next_token_loss(params, base.config, batch, compute=options.compute, z_loss=options.z_loss)

    def epochs(step: int) -> dict[str, float]:
        found = order.epochs(step * size)
        if options.mixture_weights:
            return {f"epoch/{number}": epoch for number, epoch in enumerate(found)}
        return {"epoch": found[0]}

    return fit(
        base.config,
        full_fine_tuning(base, mesh, seed=seed),
        loss,
        builder,
        mesh=mesh,
        num_steps=options.steps(sum(sets.num_rows)),
        optim_config=options.optim,
        loop_config=options.loop,
        title="train-lm",
        directory=directory,
        validation=validation,
        notes=Notes(metrics=epochs, documents=BatchDocuments(sets, order, size)),
        tracking=tracking,
    )


def _own_tokenizer(base: BaseModel) -> str | None:
    """Identity of the tokenizer that the model came with; None for a preset and where it came without."""
    if base.directory is None:
        return None
    files = [storage.join(base.directory, name) for name in _TOKENIZER_FILES]
    return load_tokenizer(base.directory).identity if any(map(storage.exists, files)) else None
