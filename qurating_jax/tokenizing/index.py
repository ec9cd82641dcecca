"""The index of a run: with the lengths of all documents known, where each of them stands.

It is made once, when every part is encoded, and mapped into memory by every process that writes. Files hold plain
numbers, one per document of the input (in its order), or per document of a split (in the order of its rows).

Memory while it is made: about 130 bytes per document in the order of a selection. Disk: about 60 bytes per document and
its id.
"""

import contextlib
import logging
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data.document_columns import NO_NAME, name_codes
from qurating_jax.data.parts import Parts
from qurating_jax.data.tokens import TokenRowsWriter
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.tokenizing.encoding import KEY, RANK, read_encoded
from qurating_jax.tokenizing.files import FlatTokens, map_array, take_texts, write_array
from qurating_jax.tokenizing.job import TRAINING, VALIDATION, TokenizeJob

Ints = NDArray[np.int64]

SUMMARY = "index.json"
_SPLIT_FILES = ("documents", "begins", "lengths", "starts")
_NO_RANK = -1

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Split:
    """The documents of a split that have tokens, n of them, in the order of its rows.

    Attributes:
        documents: int64 [n], their numbers in the input.
        begins: int64 [n], place of the first token in the flat tokens.
        lengths: int64 [n], tokens with the EOS where there is one.
        starts: int64 [n + 1], of the layout.
    """

    documents: Ints
    begins: Ints
    lengths: Ints
    starts: Ints


class Index:
    """The index, mapped into memory."""

    def __init__(self, job: TokenizeJob) -> None:
        """Opens what `make_index` wrote; raises `UserError` where it is missing or broken."""
        self._job, self._directory = job, job.work_path("index")
        self.summary: dict[str, Any] = storage.read_json(storage.join(self._directory, SUMMARY))
        self.parts = self._map("parts", np.int64)
        self._ids, self._id_ends = self._map("ids", np.uint8), self._map("id_ends", np.int64)
        self._domains = self._map("domain", np.int32)
        self._domain_names = pa.array(self.summary["domains"], pa.string())

    def split(self, name: str) -> Split:
        """The documents of a split."""
        documents, begins, lengths, starts = (self._map(f"{name}-{part}", np.int64) for part in _SPLIT_FILES)
        return Split(documents, begins, lengths, starts)

    def flat_tokens(self) -> FlatTokens:
        """The tokens of all documents."""
        paths = [self._job.flat_path(number) for number in range(len(self.parts) - 1)]
        return FlatTokens(paths, self.parts, self._job.token_type)

    def carried(self, documents: Ints) -> dict[str, pa.Array]:
        """The columns of `rows.parquet` that come with documents, by their numbers in the input [m].

        Returns:
            `id` and `domain`, then selection key, selection rank and carried numbers where the input has them.
        """
        codes = np.asarray(self._domains[documents])
        found = {
            "id": take_texts(self._ids, self._id_ends, documents),
            "domain": self._domain_names.take(pa.array(codes, mask=codes == NO_NAME)),
        }
        for place, name in enumerate(self.summary["numbers"]):
            if name == RANK:
                ranks = np.asarray(self._map(f"number-{place}", np.int64)[documents])
                found[name] = pa.array(ranks, mask=ranks == _NO_RANK)
            else:
                values = np.asarray(self._map(f"number-{place}", np.float64)[documents])
                found[name] = pa.array(values, mask=np.isnan(values))
        return found

    def writer(self, split: str) -> TokenRowsWriter:
        """The arrays of a split."""
        return rows_writer(self._job, split, self.summary["splits"][split]["rows"])

    def _map(self, name: str, kind: Any) -> NDArray[Any]:
        return map_array(storage.join(self._directory, name), kind)


def rows_writer(job: TokenizeJob, split: str, num_rows: int) -> TokenRowsWriter:
    """The arrays of a split, made where they are not there."""
    return TokenRowsWriter(
        job.rows_path(split),
        num_rows=num_rows,
        sequence_tokens=job.options.sequence_tokens,
        vocab_size=job.tokenizer.vocab_size,
    )


def make_index(job: TokenizeJob, parts: Parts) -> None:
    """Makes the index of the encoded parts and the empty arrays of the splits.

    Raises:
        UserError: there is nothing to write, or documents of the selection are missing; or the disk is full.
    """
    directory = job.work_path("index")
    scratch = f"{directory}.tmp-{secrets.token_hex(8)}"  # without claims several workers may be here
    try:
        os.makedirs(scratch)
        _make_index(job, parts, scratch)
        os.rename(scratch, directory)
    except OSError as error:
        if not os.path.exists(storage.join(directory, SUMMARY)):
            raise UserError(f"{directory}: cannot be written ({error.strerror}); run again when it can") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make_index(job: TokenizeJob, parts: Parts, scratch: str) -> None:
    gathered = _gather(job, parts, scratch)
    kept, counts = _kept(job, gathered)
    splits = {}
    for name in job.splits:
        inside = kept if len(job.splits) == 1 else kept[gathered.validation[kept] == (name == VALIDATION)]
        splits[name] = _make_split(job, gathered, inside, storage.join(scratch, name))
    if not splits[TRAINING]["rows"]:
        raise _nothing(job, splits[TRAINING]["document_tokens"], counts["document_tokens"])
    counts["largest_id"] = int(gathered.largest[kept].max(initial=0))
    if job.options.closes_documents:
        counts["largest_id"] = max(counts["largest_id"], job.tokenizer.eos_id or 0)
    for name, split in splits.items():
        rows_writer(job, name, split["rows"])
    summary = {"domains": gathered.domains, "numbers": gathered.numbers, "counts": counts, "splits": splits}
    storage.write_json(storage.join(scratch, SUMMARY), summary)


def _nothing(job: TokenizeJob, training_tokens: int, tokens: int) -> UserError:
    if training_tokens:
        return UserError(
            f"no document fills a window of at least {job.options.min_tail_tokens} tokens; lower --min_tail_tokens"
        )
    if tokens:
        return UserError("every document is in the validation split; lower --validation_fraction")
    return UserError("no text in the input; there is nothing to tokenize")


@dataclass
class _Gathered:
    """The columns of all documents that are needed to lay them out; the others are in files."""

    lengths: Ints
    largest: NDArray[np.int32]
    validation: NDArray[np.bool_]
    ranks: Ints
    domains: list[str]
    numbers: list[str]
    rejected: int


def _gather(job: TokenizeJob, parts: Parts, scratch: str) -> _Gathered:
    """Reads the documents of all parts, in order, into the files of the index."""
    lengths, largest = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    validation, ranks, part_tokens = [np.zeros(0, bool)], [np.zeros(0, np.int64)], [0]
    num, id_end, rejected = 0, 0, 0
    domains: dict[str, int] = {}
    # In the order `source` a selection's ranks are not the order of its copied rows, which have none either.
    in_source_order = job.open_selection is not None and job.open_selection().order == "source"
    own = [KEY] if in_source_order else [KEY, RANK]
    with contextlib.ExitStack() as stack:

        def create(name: str) -> IO[bytes]:
            return stack.enter_context(open(storage.join(scratch, name), "wb"))

        ids, id_ends, codes = create("ids"), create("id_ends"), create("domain")
        id_ends.write(np.zeros(1, np.int64).data)
        numbers = _Numbers(create)
        for part in range(len(parts)):
            table, carried, counts = read_encoded(job.encoded_path(part))
            if tuple(counts["rows"]) != parts.span(part):
                raise UserError(
                    f"{job.encoded_path(part)}: holds rows of another cut of the input (two commands began with other "
                    "--rows_per_part or --bytes_per_part); start again with --overwrite"
                )
            lengths.append(table["num_tokens"].to_numpy())
            largest.append(table["largest_id"].to_numpy())
            if "validation" in table.column_names:
                validation.append(table["validation"].to_numpy())
            if job.open_selection is not None:
                ranks.append(table[RANK].to_numpy())
            text = [name.encode() for name in table["id"].to_pylist()]
            ids.write(b"".join(text))
            ends = id_end + np.cumsum([len(name) for name in text], dtype=np.int64)
            id_ends.write(ends.data)
            id_end = int(ends[-1]) if len(ends) else id_end
            codes.write(name_codes(table["domain"], domains).data)
            numbers.add(table, [*(name for name in own if name in table.column_names), *carried], num)
            num += len(table)
            rejected += counts["rejected"]
            part_tokens.append(counts["tokens"])
        numbers.end(num)
    write_array(storage.join(scratch, "parts"), np.cumsum(part_tokens, dtype=np.int64))
    return _Gathered(
        np.concatenate(lengths), np.concatenate(largest), np.concatenate(validation), np.concatenate(ranks),
        list(domains), numbers.names, rejected,
    )  # fmt: skip


class _Numbers:
    """Columns of numbers, a file each; a column that a part lacks is null there."""

    def __init__(self, create: Any) -> None:
        self._create = create
        self._files: dict[str, IO[bytes]] = {}
        self._written: dict[str, int] = {}

    def add(self, table: pa.Table, names: list[str], before: int) -> None:
        """Adds the columns of a part's documents; `before`: documents of the parts before it."""
        for name in names:
            if name not in self._files:
                self._files[name] = self._create(f"number-{len(self._files)}")
                self._written[name] = 0
            self._fill(name, before)
            values = table[name].combine_chunks()
            values = values.fill_null(_NO_RANK) if name == RANK else values.fill_null(np.nan)
            self._files[name].write(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).data)
            self._written[name] += len(table)

    def end(self, num: int) -> None:
        """Fills up all columns to the number of all documents."""
        for name in self._files:
            self._fill(name, num)

    @property
    def names(self) -> list[str]:
        """Names of the columns, in the order of their files' numbers."""
        return list(self._files)

    def _fill(self, name: str, before: int) -> None:
        missing = before - self._written[name]
        null = np.array(_NO_RANK, np.int64) if name == RANK else np.array(np.nan)
        for start in range(0, missing, 1 << 20):
            self._files[name].write(np.full(min(1 << 20, missing - start), null).data)
        self._written[name] = before


def _kept(job: TokenizeJob, gathered: _Gathered) -> tuple[Ints, dict[str, Any]]:
    """Numbers of the documents that count, in the order of the rows, and the counts of all of them."""
    num = len(gathered.lengths)
    if job.open_selection is None:
        kept = np.arange(num, dtype=np.int64)
    else:
        selection = job.open_selection()
        found, first = np.unique(gathered.ranks, return_index=True)  # of equal ids the first document
        selection.check_complete(found)
        kept = np.sort(first) if selection.order == "source" else first
    lengths = gathered.lengths[kept]
    filled = int((lengths > 0).sum())
    return kept, {
        "documents": len(kept),
        "empty": len(kept) - filled,
        "repeated": num - len(kept),
        "rejected": gathered.rejected,
        "document_tokens": int(lengths.sum()),
        "eos_tokens": filled if job.options.closes_documents else 0,
    }


def _make_split(job: TokenizeJob, gathered: _Gathered, documents: Ints, prefix: str) -> dict[str, Any]:
    """Writes the files of a split; its counts."""
    empty = gathered.lengths[documents] == 0
    num_empty, documents = int(empty.sum()), documents[~empty]
    begins = (np.cumsum(gathered.lengths) - gathered.lengths)[documents]
    lengths = gathered.lengths[documents] + job.options.closes_documents
    starts = job.layout.starts(lengths)
    columns = {"documents": documents, "begins": begins, "lengths": lengths, "starts": starts}
    for name, values in columns.items():
        write_array(f"{prefix}-{name}", values)
    eos = len(documents) if job.options.closes_documents else 0
    return {
        "documents": len(documents) + num_empty,
        "empty": num_empty,
        "document_tokens": int(lengths.sum()) - eos,
        "eos_tokens": eos,
        **asdict(job.layout.tally(lengths)),
    }
