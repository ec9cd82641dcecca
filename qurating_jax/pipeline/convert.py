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

    input: str = option("", "Hugging Face directory or hub id; or a directory with checkpoints/", reads=True)
    revision: str | None = option(None, "revision of a hub id")
    step: int | None = option(None, "which checkpoint (to hf); null: the newest")
    tokenizer: str | None = option(None, "tokenizer to put beside an exported model", reads=True)
    to: Literal["orbax", "hf"] = option("orbax", "what to write: checkpoints/ or hf/")
    dtype: Literal["float32", "bfloat16"] = option("float32", "dtype of exported tensors (to hf)")
    check: bool = option(False, "compare tensors and logits with transformers (needs torch)", runtime=True)
    mesh: MeshShape = MeshShape()


def main(config: Config) -> dict[str, Any]:
    """Writes `checkpoints/` or `hf/`; parameters are the same numbers in either form."""
    from qurating_jax.models import hf

    require(config, "input")
    require_local(config)
    checkpoints = storage.join(config.input, "checkpoints")
    if config.to == "hf" and not storage.list_dir(checkpoints):
        raise UserError(f"{config.input}: no committed checkpoint in its checkpoints/")
    # A training run need not be finished: its newest committed checkpoint is what counts.
    directory = checkpoints if config.to == "hf" else hf.resolve(config.input, config.revision)
    files = storage.expand([directory], ("",))
    inputs = {"weights": [[file.removeprefix(directory), storage.digest(file)] for file in files]}
    if config.dry_run:
        print(f"would convert {config.input} to {config.to} in {config.output}")
        return {}
    with open_run(config, "convert", inputs) as run:
        counts, made = run.counts, run.path("hf" if config.to == "hf" else "checkpoints")
        if run.state != "finished":
            counts = _to_orbax(config, directory, made) if config.to == "orbax" else _to_hf(config, directory, made)
        if config.check:
            _check(config, *((made, directory) if config.to == "hf" else (directory, made)), counts["step"])
        if run.state != "finished":
            manifest.finish(run, counts)
        return counts


def _to_orbax(config: Config, directory: str, made: str) -> dict[str, Any]:
    from qurating_jax.models import hf
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.runtime.checkpoint import Checkpoints

    model, labels = hf.read_config(directory)
    params = hf.load(directory, make_mesh(config.mesh))
    with Checkpoints(made, keep=1) as checkpoints:
        checkpoints.save(0, {"params": params}, {"model": dataclasses.asdict(model), "labels": list(labels)})
    return {"parameters": _count(params), "step": 0}


def _to_hf(config: Config, directory: str, made: str) -> dict[str, Any]:
    from qurating_jax.data.tokenizer import load_tokenizer
    from qurating_jax.models.config import decoder_config
    from qurating_jax.training.fit import export

    params, document, step = _restore(config, directory, config.step)
    export(
        made,
        params,
        decoder_config(document["model"]),
        load_tokenizer(config.tokenizer) if config.tokenizer else None,
        labels=document["labels"],
        dtype=config.dtype,
    )
    return {"parameters": _count(params), "step": step}


def _restore(config: Config, directory: str, step: int | None) -> tuple[Any, dict[str, Any], int]:
    """Parameters, document and step of a checkpoint in a `checkpoints/` directory."""
    from qurating_jax.models.config import decoder_config
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.runtime.checkpoint import restore_params
    from qurating_jax.training.state import abstract_params

    mesh = make_mesh(config.mesh)

    def shapes(document: dict[str, Any]) -> Any:
        if document.get("adapters"):
            raise UserError(
                f"{config.input}: its checkpoints hold low-rank adapters alone; the merged rater is in its hf/"
            )
        return abstract_params(decoder_config(document["model"]), mesh)

    try:
        return restore_params(directory, shapes, step)
    except FileNotFoundError:
        which = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise UserError(f"{config.input}: no committed {which} in its checkpoints/") from None


def _check(config: Config, exported: str, checkpoints: str, step: int) -> None:
    """Both sides as they lie on disk: the Hugging Face directory by `transformers`, the checkpoint by us."""
    import jax

    from qurating_jax.models.config import decoder_config
    from qurating_jax.models.hf_check import compare_with_transformers

    params, document, _ = _restore(config, checkpoints, step)
    if config.to == "hf" and config.dtype == "bfloat16":  # as the exported tensors are rounded
        params = jax.tree.map(lambda leaf: leaf.astype("bfloat16").astype("float32"), params)
    found = compare_with_transformers(exported, params, decoder_config(document["model"]))
    log.info("convert: transformers' logits reach %(largest_logit).4g, ours differ by %(largest_difference).1e", found)


def _count(params: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(params))
