"""DSIR of an input (`method.dsir`): its n-grams are hashed once, then weighed against any number of targets.

Steps, each kept in the cache of key files and gone through part by part:
    n-grams of the input (`ngrams-<digest>/`) and bucket counts of every target (`target-<digest>/`), hashed by
    `num_workers` processes -> counts of the raw corpus, sums over parts -> a score column per target
    (`scores-dsir-<digest>/`), about 0.5 bytes read per n-gram.
A new target, or another setting of the weights, reads no text of the input again.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.documents import find_files
from qurating_jax.data.parts import Parts, cut_parts
from qurating_jax.method import gumbel
from qurating_jax.method.dsir import MIN_TOKENS, bucket_counts, log_ratios, log_weights, num_tokens
from qurating_jax.method.hashed_ngrams import NUM_BUCKETS
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.runtime.progress import progress
from qurating_jax.selection.dsir.ngram_files import HashJob, NgramFiles, PartReader, digest
from qurating_jax.selection.keys.source import SelectionSource
from qurating_jax.selection.keys.table import KeyBlock

_TARGET_ROWS, _TARGET_BYTES = 1 << 17, 128 << 20  # of a part of a target
_PLACE_BITS = 16  # of a place in the order that the raw sample is taken in, for its histogram

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DsirOptions:
    """How documents are weighed; what is not said otherwise is the published rule.

    Attributes:
        text_field: column of the texts of the input and of the targets, or dotted path.
        num_buckets: of the hashed n-grams.
        min_tokens: documents with fewer tokens have no weight.
        length_norm: the mean over n-grams instead of their sum.
        pseudo_count: added to all counts (Laplace).
        max_raw_ngrams: the frequencies of the raw corpus come from a sample with at least so many n-grams; None: from
            all of it. (The authors' package takes the first 10^9 or so n-grams in the order of the files.)
        seed: of that sample.
    """

    text_field: str = "text"
    num_buckets: int = NUM_BUCKETS
    min_tokens: int = MIN_TOKENS
    length_norm: bool = False
    pseudo_count: float = 0.0
    max_raw_ngrams: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (("num_buckets", 1, 1 << 16), ("min_tokens", 1, None), ("max_raw_ngrams", 1, None)):
            value = getattr(self, name)
            if value is not None and not least <= value <= (most or value):
                raise UsageError(f"{name} is {value}; it has to be {least} or more" + f", at most {most}" * bool(most))
        if not 0 <= self.pseudo_count < float("inf"):
            raise UsageError(f"pseudo_count is {self.pseudo_count}; it has to be 0 or more")


@dataclass(frozen=True, eq=False)
class Target:
    """What documents are to be like.

    Attributes:
        name: unique.
        digest: of its files and of how they are read.
        counts: int64 [num_buckets], its bucket counts.
        num_documents: that it has.
    """

    name: str
    digest: str
    counts: NDArray[np.int64]
    num_documents: int

    @property
    def num_ngrams(self) -> int:
        """Its size, by which several targets share a budget."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class Weighed:
    """A score column.

    Attributes:
        score: name of the column of log weights, float64, NaN where a document is too short.
        directory: where its files lie.
        num_ngrams: size of the target.
        num_documents: of the target.
        num_short: documents of the input with fewer than `min_tokens` tokens.
        num_raw_ngrams: that the raw frequencies come from.
    """

    score: str
    directory: str
    num_ngrams: int
    num_documents: int
    num_short: int
    num_raw_ngrams: int


class ScoredTable(Protocol):
    """The input's key table, which keeps score columns: `KeyFiles`."""

    directory: str
    parts: Parts

    def block(self, number: int) -> KeyBlock:
        """The documents of a part."""

    def score_directory(self, name: str) -> str:
        """Where the files of a score lie."""

    def missing_scores(self, name: str) -> list[int]:
        """Numbers of the parts that lack a score."""

    def write_scores(self, name: str, number: int, values: NDArray[np.float64]) -> None:
        """Commits the scores of a part."""


def parse_targets(texts: Sequence[str]) -> dict[str, list[str]]:
    """`NAME=PATH` options as paths by name; a name that stands several times has several paths.

    Raises:
        UsageError: something else.
    """
    targets: dict[str, list[str]] = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not (name.strip() and sign and path):
            raise UsageError(f"--targets {text}: not NAME=PATH, as in wiki=data/wikipedia.parquet")
        targets.setdefault(name.strip(), []).append(path)
    return targets


def weigh_documents(
    keys: ScoredTable,
    open_source: Callable[[], PartReader],
    targets: Mapping[str, Sequence[str]],
    options: DsirOptions,
    *,
    cache: str,
    num_workers: int = 1,
) -> dict[str, Weighed]:
    """Score columns of log importance weights for every target; what is in the cache already is not done again.

    Args:
        keys: the input.
        open_source: opens it for reading by part; with more workers than one it must be a function that can be sent to
            a process (one of a module, or a `functools.partial` of one).
        targets: paths, globs, directories or hub ids of documents, by name.
        options: how documents are weighed.
        cache: directory for the counts of targets.
        num_workers: processes that hash, threads that weigh.

    Returns:
        The columns by target, in the order of `targets`.

    Raises:
        UserError: a target without n-grams, documents without texts, or what reading them raises.
    """
    if not targets:
        raise UsageError("DSIR needs a target (--targets NAME=PATH)")
    counted = [read_target(name, paths, options, cache=cache, num_workers=num_workers)
               for name, paths in targets.items()]  # fmt: skip
    files = hash_input(keys.directory, keys.parts, open_source, options, num_workers=num_workers)
    raw = count_raw(files, lambda number: keys.block(number).hashes, options)
    if not raw.any():
        raise UserError("the documents of the input have no words at all; is --text_field right?")
    columns = {target.name: _score_name(target, options) for target in counted}
    ratios = {
        columns[target.name]: log_ratios(target.counts, raw, pseudo_count=options.pseudo_count) for target in counted
    }
    write_weights(files, ratios, options, keys.write_scores, missing=keys.missing_scores, num_threads=num_workers)
    num_short = sum(int((num_tokens(files.lengths(part)) < options.min_tokens).sum()) for part in range(len(files)))
    log.info("dsir: %d documents have fewer than %d tokens and no weight", num_short, options.min_tokens)
    return {
        target.name: Weighed(
            columns[target.name],
            keys.score_directory(columns[target.name]),
            target.num_ngrams,
            target.num_documents,
            num_short,
            int(raw.sum()),
        )
        for target in counted
    }


def hash_input(
    cache: str, parts: Parts, open_source: Callable[[], PartReader], options: DsirOptions, *, num_workers: int
) -> NgramFiles:
    """The n-grams of an input, in `CACHE/ngrams-<digest>`.

    Args:
        cache: a directory of this input, cut and read in this way, alone (`KeyFiles.directory`).
        parts: its cut.
        open_source: see `weigh_documents`.
        options: text field and number of buckets.
        num_workers: processes.
    """
    directory = storage.join(cache, f"ngrams-{digest(options.text_field, options.num_buckets)}")
    return HashJob(directory, parts, open_source, options.text_field, options.num_buckets).run("n-grams", num_workers)


def read_target(name: str, paths: Sequence[str], options: DsirOptions, *, cache: str, num_workers: int = 1) -> Target:
    """The bucket counts of a target, of `CACHE/target-<digest>` where it has been read before.

    Raises:
        UserError: no documents, or none with a word; documents that cannot be read.
    """
    files = find_files(paths)
    identity = {
        "inputs": manifest.input_digest(paths, files),
        "ngrams": digest(options.text_field, options.num_buckets),
        "parts": [_TARGET_ROWS, _TARGET_BYTES],
    }
    key = manifest.sha256(json.dumps(identity, sort_keys=True))[:32]
    directory = storage.join(cache, f"target-{key}")
    plan = storage.join(directory, "parts.json")
    if not storage.exists(plan):  # the same whoever makes it, so that several may
        cut = cut_parts(files, max_rows=_TARGET_ROWS, max_bytes=_TARGET_BYTES)
        storage.write_json(plan, cut.to_json())
    parts = Parts.from_json(storage.read_json(plan), where=plan)
    job = HashJob(
        directory,
        parts,
        partial(SelectionSource, files, parts, text_field=options.text_field),
        options.text_field,
        options.num_buckets,
        keeps_documents=False,
    )
    found = job.run(f"target {name}", num_workers)
    counts = sum_counts(found)
    if not counts.any():
        raise UserError(f"{', '.join(paths)[:200]}: no words in `{options.text_field}`; a target of DSIR needs some")
    return Target(name, key, counts, sum(map(found.num_documents, range(len(found)))))


def sum_counts(files: NgramFiles) -> NDArray[np.int64]:
    """Bucket counts of all parts, int64 [num_buckets]."""
    return sum(map(files.counts, range(len(files))), np.zeros(files.num_buckets, np.int64))


def count_raw(
    files: NgramFiles, hashes: Callable[[int], NDArray[np.uint64]], options: DsirOptions
) -> NDArray[np.int64]:
    """Bucket counts of the raw corpus, int64 [num_buckets]: of all of it, or of a sample of whole documents.

    The sample takes documents in ascending order of 64 bits that the seed mixes from the hash of their id, until it has
    `max_raw_ngrams` n-grams or more: it depends neither on the order of the documents nor on the cut. Documents that
    have these bits in common (those of one id) are in it together or not at all.

    Args:
        files: the n-grams.
        hashes: by part, `gumbel.hash_ids` of the ids, uint64 [n].
        options: size and seed of the sample.
    """
    counts = sum_counts(files)
    most = options.max_raw_ngrams
    if most is None or int(counts.sum()) <= most:
        return counts
    stream = gumbel.noise_stream(options.seed, "raw n-grams of DSIR")

    def places() -> Iterator[NDArray[np.uint64]]:
        return (gumbel.uniform_bits(hashes(number), stream) for number in range(len(files)))

    last = _last_place(files, places, most)
    counts = np.zeros_like(counts)
    for number, bits in enumerate(places()):
        counts += bucket_counts(files.read(number), files.num_buckets, bits <= last)
    return counts


def write_weights(
    files: NgramFiles,
    ratios: Mapping[str, NDArray[np.float64]],
    options: DsirOptions,
    write_scores: Callable[[str, int, NDArray[np.float64]], None],
    *,
    missing: Callable[[str], Sequence[int]] | None = None,
    num_threads: int = 1,
) -> None:
    """Computes `log_weights` and hands them over as they come.

    Args:
        files: the n-grams.
        ratios: `log_ratios` by name of the score.
        options: least tokens and length normalisation.
        write_scores: called with (name, part, float64 [n]), from several threads.
        missing: the parts that a score lacks; None: all.
        num_threads: parts at work at once; each holds 2 bytes per n-gram.
    """
    wanted: dict[int, list[str]] = {}
    for name in ratios:
        for number in range(len(files)) if missing is None else missing(name):
            wanted.setdefault(number, []).append(name)

    def work(number: int) -> int:
        ngrams = files.read(number)
        for name in wanted[number]:
            values = log_weights(ngrams, ratios[name], min_tokens=options.min_tokens, length_norm=options.length_norm)
            write_scores(name, number, values)
        return len(ngrams)

    num_rows = files.parts.count_rows(wanted)
    with progress("weigh", num_rows, "documents") as advance, ThreadPoolExecutor(num_threads, "weigh") as threads:
        for number_documents in threads.map(work, sorted(wanted)):
            advance(number_documents)


def _last_place(files: NgramFiles, places: Callable[[], Iterator[NDArray[np.uint64]]], most: int) -> np.uint64:
    """The place of the document with which the sample has enough."""
    shift = np.uint64(64 - _PLACE_BITS)
    sums = np.zeros(1 << _PLACE_BITS, np.int64)
    for number, bits in enumerate(places()):
        np.add.at(sums, (bits >> shift).astype(np.int64), files.lengths(number))
    ends = np.cumsum(sums)
    bin_number = int(np.searchsorted(ends, most))  # the first one with which there are enough
    found = []
    for number, bits in enumerate(places()):
        inside = bits >> shift == np.uint64(bin_number)
        found.append((bits[inside], files.lengths(number)[inside]))
    bits, lengths = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(bits, kind="stable")
    left = most - int(ends[bin_number] - sums[bin_number])
    return bits[order][np.searchsorted(np.cumsum(lengths[order]), left)]


def _score_name(target: Target, options: DsirOptions) -> str:
    """A name for the column, which says all that its values depend on beside the input."""
    identity = dataclasses.asdict(options) | {"target": target.digest}
    if options.max_raw_ngrams is None:
        del identity["seed"]
    return f"dsir-{manifest.sha256(json.dumps(identity, sort_keys=True))[:32]}"
