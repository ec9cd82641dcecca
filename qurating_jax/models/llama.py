"""The Llama decoder. NNX declares the modules; parameters leave NNX once, as a pure dict, and JAX runs the rest.

Letters: B batch, T tokens, D embed, F mlp, N heads, K kv heads, H head dim, V vocabulary, L layers. Activations carry
them in their names (`x_BTD`). Blocks are stacked: every leaf under `blocks` has a leading L dimension.

A first-time reader may start at `Block.__call__` and `hidden_states`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from qurating_jax.models.attention import Attend, RowAttention
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.parallel.rules import constrain

Params = dict[str, Any]

_INIT = nnx.initializers.normal(0.02)

_REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
}


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation in float32 over the last dimension."""

    def __init__(self, dim: int, eps: float) -> None:
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        """Normalises `x` [..., dim]; same dtype out."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.scale[...].astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions; optional q/k/v bias (Qwen2) and q/k norm (Qwen3)."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        self.query = nnx.Param(_INIT(rngs.params(), (D, N, H), jnp.float32))
        self.key = nnx.Param(_INIT(rngs.params(), (D, K, H), jnp.float32))
        self.value = nnx.Param(_INIT(rngs.params(), (D, K, H), jnp.float32))
        self.out = nnx.Param(_INIT(rngs.params(), (N, H, D), jnp.float32))
        if config.qkv_bias:
            self.query_bias = nnx.Param(jnp.zeros((N, H), jnp.float32))
            self.key_bias = nnx.Param(jnp.zeros((K, H), jnp.float32))
            self.value_bias = nnx.Param(jnp.zeros((K, H), jnp.float32))
        if config.qk_norm:
            self.query_norm = RMSNorm(H, config.norm_eps)
            self.key_norm = RMSNorm(H, config.norm_eps)
        self.config = config

    def __call__(
        self, x_BTD: Array, rotation: tuple[Array, Array], attend: Attend, adapters: Params, *, only_ends: bool
    ) -> Array:
        """Mixes tokens as `attend` lays them out; `rotation` as from `rotary_angles`; `only_ends` as in `Block`."""
        read, read_rotation = x_BTD, rotation
        if only_ends:
            read = take_tokens(x_BTD, attend.ends_BR)
            read_rotation = (take_tokens(rotation[0], attend.ends_BR), take_tokens(rotation[1], attend.ends_BR))
        query = project(read, self.query, adapters.get("query"))
        key = project(x_BTD, self.key, adapters.get("key"))
        value = project(x_BTD, self.value, adapters.get("value"))
        if self.config.qkv_bias:
            query = query + self.query_bias[...].astype(query.dtype)
            key = key + self.key_bias[...].astype(key.dtype)
            value = value + self.value_bias[...].astype(value.dtype)
        if self.config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        mix = attend.from_ends if only_ends else attend
        mixed_BTNH = mix(
            rotate(query, read_rotation), rotate(key, rotation), value, sliding_window=self.config.sliding_window
        )
        return project(mixed_BTNH, self.out, adapters.get("out"), num_dims=2)


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        D, F = config.embed_dim, config.mlp_dim
        self.gate = nnx.Param(_INIT(rngs.params(), (D, F), jnp.float32))
        self.up = nnx.Param(_INIT(rngs.params(), (D, F), jnp.float32))
        self.down = nnx.Param(_INIT(rngs.params(), (F, D), jnp.float32))

    def __call__(self, x_BTD: Array, adapters: Params) -> Array:
        """Transforms every token by itself."""
        gate_BTF = jax.nn.silu(project(x_BTD, self.gate, adapters.get("gate")))
        hidden_BTF = gate_BTF * project(x_BTD, self.up, adapters.get("up"))
        return project(constrain(hidden_BTF, ("batch", "length", "mlp")), self.down, adapters.get("down"))


class Block(nnx.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self,
        x_BTD: Array,
        rotation: tuple[Array, Array],
        attend: Attend,
        adapters: Params,
        *,
        only_ends: bool = False,
    ) -> Array:
        """The residual stream after this layer; with `only_ends` that of the texts' last tokens alone, [B, R, D].

        What nobody reads is not computed: of the other tokens only keys and values are needed.
        """
        with jax.named_scope("attention"):
            mixed = self.attention(
                self.attention_norm(x_BTD), rotation, attend, adapters.get("attention", {}), only_ends=only_ends
            )
            x_BTD = (take_tokens(x_BTD, attend.ends_BR) if only_ends else x_BTD) + mixed
        with jax.named_scope("mlp"):
            x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD), adapters.get("mlp", {}))
        return constrain(x_BTD, ("batch", "length", "act_embed"))


class Embedder(nnx.Module):
    """Token embedding; with tied embeddings also the LM head's matrix."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        self.table = nnx.Param(_INIT(rngs.params(), (config.vocab_size, config.embed_dim), jnp.float32))


class Head(nnx.Module):
    """The last matrix: vocabulary logits of an LM, or one score per criterion of a rater."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        outputs = config.num_criteria or config.vocab_size
        self.kernel = nnx.Param(_INIT(rngs.params(), (config.embed_dim, outputs), jnp.float32))


def init(config: DecoderConfig, key: Array) -> Params:
    """Random parameters, float32, as a pure dict; jit it with `out_shardings` so that nothing lies unsharded."""
    key_embed, key_blocks, key_head = jax.random.split(key, 3)
    block_keys = jax.random.split(key_blocks, config.num_layers)
    params: Params = {
        "embed": _pure(Embedder(config, rngs=nnx.Rngs(key_embed))),
        "blocks": jax.vmap(lambda block_key: _pure(Block(config, rngs=nnx.Rngs(block_key))))(block_keys),
        "norm": _pure(RMSNorm(config.embed_dim, config.norm_eps)),
    }
    if config.num_criteria or not config.tie_embeddings:
        params["head"] = _pure(Head(config, rngs=nnx.Rngs(key_head)))
    return params


def abstract(config: DecoderConfig) -> Params:
    """Shapes and dtypes of `init`'s result, without computing it."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def hidden_states(
    params: Params,
    config: DecoderConfig,
    tokens_BT: Array,
    *,
    positions_BT: Array | None = None,
    attend: Attend | None = None,
    only_ends: bool = False,
    compute: ComputeConfig,
) -> Array:
    """The residual stream after the last block, before the final norm.

    Args:
        params: as made by `init`; under `adapters` low-rank additions to the blocks' matrices (`training.lora`).
        config: the architecture.
        tokens_BT: int32 token ids.
        positions_BT: int32 rotary positions; None: 0..T-1 in every row.
        attend: which tokens see each other; None: every token all earlier ones of its row.
        only_ends: only the texts' last tokens are wanted (`attend.ends_BR`); the last block then computes no more.
        compute: dtype, remat and scan settings.

    Returns:
        [B, T, D] in the compute dtype, [B, R, D] with `only_ends`.
    """
    dtype = jnp.dtype(compute.dtype)
    if positions_BT is None:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    attend = attend or RowAttention(implementation=compute.attention)
    rotation = rotary_angles(config, positions_BT)
    block = nnx.split(nnx.eval_shape(lambda: Block(config, rngs=nnx.Rngs(0))))[0]
    stacked = (params["blocks"], params.get("adapters", {}).get("blocks", {}))

    def layer(x_BTD: Array, weights: tuple[Params, Params], *, ends: bool = False) -> Array:
        return nnx.merge(block, weights[0])(x_BTD, rotation, attend, weights[1], only_ends=ends)

    def run(x_BTD: Array, weights: tuple[Params, Params], *, ends: bool = False) -> Array:
        function: Callable[..., Array] = functools.partial(layer, ends=ends)
        if compute.remat != "none":
            function = jax.checkpoint(
                function, policy=_REMAT_POLICIES[compute.remat], prevent_cse=not compute.scan_layers
            )
        return function(x_BTD, weights)

    # The table is cast before the lookup so that sharded rows travel in the compute dtype.
    x_BTD = constrain(params["embed"]["table"].astype(dtype)[tokens_BT], ("batch", "length", "act_embed"))
    if not compute.scan_layers:
        layers = _unstack(stacked, config.num_layers)
        for index, weights in enumerate(layers):
            x_BTD = run(x_BTD, weights, ends=only_ends and index == config.num_layers - 1)
        return x_BTD
    scanned = jax.tree.map(lambda leaf: leaf[:-1], stacked) if only_ends else stacked
    x_BTD = jax.lax.scan(lambda x, weights: (run(x, weights), None), x_BTD, scanned)[0]
    return run(x_BTD, jax.tree.map(lambda leaf: leaf[-1], stacked), ends=True) if only_ends else x_BTD


def project(x: Array, kernel: Any, adapter: Params | None = None, *, num_dims: int = 1) -> Array:
    """The last `num_dims` dimensions of `x` through a matrix, plus a low-rank addition x a b where there is one."""
    leading, matrix = x.shape[:-num_dims], kernel[...].astype(x.dtype)
    # All tokens as the rows of one matrix: the CPU takes a quarter less time for the gradient of the product.
    rows = x.reshape(-1, *x.shape[-num_dims:])
    out = jnp.tensordot(rows, matrix, num_dims)
    if adapter is not None:
        narrow = jnp.tensordot(rows, adapter["a"].astype(x.dtype), num_dims)
        out = out + jnp.tensordot(narrow, adapter["b"].astype(x.dtype), 1)
    return out.reshape(*leading, *matrix.shape[num_dims:])


def take_tokens(x_BT: Array, index_BR: Array) -> Array:
    """The entries of `x` [B, T, ...] at some tokens of each row: [B, R, ...]."""
    return jnp.take_along_axis(x_BT, index_BR.reshape(*index_BR.shape, *[1] * (x_BT.ndim - 2)), axis=1)


def _unstack(tree: Any, num_layers: int) -> list[Any]:
    """One tree per layer; `split`'s gradient is one concatenation, that of indexing a padded copy per layer."""
    leaves, structure = jax.tree.flatten(tree)
    parts = [jax.lax.split(leaf, [1] * num_layers) for leaf in leaves]
    return [jax.tree.unflatten(structure, [part[index][0] for part in parts]) for index in range(num_layers)]


def final_norm(params: Params, config: DecoderConfig, x: Array) -> Array:
    """The decoder's last RMSNorm over the last dimension of `x`."""
    graph = nnx.split(nnx.eval_shape(lambda: RMSNorm(config.embed_dim, config.norm_eps)))[0]
    return nnx.merge(graph, params["norm"])(x)


def rotary_angles(config: DecoderConfig, positions_BT: Array) -> tuple[Array, Array]:
    """Cosine and sine of position times frequency: two float32 arrays [B, T, H/2] (RoFormer, eq. 34)."""
    angles = positions_BT.astype(jnp.float32)[..., None] * jnp.asarray(rotary_frequencies(config))
    return jnp.cos(angles), jnp.sin(angles)


def rotary_frequencies(config: DecoderConfig) -> np.ndarray:
    """The H/2 rotary frequencies, float32, after context scaling (`linear`, or Llama 3.1's `llama3`)."""
    H = config.head_dim
    frequencies = 1.0 / (config.rope_theta ** (np.arange(0, H, 2, dtype=np.float32) / np.float32(H)))
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies.astype(np.float32)
    if scaling.kind == "linear":
        return (frequencies / scaling.factor).astype(np.float32)
    # llama3: wavelengths beyond the original context are stretched by `factor`, short ones kept, the rest blended.
    wavelengths = 2 * np.pi / frequencies
    smooth = (scaling.original_max_positions / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    smooth = np.clip(smooth, 0.0, 1.0)
    return ((1 - smooth) * frequencies / scaling.factor + smooth * frequencies).astype(np.float32)


def rotate(x_BTNH: Array, rotation: tuple[Array, Array]) -> Array:
    """Applies the rotary embedding to the two halves of the head dimension (the Hugging Face convention)."""
    cos, sin = (angle[:, :, None, :].astype(x_BTNH.dtype) for angle in rotation)
    first, second = jnp.split(x_BTNH, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _pure(module: nnx.Module) -> Params:
    return nnx.to_pure_dict(nnx.split(module)[1])
