"""Logical axis names of every parameter: path in the parameter dict -> one name per dimension.

The mesh axes behind the names are `parallel.rules`' business. A test holds this table to the parameter trees.
"""

from typing import Any

import jax

_AXES: dict[str, tuple[str, ...]] = {
    "embed/table": ("vocab", "embed"),
    "blocks/attention_norm/scale": ("layers", "norm"),
    "blocks/attention/query": ("layers", "embed", "heads", "head_dim"),
    "blocks/attention/key": ("layers", "embed", "kv_heads", "head_dim"),
    "blocks/attention/value": ("layers", "embed", "kv_heads", "head_dim"),
    "blocks/attention/out": ("layers", "heads", "head_dim", "embed"),
    "blocks/attention/query_bias": ("layers", "heads", "head_dim"),
    "blocks/attention/key_bias": ("layers", "kv_heads", "head_dim"),
    "blocks/attention/value_bias": ("layers", "kv_heads", "head_dim"),
    "blocks/attention/query_norm/scale": ("layers", "norm"),
    "blocks/attention/key_norm/scale": ("layers", "norm"),
    "blocks/mlp_norm/scale": ("layers", "norm"),
    "blocks/mlp/gate": ("layers", "embed", "mlp"),
    "blocks/mlp/up": ("layers", "embed", "mlp"),
    "blocks/mlp/down": ("layers", "mlp", "embed"),
    "norm/scale": ("norm",),
}
_LM_HEAD = ("embed", "vocab")
_RATER_HEAD = ("embed", "criteria")
ADAPTER_RANK = "rank"  # the dimension between the two matrices of a low-rank adapter


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as `blocks/attention/query`."""
    return "/".join(str(entry.key) for entry in path)


def logical_axes(params: Any, *, is_rater: bool) -> Any:
    """The tree of logical axis names for a parameter tree (arrays or shapes); `KeyError` for an unknown path."""
    table = _AXES | {"head/kernel": _RATER_HEAD if is_rater else _LM_HEAD}
    return jax.tree_util.tree_map_with_path(lambda path, _: table[path_name(path)], params)
