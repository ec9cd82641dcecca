"""How far the batches of a run are at the endpoint."""

from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.stage import InspectConfig, require


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating judge batch status`."""

    judgments: str = option("", "the output directory of the run", positional=True)


def main(config: Config) -> dict[str, Any]:
    """Asks the endpoint and prints a line per batch; endpoint and key's name come from the run's config.yaml."""
    from qurating_jax.judges import batch
    from qurating_jax.judges.options import recorded
    from qurating_jax.judges.store import FILE, Store
    from qurating_jax.runtime import storage

    require(config, "judgments")
    with Store(storage.join(config.judgments, FILE)) as store:
        judges = recorded(storage.join(config.judgments, "config.yaml")).judges()
        for one in batch.refresh(store, judges):
            collected = ", collected" if one.is_collected else ""
            print(f"batch {one.number} {one.id!r}: {one.status!r}, {one.num_requests:,} requests{collected}")
        return batch.summary(store)
