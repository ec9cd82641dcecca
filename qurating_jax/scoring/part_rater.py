"""Rates an input part by part: reading, tokenizing, rating and writing overlap, each busy with a part of its own.

A part is committed by one rename, with its counts in its footer; what stands is complete and is not done again. Parts
are independent: any worker may do any part, in any order, and its file is the same.
"""

import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import jax
import pyarrow as pa

from qurating_jax.data.part_documents import PartDocuments
from qurating_jax.data.rejects import Rejects
from qurating_jax.models.flops import peak_flops
from qurating_jax.runtime import storage
from qurating_jax.runtime.ahead import ahead
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
_P = TypeVar("_P", bound="_Part")

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
class _Part:
    """A part on its way: number and claim, which is closed when the part is committed or given up."""

    number: int
    claim: contextlib.ExitStack


@dataclass(frozen=True, eq=False)
class _ReadPart(_Part):
    documents: PartDocuments
    num_rejected: int


@dataclass(frozen=True, eq=False)
class _CutPart(_ReadPart):
    windows: Windows


@dataclass(frozen=True, eq=False)
class _Writing(_Part):
    rated: Future[RatedPart]


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
        with contextlib.closing(self.source):
            left = list(numbers)
            while left:
                passed: list[int] = []
                self._run_once(left, passed, on_rows, failures)
                # What others had is looked at again, as long as there is something to do: they may have died.
                left = passed if len(passed) < len(left) else []

    def _run_once(
        self,
        numbers: Sequence[int],
        passed: list[int],
        on_rows: Callable[[int], None],
        failures: dict[int, UserError],
    ) -> None:
        """Goes through parts once; `passed` gets those that other workers have."""
        claims = contextlib.ExitStack()  # of parts that an error leaves undone
        claimed = self._claimed(numbers, passed, on_rows, claims)
        read = ahead(_each(self._read, claimed, failures), "read")
        cut = ahead(_each(self._cut, read, failures), "tokenize")
        with claims, contextlib.closing(cut), ThreadPoolExecutor(1, "write") as writer:
            writing: list[_Writing] = []
            began = asked = time.monotonic()
            for part in cut:
                waited, work = time.monotonic() - asked, self.annotator.work
                table = self._rate(part, on_rows)
                now = time.monotonic()
                cost = self.annotator.work - work, now - began, waited
                self._report(writing, failures)
                writing = [_Writing(part.number, part.claim, writer.submit(self._commit, part, table, *cost))]
                began, asked = now, time.monotonic()
            self._report(writing, failures)

    def _report(self, writing: Sequence[_Writing], failures: dict[int, UserError]) -> None:
        """Waits until parts are written, and says what they took."""
        for part in _each(lambda part: part.rated.result(), writing, failures):
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
        self, numbers: Sequence[int], passed: list[int], on_rows: Callable[[int], None], claims: contextlib.ExitStack
    ) -> Iterator[_Part]:
        """Parts that are there to do; `claims` closes what is still claimed at its end."""
        for number in numbers:
            with contextlib.ExitStack() as stack:
                mine = self.claims is None or stack.enter_context(self.claims.take(f"part-{number:05d}"))
                # Looked at under the claim: nobody writes it now.
                if storage.exists(part_path(self.output, number)):
                    on_rows(self.source.parts.count_rows([number]))
                elif mine:
                    yield _Part(number, claims.enter_context(stack.pop_all()))
                else:
                    passed.append(number)

    def _read(self, part: _Part) -> _ReadPart:
        with Rejects(rejected_path(self.output, part.number), self.on_bad_row) as rejects:
            documents = self.source.read(part.number, rejects)
        names, added = documents.table.column_names, [self.annotator.layout.prefix + INDEX]
        clash = sorted(set(names) & {*self.annotator.layout.names(), *added})
        if clash and self.write == "columns":
            raise UserError(
                f"{part_path(self.output, part.number)}: its documents already have columns {', '.join(clash)}; "
                "rename them, or give --column_prefix"
            )
        return _ReadPart(part.number, part.claim, documents, rejects.count)

    def _cut(self, part: _ReadPart) -> _CutPart:
        if part.documents.tokens is not None:
            windows = self.annotator.cut_tokens(*part.documents.tokens)
        else:
            windows = self.annotator.cut(texts_of(part.documents))
        return _CutPart(part.number, part.claim, part.documents, part.num_rejected, windows)

    def _rate(self, part: _CutPart, on_rows: Callable[[int], None]) -> pa.Table:
        documents, layout = part.documents, self.annotator.layout
        advance = by_texts(on_rows, len(documents.index))
        texts = None if documents.texts is None else texts_of(documents)
        columns = self.annotator.columns(part.windows, texts, advance)
        advance(1.0)
        on_rows(part.num_rejected)
        table = documents.table.select(["id"]) if self.write == "sidecar" else documents.table
        if self.write == "columns":
            table = table.append_column(layout.prefix + INDEX, pa.array(documents.index))
        for name, column in columns.items():
            table = table.append_column(name, column)
        return table

    def _commit(self, part: _CutPart, table: pa.Table, work: Work, seconds: float, waited_seconds: float) -> RatedPart:
        lengths = part.windows.lengths
        counts = {
            "documents": len(lengths),
            "tokens": int(lengths.sum()),
            "windows": len(part.windows),
            "unrated": int((lengths == 0).sum()),
            "null": part.documents.num_null,
            "broken": part.documents.num_broken,
            "rejected": part.num_rejected,
        }
        self.verify()
        write_part(self.output, part.number, table, counts)
        part.claim.close()
        return RatedPart(part.number, counts, work, seconds, waited_seconds)


def _each(step: Callable[[_P], _T], parts: Iterable[_P], failures: dict[int, UserError]) -> Generator[_T, None, None]:
    """A step for every part; one at whose input a step fails is given up, and free for others."""
    for part in parts:
        try:
            done = step(part)
        except UserError as error:
            log.error("part %d: %s", part.number, error)
            failures[part.number] = error
            part.claim.close()
            continue
        yield done
