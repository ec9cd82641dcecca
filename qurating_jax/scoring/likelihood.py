"""Log-likelihood of documents under a language model, with every token's treatment stated.

A document goes through the model in windows of the context length; consecutive windows share one token, so that every
token but the document's first is predicted exactly once. The first token has nothing before it: it is neither
predicted nor counted, and its bytes are left out of bits per byte.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qurating_jax.models import heads, hf
from qurating_jax.models.base import require_positions
from qurating_jax.models.config import ComputeConfig
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.scorer import BatchScorer


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A language model on its devices, as a likelihood function of token ids."""

    vocab_size: int
    context_tokens: int
    _scorer: BatchScorer

    @classmethod
    def load(
        cls,
        path_or_id: str,
        mesh: Mesh,
        *,
        revision: str | None = None,
        compute: ComputeConfig,
        context_tokens: int | None = None,
        batch_tokens: int = 16_384,
    ) -> "LanguageModel":
        """Loads a `...ForCausalLM` directory or hub id; `context_tokens` defaults to its longest sequence.

        Raises:
            UserError: a rater, or a context longer than the model's.
        """
        directory = hf.resolve(path_or_id, revision)
        config, labels = hf.read_config(directory)
        if labels:
            raise UserError(f"{path_or_id}: a rater, not a language model")
        context_tokens = context_tokens or config.max_positions
        require_positions(path_or_id, config, context_tokens)
        params = hf.load(directory, mesh, dtype=compute.dtype)

        def total(params: object, tokens_BT: Array, lengths_B: Array) -> Array:
            index_T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
            segment_ids = (index_T[None, :] < lengths_B[:, None]).astype(jnp.int32)
            positions = jnp.broadcast_to(index_T, tokens_BT.shape)
            losses, _ = heads.token_losses(params, config, tokens_BT, segment_ids, positions, compute=compute)  # type: ignore[arg-type]
            return jnp.sum(losses, axis=1, keepdims=True)

        scorer = BatchScorer(total, params, mesh, max_tokens=context_tokens, batch_tokens=batch_tokens)
        return cls(config.vocab_size, context_tokens, scorer)

    def negative_log_likelihoods(
        self, documents: Sequence[np.ndarray], on_done: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Summed negative log-likelihood of each document.

        Args:
            documents: int32 token ids.
            on_done: called with the tokens of every finished batch.

        Returns:
            float64 [n] in nats, and int64 [n], the number of predicted tokens (its length less one, at least 0).
        """
        windows, owners = [], []
        for number, tokens in enumerate(documents):
            for start in range(0, len(tokens) - 1, self.context_tokens - 1):
                windows.append(tokens[start : start + self.context_tokens])
                owners.append(number)
        losses = self._scorer(windows, on_done)
        weights = losses[:, 0].astype(np.float64) if windows else None
        totals = np.bincount(np.array(owners, np.int64), weights=weights, minlength=len(documents))
        return totals.astype(np.float64), np.array([max(len(tokens) - 1, 0) for tokens in documents], np.int64)
