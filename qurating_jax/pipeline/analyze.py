"""Rated documents -> what the ratings do: tables on spread, correlations, covariates, topics, selection and bias.

Numbers are read of all documents, texts of a seeded sample. docs/analysis.md says what each table holds and how its
intervals are made. An unfinished output begins anew: nothing is written before all tables stand.
"""

import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from qurating_jax.config import option
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    from qurating_jax.analysis.inputs import Plan
    from qurating_jax.experiments.analyzing import RatedDocuments

T = TypeVar("T")

ANALYSIS, TABLES = "analysis.json", "tables"
SCHEMA_VERSION = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating analyze`."""

    run: str = option("", "output folder whose ratings, selections, rater and judgments are taken", reads=True)
    input: tuple[str, ...] = option((), "rated documents: files, globs, directories, hf:// ids", reads=True)
    scores: tuple[str, ...] = option((), "files with further columns of ratings, joined by id", reads=True)
    criteria: tuple[str, ...] = option((), "ratings; none: every column of numbers that ends with `_average`")
    selections: tuple[str, ...] = option((), "NAME=PATH of outputs of select over these documents", reads=True)
    groups: tuple[str, ...] = option((), "columns whose values make groups: role, region, language ...")
    labels: tuple[str, ...] = option((), "columns of numbers that say the quality otherwise, for the audit")
    judgments: tuple[str, ...] = option((), "judged pairs, to audit the rater", reads=True)
    rater: str = option("", "the rater, to score the texts of judged pairs", reads=True)
    text_field: str = option("text", "column (or dotted path) of the text")
    id_field: str = option("id", "column of the document id; without it a hash of the text")
    domain_field: str = option("domain", "column of the domain; empty: there is one")
    tokens_field: str = option("length", "column of the documents' token counts")
    on_bad_row: Literal["error", "skip"] = option("error", "rows that are no documents: stop, or leave out and count")
    max_documents: int = option(100_000, "documents whose texts are read, drawn by seed and id")
    max_characters: int = option(20_000, "texts are cut there")
    num_shown_documents: int = option(2_000, "documents whose texts are kept for the report")
    num_topics: int | None = option(None, "topics; null: one for 250 documents of the sample, 2 to 40")
    temperatures: tuple[float, ...] = option((0.5, 1.0, 2.0, 4.0), "of the selections that are tried")
    audit_temperature: float = option(2.0, "of the selections that the audit draws")
    by_domain: bool = option(False, "of the tried selections: every domain gives its share, else one pool")
    budget_fraction: float | None = option(
        None, "share of the tokens that tried selections take, for thresholds too; null: that of --selections, or 0.2"
    )
    num_pairs: int = option(2_000, "judged pairs at most, held-out ones first")
    window_tokens: int | None = option(
        None, "longest window of the rater on judged texts; null: as annotate had it, where its output is read, or 512"
    )
    level: float = option(0.95, "level of the intervals")
    rows_per_part: int = option(100_000, "documents that are read at once, at most", runtime=True)
    bytes_per_part: int = option(128 << 20, "bytes of them, at most", runtime=True)

    def __post_init__(self) -> None:
        least = {"max_documents": 1, "max_characters": 100, "num_shown_documents": 0, "num_topics": 1, "num_pairs": 0}
        least |= {"window_tokens": 1, "rows_per_part": 1, "bytes_per_part": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} is {value}; it must be at least {bound}")
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"level is {self.level}; it must be between 0 and 1")
        if self.budget_fraction is not None and not 0.0 < self.budget_fraction <= 1.0:
            raise ValueError(f"budget_fraction is {self.budget_fraction}; it must be above 0 and at most 1")
        if not all(0.0 < value < math.inf for value in (*self.temperatures, self.audit_temperature)):
            raise ValueError("temperatures must be numbers above 0")
        if self.run and self.input:
            raise ValueError("--run finds the rated documents itself; give --run or --input")


def main(config: Config) -> dict[str, Any]:
    """Writes `tables/*.parquet` and `analysis.json`; returns the counts."""
    from qurating_jax.data import documents

    config = _found(config)
    require(config, ("input", "run"))
    files = documents.find_files(config.input)
    side_files = documents.find_files(config.scores) if config.scores else []
    plan = _plan(config, files, side_files)
    inputs = _digests(config, files, side_files)
    if config.dry_run:
        where = f" into {config.output}" if config.output else ""
        print(f"would analyze {', '.join(plan.criteria)} of the documents of {len(files)} file(s){where}")
        return {"files": len(files), "criteria": list(plan.criteria), "selections": list(_named(config.selections))}
    with open_run(config, "analyze", inputs) as run:
        if run.state == "finished":
            return run.counts
        log.info("analyze: criteria %s", ", ".join(plan.criteria))
        try:
            counts = _analyze(config, run.output, plan, files, side_files)
        except UserError:
            if run.state == "fresh":  # nothing stands there yet that would be in the way of other options
                manifest.withdraw(run)
            raise
        manifest.finish(run, counts)
        return counts


def _found(config: Config) -> Config:
    """The options with what `--run` holds; what was named besides it comes first."""
    if not config.run:
        return config
    from qurating_jax.experiments.run_outputs import find_outputs

    found = find_outputs(config.run)
    if len(found.annotate) > 1:
        raise UsageError(
            f"--run {config.run}: several rated corpora ({', '.join(found.annotate)}); name one by --input"
        )
    log.info("analyze: %s, %d selections", found.annotate[0], len(found.selections))
    return dataclasses.replace(
        config,
        run="",
        input=tuple(found.annotate),
        selections=config.selections or tuple(f"{name}={path}" for name, path in found.selections.items()),
        judgments=config.judgments or tuple(found.judgments[:1]),
        rater=config.rater or next(iter(found.raters), ""),
    )


def _plan(config: Config, files: list[str], side_files: list[str]) -> "Plan":
    from qurating_jax.analysis.inputs import Asked, plan, read_headers

    asked = Asked(
        criteria=config.criteria,
        labels=tuple(dict.fromkeys(config.labels)),
        groups=tuple(dict.fromkeys(config.groups)),
        domain_field=config.domain_field,
        tokens_field=config.tokens_field,
        default_domain_field=Config.domain_field,
        default_tokens_field=Config.tokens_field,
    )
    return plan(asked, read_headers(files), read_headers(side_files) if side_files else None)


def _digests(config: Config, files: list[str], side_files: list[str]) -> dict[str, Any]:
    from qurating_jax.data.judgment_sources import find_judgments

    found: dict[str, Any] = {"documents": manifest.input_digest(config.input, files)}
    if side_files:
        found["scores"] = manifest.input_digest(config.scores, side_files)
    for name, path in _named(config.selections).items():
        found[f"selection {name}"] = manifest.digest(manifest.read(path, stages=("select",)))
    if config.judgments:
        found["judgments"] = manifest.input_digest([], find_judgments(config.judgments))
    if config.rater:
        found["rater"] = manifest.input_digest([config.rater], [])
    return found


def _named(entries: tuple[str, ...]) -> dict[str, str]:
    """`NAME=PATH`, or a path whose last part is the name."""
    found: dict[str, str] = {}
    for entry in entries:
        name, sign, path = entry.partition("=")
        name, path = (name, path) if sign else (entry.rstrip("/").rpartition("/")[2], entry)
        if not name or not path or name in found:
            raise UsageError(f"--selections {entry}: give NAME=PATH, each name once")
        found[name] = path
    return found


def _analyze(config: Config, output: str, plan: "Plan", files: list[str], side_files: list[str]) -> dict[str, Any]:
    """Reads, computes, writes; returns the counts."""
    from threadpoolctl import threadpool_limits

    from qurating_jax.analysis.tables import Settings, analyze
    from qurating_jax.data.document_writers import write_table
    from qurating_jax.experiments import analyzing
    from qurating_jax.runtime.progress import progress

    options = _part(analyzing.ReadOptions, config)
    documents = analyzing.read_rated(plan, files, side_files, options)
    corpus, sample = documents.corpus, documents.sample
    selections, notes = analyzing.read_selections(_named(config.selections), corpus, plan.criteria)
    share, said = analyzing.budget_share(config.budget_fraction, selections, corpus, plan.columns)
    settings = _part(Settings, dataclasses.replace(config, budget_fraction=share))
    judged = analyzing.read_judged_pairs(
        config.judgments,
        config.rater,
        num_pairs=config.num_pairs,
        window_tokens=config.window_tokens or analyzing.window_tokens_of((*config.scores, *config.input)),
        seed=config.seed,
    )
    notes += analyzing.judgment_notes(judged, config.rater, plan.criteria)
    # One thread adds up in one order: no figure depends on the number of cores.
    with threadpool_limits(limits=1), progress("analyze: measuring", len(sample.rows), "documents") as advance:
        found = analyze(corpus, sample, plan, settings, selections=selections, judged=judged, on_text=advance)
    storage.remove_tree(storage.join(output, TABLES))  # what a killed run has left, half-written files too
    for name, table in sorted(found.tables.items()):
        write_table(storage.join(output, TABLES, f"{name}.parquet"), table)
    rows = {name: len(table) for name, table in sorted(found.tables.items())}
    storage.write_json(
        storage.join(output, ANALYSIS),
        {
            "schema_version": SCHEMA_VERSION,
            "criteria": list(plan.criteria),
            "num_documents": len(corpus),
            "num_rated": documents.num_rated,
            "num_sampled": len(sample.rows),
            "num_rejected": corpus.num_rejected,
            "num_repeated": corpus.num_repeated,
            "seed": config.seed,
            "sample": _sample_sentence(config, documents),
            "selections": sorted(selections),
            "tables": rows,
            "notes": [*analyzing.corpus_notes(corpus), *plan.notes, *notes, said, *found.notes],
            "settings": dataclasses.asdict(settings),
        },
    )
    for note in found.notes:
        log.info("analyze: %s", note)
    counts = {"documents": len(corpus), "rated": documents.num_rated, "sampled": len(sample.rows)}
    return counts | {"rejected": corpus.num_rejected, "repeated": corpus.num_repeated, "tables": len(rows)}


def _part(kind: type[T], config: Config) -> T:
    """The options that another dataclass has by the same names."""
    return kind(**{field.name: getattr(config, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


def _sample_sentence(config: Config, documents: "RatedDocuments") -> str:
    drawn, rated = len(documents.sample.rows), documents.num_rated
    how = f"drawn by a hash of the seed {config.seed} and their ids" if drawn < rated else "all there are"
    return (
        f"Texts were read of {drawn:,} of {rated:,} rated documents, {how}, and cut at {config.max_characters:,} "
        "characters. Ratings, correlations and groups are those of all documents; covariates, windows, topics and "
        f"percentiles those of the sample. Up to {config.num_shown_documents:,} documents are shown: those at "
        "percentiles of each criterion and domain, then the strata 0-1-5-25-50-75-95-99-100 % of each in turn."
    )
