"""Documents to pairwise judgments on quality criteria. The offline judge is text statistics, not a language model."""

import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qurating_jax.judges.options import JudgeConfig, JudgingOptions
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import Unresolved
from qurating_jax.runtime.progress import progress
from qurating_jax.stage import StageConfig, open_run, require, require_local

if TYPE_CHECKING:
    import numpy as np

    from qurating_jax.judges.candidates import Candidates
    from qurating_jax.judges.planning import Sources
    from qurating_jax.judges.store import Store
    from qurating_jax.judges.verdicts import Judge

__all__ = ["Config", "JudgeConfig", "main"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig, JudgingOptions):
    """Options of `qurating judge run`."""


def main(config: Config) -> dict[str, Any]:
    """Writes `verdicts.parquet` (a row per verdict) and `judgments.parquet` (published schema), or `grades.parquet`.

    A language model's answers are collected in `judgments.sqlite` first; the same command resumes.
    """
    from qurating_jax.data.documents import Rejects
    from qurating_jax.judges import planning

    require(config, "input", *(() if config.whole_documents else ("tokenizer",)))
    sources = planning.open_sources(config)
    if config.dry_run:
        with Rejects(None, config.on_bad_row) as rejects:
            candidates = planning.survey_documents(config, sources, rejects)
        return _dry_run(config, sources, candidates)
    if config.judge.kind == "openai":
        from qurating_jax.judges.client import import_openai

        import_openai()
        require_local(config)
    with open_run(config, "judge run", sources.inputs) as run:
        if run.state == "finished":
            return _resolved(config, run.counts)
        with _open_store(config, run) as store:
            surveyed = planning.ensure_plan(store, config, sources, config.seed, run.path("rejected.jsonl"))
            counts = store.get("counts")
            if config.judge.kind == "openai":
                counts |= _ask_models(config, run, sources, store)
            else:
                counts |= _ask_here(config, run, surveyed, store)
        manifest.finish(run, counts)
        return _resolved(config, counts)


def _dry_run(config: Config, sources: "Sources", candidates: "Candidates") -> dict[str, Any]:
    from qurating_jax.judges import estimate, planning

    design = planning.choose_groups(config, sources, candidates, config.seed)
    counts = candidates.counts | planning.group_counts(config, sources, design)
    if config.judge.kind != "openai":
        return counts
    plan = planning.plan_excerpts(config, candidates, design.groups, config.seed)
    expected = estimate.expected(config, sources.criteria, sources.judges, plan, len(design.groups))
    estimate.show(expected)
    return counts | {"judges": expected}


@contextlib.contextmanager
def _open_store(config: Config, run: manifest.Run) -> "Iterator[Store]":
    """The run's store; judges that need no answers kept get one that goes when they are done."""
    from qurating_jax.judges.store import FILE, Store

    if config.judge.kind == "openai":
        with Store(run.path(FILE), create=True) as store:
            yield store
        return
    with (
        tempfile.TemporaryDirectory() as directory,
        Store(os.path.join(directory, FILE), create=True, durable=False) as store,
    ):
        yield store


def _ask_models(config: Config, run: manifest.Run, sources: "Sources", store: "Store") -> dict[str, Any]:
    """Collects the answers of language models; raises where the run is not complete."""
    from qurating_jax.judges import export, llm, progress_report, questions

    stopped = llm.judge_store(store, questions.asked_by(config, sources), previous=sources.previous)
    counts = progress_report.counts(store, sources.judges)
    if stopped is not None:
        llm.raise_stop(stopped, store.get("counts") | counts)
    if counts["num_batched"]:
        raise Unresolved(
            f"{run.output}: {counts['num_batched']:,} requests are in batches; first `qurating judge batch collect "
            f"{run.output}`, then the same command",
            store.get("counts") | counts,
        )
    if counts["num_failed"]:
        raise Unresolved(
            f"{run.output}: {counts['num_failed']:,} requests failed (`qurating judge failures {run.output}`); "
            "the same command asks them again",
            store.get("counts") | counts,
        )
    p_second = export.export(store, run.path, config.aggregate)
    if p_second is None:
        return counts
    titles = ", ".join(judge.title for judge in sources.judges)
    return counts | {"judge": titles, "criteria": _statistics(sources.criteria_names, _mean(p_second))}


def _ask_here(config: Config, run: manifest.Run, candidates: "Candidates | None", store: "Store") -> dict[str, Any]:
    """Verdicts of a judge that needs no network, group by group."""
    import numpy as np

    from qurating_jax.data import judgments as judged
    from qurating_jax.data import verdicts as tables
    from qurating_jax.judges.aggregate import aggregate
    from qurating_jax.judges.excerpts import Excerpt
    from qurating_jax.judges.export import label_chunks

    assert candidates is not None  # the store of such a run is always new
    judge = _make_judge(config, candidates)
    log.info("judge: %s", judge.name)
    ids, domains, lengths, found = [], [], [], []
    with progress("judge", store.get("counts")["num_groups"], "groups") as advance:
        for _, members in store.groups():
            ids.append([name for name, _, _ in members])
            domains.append([domain for _, domain, _ in members])
            lengths.append([len(text) for _, _, text in members])
            found.append(judge.compare([Excerpt(name, text) for name, _, text in members]))
            advance(1)
    p_second = np.stack(found)
    batch = tables.dense_batch(0, ids, domains, lengths, judge.criteria, p_second, judge.name)
    tables.write_verdicts(run.path(tables.FILE), [batch])
    labels = aggregate(p_second[None], "mean")
    judged.write_judgments(run.path(judged.FILE), label_chunks(store, judge.criteria, *labels))
    return {"judge": judge.name, "criteria": _statistics(judge.criteria, p_second)}


def _make_judge(config: Config, candidates: "Candidates") -> "Judge":
    from qurating_jax.judges.column import ColumnJudge
    from qurating_jax.judges.offline import OfflineJudge

    options = config.judge
    if options.kind == "column":
        return ColumnJudge(options.criterion, candidates.scores, field=options.score_field, scale=options.scale)
    return OfflineJudge(
        config.criteria,
        seed=config.seed,
        temperature=options.temperature,
        noise=options.noise,
        position_bias=options.position_bias,
    )


def _mean(p_second: "np.ndarray") -> "np.ndarray":
    """Mean over the judges [J, n, k, k, C] where there is a verdict."""
    import numpy as np

    count = (~np.isnan(p_second)).sum(axis=0)
    return np.where(count > 0, np.nansum(p_second, axis=0) / np.maximum(count, 1), np.nan)


def _statistics(criteria: "tuple[str, ...]", p_second: "np.ndarray") -> dict[str, dict[str, Any]]:
    """What the verdicts say about the judge, per criterion (see `method.judgments.JudgeStatistics`)."""
    from qurating_jax.method.judgments import judge_statistics

    result = {}
    for number, criterion in enumerate(criteria):
        found = dataclasses.asdict(judge_statistics(p_second[..., number]))
        confident = {f"confident_{margin}": share for margin, share in found.pop("confident").items()}
        result[criterion] = found | confident
        shown = (f"{name} {value:.4g}" for name, value in result[criterion].items() if value is not None)
        log.info("judge: %s: %s", criterion, ", ".join(shown))
    return result


def _resolved(config: Config, counts: dict[str, Any]) -> dict[str, Any]:
    """The counts of a finished run; raises where more of its verdicts lack than the user allows (exit 3)."""
    unresolved, total = counts.get("num_unresolved", 0), counts.get("num_requests", 0)
    if unresolved > config.allow_unresolved * total:
        failures = f"`qurating judge failures {config.output}`"
        raise Unresolved(
            f"{config.output}: complete, but {unresolved:,} of {total:,} requests have no usable verdict ({failures}); "
            "--allow_unresolved sets the share that is no error",
            counts,
        )
    return counts
