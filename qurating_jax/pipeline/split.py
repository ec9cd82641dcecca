"""Documents to training and held-out documents, so that a language model can be judged on what no selection reaches.

A document's side follows from its text and the seed: equal texts are on one side, also where their ids differ. Any
number of processes may run the same command on one output directory, and a run that was killed goes on where it was.
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.runtime import manifest, processes, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    from qurating_jax.selection.splitting.job import SplitJob

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating split`."""

    input: tuple[str, ...] = option((), "documents: files, globs, directories, hf:// ids", reads=True)
    text_field: str = option("text", "field of the text; dots reach nested fields")
    id_field: str = option("id", "field of the document id")
    on_bad_row: Literal["error", "skip"] = option("error", "rows that are no documents: stop, or count and skip")
    heldout_fraction: float = option(0.1, "probability of a text, or of a value of `by`, to be held out")
    by: str = option("", "field whose equal values stay on one side (source, id, ...); '': equal texts do")
    folders_by: str = option("", "field whose values become folders of either side, as domain; '': no folders")
    rows_per_shard: int = option(50_000, "input rows read at once: their files, one per side and folder, hold no more")

    num_workers: int = option(0, "processes; 0: one per core", runtime=True)
    shard: str = option("", "i/n: only share i of n, where workers cannot see each other's claims", runtime=True)

    def __post_init__(self) -> None:
        if not 0 < self.heldout_fraction < 1:
            raise ValueError(f"heldout_fraction {self.heldout_fraction} is to be above 0 and below 1")
        if self.rows_per_shard < 1:
            raise ValueError("rows_per_shard must be at least 1")
        if self.num_workers < 0:
            raise ValueError("num_workers must be at least 1, or 0 for one per core")


def main(config: Config) -> dict[str, Any]:
    """Writes `train/` and `heldout/`: the rows of the input with all their columns, in its order, as Parquet.

    A column `id` is added where there is none. See `selection.splitting.work` for what decides a document's side.
    """
    from qurating_jax.data import documents
    from qurating_jax.selection.splitting.work import check_fields

    require(config, "input")
    files = documents.find_files(config.input)
    job = _job(config, files)
    check_fields(job)
    inputs = {"documents": manifest.input_digest(config.input, files)}
    if config.dry_run:
        print(
            f"would split the documents of {len(files)} file(s) into {config.output}, a share of "
            f"{config.heldout_fraction:g} held out by {config.by or 'their texts'}, with {job.num_workers} process(es)"
        )
        return {"files": len(files)}

    with open_run(config, "split", inputs) as run:
        if run.state != "finished":
            return _work(config, run, files)
        _clear(job)  # a run that was killed at its very end
        return run.counts


def _work(config: Config, run: manifest.Run, files: list[str]) -> dict[str, Any]:
    from qurating_jax.selection.splitting.work import clear, split_documents

    def finish(counts: dict[str, Any]) -> None:
        log.info(
            "split: %d documents in train, %d held out (%.2f%%); %.1f MB of text",
            counts["num_train"], counts["num_heldout"], 100 * counts["num_heldout"] / counts["num_documents"],
            counts["num_bytes"] / 1e6,
        )  # fmt: skip
        if counts.get("num_heldout_in_train"):
            log.warning(
                "split: the texts of %d held-out documents stand in train too; without --by equal texts stay together",
                counts["num_heldout_in_train"],
            )
        manifest.finish(run, counts)

    job = _job(config, files, partial(manifest.verify, run))
    try:
        split_documents(job, finish)
    except (UserError, FileNotFoundError):
        if not job.finished:
            raise  # else another worker has finished, and removed what was read here
    if not job.finished:
        return {}
    clear(job)
    return dict(manifest.read(run.output)["counts"])


def _clear(job: "SplitJob") -> None:
    from qurating_jax.selection.splitting.job import WORK
    from qurating_jax.selection.splitting.work import clear

    if storage.exists(job.path(WORK)):
        clear(job)


def _job(config: Config, files: list[str], verify: Any = None) -> "SplitJob":
    from qurating_jax.data.parts import parse_share
    from qurating_jax.selection.splitting.job import SplitJob

    return SplitJob(
        output=config.output,
        files=tuple(files),
        text_field=config.text_field,
        id_field=config.id_field,
        by=config.by,
        folders_by=config.folders_by,
        heldout_fraction=config.heldout_fraction,
        seed=config.seed,
        on_bad_row=config.on_bad_row,
        rows_per_shard=config.rows_per_shard,
        num_workers=config.num_workers or processes.num_cores(),
        share=parse_share(config.shard),
        verify=verify or (lambda: None),
    )
