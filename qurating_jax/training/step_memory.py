"""What one device holds in a training step: the state exactly, the rest as an estimate. No device is touched.

JAX is asked to trace the loss of the model as one device sees it (its share of the rows, heads and MLP) and to say what
the backward pass would keep; nothing is computed. What the compiler adds is estimated on top (see `estimate`).
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from qurating_jax.models import attention_kernels, llama
from qurating_jax.models.config import AttentionChoice, ComputeConfig, DecoderConfig
from qurating_jax.models.llama import Params
from qurating_jax.parallel.mesh import AXES
from qurating_jax.parallel.rules import AnyMesh, batch_sharding, num_batch_shards
from qurating_jax.training import optim
from qurating_jax.training.losses import next_token_loss
from qurating_jax.training.options import OptimConfig
from qurating_jax.training.state import TrainState, abstract_params, abstract_state

T = TypeVar("T")
Remat = Literal["none", "dots", "full"]

# Beside the layers' activations, the backward pass of one layer holds so much of what a layer keeps: all of it made
# again and some gradients, or gradients alone. From compiled steps (docs/plan.md).
_RECOMPUTED, _SAVED = 1.1, 0.5


@dataclass(frozen=True)
class Batch:
    """The rows of one update: `rows` of `tokens` each, in `accumulation` micro-batches; `packed`: of several texts."""

    rows: int
    tokens: int
    accumulation: int
    packed: bool

    def abstract(self, mesh: AnyMesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and shardings of what `BatchBuilder` places on the devices, [A, M, ...]."""
        return {
            name: jax.ShapeDtypeStruct(
                (self.accumulation, *leaf.shape),
                leaf.dtype,
                sharding=batch_sharding(mesh, 1 + len(leaf.shape), leading=1),
            )
            for name, leaf in self.shapes(self.rows // self.accumulation).items()
        }

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Of one micro-batch of so many rows (the two forms of `heads.text_rows`)."""
        whole = jax.ShapeDtypeStruct((rows, self.tokens), jnp.int32)
        if self.packed:
            return {"tokens": whole, "segment_ids": whole, "positions": whole}
        return {"tokens": whole, "lengths": jax.ShapeDtypeStruct((rows,), jnp.int32)}


@dataclass(frozen=True)
class StateBytes:
    """The train state on one device, exact: float32 parameters and Adam's two moments in their shards."""

    parameters: int
    moments: int

    @property
    def total(self) -> int:
        """Both."""
        return self.parameters + self.moments


@dataclass(frozen=True)
class StepBytes:
    """What a step holds beside the state at its peak, per device.

    Attributes:
        gradients: float32 gradients in their shards; twice with accumulation (the sum, and a micro-batch's own).
        activations: what the forward pass keeps of all layers for the backward pass (less with `compute.remat`).
        head: the gradient of the LM head, made in the forward pass.
        layer: what the backward pass of one layer makes again and needs beside it.
        logits: of a chunk of tokens, their softmax and its gradient.
    """

    gradients: int
    activations: int
    head: int
    layer: int
    logits: int

    @property
    def total(self) -> int:
        """The head stands behind the last layer: its logits are gone when the layers' backward pass begins."""
        return self.gradients + self.activations + self.head + max(self.layer, self.logits)


def train_state(model: DecoderConfig, config: OptimConfig, num_steps: int, mesh: AnyMesh) -> TrainState:
    """Shapes, dtypes and shardings of the state that `fit` creates, on a mesh of real or abstract devices."""
    tx = optim.optimizer(config, num_steps)
    return _traced(lambda: abstract_state(abstract_params(model, mesh), tx, mesh))


def state_bytes(state: TrainState) -> StateBytes:
    """Bytes of one device's shards of an abstract state."""
    return StateBytes(parameters=tree_bytes(state.params), moments=tree_bytes(state.opt_state) + tree_bytes(state.step))


def tree_bytes(tree: Any) -> int:
    """Bytes of one device's shards of a tree of `jax.ShapeDtypeStruct` with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def estimate(
    model: DecoderConfig,
    compute: ComputeConfig,
    batch: Batch,
    state: TrainState,
    mesh: AnyMesh,
    *,
    platform: str,
    z_loss: float = 0.0,
) -> StepBytes:
    """What a step holds beside its state on one device; see docs/plan.md for how far off it was.

    Args:
        model: the architecture.
        compute: dtype, remat and attention. `auto` counts as the platform's flash kernels where they take such rows.
        batch: the rows of an update.
        state: abstract, as of `train_state`.
        mesh: the mesh, of real or abstract devices.
        platform: JAX's name of it: cpu, gpu or tpu.
        z_loss: weight of the z-loss.
    """
    share = _share(model, mesh.shape["tensor"])
    compute = dataclasses.replace(compute, attention=_attention(compute, batch, platform))
    rows, fsdp = batch.rows // batch.accumulation // num_batch_shards(mesh), mesh.shape["fsdp"]

    def kept(remat: Remat) -> _Kept:
        settings = dataclasses.replace(compute, remat=remat)
        return _kept_of_loss(dataclasses.replace(share, num_layers=2), settings, batch.tokens, batch.packed, z_loss)

    one, whole = kept(compute.remat), kept("none")
    copies = one.per_layer * model.num_layers // fsdp  # of the weights, in the compute dtype
    working = _RECOMPUTED if compute.remat != "none" else _SAVED
    width = jnp.dtype(compute.dtype).itemsize
    layer_weights = sum(leaf.size for leaf in jax.tree.leaves(llama.abstract(share)["blocks"])) // model.num_layers
    # Gathered for this layer and, ahead, the next one; its gradient is whole until it is summed over the devices.
    gathered = layer_weights * (2 * width + 4) if fsdp > 1 else 0
    chunk = min(compute.loss_chunk_tokens, rows * batch.tokens)
    return StepBytes(
        gradients=tree_bytes(state.params) * (1 if batch.accumulation == 1 else 2),
        activations=rows * (one.per_row + one.per_layer_and_row * model.num_layers) + copies,
        head=one.fixed,
        layer=int(working * whole.per_layer_and_row * rows) + gathered,
        logits=chunk * share.vocab_size * (4 + 4 + width),
    )


@dataclass(frozen=True)
class _Kept:
    """Bytes that the backward pass keeps of the forward pass, as a function of layers and rows (bilinear)."""

    fixed: int
    per_layer: int
    per_row: int
    per_layer_and_row: int


@functools.cache  # neither accumulation nor data and fsdp of the mesh change it
def _kept_of_loss(model: DecoderConfig, compute: ComputeConfig, tokens: int, packed: bool, z_loss: float) -> _Kept:
    def traced(num_layers: int, rows: int) -> int:
        layers = dataclasses.replace(model, num_layers=num_layers)
        return _kept_bytes(layers, Batch(rows, tokens, 1, packed).shapes(rows), compute, z_loss)

    small, deeper, wider, both = traced(2, 2), traced(3, 2), traced(2, 4), traced(3, 4)
    per_layer_and_row = (both - wider - deeper + small) // 2
    per_layer = deeper - small - 2 * per_layer_and_row
    per_row = (wider - small) // 2 - 2 * per_layer_and_row
    return _Kept(small - 2 * per_layer - 2 * per_row - 4 * per_layer_and_row, per_layer, per_row, per_layer_and_row)


def _kept_bytes(model: DecoderConfig, rows: dict[str, jax.ShapeDtypeStruct], compute: ComputeConfig, z: float) -> int:
    """Bytes of the residuals of the loss's gradient; parameters themselves and the batch do not count."""

    def forward(params: Params, rows: dict[str, Array]) -> Any:
        def loss(params: Params) -> Any:
            return next_token_loss(params, model, rows, compute=compute, z_loss=z)

        return jax.vjp(loss, params, has_aux=True)[1]

    # The kernels look at the devices of the mesh before they say what they can do; a TPU's trace everywhere.
    device = AbstractDevice(device_kind="", num_cores=None, platform="tpu")
    one = AbstractMesh((1,) * len(AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES), abstract_device=device)
    with jax.sharding.use_abstract_mesh(one), _without_announcements():
        program = jax.make_jaxpr(forward)(llama.abstract(model), rows).jaxpr
    kept = {id(variable): variable.aval for variable in program.outvars if variable not in program.invars}
    return sum(aval.size * aval.dtype.itemsize for aval in kept.values())


def _attention(compute: ComputeConfig, batch: Batch, platform: str) -> AttentionChoice:
    """The kernels to trace. Flash kernels keep the same on GPU and TPU (q, k, v, result, a number per query)."""
    flash = {"tpu": True, "gpu": compute.dtype == "bfloat16" and not batch.packed}.get(platform, False)
    return "splash" if compute.attention != "xla" and flash else "xla"


def _share(model: DecoderConfig, tensor: int) -> DecoderConfig:
    """The model as one device of `tensor` many sees it."""
    return dataclasses.replace(
        model,
        num_heads=model.num_heads // tensor,
        num_kv_heads=model.num_kv_heads // tensor,
        mlp_dim=model.mlp_dim // tensor,
        vocab_size=model.vocab_size // tensor,
    )


@contextlib.contextmanager
def _without_announcements() -> Iterator[None]:
    """What is traced here is not what the devices will run."""
    announcing = logging.getLogger(attention_kernels.__name__)
    before, announcing.disabled = announcing.disabled, True
    try:
        yield
    finally:
        announcing.disabled = before


def _traced(make: Callable[[], T]) -> T:
    """What `make` returns; what it would compute is traced only (optax makes zeros, on a device)."""
    made: list[T] = []
    jax.eval_shape(lambda: made.append(make()))
    return made[0]
