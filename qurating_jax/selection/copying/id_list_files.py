"""The id list of a selection as files that are mapped into memory, so that many processes share one copy.

Per document they hold its id as UTF-8, 8 bytes each for the end of the id, its hash, the rank of that hash and the key,
and 4 for the domain. While they are made, memory holds 24 bytes per document.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qurating_jax.data.document_columns import NO_NAME, name_codes
from qurating_jax.method import gumbel
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.copying.id_list import KEY, RANK, id_list_path, not_a_list, order_of

_SUMMARY = "list.json"
_TYPES = {"ids": np.uint8, "ends": np.int64, "keys": np.float64, "domains": np.int32, "hashes": np.uint64,
          "ranks": np.int64}  # fmt: skip
_BATCH_ROWS = 1 << 17


class IdList:
    """The documents of a selection; row i of the list is the document of rank i.

    Looked up by a sorted array of id hashes; a hit is compared with the id, so that a hash that two ids share does not
    count.

    Attributes:
        order: name of the order; in the order `source` ranks are by decreasing key, and copied rows in input order.
    """

    def __init__(self, directory: str) -> None:
        """Opens what `open_id_list` made."""
        summary = storage.read_json(storage.join(directory, _SUMMARY))
        self.order = str(summary["order"])
        self._domain_names = pa.array(summary["domains"], pa.string())
        found = {name: _map(storage.join(directory, name), kind) for name, kind in _TYPES.items()}
        self._ids, self._ends, self._keys = found["ids"], found["ends"], found["keys"]
        self._domains, self._hashes, self._ranks = found["domains"], found["hashes"], found["ranks"]

    def __len__(self) -> int:
        return len(self._ranks)

    def ranks_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Ranks of documents, int64 [m]; -1 where the list does not have them."""
        hashes = gumbel.hash_ids(ids)
        first = np.searchsorted(self._hashes, hashes, side="left")
        stop = np.searchsorted(self._hashes, hashes, side="right")
        ranks = np.full(len(ids), -1, np.int64)
        for position in np.flatnonzero(first < stop).tolist():
            for rank in self._ranks[first[position] : stop[position]].tolist():
                if self.id_of(rank) == ids[position]:
                    ranks[position] = rank
        return ranks

    def id_of(self, rank: int) -> str:
        """The id of a document by rank."""
        begin = int(self._ends[rank - 1]) if rank else 0
        return self._ids[begin : int(self._ends[rank])].tobytes().decode()

    def keys_of(self, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Selection keys by rank, float64 [m]."""
        return np.asarray(self._keys[ranks])

    def domains_of(self, ranks: NDArray[np.int64]) -> pa.Array:
        """Domains by rank, text [m], null where the selection knows none."""
        codes = np.asarray(self._domains[ranks])
        return self._domain_names.take(pa.array(codes, mask=codes == NO_NAME))

    def check_complete(self, ranks: NDArray[np.int64]) -> None:
        """Raises `UserError` where listed documents were not found.

        Args:
            ranks: those that were found, int64 [m], ascending, none twice.
        """
        if len(ranks) == len(self):
            return
        missing = np.ones(len(self), bool)
        missing[ranks] = False
        some = np.flatnonzero(missing)
        examples = ", ".join(f"`{self.id_of(int(rank))}`" for rank in some[:3])
        raise UserError(
            f"{len(some):,} of {len(self):,} selected documents are not in the input ({examples}"
            f"{' ...' if len(some) > 3 else ''}); give the documents that were selected from, with the same "
            "--id_field and --text_field"
        )


def open_id_list(place: str, directory: str) -> IdList:
    """The list of a finished selection, by files in a directory that are made where they are not there.

    Several processes may make them at the same time: they write the same.

    Args:
        place: the selection's directory or its `ids.parquet`.
        directory: local; of this list alone.

    Raises:
        UserError: there is no finished selection, or the file is no list of `qurating select`.
    """
    if not os.path.exists(storage.join(directory, _SUMMARY)):
        _make(id_list_path(place), directory)
    return IdList(directory)


def _make(path: str, directory: str) -> None:
    scratch = f"{directory}.tmp-{secrets.token_hex(8)}"
    try:
        os.makedirs(scratch)
        summary = _write_list(path, scratch)
        storage.write_json(storage.join(scratch, _SUMMARY), summary)
        os.rename(scratch, directory)
    except OSError as error:
        if not os.path.exists(storage.join(directory, _SUMMARY)):  # else another process was faster
            raise UserError(f"{directory}: cannot be written ({error.strerror}); run again when it can") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_list(path: str, scratch: str) -> dict[str, Any]:
    with storage.open_read(path) as stream:
        try:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            return {"order": order_of(file.schema_arrow), "domains": _write_columns(file, scratch)}
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise not_a_list(path, error) from None
        except OSError as error:
            if error.errno is not None:  # of the disk; Arrow's, of a damaged list, has no number
                raise
            raise not_a_list(path, error) from None


def _write_columns(file: pq.ParquetFile, directory: str) -> list[str]:
    """Writes the files of all columns; the names of the domains."""
    domains: dict[str, int] = {}
    hashes, num, end = [np.zeros(0, np.uint64)], 0, 0
    with contextlib.ExitStack() as stack:
        streams = {name: stack.enter_context(open(storage.join(directory, name), "wb")) for name in _TYPES}
        for batch in file.iter_batches(_BATCH_ROWS, columns=["id", "domain", KEY, RANK]):
            columns = {name: batch.column(name) for name in batch.schema.names}
            expected = np.arange(num, num + len(batch))
            if columns["id"].null_count or not np.array_equal(columns[RANK].to_numpy(zero_copy_only=False), expected):
                raise ValueError("its ranks are not 0, 1, 2 ...")
            names = columns["id"].to_pylist()
            content = [name.encode() for name in names]
            ends = end + np.cumsum([len(name) for name in content], dtype=np.int64)
            hashes.append(gumbel.hash_ids(names))
            values: dict[str, Any] = {
                "ids": b"".join(content),
                "ends": ends.data,
                "keys": columns[KEY].to_numpy(zero_copy_only=False).astype(np.float64).data,
                "domains": name_codes(columns["domain"], domains).data,
            }
            for name, data in values.items():
                streams[name].write(data)
            num, end = num + len(batch), int(ends[-1]) if len(ends) else end
        together = np.concatenate(hashes)
        ranks = np.argsort(together, kind="stable")
        streams["ranks"].write(ranks.astype(np.int64).data)
        streams["hashes"].write(together[ranks].data)
    return list(domains)


def _map(path: str, kind: Any) -> NDArray[Any]:
    return np.zeros(0, kind) if os.path.getsize(path) == 0 else np.memmap(path, kind, "r")
