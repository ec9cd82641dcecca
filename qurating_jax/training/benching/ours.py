"""Our side: the update of `train-lm` on rows of random tokens, compiled once for every way to compute it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from qurating_jax.data.batches import BatchBuilder, micro_batches
from qurating_jax.models.base import BaseModel
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.flops import training_flops
from qurating_jax.runtime.turns import Amount, Side
from qurating_jax.training.losses import next_token_loss
from qurating_jax.training.optim import optimizer
from qurating_jax.training.options import OptimConfig
from qurating_jax.training.state import TrainState, abstract_state, create_state, full_fine_tuning
from qurating_jax.training.step import make_step

OPTIM = OptimConfig(schedule="constant", warmup_fraction=0.0)


@dataclass(frozen=True, eq=False)
class Setting:
    """What is trained, and how much of it in a turn.

    Attributes:
        model: the architecture; weights are random.
        mesh: devices of our side.
        sequence_tokens: T; a row is one text of T tokens.
        batch_sequences: rows of an update.
        num_steps: updates of a turn.
    """

    model: DecoderConfig
    mesh: Mesh
    sequence_tokens: int
    batch_sequences: int
    num_steps: int

    @property
    def amount(self) -> Amount:
        """Of a turn."""
        texts = self.num_steps * self.batch_sequences
        flops = float(training_flops(self.model, float(self.sequence_tokens)))
        return Amount(texts * self.sequence_tokens, texts * self.sequence_tokens, texts * flops)

    def rows(self, step: int) -> NDArray[np.int32]:
        """The rows of an update: int32 [batch_sequences, T], random tokens."""
        shape = (self.batch_sequences, self.sequence_tokens)
        return np.random.default_rng(step).integers(0, self.model.vocab_size, shape).astype(np.int32)


@dataclass(eq=False)
class Trainer:
    """A training state that all variants of our side take turns to update: memory holds one of them.

    Attributes:
        setting: what is trained.
        state: the state; the updates donate it.
    """

    setting: Setting
    state: TrainState = field(init=False)
    abstract: TrainState = field(init=False)

    def __post_init__(self) -> None:
        self._tx = optimizer(OPTIM, 1000)
        with jax.set_mesh(self.setting.mesh):
            trainable = full_fine_tuning(BaseModel(self.setting.model, None), self.setting.mesh, seed=0)
            self.abstract = abstract_state(trainable.abstract, self._tx, self.setting.mesh)
            self.state = create_state(trainable.create(), self.abstract, self._tx)

    def variant(self, compute: ComputeConfig, accumulation: int) -> "Variant":
        """Compiles the update for one way to compute it."""
        model, setting = self.setting.model, self.setting
        step = make_step(lambda params, batch: next_token_loss(params, model, batch, compute=compute), self._tx)
        shape = micro_batches(setting.batch_sequences, accumulation, setting.mesh)

        def fetch(step: int, places: NDArray[np.int64]) -> dict[str, NDArray[np.int32]]:
            return {
                "tokens": setting.rows(step)[places],
                "lengths": np.full(len(places), setting.sequence_tokens, np.int32),
            }

        builder = BatchBuilder(fetch, shape=shape, mesh=setting.mesh)
        with jax.set_mesh(setting.mesh):
            batch = builder.place(builder.local(0))
            began = time.perf_counter()
            program = jax.jit(step, donate_argnums=0).lower(self.state, batch).compile()
        seconds = time.perf_counter() - began
        memory: Any = program.memory_analysis()
        return Variant(self, program, builder.batches(0, 1_000_000), seconds, int(memory.temp_size_in_bytes))


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to compute the update.

    Attributes:
        trainer: whose state it updates.
        program: the compiled update.
        batches: without end; the host reads ahead, as in training.
        compile_seconds: that compiling it took (or reading it from the cache).
        temporary_bytes: that the program needs on a device beside the state.
    """

    trainer: Trainer
    program: Any
    batches: Iterator[dict[str, jax.Array]]
    compile_seconds: float
    temporary_bytes: int

    def update(self, num_steps: int) -> float:
        """Makes updates and waits for them; returns the loss before the first one."""
        losses = []
        with jax.set_mesh(self.trainer.setting.mesh):
            for _ in range(num_steps):
                self.trainer.state, metrics = self.program(self.trainer.state, next(self.batches))
                losses.append(metrics["loss"])
        return float(jax.device_get(losses)[0])

    def side(self) -> Side:
        """A turn is `num_steps` updates, after one that is not counted."""

        def run(number: int) -> Amount:
            self.update(self.trainer.setting.num_steps)
            return self.trainer.setting.amount

        return Side(lambda: self.update(1), run)
