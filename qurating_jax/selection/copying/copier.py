"""The copying pass: the selected rows into output files in the selection's order, and the list of their ids.

Two steps, in pieces that are claimed, done and committed by one rename each, so that any number of processes share them
and a kill at any moment costs the pieces under way:

1. gather: a run of input parts is read, its selected rows go to `spill/rows-00000.arrow`, cut by the output files that
   they belong to, and their ids to `spill/ids-00000.arrow`.
2. write: of every output file the rows are picked up from all runs (in the input's order from neighbours), sorted, and
   written as `part-00000.parquet` or `.jsonl.zst`. File j holds exactly the ranks from j * rows_per_shard on.

Last `ids.parquet` is merged, range of ranks by range, and the spill removed. What is written depends on the selection
and the order alone (in the order `source` on the order of the input too), not on who did what, and not on how the input
is cut into parts and files.

Peak memory of a process: an input part and the rows of an output file, twice while they are sorted; for the ranks see
`CopyJob.memory_bytes`. Disk: the spill holds all selected rows once, lightly compressed. An order other than the
input's makes up to (runs of parts) x (output files) slices, about (documents / rows_per_shard)^2.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qurating_jax.data.document_writers import write_jsonl, write_table
from qurating_jax.runtime import storage
from qurating_jax.runtime.ahead import ahead
from qurating_jax.runtime.claims import Claims, claims_on
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.processes import Crew, crew
from qurating_jax.runtime.progress import progress
from qurating_jax.selection.copying.id_list import IDS, KEY, RANK, IdListWriter, id_schema, read_summary
from qurating_jax.selection.copying.plan import CopyPlan, in_input_order, read_plan, shared_plan
from qurating_jax.selection.copying.ranks import Ranking, rank
from qurating_jax.selection.copying.rows import CopyInputs, PartRows, in_order
from qurating_jax.selection.copying.spill import SliceGatherer, read_range
from qurating_jax.selection.keys.passes import num_processes

SPILL = "spill"

_IDS_PER_RANGE = 1 << 19
_JSON_ROWS = 1024  # turned into Python values at a time
_TIMEOUT_SECONDS = 6 * 3600.0

_TITLES = {"gather": "copy: read", "write": "copy: write"}

Step = Literal["gather", "write"]
Task = tuple[Step, int]

log = logging.getLogger(__name__)


def _no_check() -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class CopyJob:
    """What is copied, and how.

    Attributes:
        output: directory, local or remote.
        open_inputs: opens key table, decision and source; called once in every process (with more than one worker it
            must be a function that can be sent: one of a module, or a `functools.partial` of one).
        ranking: the order of the output.
        write: rows and ids, or ids alone.
        kind: format of the output files.
        rows_per_shard: rows of every output file but the last.
        num_workers: processes.
        share: (i, n): only the share i of n equal ones, for workers that cannot claim.
        memory_bytes: for places and hashes while the documents are ranked.
        verify: raises where the directory has been given to another run; called before every commit.
    """

    output: str
    open_inputs: Callable[[], CopyInputs]
    ranking: Ranking = Ranking()
    write: Literal["rows", "ids"] = "rows"
    kind: Literal["parquet", "jsonl.zst"] = "parquet"
    rows_per_shard: int = 50_000
    num_workers: int = 1
    share: tuple[int, int] = (0, 1)
    memory_bytes: int = 1 << 30
    verify: Callable[[], None] = _no_check

    def path(self, *parts: str) -> str:
        """A path inside the output directory."""
        return storage.join(self.output, *parts)

    def part_path(self, number: int) -> str:
        """Where an output file lies."""
        return self.path(f"part-{number:05d}.{self.kind}")

    def spill_path(self, name: str, run: int) -> str:
        """Where the rows or ids of a run lie."""
        return self.path(SPILL, f"{name}-{run:05d}.arrow")

    def result_path(self, step: Step, number: int) -> str:
        """The file that a piece of work ends with."""
        if step == "write":
            return self.part_path(number)
        return self.spill_path("rows" if self.write == "rows" else "ids", number)


@dataclass(frozen=True)
class Copied:
    """What stands in the directory.

    Attributes:
        finished: every file is there; False where other workers still have to do theirs.
        num_selected: documents.
        num_shards: output files.
        num_last: documents that come last because the order's score is missing.
    """

    finished: bool
    num_selected: int
    num_shards: int
    num_last: int


def copy_selection(job: CopyJob) -> Copied:
    """Copies what nobody has copied yet; whoever does the last piece merges `ids.parquet` and finishes.

    Raises:
        UserError: the source has one of the added columns already, or (JSON lines) one that JSON cannot hold; the input
            is not what the key files were made from; an id is selected twice; the directory cannot be written.
    """
    try:
        left = None if storage.exists(job.path(IDS)) else _copy(job)
    except UserError:
        if not storage.exists(job.path(IDS)):  # else another worker has finished, and removed what is read here
            raise
        return _conclude(job)
    return left or _conclude(job)


def _copy(job: CopyJob) -> Copied | None:
    """Copies and merges; None where all is there then, else what is known so far."""
    claims = claims_on(job.output)
    with contextlib.closing(job.open_inputs()) as inputs:
        PartRows(inputs, job.ranking, keeps_rows=job.write == "rows").check(json=job.kind == "jsonl.zst")
        plan = shared_plan(job.path(SPILL, "plan.json"), partial(_make_plan, job, inputs), claims)

        def make_own() -> _Copier:
            return _Copier(job, inputs, plan)

        make_worker = make_own if job.num_workers == 1 else partial(_Copier.open, job)
        with crew(make_worker, job.num_workers) as workers:
            done = _gather_all(job, plan, claims, workers) and (plan.shards is None or _write_all(job, plan, workers))
    if done and _merge_ids(job, plan, claims, members=len(inputs.picks.member_names) > 1):
        return None
    return Copied(False, plan.num_selected, 0 if plan.shards is None else len(plan.shards), plan.num_last)


def _make_plan(job: CopyJob, inputs: CopyInputs) -> CopyPlan:
    log.info("copy: ranking the selected documents")
    in_source_order, keeps_rows = job.ranking.kind == "source", job.write == "rows"
    sizes = [_IDS_PER_RANGE] if in_source_order or not keeps_rows else [_IDS_PER_RANGE, job.rows_per_shard]
    found = rank(inputs.table, inputs.picks, job.ranking, sizes, memory_bytes=job.memory_bytes, workers=num_processes())
    shards = None
    if keeps_rows and in_source_order:
        shards = in_input_order(int(found.counts.sum()), job.rows_per_shard)
    elif keeps_rows:
        shards = found.ranges[1]
    rows_per_run = job.rows_per_shard if keeps_rows else _IDS_PER_RANGE
    return CopyPlan(found.counts, shards, found.ranges[0], rows_per_run, found.num_last)


# ---- all pieces


def _gather_all(job: CopyJob, plan: CopyPlan, claims: Claims | None, workers: Crew[Task, bool]) -> bool:
    """True where every run has been gathered: writing needs them all, so those of other workers are waited for."""
    runs = range(len(plan.runs))
    left = _do_all(job, "gather", _share(len(runs), job.share), plan.count_rows, workers)
    while left and claims is not None:
        name = _claim_name("gather", left[0])
        with claims.wait(name, timeout=_TIMEOUT_SECONDS, purpose="reads a part of the input"):
            pass
        left = _do_all(job, "gather", left, plan.count_rows, workers)
    missing = _missing(job, "gather", runs)
    if missing:
        log.info(
            "copy: %d of %d runs of input parts are with other workers (--shard); when these have ended, run every "
            "share once more to write the output", len(missing), len(runs),
        )  # fmt: skip
    return not missing


def _write_all(job: CopyJob, plan: CopyPlan, workers: Crew[Task, bool]) -> bool:
    """True where every output file has been written."""
    assert plan.shards is not None
    sizes = np.diff(plan.shards.starts).tolist()
    _do_all(job, "write", _share(len(sizes), job.share), sizes.__getitem__, workers)
    missing = _missing(job, "write", range(len(sizes)))
    if missing:
        log.info("copy: %d output files are with other workers; whoever is last finishes the run", len(missing))
    return not missing


def _do_all(
    job: CopyJob, step: Step, numbers: Sequence[int], count: Callable[[int], int], workers: Crew[Task, bool]
) -> list[int]:
    """Does the pieces that nobody has done or is doing; returns those that others are doing."""
    left = _missing(job, step, numbers)
    total, start = sum(map(count, numbers)), sum(map(count, set(numbers) - set(left)))
    with progress(_TITLES[step], total, "documents", start=start) as advance:
        tasks: list[Task] = [(step, number) for number in left]
        return [number for _, number in workers.work_shared(tasks, lambda task: advance(count(task[1])))]


def _missing(job: CopyJob, step: Step, numbers: Sequence[int]) -> list[int]:
    """The pieces that are not done, by one listing."""
    if step == "gather" and storage.exists(job.path(IDS)):  # the run has ended, and its spill is gone
        return []
    present = set(storage.list_dir(job.path(SPILL) if step == "gather" else job.output))
    return [number for number in numbers if job.result_path(step, number).rsplit("/", 1)[1] not in present]


def _share(number: int, share: tuple[int, int]) -> range:
    place, of = share
    return range(number * place // of, number * (place + 1) // of)


def _claim_name(step: str, number: int) -> str:
    return f"{step}-{number:05d}"


def _is_done(job: CopyJob, step: Step, number: int) -> bool:
    """`_missing` of one piece."""
    return storage.exists(job.result_path(step, number)) or (step == "gather" and storage.exists(job.path(IDS)))


# ---- one piece


class _Copier:
    """Does pieces, in one process."""

    def __init__(self, job: CopyJob, inputs: CopyInputs, plan: CopyPlan) -> None:
        self._job, self._plan = job, plan
        self._rows = PartRows(inputs, job.ranking, keeps_rows=job.write == "rows")
        self._claims = claims_on(job.output)

    @classmethod
    def open(cls, job: CopyJob) -> "_Copier":
        return cls(job, job.open_inputs(), read_plan(job.path(SPILL, "plan.json")))

    def __call__(self, task: Task) -> bool:
        """Does a piece; False where another worker is doing it."""
        with contextlib.ExitStack() as stack:
            mine = self._claims is None or stack.enter_context(self._claims.take(_claim_name(*task)))
            # Looked at under the claim: nobody writes it now.
            if _is_done(self._job, *task):
                return True
            if mine:
                (self._gather if task[0] == "gather" else self._write)(task[1])
            return mine

    def _gather(self, run: int) -> None:
        plan, rows = self._plan, SliceGatherer(self._rows.row_schema)
        ids = SliceGatherer(self._rows.id_schema)
        for number in range(*plan.runs[run]):
            if not plan.counts[number]:
                continue
            found = self._rows.read(number, int(plan.counts[number]))
            ids.add(found.ids, plan.ids.range_of(found.places, found.hashes))
            if plan.shards is None:
                continue
            if self._job.ranking.kind == "source":
                ranks = np.arange(plan.firsts[number], plan.firsts[number + 1])
                table = found.rows_at(ranks.astype(np.uint64))
                rows.add(table, np.searchsorted(plan.shards.starts, ranks, side="right") - 1)
            else:
                rows.add(found.rows_at(found.places), plan.shards.range_of(found.places, found.hashes))
        self._job.verify()
        ids.write(self._job.spill_path("ids", run))
        if plan.shards is not None:
            rows.write(self._job.spill_path("rows", run))

    def _write(self, shard: int) -> None:
        plan, path = self._plan, self._job.part_path(shard)
        assert plan.shards is not None
        paths = [self._job.spill_path("rows", run) for run in plan.runs_of(shard)]
        start, stop = (int(rank) for rank in plan.shards.starts[shard : shard + 2])
        try:
            table = _ranked(read_range(paths, shard, self._rows.row_schema), start, stop, path, self._rows.ids_of)
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: too much for one file ({reason}); lower --rows_per_shard") from None
        if self._job.ranking.kind != "source":
            column = table.schema.get_field_index(KEY) + 1
            table = table.add_column(column, RANK, pa.array(np.arange(start, stop)))
        self._job.verify()
        if self._job.kind == "parquet":
            write_table(path, table)
        else:
            write_jsonl(path, _plain_rows(table))


def _ranked(
    table: pa.Table, start: int, stop: int, where: str, ids_of: Callable[[pa.Table], Sequence[str]]
) -> pa.Table:
    """The rows of the ranks from `start` to `stop` in order, without their places and hashes."""
    if len(table) != stop - start:
        raise UserError(f"{where}: {len(table)} rows were gathered for it, not {stop - start}; remove the directory "
                        f"`{SPILL}` beside it and run again")  # fmt: skip
    places, hashes = (column.to_numpy() for column in table.columns[-2:])
    rows = table.select(range(table.num_columns - 2)).combine_chunks()
    return rows.take(pa.array(in_order(places, hashes, lambda few: ids_of(rows.take(pa.array(few))))))


def _plain_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=_JSON_ROWS):
        yield from batch.to_pylist()


# ---- the end


def _merge_ids(job: CopyJob, plan: CopyPlan, claims: Claims | None, *, members: bool) -> bool:
    """Writes `ids.parquet`; False where another worker is doing it."""
    with contextlib.ExitStack() as stack:
        if claims is not None and not stack.enter_context(claims.take("ids")):
            log.info("copy: another worker merges the lists of ids and finishes the run")
            return False
        if storage.exists(job.path(IDS)):
            return True
        log.info("copy: merging the lists of ids")
        job.verify()
        _write_ids(job, plan, members)
    return True


def _write_ids(job: CopyJob, plan: CopyPlan, members: bool) -> None:
    schema = id_schema(members=members)
    spilled = PartRows.spilled(schema)
    paths = [job.spill_path("ids", run) for run in range(len(plan.runs))]

    def tables() -> Any:
        for number in range(len(plan.ids)):
            start, stop = (int(rank) for rank in plan.ids.starts[number : number + 2])
            found = read_range(paths, number, spilled)
            table = _ranked(found, start, stop, job.path(IDS), lambda rows: rows["id"].to_pylist())
            yield table.add_column(schema.get_field_index(RANK), RANK, pa.array(np.arange(start, stop)))

    num_shards = 0 if plan.shards is None else len(plan.shards)
    with storage.atomic_write(job.path(IDS)) as stream, IdListWriter(
        stream, schema, order=job.ranking.kind, num_shards=num_shards, num_last=plan.num_last
    ) as writer:  # fmt: skip
        for table in ahead(tables(), "ids"):
            writer.write(table)


def _conclude(job: CopyJob) -> Copied:
    """Checks that all selected rows have been written, and removes what only a run in progress needs."""
    num_selected, num_shards, num_last = read_summary(job.path(IDS))
    names = [name for name in storage.list_dir(job.output) if name.startswith("part-")]
    paths = [job.path(name) for name in names if not storage.is_temporary(name)]
    written = num_selected
    if job.kind == "parquet" and job.write == "rows":
        written = sum(map(_count_rows, paths))
    if written != num_selected or paths != [job.part_path(number) for number in range(num_shards)]:
        raise UserError(
            f"{job.output}: {written} rows in {len(paths)} files, but {IDS} has {num_selected} in {num_shards}; "
            "start again with --overwrite"
        )
    with contextlib.suppress(OSError):  # another worker who finishes too
        storage.remove_tree(job.path(SPILL))
    Claims(job.output).remove()
    return Copied(True, num_selected, num_shards, num_last)


def _count_rows(path: str) -> int:
    with storage.open_read(path) as stream:
        try:
            return int(pq.read_metadata(stream).num_rows)
        except pa.ArrowException as error:
            raise UserError(f"{path}: not Parquet ({error}); start again with --overwrite") from None
