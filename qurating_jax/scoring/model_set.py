"""The raters and language models of one annotation: found and checked before any weight is read, then loaded together.

Each is `PATH` or `NAME=PATH`; a name becomes the prefix `NAME_` of its columns. All that read tokens have to read the
same ones: one tokenizer cuts the windows for all of them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.models import hf
from qurating_jax.models.config import ComputeConfig
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring import likelihood, rater
from qurating_jax.scoring.annotator import LOG_LIKELIHOOD, Annotator, Layout
from qurating_jax.scoring.likelihood import LanguageModel
from qurating_jax.scoring.rater import Rater, RaterInfo
from qurating_jax.scoring.windows import WORD_TOKENIZER

if TYPE_CHECKING:
    from jax.sharding import Mesh

_NAMED = re.compile(r"([A-Za-z]\w*)=(.+)", re.DOTALL)
_UNNAMED_LABEL = re.compile(r"LABEL_\d+")  # what `transformers` calls a score that nobody named
_FILES = (".json", ".safetensors")


@dataclass(frozen=True)
class ModelSet:
    """What is known of the models before their weights are read.

    Attributes:
        raters: by prefix of their columns.
        language_models: directory on this machine, by prefix.
        tokenizer: identity of what cuts the windows.
        tokenizer_path: where it is loaded from; None: windows are cut by words.
        given_tokenizer: where the models' own directories have none.
    """

    raters: Mapping[str, RaterInfo]
    language_models: Mapping[str, str]
    tokenizer: str
    tokenizer_path: str | None
    given_tokenizer: str | None

    def ratings(self) -> list[str]:
        """What documents are rated on: criteria and log-likelihoods, with the models' prefixes."""
        criteria = [name + criterion for name, info in self.raters.items() for criterion in info.criteria]
        return criteria + [name + LOG_LIKELIHOOD for name in self.language_models]

    @property
    def reads_texts(self) -> bool:
        """True where a model needs more of a window than its tokens."""
        return any(info.reads_texts for info in self.raters.values())

    def digests(self) -> dict[str, Any]:
        """What identifies every model, the tokenizer, and the order of the columns, for a manifest."""
        directories = {name: info.directory for name, info in self.raters.items()}
        return {
            "ratings": self.ratings(),
            "raters": _digests(directories),
            "language_models": _digests(self.language_models),
            "tokenizer": self.tokenizer,
        }

    def load(
        self,
        layout: Layout,
        *,
        mesh: "Mesh",
        compute: ComputeConfig,
        window_tokens: int,
        max_windows: int | None,
        batch_tokens: int | None,
    ) -> Annotator:
        """All models on their devices; arguments as of `Rater.load`."""
        raters = {
            name: Rater.load(
                info.directory,
                criteria=info.criteria,
                tokenizer=self.given_tokenizer,
                mesh=mesh,
                compute=compute,
                window_tokens=window_tokens,
                batch_tokens=batch_tokens,
            )
            for name, info in self.raters.items()
        }
        language_models = {
            name: LanguageModel.load(
                directory, mesh, compute=compute, context_tokens=window_tokens, batch_tokens=batch_tokens
            )
            for name, directory in self.language_models.items()
        }
        return Annotator(
            {name: rater.model for name, rater in raters.items()},
            language_models,
            None if self.tokenizer_path is None else load_tokenizer(self.tokenizer_path),
            window_tokens,
            max_windows,
            layout,
        )


def find_models(
    raters: Sequence[str],
    language_models: Sequence[str],
    *,
    revision: str | None,
    criteria: Sequence[str],
    tokenizer: str | None,
    window_tokens: int,
) -> ModelSet:
    """Finds the models and checks that they can go through one pass.

    Args:
        raters: directories or hub ids of raters, or outputs of the stages that make them; with or without a name.
        language_models: the same of language models.
        revision: of a hub id.
        criteria: names of the scores of a single rater; empty: its own.
        tokenizer: where the models' directories have none.
        window_tokens: longest window.

    Raises:
        UserError: no such model, one made for shorter texts, scores without names, two models of one name or with
            the same columns, or tokenizers that differ.
    """
    if criteria and len(raters) != 1:
        raise UserError(f"--criteria names the scores of one rater, and {len(raters)} are given; name them one by one")
    found_raters, cutters = {}, {}
    for prefix, path in _by_prefix(raters, "--rater").items():
        info = rater.inspect(
            manifest.exported(path, *manifest.RATER_STAGES),
            revision=revision,
            criteria=criteria,
            tokenizer=tokenizer,
            window_tokens=window_tokens,
        )
        if not criteria and any(_UNNAMED_LABEL.fullmatch(name) for name in info.criteria):
            raise UserError(
                f"{path}: its config does not name the {len(info.criteria)} scores ({', '.join(info.criteria)}); "
                "give their names in order with --criteria"
            )
        found_raters[prefix] = info
        if info.tokenizer != WORD_TOKENIZER:
            cutters[path] = (info.tokenizer, info.tokenizer_path)
    found_models = {}
    for prefix, path in _by_prefix(language_models, "--language_model").items():
        directory = hf.resolve(manifest.exported(path, "train-lm"), revision)
        found_models[prefix] = directory
        cutters[path] = (likelihood.check_tokenizer(directory, tokenizer, window_tokens), tokenizer or directory)
    if not found_raters and not found_models:
        raise UserError("nothing to rate with; give --rater or --language_model")
    identities = {identity for identity, _ in cutters.values()}
    if len(identities) > 1:
        raise UserError(
            f"{' and '.join(cutters)} have different tokenizers, so their windows differ; rate with one after the "
            "other, the second time with --write sidecar"
        )
    identity, place = next(iter(cutters.values()), (WORD_TOKENIZER, None))
    models = ModelSet(found_raters, found_models, identity, place, tokenizer)
    _require_own_columns(models)
    return models


def _by_prefix(given: Sequence[str], option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in given:
        named = None if storage.exists(entry) else _NAMED.fullmatch(entry)
        prefix, path = (f"{named[1]}_", named[2]) if named else ("", entry)
        if prefix in found:
            hint = f"two are called {prefix[:-1]}" if prefix else "two have no name"
            raise UserError(f"{option}: {hint}; give each as NAME=PATH, the name is the prefix of its columns")
        found[prefix] = path
    return found


def _require_own_columns(models: ModelSet) -> None:
    """A criterion may be called like another model's prefix and criterion together."""
    ratings = models.ratings()
    twice = sorted({name for name in ratings if ratings.count(name) > 1})
    if twice:
        raise UserError(f"two models would write the columns of {', '.join(twice)}; give them other names (NAME=PATH)")


def _digests(directories: Mapping[str, str]) -> dict[str, Any]:
    return {
        prefix.removesuffix("_") or "(unnamed)": manifest.input_digest([place], storage.expand([place], _FILES))
        for prefix, place in directories.items()
    }
