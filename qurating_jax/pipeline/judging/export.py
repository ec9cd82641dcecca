"""The verdicts of a run as Parquet, also while it is unfinished: open requests appear as outcome `pending`."""

from dataclasses import dataclass
from typing import Any, Literal

from qurating_jax.config import option
from qurating_jax.stage import InspectConfig, require


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating judge export`."""

    judgments: str = option("", "the output of `judge run`", positional=True)
    output: str = option("", "directory for the files; empty: beside the store")
    aggregate: Literal["mean", "majority"] = option("mean", "several judges: mean probability, or one vote each")


def main(config: Config) -> dict[str, Any]:
    """Writes the files of `judge run` from what is answered so far."""
    from qurating_jax.judges import export, progress_report
    from qurating_jax.judges.store import open_to_read
    from qurating_jax.runtime import manifest, storage
    from qurating_jax.runtime.errors import UsageError

    require(config, "judgments")
    directory = config.output or config.judgments
    if not config.output and storage.exists(storage.join(directory, manifest.MANIFEST)):
        raise UsageError(f"{directory}: a finished run has its files already; name another --output")
    storage.make_dirs(directory)
    with open_to_read(config.judgments) as store:
        export.export(store, lambda name: storage.join(directory, name), config.aggregate)
        counts = progress_report.counts(store)
    print(
        f"{directory}: {counts['num_requests'] - counts['num_open']:,} of {counts['num_requests']:,} requests settled"
    )
    return counts
