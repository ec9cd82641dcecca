"""What every stage shares: the common options and the claim on its output directory."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from qurating_jax import config as configs
from qurating_jax.config import option
from qurating_jax.parallel.options import Distributed
from qurating_jax.runtime import logs, manifest, storage
from qurating_jax.runtime.errors import UsageError, UserError, exit_code_of
from qurating_jax.runtime.manifest import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Options of every stage."""

    output: str = option("", "directory that the stage writes; a re-run resumes or does nothing", runtime=True)
    seed: int = option(0, "seed of every draw the stage makes")
    dry_run: bool = option(False, "check the inputs, say what would be done, write nothing", runtime=True)
    overwrite: bool = option(False, "replace another run's output in the directory", runtime=True)
    json: bool = option(False, "print the counts as one JSON line at the end of stdout", runtime=True)


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Options of every command that answers a question or serves, and makes no output directory of its own."""

    json: bool = option(False, "print the answer as one JSON line at the end of stdout", runtime=True)


@contextlib.contextmanager
def open_run(
    config: StageConfig, stage: str, inputs: Mapping[str, Any], *, distributed: Distributed | None = None
) -> Iterator[Run]:
    """Claims `config.output` (see `manifest.begin`), writes the resolved config there and copies the log into it.

    Where a stage runs as several processes (`distributed`, already initialised), process 0 alone claims and writes;
    the others wait for its answer, and write nothing here but logs of their own. They learn how the block ended.
    Processes that know each other and work each by itself (no `distributed` here) do not end at an error of one.
    """
    require(config, "output")
    if config.seed < 0:
        raise UsageError(f"--seed {config.seed} is negative; the generators take 0 and above")
    from qurating_jax.parallel import rendezvous

    rendezvous.report(done=False)
    run = _claim(config, stage, inputs, distributed or Distributed())
    try:
        with contextlib.nullcontext() if run.state == "finished" else manifest.at_work(run), _log_file(run):
            if run.state != "finished" and run.primary:
                storage.write_text(run.path("config.yaml"), yaml.safe_dump(configs.resolved(config), sort_keys=False))
            yield run
    except BaseException as error:
        reason = " ".join(str(error).split())
        rendezvous.report(done=distributed is None, reason=reason, exit_code=exit_code_of(error))
        raise
    rendezvous.report(done=True)


@contextlib.contextmanager
def _log_file(run: Run) -> Iterator[None]:
    """Copies this process's log lines into the output directory while the run is at work there."""
    if run.state == "finished":
        yield
        return
    handler = logs.to_file(run.output)
    try:
        log.info("%s: %s run in %s", run.stage, run.state, run.output)
        yield
    finally:
        logs.stop(handler)


def _claim(config: StageConfig, stage: str, inputs: Mapping[str, Any], distributed: Distributed) -> Run:
    def begin() -> Run:
        return manifest.begin(
            config.output,
            stage=stage,
            config=configs.resolved(config),
            identity=configs.identity(config),
            inputs=inputs,
            overwrite=config.overwrite,
        )

    if distributed.mode == "none":
        return begin()
    from qurating_jax.parallel.distributed import any_process, from_primary, is_primary, process_index

    run = Run(**from_primary(lambda: dataclasses.asdict(begin())))
    difference = manifest.difference(run, stage=stage, identity=configs.identity(config), inputs=inputs)
    if any_process(bool(difference)):  # they would wait for each other in the middle of the work
        if run.state == "fresh" and is_primary():
            manifest.withdraw(run)  # process 0 may be the one that is wrong
        mine = f"process {process_index()} differs ({difference})" if difference else "another one differs, see its log"
        raise UserError(f"not every process has process 0's options and inputs: {mine}; start the same command on all")
    return dataclasses.replace(run, primary=is_primary())


def require_local(config: StageConfig) -> None:
    """Raises `UsageError` where the output is remote: checkpoints, metrics and exports are written to a local disk."""
    if storage.is_remote(config.output):
        raise UsageError(f"--output {config.output}: this stage writes to a local or mounted disk; copy it from there")


def require_checkpoint_store(config: StageConfig) -> None:
    """Raises `UsageError` where checkpoints cannot be written to the output: on object stores other than gs://."""
    if storage.is_remote(config.output) and not config.output.startswith(storage.CHECKPOINT_STORE):
        where = f"a local or mounted disk, or to {storage.CHECKPOINT_STORE}"
        raise UsageError(f"--output {config.output}: checkpoints go to {where}")


def require(config: Any, *names: str | tuple[str, ...]) -> None:
    """Raises `UsageError` for the first named option that is empty; of a tuple of names one is enough."""
    for name in names:
        either = (name,) if isinstance(name, str) else name
        if all(getattr(config, option) in ("", (), None) for option in either):
            wanted = " or ".join(f"--{option}" for option in either)
            raise UsageError(f"{wanted} is required (on the command line or in the config file)")
