"""What is measured: an architecture with random weights, how it is computed, and how long."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.models import llama
from qurating_jax.models.axes import logical_axes
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.flops import peak_flops
from qurating_jax.models.llama import Params
from qurating_jax.parallel.rules import tree_shardings
from qurating_jax.runtime.turns import Amount, Side
from qurating_jax.scoring.benching.samples import Sample
from qurating_jax.scoring.neural import NeuralModel

CRITERIA = ("writing_style", "required_expertise", "facts_and_trivia", "educational_value")


@dataclass(frozen=True, eq=False)
class Setting:
    """A benchmark's model and sizes.

    Attributes:
        model: the architecture, with a head for `CRITERIA`.
        compute: dtype and kernels of our side; the other side has the same dtype.
        mesh: devices of our side.
        window_tokens: longest window.
        num_shapes: most static shapes.
        batch_tokens: tokens per batch of ours; None: what suits the devices.
        rounds: turns of every side.
        turn_tokens: tokens of a turn, about.
    """

    model: DecoderConfig
    compute: ComputeConfig
    mesh: Mesh
    window_tokens: int
    num_shapes: int
    batch_tokens: int | None
    rounds: int
    turn_tokens: int

    def params(self) -> Params:
        """Random weights in their shards, in the compute dtype (as a rater is loaded)."""
        shapes = llama.abstract(self.model)
        shardings = tree_shardings(self.mesh, logical_axes(shapes, is_rater=True), shapes)

        def init(key: jax.Array) -> Params:
            return jax.tree.map(lambda leaf: leaf.astype(self.compute.dtype), llama.init(self.model, key))

        return jax.jit(init, out_shardings=shardings)(jax.random.key(0))

    def rater(self, params: Params, **changed: Any) -> NeuralModel:
        """These weights as a rater; `changed` are fields of its compute settings."""
        return NeuralModel.build(
            params,
            self.model,
            CRITERIA,
            numbered_tokenizer(self.model.vocab_size),
            mesh=self.mesh,
            compute=replace(self.compute, **changed),
            window_tokens=self.window_tokens,
            batch_tokens=self.batch_tokens,
        )


def numbered_tokenizer(vocab_size: int) -> TextTokenizer:
    """Stands where a rater needs a tokenizer and its windows are token ids: the word `n` is token n."""
    from tokenizers import Tokenizer, models

    words = {str(number): number for number in range(vocab_size)}
    return TextTokenizer(Tokenizer(models.WordLevel(words, unk_token="0")).to_str(), source="the numbers")


def our_side(model: NeuralModel, sample: Sample, shares: list[NDArray[np.int64]]) -> Side:
    """Scores a share of a sample's windows a round."""

    def run(number: int) -> Amount:
        before = model.work
        score(model, sample, shares[number])
        done = model.work - before
        return Amount(done.tokens, done.places, done.flops)

    return Side(lambda: score(model, sample, shares[0][:1]), run)


def score(model: NeuralModel, sample: Sample, windows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Scores of some windows of a sample: float32 [k, C]."""
    return model.score_tokens(sample.values, sample.starts[windows], sample.sizes[windows])


def padding(model: NeuralModel, sizes: NDArray[np.int64]) -> float:
    """Share of the places that windows of these sizes leave empty in this model's batches."""
    places = sum(batch.members.shape[0] * batch.shape.num_tokens for batch in model.scorer.plan(sizes))
    return 1 - float(sizes.sum()) / places


def mfu(flops_per_second: float, devices: int) -> float | None:
    """Share of the peak of so many devices like those here; None where it is not known."""
    peak = peak_flops(jax.local_devices()[0].device_kind)
    return flops_per_second / (peak * devices) if peak else None
