"""Our draw beside the original's rule, in turns, over the same memory-mapped numbers of synthetic documents.

The original's rule: ratings to mean 0 and standard deviation 1 in float64 over the temperature, Gumbel noise from a
generator, a full sort, documents taken until their tokens reach the budget; with domains a sort for each, whose
documents a mask finds. Every turn has a process of its own, so that its memory is its own.
"""

import contextlib
import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method import budget, gumbel
from qurating_jax.runtime.processes import standing_pool
from qurating_jax.selection.drawing.cuts import Draw
from qurating_jax.selection.drawing.decision import Decision, Step
from qurating_jax.selection.keys import passes, statistics
from qurating_jax.selection.keys.table import KeyBlock, Order

_PART_ROWS = 5_000_000
_WRITE_ROWS = 1 << 20
_POLL_SECONDS = 0.002
_COLUMNS = {"hashes": np.uint64, "ratings": np.float32, "tokens": np.int32, "domains": np.int32}


@dataclass(frozen=True)
class Setting:
    """A draw to be measured.

    Attributes:
        directory: where `write` put the numbers.
        num_documents: of the corpus.
        num_domains: 1: one pool.
        share: of the tokens that is selected.
        temperature: of the sample.
        memory_bytes: our limit of keys in memory.
        workers: processes of our passes.
    """

    directory: str
    num_documents: int
    num_domains: int
    share: float
    temperature: float
    memory_bytes: int
    workers: int

    can_be_sent: ClassVar[bool] = True

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains."""
        return ("",) if self.num_domains == 1 else tuple(f"{number:05d}" for number in range(self.num_domains))

    def __len__(self) -> int:
        return -(-self.num_documents // _PART_ROWS)

    def num_rows(self, number: int) -> int:
        """Documents of a part."""
        return min(_PART_ROWS, self.num_documents - number * _PART_ROWS)

    def block(self, number: int) -> KeyBlock:
        """The documents of a part, memory-mapped."""
        rows = slice(number * _PART_ROWS, number * _PART_ROWS + self.num_rows(number))
        column = {name: self.column(name)[rows] for name in _COLUMNS}
        domains = None if self.num_domains == 1 else column["domains"]
        return KeyBlock(column["hashes"], column["tokens"], domains, {"rating": column["ratings"]})

    def column(self, name: str) -> NDArray[Any]:
        """All values of a column, memory-mapped."""
        mapped = np.load(_path(self.directory, name), mmap_mode="r", allow_pickle=False)
        return mapped.view(np.ndarray)[: self.num_documents]  # slices of the subclass are slow to make


def write(directory: str, num_documents: int, num_domains: int) -> None:
    """Writes the numbers of synthetic documents: normal ratings, 100 to 1 024 tokens, 20 bytes each."""
    files = {
        name: np.lib.format.open_memmap(_path(directory, name), "w+", dtype, (num_documents,))
        for name, dtype in _COLUMNS.items()
    }
    generator = np.random.default_rng(0)
    for start in range(0, num_documents, _WRITE_ROWS):
        size = min(_WRITE_ROWS, num_documents - start)
        rows = slice(start, start + size)
        files["hashes"][rows] = generator.integers(0, 2**64, size, np.uint64)
        files["ratings"][rows] = generator.standard_normal(size, np.float32)
        files["tokens"][rows] = generator.integers(100, 1025, size, np.int32)
        files["domains"][rows] = generator.integers(0, num_domains, size, np.int32)
    for file in files.values():
        file.flush()


def ours(setting: Setting) -> int:
    """Moments, totals, thresholds and the rows of the selected documents; returns their tokens."""
    moments = statistics.moments(setting, "rating", setting.workers)
    available = statistics.totals(setting, ["rating"], setting.workers).tokens
    wanted = round(setting.share * int(available.sum()))
    targets = budget.domain_targets(available, wanted, names=setting.domain_names)
    scale = 1 / (moments.std * setting.temperature)
    order = Order("rating", scale, -moments.mean * scale, gumbel.noise_stream(0, "bench"))
    draw = Draw(
        table=setting,
        order=order,
        targets=[Fraction(int(target)) for target in targets],
        available=available,
        memory_bytes=setting.memory_bytes,
        workers=setting.workers,
    )
    step = Step(0, order, draw.run().cuts)
    selected = np.zeros(-(-setting.num_documents // 8), np.uint8)  # a bit each
    total, start = 0, 0
    decision = Decision(("",), (), (step,))
    # Pieces have a multiple of eight rows, but for the last one of a part.
    for taken, tokens in passes.over(setting, partial(_taken, decision), setting.workers):
        selected[start : start + len(taken)] = taken
        start += len(taken)
        total += tokens
    return total


def original(setting: Setting) -> int:
    """The original's rule; returns the tokens of the selected documents."""
    ratings = np.asarray(setting.column("ratings"), np.float64)
    ratings = (ratings - ratings.mean()) / ratings.std() / setting.temperature
    ratings += np.random.default_rng(0).gumbel(size=len(ratings))
    tokens = setting.column("tokens")
    if setting.num_domains == 1:
        return int(tokens[_fill(ratings, tokens, setting.share)].sum(dtype=np.int64))
    domains, found = setting.column("domains"), []
    for number in np.unique(domains):
        mask = domains == number
        found.append(np.flatnonzero(mask)[_fill(ratings[mask], tokens[mask], setting.share)])
    return int(tokens[np.concatenate(found)].sum(dtype=np.int64))


def measure(side: Callable[[Setting], int], setting: Setting, *, warm: bool = True) -> dict[str, float]:
    """One turn in a process of its own: seconds by the clock and of CPU, peak of its own memory in bytes, tokens.

    Args:
        side: `ours` or `original`.
        setting: what it works on.
        warm: read the files into memory first.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_turn, side, setting, warm).result()


def contest(setting: Setting, rounds: int) -> dict[str, Any]:
    """Both sides in turns.

    Returns:
        Medians of every side and the medians of the ratios within a round.
    """
    sides = {"ours": ours, "original": original}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            turns[name].append(measure(sides[name], setting))
    medians = {
        name: {kind: float(np.median([turn[kind] for turn in found])) for kind in found[0]}
        for name, found in turns.items()
    }
    ratios = {
        kind: float(np.median([b[kind] / a[kind] for a, b in zip(turns["ours"], turns["original"], strict=True)]))
        for kind in ("wall_seconds", "cpu_seconds")
    }
    return {"documents": setting.num_documents, "domains": setting.num_domains, **medians, "ratios": ratios}


def growth(settings: list[Setting]) -> list[dict[str, Any]]:
    """Our draw from files that are not in memory yet, then once more when they are: seconds per document of each."""
    found = []
    for setting in settings:
        forget(setting.directory)
        cold, warm = measure(ours, setting, warm=False), measure(ours, setting)
        found.append(
            {
                "documents": setting.num_documents,
                "peak_bytes": warm["peak_bytes"],
                "from_disk": cold,
                "from_memory": warm,
                "nanoseconds_per_document": {
                    name: 1e9 * turn["wall_seconds"] / setting.num_documents
                    for name, turn in (("from_disk", cold), ("from_memory", warm))
                },
            }
        )
    return found


def forget(directory: str) -> None:
    """Asks the system to drop what it holds of the files in memory."""
    for name in _COLUMNS:
        descriptor = os.open(_path(directory, name), os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _taken(decision: Decision, piece: KeyBlock) -> tuple[NDArray[np.uint8], int]:
    mask = decision.taken(piece)
    return np.packbits(mask), int(piece.tokens[np.flatnonzero(mask)].sum(dtype=np.int64))


def _fill(keys: NDArray[np.float64], tokens: NDArray[np.int32], share: float) -> NDArray[np.int64]:
    order = np.argsort(-keys)
    reached = np.cumsum(tokens[order], dtype=np.int64)
    return order[: int(np.argmax(reached >= share * reached[-1])) + 1]


def _turn(side: Callable[[Setting], int], setting: Setting, warm: bool) -> dict[str, float]:
    if warm:
        for name in _COLUMNS:
            setting.column(name).max()
    before, peak, over = _own_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.is_set():
            peak = max(peak, _own_bytes())
            time.sleep(_POLL_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), _cpu_seconds()
    tokens = side(setting)
    wall = time.perf_counter() - wall
    over.set()
    watcher.join()
    standing_pool(setting.workers).shutdown()  # only then its processes count as children that ended
    cpu = _cpu_seconds() - cpu
    return {"wall_seconds": wall, "cpu_seconds": cpu, "peak_bytes": float(peak - before), "tokens": float(tokens)}


def _cpu_seconds() -> float:
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in used)


def _own_bytes() -> int:
    """Memory of this process and its children beside mapped files, in bytes."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return sum(_anonymous_bytes(process) for process in ["self", *children])


def _anonymous_bytes(process: str) -> int:
    with contextlib.suppress(OSError):  # it has ended
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def _path(directory: str, name: str) -> str:
    return os.path.join(directory, f"{name}.npy")
