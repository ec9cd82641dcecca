"""Finished stages -> one static page, and its short form on stdout."""

import sys
from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.reporting.collect import CELL_CHARACTERS, Section, clean, collect, find_artifacts, is_number
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import StageConfig, open_run, require


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating report`."""

    run: str = option("", "folder whose sub-folders are stage outputs", reads=True)


def main(config: Config) -> dict[str, Any]:
    """Writes `report.html` and `summary.txt`, prints the summary, returns the counts."""
    from qurating_jax.runtime import manifest, storage

    require(config, "run", *([] if config.dry_run else ["output"]))
    artifacts, unfinished = find_artifacts(config.run)
    if not artifacts:
        raise UserError(f"{config.run}: holds no finished stage output; run the stages first")
    inputs = {
        artifact.name: manifest.sha256(storage.read_text(f"{artifact.path}/manifest.json")) for artifact in artifacts
    }
    if config.dry_run:
        return {
            "stages": {artifact.name: artifact.manifest["stage"] for artifact in artifacts},
            "unfinished": unfinished,
        }
    with open_run(config, "report", {"artifacts": inputs, "unfinished": unfinished}) as run:
        if run.state == "finished":
            _print(storage.read_text(run.path("summary.txt")))
            return run.counts
        sections = collect(artifacts, unfinished)
        title = f"QuRating run: {clean(config.run, CELL_CHARACTERS)}"
        storage.write_text(run.path("report.html"), to_html(title, sections))
        summary = to_text(title, sections) + f"\nThe whole report: {run.path('report.html')}\n"
        storage.write_text(run.path("summary.txt"), summary)
        counts = {"num_artifacts": len(artifacts), "num_unfinished": len(unfinished), "num_sections": len(sections)}
        manifest.finish(run, counts)
        _print(summary)
        return counts


def to_html(title: str, sections: list[Section]) -> str:
    """The page: static, without scripts; every value is escaped, so a document's markup shows as text."""
    from importlib import resources

    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["a_number"] = is_number
    source = resources.files("qurating_jax.pipeline").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(title=title, sections=sections) + "\n"


def to_text(title: str, sections: list[Section]) -> str:
    """The summary: the `brief` sections as aligned plain text, one line per row."""
    lines = [title]
    for section in sections:
        if not section.brief:
            continue
        lines += ["", section.title, *(f"  {note}" for note in section.notes)]
        table = [tuple(clean(cell, CELL_CHARACTERS) for cell in row) for row in (section.headings, *section.rows)]
        if section.rows:
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            for row in table:
                cells = (
                    cell.rjust(width) if is_number(cell) else cell.ljust(width)
                    for cell, width in zip(row, widths, strict=True)
                )
                lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines) + "\n"


def _print(text: str) -> None:
    """Prints what the terminal's encoding can show."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="")
