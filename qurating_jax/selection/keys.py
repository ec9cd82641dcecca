"""The first pass of a selection: the few numbers per document that decide, and the keys made of them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from qurating_jax.method import gumbel, normalize
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection import tables
from qurating_jax.selection.tables import Source

Strategy = Literal["uniform", "top_k", "sample"]
UNKNOWN_DOMAIN = "unknown"


@dataclass(frozen=True)
class Fields:
    """Names (or dotted paths) of the columns that a selection reads; an empty one is not read."""

    id: str
    tokens: str
    rating: str = ""
    domain: str = ""

    def named(self) -> list[str]:
        """The fields to read."""
        return [name for name in (self.id, self.tokens, self.rating, self.domain) if name]


@dataclass(frozen=True)
class Candidates:
    """All documents in input order, at 28 bytes each.

    Attributes:
        id_hashes: uint64 [n], `gumbel.hash_ids` of the ids.
        tokens: int64 [n], 0 or more.
        ratings: float64 [n], NaN where the document has none (all NaN where no rating is read).
        domains: int32 [n], numbers into `domain_names`.
        domain_names: sorted names; one empty name where no domain is read.
        duplicates: bool [n], documents whose id stood before (with the same values).
        duplicate_example: one such id, empty where there is none.
    """

    id_hashes: np.ndarray
    tokens: np.ndarray
    ratings: np.ndarray
    domains: np.ndarray
    domain_names: tuple[str, ...]
    duplicates: np.ndarray
    duplicate_example: str


def read_candidates(source: Source, fields: Fields) -> Candidates:
    """Reads the deciding columns of every document.

    Raises:
        UserError: a column is missing or not of its kind, an id or token count is null, or different documents have
            one id.
    """
    for option, field in (("id_field", fields.id), ("tokens_field", fields.tokens), ("rating", fields.rating),
                          ("domain_field", fields.domain)):  # fmt: skip
        if field and not source.has(field):
            raise UserError(
                f"the documents have no column `{field}` (--{option}); columns: {', '.join(source.schema.names)}"
            )
    hashes, tokens, ratings, domains = [], [], [], []
    numbers: dict[str, int] = {}
    for table in source.tables(fields.named()):
        hashes.append(gumbel.hash_ids(_ids(table, fields.id)))
        tokens.append(_tokens(table, fields))
        ratings.append(_ratings(table, fields.rating))
        names = domain_names(table, fields.domain).dictionary_encode()
        known = [numbers.setdefault(name, len(numbers)) for name in names.dictionary.to_pylist()]
        domains.append(np.array(known, dtype=np.int32)[names.indices.to_numpy()])
    if not hashes:
        raise UserError("the input holds no documents")
    # Numbers by order of appearance would depend on the order of the files.
    ordered = sorted(numbers)
    renumber = np.empty(len(numbers), dtype=np.int32)
    renumber[[numbers[name] for name in ordered]] = np.arange(len(numbers), dtype=np.int32)
    candidates = Candidates(
        id_hashes=np.concatenate(hashes),
        tokens=np.concatenate(tokens),
        ratings=np.concatenate(ratings),
        domains=renumber[np.concatenate(domains)],
        domain_names=tuple(ordered),
        duplicates=np.zeros(0, dtype=bool),
        duplicate_example="",
    )
    duplicates, example = _find_duplicates(source, fields, candidates)
    return dataclasses.replace(candidates, duplicates=duplicates, duplicate_example=example)


def logits(
    ratings: np.ndarray, *, strategy: Strategy, temperature: float, inverse: bool, normalized: bool
) -> np.ndarray:
    """What a strategy orders or samples by: float64 [n].

    "uniform": zeros. "top_k": the ratings. "sample": the ratings divided by the temperature. Ratings are standardized
    first where `normalized`, and negated before any noise where `inverse`: taking the smallest noisy keys instead would
    be a draw with minus-Gumbel noise, far more extreme than the mirror of the sample.

    Raises:
        ValueError: the ratings cannot be standardized (see `normalize.standardize`) or are not finite.
    """
    if strategy == "uniform":
        return np.zeros(len(ratings))
    if not np.isfinite(ratings).all():
        raise ValueError("a rating is infinite")
    values = normalize.standardize(ratings) if normalized else ratings.astype(np.float64)
    values = -values if inverse else values
    return values / temperature if strategy == "sample" else values


def perturbed(values: np.ndarray, id_hashes: np.ndarray, *, strategy: Strategy, seed: int) -> np.ndarray:
    """Selection keys: the logits plus the documents' Gumbel noise, or the bare logits for "top_k"; float64 [n]."""
    return (
        values
        if strategy == "top_k"
        else values + gumbel.gumbel_noise(id_hashes, gumbel.noise_stream(seed, "selection"))
    )


def domain_names(table: pa.Table, field: str) -> pa.Array:
    """The documents' domains as strings; `UNKNOWN_DOMAIN` where null, empty where no domain is read."""
    if not field:
        return pa.array([""] * len(table), pa.string())
    return _strings(table, field).fill_null(UNKNOWN_DOMAIN)


def _strings(table: pa.Table, field: str) -> pa.Array:
    values = tables.column(table, field)
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_null(kind)
    ):
        raise UserError(f"column `{field}` holds {kind}, not strings or integers")
    return values.cast(pa.string()).combine_chunks()


def _ids(table: pa.Table, field: str) -> Sequence[str]:
    values = _strings(table, field)
    if values.null_count:
        raise UserError(f"{values.null_count:,} documents have no `{field}`; every document needs an id (--id_field)")
    return values.to_pylist()


def _tokens(table: pa.Table, fields: Fields) -> np.ndarray:
    values = tables.column(table, fields.tokens)
    if not pa.types.is_integer(values.type):
        raise UserError(f"column `{fields.tokens}` holds {values.type}, not token counts (--tokens_field)")
    if values.null_count:
        raise UserError(f"{values.null_count:,} documents have no token count in `{fields.tokens}` (--tokens_field)")
    tokens = values.cast(pa.int64()).to_numpy()
    if (tokens < 0).any():
        raise UserError(f"document `{_ids(table, fields.id)[int(tokens.argmin())]}` has {tokens.min()} tokens")
    return tokens


def _ratings(table: pa.Table, field: str) -> np.ndarray:
    if not field:
        return np.full(len(table), np.nan)
    values = tables.column(table, field)
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type) or pa.types.is_null(values.type)):
        raise UserError(f"column `{field}` holds {values.type}, not ratings (--rating)")
    return values.cast(pa.float64()).fill_null(float("nan")).to_numpy()


def _find_duplicates(source: Source, fields: Fields, candidates: Candidates) -> tuple[np.ndarray, str]:
    """Later documents of an id that stood before: bool [n], and one such id.

    Raises:
        UserError: documents of one id that differ in tokens, rating or domain, so that it matters which one counts.
    """
    duplicates = np.zeros(len(candidates.id_hashes), dtype=bool)
    ordered = np.sort(candidates.id_hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not repeated.size:
        return duplicates, ""
    # Equal hashes of different ids (once in 14,000 corpora of 50 million) are harmless: equal noise, nothing else.
    first_of: dict[str, int] = {}
    example, offset = "", 0
    for table in source.tables([fields.id]):
        for place in np.flatnonzero(np.isin(candidates.id_hashes[offset : offset + len(table)], repeated)):
            name = str(_strings(table, fields.id)[int(place)])
            first, here = first_of.setdefault(name, offset + int(place)), offset + int(place)
            if first == here:
                continue
            if not _alike(candidates, first, here):
                raise UserError(
                    f"two different documents have the id `{name}`; make ids unique or name another --id_field"
                )
            duplicates[here], example = True, example or name
        offset += len(table)
    return duplicates, example


def _alike(candidates: Candidates, first: int, second: int) -> bool:
    columns = (candidates.tokens, candidates.ratings, candidates.domains)
    return all(np.array_equal(column[first], column[second], equal_nan=True) for column in columns)
