"""Where a training run starts from: a preset (random weights) or a Hugging Face directory or hub id."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from qurating_jax.models import hf
from qurating_jax.models.config import PRESETS, ArchitectureOverrides, DecoderConfig
from qurating_jax.models.llama import Params
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError

# A preset's vocabulary is rounded up: it then splits over any tensor axis and fills whole matrix tiles.
_VOCABULARY_MULTIPLE = 128


@dataclass(frozen=True)
class BaseModel:
    """An architecture and, unless it starts from random weights, the directory that holds its weights."""

    config: DecoderConfig
    directory: str | None

    def digest(self) -> dict[str, Any] | None:
        """What identifies the weights, for a manifest; None for a preset."""
        if self.directory is None:
            return None
        return manifest.input_digest([self.directory], storage.expand([self.directory], (".json", ".safetensors")))

    def load(self, mesh: Mesh, *, seed: int) -> Params | None:
        """The weights in their shards (a head that the directory lacks is drawn from `seed`); None for a preset."""
        return None if self.directory is None else hf.load(self.directory, mesh, config=self.config, seed=seed)


def resolve_base(
    name: str,
    *,
    revision: str | None,
    architecture: ArchitectureOverrides,
    vocab_size: int,
    sequence_tokens: int,
    num_criteria: int = 0,
) -> BaseModel:
    """Finds a preset, directory or hub id and puts the wanted head on it.

    Args:
        name: one of `PRESETS`, a directory, the output of a stage that made or fetched a model, or a hub id.
        revision: of a hub id.
        architecture: changes to a preset.
        vocab_size: of the tokenizer that the texts go through.
        sequence_tokens: the longest sequence that is trained on. A preset is exported for that length (unless
            `architecture` says otherwise), so that no later stage takes it for a model of longer texts.
        num_criteria: scores of a rater; 0 for a language model.

    Raises:
        UserError: overrides for a loaded model, a vocabulary smaller than the tokenizer's, fewer positions than the
            sequences have tokens, a rater as the base of a language model.
    """
    option = "--max_tokens" if num_criteria else "qurating tokenize --sequence_tokens"
    if name in PRESETS:
        padded = -(-vocab_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
        preset = dataclasses.replace(PRESETS[name], vocab_size=padded, max_positions=sequence_tokens)
        config = architecture.apply(preset)
        require_positions(name, config, sequence_tokens, option=option)
        return BaseModel(config.with_head(num_criteria), None)
    if architecture.any():
        raise UserError("architecture.* changes a preset; a model that is loaded keeps its own architecture")
    directory = hf.resolve(manifest.exported(name, "train-lm", "train-rater"), revision)
    config, labels = hf.read_config(directory)
    if labels and not num_criteria:
        raise UserError(f"{name}: a rater, not a language model")
    if config.vocab_size < vocab_size:
        raise UserError(
            f"{name}: vocabulary of {config.vocab_size}, but the tokenizer has {vocab_size} tokens; use its own"
        )
    require_positions(name, config, sequence_tokens, option=option)
    return BaseModel(config.with_head(num_criteria), directory)


def require_positions(where: str, config: DecoderConfig, num_tokens: int, *, option: str) -> None:
    """Refuses texts longer than the model is made for (`UserError`); `where` names the model, `option` their length."""
    if config.max_positions < num_tokens:
        raise UserError(
            f"{where}: made for texts of up to {config.max_positions} tokens, not {num_tokens}; give {option} "
            f"{config.max_positions} or less, or another model"
        )
