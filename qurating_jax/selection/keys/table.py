"""What a selection decides by: a few numbers per document, in parts that are memory-mapped or read one at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class KeyBlock:
    """The documents of a part, n rows in input order.

    Attributes:
        hashes: uint64 [n], `gumbel.hash_ids` of the ids.
        tokens: int32 [n]; 0 where the document cannot be selected: it is empty, or it stands elsewhere as well.
        domains: int32 [n], numbers into the table's `domain_names`; None where there is one pool.
        scores: float32 or float64 [n] by name, NaN where the document has none.
    """

    hashes: NDArray[np.uint64]
    tokens: NDArray[np.int32]
    domains: NDArray[np.int32] | None
    scores: Mapping[str, NDArray[np.floating]]

    def __len__(self) -> int:
        return len(self.hashes)

    def rows(self, start: int, stop: int) -> "KeyBlock":
        """A view of consecutive rows."""
        return KeyBlock(
            self.hashes[start:stop],
            self.tokens[start:stop],
            None if self.domains is None else self.domains[start:stop],
            {name: values[start:stop] for name, values in self.scores.items()},
        )

    def take(self, rows: NDArray[np.integer]) -> "KeyBlock":
        """A copy of some rows, in the order given."""
        return KeyBlock(
            self.hashes[rows],
            self.tokens[rows],
            None if self.domains is None else self.domains[rows],
            {name: values[rows] for name, values in self.scores.items()},
        )


def concatenate(blocks: Sequence[KeyBlock]) -> KeyBlock:
    """Blocks of one table behind one another, at least one."""
    domains = [block.domains for block in blocks if block.domains is not None]
    return KeyBlock(
        np.concatenate([block.hashes for block in blocks]),
        np.concatenate([block.tokens for block in blocks]),
        np.concatenate(domains) if domains else None,
        {name: np.concatenate([block.scores[name] for block in blocks]) for name in blocks[0].scores},
    )


class KeyTable(Protocol):
    """All documents of an input, part by part."""

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains in ascending order; one empty name where there is one pool."""

    @property
    def can_be_sent(self) -> bool:
        """True where the documents lie in files, so that the table can be sent to another process at little cost."""

    def __len__(self) -> int:
        """Number of parts."""

    def num_rows(self, number: int) -> int:
        """Documents of a part, known without opening it."""

    def block(self, number: int) -> KeyBlock:
        """The documents of a part; may be called from several threads."""


class ListTable:
    """A key table in memory."""

    can_be_sent = False

    def __init__(self, blocks: Sequence[KeyBlock], domain_names: tuple[str, ...] = ("",)) -> None:
        self.domain_names = domain_names
        self._blocks = list(blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def num_rows(self, number: int) -> int:
        """Documents of a part."""
        return len(self._blocks[number])

    def block(self, number: int) -> KeyBlock:
        """The documents of a part."""
        return self._blocks[number]


@dataclass(frozen=True)
class Order:
    """A decreasing order of documents by key = scale * score + shift + noise; equal keys by ascending id hash.

    Attributes:
        score: name of the score; empty: none is read, the key is the noise alone.
        scale: factor of the score, 1/(standard deviation * temperature) for a sample; negative for the inverse.
        shift: what is added.
        stream: `gumbel.noise_stream` of the noise; None: no noise, the order of the scores.
    """

    score: str
    scale: float = 1.0
    shift: float = 0.0
    stream: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes back, to the bit."""
        return {"score": self.score, "scale": self.scale.hex(), "shift": self.shift.hex(), "stream": self.stream}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Order":
        """The order of `to_json`; `KeyError`, `TypeError` or `ValueError` where it is something else."""
        stream = value["stream"]
        return cls(
            str(value["score"]),
            float.fromhex(value["scale"]),
            float.fromhex(value["shift"]),
            None if stream is None else int(stream),
        )


@dataclass(frozen=True, eq=False)
class Cuts:
    """Where a selection ends in every domain, D of them.

    A document is selected where its key is greater than that of its domain's cut, or equal with a hash not above it.

    Attributes:
        keys: float64 [D], the key of the domain's last selected document; +inf where none is selected.
        hashes: uint64 [D], the hash of that document's id.
    """

    keys: NDArray[np.float64]
    hashes: NDArray[np.uint64]

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes back, to the bit."""
        return {"keys": [float(key).hex() for key in self.keys], "hashes": [int(value) for value in self.hashes]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Cuts":
        """The cuts of `to_json`; `KeyError`, `TypeError` or `ValueError` where it is something else."""
        keys = np.array([float.fromhex(text) for text in value["keys"]], np.float64)
        hashes = np.array(value["hashes"], np.uint64)
        if keys.shape != hashes.shape or keys.ndim != 1:
            raise ValueError("as many keys as hashes")
        return cls(keys, hashes)
