"""The neural rater: a decoder with a score head on its devices, fed with token windows."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from numpy.typing import NDArray

from qurating_jax.data.tokenizer import TextTokenizer, load_tokenizer
from qurating_jax.method.windows import weighted_means, window_spans
from qurating_jax.models import heads, hf
from qurating_jax.models.base import require_positions
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.llama import Params
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.scorer import BatchScorer, ScoreFn
from qurating_jax.scoring.windows import OnShare, Windows


@dataclass(frozen=True, eq=False)
class NeuralModel:
    """A rater's parameters with its tokenizer and the longest window that they are applied to."""

    criteria: tuple[str, ...]
    tokenizer: TextTokenizer
    window_tokens: int
    _scorer: BatchScorer

    @classmethod
    def load(
        cls,
        directory: str,
        *,
        tokenizer: str | None,
        mesh: Mesh,
        compute: ComputeConfig,
        window_tokens: int,
        batch_tokens: int,
    ) -> "NeuralModel":
        """Loads a `...ForSequenceClassification` directory; arguments and errors as of `Rater.load`."""
        config, labels, text_tokenizer = check(directory, tokenizer=tokenizer, window_tokens=window_tokens)
        return cls.build(
            hf.load(directory, mesh, dtype=compute.dtype),
            config,
            labels,
            text_tokenizer,
            mesh=mesh,
            compute=compute,
            window_tokens=window_tokens,
            batch_tokens=batch_tokens,
        )

    @classmethod
    def build(
        cls,
        params: Params,
        config: DecoderConfig,
        criteria: Sequence[str],
        tokenizer: TextTokenizer,
        *,
        mesh: Mesh,
        compute: ComputeConfig,
        window_tokens: int,
        batch_tokens: int,
    ) -> "NeuralModel":
        """A rater from parameters that are already on the mesh."""
        score = _score_fn(config, compute)
        scorer = BatchScorer(score, params, mesh, max_tokens=window_tokens, batch_tokens=batch_tokens)
        return cls(tuple(criteria), tokenizer, window_tokens, scorer)

    @property
    def reads_texts(self) -> bool:
        """Tokens are enough (of windows that another tokenizer has cut, the text is read)."""
        return False

    def score_windows(self, windows: Windows, on_share: OnShare | None = None) -> NDArray[np.float32]:
        """Scores of windows: float32 [m, C].

        Windows of another tokenizer are tokenized anew, and their score is the token-weighted mean over windows of
        `window_tokens`; 0 where their text has no token here.
        """
        if windows.tokenizer == self.tokenizer.identity and windows.tokens is not None:
            return self.score_tokens(windows.tokens, on_share)
        if windows.texts is None:
            raise ValueError("windows of another tokenizer are scored by their texts")
        tokens = self.tokenizer.encode(windows.texts)
        owners, starts, sizes = window_spans(np.array([len(ids) for ids in tokens], np.int64), self.window_tokens)
        pieces = [tokens[d][s : s + n] for d, s, n in zip(owners, starts, sizes, strict=True)]
        scores = self.score_tokens(pieces, on_share).astype(np.float64)
        return np.nan_to_num(weighted_means(scores, sizes, owners, len(tokens))).astype(np.float32)

    def score_tokens(self, windows: Sequence[np.ndarray], on_share: OnShare | None = None) -> NDArray[np.float32]:
        """Scores of token windows (1 to `window_tokens` ids of this rater's tokenizer): float32 [n, C]."""
        total = sum(map(len, windows))
        on_done: Callable[[int], None] | None = None
        if on_share is not None:
            report = on_share
            on_done = lambda amount: report(amount / total)  # noqa: E731
        scores = self._scorer(windows, on_done)
        return scores if len(windows) else np.zeros((0, len(self.criteria)), np.float32)


def check(
    directory: str, *, tokenizer: str | None, window_tokens: int
) -> tuple[DecoderConfig, tuple[str, ...], TextTokenizer]:
    """What a rater's directory holds beside its weights: architecture, names of the scores, tokenizer.

    Raises:
        UserError: not a rater, made for shorter texts than the windows, or another tokenizer than it was trained with.
    """
    config, labels = hf.read_config(directory)
    if not labels:
        raise UserError(f"{directory}: a language model, not a rater (no ...ForSequenceClassification head)")
    require_positions(directory, config, window_tokens)
    text_tokenizer = load_tokenizer(tokenizer or directory)
    if text_tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{directory}: its tokenizer has {text_tokenizer.vocab_size} tokens, the model {config.vocab_size}; "
            "give the tokenizer that the rater was trained with"
        )
    return config, labels, text_tokenizer


@functools.cache
def _score_fn(config: DecoderConfig, compute: ComputeConfig) -> ScoreFn:
    """One function per architecture: members of an ensemble share what is compiled for it."""

    def score(params: object, tokens_BT: Array, lengths_B: Array) -> Array:
        mask_BT = jnp.arange(tokens_BT.shape[1])[None, :] < lengths_B[:, None]
        return heads.scores(params, config, tokens_BT, mask_BT, compute=compute)  # type: ignore[arg-type]

    return score
