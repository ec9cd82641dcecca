"""The rater as a public object: texts in, one float32 score per criterion out, whatever kind of rater it is.

`Rater.load` looks at what a directory holds: `config.json` is a Hugging Face rater, `rater.json` one of our own kinds
(n-grams, or a weighted sum of other raters).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.method.windows import weighted_means
from qurating_jax.models import hf
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring import combined, neural, ngrams, rater_files
from qurating_jax.scoring.neural import NeuralModel
from qurating_jax.scoring.ngrams import NgramModel
from qurating_jax.scoring.windows import WORD_TOKENIZER, WindowModel, Windows, cut

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from qurating_jax.models.llama import Params


@dataclass(frozen=True)
class DocumentRatings:
    """Ratings of n documents on C criteria.

    Attributes:
        averages: float64 [n, C], token-weighted means over the windows; NaN for a document without tokens.
        scores: float32 [m, C] of the windows.
        windows: the m windows.
    """

    averages: np.ndarray
    scores: np.ndarray
    windows: Windows


@dataclass(frozen=True)
class RaterInfo:
    """What is known of a rater before its weights are read.

    Attributes:
        directory: where it is on this machine.
        criteria: names of its scores.
        tokenizer: identity of what its windows are cut by.
        tokenizer_path: where that is loaded from; None: words.
        reads_texts: whether it needs the windows' texts beside their tokens.
    """

    directory: str
    criteria: tuple[str, ...]
    tokenizer: str
    tokenizer_path: str | None
    reads_texts: bool


@dataclass(frozen=True, eq=False)
class Rater:
    """A rater on its devices: `Rater.load(directory).score(texts)`."""

    criteria: tuple[str, ...]
    window_tokens: int
    model: WindowModel

    @classmethod
    def load(
        cls,
        path_or_id: str,
        *,
        revision: str | None = None,
        criteria: Sequence[str] = (),
        tokenizer: str | None = None,
        mesh: "Mesh | None" = None,
        compute: ComputeConfig | None = None,
        window_tokens: int = 512,
        batch_tokens: int | None = None,
    ) -> "Rater":
        """Loads a rater of any kind from a directory or hub id.

        Args:
            path_or_id: the rater.
            revision: of a hub id.
            criteria: names of the scores, in order; by default those that the rater's files give.
            tokenizer: where a Hugging Face rater's directory has none.
            mesh: by default all devices as data replicas.
            compute: dtype of the trunk (norm and head are always float32).
            window_tokens: longest window.
            batch_tokens: tokens per batch on all devices together; None: what suits the devices.

        Raises:
            UserError: not a rater, or files that do not fit.
        """
        mesh, compute = mesh or make_mesh(MeshShape()), compute or ComputeConfig()
        load_neural = functools.partial(
            NeuralModel.load, mesh=mesh, compute=compute, window_tokens=window_tokens, batch_tokens=batch_tokens
        )
        model = _load(_find(path_or_id, revision), tokenizer, load_neural)
        return cls(_names(criteria, model.criteria), window_tokens, model)

    @classmethod
    def build(
        cls,
        params: "Params",
        config: DecoderConfig,
        criteria: Sequence[str],
        tokenizer: TextTokenizer,
        *,
        mesh: "Mesh",
        compute: ComputeConfig,
        window_tokens: int = 512,
        batch_tokens: int | None = None,
    ) -> "Rater":
        """A rater from parameters that are already on the mesh; arguments as of `load`."""
        model = NeuralModel.build(
            params, config, criteria, tokenizer,
            mesh=mesh, compute=compute, window_tokens=window_tokens, batch_tokens=batch_tokens,
        )  # fmt: skip
        return cls(model.criteria, window_tokens, model)

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Ratings of texts, the token-weighted means over their windows: float32 [n, C], NaN for a text without any."""
        return self.rate(texts).averages.astype(np.float32)

    def rate(self, texts: Sequence[str], on_done: Callable[[int], None] | None = None) -> DocumentRatings:
        """Ratings of texts with those of their windows.

        Args:
            texts: any texts; one without tokens has no rating.
            on_done: called with the number of texts done since its last call, by their share of the work (a batch
                mixes windows of many texts); the numbers add up to all of them.
        """
        windows = cut(texts, self.model.tokenizer, self.window_tokens, with_texts=self.model.reads_texts)
        advance = by_texts(on_done, len(texts))
        scores = self.model.score_windows(windows, advance)
        advance(1.0)
        averages = weighted_means(scores.astype(np.float64), windows.sizes, windows.documents, len(texts))
        return DocumentRatings(averages, scores, windows)


def inspect(
    path_or_id: str,
    *,
    revision: str | None = None,
    criteria: Sequence[str] = (),
    tokenizer: str | None = None,
    window_tokens: int = 512,
) -> RaterInfo:
    """Finds a rater and checks everything but its weights; arguments and errors as of `Rater.load`."""
    directory = _find(path_or_id, revision)
    info = _look(directory, tokenizer, window_tokens)
    return dataclasses.replace(info, criteria=_names(criteria, info.criteria))


def _find(path_or_id: str, revision: str | None) -> str:
    """The directory of a rater on this machine."""
    return path_or_id if rater_files.is_rater_file_in(path_or_id) else hf.resolve(path_or_id, revision)


def _names(given: Sequence[str], found: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the scores: the given ones, else the rater's (a published one may have only LABEL_0 ...)."""
    if given and (len(given) != len(found) or len(set(given)) != len(found)):
        raise UserError(f"--criteria must give {len(found)} different names; the rater's labels: {', '.join(found)}")
    return tuple(given) or found


def _load(directory: str, tokenizer: str | None, load_neural: Callable[..., NeuralModel]) -> WindowModel:
    kind = _kind(directory, tokenizer)
    if kind == ngrams.KIND:
        return NgramModel.load(directory)
    if kind == combined.KIND:
        return combined.combine(directory, lambda member: _load(member, None, load_neural))
    return load_neural(directory, tokenizer=tokenizer)


def _kind(directory: str, tokenizer: str | None) -> str | None:
    """The kind of our own rater in a directory; None for a Hugging Face rater, the only one that takes a tokenizer."""
    if not rater_files.is_rater_file_in(directory):
        return None
    kind = rater_files.read_kind(directory)
    if kind not in (ngrams.KIND, combined.KIND):
        raise UserError(f"{directory}: a rater of kind {kind!r}, which this version does not know")
    if tokenizer is not None:
        raise UserError(f"{directory}: a rater of kind {kind} takes no tokenizer; leave --tokenizer out")
    return kind


def _look(directory: str, tokenizer: str | None, window_tokens: int) -> RaterInfo:
    """What the rater in a directory is, with the names of the scores that its files give."""
    kind = _kind(directory, tokenizer)
    if kind is None:
        _, labels, text_tokenizer = neural.check(directory, tokenizer=tokenizer, window_tokens=window_tokens)
        return RaterInfo(directory, labels, text_tokenizer.identity, tokenizer or directory, False)
    if kind == ngrams.KIND:
        return RaterInfo(directory, ngrams.read_criteria(directory), WORD_TOKENIZER, None, True)
    file = combined.read(directory)
    members = [_look(member, None, window_tokens) for member in file.members]
    for member in members:
        combined.require_criteria(member.directory, member.criteria, file.criteria)
    cutter = next((member for member in members if member.tokenizer_path is not None), members[0])
    reads_texts = any(member.reads_texts or member.tokenizer != cutter.tokenizer for member in members)
    return RaterInfo(directory, file.criteria, cutter.tokenizer, cutter.tokenizer_path, reads_texts)


def by_texts(on_done: Callable[[int], None] | None, num_texts: int) -> Callable[[float], None]:
    """Turns shares of the work into whole texts; what rounding has left open is reported at the last call's end."""
    done_share, done_texts = 0.0, 0

    def advance(share: float) -> None:
        nonlocal done_share, done_texts
        done_share = min(done_share + share, 1.0)
        now = int(num_texts * done_share)
        if on_done is not None and now > done_texts:
            on_done(now - done_texts)
        done_texts = now

    return advance
