"""Which domain every token of some rows belongs to."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data.columnar import ColumnFile
from qurating_jax.data.token_sets import TokenSets
from qurating_jax.runtime.errors import UserError

UNKNOWN = "unknown"
OTHER = "other"
_COLUMNS = ("row", "start", "num_tokens", "domain")
_MAX_DOMAINS = 50


def token_domains(
    sets: TokenSets, numbers: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[list[str], NDArray[np.uint8]]:
    """The domains of rows, token by token, from the tables beside the rows.

    Documents without a domain are `UNKNOWN`. Of more than 50 domains the 49 that have most tokens in these rows keep
    their names, the others are `OTHER`.

    Args:
        sets: the token sets; the tables of their split are read once.
        numbers: int64 [n], the set of each row, increasing.
        rows: int64 [n], within the set, increasing where the set is the same.

    Returns:
        The domains' names, and their numbers as uint8 [n, T]; padding has number 0.

    Raises:
        UserError: a table that does not describe the rows.
    """
    T = sets.sequence_tokens
    codes: dict[str, int] = {}
    columns = zip(*_pieces(sets, numbers, rows, codes), strict=True)
    slots, starts, lengths, found = (np.concatenate(column) for column in columns)
    names, code_of = _named(list(codes), np.bincount(found, lengths, len(codes)).astype(np.int64))
    domains = np.zeros(len(rows) * T, np.uint8)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    domains[np.repeat(slots * T + starts, lengths) + within] = np.repeat(code_of[found], lengths)
    return names, domains.reshape(len(rows), T)


def _pieces(
    sets: TokenSets, numbers: NDArray[np.int64], rows: NDArray[np.int64], codes: dict[str, int]
) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Place among `rows`, start, tokens and domain of the rows' pieces; `codes` gets a number for every new name."""
    for number in np.unique(numbers).tolist():
        path = sets.pieces_path(number)
        first, wanted = np.searchsorted(numbers, number), rows[numbers == number]
        described = np.zeros(len(wanted), bool)
        for row, start, length, domain in _table(path):
            place = np.minimum(np.searchsorted(wanted, row), len(wanted) - 1)
            inside = wanted[place] == row
            place, start, length = place[inside], start[inside], length[inside]
            if (start < 0).any() or (length < 0).any() or (start + length > sets.sequence_tokens).any():
                raise UserError(f"{path}: pieces that are no part of their row; run tokenize again")
            described[place] = True
            names = domain.filter(pa.array(inside)).fill_null(UNKNOWN).to_pylist()
            yield (
                first + place,
                start,
                length,
                np.array([codes.setdefault(name, len(codes)) for name in names], np.int64),
            )
        if not described.all():
            raise UserError(f"{path}: no pieces of row {wanted[np.argmin(described)]}; run tokenize again")


def _table(path: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], pa.Array]]:
    source = ColumnFile(path)
    try:
        missing = [name for name in _COLUMNS if name not in source.schema.names]
        if missing:
            raise UserError(f"{path}: no column `{missing[0]}`; run tokenize again")
        source.project(_COLUMNS)
        for batch in source.read(0, np.iinfo(np.int64).max):
            row, start, length = (batch.column(name).to_numpy().astype(np.int64) for name in _COLUMNS[:3])
            yield row, start, length, batch.column("domain").cast(pa.string())
    finally:
        source.close()


def _named(names: list[str], num_tokens: NDArray[np.int64]) -> tuple[list[str], NDArray[np.uint8]]:
    """The domains that keep their names, most tokens first, and the number that each of all gets among them."""
    ranked = sorted(range(len(names)), key=lambda code: (-num_tokens[code], names[code]))
    kept = ranked if len(names) <= _MAX_DOMAINS else ranked[: _MAX_DOMAINS - 1]
    shown = [names[code] for code in kept]
    if len(kept) < len(names) and OTHER not in shown:
        shown.append(OTHER)
    numbers = {name: number for number, name in enumerate(shown)}
    return shown, np.array([numbers.get(name, numbers.get(OTHER, 0)) for name in names], np.uint8)
