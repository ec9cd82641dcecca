"""Log-likelihoods of continuations on the devices: trees of tokens in batches of few shapes, results by index."""

import dataclasses
import functools
import logging
from collections import deque
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from numpy.typing import NDArray

from qurating_jax.models import heads, llama
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.flops import forward_flops
from qurating_jax.models.llama import Params
from qurating_jax.models.tree_attention import TreeAttention
from qurating_jax.parallel import distributed
from qurating_jax.parallel.rules import batch_sharding, constrain, num_batch_shards
from qurating_jax.scoring.tasks.tree_rows import Costs, Plan, TreeBatch, lay_out, plan
from qurating_jax.scoring.tasks.trees import grow

_BATCHES_IN_FLIGHT = 2
# Tokens of a batch per group of devices; see `scoring.scorer`.
_BATCH_TOKENS = {"cpu": 2048, "gpu": 65_536, "tpu": 32_768}
# Reads of up to one token in so many leave the last layer's other tokens uncomputed; more, and its attention over reads
# alone would cost more than it saves.
_FEW_READS = 4
# Largest trees, in longest sequences: the more a tree holds the more share a root, and the more its attention costs.
_TREE_CONTEXTS = (1, 2)

log = logging.getLogger(__name__)


class ContinuationScorer:
    """Scores continuations of contexts.

    Args:
        params: of a language model, in their shards.
        config: its architecture.
        mesh: rows of a batch are split over it.
        compute: dtype, scan and attention settings.
        context_tokens: the longest sequence that the model is shown.
        batch_tokens: tokens of a batch on all devices, rounded up to a row per device group; None: what suits them.
    """

    def __init__(
        self,
        params: Params,
        config: DecoderConfig,
        mesh: Mesh,
        *,
        compute: ComputeConfig,
        context_tokens: int,
        batch_tokens: int | None,
    ) -> None:
        self._params, self._mesh, self._context_tokens = params, mesh, context_tokens
        groups = num_batch_shards(mesh)
        self._batch_tokens = batch_tokens or _BATCH_TOKENS.get(jax.default_backend(), 32_768) * groups
        blocks = functools.partial(forward_flops, dataclasses.replace(config, vocab_size=1))
        self._costs = Costs(blocks, 2.0 * config.embed_dim * config.vocab_size)
        self._score = jax.jit(functools.partial(_log_probs, config=config, compute=compute))

    def __call__(
        self,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        on_done: Callable[[int], None] | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Scores every continuation.

        Args:
            requests: (context, continuation) as token ids; see `trees.grow`.
            on_done: called with the number of predictions of every finished batch, tokens of all continuations in all.

        Returns:
            float64 [n], the summed log-likelihoods in nats, and bool [n], whether each token is the likeliest one.
        """
        totals, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
        if not requests:
            return totals, greedy
        in_flight: deque[tuple[TreeBatch, Array, Array]] = deque()

        def collect() -> None:
            batch, log_probs, is_best = in_flight.popleft()
            np.add.at(totals, batch.owners, distributed.to_host(log_probs).ravel()[batch.where].astype(np.float64))
            np.logical_and.at(greedy, batch.owners, distributed.to_host(is_best).ravel()[batch.where])
            if on_done is not None:
                on_done(len(batch.owners))

        with jax.set_mesh(self._mesh):
            for shape, rows in self.plan(requests).batches:
                batch = lay_out(rows, shape)
                in_flight.append((batch, *self._dispatch(batch)))
                if len(in_flight) > _BATCHES_IN_FLIGHT:
                    collect()
            while in_flight:
                collect()
        return totals, greedy

    def plan(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Plan:
        """The batches that requests are scored in: trees of up to one or two contexts, whichever costs less."""
        plans = [
            plan(
                grow(requests, max_tokens=self._context_tokens, row_tokens=size * self._context_tokens),
                costs=self._costs,
                num_rows=self._num_rows,
                num_shards=num_batch_shards(self._mesh),
            )
            for size in _TREE_CONTEXTS
        ]
        best = min(plans, key=lambda found: found.cost)
        shapes = dict.fromkeys(str(shape) for shape, _ in best.batches)
        log.debug("%d requests in %d batches: %s", len(requests), len(best.batches), ", ".join(shapes))
        return best

    def _num_rows(self, num_tokens: int) -> int:
        groups = num_batch_shards(self._mesh)
        return max(-(-(self._batch_tokens // num_tokens) // groups), 1) * groups

    def _dispatch(self, batch: TreeBatch) -> tuple[Array, Array]:
        arrays = (batch.tokens, batch.positions, batch.nodes, batch.ancestors, batch.places, batch.targets)
        placed = (
            None if array is None else jax.device_put(array, batch_sharding(self._mesh, array.ndim)) for array in arrays
        )
        return self._score(self._params, *placed)


def _log_probs(
    params: Params,
    tokens_BT: Array,
    positions_BT: Array,
    nodes_BT: Array | None,
    ancestors_BTA: Array | None,
    places_BE: Array,
    targets_BEK: Array,
    *,
    config: DecoderConfig,
    compute: ComputeConfig,
) -> tuple[Array, Array]:
    """What a language model says of K tokens at each of E places; arrays as of `TreeBatch`.

    Returns:
        float32 [B, E, K] log-probabilities of the targets, and bool [B, E, K], whether each is the likeliest token (of
        several the one of the smallest id).
    """
    attend = TreeAttention(nodes_BT, ancestors_BTA, positions_BT, places_BE, compute.attention)
    few = places_BE.shape[1] * _FEW_READS <= tokens_BT.shape[1]
    # By default accelerators round float32 to TF32 or bfloat16, and PyTorch does not.
    with jax.default_matmul_precision("highest" if compute.dtype == "float32" else None):
        x = llama.hidden_states(
            params, config, tokens_BT, positions_BT=positions_BT, attend=attend, only_ends=few, compute=compute
        )
        x_BED = llama.final_norm(params, config, x if few else llama.take_tokens(x, places_BE))
        kernel_DV = constrain(heads.lm_kernel(params, config).astype(x_BED.dtype), ("act_embed", "vocab"))
        return _at_targets(x_BED, kernel_DV, targets_BEK, compute.loss_chunk_tokens)


def _at_targets(x_BED: Array, kernel_DV: Array, targets_BEK: Array, chunk_tokens: int) -> tuple[Array, Array]:
    """Chunk by chunk of the places, so that never all logits exist (see `models.cross_entropy`)."""
    B, E, _ = x_BED.shape
    mesh = jax.sharding.get_abstract_mesh()
    rows = B // (1 if mesh.empty else num_batch_shards(mesh))
    num_chunks = -(-E // max(chunk_tokens // rows, 1))
    size = -(-E // num_chunks)

    def cut(array: Array) -> Array:
        padded = jnp.pad(array, ((0, 0), (0, num_chunks * size - E), (0, 0)))
        return jnp.moveaxis(padded.reshape(B, num_chunks, size, -1), 1, 0)

    def join(chunks: Array) -> Array:
        return jnp.moveaxis(chunks, 0, 1).reshape(B, num_chunks * size, -1)[:, :E]

    def of_chunk(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        x_BCD, targets_BCK = chunk
        logits_BCV = jnp.einsum("BCD,DV->BCV", x_BCD, kernel_DV, preferred_element_type=jnp.float32)
        logits_BCV = constrain(logits_BCV, ("batch", "length", "vocab"))
        largest_BC1 = jnp.max(logits_BCV, axis=-1, keepdims=True)
        normaliser_BC1 = largest_BC1 + jnp.log(jnp.sum(jnp.exp(logits_BCV - largest_BC1), axis=-1, keepdims=True))
        # Not `argmax`: a CPU reduces pairs of numbers one by one, and single ones many at a time.
        ids_V = jnp.arange(kernel_DV.shape[1], dtype=jnp.int32)
        best_BC = jnp.min(jnp.where(logits_BCV == largest_BC1, ids_V, kernel_DV.shape[1]), axis=-1)
        found_BCK = jnp.take_along_axis(logits_BCV, targets_BCK, axis=-1) - normaliser_BC1
        return found_BCK, targets_BCK == best_BC[..., None]

    found, is_best = jax.lax.map(of_chunk, (cut(x_BED), cut(targets_BEK)))
    return join(found), join(is_best)
