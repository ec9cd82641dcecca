"""Log-likelihood of documents under a language model, with every token's treatment stated.

A document's first token has nothing before it: it is neither predicted nor counted, and its bytes are left out of bits
per byte. Every other token is predicted exactly once, from the tokens before it that the model is shown.

- `log_likelihoods` goes by given windows, as a rater sees them: a token is predicted from the tokens of its own window
  and the one token before the window.
- `negative_log_likelihoods` shows the model as much as it can read at once: a document goes through in windows of the
  context length (see `method.perplexity.strided_spans`). With the stride C - 1 consecutive ones share one token and
  a token is predicted from 1 to C - 1 tokens; with a smaller stride S from C - S at least, at (C - 1) / S times the
  cost.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

import numpy as np
from jax import Array
from jax.sharding import Mesh
from numpy.typing import NDArray

from qurating_jax.data.tokenizer import TextTokenizer, has_tokenizer, load_tokenizer
from qurating_jax.method.perplexity import strided_spans
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

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile("<0x[0-9A-F]{2}>")


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
        return cls.build(
            hf.load(directory, mesh, dtype=compute.dtype),
            config,
            mesh,
            compute=compute,
            context_tokens=context_tokens or config.max_positions,
            batch_tokens=batch_tokens,
        )

    @classmethod
    def build(
        cls,
        params: Params,
        config: DecoderConfig,
        mesh: Mesh,
        *,
        compute: ComputeConfig,
        context_tokens: int,
        batch_tokens: int | None,
    ) -> "LanguageModel":
        """A language model from parameters that are already on the mesh."""
        scorer = BatchScorer(
            _loss_fn(config, compute),
            params,
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
        self,
        values: NDArray[np.int32],
        offsets: NDArray[np.int64],
        *,
        stride_tokens: int | None = None,
        on_done: Callable[[int], None] | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Summed negative log-likelihood of each document.

        Args:
            values: int32 [N], token ids of all documents end to end.
            offsets: int64 [n + 1], where each document begins and the last one ends.
            stride_tokens: how far a window is from the one before, 1 to `context_tokens` - 1; None: the latter.
            on_done: called with the tokens of every finished batch, `num_read` in all.

        Returns:
            float64 [n] in nats, and int64 [n], the number of predicted tokens (its length less one, at least 0).
        """
        predicted = np.maximum(np.diff(offsets) - 1, 0).astype(np.int64)
        owners, starts, sizes, context = self._spans(predicted, stride_tokens)
        if not len(sizes):
            return np.zeros(len(predicted)), predicted
        losses = self.scorer(values, offsets[owners] + 1 + starts, sizes, on_done, context)
        totals = np.zeros(len(predicted))
        np.add.at(totals, owners, losses[:, 0].astype(np.float64))
        return totals, predicted

    def window_sizes(self, predicted: NDArray[np.int64], stride_tokens: int | None = None) -> NDArray[np.int64]:
        """int64 [m], tokens that the windows of documents read, of so many predicted tokens (int64 [n])."""
        return self._spans(predicted, stride_tokens)[2]

    def _spans(self, predicted: NDArray[np.int64], stride_tokens: int | None) -> tuple[NDArray[np.int64], ...]:
        # Of the tokens that a window shows all but the first are predicted, so it reads one less than it shows.
        longest = self.context_tokens - 1
        return strided_spans(predicted, longest, stride_tokens or longest)


def check(directory: str, context_tokens: int | None, *, option: str = "--context_tokens") -> DecoderConfig:
    """The architecture of the language model in a directory; `option` is how its user gives the context.

    Raises:
        UserError: a rater, or a context longer than the model's.
    """
    config, labels = hf.read_config(directory)
    if labels:
        raise UserError(f"{directory}: a rater, not a language model")
    require_positions(directory, config, context_tokens or config.max_positions, option=option)
    return config


def check_tokenizer(directory: str, tokenizer: str | None, window_tokens: int) -> str:
    """The identity of a language model's tokenizer; `tokenizer` is where the directory has none.

    Raises:
        UserError: as of `check`, or a tokenizer of more tokens than the model knows.
    """
    config = check(directory, window_tokens, option="--window_tokens")
    found = load_tokenizer(tokenizer or directory)
    require_vocabulary(directory, config, found)
    if tokenizer is not None and has_tokenizer(directory) and load_tokenizer(directory).identity != found.identity:
        raise UserError(
            f"{tokenizer}: not the tokenizer in {directory}, which its model was trained with; leave it out"
        )
    return found.identity


def require_vocabulary(where: str, config: DecoderConfig, tokenizer: TextTokenizer) -> None:
    """Refuses a tokenizer of more tokens than the model knows (`UserError`); `where` names the model."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{where}: its tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}; give the "
            "tokenizer that the model was trained with"
        )


def predicted_bytes(text: str, tokens: NDArray[np.int32], tokenizer: TextTokenizer) -> int:
    """UTF-8 bytes of a text less those of its first token, which is given and not predicted.

    At least 1 where something is predicted: a normalizer may make a first token longer than its text.
    """
    if len(tokens) < 2:
        return 0
    first = tokenizer.decode(tokens[:1])
    size = len(first.encode())
    name = tokenizer.backend.id_to_token(int(tokens[0])) or ""
    if _REPLACEMENT in first and _REPLACEMENT not in name:  # it ends inside a character
        # Byte fallback writes a byte as <0xF0>; byte-level BPE writes every byte as one character.
        size = 1 if _BYTE.fullmatch(name) else len(name)
    return max(len(text.encode()) - size, 1)


@functools.cache
def _loss_fn(config: DecoderConfig, compute: ComputeConfig) -> ScoreFn:
    def losses(
        params: Params, tokens_BT: Array, targets_BT: Array, lengths_BR: Array, context_BR: Array | None = None
    ) -> Array:
        losses_BR = heads.window_losses(params, config, tokens_BT, targets_BT, lengths_BR, context_BR, compute=compute)
        return losses_BR[..., None]

    return losses
