"""What was measured, as tables for a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qurating_jax.runtime.terminal import add_row, table

if TYPE_CHECKING:
    from rich.table import Table


def draw(found: Sequence[dict[str, Any]]) -> "Table":
    """Ours beside the original's rule."""
    made = table("draw", "documents", "domains", "", "seconds", "CPU seconds", "ns/document", "bytes/document")
    for entry in found:
        for name in ("ours", "original"):
            side = entry[name]
            add_row(
                made, f"{entry['documents']:,}", entry["domains"], name, f"{side['wall_seconds']:.2f}",
                f"{side['cpu_seconds']:.2f}", f"{1e9 * side['wall_seconds'] / entry['documents']:.1f}",
                f"{side['peak_bytes'] / entry['documents']:.1f}",
            )  # fmt: skip
        ratios = entry["ratios"]
        add_row(made, "", "", "ratio", f"{ratios['wall_seconds']:.1f}", f"{ratios['cpu_seconds']:.1f}", "", "")
    return made


def growth(found: Sequence[dict[str, Any]]) -> "Table":
    """Our draw as documents become more."""
    made = table(
        "growth", "documents", "from disk, seconds", "ns/document", "from memory, seconds", "ns/document", "peak MB"
    )
    for entry in found:
        cells = []
        for name in ("from_disk", "from_memory"):
            cells += [f"{entry[name]['wall_seconds']:.2f}", f"{entry['nanoseconds_per_document'][name]:.1f}"]
        add_row(made, f"{entry['documents']:,}", *cells, f"{entry['peak_bytes'] / 1e6:.0f}")
    return made


def dsir(found: dict[str, Any]) -> "Table":
    """DSIR beside the authors' package."""
    made = table(
        f"DSIR, {found['documents']:,} documents, {found['bytes'] / 1e6:.1f} MB, processes: {found['num_workers']}",
        "", "side", "documents/s", "MB/s", "documents/CPU s", "times by clock", "times by CPU",
    )  # fmt: skip
    for contest in ("features", "weights"):
        ratios = found[contest]["ratios"]
        for name, side in found[contest]["sides"].items():
            times = [f"{ratios[clock]['median_of_rounds']:.1f}" for clock in ("wall", "cpu")] if ratios else ["", ""]
            add_row(
                made, contest, name, f"{side['documents_per_wall_second']['median']:,.0f}",
                f"{side['bytes_per_wall_second']['median'] / 1e6:.1f}",
                f"{side['documents_per_cpu_second']['median']:,.0f}", *(times if name == "ours" else ["", ""]),
            )  # fmt: skip
    return made
