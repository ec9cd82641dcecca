"""The results of ended batches into the run's store; what they did not answer is open again."""

from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.stage import InspectConfig, require


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating judge batch collect`."""

    judgments: str = option("", "the output directory of the run", positional=True)
    release_lost: bool = option(False, "ask anew what is in batches that the endpoint does not know (any more)")


def main(config: Config) -> dict[str, Any]:
    """Collects what has ended, as often as it is called; `judge run` then asks what is open and writes the files."""
    from qurating_jax.judges import batch
    from qurating_jax.judges.export import stored_criteria
    from qurating_jax.judges.options import recorded
    from qurating_jax.judges.store import FILE, Store
    from qurating_jax.runtime import storage

    require(config, "judgments")
    with Store(storage.join(config.judgments, FILE)) as store:
        judges = recorded(storage.join(config.judgments, "config.yaml")).judges()
        counts = batch.collect(store, judges, stored_criteria(store), release_lost=config.release_lost)
    print(
        f"{counts['num_answers']:,} answers, {counts['num_errors']:,} errors, {counts['num_waiting']} batches still at "
        f"work, {counts['num_open']:,} requests open"
    )
    if counts["num_strange"]:
        print(f"{counts['num_strange']:,} lines were no results of this run and are left out")
    return counts
