"""How fast documents are drawn here, beside the original's rule and, for DSIR, beside its authors' package.

Parts: `draw` (synthetic documents, in one pool and in domains, both sides in turns), `growth` (more and more of them
from files that are not in memory) and `dsir` (needs `--documents` and `--targets`; beside the package `data-selection`
where it is installed). The numbers of a synthetic document take 20 bytes on disk.
"""

import dataclasses
import os
import platform
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.stage import InspectConfig

if TYPE_CHECKING:
    from qurating_jax.experiments.planning.rates import Rate

Part = Literal["draw", "growth", "dsir"]


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating bench select`; configs/bench_select/ has the figures that are quoted."""

    parts: tuple[Part, ...] = option(("draw",), "what is measured")
    num_documents: int = option(1_000_000, "documents of the part `draw`")
    num_domains: int = option(16, "domains of them, beside one pool")
    sizes: tuple[int, ...] = option((1_000_000, 4_000_000), "documents of the part `growth`, ascending")
    share: float = option(30 / 260, "of the tokens that is selected")
    temperature: float = option(2.0, "of the sample")
    memory_limit: int = option(2 << 30, "our bytes of keys in memory")
    rounds: int = option(3, "turns of every side")
    directory: str = option("", "where the synthetic numbers go; empty: the system's temporary directory")
    documents: tuple[str, ...] = option((), "documents of the part `dsir`: files, globs, directories")
    targets: tuple[str, ...] = option((), "documents like those wanted")
    text_field: str = option("text", "field of the text")
    num_workers: int = option(0, "processes of our passes, and of either side of `dsir`; 0: one per core")
    rates: str = option("", "file of rates for `qurating plan` that the part `dsir` adds ours to, files to weights")

    def __post_init__(self) -> None:
        if not self.parts or min(self.num_documents, self.num_domains, self.rounds, *self.sizes) < 1:
            raise ValueError("sizes and counts must be at least 1")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; give a number above 0 and at most 1")
        if "dsir" in self.parts and not (self.documents and self.targets):
            raise ValueError("the part dsir needs --documents and --targets")
        if self.rates and "dsir" not in self.parts:
            raise ValueError("rates are those of the part dsir: a draw is the smaller part of what select does")


def main(config: Config) -> dict[str, Any]:
    """Prints a table per part as soon as it is measured, and returns all figures."""
    from qurating_jax.experiments.planning import rates
    from qurating_jax.runtime.terminal import show
    from qurating_jax.selection.benching import tables

    if config.rates:
        rates.check_file(config.rates)
    result: dict[str, Any] = {"machine": {"processor": platform.processor() or platform.machine(),
                                          "cores": os.cpu_count(), "python": platform.python_version()}}  # fmt: skip
    for part in config.parts:
        if part == "draw":
            result[part] = _draw(config)
            show([tables.draw(result[part])])
        elif part == "growth":
            result[part] = _growth(config)
            show([tables.growth(result[part])])
        else:
            result[part] = _dsir(config)
            show([tables.dsir(result[part])])
    if config.rates:
        rates.append(config.rates, _rate(result["dsir"]))
    return result


def _rate(found: dict[str, Any]) -> "Rate":
    from qurating_jax.experiments.planning import rates

    return rates.Rate(
        stage="select",
        cores=found["num_workers"],
        work=f"DSIR from files to weights, {found['documents']} documents of {found['bytes']} bytes",
        unit="bytes",
        per_second=found["weights"]["sides"]["ours"]["bytes_per_wall_second"]["median"],
        measured=rates.now("qurating bench select"),
    )


def _draw(config: Config) -> list[dict[str, Any]]:
    from qurating_jax.selection.benching import draws

    with tempfile.TemporaryDirectory(dir=config.directory or None, prefix="qurating-bench-") as directory:
        draws.write(directory, config.num_documents, config.num_domains)
        setting = _setting(config, directory)
        pools = [1, config.num_domains] if config.num_domains > 1 else [1]
        return [draws.contest(dataclasses.replace(setting, num_domains=number), config.rounds) for number in pools]


def _growth(config: Config) -> list[dict[str, Any]]:
    from qurating_jax.selection.benching import draws

    with tempfile.TemporaryDirectory(dir=config.directory or None, prefix="qurating-bench-") as directory:
        draws.write(directory, max(config.sizes), config.num_domains)
        setting = dataclasses.replace(_setting(config, directory), num_domains=config.num_domains)
        return draws.growth([dataclasses.replace(setting, num_documents=size) for size in config.sizes])


def _setting(config: Config, directory: str) -> Any:
    from qurating_jax.selection.benching.draws import Setting
    from qurating_jax.selection.keys.passes import num_processes

    return Setting(
        directory,
        config.num_documents,
        1,
        config.share,
        config.temperature,
        config.memory_limit,
        config.num_workers or num_processes(),
    )


def _dsir(config: Config) -> dict[str, Any]:
    from qurating_jax.selection.benching import dsir
    from qurating_jax.selection.keys.passes import num_processes

    return dsir.contest(
        config.documents,
        config.targets,
        text_field=config.text_field,
        num_workers=config.num_workers or num_processes(),
        rounds=config.rounds,
    )
