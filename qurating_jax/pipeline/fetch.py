"""Fetch a published rater, language model, set of judgments or rated corpus by its name; without a name, list them."""

import contextlib
import dataclasses
import functools
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from qurating_jax.config import option
from qurating_jax.experiments import registry
from qurating_jax.experiments.registry import Artifact
from qurating_jax.runtime import claims, downloads, hub, manifest, mirrors, storage
from qurating_jax.runtime.downloads import Place, RemoteFile
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.hub import Listing, Repository
from qurating_jax.stage import StageConfig, open_run, require, require_local

COMMIT = "commit.json"  # what the revision stood for when the run began
UNFINISHED = ".unfinished"  # hidden: no stage reads from it

# Neither code nor pickles are ever wanted.
_TEXTS = ("*.json", "*.md", "*.txt", "*LICENSE*")
_MODEL_FILES = (*_TEXTS, "*.safetensors", "tokenizer.model")
_DATA_SUFFIXES = (".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating fetch`."""

    name: str = option("", "what to fetch; without a name the registry is listed", positional=True)
    revision: str | None = option(None, "branch, tag or commit; null: the registry's")
    include: tuple[str, ...] = option(
        (), "globs of the files to take, as in 'tokenizer*'; none: all that is of use here"
    )
    registry: str | None = option(None, "a registry of your own instead of the one that ships (YAML)", reads=True)
    mirror: str | None = option(None, "local folder with owner/name/... instead of the hub", reads=True)
    num_workers: int = option(8, "files at a time", runtime=True)

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers {self.num_workers} is to be at least 1")


@dataclass(frozen=True)
class _Source:
    """Where the files come from, and which of them are wanted."""

    listing: Listing
    read: downloads.Read


def main(config: Config) -> dict[str, Any]:
    """Writes `hf/` (a model) or `files/` (a data set) as the repository has it, and `files.json` with every sha256."""
    artifacts = registry.load(config.registry)
    if not config.name:
        return _print(artifacts)
    artifact = registry.find(artifacts, config.name)
    repository = Repository(artifact.repo, artifact.repo_type)
    revision = config.revision or artifact.revision
    if config.dry_run:
        source = _source(config, artifact, None if config.mirror else hub.resolve(repository, revision))
        counts = _counts(config.name, artifact, source.listing)
        print(
            f"would fetch {counts['files']} files, {counts['bytes']:,} bytes, of {artifact.repo} at {counts['commit']}"
        )
        return counts
    require(config, "output")
    require_local(config)
    inputs: dict[str, Any] = {"repo": artifact.repo, "repo_type": artifact.repo_type, "revision": revision}
    if config.mirror:
        place, listing = mirrors.find(config.mirror, repository), _source(config, artifact, None).listing
        inputs["mirror"] = manifest.input_digest([], [storage.join(place, file.name) for file in listing.files])
    with open_run(config, "fetch", inputs) as run:
        if run.state == "finished":
            return run.counts
        with _alone(run.output):
            source = _source(
                config, artifact, None if config.mirror else _commit(run.path(COMMIT), repository, revision)
            )
            counts = _fetch(config, artifact, run, source)
        manifest.finish(run, counts)
        return counts


def _fetch(config: Config, artifact: Artifact, run: manifest.Run, source: _Source) -> dict[str, Any]:
    """All files to their place, which is there at once or not at all; returns the counts."""
    files, target = source.listing.files, run.path("hf" if artifact.repo_type == "model" else "files")
    if not storage.is_dir(target):  # else: killed between the last two steps
        place = Place(run.path(UNFINISHED, "whole"), run.path(UNFINISHED, "partial"))
        storage.make_dirs(place.whole)
        downloads.require_space(run.output, sum(file.size for file in files) - place.num_bytes(files))
        log.info("fetch: %s at %s, %d files", artifact.repo, source.listing.commit or "an unknown commit", len(files))
        bring = functools.partial(downloads.download, read=source.read, place=place, num_workers=config.num_workers)
        first = next((file for file in files if file.name.endswith(_DATA_SUFFIXES)), None)
        if artifact.columns and first is not None:
            bring([first], title="fetch first file")
            _check_columns(storage.join(place.whole, first.name), artifact)
        bring(files, title="fetch")
        os.rename(place.whole, target)
    known = [dataclasses.replace(file, sha256=file.sha256 or downloads.sha256_of(storage.join(target, file.name)))
             for file in files]  # fmt: skip
    listing = Listing(source.listing.commit, tuple(known))
    mirrors.record(run.path(mirrors.FILES), Repository(artifact.repo, artifact.repo_type), listing)
    storage.remove_tree(run.path(UNFINISHED))
    if artifact.labels:
        log.info("fetch: the scores are, in order, %s (annotate --criteria, where its config does not name them)",
                 " ".join(artifact.labels))  # fmt: skip
    stated = json.dumps([[file.name, file.size, file.sha256] for file in listing.files])
    return _counts(config.name, artifact, listing) | {"sha256": manifest.sha256(stated)}


def _source(config: Config, artifact: Artifact, commit: str | None) -> _Source:
    """The wanted files of the hub at a commit, or of the mirror (`commit` None)."""
    repository = Repository(artifact.repo, artifact.repo_type)
    if commit is None:
        mirror = config.mirror or ""
        place = mirrors.find(mirror, repository)
        listing, where = mirrors.list_files(place, mirror), place
        read: downloads.Read = functools.partial(mirrors.read, place, mirror)
        revision = config.revision or artifact.revision
        if hub.COMMIT.fullmatch(revision) and listing.commit != revision:
            raise UserError(f"{place}: holds commit {listing.commit or 'unknown'}, not {revision}")
    else:
        listing, where = hub.list_files(repository, commit), f"{artifact.repo}@{commit}"
        read = functools.partial(hub.read, repository, commit)
    downloads.check_names(listing.files, where)
    return _Source(Listing(listing.commit, _wanted(config, artifact, listing.files, where)), read)


def _wanted(config: Config, artifact: Artifact, files: tuple[RemoteFile, ...], where: str) -> tuple[RemoteFile, ...]:
    is_model = artifact.repo_type == "model"
    patterns = config.include or (_MODEL_FILES if is_model else (*_TEXTS, *(f"*{suffix}" for suffix in _DATA_SUFFIXES)))
    wanted = tuple(file for file in files if any(fnmatchcase(file.name, pattern) for pattern in patterns))
    if config.include and not wanted:
        raise UserError(f"{where}: none of its {len(files)} files fits {' '.join(config.include)}")
    needed = (".safetensors",) if is_model else _DATA_SUFFIXES
    if not config.include and not any(file.name.endswith(needed) for file in wanted):
        pickled = next((file.name for file in files if file.name.endswith((".bin", ".pt", ".pth"))), None)
        hint = (
            f"; {pickled} is a pickle, which is not read: name a --revision with safetensors (refs/pr/N), or a "
            "--mirror with a copy that was saved as safetensors"
        )
        raise UserError(f"{where}: holds no {' or '.join(needed)}{hint if is_model and pickled else ''}")
    return wanted


def _commit(path: str, repository: Repository, revision: str) -> str:
    """The commit that the run keeps to: the revision is asked for once."""
    if not storage.exists(path):
        commit = hub.resolve(repository, revision)
        storage.create_json(path, {"schema_version": 1, "revision": revision, "commit": commit})
    document = storage.read_json(path)
    kept = document.get("commit") if isinstance(document, dict) else None
    if not isinstance(kept, str) or not hub.COMMIT.fullmatch(kept):
        raise UserError(f"{path}: names no commit; start anew with --overwrite")
    return kept


def _check_columns(path: str, artifact: Artifact) -> None:
    """Raises `UserError` where the first file of a data set lacks a column that the registry promises."""
    if path.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            columns = pq.read_schema(path).names
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: not a Parquet file ({' '.join(str(error).split())[:200]})") from None
    else:
        from qurating_jax.data.documents import Rejects, read_rows

        with contextlib.closing(read_rows(path, rejects=Rejects(None, "error"))) as rows:  # type: ignore[type-var]
            columns = list(next(rows, (0, {}))[1])
    missing = [column for column in artifact.columns if column not in columns]
    if missing:
        raise UserError(
            f"{artifact.repo}: lacks the columns {', '.join(missing)} (it has {', '.join(columns)[:200]}); name "
            "another --revision, or correct the columns in a --registry of your own"
        )


@contextlib.contextmanager
def _alone(output: str) -> Iterator[None]:
    """Two processes would write into one partial file; the second one is sent away."""
    own = claims.Claims(output)
    with contextlib.nullcontext(True) if own.obstacle() else own.take("fetch") as mine:
        if not mine:
            raise UserError(f"{output}: another process fetches into it; wait for it, or choose another --output")
        yield
    own.remove()


def _counts(name: str, artifact: Artifact, listing: Listing) -> dict[str, Any]:
    return {
        "name": name,
        "kind": artifact.kind,
        "repo": artifact.repo,
        "repo_type": artifact.repo_type,
        "licence": artifact.licence,
        "commit": listing.commit,
        "files": len(listing.files),
        "bytes": sum(file.size for file in listing.files),
    }


def _print(artifacts: dict[str, Artifact]) -> dict[str, Any]:
    table = [("name", "kind", "repository")]
    table += [(name, artifact.kind, artifact.repo) for name, artifact in artifacts.items()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    return {"artifacts": {name: dataclasses.asdict(artifact) for name, artifact in artifacts.items()}}
