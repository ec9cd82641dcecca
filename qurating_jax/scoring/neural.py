"""The neural rater: a decoder with a score head on its devices, fed with token windows."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jax import Array
from jax.sharding import Mesh
from numpy.typing import NDArray

from qurating_jax.data.tokenizer import TextTokenizer, has_tokenizer, load_tokenizer
from qurating_jax.method.windows import weighted_means
from qurating_jax.models import heads, hf
from qurating_jax.models.attention_kernels import accelerator
from qurating_jax.models.base import require_positions
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.flops import forward_flops
from qurating_jax.models.llama import Params
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.scorer import BatchScorer, ScoreFn, Work
from qurating_jax.scoring.shapes import Shapes, choose_shapes
from qurating_jax.scoring.windows import OnShare, Windows, cut

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class NeuralModel:
    """A rater's parameters with its tokenizer and the longest window that they are applied to."""

    criteria: tuple[str, ...]
    tokenizer: TextTokenizer
    window_tokens: int
    config: DecoderConfig
    compute: ComputeConfig
    scorer: BatchScorer

    @classmethod
    def load(
        cls,
        directory: str,
        *,
        tokenizer: str | None,
        mesh: Mesh,
        compute: ComputeConfig,
        window_tokens: int,
        batch_tokens: int | None,
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
        batch_tokens: int | None,
    ) -> "NeuralModel":
        """A rater from parameters that are already on the mesh."""
        scorer = BatchScorer(
            _score_fn(config, compute),
            params,
            mesh,
            shapes=Shapes.powers_of_two(window_tokens),
            batch_tokens=batch_tokens,
            flops=functools.partial(forward_flops, config),
        )
        return cls(tuple(criteria), tokenizer, window_tokens, config, compute, scorer)

    @property
    def reads_texts(self) -> bool:
        """Tokens are enough (of windows that another tokenizer has cut, the text is read)."""
        return False

    @property
    def work(self) -> Work:
        """What its devices have computed so far."""
        return self.scorer.work

    def suited_to(self, sizes: NDArray[np.int64], max_shapes: int) -> "NeuralModel":
        """The same model in the shapes of batches that windows of such sizes fill best."""
        shapes = suited_shapes(sizes, self.config, self.compute, max_tokens=self.window_tokens, max_shapes=max_shapes)
        return replace(self, scorer=self.scorer.with_shapes(shapes))

    def score_windows(self, windows: Windows, on_share: OnShare | None = None) -> NDArray[np.float32]:
        """Scores of windows: float32 [m, C].

        Windows of another tokenizer are tokenized anew, and their score is the token-weighted mean over windows of
        `window_tokens`; 0 where their text has no token here.
        """
        if windows.tokenizer == self.tokenizer.identity and windows.values is not None:
            return self.score_tokens(windows.values, windows.starts, windows.sizes, on_share)
        if windows.texts is None:
            raise ValueError("windows of another tokenizer are scored by their texts")
        own = cut(windows.texts, self.tokenizer, self.window_tokens, with_texts=False)
        scores = self.score_windows(own, on_share).astype(np.float64)
        return np.nan_to_num(weighted_means(scores, own.sizes, own.documents, own.num_documents)).astype(np.float32)

    def score_tokens(
        self,
        values: NDArray[np.int32],
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        on_share: OnShare | None = None,
    ) -> NDArray[np.float32]:
        """Scores of token windows (see `BatchScorer`; ids of this rater's tokenizer): float32 [m, C]."""
        scores = self.scorer(values, starts, sizes, by_share(on_share, sizes))
        return scores if len(sizes) else np.zeros((0, len(self.criteria)), np.float32)


def by_share(on_share: OnShare | None, sizes: NDArray[np.int64]) -> Callable[[int], None] | None:
    """Turns numbers of tokens into shares of all."""
    if on_share is None:
        return None
    report, total = on_share, int(sizes.sum())
    return lambda num_tokens: report(num_tokens / total)


def suited_shapes(
    sizes: NDArray[np.int64], config: DecoderConfig, compute: ComputeConfig, *, max_tokens: int, max_shapes: int
) -> Shapes:
    """The shapes that windows of such sizes fill best under this architecture and attention."""
    shapes = choose_shapes(
        sizes,
        max_tokens=max_tokens,
        max_shapes=max_shapes,
        can_pack=_shares_rows(compute),
        cost=functools.partial(forward_flops, config),
    )
    log.info("scoring: %s", shapes)
    return shapes


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
    require_positions(directory, config, window_tokens, option="--window_tokens")
    text_tokenizer = load_tokenizer(tokenizer or directory)
    if text_tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{directory}: its tokenizer has {text_tokenizer.vocab_size} tokens, the model {config.vocab_size}; "
            "give the tokenizer that the rater was trained with"
        )
    if (
        tokenizer is not None
        and has_tokenizer(directory)
        and load_tokenizer(directory).identity != text_tokenizer.identity
    ):
        raise UserError(
            f"{tokenizer}: not the tokenizer in {directory}, which its rater was trained with; leave it out"
        )
    return config, labels, text_tokenizer


def _shares_rows(compute: ComputeConfig) -> bool:
    """False where attention will be cuDNN's, which tells no windows of a row apart."""
    return accelerator().platform != "gpu" or compute.attention == "xla" or compute.dtype != "bfloat16"


@functools.cache
def _score_fn(config: DecoderConfig, compute: ComputeConfig) -> ScoreFn:
    """One function per architecture: members of an ensemble share what is compiled for it."""

    def score(params: Params, tokens_BT: Array, lengths_BR: Array) -> Array:
        return heads.window_scores(params, config, tokens_BT, lengths_BR, compute=compute)

    return score
