"""Documents -> a budget of them: sampled by rating, the best, above a threshold, like a target, at random, or mixed.

The few numbers per document that decide are read once into key files; thresholds follow from passes over these; then
the selected rows are copied. Any number of processes may run the same command on one output directory, and a run that
was killed goes on where it was. docs/selection.md explains the strategies, the order of the work and its cost.
"""

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from qurating_jax import config as configs
from qurating_jax.config import option
from qurating_jax.runtime import manifest, storage, terminal
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.runtime.manifest import Run
from qurating_jax.selection.options import EXPLANATION, SelectOptions
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    from qurating_jax.selection.choosing import Choice, Inputs
    from qurating_jax.selection.copying.ranks import Ranking

DECISION = "decision.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig, SelectOptions):
    """Options of `qurating select`."""

    input: tuple[str, ...] = option((), "rated documents: files, globs, directories, hf:// ids", reads=True)
    sweep: str = option("", "OPTION=VALUE,VALUE...: print what each would select, write nothing", runtime=True)

    def __post_init__(self) -> None:
        self.check()

    @property
    def only_looks(self) -> bool:
        """True where nothing is written."""
        return self.dry_run or bool(self.sweep)


def main(config: Config) -> dict[str, Any]:
    """Selects and returns the counts; `selection.json` explains the selection."""
    from qurating_jax.data.parts import parse_share
    from qurating_jax.selection.choosing import Inputs

    require(config, "input", *([] if config.only_looks else ["output"]))
    parse_share(config.shard)
    inputs = Inputs.find(config.input, config)
    if config.only_looks:
        with _cache(config) as cache:
            return _sweep(config, inputs, cache) if config.sweep else _look(config, inputs, cache)
    with open_run(config, "select", inputs.digests) as run:
        if run.state == "finished":
            return run.counts
        explanation, ranking = _decide(config, run, inputs)
        return _copy(config, run, inputs, explanation, ranking)


def _choose(config: Config, inputs: "Inputs", cache: str) -> "Choice":
    from qurating_jax.selection.choosing import choose, open_candidates

    return choose(config, open_candidates(config, inputs, cache), config.seed)


def _decide(config: Config, run: Run, inputs: "Inputs") -> tuple[dict[str, Any], "Ranking"]:
    """Explanation and order of this run's selection: what another worker has decided, or what is decided now."""
    from qurating_jax.runtime.claims import claims_on
    from qurating_jax.selection.shared_choice import shared_choice

    def make() -> "Choice":
        return _choose(config, inputs, config.cache or run.path(manifest.CACHE))

    try:
        return shared_choice(run.path(DECISION), make, claims_on(run.output))
    except UserError:
        # A budget that cannot be filled leaves nothing that is in the way of another one, and the key files.
        if run.state == "fresh":
            manifest.withdraw(run)
        raise


def _copy(
    config: Config, run: Run, inputs: "Inputs", explanation: dict[str, Any], ranking: "Ranking"
) -> dict[str, Any]:
    from qurating_jax.data.parts import parse_share
    from qurating_jax.selection.copying.copier import CopyJob, copy_selection
    from qurating_jax.selection.explaining import show
    from qurating_jax.selection.shared_choice import open_inputs

    copied = copy_selection(
        CopyJob(
            output=run.output,
            open_inputs=partial(open_inputs, config, inputs.files, run.path(DECISION)),
            ranking=ranking,
            write=config.write,
            kind=config.format,
            rows_per_shard=config.rows_per_shard,
            num_workers=config.num_workers,
            share=parse_share(config.shard),
            memory_bytes=config.memory_limit,
            verify=partial(manifest.verify, run),
        )
    )
    counts = _counts(explanation) | {"num_shards": copied.num_shards}
    if not copied.finished:
        return counts
    storage.write_json(run.path(EXPLANATION), explanation | {"num_last": copied.num_last})
    if not config.cache:
        with contextlib.suppress(FileNotFoundError):  # another worker who finishes too
            storage.remove_tree(run.path(manifest.CACHE))
    manifest.finish(run, counts)
    show.show(explanation)
    return counts


@contextlib.contextmanager
def _cache(config: Config) -> Iterator[str]:
    """Where key files go when nothing is written: the cache, or a directory that is removed afterwards."""
    if config.cache:
        yield config.cache
        return
    with tempfile.TemporaryDirectory(prefix="qurating-select-") as directory:
        yield directory


def _look(config: Config, inputs: "Inputs", cache: str) -> dict[str, Any]:
    from qurating_jax.selection.explaining import show

    explanation = _choose(config, inputs, cache).explanation
    show.show(explanation)
    return _counts(explanation)


def _sweep(config: Config, inputs: "Inputs", cache: str) -> dict[str, Any]:
    """The explanations of several settings, side by side."""
    from qurating_jax.selection.explaining import show
    from qurating_jax.selection.explaining.overlap import chosen_by, jaccard

    name, _, values = config.sweep.partition("=")
    if name not in {field.name for field in dataclasses.fields(SelectOptions)} | {"seed"} or not values:
        raise UsageError(f"--sweep {config.sweep}: give OPTION=VALUE,VALUE..., as in temperature=0.5,1,2,4")
    plain, first, rows = configs.resolved(config) | {"sweep": ""}, None, []
    for value in values.split(","):
        option = {name: [value] if isinstance(plain[name], list) else value}
        setting = configs.decode(Config, plain | option, where=f"--sweep {name}={value}")
        choice = _choose(setting, inputs, cache)
        chosen = chosen_by(choice.keys, choice.decision, name=value)
        first = first or chosen
        rows.append((f"{name}={value}", choice.explanation, jaccard(first, chosen)))
    terminal.show([show.sweep(rows)])
    return {"settings": [{"setting": label, **_counts(explanation)} for label, explanation, _ in rows]}


def _counts(explanation: dict[str, Any]) -> dict[str, Any]:
    """The scalar part of the explanation that a manifest records."""
    names = (
        "num_documents",
        "num_eligible",
        "num_selected",
        "num_rejected",
        "budget_tokens",
        "budget_documents",
        "selected_tokens",
        "overshoot_tokens",
        "overshoot_documents",
    )
    return {name: explanation[name] for name in names} | {"rejected": explanation["rejected"]}
