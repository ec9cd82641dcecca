"""DSIR beside the authors' package `data-selection`: the same documents on both sides, in turns.

Two contests. `features`: texts in memory to bucket counts, in this process; whoever begins a turn remembers nothing.
`weights`: files of JSON lines to log importance weights, with some processes on either side; the package reads and
hashes the raw documents twice, first for their frequencies and then for their weights.
"""

import gc
import importlib.util
import json
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.documents import Rejects, find_files, read_documents
from qurating_jax.data.parts import cut_parts
from qurating_jax.method.dsir import log_ratios
from qurating_jax.method.hashed_ngrams import NgramHasher
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.dsir.weights import DsirOptions, count_raw, hash_input, read_target, write_weights
from qurating_jax.selection.keys.source import SelectionSource

_PEER = "data-selection"
_TOLERANCE = 1e-6  # of weights, relative
_PARTS_PER_WORKER = 8


@dataclass(frozen=True)
class Sample:
    """Documents for a contest.

    Attributes:
        texts: of the raw documents.
        directory: holds `raw.jsonl` and `target.jsonl`.
    """

    texts: tuple[str, ...]
    directory: Path


@dataclass(frozen=True)
class Turn:
    """Seconds of a turn by the wall clock and of CPU time, child processes included."""

    wall: float
    cpu: float


def obstacle() -> str | None:
    """Why there is nothing to compare with, None where there is."""
    if importlib.util.find_spec("data_selection") is None:
        return "data-selection is not installed (pip install 'qurating-jax[dev]')"
    return None


def contest(
    documents: Sequence[str],
    targets: Sequence[str],
    *,
    text_field: str = "text",
    num_workers: int = 1,
    rounds: int = 3,
    num_documents: int = 12_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Both contests on a random sample.

    Args:
        documents: the raw documents: paths, globs, directories or hub ids.
        targets: documents of the target; a tenth as many are drawn.
        text_field: column of the texts of both.
        num_workers: processes of either side in the contest of weights.
        rounds: turns of each side.
        num_documents: raw documents at most.
        seed: of the sample.

    Returns:
        `documents` and `bytes` of the sample; `features` and `weights` with the rates of the `sides` (median, lowest,
        highest) and the `ratios` of their times; `no_peer`: why there is nothing to compare with, or None;
        `largest_difference` of the weights, relative.

    Raises:
        UserError: the two sides' weights differ by more than 1e-6.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        raw = _draw(documents, text_field, num_documents, seed)
        _write(directory / "raw.jsonl", raw)
        _write(directory / "target.jsonl", _draw(targets, text_field, max(1, num_documents // 10), seed))
        sample = Sample(tuple(text for _, text in raw), directory)
        num_bytes = sum(len(text.encode()) for text in sample.texts)
        sides: dict[str, dict[str, Callable[[], object]]] = {
            "features": {"ours": partial(_our_features, sample)},
            "weights": {"ours": partial(_our_weights, sample, num_workers)},
        }
        reason = obstacle()
        if reason is None:
            sides["features"][_PEER] = partial(_peer_features, sample)
            sides["weights"][_PEER] = partial(_peer_weights, sample, num_workers)
        found: dict[str, Any] = {"documents": len(sample.texts), "bytes": num_bytes, "num_workers": num_workers}
        found["no_peer"] = reason
        found["features"], _ = _in_turns(sides["features"], rounds, len(sample.texts), num_bytes)
        found["weights"], results = _in_turns(sides["weights"], rounds, len(sample.texts), num_bytes)
        if reason is None:
            found["largest_difference"] = _difference(results["ours"], results[_PEER])
    return found


def _in_turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, num_documents: int, num_bytes: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the sides took, and what they returned last."""
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    results: dict[str, Any] = {}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            results.pop(name, None)
            gc.collect()
            wall, cpu = time.perf_counter(), _cpu_seconds()
            results[name] = sides[name]()
            turns[name].append(Turn(time.perf_counter() - wall, _cpu_seconds() - cpu))
    found: dict[str, Any] = {"sides": {}, "ratios": {}}
    for name, of_side in turns.items():
        seconds = {"wall": [turn.wall for turn in of_side], "cpu": [turn.cpu for turn in of_side]}
        found["sides"][name] = {
            f"{what}_per_{clock}_second": _spread([amount / taken for taken in seconds[clock]])
            for what, amount in (("documents", num_documents), ("bytes", num_bytes))
            for clock in seconds
        }
    ours, *others = turns
    for name in others:
        for clock in ("wall", "cpu"):
            theirs, mine = (np.array([getattr(turn, clock) for turn in turns[side]]) for side in (name, ours))
            found["ratios"][clock] = {
                "of_medians": float(np.median(theirs) / np.median(mine)),
                "median_of_rounds": float(np.median(theirs / mine)),
            }
    return found, results


def _our_features(sample: Sample) -> int:
    return len(NgramHasher().hash_texts(sample.texts))


def _peer_features(sample: Sample) -> int:
    from data_selection.hashed_ngram_dsir import get_ngram_counts

    return sum(len(get_ngram_counts(text)) > 0 for text in sample.texts)


def _our_weights(sample: Sample, num_workers: int) -> NDArray[np.float64]:
    files = find_files([str(sample.directory / "raw.jsonl")])
    rows = -(-len(sample.texts) // (_PARTS_PER_WORKER * num_workers))
    options = DsirOptions(min_tokens=1)
    with tempfile.TemporaryDirectory(dir=sample.directory) as cache:
        target = read_target("target", [str(sample.directory / "target.jsonl")], options, cache=cache, num_workers=1)
        parts = cut_parts(files, max_rows=rows, max_bytes=1 << 30)
        open_source = partial(SelectionSource, files, parts)
        ngrams = hash_input(cache, parts, open_source, options, num_workers=num_workers)
        raw = count_raw(ngrams, lambda _: np.zeros(0, np.uint64), options)  # all of it: no hashes are asked for
        scores: dict[int, NDArray[np.float64]] = {}
        write_weights(
            ngrams,
            {"target": log_ratios(target.counts, raw)},
            options,
            lambda _, number, values: scores.update({number: values}),
            num_threads=num_workers,
        )
    return np.concatenate([scores[number] for number in range(len(parts))])


def _peer_weights(sample: Sample, num_workers: int) -> NDArray[np.float64]:
    """The authors' weights; with several processes document i is in the file i mod `num_workers`."""
    from data_selection import HashedNgramDSIR
    from joblib.externals.loky import get_reusable_executor

    with tempfile.TemporaryDirectory(dir=sample.directory) as cache:
        paths = [[str(sample.directory / f"{name}.jsonl")] for name in ("raw", "target")]
        peer = HashedNgramDSIR(*paths, cache, num_proc=num_workers)
        peer.fit_importance_estimator(num_tokens_to_fit="all")
        peer.compute_importance_weights()
        weights = np.empty(len(sample.texts))
        for number in range(num_workers):
            path = Path(peer.log_importance_weights_dir) / f"{number}.npy"
            weights[number::num_workers] = np.load(path, allow_pickle=False)
    if num_workers > 1:
        get_reusable_executor().shutdown(wait=True)  # only then its processes count as children that ended
    return weights


def _difference(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """The largest relative difference; documents without a token have no weight here and 0 there."""
    weighed = ~np.isnan(ours)
    differences = np.abs(ours - theirs)[weighed] / np.maximum(np.abs(theirs[weighed]), 1e-9)
    worst = float(differences.max(initial=0.0))
    if not worst <= _TOLERANCE or np.abs(theirs[~weighed]).max(initial=0.0) > 0:
        raise UserError(
            f"the weights of data-selection differ by up to {worst:.2g}; with nltk 3.10 or later it cuts words "
            "otherwise (pip install 'nltk<3.10')"
        )
    return worst


def _draw(patterns: Sequence[str], text_field: str, number: int, seed: int) -> list[tuple[str, str]]:
    """Ids and texts of up to so many documents, in their order."""
    with Rejects(None, "error") as rejects:
        rows = read_documents(find_files(patterns), text_field=text_field, rejects=rejects)
        found = [(document.id, document.text) for document in rows]
    if not found:
        raise UserError(f"{', '.join(patterns)[:200]}: no documents")
    chosen = np.random.default_rng(seed).choice(len(found), min(number, len(found)), replace=False)
    return [found[place] for place in np.sort(chosen).tolist()]


def _write(path: Path, documents: Sequence[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for name, text in documents:
            stream.write(json.dumps({"id": name, "text": text}) + "\n")


def _cpu_seconds() -> float:
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in used)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "low": float(np.min(values)), "high": float(np.max(values))}
