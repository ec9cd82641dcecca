"""How far a run of judgments is: requests by state and outcome, what was sent, what it cost in tokens."""

from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.stage import InspectConfig, require


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating judge status`."""

    judgments: str = option("", "the output of `judge run`, also while it runs", positional=True)


def main(config: Config) -> dict[str, Any]:
    """Prints the counts; the run may be going on."""
    from qurating_jax.judges import progress_report
    from qurating_jax.judges.store import open_to_read

    require(config, "judgments")
    with open_to_read(config.judgments) as store:
        counts = progress_report.counts(store)
        progress_report.show(store, counts)
    return counts
