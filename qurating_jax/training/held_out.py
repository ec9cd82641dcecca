"""Losses on held-out rows during training, also domain by domain."""

import logging
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qurating_jax.data.batches import BatchBuilder
from qurating_jax.data.order import RowOrder
from qurating_jax.data.token_domains import token_domains
from qurating_jax.data.token_sets import DocumentAttention, TokenSets
from qurating_jax.models import heads
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.models.llama import Params
from qurating_jax.parallel.rules import num_batch_shards
from qurating_jax.runtime.errors import UserError

_DOMAINS = "domains"

log = logging.getLogger(__name__)


class HeldOut:
    """A fixed sample of validation rows, and a language model's loss on it.

    Every process reads the rows of its own devices; the sums are added on the mesh, so that all get the same numbers.

    Attributes:
        num_rows: rows of the sample.
        domains: names of the domains that the rows hold, those of most tokens first (see `data.token_domains`).
    """

    def __init__(
        self,
        sets: TokenSets,
        model: DecoderConfig,
        *,
        max_rows: int,
        batch_rows: int,
        seed: int,
        document_attention: DocumentAttention,
        compute: ComputeConfig,
        mesh: Mesh,
    ) -> None:
        """Draws the sample and reads the domains of its tokens, of which one byte each is held.

        Args:
            sets: of the split `validation`.
            model: the architecture.
            max_rows: most rows that are evaluated, at least 1; drawn from all sets alike.
            batch_rows: rows at a time, over all devices; rounded up to what divides over them.
            seed: of the sample.
            document_attention: as in training (see `TokenSets.fetcher`).
            compute: dtype, remat and scan settings.
            mesh: the device mesh.

        Raises:
            UserError: as of `token_domains`.
        """
        order = RowOrder(sets.num_rows, seed=seed, kind="shuffled")
        self.num_rows = min(max_rows, sum(sets.num_rows))
        numbers, rows = order.places(np.arange(self.num_rows))
        sort = np.lexsort((rows, numbers))  # neighbours lie in one chunk
        self._numbers, self._rows = numbers[sort], rows[sort]
        self.domains, self._domains = token_domains(sets, self._numbers, self._rows)
        self._fetch_places = sets.fetcher(document_attention)
        shards = num_batch_shards(mesh)
        self._batch_rows = -(-min(batch_rows, self.num_rows) // shards) * shards
        self._builder = BatchBuilder(self._fetch, shape=(1, self._batch_rows), mesh=mesh)
        self._mesh = mesh
        num_domains = len(self.domains)
        self._sums = jax.jit(
            lambda params, batch: _sums_by_domain(params, model, batch, num_domains, compute=compute),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        log.info("held-out losses: %d of %d rows, %d domain(s)", self.num_rows, sum(sets.num_rows), num_domains)

    def evaluate(self, params: Params) -> dict[str, float]:
        """The losses of a model in nats per predicted token; a collective where there are several processes.

        Args:
            params: on the mesh, in any sharding.

        Returns:
            `loss` (of all tokens), `loss/DOMAIN` of every domain of which a token is predicted, and `num_tokens`, how
            many are predicted in all.

        Raises:
            UserError: nothing is predicted, since every text is a single token.
        """
        with jax.set_mesh(self._mesh):
            num_batches = -(-self.num_rows // self._batch_rows)
            sums = [self._sums(params, batch) for batch in self._builder.batches(0, num_batches)]
        losses, counts = (
            np.sum([np.asarray(part, np.float64) for part in parts], axis=0) for parts in zip(*sums, strict=True)
        )
        if not counts.any():
            raise UserError("the validation rows hold no text of two tokens; there is nothing to predict")
        by_domain = {
            f"loss/{name}": float(loss / count)
            for name, loss, count in zip(self.domains, losses, counts, strict=True)
            if count
        }
        return {"loss": float(losses.sum() / counts.sum()), **by_domain, "num_tokens": float(counts.sum())}

    def _fetch(self, step: int, places: np.ndarray) -> Mapping[str, np.ndarray]:
        """Rows of the sample; behind its end empty ones, so that all batches have one shape."""
        wanted = step * self._batch_rows + places
        held = np.minimum(wanted, self.num_rows - 1)
        fetched = self._fetch_places(self._numbers[held], self._rows[held])
        arrays = {**fetched, _DOMAINS: self._domains[held].astype(np.int32)}
        exists = wanted < self.num_rows
        return {name: array * exists.reshape(-1, *[1] * (array.ndim - 1)) for name, array in arrays.items()}


def _sums_by_domain(
    params: Params, model: DecoderConfig, batch: dict[str, Array], num_domains: int, *, compute: ComputeConfig
) -> tuple[Array, Array]:
    """Summed losses float32 [domains] and predicted tokens int32 [domains] of a batch [1, M, ...]."""
    batch = {name: array[0] for name, array in batch.items()}
    domains_BT = batch.pop(_DOMAINS)[:, 1:]  # of the token that is predicted
    losses_BT, predicted_BT = heads.token_losses(params, model, batch, compute=compute)
    # Not a matrix product with one-hot domains, which accelerators round to bfloat16 or TF32.
    is_domain_BTN = predicted_BT[..., None] & (domains_BT[..., None] == jnp.arange(num_domains, dtype=jnp.int32))
    losses_N = jnp.sum(jnp.where(is_domain_BTN, losses_BT[..., None], 0.0), axis=(0, 1))
    return losses_N, jnp.sum(is_domain_BTN, axis=(0, 1), dtype=jnp.int32)
