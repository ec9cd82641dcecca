"""Next-token cross-entropy without all logits: chunk by chunk of tokens, the head's gradient in the same pass.

Logits of all tokens would take V/D times the memory of the residual stream (16 times for Llama at D = 2048). Here they
exist for one chunk at a time, and what the gradient needs of them is used up at once: the forward pass multiplies a
chunk's softmax minus its targets into the gradients of the residual stream and of the head (the idea of Liger Kernel,
Hsu et al. 2024, section 3.2, and of Cut Cross-Entropy, Wijmans et al. 2024). Nothing is computed twice.

Letters: B rows, T tokens, D embed, V vocabulary; S shards of the batch, N chunks, C tokens of a chunk.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from qurating_jax.parallel.rules import constrain, num_batch_shards

Sums = tuple[Array, Array, Array]  # of losses, of z-losses, and of the head's gradient


def summed_losses(
    x_BTD: Array, kernel_DV: Array, targets_BT: Array, weights_BT: Array, *, z_loss: float = 0.0, chunk_tokens: int
) -> tuple[Array, Array]:
    """Weighted sum of cross-entropies, and of the z-losses in it.

    The loss of a token is -log softmax(x W)[target] + z_loss * log(sum(exp(x W)))^2; the second summand keeps the
    logits' normaliser near 0 (PaLM, Chowdhery et al. 2022, section 5: 1e-4).

    Args:
        x_BTD: the normed residual stream, in the compute dtype.
        kernel_DV: the head's matrix, multiplied in the dtype of `x_BTD`; its gradient is summed in float32.
        targets_BT: int32 token ids; any id will do where the weight is 0.
        weights_BT: float32, not differentiated.
        z_loss: weight of the z-loss.
        chunk_tokens: tokens of a device whose logits exist at a time.

    Returns:
        Two float32 scalars in nats: the sum of losses and the part of it that is z-loss. The first alone has a
        gradient.
    """
    total, z_total = _summed(x_BTD, kernel_DV, targets_BT, weights_BT, z_loss, chunk_tokens)
    return total, jax.lax.stop_gradient(z_total)


def token_losses(x_BTD: Array, kernel_DV: Array, targets_BT: Array, *, chunk_tokens: int) -> Array:
    """Cross-entropy of every token in nats, float32 [B, T]; arguments as of `summed_losses`."""
    chunks = _Chunks(x_BTD.shape[0], x_BTD.shape[1], chunk_tokens)
    kernel_DV = _whole_columns(kernel_DV, x_BTD.dtype)

    @jax.checkpoint  # a backward pass makes a chunk's logits again instead of keeping all of them
    def losses(x_SCD: Array, targets_SC: Array) -> Array:
        logits_SCV = _logits(x_SCD, kernel_DV)
        return jax.nn.logsumexp(logits_SCV, axis=-1) - _at_targets(logits_SCV, targets_SC)

    losses_NSC = jax.lax.map(lambda chunk: losses(*chunk), (chunks.cut(x_BTD), chunks.cut(targets_BT)))
    return chunks.join(losses_NSC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _summed(
    x_BTD: Array, kernel_DV: Array, targets_BT: Array, weights_BT: Array, z_loss: float, chunk_tokens: int
) -> tuple[Array, Array]:
    chunks = _Chunks(x_BTD.shape[0], x_BTD.shape[1], chunk_tokens)
    kernel = _whole_columns(kernel_DV, x_BTD.dtype)

    def add(sums_S: tuple[Array, Array], chunk: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        x_SCD, targets_SC, weights_SC = chunk
        logits_SCV = _logits(x_SCD, kernel)
        normalisers_SC = jax.nn.logsumexp(logits_SCV, axis=-1)
        return _add_losses(sums_S, logits_SCV, normalisers_SC, targets_SC, weights_SC, z_loss), None

    zeros_S = jnp.zeros((chunks.num_shards,), jnp.float32)
    cut = (chunks.cut(x_BTD), chunks.cut(targets_BT), chunks.cut(weights_BT))
    total_S, z_total_S = jax.lax.scan(add, (zeros_S, zeros_S), cut)[0]
    return jnp.sum(total_S), jnp.sum(z_total_S)


def _summed_forward(
    x_BTD: Array, kernel_DV: Array, targets_BT: Array, weights_BT: Array, z_loss: float, chunk_tokens: int
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The sums, and as residuals the gradients of the first one by `x_BTD` and `kernel_DV`."""
    chunks = _Chunks(x_BTD.shape[0], x_BTD.shape[1], chunk_tokens)
    dtype = x_BTD.dtype
    kernel = _whole_columns(kernel_DV, dtype)

    def add(sums: Sums, chunk: tuple[Array, Array, Array]) -> tuple[Sums, Array]:
        total_S, z_total_S, d_kernel_SDV = sums
        x_SCD, targets_SC, weights_SC = chunk
        logits_SCV = _logits(x_SCD, kernel)
        largest_SC1 = jnp.max(logits_SCV, axis=-1, keepdims=True)
        exponentials_SCV = jnp.exp(logits_SCV - largest_SC1)
        sums_SC1 = jnp.sum(exponentials_SCV, axis=-1, keepdims=True)
        normalisers_SC = (largest_SC1 + jnp.log(sums_SC1))[..., 0]
        sums_S = _add_losses((total_S, z_total_S), logits_SCV, normalisers_SC, targets_SC, weights_SC, z_loss)
        # d loss / d logit = weight * (softmax * (1 + 2 z normaliser) - 1 at the target)
        slopes_SC = weights_SC * (1.0 + 2.0 * z_loss * normalisers_SC)
        softmax_SCV = exponentials_SCV * (slopes_SC[..., None] / sums_SC1)
        is_target_SCV = targets_SC[..., None] == jnp.arange(kernel.shape[1], dtype=jnp.int32)
        d_logits_SCV = (softmax_SCV - jnp.where(is_target_SCV, weights_SC[..., None], 0.0)).astype(dtype)
        d_x_SCD = jnp.einsum("SCV,DV->SCD", d_logits_SCV, kernel, preferred_element_type=jnp.float32)
        d_kernel_SDV += jnp.einsum("SCD,SCV->SDV", x_SCD, d_logits_SCV, preferred_element_type=jnp.float32)
        return (*sums_S, constrain(d_kernel_SDV, ("batch", "act_embed", "vocab"))), d_x_SCD.astype(dtype)

    zeros_S = jnp.zeros((chunks.num_shards,), jnp.float32)
    # Every shard of the batch sums its own tokens; what they found is added once, behind the loop.
    zeros_SDV = jnp.zeros((chunks.num_shards, *kernel_DV.shape), jnp.float32)
    zeros_SDV = constrain(zeros_SDV, ("batch", "act_embed", "vocab"))
    cut = (chunks.cut(x_BTD), chunks.cut(targets_BT), chunks.cut(weights_BT))
    (total_S, z_total_S, d_kernel_SDV), d_x_NSCD = jax.lax.scan(add, (zeros_S, zeros_S, zeros_SDV), cut)
    d_kernel_DV = constrain(jnp.sum(d_kernel_SDV, axis=0), ("embed", "vocab")).astype(kernel_DV.dtype)
    return (jnp.sum(total_S), jnp.sum(z_total_S)), (chunks.join(d_x_NSCD), d_kernel_DV)


def _summed_backward(
    z_loss: float, chunk_tokens: int, gradients: tuple[Array, Array], slopes: tuple[Array, Array]
) -> tuple[Array, Array, None, None]:
    (d_x_BTD, d_kernel_DV), slope = gradients, slopes[0]
    return d_x_BTD * slope.astype(d_x_BTD.dtype), d_kernel_DV * slope.astype(d_kernel_DV.dtype), None, None


_summed.defvjp(_summed_forward, _summed_backward)


def _add_losses(
    sums_S: tuple[Array, Array],
    logits_SCV: Array,
    normalisers_SC: Array,
    targets_SC: Array,
    weights_SC: Array,
    z_loss: float,
) -> tuple[Array, Array]:
    z_losses_SC = z_loss * jnp.square(normalisers_SC)
    losses_SC = normalisers_SC - _at_targets(logits_SCV, targets_SC) + z_losses_SC
    return (
        sums_S[0] + jnp.sum(weights_SC * losses_SC, axis=-1),
        sums_S[1] + jnp.sum(weights_SC * z_losses_SC, axis=-1),
    )


def _logits(x_SCD: Array, kernel_DV: Array) -> Array:
    logits_SCV = jnp.einsum("SCD,DV->SCV", x_SCD, kernel_DV, preferred_element_type=jnp.float32)
    return constrain(logits_SCV, ("batch", "length", "vocab"))


def _at_targets(logits_SCV: Array, targets_SC: Array) -> Array:
    return jnp.take_along_axis(logits_SCV, targets_SC[..., None], axis=-1)[..., 0]


def _whole_columns(kernel_DV: Array, dtype: jnp.dtype) -> Array:
    """The kernel in the compute dtype, gathered once before the loop, split over the vocabulary alone."""
    return constrain(kernel_DV.astype(dtype), ("act_embed", "vocab"))


class _Chunks:
    """Cuts the tokens of every shard of the batch into chunks, so that no chunk needs another device's tokens."""

    def __init__(self, num_rows: int, num_tokens: int, chunk_tokens: int) -> None:
        """Args: the rows' B and T; C at most."""
        mesh = jax.sharding.get_abstract_mesh()
        shards = 1 if mesh.empty else num_batch_shards(mesh)
        self.num_shards = shards if num_rows % shards == 0 else 1
        self._shape = (num_rows, num_tokens)
        self._shard_tokens = num_rows // self.num_shards * num_tokens
        self._num_chunks = math.ceil(self._shard_tokens / chunk_tokens)
        self._chunk_tokens = math.ceil(self._shard_tokens / self._num_chunks)
        self._padding = self._num_chunks * self._chunk_tokens - self._shard_tokens

    def cut(self, x_BT: Array) -> Array:
        """[B, T, ...] as [N, S, C, ...], zeros behind the end."""
        rest = x_BT.shape[2:]
        shards = x_BT.reshape(self.num_shards, self._shard_tokens, *rest)
        shards = jnp.pad(shards, ((0, 0), (0, self._padding), *[(0, 0)] * len(rest)))
        return jnp.moveaxis(shards.reshape(self.num_shards, self._num_chunks, self._chunk_tokens, *rest), 1, 0)

    def join(self, x_NSC: Array) -> Array:
        """The inverse of `cut`."""
        rest = x_NSC.shape[3:]
        shards = jnp.moveaxis(x_NSC, 0, 1).reshape(self.num_shards, -1, *rest)[:, : self._shard_tokens]
        return shards.reshape(*self._shape, *rest)
