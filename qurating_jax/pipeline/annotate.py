"""Rate documents: every window of at most 512 tokens is scored, a document's rating is the token-weighted mean.

The input is cut into parts. Workers claim, rate and commit them one by one, so any number of processes may run the same
command on one output directory; whoever commits the last part finishes the run.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.options import Distributed, MeshShape, RayWorkers
from qurating_jax.runtime import logs, manifest
from qurating_jax.runtime.claims import claims_on
from qurating_jax.runtime.errors import Unresolved, UserError
from qurating_jax.runtime.manifest import Run
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    from qurating_jax.scoring.annotator import Layout
    from qurating_jax.scoring.model_set import ModelSet
    from qurating_jax.scoring.part_files import Plan
    from qurating_jax.scoring.part_rater import PartRater
    from qurating_jax.scoring.part_source import AnnotationInput

Failures = dict[int, UserError]  # parts that could not be rated, and why

_PARTS_PER_RAY_ITEM = 8  # within an item reading and writing overlap with rating

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating annotate`."""

    input: tuple[str, ...] = option((), "documents: files, globs, directories, hf:// ids; or tokenize's", reads=True)
    rater: tuple[str, ...] = option((), "raters: PATH or NAME=PATH; outputs, directories, hub ids", reads=True)
    language_model: tuple[str, ...] = option((), "language models, for log-likelihood: PATH or NAME=PATH", reads=True)
    revision: str | None = option(None, "revision of a hub id")
    tokenizer: str | None = option(None, "tokenizer, where the models' directories have none", reads=True)
    criteria: tuple[str, ...] = option((), "names of a rater's scores, in order; none: the labels in its config")
    text_field: str = option("text", "field of the text; dots reach nested fields")
    id_field: str = option("id", "field of the document id; without it the id is a hash of the text")
    tokens_field: str | None = option(None, "field of token ids, to rate them instead of the text")
    tokens_tokenizer: str | None = option(None, "tokenizer that made these ids; the rater's own", reads=True)
    on_bad_row: Literal["error", "skip"] = option("error", "rows that are no documents: an error, or count and skip")
    window_tokens: int = option(512, "longest window")
    max_windows: int | None = option(None, "of a longer document only so many windows, evenly spaced; null: all")
    aggregates: tuple[Literal["max", "min", "first"], ...] = option((), "further ratings of a document beside the mean")
    write: Literal["columns", "sidecar"] = option("columns", "documents with ratings, or ids and ratings alone")
    column_prefix: str = option("", "in front of every column that is added")
    rows_per_part: int = option(10_000, "documents per output file; a killed run resumes at the next file")
    bytes_per_part: int = option(64 << 20, "bytes of text per output file at most; memory holds a few times as much")
    num_shapes: int = option(8, "most static shapes of batches, chosen from the windows' lengths")
    batch_tokens: int | None = option(None, "tokens per batch over all devices; null: what suits them", runtime=True)
    shard: str = option("", "i/n: only the i-th of n equal shares of the parts, i from 0", runtime=True)
    finish: bool = option(False, "rate nothing; check that every part is there and write the manifest", runtime=True)
    executor: Literal["local", "ray"] = option("local", "this process, or workers of a Ray cluster", runtime=True)
    ray: RayWorkers = RayWorkers()
    mesh: MeshShape = MeshShape()
    compute: ComputeConfig = ComputeConfig()
    distributed: Distributed = Distributed()

    def __post_init__(self) -> None:
        for name in ("window_tokens", "max_windows", "rows_per_part", "bytes_per_part", "num_shapes", "batch_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.shard and self.distributed.mode != "none":
            raise ValueError("--shard and --distributed.mode both say which parts are this process's; give one")
        if (self.tokens_field is None) != (self.tokens_tokenizer is None):
            raise ValueError("--tokens_field and --tokens_tokenizer go together: ids of unknown origin are not rated")


def main(config: Config) -> dict[str, Any]:
    """Writes `part-00000.parquet` ...: the source's columns and the ratings, rows in input order."""
    from qurating_jax.scoring.part_files import shared_plan
    from qurating_jax.scoring.part_source import make_plan

    require(config, "input")
    shard = _join(config)
    models, source = _models(config), _input(config)
    layout, files = _layout(config, models), source.find_files()
    added = [*layout.names(), config.column_prefix + "index"] if config.write == "columns" else []
    source.check(files, models, added)
    if config.dry_run:
        print(f"would rate the documents of {len(files)} file(s) into {config.output}: {', '.join(layout.names())}")
        return {"files": len(files), "columns": layout.names()}

    with open_run(config, "annotate", {"documents": source.digest(files), **models.digests()}) as run:
        if run.state == "finished":
            return run.counts
        make = partial(make_plan, source, files, models.tokenizer_path, config.window_tokens, config.max_windows)
        plan = shared_plan(config.output, make, claims_on(config.output))
        failures = {} if config.finish else _rate(config, run, plan, plan.parts.share(*shard))
        return _finish(config, run, plan, models, failures)


def _join(config: Config) -> tuple[int, int]:
    """Which share of the parts is this process's: (i, n), from --shard or from its number among the processes."""
    from qurating_jax.data.parts import parse_share

    if config.distributed.mode == "none":
        return parse_share(config.shard)
    from qurating_jax.parallel import distributed

    distributed.initialize(config.distributed)
    return distributed.process_index(), distributed.process_count()


def _models(config: Config) -> "ModelSet":
    from qurating_jax.scoring.model_set import find_models

    return find_models(
        config.rater,
        config.language_model,
        revision=config.revision,
        criteria=config.criteria,
        tokenizer=config.tokenizer,
        window_tokens=config.window_tokens,
    )


def _input(config: Config) -> "AnnotationInput":
    from qurating_jax.scoring.part_source import AnnotationInput

    return AnnotationInput(
        config.input,
        text_field=config.text_field,
        id_field=config.id_field,
        tokens_field=config.tokens_field,
        tokens_tokenizer=config.tokens_tokenizer,
        rows_per_part=config.rows_per_part,
        bytes_per_part=config.bytes_per_part,
    )


def _layout(config: Config, models: "ModelSet") -> "Layout":
    from qurating_jax.scoring.annotator import Layout

    return Layout(
        {name: info.criteria for name, info in models.raters.items()},
        tuple(models.language_models),
        config.aggregates,
        prefix=config.column_prefix,
        chunks=config.write == "columns",
        bytes=config.max_windows is None and _input(config).has_texts,
    )


def _make_worker(config: Config, run: Run, plan: "Plan") -> "PartRater":
    """The models on the devices of this process, compiled for windows like the plan's."""
    import jax

    from qurating_jax.parallel.compilation import keep_compilations
    from qurating_jax.parallel.mesh import make_mesh
    from qurating_jax.scoring.part_rater import PartRater

    keep_compilations()
    models, source = _models(config), _input(config)
    annotator = models.load(
        _layout(config, models),
        mesh=make_mesh(config.mesh, jax.local_devices()),
        compute=config.compute,
        window_tokens=config.window_tokens,
        max_windows=config.max_windows,
        batch_tokens=config.batch_tokens,
    )
    return PartRater(
        source.open(source.find_files(), plan.parts),
        annotator.suited_to(plan.window_sizes, config.num_shapes),
        config.output,
        config.write,
        config.on_bad_row,
        claims_on(config.output),
        partial(manifest.verify, run),
    )


def _rate(config: Config, run: Run, plan: "Plan", numbers: Sequence[int]) -> Failures:
    """Rates those parts that nobody has done or is doing; returns the ones that could not be rated."""
    from qurating_jax.runtime.progress import progress
    from qurating_jax.scoring.part_files import missing_parts

    missing = [number for number in missing_parts(config.output, plan.parts) if number in numbers]
    total, left = plan.parts.count_rows(numbers), plan.parts.count_rows(missing)
    failures: Failures = {}
    with progress("annotate", total, "documents", start=total - left) as advance:
        if missing and config.executor == "ray":
            _rate_on_ray(config, run, plan, missing, advance, failures)
        elif missing:
            _make_worker(config, run, plan).run(missing, advance, failures)
    return failures


def _rate_on_ray(
    config: Config, run: Run, plan: "Plan", numbers: Sequence[int], advance: Callable[[int], None], failures: Failures
) -> None:
    """The same by workers of a Ray cluster, each with the models on its own devices."""
    from qurating_jax.parallel.ray_workers import run_on_ray

    size = max(1, min(_PARTS_PER_RAY_ITEM, len(numbers) // (4 * config.ray.workers)))
    items = [numbers[start : start + size] for start in range(0, len(numbers), size)]

    def on_done(item: Sequence[int], failed: dict[int, str]) -> None:
        failures.update({number: UserError(text) for number, text in failed.items()})
        advance(plan.parts.count_rows(item))

    run_on_ray(partial(_ray_worker, config, run, plan), items, on_done=on_done, options=config.ray)


def _ray_worker(config: Config, run: Run, plan: "Plan") -> Callable[[Sequence[int]], dict[int, str]]:
    """Rates parts in a process of Ray's; returns what could not be rated, and why."""
    logs.setup()
    worker = _make_worker(config, run, plan)

    def work(numbers: Sequence[int]) -> dict[int, str]:
        failures: Failures = {}
        worker.run(numbers, lambda _: None, failures)
        return {number: str(error) for number, error in failures.items()}

    return work


def _finish(config: Config, run: Run, plan: "Plan", models: "ModelSet", failures: Failures) -> dict[str, Any]:
    """The manifest, where every part is there; else what is missing."""
    from qurating_jax.scoring import part_files

    missing = part_files.missing_parts(run.output, plan.parts)
    counts: dict[str, Any] = {"parts": len(plan.parts), "missing_parts": len(missing)}
    if failures:
        first = failures[min(failures)]
        raise Unresolved(f"{len(failures)} of {len(plan.parts)} parts could not be rated; first: {first}", counts)
    if missing and config.finish:
        named = ", ".join(map(str, missing[:5])) + (" ..." if len(missing) > 5 else "")
        raise Unresolved(f"{run.output}: parts {named} are missing; run the command without --finish", counts)
    if missing:
        log.info("annotate: %d parts are with other workers; whoever is last finishes the run", len(missing))
        return counts
    counts |= part_files.conclude(run.output, plan.parts) | {"criteria": models.ratings()}
    part_files.clear(run.output)  # before the manifest: what is finished is not looked at again
    manifest.finish(run, counts)
    log.info("annotate: %(documents)d documents, %(tokens)d tokens, %(unrated)d without text (rating null)", counts)
    return counts
