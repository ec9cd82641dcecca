"""The combined rater: a weighted sum of other raters' scores, per criterion.

A directory holds its members as folders and `rater.json`, which names them and their weights, so that it stands alone.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize
from scipy.special import expit
from threadpoolctl import threadpool_limits

from qurating_jax.data.judgments import Judgments
from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.method.calibration import logistic_slope
from qurating_jax.method.windows import weighted_means
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.pairs import cross_entropy, pairs_of
from qurating_jax.scoring.rater_files import (
    FILE,
    criteria_of,
    numbers_of,
    read_rater_file,
    require_keys,
    write_rater_file,
)
from qurating_jax.scoring.scorer import Work
from qurating_jax.scoring.windows import OnShare, WindowModel, Windows, cut

KIND = "combined"

_FOLDER = re.compile(r"\w[\w.-]*")
# Penalties in units of one judgment's loss: a few dozen judgments outweigh them, and no weight becomes infinite.
_UNEQUAL, _SIZE = 1.0, 1e-3


@dataclass(frozen=True, eq=False)
class CombinedModel:
    """Members on their devices, with weights float64 [members, C]."""

    criteria: tuple[str, ...]
    members: tuple[WindowModel, ...]
    weights: NDArray[np.float64]

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """The tokenizer of the first member that has one."""
        return next((member.tokenizer for member in self.members if member.tokenizer is not None), None)

    @property
    def work(self) -> Work:
        """What the members' devices have computed so far."""
        return sum((member.work for member in self.members), Work())

    def suited_to(self, sizes: NDArray[np.int64], max_shapes: int) -> "CombinedModel":
        """The same model with every member suited to windows of such sizes."""
        return replace(self, members=tuple(member.suited_to(sizes, max_shapes) for member in self.members))

    @property
    def reads_texts(self) -> bool:
        """Whether a member reads texts, or tokens of another tokenizer than the windows'."""
        own = self.tokenizer
        return any(
            member.reads_texts or member.tokenizer is None or own is None or member.tokenizer.identity != own.identity
            for member in self.members
        )

    def score_windows(self, windows: Windows, on_share: OnShare | None = None) -> NDArray[np.float32]:
        """Scores of windows: float32 [m, C]; every member scores the same windows."""
        total = np.zeros((len(windows), len(self.criteria)))
        for scores, weights in zip(self.member_scores(windows, on_share), self.weights, strict=True):
            total += weights * scores
        return total.astype(np.float32)

    def member_scores(self, windows: Windows, on_share: OnShare | None = None) -> list[NDArray[np.float32]]:
        """Each member's scores of windows: float32 [m, C]."""
        report: OnShare | None = None
        if on_share is not None:
            whole = on_share
            report = lambda share: whole(share / len(self.members))  # noqa: E731
        return [member.score_windows(windows, report) for member in self.members]

    def member_ratings(self, texts: Sequence[str], window_tokens: int) -> NDArray[np.float64]:
        """Each member's token-weighted means over the windows of texts, float64 [members, n, C].

        The weighted sum of these is what the whole makes of the texts. NaN for a text without tokens.
        """
        windows = cut(texts, self.tokenizer, window_tokens, with_texts=self.reads_texts)
        means = [
            weighted_means(scores.astype(np.float64), windows.sizes, windows.documents, len(texts))
            for scores in self.member_scores(windows)
        ]
        return np.stack(means)


@dataclass(frozen=True, eq=False)
class CombinedFile:
    """What `rater.json` says: criteria, directories of the members, weights float64 [members, C]."""

    criteria: tuple[str, ...]
    members: tuple[str, ...]
    weights: NDArray[np.float64]


def save(directory: str, members: Sequence[str], criteria: Sequence[str], weights: ArrayLike) -> None:
    """Makes a directory a combined rater by writing its `rater.json`.

    Args:
        directory: where the members' folders already are.
        members: names of these folders.
        criteria: names of the C scores, the same for every member.
        weights: [members, C].

    Raises:
        ValueError: a member that is no folder there, or weights of another shape.
    """
    values = np.asarray(weights, np.float64)
    if values.shape != (len(members), len(criteria)) or not members or not np.isfinite(values).all():
        raise ValueError(f"finite weights [{len(members)}, {len(criteria)}] expected, not {values.shape}")
    for name in members:
        if not _FOLDER.fullmatch(name) or not storage.is_dir(storage.join(directory, name)):
            raise ValueError(f"{name} is not a folder in {directory}")
    write_rater_file(directory, KIND, criteria=list(criteria), members=list(members), weights=values.tolist())


def read(directory: str) -> CombinedFile:
    """Reads a combined rater's `rater.json`; `UserError` where it is not what `save` writes, or leads elsewhere."""
    document, where = read_rater_file(directory, KIND), storage.join(directory, FILE)
    require_keys(document, ("criteria", "members", "weights"), where)
    criteria, names, rows = criteria_of(document, where), document["members"], document["weights"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: `members` is not a list of folders")
    for name in names:
        place = storage.join(directory, name)
        if not _FOLDER.fullmatch(name) or not storage.is_dir(place) or _leads_elsewhere(directory, name):
            raise UserError(f"{where}: member {name!r} is not a folder beside it")
    if not isinstance(rows, list) or len(rows) != len(names):
        raise UserError(f"{where}: `weights` are not {len(names)} lists, one for each member")
    weights = [
        numbers_of(row, len(criteria), f"{where}: `weights` of {name}") for name, row in zip(names, rows, strict=True)
    ]
    return CombinedFile(criteria, tuple(storage.join(directory, name) for name in names), np.stack(weights))


def combine(directory: str, load_member: Callable[[str], WindowModel]) -> CombinedModel:
    """Loads a combined rater; `load_member` loads the rater in a folder.

    Raises:
        UserError: a broken file, or a member with other criteria.
    """
    file = read(directory)
    members = tuple(load_member(member) for member in file.members)
    for member, place in zip(members, file.members, strict=True):
        require_criteria(place, member.criteria, file.criteria)
    return CombinedModel(file.criteria, members, file.weights)


def require_criteria(where: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises `UserError` where a member's criteria are not those of the whole, in that order."""
    if tuple(found) != tuple(wanted):
        raise UserError(
            f"{where}: a rater of {', '.join(found)}; raters are combined with others of the same criteria in the same "
            f"order ({', '.join(wanted)})"
        )


def fit_weights(scores: ArrayLike, judgments: Judgments, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """The weights [members, C], none negative, that fit judgments best.

    Per criterion, summed Bradley-Terry cross-entropy of the weighted sum's differences; a small penalty draws the
    members' weights together (in units of their scores' deviation), another keeps them finite. The scale of the sum is
    then the one that fits best: sigmoid of a difference is a probability.

    Args:
        scores: [members, n, C], each member's scores of the judged texts.
        judgments: soft labels, best on texts that no member was trained on.
        places: where each group's texts stand among the n (see `data.judgments.distinct_texts`).

    Raises:
        UserError: a criterion without any judgment, or a judged text without a score.
    """
    values = np.asarray(scores, np.float64)
    without = int(np.isnan(values).any(axis=(0, 2)).sum())
    if without:
        raise UserError(f"{without} of {values.shape[1]} judged texts hold no token and have no score; leave them out")
    columns = []
    for number in range(len(judgments.criteria)):
        pairs = pairs_of(judgments, places, number, margin=0.0, label_temperature=1.0)
        deviations = values[:, :, number].std(axis=1)
        deviations = np.where(deviations > 0, deviations, 1.0)
        columns.append(_fit(pairs.differences((values[:, :, number] / deviations[:, None]).T), pairs.targets))
        columns[-1] /= deviations
    return np.stack(columns, axis=1)


def _fit(differences: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights [members] of standardised score differences [m, members]."""

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits, apart = differences @ w, w - w.mean()
        value = cross_entropy(logits, targets) + _UNEQUAL / 2 * (apart @ apart) + _SIZE / 2 * (w @ w)
        return value, differences.T @ (expit(logits) - targets) + _UNEQUAL * apart + _SIZE * w

    start = np.ones(differences.shape[1]) / differences.shape[1]
    options = {"ftol": 0.0, "gtol": 1e-9 * len(targets), "maxiter": 10_000, "maxfun": 20_000}
    bounds = [(0.0, None)] * len(start)
    with threadpool_limits(limits=1, user_api="blas"):  # threads change the last digits of its sums
        found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
        # The penalties have a say in how the weights compare, not in how sure the sum is of itself.
        scale = logistic_slope(differences @ found, targets)
    return found * scale.slope if scale is not None and scale.slope > 0 else found


def _leads_elsewhere(directory: str, name: str) -> bool:
    if storage.is_remote(directory):
        return False
    return os.path.realpath(storage.join(directory, name)) != os.path.join(os.path.realpath(directory), name)
