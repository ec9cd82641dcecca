"""The work of a run, in pieces that any number of processes share, each committed by one rename.

1. plan: the input is cut into parts (`data.parts`), once.
2. encode: every part is tokenized by itself and leaves flat tokens and a table of its documents (`encoding`).
3. index: with all lengths known, where every token stands is arithmetic; made once (`index`).
4. write: every shard of rows is made by itself from the flat tokens, as are the Megatron files (`writing`, `megatron`).

Whoever does the last piece merges `rows.parquet`. What is written depends on the documents and the options alone, not
on the cut into parts, on who did what, or on what was killed meanwhile: documents are laid out in the order of the
input or of the selection, and every shard is a function of the index.

Memory of a process: a part (`bytes_per_part`, several times over while it is parsed), then a shard of rows; the index
is mapped. The process that makes the index holds about 130 bytes per document for that time. Disk: the working files
hold the tokens once more, 2 or 4 bytes each, and about 60 bytes and the id per document.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from qurating_jax.data.documents import REJECTED
from qurating_jax.data.parts import Parts, cut_parts
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.claims import Claims, claims_on
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.processes import Crew, crew
from qurating_jax.runtime.progress import progress
from qurating_jax.tokenizing.encoding import PartEncoder
from qurating_jax.tokenizing.index import SUMMARY, Index, make_index
from qurating_jax.tokenizing.job import TRAINING, WORK, TokenizeJob
from qurating_jax.tokenizing.megatron import IDX, write_megatron
from qurating_jax.tokenizing.writing import SplitWriter, merge_pieces

_TIMEOUT_SECONDS = 6 * 3600.0
_ENCODE, _MEGATRON = "encode", "megatron"

Task = tuple[str, int]  # step and number: `encode`, `megatron`, or the name of a split whose shard is written

log = logging.getLogger(__name__)


def tokenize(job: TokenizeJob, finish: Callable[[dict[str, Any]], None]) -> None:
    """Does what nobody has done yet; whoever does the last piece merges the tables and finishes the run.

    Args:
        job: the run.
        finish: called with the counts once everything is there, by one worker (without claims, perhaps by several);
            it writes the manifest.

    Raises:
        UserError: see `encoding.PartEncoder` and `index.make_index`; or the place cannot be written.
    """
    try:
        _tokenize(job, finish)
    except OSError as error:
        if error.filename is not None:
            raise
        # A write that failed half-way does not say where.
        places = job.output if job.base == job.output else f"{job.output} or {job.base}"
        reason = f"cannot be written ({error.strerror}); make room and run the same command again, which goes on here"
        raise UserError(f"{places}: {reason}") from None


def _tokenize(job: TokenizeJob, finish: Callable[[dict[str, Any]], None]) -> None:
    claims = claims_on(job.base)
    parts = _plan(job, claims)
    if not len(parts):
        raise UserError("no documents in the input; there is nothing to tokenize")
    with contextlib.closing(_Worker(job)) as own, crew(_worker_of(job, own), job.num_workers) as workers:
        if not _encode_all(job, parts, claims, workers):
            return
        index = _index(job, parts, claims)
        if not _write_all(job, index, workers):
            return
    _conclude(job, parts, index, claims, finish)


def clear(job: TokenizeJob) -> None:
    """Removes the working files of a finished run; several workers may do so at the same time."""
    for directory in {job.work_path(), job.path(WORK)}:
        with contextlib.suppress(OSError):
            storage.remove_tree(directory)
    Claims(job.base).remove()
    if job.base != job.output:
        with contextlib.suppress(OSError):
            os.rmdir(job.base)


# ---- what is done once


@contextlib.contextmanager
def _once(claims: Claims | None, name: str, purpose: str) -> Iterator[None]:
    """Waits until nobody else does a step that only one should do."""
    with contextlib.ExitStack() as stack:
        if claims is not None:
            stack.enter_context(claims.wait(name, timeout=_TIMEOUT_SECONDS, purpose=purpose))
        yield


def _plan(job: TokenizeJob, claims: Claims | None) -> Parts:
    """The cut of the input, and the files of the selection: made by the first worker, the others wait for it."""
    path = job.work_path("parts.json")
    with _once(claims, "plan", "cuts the input into parts"):
        if job.open_selection is not None and not _finished(job):
            job.open_selection()
        if not storage.exists(path):
            with progress("tokenize: count", None, "rows") as advance:
                parts = cut_parts(
                    job.files,
                    max_rows=job.options.rows_per_part,
                    max_bytes=job.options.bytes_per_part,
                    on_rows=advance,
                )
            log.info("tokenize: %s rows in %d parts, %d worker(s)", f"{parts.num_rows:,}", len(parts), job.num_workers)
            storage.write_json(path, parts.to_json())
    return Parts.from_json(storage.read_json(path), where=path)


def _index(job: TokenizeJob, parts: Parts, claims: Claims | None) -> Index:
    with _once(claims, "index", "lays out the documents"):
        if not storage.exists(job.work_path("index", SUMMARY)):
            log.info("tokenize: laying out the documents")
            job.verify()
            make_index(job, parts)
    index = Index(job)
    for name, counts in index.summary["splits"].items():
        places = counts["rows"] * job.options.sequence_tokens
        log.info(
            "tokenize: %s: %s rows of %d %s tokens, %.2f%% padding; of %s tokens %.2f%% are dropped",
            name, f"{counts['rows']:,}", job.options.sequence_tokens, job.token_type.name,
            100 * counts["padding"] / max(places, 1), f"{counts['document_tokens'] + counts['eos_tokens']:,}",
            100 * counts["dropped_tokens"] / max(counts["document_tokens"] + counts["eos_tokens"], 1),
        )  # fmt: skip
    return index


def _conclude(
    job: TokenizeJob, parts: Parts, index: Index, claims: Claims | None, finish: Callable[[dict[str, Any]], None]
) -> None:
    """Merges the tables of pieces and the lists of rejected rows, and finishes, unless another worker does."""
    with contextlib.ExitStack() as stack:
        if claims is not None and not stack.enter_context(claims.take("finish")):
            log.info("tokenize: another worker merges the tables and finishes the run")
            return
        if _finished(job):  # its working files are being removed: a list made of what is left would replace a whole one
            return
        job.verify()
        for name in job.splits:
            merge_pieces(job, name, index.writer(name).num_shards)
            storage.remove_temporaries(job.split_path(name))  # of killed workers; all pieces are done
        _merge_rejected(job, parts, index.summary["counts"]["rejected"])
        finish(_counts(job, index))


def _merge_rejected(job: TokenizeJob, parts: Parts, expected: int) -> None:
    """Makes one list of the parts' lists, by file and line: within a part reasons of one kind come together."""
    if not expected:
        return
    paths = [path for path in map(job.rejected_path, range(len(parts))) if os.path.exists(path)]
    places = {file: place for place, file in enumerate(job.files)}
    with storage.atomic_write(job.path(REJECTED)) as merged:
        for path in paths:
            with storage.open_read(path) as stream:
                rows = [(json.loads(line), line) for line in stream]
            rows.sort(key=lambda row: (places[row[0]["file"]], row[0]["line"]))
            merged.writelines(line for _, line in rows)
            expected -= len(rows)
        if expected:
            raise UserError(f"{job.work_path('rejected')}: lists of rejected rows are missing; use --overwrite")


def _counts(job: TokenizeJob, index: Index) -> dict[str, Any]:
    splits = index.summary["splits"]
    rows = {name: splits[TRAINING][name] for name in ("rows", "tokens", "padding", "dropped_tokens", "overlap_tokens")}
    held_out = [split for name, split in splits.items() if name != TRAINING]
    return {
        **index.summary["counts"],
        **rows,
        "validation": held_out[0] if held_out else None,
        "layout": job.options.layout,
        "sequence_tokens": job.options.sequence_tokens,
        "vocab_size": job.tokenizer.vocab_size,
        "tokenizer": job.tokenizer.identity,
    }


# ---- pieces


def _encode_all(job: TokenizeJob, parts: Parts, claims: Claims | None, workers: Crew[Task, bool]) -> bool:
    """True where every part is encoded: laying out needs them all, so those of other workers are waited for."""
    place, of = job.share
    tasks = [(_ENCODE, number) for number in parts.share(place, of)]

    def count(task: Task) -> int:
        return parts.count_rows([task[1]])

    left = _do_all(job, "tokenize: encode", "documents", tasks, count, workers)
    while left and claims is not None:
        with claims.wait(_claim_name(left[0]), timeout=_TIMEOUT_SECONDS, purpose="encodes a part of the input"):
            pass
        left = _do_all(job, "tokenize: encode", "documents", left, count, workers)
    missing = [number for number in range(len(parts)) if not _is_done(job, (_ENCODE, number))]
    if missing:
        log.info(
            "tokenize: %d of %d parts are with other workers (--shard); when these have ended, run every share once "
            "more to write the rows", len(missing), len(parts),
        )  # fmt: skip
    return not missing


def _write_all(job: TokenizeJob, index: Index, workers: Crew[Task, bool]) -> bool:
    """True where every shard, and every Megatron file that is wanted, has been written."""
    writers = {name: index.writer(name) for name in job.splits}
    tasks = [(name, number) for name, writer in writers.items() for number in range(writer.num_shards)]
    if job.options.megatron:
        tasks = [*((_MEGATRON, number) for number in range(len(job.splits))), *tasks]

    def count(task: Task) -> int:
        if task[0] == _MEGATRON:
            return 0
        start, stop = writers[task[0]].span(task[1])
        return stop - start

    place, of = job.share
    mine = tasks[len(tasks) * place // of : len(tasks) * (place + 1) // of]
    _do_all(job, "tokenize: write", "rows", mine, count, workers)
    missing = [task for task in tasks if not _is_done(job, task)]
    if missing:
        log.info("tokenize: %d shards are with other workers; whoever is last finishes the run", len(missing))
    return not missing


def _do_all(
    job: TokenizeJob,
    title: str,
    unit: str,
    tasks: Sequence[Task],
    count: Callable[[Task], int],
    workers: Crew[Task, bool],
) -> list[Task]:
    """Does the pieces that nobody has done or is doing; returns those that others are doing."""
    left = [task for task in tasks if not _is_done(job, task)]
    total = sum(map(count, tasks))
    with progress(title, total, unit, start=total - sum(map(count, left))) as advance:
        return workers.work_shared(left, lambda task: advance(count(task)))


def _is_done(job: TokenizeJob, task: Task) -> bool:
    step, number = task
    if step == _ENCODE:
        path = job.encoded_path(number)
    elif step == _MEGATRON:
        path = job.split_path(job.splits[number], IDX)
    else:
        path = job.pieces_path(step, number)
    return storage.exists(path) or _finished(job)


def _finished(job: TokenizeJob) -> bool:
    """True where another worker has finished the run: its working files may be gone."""
    return storage.exists(job.path(manifest.MANIFEST))


def _claim_name(task: Task) -> str:
    return f"{task[0]}-{task[1]:05d}"


# ---- one process


def _worker_of(job: TokenizeJob, own: "_Worker") -> Callable[[], "_Worker"]:
    return (lambda: own) if job.num_workers == 1 else partial(_Worker, job)


class _Worker:
    """Does pieces, in one process."""

    def __init__(self, job: TokenizeJob) -> None:
        if job.num_workers > 1:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process per core: no threads beside it
        self._job, self._claims = job, claims_on(job.base)
        self._encoder: PartEncoder | None = None
        self._index: Index | None = None
        self._writers: dict[str, SplitWriter] = {}

    def close(self) -> None:
        """Closes what is open."""
        self._close_encoder()
        for writer in self._writers.values():
            writer.close()

    def __call__(self, task: Task) -> bool:
        """Does a piece; False where another worker is doing it."""
        with contextlib.ExitStack() as stack:
            mine = self._claims is None or stack.enter_context(self._claims.take(_claim_name(task)))
            # Looked at under the claim: nobody writes it now.
            if _is_done(self._job, task):
                return True
            if mine:
                self._do(*task)
            return mine

    def _close_encoder(self) -> None:
        if self._encoder is not None:
            self._encoder.close()
        self._encoder = None

    def _do(self, step: str, number: int) -> None:
        if step == _ENCODE:
            if self._encoder is None:
                path = self._job.work_path("parts.json")
                self._encoder = PartEncoder(self._job, Parts.from_json(storage.read_json(path), where=path))
            self._encoder.encode(number)
            return
        self._close_encoder()
        self._index = self._index or Index(self._job)
        if step == _MEGATRON:
            self._job.verify()
            write_megatron(self._job, self._index, self._job.splits[number])
            return
        if step not in self._writers:
            self._writers[step] = SplitWriter(self._job, self._index, step)
        self._writers[step].write(number)
