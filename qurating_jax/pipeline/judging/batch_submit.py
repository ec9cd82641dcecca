"""Open requests of a run to the endpoint's batch API; takes the same options as `judge run` and means the same run."""

from dataclasses import dataclass
from typing import Any

from qurating_jax.judges.options import JudgingOptions
from qurating_jax.runtime.errors import UsageError
from qurating_jax.stage import StageConfig, open_run, require, require_local


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig, JudgingOptions):
    """Options of `qurating judge batch submit`, those of `judge run`."""


def main(config: Config) -> dict[str, Any]:
    """Plans the run where that has not been done, asks the probe's one question online, and submits the rest."""
    from qurating_jax.judges.client import import_openai

    import_openai()
    from qurating_jax.judges import batch, planning, questions
    from qurating_jax.judges.store import FILE, Store

    require(config, "input", *(() if config.whole_documents else ("tokenizer",)))
    require_local(config)
    if config.judge.kind != "openai":
        raise UsageError(f"batches are for language models; judge.kind is {config.judge.kind}, not openai")
    if config.dry_run:
        raise UsageError("--dry_run: `qurating judge run --dry_run` with the same options says what would be asked")
    if config.max_cost or config.max_requests:
        raise UsageError("max_cost and max_requests stop online requests; a batch is bought whole, see the dry run")
    sources = planning.open_sources(config)
    with open_run(config, "judge run", sources.inputs) as run:
        if run.state == "finished":
            return run.counts
        with Store(run.path(FILE), create=True) as store:
            planning.ensure_plan(store, config, sources, config.seed, run.path("rejected.jsonl"))
            counts = batch.submit(store, questions.asked_by(config, sources), previous=sources.previous)
    print(f"{counts['num_batched']:,} requests are in {counts['num_waiting']} batches")
    print(f"next: qurating judge batch status {config.output}; qurating judge batch collect {config.output}")
    return counts
