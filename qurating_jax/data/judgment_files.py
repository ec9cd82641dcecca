"""Judgments in, in any of the formats that documents come in: the published schema, and plain pairs.

A file with `texts` has groups in the published schema (see `judgments`). A file with `text_a` and `text_b` has a pair
and one criterion in a row:

- `p_b`, the probability that b is preferred, or votes: `votes_a`, `votes_b` and `votes_tie` (half to each side);
- `criterion`, "preference" where there is none;
- `id_a` and `id_b`, a hash of the text where there is none; `domain`, or `domain_a` and `domain_b`.

Rows of one ordered pair on several criteria are one group where they are in one file and each criterion occurs once.
Every row is untrusted, and none is skipped: a label that was lost unseen would be worse than a stop.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data import documents
from qurating_jax.data.judgment_sources import SourceFile, find_judgments, locate
from qurating_jax.data.judgments import AVERAGE, MISSING, Judgments, from_averages, text_id
from qurating_jax.runtime.errors import UserError

__all__ = ["DEFAULT_CRITERION", "find_judgments", "read_judgments"]

DEFAULT_CRITERION = "preference"

_ROUNDING = 1e-5  # averages of float32 votes may leave [0, 1] by this much

log = logging.getLogger(__name__)

Row = tuple[int, dict[str, Any]]  # its number or line, and its values


class _NoBadRows(documents.Rejects):
    """Every row that cannot be read is an error."""

    def __init__(self) -> None:
        super().__init__(None, "error")

    def add(self, file: str, line: int, reason: str, excerpt: str) -> None:
        raise UserError(f"{file}: row {line}: {reason}")


@dataclass
class _Groups:
    """The n groups of one file; `labels` and `num_votes` are float64 [n, k, k] by criterion, NaN = missing."""

    texts: list[tuple[str, ...]] = field(default_factory=list)
    ids: list[tuple[str, ...]] = field(default_factory=list)
    domains: list[tuple[str, ...]] = field(default_factory=list)
    labels: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    num_votes: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def read_judgments(
    sources: Sequence[str],
    criteria: Sequence[str] | None = None,
    *,
    missing: Literal["error", "mask"] = "error",
) -> Judgments:
    """Reads the judgments of all sources, in order.

    Args:
        sources: `PATTERN` or `NAME=PATTERN`, with `#SPLIT` where only some splits are wanted (see `judgment_sources`).
            Several patterns may share a name; a pattern without one is named by its own spelling.
        criteria: names in the order of the result's last axis; none: all that there are, in the order of the files.
        missing: what a criterion is that only some sources have: an error, or missing (not valid) in the others.

    Raises:
        UserError: no such file, a criterion that no source has (or not all, see `missing`), groups of different
            sizes, a probability outside [0, 1], or anything else that is no judgment, with file and row. Rows count
            from 1, in JSONL they are lines.
    """
    files = locate(sources)
    groups: list[_Groups] = []
    for file in files:
        groups.append(_read(file, len(groups[0].texts[0]) if groups else None))
    names = _criteria(files, groups, criteria, missing)
    judgments = from_averages(
        [texts for part in groups for texts in part.texts],
        [ids for part in groups for ids in part.ids],
        [domains for part in groups for domains in part.domains],
        names,
        np.concatenate([_stack(part, part.labels, names, np.nan) for part in groups]),
        sources=[file.source for file, part in zip(files, groups, strict=True) for _ in part.texts],
        num_votes=np.concatenate([_stack(part, part.num_votes, names, 0) for part in groups]),
    )
    counts = judgments.valid.any((1, 2)).sum(0)
    log.info(
        "judgments: %d groups from %s; labelled groups: %s",
        len(judgments),
        ", ".join(dict.fromkeys(file.source for file in files)),
        ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True)),
    )
    return judgments


def _criteria(
    files: Sequence[SourceFile], groups: Sequence[_Groups], wanted: Sequence[str] | None, missing: str
) -> tuple[str, ...]:
    """The criteria of the result, all of them in some source, and in every source if so asked."""
    by_source: dict[str, dict[str, None]] = {}
    for file, part in zip(files, groups, strict=True):
        by_source.setdefault(file.source, {}).update(dict.fromkeys(part.labels))
    known = list(dict.fromkeys(chain.from_iterable(by_source.values())))
    names = tuple(wanted or known)
    for name in names:
        lacking = [source for source, found in by_source.items() if name not in found]
        if name not in known:
            raise UserError(f"no judgments on `{name}` in {', '.join(by_source)}; there are: {', '.join(known)}")
        if lacking and missing == "error":
            raise UserError(
                f"no judgments on `{name}` in {', '.join(lacking)}, but in other sources; name the --criteria to use, "
                "or use each source for what it has with --missing_criteria mask"
            )
    return names


def _stack(
    part: _Groups, values: dict[str, NDArray[np.float64]], criteria: Sequence[str], default: float
) -> NDArray[np.float64]:
    """[n, k, k, C] of one file; `default` where it has nothing."""
    n, k = len(part.texts), len(part.texts[0])
    return np.stack([values.get(name, np.full((n, k, k), default)) for name in criteria], axis=-1)


def _read(source: SourceFile, group_size: int | None) -> _Groups:
    file = source.file
    with _NoBadRows() as rejects, closing(cast("Generator[Row]", documents.read_rows(file, rejects=rejects))) as found:
        first = next(found, None)
        if first is None:
            raise UserError(f"{file}: no judgments in it")
        rows, columns = chain([first], found), first[1]
        if "texts" in columns:
            return _read_groups(file, rows, group_size, source.domain)
        if "text_a" in columns and "text_b" in columns:
            if group_size not in (None, 2):
                raise _wrong_size(f"{file}: row {first[0]}", 2, group_size or 2)
            return _read_pairs(file, rows, source.domain)
    raise UserError(
        f"{file}: no column `texts` (published schema), nor `text_a` and `text_b` (pairs); it has "
        + ", ".join(columns)[:200]
    )


def _wrong_size(where: str, found: int, expected: int) -> UserError:
    return UserError(
        f"{where}: {found} texts in a group, expected {expected}; groups of different sizes cannot be read together"
    )


# ---- the published schema


def _read_groups(file: str, rows: Iterable[Row], group_size: int | None, domain: str) -> _Groups:
    columns: dict[str, list[Any]] = {"texts": []}
    numbers: list[int] = []
    for number, row in rows:
        for name in row:
            if name not in columns and (name in ("ids", "domains") or name.endswith(AVERAGE)):
                columns[name] = [None] * len(numbers)
        for name, values in columns.items():
            values.append(row.get(name))
        numbers.append(number)
    texts = _texts(file, numbers, columns["texts"], group_size)
    labels = {
        name.removesuffix(AVERAGE): _matrices(file, numbers, name, values, len(texts[0]))
        for name, values in columns.items()
        if name.endswith(AVERAGE)
    }
    if not labels:
        raise UserError(f"{file}: no column `CRITERION{AVERAGE}`; is it a file of judgments?")
    nothing = [None] * len(numbers)
    return _Groups(
        texts,
        _names(file, numbers, "ids", columns.get("ids", nothing), texts, default=text_id),
        _names(file, numbers, "domains", columns.get("domains", nothing), texts, default=lambda _: domain),
        labels,
    )


def _texts(file: str, numbers: Sequence[int], values: Sequence[Any], group_size: int | None) -> list[tuple[str, ...]]:
    for number, value in zip(numbers, values, strict=True):
        where = f"{file}: row {number}"
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise UserError(f"{where}: `texts` is not a list of strings")
        group_size = group_size or len(value)
        if len(value) != group_size or group_size < 2:
            raise _wrong_size(where, len(value), max(group_size, 2))
    return [tuple(value) for value in values]


def _matrices(file: str, numbers: Sequence[int], name: str, values: Sequence[Any], k: int) -> NDArray[np.float64]:
    """[n, k, k] of a column, NaN = missing."""
    nothing = [[None] * k] * k
    rows = [nothing if value is None else value for value in values]
    try:
        matrices = np.array(rows, dtype=np.float64)
        well_formed = matrices.shape == (len(rows), k, k)
    except (ValueError, TypeError):
        well_formed = False
    if not well_formed:
        number = next(number for number, row in zip(numbers, rows, strict=True) if not _is_matrix(row, k))
        raise UserError(f"{file}: row {number}: `{name}` is not a {k} x {k} matrix of numbers")
    matrices[matrices == MISSING] = np.nan
    wrong = ~np.isnan(matrices) & ~((matrices >= -_ROUNDING) & (matrices <= 1 + _ROUNDING))
    wrong[:, np.arange(k), np.arange(k)] = False
    if wrong.any():
        place, i, j = np.argwhere(wrong)[0]
        raise UserError(
            f"{file}: row {numbers[place]}: `{name}`[{i}][{j}] is {matrices[place, i, j]:g}, "
            "neither a probability nor -100 (missing)"
        )
    return matrices


def _is_matrix(value: Any, k: int) -> bool:
    try:
        return np.array(value, dtype=np.float64).shape == (k, k)
    except (ValueError, TypeError):
        return False


def _names(
    file: str,
    numbers: Sequence[int],
    name: str,
    values: Sequence[Any],
    texts: Sequence[tuple[str, ...]],
    *,
    default: Callable[[str], str],
) -> list[tuple[str, ...]]:
    """One string per text from a column of our own; `default(text)` where the file or the row has none."""
    result = []
    for number, value, group in zip(numbers, values, texts, strict=True):
        value = [None] * len(group) if value is None else value
        if not isinstance(value, list) or len(value) != len(group):
            raise UserError(f"{file}: row {number}: `{name}` is not a list of {len(group)} names, one per text")
        result.append(
            tuple(default(text) if label is None else str(label) for label, text in zip(value, group, strict=True))
        )
    return result


# ---- pairs


@dataclass(frozen=True)
class _Pair:
    """A row: what is compared, and the answer on one criterion (`num_votes` 0: a probability)."""

    texts: tuple[str, str]
    ids: tuple[str, str]
    domains: tuple[str, str]
    criterion: str
    p_b: float
    num_votes: int


def _read_pairs(file: str, rows: Iterable[Row], domain: str) -> _Groups:
    by_pair: dict[tuple[Any, ...], list[_Pair]] = {}
    for number, row in rows:
        try:
            pair = _pair(row, domain)
        except ValueError as error:
            raise UserError(f"{file}: row {number}: {error}") from None
        by_pair.setdefault((pair.texts, pair.ids, pair.domains), []).append(pair)
    groups: list[list[_Pair]] = []
    for pairs in by_pair.values():
        once = len({pair.criterion for pair in pairs}) == len(pairs)
        groups += [pairs] if once else [[pair] for pair in pairs]
    result = _Groups(
        [group[0].texts for group in groups], [group[0].ids for group in groups], [group[0].domains for group in groups]
    )
    for criterion in dict.fromkeys(pair.criterion for pairs in by_pair.values() for pair in pairs):
        result.labels[criterion] = np.full((len(groups), 2, 2), np.nan)
        result.num_votes[criterion] = np.zeros((len(groups), 2, 2))
    for place, group in enumerate(groups):
        for pair in group:
            result.labels[pair.criterion][place, (0, 1), (1, 0)] = pair.p_b, 1 - pair.p_b
            result.num_votes[pair.criterion][place, (0, 1), (1, 0)] = pair.num_votes
    return result


def _pair(row: dict[str, Any], domain: str) -> _Pair:
    """Raises `ValueError` with what is wrong in the row."""
    texts = (row.get("text_a"), row.get("text_b"))
    for side, text in zip("ab", texts, strict=True):
        if not isinstance(text, str):
            _refuse(row, f"text_{side}", "text")
    a, b = (str(text) for text in texts)
    p_b, num_votes = _answer(row)
    common = _name(row, "domain", domain)
    return _Pair(
        texts=(a, b),
        ids=(_name(row, "id_a", "") or text_id(a), _name(row, "id_b", "") or text_id(b)),
        domains=(_name(row, "domain_a", common), _name(row, "domain_b", common)),
        criterion=_name(row, "criterion", DEFAULT_CRITERION),
        p_b=p_b,
        num_votes=num_votes,
    )


def _answer(row: dict[str, Any]) -> tuple[float, int]:
    """The probability that b is preferred, and the number of votes (0 where a probability is given)."""
    p_b = row.get("p_b")
    has_votes = any(row.get(f"votes_{side}") is not None for side in ("a", "b", "tie"))
    if p_b is None and not has_votes:
        raise ValueError("no answer in it: give `p_b`, or `votes_a` and `votes_b`")
    if p_b is None:
        a, b, tie = _votes(row, "votes_a"), _votes(row, "votes_b"), _votes(row, "votes_tie", default=0)
        if not a + b + tie:
            raise ValueError("all votes are 0; leave out pairs that nobody judged")
        return (b + tie / 2) / (a + b + tie), a + b + tie
    if has_votes:
        raise ValueError("gives both `p_b` and votes; keep one of them")
    if isinstance(p_b, bool) or not isinstance(p_b, int | float):
        _refuse(row, "p_b", "a number")
    if not 0 <= p_b <= 1:  # NaN fails too
        _refuse(row, "p_b", "a probability")
    return float(p_b), 0


def _votes(row: dict[str, Any], name: str, default: int | None = None) -> int:
    value = row.get(name)
    if value is None and default is not None:
        return default
    # Whole numbers as floats are what a data frame makes of a column with gaps.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 53 or value % 1:
        _refuse(row, name, "a count of votes (0, 1, 2 ...)")
    return int(value)


def _name(row: dict[str, Any], name: str, default: str) -> str:
    value = row.get(name)
    if value is None or value == "":
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        _refuse(row, name, "a name")
    return str(value)


def _refuse(row: dict[str, Any], name: str, wanted: str) -> NoReturn:
    raise ValueError(f"`{name}` is {row.get(name)!r:.80}, not {wanted}")
