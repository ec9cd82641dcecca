"""What every judge offers: verdicts on a group of texts in both presentation orders."""

from collections.abc import Sequence
from typing import Protocol

from numpy import float64
from numpy.typing import NDArray

from qurating_jax.judges.excerpts import Excerpt


class Judge(Protocol):
    """Compares texts. `name` says in every output what the verdicts are worth."""

    @property
    def name(self) -> str:
        """Who judged, as written into the verdicts."""

    @property
    def criteria(self) -> tuple[str, ...]:
        """Names of the criteria, in the order of the verdicts' last axis."""

    def compare(self, excerpts: Sequence[Excerpt]) -> NDArray[float64]:
        """Verdicts [k, k, C]: [i, j, c] = p(text j is preferred | i shown first, j second); NaN = none (i == j)."""
