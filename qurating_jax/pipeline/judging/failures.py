"""The requests of a run without a usable verdict: which texts, which judge, what the endpoint said last."""

from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.stage import InspectConfig, require


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating judge failures`."""

    judgments: str = option("", "the output of `judge run`", positional=True)
    most: int = option(50, "how many are shown; 0: all")


def main(config: Config) -> dict[str, Any]:
    """Prints a row per request without a usable verdict, those that may be asked again first."""
    from qurating_jax.judges import progress_report
    from qurating_jax.judges.store import open_to_read

    require(config, "judgments")
    with open_to_read(config.judgments) as store:
        found = progress_report.failures(store)
    shown = found[: config.most] if config.most else found
    progress_report.show_failures(shown)
    if len(shown) < len(found):
        print(f"{len(found) - len(shown):,} more (--most 0 shows all)")
    return {"num_failures": len(found), "failures": shown}
