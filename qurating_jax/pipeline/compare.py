"""Experiments side by side: held-out perplexity by domain, tasks, selections, differences to a baseline with intervals.

A run is named by its record (`OUT/runs/EXPERIMENT/seedN.json`) or by a directory that holds records: the output of
`qurating run`, its `runs`, or the folder of one experiment there. Runs of one experiment are its seeds. Differences are
paired by document or item and by seed; docs/experiments.md says how their intervals are made.
"""

from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.stage import InspectConfig, require


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating compare`."""

    runs: tuple[str, ...] = option(
        (),
        "run records, or directories that hold them (OUT, OUT/runs, OUT/runs/EXPERIMENT)",
        reads=True,
        positional=True,
    )
    baseline: str | None = option(None, "experiment to compare with; null: `uniform` where it is there, else the first")
    level: float = option(0.95, "level of the intervals")
    output: str = option("", "file for the whole comparison as JSON; an earlier comparison there is replaced")

    def __post_init__(self) -> None:
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"level is {self.level}; it must be between 0 and 1")


def main(config: Config) -> dict[str, Any]:
    """Prints the tables, writes the JSON where asked for, and returns it."""
    from qurating_jax.experiments.comparing import tables as compare_tables
    from qurating_jax.experiments.comparing.compare import compare
    from qurating_jax.experiments.records import find_runs
    from qurating_jax.runtime import storage
    from qurating_jax.runtime.progress import progress
    from qurating_jax.runtime.terminal import show

    require(config, "runs")
    if config.output:
        _refuse_another_file(config.output)
    records = find_runs(config.runs)
    with progress("compare: reading", len(records), "runs") as advance:
        result = compare(records, baseline=config.baseline, level=config.level, on_read=advance)
    if config.output:
        storage.write_json(config.output, result)
    show(compare_tables.tables(result), *compare_tables.notes(result))
    return result


def _refuse_another_file(path: str) -> None:
    """Raises `UsageError` where something stands at `path` that is no earlier comparison."""
    from qurating_jax.runtime import storage

    if storage.is_dir(path):
        raise UsageError(f"--output {path}: a directory; name a file, such as {storage.join(path, 'compare.json')}")
    if not storage.exists(path):
        return
    try:
        found = storage.read_json(path)
    except UserError:
        found = None
    if not (isinstance(found, dict) and {"baseline", "level", "experiments"} <= found.keys()):
        raise UsageError(f"--output {path}: another file stands there, not an earlier comparison; choose another name")
