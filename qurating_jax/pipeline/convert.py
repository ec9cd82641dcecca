"""Convert weights: a Hugging Face directory or hub id to an Orbax checkpoint, or a training checkpoint back."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any, Literal

from qurating_jax.config import option
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import StageConfig, open_run, require, require_local

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating convert`."""

    input: str = option("", "Hugging Face directory or hub id; or a directory with checkpoints/", runtime=True)
    revision: str | None = option(None, "revision of a hub id")
    tokenizer: str | None = option(None, "tokenizer to put beside an exported model", runtime=True)
    to: Literal["orbax", "hf"] = option("orbax", "what to write: checkpoints/ or hf/")
    dtype: Literal["float32", "bfloat16"] = option("float32", "dtype of exported tensors (to hf)")
    mesh: MeshShape = MeshShape()


def main(config: Config) -> dict[str, Any]:
    """Writes `checkpoints/` or `hf/`; parameters are the same numbers in either form."""
    from qurating_jax.models import hf

    require(config, "input")
    require_local(config)
    if config.to == "hf" and not storage.list_dir(storage.join(config.input, "checkpoints")):
        raise UserError(f"{config.input}: no committed checkpoint in its checkpoints/")
    # A training run need not be finished: its newest committed checkpoint is what counts.
    directory = (
        storage.join(config.input, "checkpoints") if config.to == "hf" else hf.resolve(config.input, config.revision)
    )
    inputs = {"weights": [[file, storage.digest(file)] for file in storage.expand([directory], ("",))]}
    if config.dry_run:
        print(f"would convert {config.input} to {config.to} in {config.output}")
        return {}
    with open_run(config, "convert", inputs) as run:
        if run.state == "finished":
            return run.counts
        counts = _to_orbax(config, directory, run.output) if config.to == "orbax" else _to_hf(config, run.output)
        manifest.finish(run, counts)
        return counts


def _to_orbax(config: Config, directory: str, output: str) -> dict[str, Any]:
    from qurating_jax.models import hf
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.runtime.checkpoint import Checkpoints

    model, labels = hf.read_config(directory)
    params = hf.load(directory, make_mesh(config.mesh))
    with Checkpoints(storage.join(output, "checkpoints"), keep=1) as checkpoints:
        checkpoints.save(0, {"params": params}, {"model": dataclasses.asdict(model), "labels": list(labels)})
    return {"parameters": _count(params), "step": 0}


def _to_hf(config: Config, output: str) -> dict[str, Any]:

    from qurating_jax.data.tokenizer import load_tokenizer
    from qurating_jax.models.config import decoder_config
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.runtime.checkpoint import restore_params
    from qurating_jax.training.fit import export
    from qurating_jax.training.state import abstract_params

    mesh = make_mesh(config.mesh)

    def shapes(document: dict[str, Any]) -> Any:
        if document.get("adapters"):
            raise UserError(
                f"{config.input}: its checkpoints hold low-rank adapters alone; the merged rater is in its hf/"
            )
        return abstract_params(decoder_config(document["model"]), mesh)

    try:
        params, document, step = restore_params(storage.join(config.input, "checkpoints"), shapes)
    except FileNotFoundError:
        raise UserError(f"{config.input}: no committed checkpoint in its checkpoints/") from None
    export(
        storage.join(output, "hf"),
        params,
        decoder_config(document["model"]),
        load_tokenizer(config.tokenizer) if config.tokenizer else None,
        labels=document["labels"],
        dtype=config.dtype,
    )
    return {"parameters": _count(params), "step": step}


def _count(params: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(params))
