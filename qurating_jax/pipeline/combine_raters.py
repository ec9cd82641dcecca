"""Combine raters into one, a weighted sum of their scores; the weights are fitted to judgments, given, or equal."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qurating_jax.config import option
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    import numpy as np

    from qurating_jax.data.judgments import Judgments

_FILES = (".json", ".safetensors", ".txt", ".model")  # of a rater and its tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating combine-raters`."""

    raters: tuple[str, ...] = option((), "raters of the same criteria: outputs of train-rater or combine-raters, "
                                     "directories, hub ids", reads=True)  # fmt: skip
    judgments: tuple[str, ...] = option(
        (),
        "judgments that the weights are fitted to, on texts that no rater was trained on",
        reads=True,
    )
    weights: tuple[float, ...] = option((), "a weight for each rater; none: fitted, or equal without judgments")
    window_tokens: int = option(512, "longest window of the judged texts")
    batch_tokens: int = option(32_768, "tokens per batch over all devices", runtime=True)
    mesh: MeshShape = MeshShape()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        if self.weights and self.judgments:
            raise ValueError("give weights, or judgments that they are fitted to, not both")
        if self.weights and len(self.weights) != len(self.raters):
            raise ValueError(f"{len(self.weights)} weights for {len(self.raters)} raters")
        if min(self.window_tokens, self.batch_tokens) < 1:
            raise ValueError("window_tokens and batch_tokens must be at least 1")


def main(config: Config) -> dict[str, Any]:
    """Writes the combined rater into `rater/`, with copies of its members, and its figures into `eval.json`."""
    from qurating_jax.data.judgment_files import find_judgments, read_judgments
    from qurating_jax.scoring.combined import require_criteria, save
    from qurating_jax.scoring.rater import inspect

    require(config, "raters")
    if len(config.raters) < 2:
        raise UsageError("--raters: give at least two")
    found = [
        inspect(manifest.exported(rater, *manifest.RATER_STAGES), window_tokens=config.window_tokens)
        for rater in config.raters
    ]
    criteria = found[0].criteria
    for rater, info in zip(config.raters, found, strict=True):
        require_criteria(rater, info.criteria, criteria)
    files = [storage.expand([info.directory], _FILES) for info in found]
    inputs: dict[str, Any] = {
        "raters": [manifest.input_digest([], own) for own in files],
        "tokenizers": [info.tokenizer for info in found],
    }
    if config.judgments:
        inputs["judgments"] = manifest.input_digest([], find_judgments(config.judgments))
    if config.dry_run:
        print(f"would combine {len(found)} raters of {', '.join(criteria)} into {config.output}")
        return {"raters": len(found), "criteria": list(criteria)}

    with open_run(config, "combine-raters", inputs) as run:
        if run.state == "finished":
            return run.counts
        members = [f"member-{number}" for number in range(len(found))]
        for name, info, own in zip(members, found, files, strict=True):
            _copy(info.directory, own, run.path("rater", name))
        counts: dict[str, Any] = {"raters": len(found), "criteria": list(criteria)}
        weights = _given(config, len(criteria))
        save(run.path("rater"), members, criteria, weights)
        if config.judgments:
            judgments = read_judgments(config.judgments, criteria)
            weights, figures = _fit(config, run.path("rater"), judgments)
            save(run.path("rater"), members, criteria, weights)
            storage.write_json(run.path("eval.json"), figures)
            counts |= {"judgments": len(judgments), "eval": figures}
        counts["weights"] = {name: weights[:, c].tolist() for c, name in enumerate(criteria)}
        for name, own_weights in counts["weights"].items():
            log.info("combine-raters: %s: weights %s", name, ", ".join(f"{weight:.4g}" for weight in own_weights))
        manifest.finish(run, counts)
        return counts


def _given(config: Config, num_criteria: int) -> "np.ndarray":
    import numpy as np

    weights = np.array(config.weights or [1.0 / len(config.raters)] * len(config.raters))
    return np.repeat(weights[:, None], num_criteria, axis=1)


def _fit(config: Config, directory: str, judgments: "Judgments") -> "tuple[np.ndarray, dict[str, dict[str, Any]]]":
    """Weights [members, C], and figures on the very judgments that they were fitted to."""
    from qurating_jax.data.judgments import distinct_texts
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.scoring.combined import CombinedModel, fit_weights
    from qurating_jax.scoring.rater import Rater

    rater = Rater.load(
        directory,
        mesh=make_mesh(config.mesh),
        compute=config.compute,
        window_tokens=config.window_tokens,
        batch_tokens=config.batch_tokens,
    )
    assert isinstance(rater.model, CombinedModel)
    texts, places = distinct_texts(judgments)
    scores = rater.model.member_ratings(texts, config.window_tokens)
    weights = fit_weights(scores, judgments, places)
    return weights, _figures((scores * weights[:, None]).sum(axis=0), scores, judgments, places)


def _figures(
    total: "np.ndarray", scores: "np.ndarray", judgments: "Judgments", places: "np.ndarray"
) -> dict[str, dict[str, Any]]:
    """Per criterion, log loss and accuracy of the sum (in sample) and the accuracy of each member."""
    from qurating_jax.method.bradley_terry import pair_accuracy
    from qurating_jax.scoring.pairs import cross_entropy, pairs_of

    figures: dict[str, dict[str, Any]] = {}
    for number, criterion in enumerate(judgments.criteria):

        def accuracy(values: "np.ndarray", number: int = number) -> float | None:
            labels, valid = judgments.probabilities[..., number], judgments.valid[..., number]
            return pair_accuracy(values[places][..., number], labels, valid).accuracy

        pairs = pairs_of(judgments, places, number, margin=0.0, label_temperature=1.0)
        figures[criterion] = {
            "num_pairs": len(pairs),
            "log_loss_in_sample": cross_entropy(pairs.differences(total[:, number]), pairs.targets) / len(pairs),
            "accuracy_in_sample": accuracy(total),
            "accuracy_of_members": [accuracy(values) for values in scores],
        }
    return figures


def _copy(directory: str, files: Sequence[str], target: str) -> None:
    """Copies a rater's files, folders of its own members included."""
    for file in files:
        name = file.removeprefix(storage.join(directory, ""))
        with storage.open_read(file) as source, storage.atomic_write(storage.join(target, name)) as stream:
            shutil.copyfileobj(source, stream)
