"""AdamW with warm-up, a linear or cosine schedule, a decay mask and gradient clipping."""

from typing import Any

import jax
import optax

from qurating_jax.training.options import OptimConfig


def learning_rates(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step: linear warm-up, then down to `final_fraction` at `num_steps`."""
    warmup_steps = round(config.warmup_fraction * num_steps)
    decay_steps = max(num_steps - warmup_steps, 1)
    peak = config.learning_rate
    decay = {
        "linear": optax.linear_schedule(peak, peak * config.final_fraction, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_fraction),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    # Warm-up ends at the peak; its first step is not wasted on a learning rate of 0.
    warmup = optax.linear_schedule(peak / (warmup_steps + 1), peak, max(warmup_steps, 1))
    return optax.join_schedules([warmup, decay], [warmup_steps])


def optimizer(config: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """The gradient transformation: clip by global norm, AdamW, masked decay (Loshchilov & Hutter 2019)."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rates(config, num_steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )


def decay_mask(params: Any) -> Any:
    """True for matrices, False for norm scales and biases, by name: stacked vectors are 2-D as well."""

    def is_matrix(path: tuple[Any, ...], _: Any) -> bool:
        name = str(path[-1].key)
        return name != "scale" and not name.endswith("_bias")

    return jax.tree_util.tree_map_with_path(is_matrix, params)
