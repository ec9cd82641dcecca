"""The files of an annotation that several workers share: its plan, its parts with their counts, and its end."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qurating_jax.data.document_writers import write_table
from qurating_jax.data.parts import Parts
from qurating_jax.runtime import storage
from qurating_jax.runtime.claims import Claims
from qurating_jax.runtime.errors import UserError

PLAN = "parts.json"
REJECTED = "rejected"  # a file per part; in a finished run one `rejected.jsonl`
_FOOTER = b"qurating.part"
_TIMEOUT_SECONDS = 6 * 3600.0  # counting the rows of a corpus of JSON lines takes a while


@dataclass(frozen=True, eq=False)
class Plan:
    """What all workers of a run have to agree on: the cut, and a sample of window sizes (int64 [m]) for the shapes."""

    parts: Parts
    window_sizes: NDArray[np.int64]


def shared_plan(output: str, make: Callable[[], Plan], claims: Claims | None) -> Plan:
    """The plan of a run: made by its first worker, who writes it into the directory; the others wait for it.

    Raises:
        UserError: what stands there is no plan, or the first worker takes longer than six hours.
    """
    try:
        with contextlib.ExitStack() as stack:
            if claims is not None:
                stack.enter_context(claims.wait("plan", timeout=_TIMEOUT_SECONDS, purpose="cuts the input into parts"))
            return _read_or_make(output, make)
    except UserError:
        if claims is not None:  # an input that cannot be rated leaves nothing that looks like work
            claims.remove()
        raise


def _read_or_make(output: str, make: Callable[[], Plan]) -> Plan:
    path = storage.join(output, PLAN)
    if not storage.exists(path):
        plan = make()
        sizes, counts = np.unique(plan.window_sizes, return_counts=True)
        histogram = [sizes.tolist(), counts.tolist()]
        storage.write_json(path, {"parts": plan.parts.to_json(), "window_sizes": histogram})
    # Read back also by the worker that made it: every worker then has the sizes in one order.
    document = storage.read_json(path)
    if not isinstance(document, dict) or set(document) != {"parts", "window_sizes"}:
        raise UserError(f"{path}: not a plan of this version; start again with --overwrite")
    try:
        sizes, counts = (np.array(values, np.int64) for values in document["window_sizes"])
        sample = np.repeat(sizes, counts)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{path}: `window_sizes` are not sizes and their counts; start again with --overwrite"
        ) from None
    return Plan(Parts.from_json(document["parts"], where=path), sample)


def part_path(output: str, number: int) -> str:
    """Where a part lies."""
    return storage.join(output, _name(number))


def rejected_path(output: str, number: int) -> str:
    """Where the rows of a part that were no documents are listed."""
    return storage.join(output, REJECTED, f"part-{number:05d}.jsonl")


def write_part(output: str, number: int, table: pa.Table, counts: dict[str, int]) -> None:
    """Commits a part: complete under its name, with its counts, or not there."""
    write_table(part_path(output, number), table.replace_schema_metadata({_FOOTER: json.dumps(counts).encode()}))


def read_counts(output: str, number: int) -> dict[str, int]:
    """The counts of a committed part; `UserError` where the file is none of ours."""
    path = part_path(output, number)
    try:
        with storage.open_read(path) as stream:
            metadata = pq.read_metadata(stream)
        counts: dict[str, int] = json.loads((metadata.metadata or {})[_FOOTER])
    except (pa.ArrowException, KeyError, ValueError):
        raise UserError(f"{path}: not a part of this run; remove it and run again") from None
    if metadata.num_rows != counts["documents"]:
        raise UserError(f"{path}: holds {metadata.num_rows} rows, not {counts['documents']}; remove it and run again")
    return counts


def missing_parts(output: str, parts: Parts) -> list[int]:
    """Numbers of the parts that are not committed."""
    present = set(storage.list_dir(output))
    return [number for number in range(len(parts)) if _name(number) not in present]


def conclude(output: str, parts: Parts) -> dict[str, int]:
    """Checks that all parts account for every row, and makes one `rejected.jsonl` of their lists, in input order.

    Several workers may do so at the same time: whoever finds that another one has removed the lists leaves its file.

    Returns:
        Sums of the parts' counts.

    Raises:
        UserError: a part of another cut, or one that is none of ours.
    """
    totals: dict[str, int] = {}
    with_rejects = []
    for number in range(len(parts)):
        counts = read_counts(output, number)
        start, stop = parts.span(number)
        if counts["documents"] + counts["rejected"] != stop - start:
            raise UserError(
                f"{part_path(output, number)}: accounts for {counts['documents'] + counts['rejected']} rows of "
                f"{stop - start}; remove it and run again"
            )
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
        with_rejects += [number] if counts["rejected"] else []
    if with_rejects:
        _merge_rejected(output, with_rejects)
    return totals


def _merge_rejected(output: str, numbers: list[int]) -> None:
    path = storage.join(output, f"{REJECTED}.jsonl")
    try:
        with storage.atomic_write(path) as merged:
            for number in numbers:
                with storage.open_read(rejected_path(output, number)) as stream:
                    merged.write(stream.read())
    except UserError:
        if not storage.exists(path):
            raise


def clear(output: str) -> None:
    """Removes what only a run in progress needs; several workers may do so at the same time."""
    with contextlib.suppress(FileNotFoundError):
        storage.remove_tree(storage.join(output, REJECTED))
    Claims(output).remove()


def _name(number: int) -> str:
    return f"part-{number:05d}.parquet"
