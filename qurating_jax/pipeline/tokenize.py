"""Documents to token rows: joined and cut, or windows of one document each; docs/tokenize.md is the guide.

Any number of processes may run the same command on one output directory, and a run that was killed goes on where it
was. The result depends on the documents and the options alone.
"""

import logging
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from qurating_jax.config import option
from qurating_jax.runtime import manifest, processes, storage
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.stage import StageConfig, open_run, require
from qurating_jax.tokenizing.options import TokenizeOptions

if TYPE_CHECKING:
    from qurating_jax.data.tokenizer import TextTokenizer
    from qurating_jax.tokenizing.job import TokenizeJob

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig, TokenizeOptions):
    """Options of `qurating tokenize`."""

    input: tuple[str, ...] = option((), "documents or a selection: files, globs, directories, hf:// ids", reads=True)
    selection: str = option("", "select's output or its ids.parquet: only these documents of the input", reads=True)
    tokenizer: str = option("", "tokenizer: directory, tokenizer.json or hub id", reads=True)

    def __post_init__(self) -> None:
        self.check()


def main(config: Config) -> dict[str, Any]:
    """Writes `tokens/`, `rows.parquet` (which document stands where), `tokenizer/` and what else is asked for.

    With `selection` the result is that of the selection's copied rows: its documents in its order, which in the order
    `source` is that of the input.
    """
    from qurating_jax.data import documents
    from qurating_jax.data.parts import parse_share
    from qurating_jax.data.tokenizer import load_tokenizer

    require(config, "input", "tokenizer")
    share = parse_share(config.shard)
    files = documents.find_files(config.input)
    tokenizer = load_tokenizer(config.tokenizer)
    _check_eos(config, tokenizer)
    inputs = {"documents": manifest.input_digest(config.input, files), "tokenizer": tokenizer.identity}
    if config.selection:
        from qurating_jax.selection.copying.id_list import id_list_path

        inputs["selection"] = manifest.input_digest([config.selection], [id_list_path(config.selection)])
    order = _order(config)
    if config.dry_run:
        return _say(config, files, order)

    with open_run(config, "tokenize", inputs) as run:
        job = _job(config, run, files, share, tokenizer)
        if run.state != "finished":
            return _work(job, run, order)
        _clear(job)  # a run that was killed at its very end
        return run.counts


def _work(job: "TokenizeJob", run: manifest.Run, order: str | None) -> dict[str, Any]:
    from qurating_jax.tokenizing.work import clear, tokenize

    def finish(counts: dict[str, Any]) -> None:
        job.tokenizer.save(run.path("tokenizer"))
        counts |= {"order": order}
        log.info("tokenize: %s", ", ".join(f"{value} {key}" for key, value in counts.items() if isinstance(value, int)))
        manifest.finish(run, counts)

    try:
        tokenize(job, finish)
    except (UserError, FileNotFoundError):
        if not storage.exists(run.path(manifest.MANIFEST)):
            raise  # else another worker has finished, and removed what was read here
    if not storage.exists(run.path(manifest.MANIFEST)):
        return {}
    clear(job)
    return dict(manifest.read(run.output)["counts"])


def _clear(job: "TokenizeJob") -> None:
    from qurating_jax.tokenizing.job import WORK
    from qurating_jax.tokenizing.work import clear

    if os.path.exists(job.work_path()) or storage.exists(job.path(WORK)):
        clear(job)


def _job(
    config: Config, run: manifest.Run, files: list[str], share: tuple[int, int], tokenizer: "TextTokenizer"
) -> "TokenizeJob":
    from qurating_jax.selection.copying.id_list_files import open_id_list
    from qurating_jax.tokenizing.job import TokenizeJob

    base = run.output
    if config.work or storage.is_remote(base):
        if storage.is_remote(config.work) or (share != (0, 1) and not config.work):
            raise UsageError("--work must be a local directory; with --shard one that all workers share")
        # The same for the same run, so that it is found again; of another run there is nothing in it.
        fingerprint = manifest.sha256(repr(sorted(run.determined.items())) + run.output)
        base = os.path.join(config.work or tempfile.gettempdir(), f"qurating-tokenize-{fingerprint[:16]}")
        log.info("tokenize: working files go to %s (--work DIR puts them elsewhere)", base)
    job = TokenizeJob(
        output=run.output,
        base=base,
        files=tuple(files),
        tokenizer_path=config.tokenizer,
        options=config,
        seed=config.seed,
        share=share,
        num_workers=config.num_workers or processes.num_cores(),
        verify=partial(manifest.verify, run),
        loaded=tokenizer,
    )
    if not config.selection:
        return job
    return job.with_selection(partial(open_id_list, config.selection, job.work_path("selection")))


def _check_eos(config: Config, tokenizer: "TextTokenizer") -> None:
    if tokenizer.eos_id is not None or not (config.closes_documents or config.megatron):
        return
    what = "Megatron's files" if not config.closes_documents else f"--layout {config.layout} with EOS"
    if config.layout == "packed":
        what = "packed rows"
    raise UserError(
        f"{config.tokenizer}: no end-of-text token; {what} need one to close documents (--layout segments does not)"
    )


def _order(config: Config) -> str | None:
    """The order that rows follow where it is that of a selection: given by its id list, or by its copied rows."""
    from qurating_jax.selection.copying.id_list import read_order

    place = config.selection
    if not place and len(config.input) == 1 and manifest.is_artifact(config.input[0]):
        place = config.input[0] if manifest.read(config.input[0])["stage"] == "select" else ""
    order = read_order(place) if place else "source"
    return None if order == "source" else order


def _say(config: Config, files: list[str], order: str | None) -> dict[str, Any]:
    rows = {"packed": "rows", "segments": "windows of one document, rows"}[config.layout]
    print(
        f"would tokenize {len(files)} file(s) into {rows} of {config.sequence_tokens} tokens in {config.output}, "
        f"{'in the order of the input' if order is None else f'in the order `{order}` of the selection'}, with "
        f"{config.num_workers or processes.num_cores()} process(es)"
    )
    return {"files": len(files)}
