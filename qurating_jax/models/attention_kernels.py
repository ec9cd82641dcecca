"""The attention switch: cuDNN's flash attention on NVIDIA GPUs, splash attention on TPUs, where they can do the call.

Both are plain causal attention with the arithmetic of `attention.attention`; neither holds a matrix of weights. A mesh
that is set (`jax.set_mesh`) splits them as `parallel.rules` says, by `jax.shard_map`, since XLA cannot split a kernel.
Letters as in `attention`.
"""

import functools
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from qurating_jax.models.config import AttentionChoice
from qurating_jax.parallel.rules import RULES
from qurating_jax.runtime.errors import UsageError

log = logging.getLogger(__name__)

Implementation = Literal["xla", "cudnn", "splash"]

_QUERY_AXES = ("batch", "length", "heads", "head_dim")
_KEY_AXES = ("batch", "length", "kv_heads", "head_dim")

# Splash works on tiles of this many tokens, the widest that divide the row; 128 is the width of a TPU's registers.
# 512 is what MaxText found fastest.
_SPLASH_BLOCKS = (512, 384, 256, 128)
_SPLASH_LANES = 128
_INTERPRET = False  # tests run the TPU's kernel on a CPU


@dataclass(frozen=True)
class Accelerator:
    """What a computation is traced for.

    Attributes:
        platform: JAX's name of it: cpu, gpu or tpu.
        capability: compute capability of an NVIDIA GPU, (9, 0) for Hopper; None on everything else.
    """

    platform: str
    capability: tuple[int, int] | None = None


def accelerator() -> Accelerator:
    """The devices of the mesh that is set, or else JAX's default ones."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    default = jax.config.jax_default_device  # type: ignore[attr-defined] # None, a platform's name or a device
    platform = device.platform if device is not None else getattr(default, "platform", default)
    platform = platform or jax.default_backend()
    if platform != "gpu":
        return Accelerator(platform)
    version = re.fullmatch(r"(\d+)\.(\d+)", str(jax.local_devices(backend="gpu")[0].compute_capability))
    return Accelerator(platform, (int(version[1]), int(version[2])) if version else None)  # AMD's say gfx90a


def choose(asked: AttentionChoice, query_BTNH: Array, key_BTKH: Array, *, has_segments: bool) -> Implementation:
    """The implementation of one call, decided while it is traced; each decision is logged once.

    Args:
        asked: `compute.attention`; `auto` takes what the devices offer, and xla where that cannot do the call.
        query_BTNH: queries (shapes and dtype are looked at).
        key_BTKH: keys.
        has_segments: whether tokens see only those of the same segment id.

    Raises:
        UsageError: the implementation asked for cannot do the call.
    """
    if asked == "xla":
        return "xla"
    device = accelerator()
    offered: dict[str, Implementation] = {"gpu": "cudnn", "tpu": "splash"}
    name = offered.get(device.platform) if asked == "auto" else asked
    if name is None:
        _announce("xla", f"what the devices ({device.platform}) offer")
        return "xla"
    obstacle = _obstacle(name, device, query_BTNH, key_BTKH, has_segments)
    if obstacle is None:
        _announce(name, f"on {device.platform}, " + ("what the devices offer" if asked == "auto" else "as asked"))
        return name
    if asked == "auto":
        _announce("xla", f"{name} cannot do this call: {obstacle}")
        return "xla"
    raise UsageError(f"compute.attention: {name} cannot do this call: {obstacle}; use auto or xla")


@functools.cache
def _announce(name: Implementation, why: str) -> None:
    log.info("attention: %s (%s)", name, why)


def _obstacle(name: Implementation, device: Accelerator, query: Array, key: Array, has_segments: bool) -> str | None:
    """Why `name` cannot do a call, or None."""
    own = _cudnn_obstacle(device, query, key, has_segments) if name == "cudnn" else _splash_obstacle(device)
    if own is not None or not _is_split():
        return own
    mesh = jax.sharding.get_abstract_mesh()
    specs = (*RULES.spec(_QUERY_AXES), *RULES.spec(_KEY_AXES))
    for axis, size, entry in zip(_QUERY_AXES + _KEY_AXES, query.shape + key.shape, specs, strict=True):
        names = () if entry is None else (entry,) if isinstance(entry, str) else entry
        parts = math.prod(mesh.shape[part] for part in names)
        if size % parts:
            return f"`{axis}` has size {size}, which the mesh splits into {parts}"
    return None


def _cudnn_obstacle(device: Accelerator, query: Array, key: Array, has_segments: bool) -> str | None:
    if device.capability is None or device.capability < (8, 0):
        return f"it needs an NVIDIA GPU of compute capability 8.0, the devices are {_described(device)}"
    if query.dtype != jnp.bfloat16:
        return f"it needs compute.dtype bfloat16, not {query.dtype}"
    # The backward pass takes heads of more than 128 on Hopper alone (cuDNN's documentation, support matrix of SDPA).
    head_dim, limit = query.shape[-1], 256 if device.capability[0] == 9 else 128
    if head_dim % 8 or head_dim > limit:
        return f"it needs a head_dim that is a multiple of 8 up to {limit}, not {head_dim}"
    if has_segments:
        return "rows of several segments need a mask, which it would hold as a dense bias"
    try:  # JAX knows of more obstacles, such as the version of cuDNN; it says them while it traces
        jax.eval_shape(_cudnn_call(None), query, key, key)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return None


def _splash_obstacle(device: Accelerator) -> str | None:
    if device.platform != "tpu" and not _INTERPRET:
        return f"it needs a TPU, the devices are {_described(device)}"
    return None


def _described(device: Accelerator) -> str:
    return device.platform + (" {}.{}".format(*device.capability) if device.capability else "")


def cudnn_attention(query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, *, sliding_window: int | None) -> Array:
    """Attention by cuDNN's flash kernels; arguments and result as in `attention.attention`, without segments.

    The gradient's sums are taken in no fixed order unless XLA is told so (`--xla_gpu_deterministic_ops`).
    """
    return _split(_cudnn_call(_narrowed(sliding_window, query_BTNH.shape[1])), query_BTNH, key_BTKH, value_BTKH, None)


def _cudnn_call(window: int | None) -> Callable[..., Array]:
    def call(query: Array, key: Array, value: Array, segment_ids_BT: Array | None = None) -> Array:
        del segment_ids_BT
        # Never a mask: it would become a bias of [B, N, T, S].
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            local_window_size=None if window is None else (window - 1, 0),
            implementation="cudnn",
        )

    return call


def splash_attention(
    query_BTNH: Array,
    key_BTKH: Array,
    value_BTKH: Array,
    *,
    segment_ids_BT: Array | None,
    sliding_window: int | None,
) -> Array:
    """Attention by the TPU's splash kernels; arguments and result as in `attention.attention`."""
    call = functools.partial(_splash_call, window=_narrowed(sliding_window, query_BTNH.shape[1]))
    return _split(call, query_BTNH, key_BTKH, value_BTKH, segment_ids_BT)


def _splash_call(
    query: Array, key: Array, value: Array, segment_ids_BT: Array | None = None, *, window: int | None
) -> Array:
    T, N, H = query.shape[1:]
    # Whole tiles; a causal row never looks at the padding behind its end.
    padding = -T % _SPLASH_LANES
    total = T + padding
    # The kernel does not scale. Rounded once, after the product.
    query = (query.astype(jnp.float32) * H**-0.5).astype(query.dtype)
    query, key, value = (_heads_first(array, padding) for array in (query, key, value))
    block = next(size for size in _SPLASH_BLOCKS if total % size == 0)
    one_head = (
        splash.CausalMask((total, total))
        if window is None
        else splash.LocalMask((total, total), window_size=(window - 1, 0), offset=0)
    )
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([one_head] * N),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=_INTERPRET,
    )
    if segment_ids_BT is None:
        mixed = jax.vmap(kernel)(query, key, value)
    else:
        ids = jnp.pad(segment_ids_BT, ((0, 0), (0, padding)), mode="edge")
        mixed = jax.vmap(lambda q, k, v, s: kernel(q, k, v, splash.SegmentIds(s, s)))(query, key, value, ids)
    return mixed[:, :, :T].transpose(0, 2, 1, 3)


def _heads_first(x_BTNH: Array, padding: int) -> Array:
    return jnp.pad(x_BTNH.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, padding), (0, 0)))


def _narrowed(window: int | None, num_tokens: int) -> int | None:
    """None for a window that holds the whole row: the kernels are faster without one."""
    return None if window is None or window >= num_tokens else window


def _is_split() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and not mesh.manual_axes  # within a `shard_map` the arrays are a device's own already


def _split(call: Callable[..., Array], query: Array, key: Array, value: Array, segment_ids_BT: Array | None) -> Array:
    """`call` on every device's rows and heads."""
    if not _is_split():
        return call(query, key, value, segment_ids_BT)
    rows = RULES.spec(_QUERY_AXES[:2])
    specs = (RULES.spec(_QUERY_AXES), RULES.spec(_KEY_AXES), RULES.spec(_KEY_AXES))
    segments_spec: PartitionSpec | None = None if segment_ids_BT is None else rows
    # The kernels do not say over which axes their results vary.
    split = jax.shard_map(call, in_specs=(*specs, segments_spec), out_specs=specs[0], check_vma=False)
    return split(query, key, value, segment_ids_BT)
