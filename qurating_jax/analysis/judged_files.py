"""Reads judged pairs, and finds out which of them a rater was not trained on."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qurating_jax.analysis.judged import JudgedPairs
from qurating_jax.data import documents
from qurating_jax.data.judgment_files import read_judgments
from qurating_jax.data.judgment_sources import find_judgments
from qurating_jax.data.judgments import MISSING, Judgments
from qurating_jax.data.splits import fold, split_disjoint
from qurating_jax.data.verdicts import FILE as VERDICTS
from qurating_jax.method import gumbel
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError

_MOST_JUDGES = 3  # that are named

log = logging.getLogger(__name__)


def read_judged(
    sources: Sequence[str],
    *,
    rater: str | None = None,
    num_pairs: int = 2000,
    seed: int = 0,
) -> JudgedPairs:
    """Some of the judged pairs, those first that the rater was not trained on, otherwise drawn by seed and ids.

    Args:
        sources: what `read_judgments` reads: outputs of `qurating judge run`, files in the published schema or of
            pairs, hub ids. Probabilities by order are in files of the published schema alone, the judge's name in the
            verdicts of our own outputs. Of several judges the probabilities are means, as the labels are.
        rater: output of `train-rater` or `combine-raters`; None, or anything else: what was held out is not known.
        num_pairs: at most.
        seed: of the draw.

    Raises:
        UserError: see `read_judgments`.
    """
    judgments = read_judgments(sources, missing="mask")
    row, column = np.triu_indices(judgments.group_size, 1)
    valid = judgments.valid[:, row, column] | judgments.valid[:, column, row]
    group, pair = np.nonzero(valid.any(axis=2))
    i, j = row[pair], column[pair]
    held_out = _held_out(judgments, rater, sources)
    keys = [f"{judgments.ids[g][a]}\n{judgments.ids[g][b]}" for g, a, b in zip(group, i, j, strict=True)]
    order = gumbel.uniform(gumbel.hash_ids(keys), gumbel.noise_stream(seed, "judged pairs"))
    if held_out is not None:
        order = order + ~held_out[group]
    kept = np.sort(np.argsort(order, kind="stable")[:num_pairs])
    group, i, j = group[kept], i[kept], j[kept]
    ends = list(zip(group.tolist(), i.tolist(), j.tolist(), strict=True))
    numbers: dict[str, int] = {}
    first, second = (
        np.array([numbers.setdefault(judgments.texts[end[0]][end[side]], len(numbers)) for end in ends], np.int64)
        for side in (1, 2)
    )
    forward, backward = _orders(sources, judgments, set(group.tolist()))
    empty = np.full((len(ends), len(judgments.criteria)), np.nan)
    return JudgedPairs(
        criteria=judgments.criteria,
        judge=_judges(sources),
        texts=list(numbers),
        first=first,
        second=second,
        ids=[(judgments.ids[g][a], judgments.ids[g][b]) for g, a, b in ends],
        domains=[(judgments.domains[g][a], judgments.domains[g][b]) for g, a, b in ends],
        forward=np.array([forward[g][:, a, b] for g, a, b in ends]).reshape(empty.shape),
        backward=np.array([backward[g][:, a, b] for g, a, b in ends]).reshape(empty.shape),
        average=_labels(judgments, group, i, j),
        held_out=None if held_out is None else held_out[group],
        rater=empty,
        num_judged=len(keys),
    )


def _labels(judgments: Judgments, g: Any, i: Any, j: Any) -> NDArray[np.float64]:
    """p(j > i) [m, C], from either entry of the matrix or the mean of both; NaN where there is none."""
    p, valid = judgments.probabilities.astype(np.float64), judgments.valid
    both = np.stack([valid[g, i, j], valid[g, j, i]])
    total = (both * np.stack([p[g, i, j], 1.0 - p[g, j, i]])).sum(axis=0)
    return np.where(both.any(axis=0), total / np.maximum(both.sum(axis=0), 1), np.nan)


# ---- what was shown first, and who judged


def _orders(
    sources: Sequence[str], judgments: Judgments, wanted: set[int]
) -> tuple[dict[int, NDArray[np.float64]], dict[int, NDArray[np.float64]]]:
    """By group float64 [C, k, k], entry [c, i, j]: p(j better) where i was shown first, and where j was."""
    shape = (len(judgments.criteria),) + (judgments.group_size,) * 2
    orders = {name: {g: np.full(shape, np.nan) for g in wanted} for name in ("votes_b", "votes_a")}
    places: dict[tuple[str, ...], deque[int]] = {}
    for g, texts in enumerate(judgments.texts):  # equal groups stand in the order of the files
        if g in wanted:
            places.setdefault(texts, deque()).append(g)
    for row in _published_rows(sources):
        waiting = places.get(tuple(row["texts"]))
        if not waiting:
            continue
        g = waiting.popleft()
        for name, found in orders.items():
            for c, criterion in enumerate(judgments.criteria):
                values = row.get(f"{criterion}_{name}")
                if values is not None and np.shape(values) == shape[1:]:
                    votes = np.array(values, np.float64)
                    found[g][c] = np.where(votes == MISSING, np.nan, votes)
    return orders["votes_b"], orders["votes_a"]


def _published_rows(sources: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of the files in the published schema; they were read before, so nothing is wrong with them."""
    for file in find_judgments(sources):
        with documents.Rejects(None, "error") as rejects:
            for _, row in documents.read_rows(file, rejects=rejects):
                if "texts" not in row:
                    break
                yield row


def _judges(sources: Sequence[str]) -> str:
    """The names of the judges, where verdicts lie beside the judgments."""
    names: set[str] = set()
    for file in find_judgments(sources):
        beside = storage.join(file.rpartition("/")[0] or ".", VERDICTS)
        try:
            if storage.exists(beside):
                with storage.open_read(beside) as stream:
                    names |= set(pq.read_table(stream, columns=["judge"])["judge"].unique().to_pylist())
        except (pa.ArrowException, OSError) as error:
            log.warning("%s: not read, so the judge has no name (%s)", beside, " ".join(str(error).split()))
    listed = sorted(names)
    more = f" and {len(listed) - _MOST_JUDGES} more" if len(listed) > _MOST_JUDGES else ""
    return ", ".join(listed[:_MOST_JUDGES]) + more


# ---- what a rater was trained on


def _held_out(judgments: Judgments, rater: str | None, sources: Sequence[str]) -> NDArray[np.bool_] | None:
    """bool [n]: no text (up to case and white space) and no id of the group was learned from; None: not known."""
    learned = None if rater is None else _learned(rater, judgments, sources)
    if learned is None:
        return None
    texts, ids = learned
    held_out = [
        ids.isdisjoint(names) and texts.isdisjoint(map(fold, group))
        for group, names in zip(judgments.texts, judgments.ids, strict=True)
    ]
    log.info("%d of %d judged groups were held out of the rater's training", sum(held_out), len(held_out))
    return np.array(held_out, bool)


def _learned(rater: str, judgments: Judgments, sources: Sequence[str]) -> tuple[set[bytes], set[str]] | None:
    """Texts (folded) and ids that a rater was trained on, by its manifest and the judgments it names.

    None where that cannot be told: a rater from elsewhere or of a teacher, or judgments that are gone or have changed.
    """
    place = next((path for path in (rater, rater.rstrip("/").rpartition("/")[0]) if path and _is_rater(path)), None)
    if place is None:
        return None
    found = manifest.read(place)
    config, inputs = found["config"], found["determined"]["inputs"]
    if found["stage"] != "train-rater":
        members = [_learned(member, judgments, sources) for member in config["raters"]]
        if None in members or config["judgments"]:  # weights fitted to judgments are training too
            return None
        known = [member for member in members if member is not None]
        return set().union(*(texts for texts, _ in known)), set().union(*(ids for _, ids in known))
    if config["teacher"] or "judgments" not in inputs:
        return None
    for candidates in (sources, config["judgments"]):
        if _digest(candidates) == inputs["judgments"]:
            # Which groups there are, and so the split, depends on the criteria that were learned.
            is_read = candidates is sources and tuple(config["criteria"]) in ((), judgments.criteria)
            trained = _training_part(judgments if is_read else _read(candidates, config), config)
            return {fold(text) for group in trained.texts for text in group}, {i for ids in trained.ids for i in ids}
    log.info("%s: the judgments it was trained on are not there any more, or have changed", rater)
    return None


def _is_rater(path: str) -> bool:
    try:
        return manifest.is_artifact(path) and manifest.read(path)["stage"] in manifest.RATER_STAGES
    except UserError:
        return False


def _digest(sources: Sequence[str]) -> dict[str, Any] | None:
    try:
        return manifest.input_digest([], find_judgments(sources))
    except UserError:
        return None


def _read(sources: Sequence[str], config: dict[str, Any]) -> Judgments:
    return read_judgments(sources, config["criteria"] or None, missing=config["missing_criteria"])


def _training_part(judgments: Judgments, config: dict[str, Any]) -> Judgments:
    if config["validation"]:
        return judgments
    return judgments.take(split_disjoint(judgments, config["validation_fraction"], config["seed"])[0])
