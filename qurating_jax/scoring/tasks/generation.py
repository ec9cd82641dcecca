"""Greedy generation for many prompts: batches of like lengths, decoded a few tokens at a time, stopped by text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from numpy.typing import NDArray

from qurating_jax.models import decoding
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.llama import Params
from qurating_jax.parallel import distributed
from qurating_jax.parallel.rules import batch_sharding, num_batch_shards
from qurating_jax.runtime.errors import UserError

# The host looks for stop strings so often; a row that has met one goes on until then.
_STEPS_AT_A_TIME = 16
_LEAST_PROMPT_TOKENS = 64
# Tokens of a batch, prompts and what is generated, per group of devices. Decoding reads all weights for a token of
# every row, so rows are more than in one forward pass.
_BATCH_TOKENS = {"cpu": 16_384, "gpu": 131_072, "tpu": 65_536}
_MAX_ROWS = 128


@dataclass(frozen=True)
class Prompt:
    """What to go on from.

    Attributes:
        tokens: token ids, one at least.
        max_new: tokens to generate at most, one at least.
        find_end: how many of the tokens generated so far count, None while it is to go on; called now and then.
    """

    tokens: Sequence[int]
    max_new: int
    find_end: Callable[[list[int]], int | None]


class Generator:
    """Generates the likeliest token again and again.

    Args:
        params: of a language model, in their shards.
        config: its architecture.
        mesh: rows of a batch are split over it.
        compute: dtype and attention settings.
        eos_id: what ends a text; None: nothing does.
        batch_tokens: tokens of a batch on all devices; None: what suits them.
    """

    def __init__(
        self,
        params: Params,
        config: DecoderConfig,
        mesh: Mesh,
        *,
        compute: ComputeConfig,
        eos_id: int | None,
        batch_tokens: int | None,
    ) -> None:
        self._params, self._mesh, self._eos_id = params, mesh, eos_id
        groups = num_batch_shards(mesh)
        self._batch_tokens = batch_tokens or _BATCH_TOKENS.get(jax.default_backend(), 65_536) * groups
        precision = "highest" if compute.dtype == "float32" else None

        def prefill(params: Params, tokens_BT: Array, lengths_B: Array, num_new: int) -> tuple[Array, decoding.Cache]:
            with jax.default_matmul_precision(precision):
                return decoding.prefill(params, config, tokens_BT, lengths_B, num_new, compute=compute)

        def decode(params: Params, *arrays: Array, num_prompt_tokens: int) -> tuple[Array, decoding.Cache]:
            tokens_B, lengths_B, done_B, keys, values, first = arrays
            with jax.default_matmul_precision(precision):
                return decoding.decode(
                    params, config, tokens_B, lengths_B, done_B, (keys, values), first,
                    num_prompt_tokens=num_prompt_tokens, num_steps=_STEPS_AT_A_TIME, eos_id=eos_id, compute=compute,
                )  # fmt: skip

        self._prefill = jax.jit(prefill, static_argnums=3)
        self._decode = jax.jit(decode, static_argnames="num_prompt_tokens", donate_argnums=(4, 5))

    def __call__(self, prompts: Sequence[Prompt], on_done: Callable[[int], None] | None = None) -> list[list[int]]:
        """What each prompt is continued by: tokens up to `find_end`, the end of text or `max_new`.

        Args:
            prompts: in any order.
            on_done: called with the number of prompts of every finished batch.

        Raises:
            UserError: a token's logits are not finite.
        """
        results: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda number: (_places(prompts[number]), number), reverse=True)
        start = 0
        with jax.set_mesh(self._mesh):
            while start < len(order):
                size = self._num_rows(*_places(prompts[order[start]]), most=len(prompts))
                members = order[start : start + size]
                found = self._batch([prompts[number] for number in members], size)
                for number, tokens in zip(members, found, strict=True):
                    results[number] = tokens
                start += len(members)
                if on_done is not None:
                    on_done(len(members))
        return results

    def _num_rows(self, num_new: int, num_tokens: int, most: int) -> int:
        """Rows of a batch: a power of two on every device, no more than it takes for `most` prompts in all."""
        groups = num_batch_shards(self._mesh)
        rows = min(self._batch_tokens // (num_tokens + num_new) // groups, _MAX_ROWS)
        return min(1 << max(rows, 1).bit_length() - 1, 1 << (-(-most // groups) - 1).bit_length()) * groups

    def _batch(self, prompts: Sequence[Prompt], num_rows: int) -> list[list[int]]:
        num_new, num_tokens = _places(prompts[0])
        rows = np.zeros((num_rows, num_tokens), np.int32)
        lengths = np.ones(num_rows, np.int32)
        for number, prompt in enumerate(prompts):
            rows[number, : len(prompt.tokens)] = prompt.tokens
            lengths[number] = len(prompt.tokens)
        placed_lengths = self._place(lengths)
        last, (keys, values) = self._prefill(self._params, self._place(rows), placed_lengths, num_new)
        made: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        new = distributed.to_host(last)[:, None]
        first = 0
        while True:
            for number, prompt in enumerate(prompts):
                if not ended[number]:
                    made[number] += new[number].tolist()
                    ended[number] = self._cut(made[number], prompt)
            if all(ended):
                return made
            done = np.array(ended + [True] * (num_rows - len(prompts)))
            # A finished row may have been left behind by its batch: any token will do for it.
            arrays = (self._place(np.maximum(new[:, -1], 0)), placed_lengths, self._place(done), keys, values)
            out, (keys, values) = self._decode(self._params, *arrays, np.int32(first), num_prompt_tokens=num_tokens)
            new = distributed.to_host(out)
            first += _STEPS_AT_A_TIME

    def _cut(self, made: list[int], prompt: Prompt) -> bool:
        """Whether a row has ended; what lies behind its end is taken away."""
        stop = len(made)
        if self._eos_id in made:
            stop = made.index(self._eos_id) + 1
        limit = min(stop, prompt.max_new)
        ended = stop < len(made) or limit < len(made) or made[limit - 1] == self._eos_id or limit == prompt.max_new
        del made[limit:]
        if decoding.NOT_FINITE in made:
            raise UserError(
                "the model's logits are not finite: its weights, or what they compute, hold NaN or infinity"
            )
        end = prompt.find_end(made)
        if end is not None:
            del made[end:]
        return ended or end is not None

    def _place(self, array: NDArray) -> Array:
        return jax.device_put(array, batch_sharding(self._mesh, array.ndim))


def _places(prompt: Prompt) -> tuple[int, int]:
    """Places for new tokens and for the prompt, in few sizes."""
    num_new = -(-prompt.max_new // _STEPS_AT_A_TIME) * _STEPS_AT_A_TIME
    size = _LEAST_PROMPT_TOKENS
    while size < len(prompt.tokens):
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return num_new, size
