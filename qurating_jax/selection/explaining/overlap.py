"""What selections have in common, document by document, from their id lists alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.copying.id_list import RANK, id_list_path
from qurating_jax.selection.explaining.tallies import Picks
from qurating_jax.selection.keys.passes import over
from qurating_jax.selection.keys.scan import hash_texts
from qurating_jax.selection.keys.table import KeyBlock, KeyTable

_ROWS = 1 << 16  # worked on at a time
_MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Chosen:
    """The documents of a selection, n of them, at 12 bytes each.

    Attributes:
        name: of the selection.
        hashes: uint64 [n], of the ids, strictly ascending.
        tokens: int32 [n].
    """

    name: str
    hashes: NDArray[np.uint64]
    tokens: NDArray[np.int32]

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.tokens.sum(dtype=np.int64))


@dataclass(frozen=True)
class Common:
    """What two selections share: documents, and tokens (the fewer where the lists count a document differently)."""

    documents: int
    tokens: int


def chosen_by(table: KeyTable, picks: Picks, *, name: str, workers: int = 1) -> Chosen:
    """The documents of a decision; a pass over the key table."""
    found = list(over(table, partial(_hashes_and_tokens, picks), workers))
    return _ordered(name, [hashes for hashes, _ in found], [tokens for _, tokens in found])


def _hashes_and_tokens(picks: Picks, piece: KeyBlock) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    picked = picks.pick(piece)
    return picked.hashes, picked.tokens


def read_chosen(place: str, *, name: str) -> Chosen:
    """The documents of a finished selection, given by its directory or its `ids.parquet`.

    Raises:
        UserError: there is no finished selection; the file is no list of documents with their tokens, or names one
            twice.
    """
    path = id_list_path(place)
    hashes, tokens = [], []
    with storage.open_read(path) as stream:
        try:
            file = pq.ParquetFile(stream)
            if RANK not in file.schema_arrow.names:  # the list holds other documents than the selected ones
                raise ValueError(f"no column `{RANK}`")
            for batch in file.iter_batches(batch_size=_ROWS, columns=["id", "tokens"]):
                hashes.append(hash_texts(batch["id"]))
                tokens.append(_checked_tokens(batch["tokens"]))
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: not an id list of `qurating select` ({reason}); run that command again") from None
    found = _ordered(name, hashes, tokens)
    if (found.hashes[1:] == found.hashes[:-1]).any():
        raise UserError(f"{path}: names a document twice; run `qurating select` again")
    return found


def common(one: Chosen, other: Chosen) -> Common:
    """What two selections share."""
    few, many = (one, other) if len(one.hashes) <= len(other.hashes) else (other, one)
    documents = tokens = 0
    for start in range(0, len(few.hashes) if len(many.hashes) else 0, _ROWS):
        hashes = few.hashes[start : start + _ROWS]
        places = np.minimum(np.searchsorted(many.hashes, hashes), len(many.hashes) - 1)
        both = many.hashes[places] == hashes
        documents += int(both.sum())
        counts = np.minimum(few.tokens[start : start + _ROWS][both], many.tokens[places[both]])
        tokens += int(counts.sum(dtype=np.int64))
    return Common(documents, tokens)


def jaccard(one: Chosen, other: Chosen) -> float | None:
    """Documents in common as a share of those in either; None where there are none."""
    return _jaccard(common(one, other).documents, len(one.hashes), len(other.hashes))


def compare(ours: Chosen, others: Sequence[Chosen]) -> dict[str, Any]:
    """The overlap of a selection with others, and of all of them with each other.

    The Jaccard index is the size of the intersection over that of the union.

    Returns:
        Plain values for JSON. `with`: one row per other selection, shares in tokens unless they are named otherwise.
        `names`, and `documents`, `jaccard_documents` and `jaccard_tokens`, tables with a row and a column for each.
    """
    every = (ours, *others)
    shared = [[common(one, other) for other in every[: number + 1]] for number, one in enumerate(every)]
    square = [[shared[max(i, j)][min(i, j)] for j in range(len(every))] for i in range(len(every))]
    rows = []
    for number, other in enumerate(others, 1):
        both = square[0][number]
        rows.append(
            {
                "selection": other.name,
                "num_documents": len(other.hashes),
                "num_tokens": other.num_tokens,
                "common_documents": both.documents,
                "common_tokens": both.tokens,
                "jaccard_documents": _jaccard(both.documents, len(ours.hashes), len(other.hashes)),
                "jaccard_tokens": _jaccard(both.tokens, ours.num_tokens, other.num_tokens),
                "share_of_ours_documents": _share(both.documents, len(ours.hashes)),
                "share_of_ours": _share(both.tokens, ours.num_tokens),
                "share_of_theirs_documents": _share(both.documents, len(other.hashes)),
                "share_of_theirs": _share(both.tokens, other.num_tokens),
            }
        )
    pairs = [[(square[i][j], every[i], every[j]) for j in range(len(every))] for i in range(len(every))]
    return {
        "with": rows,
        "names": [chosen.name for chosen in every],
        "documents": [[both.documents for both, _, _ in row] for row in pairs],
        "jaccard_documents": [
            [_jaccard(both.documents, len(one.hashes), len(other.hashes)) for both, one, other in row] for row in pairs
        ],
        "jaccard_tokens": [
            [_jaccard(both.tokens, one.num_tokens, other.num_tokens) for both, one, other in row] for row in pairs
        ],
    }


def short_names(places: Sequence[str]) -> list[str]:
    """Names of selections by their paths: as few last parts of each as tell them apart.

    Raises:
        UserError: a path stands twice.
    """
    parts = [place.removesuffix("/ids.parquet").rstrip("/").split("/") for place in places]
    if not parts:
        return []
    for number in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-number:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(place for number, place in enumerate(places) if parts[number] in parts[:number])
    raise UserError(f"{twice}: stands twice among the selections to compare with")


def _ordered(name: str, hashes: Sequence[NDArray[np.uint64]], tokens: Sequence[NDArray[np.int32]]) -> Chosen:
    every = np.concatenate([np.zeros(0, np.uint64), *hashes])
    order = np.argsort(every)
    return Chosen(name, every[order], np.concatenate([np.zeros(0, np.int32), *tokens])[order])


def _checked_tokens(values: pa.Array) -> NDArray[np.int32]:
    if values.null_count:
        raise ValueError("a document without a token count")
    tokens = values.cast(pa.int64()).to_numpy()
    if ((tokens < 0) | (tokens > _MAX_TOKENS)).any():
        raise ValueError(f"token counts from {tokens.min()} to {tokens.max()}")
    return tokens.astype(np.int32)


def _jaccard(both: int, one: int, other: int) -> float | None:
    return _share(both, one + other - both)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
