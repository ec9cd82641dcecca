"""The verdict table as arrays, and its rows joined into unordered pairs of texts: what every part of an audit reads."""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.runtime.errors import UserError

MAX_SLOTS = 1024  # texts of a group; bounds the codes below
UNKNOWN_DOMAIN = "unknown"

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Verdicts:
    """The rows [n] of a verdict table; names are held once, rows hold their numbers.

    Attributes:
        names: of each coded column, the names that its numbers stand for (`documents` and `domains` for both texts).
        criterion, judge, purpose, variant, injected, outcome: numbers of names.
        group: row in the judgments.
        question: number of (group, first slot, second slot).
        pair: number of the same without the order.
        first_slot, second_slot: places of the texts in their group.
        first, second, first_domain, second_domain: documents and domains of the texts shown.
        first_characters, second_characters: lengths.
        repeat: 0 but for repeats.
        p: p_second where the verdict is usable (outcome "ok"), else NaN.
        votes_first, votes_second: votes behind it, 0 where there were none.
    """

    names: dict[str, list[str]]
    criterion: Ints
    judge: Ints
    purpose: Ints
    variant: Ints
    injected: Ints
    outcome: Ints
    group: Ints
    question: Ints
    pair: Ints
    first_slot: Ints
    second_slot: Ints
    first: Ints
    second: Ints
    first_domain: Ints
    second_domain: Ints
    first_characters: Ints
    second_characters: Ints
    repeat: Ints
    p: Floats
    votes_first: Ints
    votes_second: Ints

    def is_(self, column: str, name: str) -> Mask:
        """Rows where a coded column has that name."""
        codes: Ints = getattr(self, column)
        names = self.names[column]
        return codes == names.index(name) if name in names else np.zeros(codes.size, dtype=bool)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Unordered pairs [m] of texts a and b of one group (a in the lower slot), by one judge on one criterion.

    Attributes:
        key: number of (group, a, b), rising; the same in every `Pairs` of one table.
        forward: p(b preferred | a shown first); NaN where there is no usable verdict.
        backward: p(a preferred | b shown first); NaN likewise.
        group, a_slot, b_slot: where the pair stands in the judgments.
        a, b, a_domain, b_domain: documents and their domains.
        log_length: log(characters of b / characters of a); NaN where a length is unknown.
        votes: [m, 4], forward for the second and in all, backward for the second and in all.
    """

    key: Ints
    forward: Floats
    backward: Floats
    group: Ints
    a_slot: Ints
    b_slot: Ints
    a: Ints
    b: Ints
    a_domain: Ints
    b_domain: Ints
    log_length: Floats
    votes: Ints

    @property
    def average(self) -> Floats:
        """p(b preferred), the mean of both orders; NaN where one is missing."""
        return (self.forward + 1.0 - self.backward) / 2.0

    def take(self, rows: Mask | Ints) -> Self:
        """Some of the pairs."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def complete(self) -> Self:
        """The pairs with a usable verdict in both orders."""
        return self.take(~np.isnan(self.average))


def load(table: pa.Table) -> Verdicts:
    """Reads the columns of `data.verdicts.SCHEMA`.

    Raises:
        UserError: a slot or probability out of range, with its row (from 1).
    """
    names: dict[str, list[str]] = {}
    columns: dict[str, Any] = {}
    for name in ("criterion", "judge", "purpose", "variant", "injected", "outcome"):
        names[name], columns[name] = encode(table[name])
    for name, first, second in (("documents", "first_id", "second_id"), ("domains", "first_domain", "second_domain")):
        both = pa.chunked_array([*table[first].chunks, *table[second].chunks], pa.string())
        names[name], codes = encode(both)
        columns[first.removesuffix("_id")], columns[second.removesuffix("_id")] = np.split(codes, 2)
    names["domains"] = [name or UNKNOWN_DOMAIN for name in names["domains"]]
    for name in ("group", "first_slot", "second_slot", "first_characters", "second_characters", "repeat"):
        columns[name] = _numbers(table, name)
    for name in ("votes_first", "votes_second"):
        columns[name] = _numbers(table, name)
    first_slot, second_slot = columns["first_slot"], columns["second_slot"]
    for slots in (first_slot, second_slot):
        refuse((slots < 0) | (slots >= MAX_SLOTS), f"a slot outside 0..{MAX_SLOTS - 1}")
    refuse(first_slot == second_slot, "a text is compared with itself")
    _, group = np.unique(columns["group"], return_inverse=True)
    low, high = np.minimum(first_slot, second_slot), np.maximum(first_slot, second_slot)
    p = table["p_second"].to_numpy().astype(np.float64)  # null becomes NaN
    is_ok = columns["outcome"] == (names["outcome"].index("ok") if "ok" in names["outcome"] else -1)
    refuse(is_ok & ~((p >= 0.0) & (p <= 1.0)), "a usable verdict whose p_second is not in 0..1")
    return Verdicts(
        names=names,
        question=(group * MAX_SLOTS + first_slot) * MAX_SLOTS + second_slot,
        pair=(group * MAX_SLOTS + low) * MAX_SLOTS + high,
        p=np.where(is_ok, p, np.nan),
        **columns,
    )


def make_pairs(verdicts: Verdicts, rows: Mask) -> Pairs:
    """Joins both orders of the chosen rows, which belong to one judge, criterion and asking.

    Raises:
        UserError: one question twice.
    """
    index = np.flatnonzero(rows)
    key, place = np.unique(verdicts.pair[index], return_inverse=True)
    is_forward = verdicts.first_slot[index] < verdicts.second_slot[index]
    twice = np.bincount(2 * place + is_forward, minlength=1) > 1
    if twice.any():
        group = verdicts.group[index][place == np.flatnonzero(twice)[0] // 2][0]
        raise UserError(f"verdicts: one question stands twice (group {group}); export the run again")

    def spread(forward: NDArray[Any], backward: NDArray[Any], empty: float = 0) -> NDArray[Any]:
        """Per pair, what its forward row has in one column or its backward row in the other."""
        result = np.full(key.size, empty, dtype=forward.dtype)
        result[place] = np.where(is_forward, forward[index], backward[index])
        return result

    def of_order(values: NDArray[Any], order: Mask, empty: float) -> NDArray[Any]:
        result = np.full(key.size, empty, dtype=values.dtype)
        result[place[order]] = values[index][order]
        return result

    v = verdicts
    num_votes = v.votes_first + v.votes_second
    a_characters = spread(v.first_characters, v.second_characters)
    b_characters = spread(v.second_characters, v.first_characters)
    known = (a_characters > 0) & (b_characters > 0)
    log_length = np.log(np.where(known, b_characters, 1)) - np.log(np.where(known, a_characters, 1))
    votes = [of_order(x, o, 0) for o in (is_forward, ~is_forward) for x in (v.votes_second, num_votes)]
    return Pairs(
        key=key,
        forward=of_order(v.p, is_forward, np.nan),
        backward=of_order(v.p, ~is_forward, np.nan),
        group=spread(v.group, v.group),
        a_slot=spread(v.first_slot, v.second_slot),
        b_slot=spread(v.second_slot, v.first_slot),
        a=spread(v.first, v.second),
        b=spread(v.second, v.first),
        a_domain=spread(v.first_domain, v.second_domain),
        b_domain=spread(v.second_domain, v.first_domain),
        log_length=np.where(known, log_length, np.nan),
        votes=np.stack(votes, axis=1),
    )


def encode(column: pa.ChunkedArray) -> tuple[list[str], Ints]:
    """The distinct names of a column and each row's number among them."""
    encoded = column.dictionary_encode().unify_dictionaries()
    if not encoded.num_chunks:
        return [], np.zeros(0, dtype=np.int64)
    codes = np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks])
    try:
        return encoded.chunk(0).dictionary.to_pylist(), codes.astype(np.int64)
    except UnicodeDecodeError:
        raise UserError("verdicts: a name that is not UTF-8 text; was the file changed by hand?") from None


def _numbers(table: pa.Table, name: str) -> Ints:
    return table[name].to_numpy().astype(np.int64)


def refuse(wrong: Mask, what: str, table: str = "verdicts") -> None:
    """Raises `UserError` with the first row that is wrong."""
    if wrong.any():
        raise UserError(f"{table}: row {np.flatnonzero(wrong)[0] + 1}: {what}; was the file changed by hand?")
