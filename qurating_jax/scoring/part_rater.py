"""Rates an input part by part: reading and tokenizing the next part, rating this one and writing the last one overlap.

A part is committed by one rename, with its counts in its footer; what stands is complete and is not done again. Parts
are independent: any worker may do any part, in any order, and its file is the same.
"""

import contextlib
import itertools
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import jax
import pyarrow as pa

from qurating_jax.data.part_documents import PartDocuments
from qurating_jax.data.rejects import Rejects
from qurating_jax.models.flops import peak_flops
from qurating_jax.runtime import storage
from qurating_jax.runtime.claims import Claims
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.annotator import Annotator
from qurating_jax.scoring.part_files import part_path, rejected_path, write_part
from qurating_jax.scoring.part_source import PartSource, texts_of
from qurating_jax.scoring.rater import by_texts
from qurating_jax.scoring.scorer import Work
from qurating_jax.scoring.windows import Windows

INDEX = "index"
METRICS = "metrics.jsonl"
_T = TypeVar("_T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RatedPart:
    """A part that has just been committed.

    Attributes:
        number: of the part.
        counts: as they stand in its footer.
        work: what the devices did.
        seconds: since the part before it was rated; of the first part, since the start.
        waited_seconds: of these, the time in which nothing was there to rate: the host was still reading.
    """

    number: int
    counts: dict[str, int]
    work: Work
    seconds: float
    waited_seconds: float

    def metrics(self) -> dict[str, Any]:
        """A line of `metrics.jsonl`; MFU only where the peak of the devices is known."""
        seconds = max(self.seconds, 1e-9)
        padding = 1 - self.work.tokens / self.work.places if self.work.places else 0.0
        metrics = {
            "part": self.number,
            **self.counts,
            "seconds": self.seconds,
            "waited_seconds": self.waited_seconds,
            "tokens_per_second": self.counts["tokens"] / seconds,
            "padding": padding,
            "host": socket.gethostname(),
        }
        if (peak := peak_flops(jax.local_devices()[0].device_kind)) and self.work.flops:
            metrics["mfu"] = self.work.flops / seconds / (peak * jax.local_device_count())
        return metrics


@dataclass(frozen=True, eq=False)
class _Prepared:
    number: int
    documents: PartDocuments
    windows: Windows
    num_rejected: int
    claim: contextlib.ExitStack


@dataclass(frozen=True, eq=False)
class PartRater:
    """Reads parts from a source, rates them and writes `part-00000.parquet` ... into a directory.

    Attributes:
        source: the documents.
        annotator: what rates them.
        output: the directory.
        write: the source's columns and the ratings, or ids and ratings alone.
        on_bad_row: rows that are no documents: an error of their part, or left out and listed.
        claims: so that no two workers do one part; None: nobody else works here.
        verify: raises where the directory has been given to another run; called before every commit.
    """

    source: PartSource
    annotator: Annotator
    output: str
    write: Literal["columns", "sidecar"]
    on_bad_row: Literal["error", "skip"]
    claims: Claims | None
    verify: Callable[[], None]

    def run(self, numbers: Sequence[int], on_rows: Callable[[int], None], failures: dict[int, UserError]) -> None:
        """Rates those parts that nobody has done or is doing; `metrics.jsonl` gets a line for each.

        Args:
            numbers: the parts to look at.
            on_rows: called with numbers of rows that are done, by whomever.
            failures: gets the parts that cannot be read or written as they are; the others go on.
        """
        held: list[contextlib.ExitStack] = []
        with (
            contextlib.closing(self.source),
            ThreadPoolExecutor(1, "read") as reader,
            ThreadPoolExecutor(1, "write") as writer,
        ):
            reading: tuple[int, Future[_Prepared]] | None = None
            writing: tuple[int, Future[RatedPart]] | None = None
            began = time.monotonic()
            try:
                for upcoming in itertools.chain(self._claimed(numbers, on_rows), [None]):
                    current, reading = reading, None
                    if upcoming is not None:
                        number, claim = upcoming
                        held.append(claim)
                        reading = number, reader.submit(self._prepare, number, claim)
                    asked = time.monotonic()
                    prepared = current and _result(current, failures)
                    if prepared:
                        waited, work = time.monotonic() - asked, self.annotator.work
                        table = self._rate(prepared, on_rows)
                        now = time.monotonic()
                        cost = self.annotator.work - work, now - began, waited
                        began = now
                        if writing and (done := _result(writing, failures)):
                            self._report(done)
                        writing = prepared.number, writer.submit(self._commit, prepared, table, *cost)
                if writing and (done := _result(writing, failures)):
                    self._report(done)
            finally:
                for claim in held:  # of parts that an error left undone
                    claim.close()

    def _report(self, part: RatedPart) -> None:
        metrics = part.metrics()
        log.info(
            "annotate: part %d, %d documents, %d tokens, %d tokens/s, %.1f %% padding%s",
            part.number, part.counts["documents"], part.counts["tokens"], metrics["tokens_per_second"],
            100 * metrics["padding"], f", {metrics['mfu']:.1%} MFU" if "mfu" in metrics else "",
        )  # fmt: skip
        if not storage.is_remote(self.output):
            with open(storage.join(self.output, METRICS), "a", encoding="utf-8") as stream:
                stream.write(json.dumps(metrics) + "\n")  # one write: the lines of several workers do not mix

    def _claimed(
        self, numbers: Sequence[int], on_rows: Callable[[int], None]
    ) -> Iterator[tuple[int, contextlib.ExitStack]]:
        """Parts that are there to do, each with the claim on it, to be closed when it is committed.

        Those that another worker had are looked at again: it may have died, or failed on them.
        """
        passed = list(numbers)
        while passed:
            numbers, passed = passed, []
            for number in numbers:
                with contextlib.ExitStack() as stack:
                    mine = self.claims is None or stack.enter_context(self.claims.take(f"part-{number:05d}"))
                    # Looked at under the claim: nobody writes it now.
                    if storage.exists(part_path(self.output, number)):
                        start, stop = self.source.parts.span(number)
                        on_rows(stop - start)
                    elif mine:
                        yield number, stack.pop_all()
                    else:
                        passed.append(number)
            if len(passed) == len(numbers):
                return  # all with workers that live

    def _prepare(self, number: int, claim: contextlib.ExitStack) -> _Prepared:
        with _free_on_error(claim):
            with Rejects(rejected_path(self.output, number), self.on_bad_row) as rejects:
                documents = self.source.read(number, rejects)
            names, added = documents.table.column_names, [self.annotator.layout.prefix + INDEX]
            clash = sorted(set(names) & {*self.annotator.layout.names(), *added})
            if clash and self.write == "columns":
                raise UserError(
                    f"{part_path(self.output, number)}: its documents already have columns {', '.join(clash)}; "
                    "rename them, or give --column_prefix"
                )
            if documents.tokens is not None:
                windows = self.annotator.cut_tokens(*documents.tokens)
            else:
                windows = self.annotator.cut(texts_of(documents))
            return _Prepared(number, documents, windows, rejects.count, claim)

    def _rate(self, prepared: _Prepared, on_rows: Callable[[int], None]) -> pa.Table:
        documents, layout = prepared.documents, self.annotator.layout
        advance = by_texts(on_rows, len(documents.index))
        texts = None if documents.texts is None else texts_of(documents)
        columns = self.annotator.columns(prepared.windows, texts, advance)
        advance(1.0)
        on_rows(prepared.num_rejected)
        table = documents.table.select(["id"]) if self.write == "sidecar" else documents.table
        if self.write == "columns":
            table = table.append_column(layout.prefix + INDEX, pa.array(documents.index))
        for name, column in columns.items():
            table = table.append_column(name, column)
        return table

    def _commit(
        self, prepared: _Prepared, table: pa.Table, work: Work, seconds: float, waited_seconds: float
    ) -> RatedPart:
        with _free_on_error(prepared.claim):
            lengths = prepared.windows.lengths
            counts = {
                "documents": len(lengths),
                "tokens": int(lengths.sum()),
                "windows": len(prepared.windows),
                "unrated": int((lengths == 0).sum()),
                "null": prepared.documents.num_null,
                "broken": prepared.documents.num_broken,
                "rejected": prepared.num_rejected,
            }
            self.verify()
            write_part(self.output, prepared.number, table, counts)
        prepared.claim.close()
        return RatedPart(prepared.number, counts, work, seconds, waited_seconds)


@contextlib.contextmanager
def _free_on_error(claim: contextlib.ExitStack) -> Iterator[None]:
    """A part that failed is free for others."""
    try:
        yield
    except BaseException:
        claim.close()
        raise


def _result(job: "tuple[int, Future[_T]]", failures: dict[int, UserError]) -> "_T | None":
    """What a thread has made; its error counts against the part alone where the input is at fault."""
    number, future = job
    try:
        return future.result()
    except UserError as error:
        log.error("part %d: %s", number, error)
        failures[number] = error
        return None
