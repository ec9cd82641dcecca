"""A plan put to the test as people read it: what the stages took, the plan beside that, and the rates."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qurating_jax.experiments.planning.measured import Fit
from qurating_jax.experiments.planning.trial import NEAR, Beside, Row
from qurating_jax.runtime import terminal

if TYPE_CHECKING:
    from rich.table import Table


def stages_table(title: str, rows: Sequence[Row], everything: Row) -> "Table":
    """What the stages took, and by either clock the plan over it with how many runs are near."""
    made = terminal.table(
        title, "stage", "runs", "seconds", "CPU seconds", "compared", "plan, s", "took, s", "plan / took",
        f"within {NEAR:.0%}", "plan, CPU s", "took, CPU s", "plan / took", f"within {NEAR:.0%}",
    )  # fmt: skip
    for row in (*rows, everything):
        wall, cpu = row.beside["seconds"], row.beside["cpu_seconds"]
        terminal.add_row(
            made, row.stage or "all", row.steps, f"{row.seconds:.1f}", f"{row.cpu_seconds:.1f}",
            max(wall.steps, cpu.steps) or terminal.NOTHING, *_cells(wall), *_cells(cpu),
        )  # fmt: skip
    return made


def rates_table(fits: Sequence[Fit], added: Sequence[Fit]) -> "Table":
    """Rates on the wall, and which of them were added to a file."""
    made = terminal.table("rates", "stage", "where", "FLOPs a unit", "start, s", "units/s", "of", "", "added")
    for fit in fits:
        rate = fit.rate
        terminal.add_row(
            made, rate.stage, f"{rate.number} x {rate.device}",
            terminal.NOTHING if rate.flops_per_unit is None else f"{rate.flops_per_unit:.3g}",
            f"{rate.startup_seconds:.2f}", f"{rate.per_second:,.4g} {rate.unit}", rate.work.partition(";")[0], fit.told,
            "yes" if fit in added else "no",
        )  # fmt: skip
    return made


def notes(fits: Sequence[Fit], everything: Row, num_steps: int) -> list[str]:
    """What the tables leave open."""
    lines = []
    short = [fit.rate.stage for fit in fits if not fit.carries]
    if short:
        lines.append(
            "mostly a start, which says nothing of larger runs, so that no file of rates gets it: "
            + ", ".join(dict.fromkeys(short))
        )
    if everything.steps < num_steps:
        lines.append(f"{num_steps - everything.steps} step(s) have no record of how long they took")
    return lines


def _cells(of: Beside) -> tuple[str, str, str, str]:
    if of.ratio is None:
        return (terminal.NOTHING,) * 4
    return f"{of.planned:.1f}", f"{of.measured:.1f}", f"{of.ratio:.2f}", f"{of.near} of {of.steps}"
