"""Which models the steps of an experiment are about, before there are any weights: what FLOPs and bytes follow from."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

from qurating_jax.experiments import registry
from qurating_jax.experiments.graph import Node
from qurating_jax.experiments.planning.amounts import Amounts, node_at
from qurating_jax.models import hf
from qurating_jax.models.base import resolve_base
from qurating_jax.models.config import PRESETS, DecoderConfig
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring import ngrams, rater_files
from qurating_jax.training.rater_options import NGRAMS

Model = DecoderConfig | Literal["ngrams"] | None  # None: nobody knows which

PUBLISHED_VOCABULARY = 32_000  # of Llama 2's tokenizer, which all published artifacts have
DEFAULT_CRITERIA = 4


def models_at(known: Amounts, place: str, *, criteria: int = 0) -> list[Model]:
    """The models behind a path, `NAME=PATH` or hub id; several where raters are combined.

    Args:
        known: the graph and what it knows.
        place: as a config names it.
        criteria: scores of a rater whose own number is not known; 0 for a language model.
    """
    found = node_at(known.graph, place)
    if found is None:
        return [_elsewhere(place.rpartition("=")[2], criteria)]
    node = found[0]
    if node.key in known.finished and (model := _exported(node.directory, node.stage)) is not None:
        return [model]
    if node.stage == "combine-raters":
        return [model for inner in node.config.raters for model in models_at(known, inner, criteria=criteria)]
    if node.stage == "fetch":
        artifacts = _artifacts(node.config.registry)
        return [_published(registry.find(artifacts, node.config.name), criteria)]
    if node.stage in ("train-lm", "train-rater"):
        return [trained(known, node)] * getattr(node.config, "num_members", 1)
    return [None]


def trained(known: Amounts, node: Node) -> Model:
    """The model that a run of `train-lm` or `train-rater` trains."""
    config = node.config
    if node.stage == "train-lm":
        sequence = sequence_tokens(known, config.tokens)
        return (
            None
            if sequence is None
            else _base(known, config.model, config, vocabulary_of_tokens(known, config.tokens), sequence, 0)
        )
    if config.base == NGRAMS:
        return "ngrams"
    criteria = len(config.criteria) or DEFAULT_CRITERIA
    vocabulary = vocabulary_at(known, config.tokenizer or config.base)
    return _base(known, config.base, config, vocabulary, config.max_tokens, criteria)


def sequence_tokens(known: Amounts, places: Sequence[str]) -> int | None:
    """Tokens of a row of outputs of `tokenize`."""
    return _of_tokens(known, places, "sequence_tokens", lambda node: node.config.sequence_tokens)


def vocabulary_of_tokens(known: Amounts, places: Sequence[str]) -> int:
    """Size of the vocabulary of outputs of `tokenize`."""
    found = _of_tokens(known, places, "vocab_size", lambda node: vocabulary_at(known, node.config.tokenizer))
    return found or PUBLISHED_VOCABULARY


def vocabulary_at(known: Amounts, place: str) -> int:
    """Size of the vocabulary of a tokenizer; Llama 2's where it cannot be looked at."""
    found = node_at(known.graph, place)
    if found is not None and found[0].stage == "train-tokenizer":
        counts = known.finished.get(found[0].key, {})
        return int(counts.get("vocab_size", found[0].config.vocab_size))
    if found is None and not storage.is_remote(place) and storage.exists(place):
        from qurating_jax.data.tokenizer import load_tokenizer

        try:
            return load_tokenizer(place).vocab_size
        except UserError:
            return PUBLISHED_VOCABULARY
    return PUBLISHED_VOCABULARY


def _of_tokens(known: Amounts, places: Sequence[str], name: str, planned: Any) -> int | None:
    for place in places:
        found = node_at(known.graph, place)
        if found is not None and found[0].stage == "tokenize":
            counts = known.finished.get(found[0].key, {})
            return int(counts[name]) if name in counts else planned(found[0])
        if found is None and "<" not in place and storage.exists(storage.join(place, manifest.MANIFEST)):
            counts = manifest.read(place)["counts"]
            return int(counts[name]) if name in counts else None
    return None


def _base(known: Amounts, name: str, config: Any, vocabulary: int, tokens: int, criteria: int) -> Model:
    """A trunk under the head that is trained."""
    if name in PRESETS:
        return resolve_base(
            name, revision=None, architecture=config.architecture, vocab_size=vocabulary, sequence_tokens=tokens,
            num_criteria=criteria,
        ).config  # fmt: skip
    (model, *_) = models_at(known, name, criteria=criteria)
    return model.with_head(criteria) if isinstance(model, DecoderConfig) else model


@functools.cache
def _artifacts(path: str | None) -> dict[str, registry.Artifact]:
    return registry.load(path)


def _published(artifact: registry.Artifact | None, criteria: int) -> Model:
    """The model of a registry's entry; a rater has as many scores as it has labels."""
    if artifact is None or not artifact.architecture:
        return None
    preset = dataclasses.replace(PRESETS[artifact.architecture], vocab_size=PUBLISHED_VOCABULARY)
    return preset.with_head(len(artifact.labels) or criteria)


def _elsewhere(place: str, criteria: int) -> Model:
    path = place.partition("@")[0]
    if path in PRESETS:
        return PRESETS[path].with_head(criteria)
    if not storage.is_remote(path) and storage.is_dir(path):
        return _exported(path, "train-rater", "train-lm", "combine-raters", "fetch")
    return _published(registry.find_repo(_artifacts(None), path), criteria)


def _exported(directory: str, *stages: str) -> Model:
    """The model that stands in a finished run or a model directory; None where it cannot be read."""
    try:
        place = manifest.exported(directory, *stages)
        if rater_files.is_rater_file_in(place):
            return "ngrams" if rater_files.read_kind(place) == ngrams.KIND else None
        return hf.read_config(place)[0]
    except UserError:
        return None
