"""The work of a split, part by part, which any number of processes share.

What is hashed decides what stays together. By default it is the text (up to case and white space, as in `data.splits`):
equal texts are then on one side wherever they stand and whatever their ids are, so that no held-out text is learned
from through a copy, and nothing has to be remembered of other documents. A hash of the id would part copies that have
ids of their own. With a field (`source`, `id`) its equal values are together instead, and how many held-out texts are
training texts too is counted. How large a side becomes is up to chance: every text, or value, is held out with the
probability `heldout_fraction`, independent of the others.

The input is cut into parts (`data.parts`). Each leaves files of its own, `SIDE/[FOLDER/]part-NUMBER.parquet`, whose
rows keep their columns and their order, and last a record of them. Whoever does the last part adds the records up. What
is written depends on the documents and the options alone; a kill at any moment costs the parts under way.

Memory of a process: a part, a few times over.
"""

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data.document_writers import write_table
from qurating_jax.data.documents import REJECTED, excerpt
from qurating_jax.data.part_documents import DocumentParts, PartDocuments, check_columns
from qurating_jax.data.parts import Parts, cut_parts
from qurating_jax.data.rejects import Rejects
from qurating_jax.runtime import storage
from qurating_jax.runtime.claims import Claims, claims_on
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.processes import crew
from qurating_jax.runtime.progress import progress
from qurating_jax.selection.splitting.job import HELDOUT, SIDES, TRAIN, WORK, SplitJob, shard_name
from qurating_jax.selection.splitting.sides import (
    SharedTexts,
    check_folders,
    field_values,
    folder_name,
    heldout,
    text_hashes,
    value_hashes,
)

_PART_BYTES = 128 << 20  # a part has fewer rows than it may where these are long
_TIMEOUT_SECONDS = 6 * 3600.0
_HELD = np.uint64(1)  # the bit that says so in a stored hash of a text

Counts = dict[str, dict[str, list[int]]]  # of folders and sides: documents, bytes of their texts

log = logging.getLogger(__name__)


def split_documents(job: SplitJob, finish: Callable[[dict[str, Any]], None]) -> None:
    """Does the parts that nobody has done yet; whoever does the last one counts them and finishes the run.

    Args:
        job: the run.
        finish: called with the counts once everything is there, by one worker (without claims, perhaps by several);
            it writes the manifest.

    Raises:
        UserError: a bad row under policy "error"; a field that is named and not there; values that make no folders; a
            side without documents; the place cannot be written.
    """
    try:
        _split(job, finish)
    except OSError as error:
        if error.filename is not None:
            raise
        # A write that failed half-way does not say where.
        reason = f"cannot be written ({error.strerror}); make room and run the same command again, which goes on here"
        raise UserError(f"{job.output}: {reason}") from None


def clear(job: SplitJob) -> None:
    """Removes the working files of a finished run; several workers may do so at the same time."""
    with contextlib.suppress(OSError):
        storage.remove_tree(job.path(WORK))
    Claims(job.output).remove()


def check_fields(job: SplitJob) -> None:
    """Looks at columns before any work.

    Raises:
        UserError: a file lacks the text column, or all of them a field that the split is made by.
    """
    check_columns(job.files, needed=[job.text_field], added=())
    for field in {job.by, job.folders_by} - {"", "id"}:  # `id` is made where there is none
        problem: UserError | None = None
        for file in job.files:
            try:
                check_columns([file], needed=[field], added=())
                break
            except UserError as error:
                problem = problem or error
        else:
            raise problem or UserError(f"no documents with a field `{field}`")


def _split(job: SplitJob, finish: Callable[[dict[str, Any]], None]) -> None:
    claims = claims_on(job.output)
    parts = _plan(job, claims)
    if not len(parts):
        raise UserError("no documents in the input; there is nothing to split")
    mine = list(parts.share(*job.share))
    left = [number for number in mine if not _is_done(job, number)]
    start = parts.count_rows(mine) - parts.count_rows(left)
    with (
        contextlib.closing(_Splitter(job)) as own,
        progress("split", parts.count_rows(mine), "documents", start=start) as advance,
        crew((lambda: own) if job.num_workers == 1 else partial(_Splitter, job), job.num_workers) as workers,
    ):
        workers.work_shared(left, lambda number: advance(parts.count_rows([number])))
    missing = sum(not _is_done(job, number) for number in range(len(parts)))
    if missing:
        log.info("split: %d of %d parts are with other workers; whoever is last finishes", missing, len(parts))
        return
    with contextlib.ExitStack() as stack:
        if claims is not None and not stack.enter_context(claims.take("finish")):
            log.info("split: another worker adds up the counts and finishes the run")
        elif not job.finished:  # else the records are being removed
            job.verify()
            finish(_conclude(job, parts))


def _plan(job: SplitJob, claims: Claims | None) -> Parts:
    """The cut of the input: made by the first worker, the others wait for it."""
    with contextlib.ExitStack() as stack:
        if claims is not None:
            purpose = "cuts the input into parts"
            stack.enter_context(claims.wait("plan", timeout=_TIMEOUT_SECONDS, purpose=purpose))
        if not storage.exists(job.plan_path):
            with progress("split: count", None, "rows") as advance:
                parts = cut_parts(job.files, max_rows=job.rows_per_shard, max_bytes=_PART_BYTES, on_rows=advance)
            job.verify()
            storage.write_json(job.plan_path, parts.to_json())
            log.info(
                "split: %s rows in %d parts; a share of %g is held out by a hash of %s and the seed %d",
                f"{parts.num_rows:,}", len(parts), job.heldout_fraction,
                f"`{job.by}`" if job.by else "the text (up to case and white space)", job.seed,
            )  # fmt: skip
    return _read_plan(job)


def _read_plan(job: SplitJob) -> Parts:
    return Parts.from_json(storage.read_json(job.plan_path), where=job.plan_path)


def _is_done(job: SplitJob, number: int) -> bool:
    return storage.exists(job.record_path(number)) or job.finished


# ---- a part


class _Splitter:
    """Does parts, in one process."""

    def __init__(self, job: SplitJob) -> None:
        self._job, self._claims, self._parts = job, claims_on(job.output), _read_plan(job)
        self._source = DocumentParts(job.files, self._parts, text_field=job.text_field, id_field=job.id_field)
        self._file_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._parts.rows, dtype=np.int64)])

    def close(self) -> None:
        """Closes the file that the last part ended in."""
        self._source.close()

    def __call__(self, number: int) -> bool:
        """Does a part; False where another worker is doing it."""
        with contextlib.ExitStack() as stack:
            mine = self._claims is None or stack.enter_context(self._claims.take(f"part-{number:05d}"))
            # Looked at under the claim: nobody writes it now.
            if _is_done(self._job, number):
                return True
            if mine:
                self._do(number)
            return mine

    def _do(self, number: int) -> None:
        job = self._job
        with Rejects(job.rejected_path(number), job.on_bad_row) as rejects:
            table, texts = self._documents(self._source.read(number, rejects), rejects)
        hashes = text_hashes(texts)
        keys = value_hashes(field_values(table, job.by, "by"), hashes) if job.by else hashes
        held = heldout(keys, job.heldout_fraction, job.seed)
        folders = _folders(table, job)
        job.verify()
        counts = self._write(number, table, held, folders, np.array([len(text.encode()) for text in texts], np.int64))
        if job.by:
            with storage.atomic_write(job.texts_path(number)) as stream:
                np.save(stream, hashes & ~_HELD | np.where(held, _HELD, np.uint64(0)), allow_pickle=False)
        storage.write_json(job.record_path(number), {"rejected": rejects.count, "folders": counts})

    def _documents(self, found: PartDocuments, rejects: Rejects) -> tuple[pa.Table, list[str]]:
        """The rows that have a text, and their texts."""
        assert found.texts is not None
        table, keep = found.table, np.array([text is not None for text in found.texts], bool)
        for row in np.flatnonzero(~keep).tolist():
            place = int(np.searchsorted(self._file_starts, found.index[row], side="right")) - 1
            line = int(found.index[row] - self._file_starts[place]) + 1
            reason = f"no text in `{self._job.text_field}`"
            rejects.add(self._job.files[place], line, reason, excerpt(table.slice(row, 1).to_pylist()[0]))
        return table.filter(pa.array(keep)), [text for text in found.texts if text is not None]

    def _write(
        self,
        number: int,
        table: pa.Table,
        held: NDArray[np.bool_],
        folders: Sequence[str],
        num_bytes: NDArray[np.int64],
    ) -> Counts:
        """A file for every side and folder that has documents of the part; returns what is in them."""
        counts: Counts = {}
        names, places = np.unique(np.array(folders, object), return_inverse=True)
        for place, folder in enumerate(names.tolist()):
            counts[folder] = {}
            for side, on_side in ((TRAIN, ~held), (HELDOUT, held)):
                chosen = on_side & (places == place)
                counts[folder][side] = [int(chosen.sum()), int(num_bytes[chosen].sum())]
                if chosen.any():
                    path = storage.join(self._job.folder_path(side, folder), shard_name(number))
                    write_table(path, table.filter(pa.array(chosen)))
        return counts


def _folders(table: pa.Table, job: SplitJob) -> list[str]:
    """The folder of every row, [n]."""
    if not job.folders_by:
        return [""] * len(table)
    folders = [folder_name(value) for value in field_values(table, job.folders_by, "folders_by")]
    check_folders(folders)
    return folders


# ---- the end


def _conclude(job: SplitJob, parts: Parts) -> dict[str, Any]:
    """Checks that every row and every file is there, merges the lists of rejected rows, and returns the counts."""
    total: dict[str, dict[str, Counter[str]]] = {}
    expected: dict[tuple[str, str], list[str]] = {}
    with_rejects, num_rejected = [], 0
    for number in range(len(parts)):
        record = storage.read_json(job.record_path(number))
        num_documents = 0
        for folder, sides in record["folders"].items():
            for side, (documents, num_bytes) in sides.items():
                counted = total.setdefault(folder, {side: Counter() for side in SIDES})[side]
                counted.update(documents=documents, bytes=num_bytes)
                num_documents += documents
                if documents:
                    expected.setdefault((side, folder), []).append(shard_name(number))
        if num_documents + record["rejected"] != parts.count_rows([number]):
            raise UserError(f"{job.record_path(number)}: does not account for all rows; start again with --overwrite")
        num_rejected += record["rejected"]
        with_rejects += [number] if record["rejected"] else []
    counts = _counts(job, total) | {"num_rejected": num_rejected}
    _check_files(job, expected)
    _merge_rejected(job, with_rejects)
    return counts


def _counts(job: SplitJob, total: dict[str, dict[str, Counter[str]]]) -> dict[str, Any]:
    sides = {side: sum((folder[side] for folder in total.values()), Counter()) for side in SIDES}
    num_documents = sum(side["documents"] for side in sides.values())
    for side in SIDES:
        if num_documents and not sides[side]["documents"]:
            raise UserError(
                f"none of {num_documents:,} documents is on the side `{side}` (--heldout_fraction "
                f"{job.heldout_fraction:g}, --seed {job.seed}); change one of them, with --overwrite"
            )
    if not num_documents:
        raise UserError("every row was rejected; there is nothing to split")
    counts: dict[str, Any] = {
        "num_documents": num_documents,
        "num_bytes": sum(side["bytes"] for side in sides.values()),
        **{f"num_{side}": sides[side]["documents"] for side in SIDES},
        **{f"num_{side}_bytes": sides[side]["bytes"] for side in SIDES},
    }
    if job.by:
        counts["num_heldout_in_train"] = _count_shared(job)
    if job.folders_by:
        check_folders(total)
        counts["folders"] = {
            folder: {side: total[folder][side]["documents"] for side in SIDES}
            | {"bytes": sum(total[folder][side]["bytes"] for side in SIDES)}
            for folder in sorted(total)
        }
    return counts


def _count_shared(job: SplitJob) -> int:
    """Held-out documents whose text is a training document's too; the files of hashes are read twice, one at a time."""
    places = [job.path(WORK, name) for name in storage.list_dir(job.path(WORK)) if name.endswith(".npy")]

    def side(place: str, held: bool) -> NDArray[np.uint64]:
        with storage.open_read(place) as stream:
            stored = np.load(stream, allow_pickle=False)
        chosen: NDArray[np.uint64] = stored[(stored & _HELD == _HELD) == held] & ~_HELD
        return chosen

    shared = SharedTexts(side(place, True) for place in places)
    for place in places:
        shared.add(side(place, False))
    return shared.count


def _check_files(job: SplitJob, expected: dict[tuple[str, str], list[str]]) -> None:
    """Removes what killed writers left, and looks whether all files are there and no others."""
    for (side, folder), names in expected.items():
        directory = job.folder_path(side, folder)
        storage.remove_temporaries(directory)
        found = [name for name in storage.list_dir(directory) if not storage.is_temporary(name)]
        if found != names:
            odd = min(set(found) ^ set(names))
            what = "is not of this run" if odd in found else "is missing"
            raise UserError(f"{directory}: {odd} {what}; start again with --overwrite")


def _merge_rejected(job: SplitJob, numbers: list[int]) -> None:
    """Makes one list of the parts' lists, by file and line: within a part reasons of one kind come together."""
    if not numbers:
        return
    places = {file: place for place, file in enumerate(job.files)}
    with storage.atomic_write(job.path(REJECTED)) as merged:
        for number in numbers:
            with storage.open_read(job.rejected_path(number)) as stream:
                rows = [(json.loads(line), line) for line in stream]
            rows.sort(key=lambda row: (places[row[0]["file"]], row[0]["line"]))
            merged.writelines(line for _, line in rows)
