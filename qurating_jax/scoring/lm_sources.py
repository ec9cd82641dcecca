"""The language models of one evaluation: found and checked before any weight is read, loaded one after another.

Each is `PATH` or `NAME=PATH`. A path is a finished output of `train-lm` (or `convert`), a Hugging Face directory or a
hub id; `RUN@STEP` is a kept checkpoint of a run, finished or not, and `RUN@all` is all of them, a learning curve.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import jax
import yaml
from jax.sharding import Mesh

from qurating_jax.data.tokenizer import TextTokenizer, has_tokenizer, load_tokenizer
from qurating_jax.models import hf, llama
from qurating_jax.models.axes import logical_axes
from qurating_jax.models.base import require_positions
from qurating_jax.models.config import ComputeConfig, DecoderConfig, decoder_config
from qurating_jax.models.llama import Params
from qurating_jax.parallel.rules import tree_shardings
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.checkpoint import committed_steps, read_document, restore_params
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring import likelihood
from qurating_jax.scoring.likelihood import LanguageModel

_NAMED = re.compile(r"(\w[\w.-]*)=(.+)", re.DOTALL)
_STEP = re.compile(r"(.+)@(\d+|all)", re.DOTALL)
_WEIGHTS = (".json", ".safetensors")
_MOST_STEPS_LISTED = 8


@dataclass(frozen=True, eq=False)
class LmSource:
    """A language model before its weights are read.

    Attributes:
        name: what it is called in results.
        directory: of Hugging Face, or a `checkpoints/`.
        step: of its checkpoint; None: a Hugging Face directory.
        config: its architecture.
        tokenizer: its tokenizer.
    """

    name: str
    directory: str
    step: int | None
    config: DecoderConfig
    tokenizer: TextTokenizer

    def digest(self) -> dict[str, Any]:
        """What identifies it for a manifest, wherever it lies."""
        if self.step is None:
            weights = manifest.input_digest([self.directory], storage.expand([self.directory], _WEIGHTS))
        else:
            place = storage.join(self.directory, str(self.step))
            files = storage.expand([place], ("",))
            weights = {"files": [[file.removeprefix(place), storage.digest(file)] for file in files]}
        return {"name": self.name, "weights": weights, "tokenizer": self.tokenizer.identity}

    def load(
        self, mesh: Mesh, *, compute: ComputeConfig, context_tokens: int, batch_tokens: int | None
    ) -> LanguageModel:
        """The model on its devices."""
        return LanguageModel.build(
            self.params(mesh, compute.dtype),
            self.config,
            mesh,
            compute=compute,
            context_tokens=context_tokens,
            batch_tokens=batch_tokens,
        )

    def params(self, mesh: Mesh, dtype: str) -> Params:
        """Its weights in their shards."""
        if self.step is None:
            return hf.load(self.directory, mesh, dtype=dtype)
        target = _abstract(self.config, mesh, dtype)
        return restore_params(self.directory, lambda _: target, self.step)[0]


def find_language_models(
    given: Sequence[str], *, revision: str | None, tokenizer: str | None, context_tokens: int | None
) -> list[LmSource]:
    """The models in the order given, checkpoints of a run by step.

    Args:
        given: `PATH` or `NAME=PATH` each. Without a name it is the last part of the path; `@STEP` joins it.
        revision: of a hub id.
        tokenizer: where a model has none of its own.
        context_tokens: that all have to be made for; None: whatever they are.

    Raises:
        UserError: no such model or checkpoint, a rater, one name twice, no tokenizer or one of more tokens than the
            model knows, a model made for shorter texts.
    """
    found: dict[str, LmSource] = {}
    for entry in given:
        named = None if storage.exists(entry) else _NAMED.fullmatch(entry)
        name, path = (named[1], named[2]) if named else (None, entry)
        for source in _find(name, path, revision, tokenizer):
            if source.name in found:
                raise UserError(f"--model: two are called {source.name}; give each as NAME=PATH")
            require_positions(path, source.config, context_tokens or 0, option="--context_tokens")
            likelihood.require_vocabulary(path, source.config, source.tokenizer)
            found[source.name] = source
    return list(found.values())


def shortest_context(sources: Sequence[LmSource]) -> int:
    """The longest text that all of them are made for, so that all are shown as much."""
    return min(source.config.max_positions for source in sources)


def _find(name: str | None, path: str, revision: str | None, tokenizer: str | None) -> Iterator[LmSource]:
    kept = None if storage.exists(path) else _STEP.fullmatch(path)
    if kept is None:
        directory = hf.resolve(manifest.exported(path, "train-lm"), revision)
        config = likelihood.check(directory, None)
        yield LmSource(name or _own_name(path), directory, None, config, _tokenizer(path, [directory], tokenizer))
        return
    run, wanted = kept[1], kept[2]
    directory = storage.join(run, "checkpoints")
    steps = committed_steps(directory)
    if not steps:
        raise UserError(f"{run}: no committed checkpoint in its checkpoints/")
    if wanted != "all" and int(wanted) not in steps:
        listed = ", ".join(map(str, steps[:_MOST_STEPS_LISTED])) + (" ..." if len(steps) > _MOST_STEPS_LISTED else "")
        raise UserError(f"{run}: no checkpoint of step {wanted}; kept are those of {listed}")
    document = read_document(directory, steps[-1])
    if document["labels"] or document.get("adapters"):
        raise UserError(f"{run}: checkpoints of a rater, not of a language model")
    own = _tokenizer(run, [storage.join(run, "hf"), *_token_sets(run)], tokenizer)
    for step in steps if wanted == "all" else [int(wanted)]:
        config = decoder_config(document["model"])
        yield LmSource(f"{name or _own_name(run)}@{step}", directory, step, config, own)


def _own_name(path: str) -> str:
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", ".", "..")]
    if len(parts) > 1 and parts[-1] == "hf":  # the export in a run
        parts.pop()
    return parts[-1] if parts else "model"


def _tokenizer(where: str, places: Sequence[str], given: str | None) -> TextTokenizer:
    """The model's own, else the given one."""
    own = next((place for place in places if has_tokenizer(place)), None)
    if own is None and given is None:
        try:
            return load_tokenizer(places[0])  # it may be in another format
        except UserError as error:
            raise UserError(f"{where}: no tokenizer of its own ({error}); give --tokenizer") from None
    found = load_tokenizer(own or given or "")
    if own and given and load_tokenizer(given).identity != found.identity:
        raise UserError(f"{given}: not the tokenizer that {where} was trained with; leave --tokenizer out")
    return found


def _token_sets(run: str) -> list[str]:
    """Tokenizers of the token sets that a run is trained on, as far as they still lie there."""
    path = storage.join(run, "config.yaml")
    settings = yaml.safe_load(storage.read_text(path)) if storage.exists(path) else {}
    tokens = settings.get("tokens", ()) if isinstance(settings, dict) else ()
    return [storage.join(str(place), "tokenizer") for place in ([tokens] if isinstance(tokens, str) else tokens)]


def _abstract(config: DecoderConfig, mesh: Mesh, dtype: str) -> Params:
    shapes = llama.abstract(config)
    shardings = tree_shardings(mesh, logical_axes(shapes, is_rater=False), shapes)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding), shapes, shardings
    )
