"""Reads every stored answer again, with this version's rules; costs no request."""

from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.stage import InspectConfig, require


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating judge reparse`."""

    judgments: str = option("", "the output of `judge run`", positional=True)


def main(config: Config) -> dict[str, Any]:
    """Writes verdicts that differ into the store; a finished run is then finished anew by its own command."""
    from qurating_jax.judges import reparse
    from qurating_jax.judges.store import FILE, Store
    from qurating_jax.runtime import manifest, storage

    require(config, "judgments")
    with Store(storage.join(config.judgments, FILE)) as store:
        counts = reparse.reparse(store)
        if counts["num_changed"]:
            manifest.reopen(config.judgments)
    print(f"{counts['num_read']:,} answers read, {counts['num_changed']:,} verdicts changed")
    if counts["num_changed"]:
        resume = f"qurating judge run --config {config.judgments}/config.yaml --output {config.judgments}"
        print(f"the files follow when the run is finished again, without a request: {resume}")
    return counts
