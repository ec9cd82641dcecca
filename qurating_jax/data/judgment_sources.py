"""Where judgments lie: named sources, and the splits of a data set.

A source is `PATTERN` or `NAME=PATTERN`. A pattern is what documents are named by (files, globs, directories,
`hf://owner/name[@revision][/path]`), and of a directory or hub id `#SPLIT` or `#SPLIT,SPLIT` takes only those splits.
A local path that exists is taken at its word, whatever signs are in it.

Splits are the members of a `DatasetDict.save_to_disk` directory, the SPLIT of `data/SPLIT-00000-of-00001.parquet` on
the hub, and files or folders called train, validation or test. A set that has more than one of these three says nothing
about which is meant: that is an error. Splits of other names are domains, and read together.
"""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from qurating_jax.data import documents
from qurating_jax.data.judgments import FILE, UNKNOWN
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError

DATASET_DICT = "dataset_dict.json"  # lists the splits of a directory written by `DatasetDict.save_to_disk`

_NAMED = re.compile(r"([A-Za-z][\w-]*)=(.+)", re.DOTALL)
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(-[0-9a-f]+)?")  # some pushes to the hub add a hash
_NO_SPLIT = ("data", "part", "shard")  # what shards are called where the name says nothing
# As `datasets` spells them.
_PURPOSES = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")


@dataclass(frozen=True)
class Source:
    """One source as it was given: its name, its pattern without name and splits, and the splits to read (none: all)."""

    name: str
    pattern: str
    splits: tuple[str, ...]


@dataclass(frozen=True)
class SourceFile:
    """A file of judgments, the name of its source, and the domain of its rows that state none."""

    file: str
    source: str
    domain: str


def parse_source(source: str) -> Source:
    """Takes a source apart; without a name, the whole of it is its name."""
    named = None if _is_there(source) else _NAMED.fullmatch(source)
    name, pattern = named.groups() if named else (source, source)
    splits: list[str] = []
    if "#" in pattern and not _is_there(pattern):
        pattern, _, chosen = pattern.rpartition("#")
        splits = chosen.split(",")
        if not pattern or not all(splits):
            raise UserError(f"{source}: after # come the names of splits, with commas between them, as in DIR#train")
    return Source(name, pattern if storage.is_remote(pattern) else os.path.expanduser(pattern), tuple(splits))


def find_judgments(sources: Sequence[str]) -> list[str]:
    """The judgment files of all sources, without their names: `manifest.input_digest([], find_judgments(sources))`.

    Raises:
        UserError: see `locate`.
    """
    return [found.file for found in locate(sources)]


def locate(sources: Sequence[str]) -> list[SourceFile]:
    """The files of all sources in order; an output of `judge run` is its `judgments.parquet`.

    Raises:
        UserError: a pattern matches nothing, a split is missing or ambiguous, or two sources name one file.
    """
    if not sources:
        raise UserError("no judgments given: name files, globs, directories or hub ids")
    found: dict[str, SourceFile] = {}
    for source in map(parse_source, sources):
        for file in _files(source):
            known = found.setdefault(file.file, file)
            if known.source != file.source:
                raise UserError(f"{file.file}: belongs to two sources, {known.source} and {file.source}; name it once")
    return list(found.values())


def _is_there(path: str) -> bool:
    """Whether a local path of that exact spelling exists, or a glob of it matches."""
    if storage.is_remote(path):
        return False
    path = os.path.expanduser(path)
    return os.path.lexists(path) or any(True for _ in glob.iglob(path))


def _files(source: Source) -> list[SourceFile]:
    pattern = source.pattern
    storage.expand([pattern], documents.SUFFIXES)  # before anything else: it says best what is wrong with a path
    whole = not storage.is_dir(pattern)
    own = storage.join(pattern, FILE)
    if not whole and storage.exists(own):
        by_split: dict[str, list[str]] = {"": [own]}
    elif not whole and storage.exists(storage.join(pattern, DATASET_DICT)):
        by_split = {split: documents.find_files([storage.join(pattern, split)]) for split in _members(pattern)}
    else:
        by_split = {}
        for file in documents.find_files([pattern]):
            by_split.setdefault("" if whole else _split_of(file, pattern), []).append(file)
    return [
        SourceFile(file, source.name, UNKNOWN if not split or split in _PURPOSES else split)
        for split in _chosen(source, [split for split in by_split if split]) or by_split
        for file in by_split[split]
    ]


def _chosen(source: Source, splits: Sequence[str]) -> Sequence[str]:
    """The splits to read; none: everything there is."""
    pattern = source.pattern
    missing = [split for split in source.splits if split not in splits]
    if missing:
        raise UserError(f"{pattern}: no split {missing[0]}; it has {', '.join(splits) or 'none'}")
    purposes = [split for split in splits if split in _PURPOSES]
    if not source.splits and len(purposes) > 1:
        raise UserError(
            f"{pattern}: has the splits {', '.join(purposes)}; say which: {pattern}#{purposes[0]}, or "
            f"{pattern}#{','.join(purposes)} for all"
        )
    return list(dict.fromkeys(source.splits))


def _members(directory: str) -> list[str]:
    """The splits that the DATASET_DICT of a directory lists."""
    path = storage.join(directory, DATASET_DICT)
    content = storage.read_json(path)
    splits = content.get("splits") if isinstance(content, dict) else None
    names = splits if isinstance(splits, list) else []
    if not names or not all(isinstance(name, str) and name and "/" not in name for name in names):
        raise UserError(f"{path}: no list of splits in it; it is not that of a `datasets` directory")
    return names


def _split_of(file: str, directory: str) -> str:
    """The split that a file below a directory belongs to by its name or its folder's; empty where by none."""
    *folders, name = _below(file, directory).split("/")
    stem = next(name.removesuffix(suffix) for suffix in documents.SUFFIXES if name.endswith(suffix))
    sharded = _SHARD.fullmatch(stem)
    if sharded and sharded[1] not in _NO_SPLIT:
        return sharded[1]
    return next((part for part in (stem, *reversed(folders)) if part in _PURPOSES), "")


def _below(file: str, directory: str) -> str:
    """The path of a file inside a directory."""
    if not storage.is_remote(directory):
        return os.path.relpath(file, directory)
    # The same place in two spellings: hf://owner/name and hf://datasets/owner/name, memory://a and memory:///a.
    inner, outer = (path.split("://", 1)[1].lstrip("/").removeprefix("datasets/") for path in (file, directory))
    return inner.removeprefix(outer).lstrip("/")
