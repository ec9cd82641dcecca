"""A plan put to the test as people read it: what the stages took, the plan beside that, and the rates."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qurating_jax.experiments.planning.measured import Clock, Fit
from qurating_jax.experiments.planning.trial import NEAR, Row
from qurating_jax.runtime import terminal

if TYPE_CHECKING:
    from rich.table import Table


def stages_table(title: str, rows: Sequence[Row], everything: Row) -> "Table":
    """What the runs of every stage took, all of them."""
    made = terminal.table(title, "stage", "runs", "seconds", "of all", "CPU seconds")
    for row in (*rows, everything):
        share = f"{row.seconds / everything.seconds:.0%}" if everything.seconds else terminal.NOTHING
        terminal.add_row(
            made, row.stage or "all", row.steps, f"{row.seconds:.1f}", share, f"{row.cpu_seconds:.1f}"
        )  # fmt: skip
    return made


def plan_table(title: str, clock: Clock, rows: Sequence[Row], everything: Row) -> "Table":
    """The plan beside what was planned, by a clock, and how many runs it is near to."""
    made = terminal.table(title, "stage", "runs", "planned", "took", "planned / took", f"within {NEAR:.0%}")
    for row in (*rows, everything):
        beside = row.beside[clock]
        if beside.ratio is not None:
            terminal.add_row(
                made, row.stage or "all", beside.steps, f"{beside.planned:.1f}", f"{beside.measured:.1f}",
                f"{beside.ratio:.2f}", f"{beside.near} of {beside.steps}",
            )  # fmt: skip
    return made


def rates_table(fits: Sequence[Fit], added: Sequence[Fit]) -> "Table":
    """Rates on the wall: FLOPs a unit, of how many runs of how different sizes, which of them were added to a file."""
    made = terminal.table("Rates, seconds", "stage", "FLOPs", "start", "a second", "runs", "sizes", "added")
    for fit in fits:
        rate = fit.rate
        flops = terminal.NOTHING if rate.flops_per_unit is None else f"{rate.flops_per_unit:.3g}"
        sizes = "one" if fit.told == "one size, the start in it" else f"1 to {fit.most / fit.least:.1f}"
        terminal.add_row(
            made, rate.stage, flops, f"{rate.startup_seconds:.2f}", f"{rate.per_second:,.4g} {rate.unit}", fit.runs,
            sizes, "yes" if fit in added else "no",
        )  # fmt: skip
    return made


def notes(fits: Sequence[Fit], everything: Row, num_steps: int) -> list[str]:
    """What the tables leave open."""
    lines = ["the clock knows other load on the machine, CPU seconds do not; a rate of one size has the start in it"]
    short = [fit.rate.stage for fit in fits if not fit.carries]
    if short:
        lines.append(
            "mostly a start, which says nothing of larger runs, so that no file of rates gets it: "
            + ", ".join(dict.fromkeys(short))
        )
    if everything.steps < num_steps:
        lines.append(f"{num_steps - everything.steps} step(s) have no record of how long they took")
    return lines
