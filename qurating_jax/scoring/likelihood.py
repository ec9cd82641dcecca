"""Log-likelihood of documents under a language model, with every token's treatment stated.

A document's first token has nothing before it: it is neither predicted nor counted, and its bytes are left out of bits
per byte. Every other token is predicted exactly once, from the tokens before it that the model is shown.

- `log_likelihoods` goes by given windows, as a rater sees them: a token is predicted from the tokens of its own window
  and the one token before the window.
- `negative_log_likelihoods` shows the model as much as it can read at once: a document goes through in pieces of the
  context length, of which consecutive ones share one token.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jax import Array
from jax.sharding import Mesh
from numpy.typing import NDArray

from qurating_jax.data.tokenizer import TextTokenizer, has_tokenizer, load_tokenizer
from qurating_jax.method.windows import window_spans
from qurating_jax.models import heads, hf
from qurating_jax.models.base import require_positions
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.flops import forward_flops
from qurating_jax.models.llama import Params
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.neural import by_share, suited_shapes
from qurating_jax.scoring.scorer import BatchScorer, ScoreFn, Work
from qurating_jax.scoring.shapes import Shapes
from qurating_jax.scoring.windows import OnShare, Windows


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A language model on its devices, as a likelihood function of token ids."""

    config: DecoderConfig
    compute: ComputeConfig
    context_tokens: int
    scorer: BatchScorer

    @classmethod
    def load(
        cls,
        path_or_id: str,
        mesh: Mesh,
        *,
        revision: str | None = None,
        compute: ComputeConfig,
        context_tokens: int | None = None,
        batch_tokens: int | None = None,
    ) -> "LanguageModel":
        """Loads a `...ForCausalLM` directory or hub id; `context_tokens` defaults to its longest sequence.

        Raises:
            UserError: a rater, or a context longer than the model's.
        """
        directory = hf.resolve(path_or_id, revision)
        config = check(directory, context_tokens)
        context_tokens = context_tokens or config.max_positions
        scorer = BatchScorer(
            _loss_fn(config, compute),
            hf.load(directory, mesh, dtype=compute.dtype),
            mesh,
            shapes=Shapes.powers_of_two(context_tokens),
            batch_tokens=batch_tokens,
            flops=functools.partial(forward_flops, config),
            offsets=(-1, 0),
        )
        return cls(config, compute, context_tokens, scorer)

    @property
    def work(self) -> Work:
        """What its devices have computed so far."""
        return self.scorer.work

    def suited_to(self, sizes: NDArray[np.int64], max_shapes: int) -> "LanguageModel":
        """The same model in the shapes of batches that windows of such sizes fill best."""
        shapes = suited_shapes(sizes, self.config, self.compute, max_tokens=self.context_tokens, max_shapes=max_shapes)
        return dataclasses.replace(self, scorer=self.scorer.with_shapes(shapes))

    def log_likelihoods(
        self, windows: Windows, on_share: OnShare | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Summed log-likelihood of windows of token ids, of up to `context_tokens` each.

        Returns:
            float64 [m] in nats (0 or negative), and int64 [m], how many tokens of the window were predicted: all, but
            for a document's first token.
        """
        if windows.values is None:
            raise ValueError("a language model reads tokens, not words")
        opens = windows.starts == windows.offsets[windows.documents]
        starts, sizes = windows.starts + opens, windows.sizes - opens
        totals = np.zeros(len(windows))
        some = np.flatnonzero(sizes)
        if len(some):
            losses = self.scorer(windows.values, starts[some], sizes[some], by_share(on_share, sizes))
            totals[some] = -losses[:, 0].astype(np.float64)
        return totals, sizes

    def negative_log_likelihoods(
        self, documents: Sequence[np.ndarray], on_done: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Summed negative log-likelihood of each document.

        Args:
            documents: int32 token ids.
            on_done: called with the predicted tokens of every finished batch.

        Returns:
            float64 [n] in nats, and int64 [n], the number of predicted tokens (its length less one, at least 0).
        """
        lengths = np.array([len(tokens) for tokens in documents], np.int64)
        predicted = np.maximum(lengths - 1, 0)
        # Of a piece's tokens all but the first are predicted.
        owners, starts, sizes = window_spans(predicted, self.context_tokens - 1)
        if not len(sizes):
            return np.zeros(len(documents)), predicted
        starts += (np.cumsum(lengths) - lengths)[owners] + 1
        losses = self.scorer(np.concatenate(documents).astype(np.int32), starts, sizes, on_done)
        totals = np.bincount(owners, weights=losses[:, 0].astype(np.float64), minlength=len(documents))
        return totals, predicted


def check(directory: str, context_tokens: int | None) -> DecoderConfig:
    """The architecture of the language model in a directory.

    Raises:
        UserError: a rater, or a context longer than the model's.
    """
    config, labels = hf.read_config(directory)
    if labels:
        raise UserError(f"{directory}: a rater, not a language model")
    require_positions(directory, config, context_tokens or config.max_positions)
    return config


def check_tokenizer(directory: str, tokenizer: str | None, context_tokens: int) -> str:
    """The identity of a language model's tokenizer; `tokenizer` is where the directory has none.

    Raises:
        UserError: as of `check`, or a tokenizer of more tokens than the model knows.
    """
    config = check(directory, context_tokens)
    found = load_tokenizer(tokenizer or directory)
    if found.vocab_size > config.vocab_size:
        raise UserError(
            f"{directory}: its tokenizer has {found.vocab_size} tokens, the model {config.vocab_size}; give the "
            "tokenizer that the model was trained with"
        )
    if tokenizer is not None and has_tokenizer(directory) and load_tokenizer(directory).identity != found.identity:
        raise UserError(
            f"{tokenizer}: not the tokenizer in {directory}, which its model was trained with; leave it out"
        )
    return found.identity


def predicted_bytes(text: str, tokens: NDArray[np.int32], tokenizer: TextTokenizer) -> int:
    """UTF-8 bytes of a text less those of its first token, which is given and not predicted.

    A first token that ends inside a character decodes to a replacement sign: then it is off by at most two bytes.
    """
    return len(text.encode()) - len(tokenizer.decode(tokens[:1]).encode()) if len(tokens) > 1 else 0


@functools.cache
def _loss_fn(config: DecoderConfig, compute: ComputeConfig) -> ScoreFn:
    def losses(params: Params, tokens_BT: Array, targets_BT: Array, lengths_BR: Array) -> Array:
        return heads.window_losses(params, config, tokens_BT, targets_BT, lengths_BR, compute=compute)[..., None]

    return losses
