"""Evaluate a rater: held-out pair accuracy and rank correlation, beside what Flesch's formula and text length get."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from qurating_jax.data.judgments import Judgments
    from qurating_jax.scoring.rater import Rater

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating eval-rater`."""

    rater: str = option("", "rater: train-rater's output, a Hugging Face directory or a hub id", runtime=True)
    revision: str | None = option(None, "revision of a hub id")
    judgments: tuple[str, ...] = option((), "held-out judgments: pair accuracy", runtime=True)
    documents: tuple[str, ...] = option((), "documents that carry a true score: rank correlation", runtime=True)
    truth_field: str | None = option(None, "numeric field of the true score in the documents")
    criterion: str | None = option(None, "the rater's criterion to correlate with it; null: its only one")
    text_field: str = option("text", "field of the text")
    id_field: str = option("id", "field of the document id")
    on_bad_row: Literal["error", "skip"] = option("error", "rows that are no documents: stop, or count and skip")
    window_tokens: int = option(512, "longest window")
    batch_tokens: int = option(32_768, "tokens per batch over all devices", runtime=True)
    mesh: MeshShape = MeshShape()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        if bool(self.documents) != bool(self.truth_field):
            raise ValueError("documents and truth_field go together")


def main(config: Config) -> dict[str, Any]:
    """Writes `eval.json`: the rater's figures and, in the same form, those of two formulas that read no meaning."""
    from qurating_jax.data import documents
    from qurating_jax.data import judgment_files as judged
    from qurating_jax.models import hf
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.scoring.rater import Rater

    require(config, "rater")
    if not config.judgments and not config.documents:
        raise UsageError("give --judgments, or --documents with --truth_field, or both")
    directory = hf.resolve(manifest.exported(config.rater, "train-rater"), config.revision)
    inputs: dict[str, Any] = {
        "rater": manifest.input_digest([directory], storage.expand([directory], (".json", ".safetensors")))
    }
    if config.judgments:
        inputs["judgments"] = manifest.input_digest(config.judgments, judged.find_judgments(config.judgments))
    if config.documents:
        inputs["documents"] = manifest.input_digest(config.documents, documents.find_files(config.documents))
    if config.dry_run:
        print(f"would evaluate {config.rater} into {config.output}")
        return {}

    with open_run(config, "eval-rater", inputs) as run:
        if run.state == "finished":
            return run.counts
        rater = Rater.load(
            directory,
            mesh=make_mesh(config.mesh),
            compute=config.compute,
            window_tokens=config.window_tokens,
            batch_tokens=config.batch_tokens,
        )
        result: dict[str, Any] = {}
        if config.judgments:
            judgments = judged.read_judgments(config.judgments, rater.criteria)
            result["pair_accuracy"] = _pair_accuracy(rater, judgments)
        if config.documents:
            with documents.Rejects(run.path("rejected.jsonl"), config.on_bad_row) as rejects:
                result["spearman"] = _spearman(config, rater, rejects)
        storage.write_json(run.path("eval.json"), result)
        _print(result)
        manifest.finish(run, result)
        return result


def _pair_accuracy(rater: "Rater", judgments: "Judgments") -> dict[str, Any]:
    import numpy as np

    from qurating_jax.scoring.accuracy import accuracy_by_criterion, distinct_texts, held_out_accuracy

    figures = {"rater": held_out_accuracy(rater, judgments)}
    texts, places = distinct_texts(judgments)
    for name, scores in _formulas(texts).items():
        per_criterion = np.repeat(scores[places][:, :, None], len(judgments.criteria), axis=2)
        figures[name] = accuracy_by_criterion(per_criterion, judgments)
    return figures


def _spearman(config: Config, rater: "Rater", rejects: Any) -> dict[str, Any]:
    """Rank correlation with the true score, by the rater's rating of the whole document."""
    import numpy as np
    from scipy.stats import spearmanr

    from qurating_jax.data import documents

    criterion = config.criterion or rater.criteria[0]
    if criterion not in rater.criteria or (config.criterion is None and len(rater.criteria) > 1):
        raise UserError(f"--criterion must name one of the rater's: {', '.join(rater.criteria)}")
    texts, truth = [], []
    for document in documents.read_documents(
        documents.find_files(config.documents),
        text_field=config.text_field,
        id_field=config.id_field,
        rejects=rejects,
    ):
        value = documents.get_field(document.row, config.truth_field or "")
        if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
            raise UserError(f"document {document.id}: {config.truth_field} is {value!r}, not a number")
        if document.text.strip():
            texts.append(document.text)
            truth.append(float(value))
    if len(texts) < 3:
        raise UserError(f"{len(texts)} documents with a score and text; a rank correlation needs at least 3")
    ratings = rater.rate(texts).averages[:, rater.criteria.index(criterion)]
    scores = {"rater": ratings, **_formulas(texts)}
    return {name: {criterion: float(spearmanr(values, truth).statistic)} for name, values in scores.items()}


def _formulas(texts: "Sequence[str]") -> "dict[str, np.ndarray]":
    """Scores that read no meaning. Where one is below one half (or negative), its reverse does better."""
    import numpy as np

    from qurating_jax.method.readability import text_statistics

    return {
        "flesch_reading_ease": np.array([text_statistics(text).flesch_reading_ease for text in texts]),
        "length": np.array([float(len(text)) for text in texts]),
    }


def _print(result: dict[str, Any]) -> None:
    for name, rows in result.get("pair_accuracy", {}).items():
        for criterion, row in rows.items():
            share = "undefined" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
            print(f"pair accuracy  {criterion:<22} {name:<20} {share}  ({row['num_pairs']} pairs)")
    for name, rows in result.get("spearman", {}).items():
        for criterion, value in rows.items():
            print(f"Spearman       {criterion:<22} {name:<20} {value:.4f}")
