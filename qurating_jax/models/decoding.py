"""Greedy decoding with a cache of keys and values, in static shapes.

Prompts are rows padded on the right; new tokens go into the places behind the longest prompt, the same place in every
row, so that a step writes one slice. Letters as in `llama`; S places of the cache.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from qurating_jax.models import heads, llama
from qurating_jax.models.attention import Attend, RowAttention
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.llama import Params
from qurating_jax.parallel.rules import constrain

_CACHE_AXES = ("layers", "batch", "length", "kv_heads", "head_dim")
_MASKED = float(jnp.finfo(jnp.float32).min)

NOT_FINITE = -2  # in place of a token whose logits are no finite numbers

Cache = tuple[Array, Array]  # keys and values, [L, B, S, K, H] each


def prefill(
    params: Params, config: DecoderConfig, tokens_BT: Array, lengths_B: Array, num_new: int, *, compute: ComputeConfig
) -> tuple[Array, Cache]:
    """Reads prompts.

    Args:
        params: parameters of a decoder with an LM head.
        config: the architecture.
        tokens_BT: int32 token ids, padded on the right.
        lengths_B: int32 tokens of each prompt, 1 at least.
        num_new: places for new tokens in the cache.
        compute: dtype and attention settings.

    Returns:
        int32 [B], the likeliest token behind each prompt (or `NOT_FINITE`), and the cache with T + `num_new` places.
    """
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    x_BTD, (keys, values) = _run(
        params, config, tokens_BT, positions_BT, None, lambda _: RowAttention(implementation=compute.attention), compute
    )
    x_B1D = llama.take_tokens(x_BTD, lengths_B[:, None] - 1)
    padding = ((0, 0), (0, 0), (0, num_new), (0, 0), (0, 0))
    cache = (_split(jnp.pad(keys, padding)), _split(jnp.pad(values, padding)))
    return _likeliest(params, config, x_B1D), cache


def decode(
    params: Params,
    config: DecoderConfig,
    tokens_B: Array,
    lengths_B: Array,
    done_B: Array,
    cache: Cache,
    first: Array,
    *,
    num_prompt_tokens: int,
    num_steps: int,
    eos_id: int | None,
    compute: ComputeConfig,
) -> tuple[Array, Cache]:
    """Some further tokens; it stops when all rows are done.

    Args:
        params: parameters of a decoder with an LM head.
        config: the architecture.
        tokens_B: int32, the last token of every row, which is not in the cache yet.
        lengths_B: int32 tokens of each prompt.
        done_B: bool, rows whose tokens nobody needs.
        cache: as `prefill` made it, with what has been decoded so far.
        first: int32, how many tokens behind the prompts are in the cache.
        num_prompt_tokens: T of the prompts.
        num_steps: tokens to decode at most; the cache has places for them.
        eos_id: a row is done behind it; None: there is no such token.
        compute: dtype settings.

    Returns:
        int32 [B, `num_steps`] (-1 where all rows were done, `NOT_FINITE` as of `prefill`), and the cache.
    """
    places_S = jnp.arange(cache[0].shape[2], dtype=jnp.int32)
    State = tuple[Array, Array, Array, Array, Cache]

    def go_on(state: State) -> Array:
        return (state[0] < num_steps) & ~jnp.all(state[2])

    def step(state: State) -> State:
        number, tokens_B, done_B, out_BN, (keys, values) = state
        place = num_prompt_tokens + first + number
        positions_B1 = (lengths_B + first + number)[:, None]
        known_BS = (places_S < lengths_B[:, None]) | ((places_S >= num_prompt_tokens) & (places_S < place))
        own_BS = jnp.where(places_S < num_prompt_tokens, places_S, places_S - num_prompt_tokens + lengths_B[:, None])
        attend = functools.partial(CachedAttention, known_BS=known_BS, distance_BS=positions_B1 - own_BS)
        x_B1D, (new_keys, new_values) = _run(
            params, config, tokens_B[:, None], positions_B1, (keys, values), attend, compute
        )
        cache = (_written(keys, new_keys, place), _written(values, new_values, place))
        tokens_B = _likeliest(params, config, x_B1D)
        out_BN = jax.lax.dynamic_update_slice_in_dim(out_BN, tokens_B[:, None], number, axis=1)
        if eos_id is not None:
            done_B = done_B | (tokens_B == eos_id)
        return number + 1, tokens_B, done_B, out_BN, cache

    out_BN = jnp.full((tokens_B.shape[0], num_steps), -1, jnp.int32)
    state = jax.lax.while_loop(go_on, step, (jnp.zeros((), jnp.int32), tokens_B, done_B, out_BN, cache))
    return state[3], state[4]


@dataclass(frozen=True)
class CachedAttention:
    """One new token per row, over the cache of a layer and itself.

    Attributes:
        cache: keys and values [B, S, K, H].
        known_BS: bool, where the cache holds a token of the row.
        distance_BS: int32, from the new token back to each of them.
    """

    cache: Cache
    known_BS: Array
    distance_BS: Array

    def __call__(self, query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        """See `attention.Attend`; T is 1."""
        B, _, N, H = query_BTNH.shape
        K, scale = key_BTKH.shape[2], H**-0.5
        query_BKGH = query_BTNH.reshape(B, K, N // K, H)
        keys, values = self.cache
        mask_BS = self.known_BS
        if sliding_window is not None:
            mask_BS = mask_BS & (self.distance_BS < sliding_window)
        # Scores against the cache and against the token itself are joined, not the keys: those would be copied.
        cached = jnp.einsum("BKGH,BSKH->BKGS", query_BKGH, keys, preferred_element_type=jnp.float32) * scale
        cached = jnp.where(mask_BS[:, None, None], cached, _MASKED)
        own = jnp.einsum("BKGH,BKH->BKG", query_BKGH, key_BTKH[:, 0], preferred_element_type=jnp.float32) * scale
        weights = jax.nn.softmax(jnp.concatenate([cached, own[..., None]], axis=-1), axis=-1).astype(values.dtype)
        mixed = jnp.einsum("BKGS,BSKH->BKGH", weights[..., :-1], values, preferred_element_type=jnp.float32)
        mixed = mixed + (weights[..., -1:] * value_BTKH[:, 0, :, None]).astype(jnp.float32)
        return mixed.astype(values.dtype).reshape(B, 1, N, H)

    @property
    def ends_BR(self) -> Array:
        """See `attention.Attend`: the new token."""
        return jnp.zeros((self.known_BS.shape[0], 1), jnp.int32)

    def from_ends(self, query_BRNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        """See `attention.Attend`."""
        return self(query_BRNH, key_BTKH, value_BTKH, sliding_window=sliding_window)


class _Recorded:
    """Attention that keeps the keys and values it was given, while a layer is traced."""

    def __init__(self, attend: Attend) -> None:
        self._attend = attend
        self.seen: Cache | None = None

    @property
    def ends_BR(self) -> Array:
        return self._attend.ends_BR

    def __call__(self, query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        self.seen = (key_BTKH, value_BTKH)
        return self._attend(query_BTNH, key_BTKH, value_BTKH, sliding_window=sliding_window)

    def from_ends(self, query_BRNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
        self.seen = (key_BTKH, value_BTKH)
        return self._attend.from_ends(query_BRNH, key_BTKH, value_BTKH, sliding_window=sliding_window)


def _run(
    params: Params,
    config: DecoderConfig,
    tokens_BT: Array,
    positions_BT: Array,
    cache: Cache | None,
    attend: Callable[[Any], Attend],
    compute: ComputeConfig,
) -> tuple[Array, Cache]:
    """The normed residual stream, and the keys and values of all layers; `attend` is made from a layer's cache."""
    rotation = llama.rotary_angles(config, positions_BT)
    block = nnx.split(nnx.eval_shape(lambda: llama.Block(config, rngs=nnx.Rngs(0))))[0]

    def layer(x_BTD: Array, of_layer: tuple[Params, Cache | None]) -> tuple[Array, Cache]:
        recorded = _Recorded(attend(of_layer[1]))
        x_BTD = nnx.merge(block, of_layer[0])(x_BTD, rotation, recorded, {})
        assert recorded.seen is not None
        return x_BTD, recorded.seen

    table = params["embed"]["table"].astype(jnp.dtype(compute.dtype))
    x_BTD = constrain(table[tokens_BT], ("batch", "length", "act_embed"))
    x_BTD, seen = jax.lax.scan(layer, x_BTD, (params["blocks"], cache))
    return llama.final_norm(params, config, x_BTD), seen


def _likeliest(params: Params, config: DecoderConfig, x_B1D: Array) -> Array:
    kernel_DV = heads.lm_kernel(params, config).astype(x_B1D.dtype)
    logits_BV = jnp.einsum("BD,DV->BV", x_B1D[:, 0], kernel_DV, preferred_element_type=jnp.float32)
    logits_BV = constrain(logits_BV, ("batch", "vocab"))
    is_number_B = jnp.isfinite(jnp.max(logits_BV, axis=-1))
    return jnp.where(is_number_B, jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), NOT_FINITE)


def _written(array_LBSKH: Array, new_LB1KH: Array, place: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array_LBSKH, new_LB1KH, place, axis=2)


def _split(array_LBSKH: Array) -> Array:
    return constrain(array_LBSKH, _CACHE_AXES)
