"""Joins the stores of several parts of one run (`--shard i/n` on several machines) into one that can be finished."""

from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.stage import InspectConfig, require


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating judge merge`."""

    judgments: tuple[str, ...] = option(
        (), "outputs of `judge run` with the same options but for the shard", positional=True
    )
    output: str = option("", "directory of the whole run; must be new or empty")


def main(config: Config) -> dict[str, Any]:
    """Writes the joined store; `judge run` with the command it prints asks what is open and writes the files."""
    from qurating_jax.judges import transfer

    require(config, "judgments", "output")
    counts = transfer.merge(config.judgments, config.output)
    open_ = counts["num_open"] + counts["num_failed"]
    print(f"{config.output}: {counts['num_requests']:,} requests, {open_:,} of them open; finish it with")
    print(f"qurating judge run --config {config.output}/config.yaml --output {config.output}")
    return counts
