"""Is the judge sound? Bias, consistency, noise, agreement, canaries: tables on stdout, and all of it as JSON."""

from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.runtime.terminal import show
from qurating_jax.stage import InspectConfig, require

FILE = "audit.json"


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating judge report`."""

    judgments: str = option("", "folder with verdicts.parquet, grades.parquet or both", positional=True)
    human: str = option("", "labels by people: first_id, second_id, winner or p_second, and criterion if any")
    write: str = option("", f"file of the whole report [{FILE} in the folder]")
    seed: int = option(0, "seed of the resamples behind the intervals")
    level: float = option(0.95, "level of the intervals")

    def __post_init__(self) -> None:
        if self.seed < 0 or not 0.0 < self.level < 1.0:
            raise ValueError("seed >= 0 and 0 < level < 1 expected")


def main(config: Config) -> dict[str, Any]:
    """Writes the report as JSON, prints its tables, returns the counts."""
    from qurating_jax.data import verdicts
    from qurating_jax.judges.audit import audit
    from qurating_jax.judges.audit_labels import read_human_labels
    from qurating_jax.judges.audit_tables import tables

    require(config, "judgments")
    files = [storage.join(config.judgments, name) for name in (verdicts.FILE, verdicts.GRADES_FILE)]
    has_verdicts, has_grades = map(storage.exists, files)
    if not (has_verdicts or has_grades):
        raise UserError(
            f"{config.judgments}: neither {verdicts.FILE} nor {verdicts.GRADES_FILE} in it; "
            "`qurating judge export` makes them from a run"
        )
    if config.human and not has_verdicts:
        raise UsageError(f"--human: {config.judgments} has no {verdicts.FILE} to compare with")
    table = verdicts.read_verdicts(files[0]) if has_verdicts else verdicts.SCHEMA.empty_table()
    report = audit(
        table,
        grades=verdicts.read_grades(files[1]) if has_grades else None,
        human=read_human_labels(config.human) if config.human else None,
        seed=config.seed,
        level=config.level,
    )
    path = config.write or storage.join(config.judgments, FILE)
    storage.write_json(path, report)
    show(tables(report), f"The whole report: {path}")
    return {"report": path, **_counts(report)}


def _counts(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_verdicts": report["num_verdicts"],
        "num_usable": report["num_usable"],
        "num_pairs": {
            criterion: {judge: found["num_pairs"] for judge, found in of.items()}
            for criterion, of in report["judges"].items()
        },
        "num_grades": {
            criterion: {judge: found["num_usable"] for judge, found in of.items()}
            for criterion, of in report["grades"].items()
        },
    }
