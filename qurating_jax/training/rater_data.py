"""What a rater learns from and is validated on: judgments, or the ratings of a teacher; checked before training."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.documents import Rejects
from qurating_jax.data.judgment_files import read_judgments
from qurating_jax.data.judgments import Judgments
from qurating_jax.data.splits import overlap_audit, refuse_overlap, split_disjoint
from qurating_jax.data.teacher import Teacher, read_teacher, split_teacher, teacher_groups
from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.method.bradley_terry import is_confident
from qurating_jax.method.calibration import logistic_slope
from qurating_jax.runtime.errors import UserError
from qurating_jax.training.rater_options import RaterOptions

_FEW_PAIRS = 20  # fewer pairs may well agree by chance

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RaterData:
    """Judged groups to learn from and held-out ones, without a common text.

    `extra` are further arrays per text of the training groups, float32 [n, k, C], by name (see `losses`).
    """

    train: Judgments
    validation: Judgments
    extra: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, Any]:
        """Criteria and groups, for a manifest."""
        return {
            "criteria": list(self.train.criteria),
            "train_groups": len(self.train),
            "validation_groups": len(self.validation),
        }


def read(options: RaterOptions, seed: int, tokenizer: TextTokenizer | None) -> RaterData:
    """Reads and checks all that a rater is trained on.

    Args:
        options: which data, and what is done with it.
        seed: of the split and of the groups of a teacher's texts.
        tokenizer: the rater's; None for a rater without one.

    Raises:
        UserError: see `_from_judgments`, `_from_teacher`, `_checked`.
    """
    data = _from_teacher(options, seed, tokenizer) if options.teacher else _from_judgments(options, seed)
    if options.criterion_weights and len(options.criterion_weights) != len(data.train.criteria):
        raise UserError(f"{len(options.criterion_weights)} criterion_weights for {len(data.train.criteria)} criteria")
    return _checked(options, seed, data)


def _from_judgments(options: RaterOptions, seed: int) -> RaterData:
    """Judgments; held out are those of `validation`, or else a share of the others, without a common text."""
    judgments = read_judgments(options.judgments, options.criteria or None, missing=options.missing_criteria)
    if not options.validation:
        train_rows, validation_rows = split_disjoint(judgments, options.validation_fraction, seed)
        return RaterData(judgments.take(train_rows), judgments.take(validation_rows))
    held_out = read_judgments(options.validation, judgments.criteria, missing=options.missing_criteria)
    log.info("%s", overlap_audit(judgments, held_out))
    refuse_overlap(judgments, held_out)
    return RaterData(judgments, held_out)


def _from_teacher(options: RaterOptions, seed: int, tokenizer: TextTokenizer | None) -> RaterData:
    """Groups of texts that a teacher rated; for regression their standardised ratings go along as `targets`."""
    with Rejects(None, "error") as rejects:
        teacher = read_teacher(options.teacher, criteria=options.criteria or None, tokenizer=tokenizer, rejects=rejects)
    sides = split_teacher(teacher, options.validation_fraction, seed)
    train = teacher_groups(sides[0], group_size=options.group_size, seed=seed)
    validation = train.take(np.zeros(0, np.int64))
    if len(sides[1]):
        validation = teacher_groups(sides[1], group_size=options.group_size, seed=seed)
    regression = options.objective == "regression"
    return RaterData(train, validation, {"targets": _targets(sides[0], train)} if regression else {})


def _checked(options: RaterOptions, seed: int, data: RaterData) -> RaterData:
    """Refuses labels that nothing can be learned from, and applies what is asked of the others."""
    if options.one_sided == "swap":
        if data.extra:
            raise UserError("--one_sided swap is for judgments; a teacher's ratings have no sides")
        data = RaterData(swap_sides(data.train, seed), swap_sides(data.validation, seed))
    _require_labels(data.train, options.margin, "training")
    if len(data.validation):
        _require_labels(data.validation, options.margin, "held-out")
    if options.length_debias:
        data = replace(data, extra={**data.extra, "offsets": length_offsets(data.train, options.margin)})
    return data


def swap_sides(judgments: Judgments, seed: int) -> Judgments:
    """The texts of every group in an order that a hash of (seed, text) decides, labels and all."""

    def key(text: str) -> bytes:
        return hashlib.blake2b(json.dumps([seed, text]).encode(), digest_size=16).digest()

    order = np.array([sorted(range(len(group)), key=lambda i: key(group[i])) for group in judgments.texts])
    rows = np.arange(len(judgments))[:, None, None]
    pairs = (rows, order[:, :, None], order[:, None, :])

    def moved(names: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return [tuple(group[i] for i in places) for group, places in zip(names, order, strict=True)]

    return replace(
        judgments,
        texts=moved(judgments.texts),
        ids=moved(judgments.ids),
        domains=moved(judgments.domains),
        probabilities=judgments.probabilities[pairs],
        valid=judgments.valid[pairs],
        num_votes=judgments.num_votes[pairs],
    )


def length_offsets(judgments: Judgments, margin: float) -> NDArray[np.float32]:
    """What lengths alone explain of the labels: slope x log(characters), float32 [n, k, C].

    The slope is the one that fits p(j > i) = sigmoid(slope * log(length_j / length_i)) best to the labels of at least
    the margin. A rater that learns p = sigmoid(s_j - s_i + offset_j - offset_i) has no reason left to prefer the longer
    text as such; its scores leave the offsets out (as in length-controlled win rates, Dubois et al. 2024).
    """
    lengths = np.log([[max(len(text), 1) for text in group] for group in judgments.texts])
    row, column = np.triu_indices(judgments.group_size, 1)
    difference = lengths[:, column] - lengths[:, row]
    slopes = []
    for number, criterion in enumerate(judgments.criteria):
        labels, counted = _upper(judgments, number, margin)
        x, p = difference[counted], labels[counted].astype(np.float64)
        # Where length decides every label the best slope is infinite; half a judgment against it makes it finite.
        fitted = logistic_slope(x, p) or logistic_slope(x, (len(p) * p + 0.5) / (len(p) + 1))
        slopes.append(0.0 if fitted is None else fitted.slope)
        log.info("length debias: %s: %.3f logits for the longer text per unit of log length", criterion, slopes[-1])
    return (lengths[:, :, None] * np.array(slopes)).astype(np.float32)


def _targets(teacher: Teacher, groups: Judgments) -> NDArray[np.float32]:
    """Standardised ratings [n, k, C] of the texts in the groups."""
    place = {(name, text): number for number, (name, text) in enumerate(zip(teacher.ids, teacher.texts, strict=True))}
    numbers = [
        [place[key] for key in zip(ids, texts, strict=True)]
        for ids, texts in zip(groups.ids, groups.texts, strict=True)
    ]
    deviations = np.nanstd(teacher.scores.astype(np.float64), axis=0)
    standard = (teacher.scores - np.nanmean(teacher.scores, axis=0)) / np.where(deviations > 0, deviations, 1.0)
    return standard[np.array(numbers)].astype(np.float32)


def _require_labels(judgments: Judgments, margin: float, name: str) -> None:
    for number, criterion in enumerate(judgments.criteria):
        labels, counted = _upper(judgments, number, margin)
        if not counted.any():
            raise UserError(
                f"{name} judgments: no label on {criterion} has a confidence of {margin:g} or more, so nothing is "
                "learned; lower --margin or leave the criterion out (--criteria)"
            )
        decided = labels[counted & (labels != 0.5)]
        if len(decided) >= _FEW_PAIRS and ((decided > 0.5).all() or (decided < 0.5).all()):
            slot = "second" if decided[0] > 0.5 else "first"
            raise UserError(
                f"{name} judgments: all {len(decided)} labels on {criterion} prefer the {slot} text; check the "
                "columns, or --one_sided swap where the file lists winners and losers"
            )


def _upper(judgments: Judgments, criterion: int, margin: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Labels [n, pairs] of the unordered pairs and which of them count."""
    row, column = np.triu_indices(judgments.group_size, 1)
    labels = judgments.probabilities[:, row, column, criterion]
    return labels, judgments.valid[:, row, column, criterion] & is_confident(labels, margin)
