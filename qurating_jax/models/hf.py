"""Hugging Face directories in and out: config.json, safetensors (single or sharded with an index), tokenizer files.

Import fills each parameter shard by shard straight from the files; every shape is asserted, and a missing or
unexpected tensor is an error that lists both. Export is the inverse, bit for bit.
"""

import dataclasses
import fnmatch
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from qurating_jax.models import llama
from qurating_jax.models.axes import logical_axes, path_name
from qurating_jax.models.config import DecoderConfig
from qurating_jax.models.hf_config import from_hf, to_hf
from qurating_jax.models.llama import Params
from qurating_jax.parallel import distributed
from qurating_jax.parallel.rules import tree_shardings
from qurating_jax.runtime import copies, storage
from qurating_jax.runtime.errors import UserError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_FILE_BYTES = 5 * 10**9

_MODEL_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.txt"]
_IGNORED = "rotary_emb.inv_freq"  # a buffer that old checkpoints saved; it follows from the config

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """How one parameter stands in the files: its name per layer, its shape there, and the axes that lead back."""

    names: tuple[str, ...]  # one, or one per layer
    hf_shape: tuple[int, ...]
    permutation: tuple[int, ...]  # applied to `split_shape` gives our layout (without the layer dimension)
    split_shape: tuple[int, ...]  # hf_shape with a fused heads x head_dim dimension split

    def from_hf(self, tensor: np.ndarray) -> np.ndarray:
        return tensor.reshape(self.split_shape).transpose(self.permutation)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(np.argsort(self.permutation)).reshape(self.hf_shape)


def resolve(path_or_id: str, revision: str | None = None) -> str:
    """The local directory of a model: the path itself, a copy of a remote one, or a snapshot of a hub repository.

    `HF_HUB_OFFLINE=1` uses only what the cache holds. A copy goes when the process ends. Raises `UserError` where none
    of them exists.
    """
    if storage.is_remote(path_or_id) or os.path.isdir(path_or_id):
        if not storage.exists(storage.join(path_or_id, CONFIG)):
            raise UserError(f"{path_or_id}: no {CONFIG}; not a Hugging Face model directory")
        return copies.local_directory(path_or_id, _MODEL_FILES)
    if path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") != 1:
        raise UserError(f"{path_or_id}: no such directory, and not a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(path_or_id, revision=revision, allow_patterns=_MODEL_FILES)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path_or_id}: not a directory here, and the hub gave no snapshot ({reason})") from None


def read_config(directory: str) -> tuple[DecoderConfig, tuple[str, ...]]:
    """The architecture and, for a rater, the names of its scores; `UserError` where it is not supported."""
    path = storage.join(directory, CONFIG)
    document = storage.read_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{path}: not a JSON object")
    try:
        return from_hf(document, where=path)
    except KeyError as error:
        raise UserError(f"{path}: key {error} is missing") from None
    except ValueError as error:
        raise UserError(str(error)) from None


def load(
    directory: str, mesh: Mesh, *, config: DecoderConfig | None = None, dtype: str = "float32", seed: int | None = None
) -> Params:
    """Reads a model's parameters into their shards.

    Args:
        directory: a Hugging Face model directory.
        mesh: where the parameters go.
        config: the wanted architecture; by default the directory's own. Another head than the files' (a rater on a
            language model's trunk) is initialised from `seed`, and the files' head is left out.
        dtype: of the parameters.
        seed: of a new head.

    Raises:
        UserError: missing or unexpected tensors, a wrong shape, another trunk than `config`'s.
    """
    found, _ = read_config(directory)
    config = found if config is None else config
    if config.with_head(0) != found.with_head(0):
        raise UserError(f"{directory}: another architecture than asked for ({_difference(found, config)})")
    other_head = config.num_criteria != found.num_criteria
    new_head = other_head and "head/kernel" in tensor_table(config)  # a tied language model's head is its embedding
    if new_head and seed is None:
        raise UserError(f"{directory}: has {_head_name(found)}, but {_head_name(config)} is wanted")
    shapes = llama.abstract(config)
    shardings = tree_shardings(mesh, logical_axes(shapes, is_rater=config.num_criteria > 0), shapes)
    wanted = {path: tensor for path, tensor in tensor_table(config).items() if not (new_head and path == "head/kernel")}
    with _Files(directory) as files:
        _check_names(directory, wanted, set(files.names()) - _left_out(files, found, other_head=other_head))

        def read(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array | None:
            name = path_name(path)
            return files.to_device(wanted[name], shape.shape, sharding, dtype) if name in wanted else None

        params = jax.tree_util.tree_map_with_path(read, shapes, shardings)
    if other_head:
        log.info("%s: trunk loaded, %s left out; now %s", directory, _head_name(found), _head_name(config))
    if new_head:
        kernel = jax.jit(lambda key: llama.init(config, key)["head"]["kernel"].astype(dtype),
                         out_shardings=shardings["head"]["kernel"])  # fmt: skip
        params["head"] = {"kernel": kernel(jax.random.key(seed or 0))}
    return params


def save(
    directory: str,
    params: Params,
    config: DecoderConfig,
    *,
    labels: Sequence[str] = (),
    dtype: str = "float32",
    special_tokens: Mapping[str, int] | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes config.json and safetensors files; config.json last, so that a directory with one is complete.

    Every process has to call it (gathering is a collective); process 0 writes.

    Raises:
        ValueError: as many labels as criteria are needed.
    """
    if len(labels) != config.num_criteria:
        raise ValueError(f"{len(labels)} labels for {config.num_criteria} criteria")
    from safetensors.numpy import save_file

    numpy_dtype = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    table = tensor_table(config)
    plan = _plan_files(table, numpy_dtype.itemsize, max_file_bytes)
    primary = distributed.is_primary()
    if primary:
        _clear(directory)
    weight_map: dict[str, str] = {}
    pending: dict[str, np.ndarray] = {}
    for name, array in _host_tensors(params, table, numpy_dtype):
        if not primary:
            continue  # takes part in gathering only
        weight_map[name] = plan[name]
        pending[name] = array
        if sum(1 for other in plan.values() if other == plan[name]) == len(pending):
            with storage.atomic_file(storage.join(directory, plan[name])) as file:
                save_file(pending, file, metadata={"format": "pt"})
            pending = {}
    if primary:
        if len(set(plan.values())) > 1:
            total = sum(int(np.prod(tensor.hf_shape)) * len(tensor.names) for tensor in table.values())
            index = {"metadata": {"total_size": total * numpy_dtype.itemsize}, "weight_map": weight_map}
            storage.write_json(storage.join(directory, INDEX), index)
        document = to_hf(config, labels, dtype=dtype, special_tokens=special_tokens or {})
        storage.write_json(storage.join(directory, CONFIG), document)
    distributed.barrier("hf-save")


def tensor_table(config: DecoderConfig) -> dict[str, _Tensor]:
    """Parameter path -> how it stands in Hugging Face files."""
    D, F, V = config.embed_dim, config.mlp_dim, config.vocab_size
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim

    def layers(name: str) -> tuple[str, ...]:
        return tuple(f"model.layers.{index}.{name}" for index in range(config.num_layers))

    def vector(names: tuple[str, ...], size: int) -> _Tensor:
        return _Tensor(names, (size,), (0,), (size,))

    def linear(names: tuple[str, ...], inputs: int, outputs: int) -> _Tensor:
        return _Tensor(names, (outputs, inputs), (1, 0), (outputs, inputs))

    def to_heads(name: str, heads: int) -> _Tensor:
        return _Tensor(layers(f"self_attn.{name}_proj.weight"), (heads * H, D), (2, 0, 1), (heads, H, D))

    def head_bias(name: str, heads: int) -> _Tensor:
        return _Tensor(layers(f"self_attn.{name}_proj.bias"), (heads * H,), (0, 1), (heads, H))

    table = {
        "embed/table": _Tensor(("model.embed_tokens.weight",), (V, D), (0, 1), (V, D)),
        "blocks/attention_norm/scale": vector(layers("input_layernorm.weight"), D),
        "blocks/attention/query": to_heads("q", N),
        "blocks/attention/key": to_heads("k", K),
        "blocks/attention/value": to_heads("v", K),
        "blocks/attention/out": _Tensor(layers("self_attn.o_proj.weight"), (D, N * H), (1, 2, 0), (D, N, H)),
        "blocks/mlp_norm/scale": vector(layers("post_attention_layernorm.weight"), D),
        "blocks/mlp/gate": linear(layers("mlp.gate_proj.weight"), D, F),
        "blocks/mlp/up": linear(layers("mlp.up_proj.weight"), D, F),
        "blocks/mlp/down": linear(layers("mlp.down_proj.weight"), F, D),
        "norm/scale": vector(("model.norm.weight",), D),
    }
    if config.qkv_bias:
        table["blocks/attention/query_bias"] = head_bias("q", N)
        table["blocks/attention/key_bias"] = head_bias("k", K)
        table["blocks/attention/value_bias"] = head_bias("v", K)
    if config.qk_norm:
        table["blocks/attention/query_norm/scale"] = vector(layers("self_attn.q_norm.weight"), H)
        table["blocks/attention/key_norm/scale"] = vector(layers("self_attn.k_norm.weight"), H)
    if config.num_criteria:
        table["head/kernel"] = linear(("score.weight",), D, config.num_criteria)
    elif not config.tie_embeddings:
        table["head/kernel"] = linear(("lm_head.weight",), D, V)
    return table


class _Files:
    """The safetensors files of a directory, opened lazily, read by slices."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._open: dict[str, Any] = {}
        index = storage.join(directory, INDEX)
        if os.path.exists(index):
            self._file_of = _weight_map(index)
            for name in set(self._file_of.values()):
                if not os.path.exists(storage.join(directory, name)):
                    raise UserError(f"{directory}: {name} is missing, but {INDEX} lists it; download it again")
        elif os.path.exists(storage.join(directory, WEIGHTS)):
            self._file_of = dict.fromkeys(self._handle(WEIGHTS).keys(), WEIGHTS)
        else:
            raise UserError(
                f"{directory}: no {WEIGHTS} and no {INDEX} (PyTorch pickle files are not read: convert them)"
            )

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._open.values():
            handle.__exit__(None, None, None)
        self._open.clear()

    def names(self) -> Iterator[str]:
        return (name for name in self._file_of if not name.endswith(_IGNORED))

    def to_device(self, tensor: _Tensor, shape: tuple[int, ...], sharding: Any, dtype: str) -> jax.Array:
        """One parameter, read shard by shard: the host holds one shard at a time."""
        stacked = len(tensor.names) > 1 or len(shape) > len(tensor.split_shape)
        for name in tensor.names:
            found = tuple(self._slice(name).get_shape())
            if found != tensor.hf_shape:
                raise UserError(f"{self.directory}: {name} has shape {found}, expected {tensor.hf_shape}")
        cache: dict[str, np.ndarray] = {}

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # None stands for a sharding that spans no local device
            key = str(index)
            if key not in cache:
                cache.clear()
                cache[key] = self._read_shard(tensor, index, shape, stacked, dtype)
            return cache[key]

        return jax.make_array_from_callback(shape, sharding, shard)

    def _read_shard(
        self, tensor: _Tensor, index: tuple[slice, ...], shape: tuple[int, ...], stacked: bool, dtype: str
    ) -> np.ndarray:
        numpy_dtype = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
        if not stacked:
            return np.ascontiguousarray(tensor.from_hf(self.tensor(tensor.names[0]))[index]).astype(numpy_dtype)
        names = tensor.names[index[0]]
        inner_shape = [len(range(*part.indices(size))) for part, size in zip(index[1:], shape[1:], strict=True)]
        out = np.empty([len(names), *inner_shape], numpy_dtype)
        for row, name in enumerate(names):
            out[row] = tensor.from_hf(self.tensor(name))[index[1:]]
        return out

    def tensor(self, name: str) -> np.ndarray:
        return self._slice(name)[:]

    def _slice(self, name: str) -> Any:
        from safetensors import SafetensorError

        file = self._file_of[name]
        try:
            return self._handle(file).get_slice(name)
        except SafetensorError:  # only an index can promise what its file lacks
            raise UserError(f"{self.directory}: {INDEX} looks for {name} in {file}, which lacks it") from None

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            from safetensors import SafetensorError, safe_open

            try:
                self._open[file] = safe_open(storage.join(self.directory, file), framework="numpy").__enter__()
            except SafetensorError as error:
                raise UserError(f"{storage.join(self.directory, file)}: broken safetensors file ({error})") from None
        return self._open[file]


def _weight_map(index: str) -> dict[str, str]:
    """Tensor name -> file name. An index is untrusted: its files are safetensors files that lie beside it."""
    document = storage.read_json(index)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict):
        raise UserError(f"{index}: no `weight_map`")
    for name in weight_map.values():
        if not (isinstance(name, str) and os.path.basename(name) == name and name.endswith(".safetensors")):
            raise UserError(f"{index}: {name!r} is not a safetensors file beside the index")
    return weight_map


def _left_out(files: _Files, found: DecoderConfig, *, other_head: bool) -> set[str]:
    """Tensors of the files that are not read: a head that is not wanted, and a tied head's copy of the embedding."""
    if other_head:
        return {"score.weight" if found.num_criteria else "lm_head.weight"}
    if found.num_criteria or not found.tie_embeddings or "lm_head.weight" not in files.names():
        return set()
    # Published tied models carry one at times; transformers ties them only where both are equal.
    if not np.array_equal(files.tensor("lm_head.weight"), files.tensor("model.embed_tokens.weight")):
        raise UserError(f"{files.directory}: lm_head.weight is not the embedding; set tie_word_embeddings to false")
    return {"lm_head.weight"}


def _clear(directory: str) -> None:
    """Makes the directory and removes an earlier export, whose index or files would shadow the new one's."""
    storage.make_dirs(directory)
    storage.remove_tree(storage.join(directory, CONFIG))
    for name in fnmatch.filter(storage.list_dir(directory), "model*.safetensors*"):
        storage.remove_tree(storage.join(directory, name))


def _check_names(directory: str, wanted: Mapping[str, _Tensor], found: set[str]) -> None:
    expected = {name for tensor in wanted.values() for name in tensor.names}
    if expected != found:
        missing, unexpected = sorted(expected - found), sorted(found - expected)
        raise UserError(
            f"{directory}: tensors do not fit the config; missing: {_list(missing)}; unexpected: {_list(unexpected)}"
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"


def _host_tensors(params: Params, table: Mapping[str, _Tensor], dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors under their Hugging Face names, one parameter in host memory at a time."""
    paths = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    if paths.keys() != table.keys():
        raise ValueError(f"parameters {sorted(paths.keys() ^ table.keys())} do not fit the config")
    for path, tensor in table.items():
        host = distributed.to_host(paths[path])
        stacked = host.ndim > len(tensor.split_shape)
        for index, name in enumerate(tensor.names):
            array = host[index] if stacked else host
            yield name, np.ascontiguousarray(tensor.to_hf(array)).astype(dtype)


def _plan_files(table: Mapping[str, _Tensor], itemsize: int, max_file_bytes: int) -> dict[str, str]:
    """Tensor name -> file name, filling files in order up to `max_file_bytes`."""
    groups: list[list[str]] = [[]]
    size = 0
    for tensor in table.values():
        nbytes = int(np.prod(tensor.hf_shape)) * itemsize
        for name in tensor.names:
            if groups[-1] and size + nbytes > max_file_bytes:
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += nbytes
    if len(groups) == 1:
        return dict.fromkeys(groups[0], WEIGHTS)
    total = len(groups)
    return {name: f"model-{i:05d}-of-{total:05d}.safetensors" for i, group in enumerate(groups, 1) for name in group}


def _head_name(config: DecoderConfig) -> str:
    return f"a rater's head of {config.num_criteria} score(s)" if config.num_criteria else "a language-model head"


def _difference(found: DecoderConfig, wanted: DecoderConfig) -> str:
    old, new = json.loads(json.dumps(dataclasses.asdict(found))), json.loads(json.dumps(dataclasses.asdict(wanted)))
    return ", ".join(f"{key}: {old[key]} there, {new[key]} asked" for key in old if old[key] != new[key])
