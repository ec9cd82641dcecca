"""The rater as a public object: texts or token windows in, one float32 score per criterion out."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qurating_jax.data.tokenizer import TextTokenizer, load_tokenizer
from qurating_jax.method.windows import weighted_means, window_spans
from qurating_jax.models import heads, hf
from qurating_jax.models.base import require_positions
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.llama import Params
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.scorer import BatchScorer


@dataclasses.dataclass(frozen=True)
class DocumentRatings:
    """Ratings of n documents on C criteria.

    Attributes:
        averages: float64 [n, C]; NaN for an empty document.
        chunks: per document, float32 [windows, C].
        chunk_lengths: per document, int32 [windows].
    """

    averages: np.ndarray
    chunks: list[np.ndarray]
    chunk_lengths: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rater:
    """A rater on its devices: `Rater.load(directory).rate(texts)`."""

    criteria: tuple[str, ...]
    tokenizer: TextTokenizer
    window_tokens: int
    _scorer: BatchScorer

    @classmethod
    def load(
        cls,
        path_or_id: str,
        *,
        revision: str | None = None,
        criteria: Sequence[str] = (),
        tokenizer: str | None = None,
        mesh: Mesh | None = None,
        compute: ComputeConfig | None = None,
        window_tokens: int = 512,
        batch_tokens: int = 32_768,
    ) -> "Rater":
        """Loads a `...ForSequenceClassification` directory or hub id.

        Args:
            path_or_id: the rater.
            revision: of a hub id.
            criteria: names of the scores, in order; by default the labels in its config.
            tokenizer: where its directory has none.
            mesh: by default all devices as data replicas.
            compute: dtype of the trunk (norm and head are always float32).
            window_tokens: longest window.
            batch_tokens: tokens per batch on all devices together.

        Raises:
            UserError: not a rater, or files that do not fit.
        """
        directory = hf.resolve(path_or_id, revision)
        config, labels = hf.read_config(directory)
        if not labels:
            raise UserError(f"{path_or_id}: a language model, not a rater (no ...ForSequenceClassification head)")
        require_positions(path_or_id, config, window_tokens)
        text_tokenizer = load_tokenizer(tokenizer or directory)
        if text_tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{path_or_id}: its tokenizer has {text_tokenizer.vocab_size} tokens, the model {config.vocab_size}; "
                "give the tokenizer that the rater was trained with"
            )
        compute = compute or ComputeConfig()
        mesh = mesh or make_mesh(MeshShape())
        return cls.build(
            hf.load(directory, mesh, dtype=compute.dtype),
            config,
            criteria or labels,
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
        window_tokens: int = 512,
        batch_tokens: int = 32_768,
    ) -> "Rater":
        """A rater from parameters that are already on the mesh; arguments as of `load`."""

        def score(params: object, tokens_BT: Array, lengths_B: Array) -> Array:
            mask_BT = jnp.arange(tokens_BT.shape[1])[None, :] < lengths_B[:, None]
            return heads.scores(params, config, tokens_BT, mask_BT, compute=compute)  # type: ignore[arg-type]

        scorer = BatchScorer(score, params, mesh, max_tokens=window_tokens, batch_tokens=batch_tokens)
        return cls(tuple(criteria), tokenizer, window_tokens, scorer)

    def score_windows(self, windows: Sequence[np.ndarray], on_done: Callable[[int], None] | None = None) -> np.ndarray:
        """Scores of token windows (1 to `window_tokens` ids of this rater's tokenizer): float32 [n, C]."""
        scores = self._scorer(windows, on_done)
        return scores if len(windows) else np.zeros((0, len(self.criteria)), np.float32)

    def rate_tokens(
        self, documents: Sequence[np.ndarray], on_done: Callable[[int], None] | None = None
    ) -> DocumentRatings:
        """Ratings of tokenized documents: every window of at most `window_tokens`, then the token-weighted mean."""
        lengths = np.array([len(tokens) for tokens in documents], np.int64)
        owner, starts, sizes = window_spans(lengths, self.window_tokens)
        windows = [documents[d][s : s + n] for d, s, n in zip(owner, starts, sizes, strict=True)]
        scores = self.score_windows(windows, on_done)
        cuts = np.searchsorted(owner, np.arange(1, len(documents)))
        return DocumentRatings(
            averages=weighted_means(scores.astype(np.float64), sizes, owner, len(documents)),
            chunks=np.split(scores, cuts) if len(documents) else [],
            chunk_lengths=np.split(sizes.astype(np.int32), cuts) if len(documents) else [],
        )

    def rate(self, texts: Sequence[str]) -> DocumentRatings:
        """Ratings of texts."""
        return self.rate_tokens(self.tokenizer.encode(texts))
