"""The criteria that ship and criterion files of your own: name, question, hash and origin."""

from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.judges import criteria
from qurating_jax.stage import InspectConfig

_HASH_CHARACTERS = 12


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating criteria list`."""

    names: tuple[str, ...] = option((), "criterion files to list as well", positional=True)


def main(config: Config) -> dict[str, Any]:
    """Prints a table; returns its rows."""
    rows = []
    for name in (*criteria.NAMES, *config.names):
        (criterion,) = criteria.load([name])
        source = name if criteria.is_file_name(name) else "shipped"
        rows.append({"name": criterion.name, "question": criterion.question, "hash": criterion.hash, "source": source})
    table = [("name", "question", "hash", "from")]
    table += [(row["name"], row["question"], row["hash"][:_HASH_CHARACTERS], row["source"]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    return {"criteria": rows}
