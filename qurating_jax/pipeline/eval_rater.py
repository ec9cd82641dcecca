"""Evaluate a rater on held-out judgments and true scores, beside what length, Flesch's formula and n-grams get."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.scoring.options import NgramConfig
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from qurating_jax.data.judgments import Judgments
    from qurating_jax.scoring.baselines import Fit, TextScorer
    from qurating_jax.scoring.evaluation_tables import Findings
    from qurating_jax.scoring.rater import Rater


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating eval-rater`."""

    rater: str = option("", "output of train-rater or combine-raters, directory or hub id", reads=True)
    revision: str | None = option(None, "revision of a hub id")
    tokenizer: str | None = option(None, "tokenizer, where the rater's directory has none", reads=True)
    labels: tuple[str, ...] = option((), "names of the rater's scores, in order; none: the labels in its config")
    criteria: tuple[str, ...] = option((), "criteria of the judgments to evaluate; none: all of the rater's")
    judgments: tuple[str, ...] = option((), "NAME=PATH ... of held-out judgments")
    missing_criteria: Literal["error", "mask"] = option("error", "a criterion that some sources lack: stop, or mask it")
    baseline_judgments: tuple[str, ...] = option(
        (), "judgments that the n-gram baseline learns from; none: folds of `judgments`", reads=True
    )
    fit_ngrams: bool = option(True, "fit the n-gram baseline")
    ngrams: NgramConfig = NgramConfig()
    num_folds: int = option(5, "text-disjoint folds of `judgments` for the n-gram baseline")
    swapped_pairs: int = option(1000, "pairs scored a second time, second text first and in other batches; 0: none")
    level: float = option(0.95, "level of the intervals")
    documents: tuple[str, ...] = option((), "documents that carry a true score: rank correlation", reads=True)
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
        if not 0.0 < self.level < 1.0 or self.num_folds < 2 or self.swapped_pairs < 0:
            raise ValueError("0 < level < 1, num_folds >= 2 and swapped_pairs >= 0 expected")
        if min(self.window_tokens, self.batch_tokens) < 1:
            raise ValueError("window_tokens and batch_tokens must be at least 1")


def main(config: Config) -> dict[str, Any]:
    """Writes `eval.json` and the tables `metrics`, `pairs`, `reliability` and `roc` as Parquet; prints the figures."""
    from qurating_jax.data import documents
    from qurating_jax.data.document_writers import write_table
    from qurating_jax.data.judgment_files import find_judgments
    from qurating_jax.runtime.terminal import show
    from qurating_jax.scoring import ngrams
    from qurating_jax.scoring.baselines import refuse_known
    from qurating_jax.scoring.evaluation_tables import Findings

    require(config, "rater")
    if not config.judgments and not config.documents:
        raise UsageError("give --judgments, or --documents with --truth_field, or both")
    directory, tokenizer, names, criteria = _look(config)
    inputs: dict[str, Any] = {
        "rater": manifest.input_digest([directory], storage.expand([directory], (".json", ".safetensors"))),
        "tokenizer": tokenizer,
    }
    for name in ("judgments", "baseline_judgments"):
        if sources := getattr(config, name):
            inputs[name] = manifest.input_digest([], find_judgments(sources))
    if config.documents:
        inputs["documents"] = manifest.input_digest(config.documents, documents.find_files(config.documents))
    train, judgments = _read(config, criteria)
    if config.dry_run:
        print(f"would evaluate {config.rater} on {', '.join(criteria)} into {config.output}")
        return {"criteria": list(criteria)}

    with open_run(config, "eval-rater", inputs) as run:
        if run.state == "finished":
            return run.counts
        counts: dict[str, Any] = {"criteria": list(criteria)}
        found = Findings({"level": config.level})
        rater = _load(config, directory, names)
        fit = partial(ngrams.fit, config=config.ngrams) if config.fit_ngrams else None
        learned = fit(train) if fit is not None and train is not None else None
        if judgments is not None:
            counts |= _evaluate_pairs(config, rater, judgments, fit, learned, found)
        if config.documents:
            with documents.Rejects(run.path("rejected.jsonl"), config.on_bad_row) as rejects:
                texts, truth = _true_scores(config, rejects)
            if train is not None:
                refuse_known(texts, train)
            counts |= _correlate(config, rater, texts, truth, learned, found)
        for name, table in found.files.items():
            write_table(run.path(f"{name}.parquet"), table)
        storage.write_json(run.path("eval.json"), found.result)
        show(found.shown, *found.lines)
        manifest.finish(run, counts)
        return counts


def _look(config: Config) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
    """The rater's directory, tokenizer and names of its scores; the criteria to evaluate."""
    from qurating_jax.scoring.rater import inspect

    info = inspect(
        manifest.exported(config.rater, *manifest.RATER_STAGES),
        revision=config.revision,
        tokenizer=config.tokenizer,
        window_tokens=config.window_tokens,
    )
    names, listed = config.labels or info.criteria, ", ".join(info.criteria)
    if len(names) != len(info.criteria) or len(set(names)) != len(names):
        raise UsageError(f"--labels must give {len(info.criteria)} different names; the rater's own: {listed}")
    listed = ", ".join(names)
    if unknown := [name for name in config.criteria if name not in names]:
        raise UserError(f"--criteria: the rater has no {unknown[0]}; it has {listed}")
    if not config.documents:
        return info.directory, info.tokenizer, names, config.criteria or names
    if config.criterion not in names and (config.criterion is not None or len(names) > 1):
        raise UserError(f"--criterion must name one of the rater's: {listed}")
    chosen = config.criteria or names if config.judgments else (config.criterion or names[0],)
    return info.directory, info.tokenizer, names, chosen


def _read(config: Config, criteria: tuple[str, ...]) -> "tuple[Judgments | None, Judgments | None]":
    """What the baseline learns from, and what is evaluated, without a common text; None where not given."""
    from qurating_jax.data.judgment_files import read_judgments
    from qurating_jax.data.splits import refuse_overlap

    train, judgments = (
        read_judgments(sources, criteria, missing=config.missing_criteria) if sources else None
        for sources in (config.baseline_judgments, config.judgments)
    )
    if train is not None and judgments is not None:
        refuse_overlap(train, judgments)
    return train, judgments


def _load(config: Config, directory: str, names: tuple[str, ...]) -> "Rater":
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.scoring.rater import Rater

    return Rater.load(
        directory,
        criteria=names,
        tokenizer=config.tokenizer,
        mesh=make_mesh(config.mesh),
        compute=config.compute,
        window_tokens=config.window_tokens,
        batch_tokens=config.batch_tokens,
    )


def _score(rater: "Rater", criteria: tuple[str, ...], texts: "Sequence[str]") -> "np.ndarray":
    """The rater's scores of texts on some criteria: float64 [n, C]."""
    import numpy as np

    from qurating_jax.runtime.progress import progress

    with progress("eval-rater", len(texts), "texts") as advance:
        scores = rater.rate(texts, advance).averages
    if missing := int(np.isnan(scores).any(axis=1).sum()):
        raise UserError(f"{missing} of {len(texts)} texts have no tokens, hence no score: leave them out")
    return scores[:, [rater.criteria.index(criterion) for criterion in criteria]]


def _evaluate_pairs(
    config: Config,
    rater: "Rater",
    judgments: "Judgments",
    fit: "Fit | None",
    learned: "TextScorer | None",
    found: "Findings",
) -> dict[str, Any]:
    """Accuracy, calibration and ranking on judged pairs, beside the baselines; returns the counts."""
    from qurating_jax.scoring import baselines
    from qurating_jax.scoring.evaluation import RATER, Model, evaluate, order_check
    from qurating_jax.scoring.judged_pairs import judged_pairs

    pairs = judged_pairs(judgments)
    if not len(pairs):
        raise UserError(f"no label on {', '.join(pairs.criteria)} in the judgments")
    score = partial(_score, rater, pairs.criteria)
    scores = score(pairs.texts)
    model = Model(RATER, pairs.differences(scores), is_logit=True)
    others, notes = baselines.models(pairs, fit, learned, config.num_folds)
    evaluation = evaluate(pairs, [model, *others], level=config.level, seed=config.seed)
    check = order_check(pairs, scores, score, num_pairs=config.swapped_pairs, seed=config.seed)
    found.add_pairs(pairs, model, others, notes, evaluation, check)
    accuracy = {name: row["accuracy"] for name, row in found.result["pair_accuracy"][RATER].items()}
    return {"pairs": len(pairs), "texts": len(pairs.texts), "accuracy": accuracy}


def _true_scores(config: Config, rejects: Any) -> tuple[list[str], list[float]]:
    """Texts of documents and their true scores."""
    import math

    from qurating_jax.data import documents

    texts, truth, files = [], [], documents.find_files(config.documents)
    fields = {"text_field": config.text_field, "id_field": config.id_field}
    for document in documents.read_documents(files, **fields, rejects=rejects):
        value = documents.get_field(document.row, config.truth_field or "")
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise UserError(f"document {document.id}: {config.truth_field} is {value!r}, not a number")
        if document.text.strip():
            texts.append(document.text)
            truth.append(float(value))
    if len(texts) < 3:
        raise UserError(f"{len(texts)} documents with a score and text; a rank correlation needs at least 3")
    return texts, truth


def _correlate(
    config: Config,
    rater: "Rater",
    texts: list[str],
    truth: list[float],
    learned: "TextScorer | None",
    found: "Findings",
) -> dict[str, Any]:
    """Rank correlation of the ratings of whole documents with a true score; returns the counts."""
    from qurating_jax.scoring import baselines
    from qurating_jax.scoring.evaluation import RATER, rank_correlations

    criterion = config.criterion or rater.criteria[0]
    scores = {RATER: _score(rater, (criterion,), texts)[:, 0], **baselines.formulas(texts)}
    if learned is not None and criterion in learned.criteria:
        scores[baselines.NGRAMS] = learned.score(texts)[:, learned.criteria.index(criterion)]
    measures = rank_correlations(criterion, scores, truth, config.level)
    found.add_correlations(measures)
    return {"documents": len(texts), "spearman": measures[0].value}
