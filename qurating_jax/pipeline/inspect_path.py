"""A look at any artifact or file in the terminal: rows, ratings, histograms, and what a manifest says."""

from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.stage import InspectConfig, require


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating inspect`."""

    path: str = option("", "a stage's output, a folder of them, a Parquet, JSON Lines or JSON file", positional=True)
    num_rows: int = option(5, "rows to show; 0: none")
    id: str = option("", "show the row of this id alone")
    sort: str = option("", "show the rows with the most of this column, of those that the figures are of")
    ascending: bool = option(False, "with --sort: the least first")
    max_rows: int = option(100_000, "rows that the figures are of, at most")
    id_field: str = option("id", "column of the ids")
    text_field: str = option("text", "column of the texts")

    def __post_init__(self) -> None:
        if self.num_rows < 0 or self.max_rows < 1:
            raise ValueError("num_rows must be at least 0, max_rows at least 1")
        if self.id and self.sort:
            raise ValueError("--id shows one row, --sort several; give one of them")


def main(config: Config) -> dict[str, Any]:
    """Prints the tables and rows; returns what was found."""
    from qurating_jax.reporting.inspecting import looks, show
    from qurating_jax.runtime import terminal

    require(config, "path")
    wanted = looks.Wanted(
        num_rows=config.num_rows,
        id=config.id,
        sort=config.sort,
        ascending=config.ascending,
        max_rows=config.max_rows,
        id_field=config.id_field,
        text_field=config.text_field,
    )
    found = looks.look(config.path.rstrip("/") or config.path, wanted)
    terminal.show(show.tables(found), *show.lines(found))
    return found
