"""Train a rater on pairwise judgments or a teacher's ratings: one score per criterion, Bradley-Terry in pairs."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qurating_jax.config import option
from qurating_jax.models.config import PRESETS
from qurating_jax.runtime import manifest, storage, tracking
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.scoring.options import NgramConfig
from qurating_jax.stage import StageConfig, open_run, require, require_local
from qurating_jax.training.rater_options import NGRAMS, RaterOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from jax.sharding import Mesh

    from qurating_jax.data.tokenizer import TextTokenizer
    from qurating_jax.models.base import BaseModel
    from qurating_jax.models.llama import Params
    from qurating_jax.scoring.rater import Rater
    from qurating_jax.training.rater_data import RaterData

_VALIDATION_TOKENS = 32_768  # at most, per batch over all devices

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig, RaterOptions):
    """Options of `qurating train-rater`."""

    corpus: tuple[str, ...] = option((), "base ngrams: unlabelled documents that tell how common words are", reads=True)
    ngrams: NgramConfig = NgramConfig()


def main(config: Config) -> dict[str, Any]:
    """Writes the rater (`hf/`, or `rater/` for n-grams and ensembles), `eval.json`, and what training leaves."""
    from qurating_jax.parallel import distributed

    if not config.teacher:
        require(config, "judgments")
    require(config, "base")
    require_local(config)
    tracking.require_trackers(config.tracking)
    if config.base == NGRAMS:
        return _train_ngrams(config)
    distributed.initialize(config.distributed)
    return _train_neural(config)


def _train_neural(config: Config) -> dict[str, Any]:
    from qurating_jax.data.tokenizer import load_tokenizer
    from qurating_jax.models.base import resolve_base
    from qurating_jax.parallel.distributed import barrier
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.scoring import combined
    from qurating_jax.scoring.rater import Rater
    from qurating_jax.training import rater_data, rater_fit
    from qurating_jax.training.fit import export

    tokenizer = load_tokenizer(_tokenizer_source(config), None if config.tokenizer else config.revision)
    data = rater_data.read(config, config.seed, tokenizer)
    criteria = data.train.criteria
    base = resolve_base(
        config.base,
        revision=config.revision,
        architecture=config.architecture,
        vocab_size=tokenizer.vocab_size,
        sequence_tokens=config.max_tokens,
        num_criteria=len(criteria),
    )
    mesh = make_mesh(config.mesh)
    evaluate = _validation(config, data, base, tokenizer, mesh)
    plans = rater_fit.plan(config, config.seed, data, tokenizer, mesh)
    counts = data.counts | rater_fit.plan_counts(base.config, plans)
    log.info("train-rater: %s", ", ".join(f"{name} {value}" for name, value in counts.items()))
    if config.dry_run:
        print(f"would train {config.base} on {len(data.train)} judged groups for {counts['num_steps']} steps")
        return counts
    inputs = _inputs(config) | {"tokenizer": tokenizer.identity, "base": base.digest()}
    with open_run(config, "train-rater", inputs, distributed=config.distributed) as run:
        if run.state == "finished":
            return run.counts
        exported, members = "hf", [""]
        if len(plans) > 1:
            exported, members = "rater", [f"member-{number}" for number in range(len(plans))]
        counts["exported_steps"] = []
        tracked = tracking.of_run(
            run, config.tracking, directory=config.tracking_directory, project=config.tracking_project
        )
        for number, (member, batches) in enumerate(zip(members, plans, strict=True)):
            trained = rater_fit.fit_rater(
                config, config.seed + number, base, batches, mesh, run.path(member), criteria, evaluate,
                tracking=tracked.part(member),
            )  # fmt: skip
            export(run.path(exported, member), trained.params, base.config, tokenizer, labels=criteria)
            counts["exported_steps"].append(trained.step)
        if len(members) > 1 and run.primary:
            combined.save(run.path("rater"), members, criteria, [[1 / len(members)] * len(criteria)] * len(members))
        barrier("raters exported")
        rater = Rater.load(run.path(exported), mesh=mesh, compute=config.compute, window_tokens=config.max_tokens)
        return _finish(run, counts, rater, data)


def _validation(
    config: Config, data: "RaterData", base: "BaseModel", tokenizer: "TextTokenizer", mesh: "Mesh"
) -> "Callable[[Params], dict[str, float]]":
    """Parameters -> held-out metrics."""
    from qurating_jax.scoring.neural import NeuralModel
    from qurating_jax.scoring.validation import Validator

    validator = Validator(
        data.validation,
        tokenizer,
        max_tokens=config.max_tokens,
        long_texts=config.long_texts,
        margin=config.margin,
    )
    return lambda params: validator(
        NeuralModel.build(
            params,
            base.config,
            data.train.criteria,
            tokenizer,
            mesh=mesh,
            compute=config.compute,
            window_tokens=config.max_tokens,
            batch_tokens=min(validator.num_tokens, _VALIDATION_TOKENS),
        )
    )


def _train_ngrams(config: Config) -> dict[str, Any]:
    from qurating_jax.data.documents import Rejects, find_files, get_field, read_documents
    from qurating_jax.scoring import ngrams
    from qurating_jax.scoring.rater import Rater
    from qurating_jax.training import rater_data

    if config.num_members > 1 or config.length_debias or config.criterion_weights or config.objective == "regression":
        raise UsageError(f"--base {NGRAMS} takes no num_members, length_debias, criterion_weights or regression")
    if config.tracking:
        raise UsageError(f"--base {NGRAMS} is fitted in one step: there is nothing to track")
    data = rater_data.read(config, config.seed, None)
    files = find_files(config.corpus) if config.corpus else []
    if config.dry_run:
        print(f"would fit an n-gram rater to {len(data.train)} judged groups")
        return data.counts
    inputs = _inputs(config) | ({"corpus": manifest.input_digest([], files)} if files else {})
    with open_run(config, "train-rater", inputs) as run:
        if run.state == "finished":
            return run.counts
        with Rejects(None, "error") as rejects:
            corpus = (
                (str(get_field(document.row, "domain") or "unknown"), document.text)
                for document in read_documents(files, rejects=rejects)
            )
            model = ngrams.fit(
                data.train,
                config.ngrams,
                margin=config.margin,
                label_temperature=config.label_temperature,
                corpus=corpus,
            )
        model.save(run.path("rater"))
        return _finish(run, data.counts, Rater.load(run.path("rater"), window_tokens=config.max_tokens), data)


def _inputs(config: Config) -> dict[str, Any]:
    from qurating_jax.data.documents import find_files
    from qurating_jax.data.judgment_files import find_judgments

    found = {"judgments": config.judgments, "validation": config.validation}
    inputs = {name: manifest.input_digest([], find_judgments(sources)) for name, sources in found.items() if sources}
    return inputs | ({"teacher": manifest.input_digest([], find_files(config.teacher))} if config.teacher else {})


def _finish(run: manifest.Run, counts: dict[str, Any], rater: "Rater", data: "RaterData") -> dict[str, Any]:
    """Held-out accuracy of what was exported, and the manifest."""
    from qurating_jax.scoring.accuracy import held_out_accuracy

    accuracy = held_out_accuracy(rater, data.validation) if len(data.validation) else {}
    if run.primary:
        storage.write_json(run.path("eval.json"), {"validation": accuracy})
    for criterion, row in accuracy.items():
        log.info("train-rater: %s: held-out accuracy %s of %d pairs", criterion, row["accuracy"], row["num_pairs"])
    counts = counts | {"accuracy": {criterion: row["accuracy"] for criterion, row in accuracy.items()}}
    manifest.finish(run, counts)
    return counts


def _tokenizer_source(config: Config) -> str:
    if config.tokenizer:
        return config.tokenizer
    if config.base in PRESETS:
        raise UserError(f"--base {config.base} is a preset and has no tokenizer: give --tokenizer")
    return config.base
