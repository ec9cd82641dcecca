"""What stands around the update: reading its rows from token shards, and saving and restoring its state."""

import tempfile
import time

import jax
import numpy as np

from qurating_jax.data.batches import BatchBuilder, batches_of_order, micro_batches
from qurating_jax.data.order import RowOrder
from qurating_jax.data.tokens import TokenRows, TokenRowsWriter
from qurating_jax.runtime.checkpoint import Checkpoints
from qurating_jax.training.benching.ours import Setting, Variant


def input_speed(setting: Setting, accumulation: int, num_steps: int) -> dict[str, float]:
    """Tokens per second of shuffled batches from token shards on the local disk to the devices, without training."""
    T, rows_of_batch = setting.sequence_tokens, setting.batch_sequences
    num_rows = max(4 * rows_of_batch, 256)
    with tempfile.TemporaryDirectory() as directory:
        writer = TokenRowsWriter(directory, num_rows=num_rows, sequence_tokens=T, vocab_size=setting.model.vocab_size)
        generator = np.random.default_rng(0)
        for number in range(writer.num_shards):
            start, stop = writer.span(number)
            tokens = generator.integers(0, setting.model.vocab_size, (stop - start, T), np.int32)
            writer.write(number, tokens, np.ones_like(tokens))
        rows = TokenRows(directory)
        order = RowOrder([num_rows], seed=0, kind="shuffled")
        fetch = batches_of_order(order, lambda _, numbers: rows.fetch(numbers), rows_of_batch)
        shape = micro_batches(rows_of_batch, accumulation, setting.mesh)
        batches = BatchBuilder(fetch, shape=shape, mesh=setting.mesh).batches(0, num_steps + 2)
        jax.block_until_ready([next(batches), next(batches)])
        began = time.perf_counter()
        for batch in batches:
            jax.block_until_ready(batch)
        seconds = time.perf_counter() - began
    return {"tokens_per_second": num_steps * rows_of_batch * T / seconds}


def checkpoint_times(variant: Variant, interval: int, step_seconds: float) -> dict[str, float]:
    """How long a save holds up the loop, and how soon training goes on after a restart, compiling apart.

    Args:
        variant: whose state is saved.
        interval: updates between two checkpoints.
        step_seconds: of an update without a save.

    Returns:
        `stall_seconds`: of `save` itself and of the updates beside it, as far as they are slower; `stall_share`: of the
        time between two saves; `restore_to_step_seconds`: from opening the directory to the end of the first update.
    """
    trainer = variant.trainer
    with tempfile.TemporaryDirectory() as directory:
        with Checkpoints(directory, keep=1) as checkpoints:
            began = time.perf_counter()
            checkpoints.save(1, trainer.state, {})
            variant.update(1)
            stall = time.perf_counter() - began - step_seconds
        with jax.set_mesh(trainer.setting.mesh), Checkpoints(directory, keep=1) as checkpoints:
            began = time.perf_counter()
            trainer.state = checkpoints.restore(1, trainer.abstract)[0]
            variant.update(1)
            restored = time.perf_counter() - began
    stall = max(stall, 0.0)
    return {
        "stall_seconds": stall,
        "stall_share": stall / (interval * step_seconds),
        "restore_to_step_seconds": restored,
    }
