"""Collects real documents of six domains from this machine's Python installation, to try everything on."""

import dataclasses
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.data import corpus
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import StageConfig, open_run

log = logging.getLogger(__name__)

SPLITS = ("train", "heldout")


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating corpus`."""

    max_chars: int = option(4000, "a longer text is cut to pieces of about so many characters, at blank lines")
    min_chars: int = option(200, "shorter texts and pieces are left out")
    max_documents_per_domain: int = option(1000, "no domain gets more documents")
    heldout_fraction: float = option(0.1, "share of the source files whose documents go to heldout/")
    rows_per_shard: int = option(2000, "documents in an output file")

    def __post_init__(self) -> None:
        if not 1 <= self.min_chars < self.max_chars:
            raise ValueError(f"min_chars {self.min_chars} is to be at least 1 and under max_chars {self.max_chars}")
        if not 0 <= self.heldout_fraction < 1:
            raise ValueError(f"heldout_fraction {self.heldout_fraction} is to be at least 0 and under 1")
        if self.max_documents_per_domain < 1 or self.rows_per_shard < 1:
            raise ValueError("max_documents_per_domain and rows_per_shard are to be at least 1")


def main(config: Config) -> dict[str, Any]:
    """Writes `train/` and `heldout/`: Parquet files with the columns id, domain, source, text."""
    place = corpus.installation()
    sources = corpus.find_sources(place)
    if not sources:
        raise UserError(f"{place.stdlib}: no Python files; run this with an interpreter whose library is a directory")
    found = Counter(source.domain for source in sources)
    log.info("corpus: found %s", ", ".join(f"{domain} {found[domain]}" for domain in corpus.DOMAINS))
    if config.dry_run:
        return {"num_sources": dict(found)}

    with open_run(config, "corpus", {"installation": place.fingerprint()}) as run:
        if run.state == "finished":
            return run.counts
        for split in SPLITS:
            storage.remove_tree(run.path(split))  # an interrupted run is a matter of seconds: start again
        limits = corpus.Limits(config.max_chars, config.min_chars, config.max_documents_per_domain)
        pieces, passed_over = corpus.collect(sources, limits, config.seed)
        if not pieces:
            raise UserError(f"no text of {config.min_chars} characters found; lower --min_chars")
        counts = _counts(pieces, config) | {"num_passed_over": dict(passed_over)}
        _write(run, pieces, config)
        log.info("corpus: %d documents, %.1f MB", counts["num_documents"], counts["num_bytes"] / 1e6)
        manifest.finish(run, counts)
        return counts


def _split(piece: corpus.Piece, config: Config) -> str:
    return SPLITS[corpus.is_heldout(piece.source, config.heldout_fraction, config.seed)]


def _write(run: manifest.Run, pieces: list[corpus.Piece], config: Config) -> None:
    from qurating_jax.data import documents

    for split in SPLITS:
        with documents.ShardWriter(run.path(split), rows_per_shard=config.rows_per_shard) as writer:
            for piece in pieces:
                if _split(piece, config) == split:
                    writer.write(dataclasses.asdict(piece))


def _counts(pieces: list[corpus.Piece], config: Config) -> dict[str, Any]:
    domains = {domain: Counter(train=0, heldout=0, bytes=0) for domain in corpus.DOMAINS}
    for piece in pieces:
        domains[piece.domain][_split(piece, config)] += 1
        domains[piece.domain]["bytes"] += len(piece.text.encode())
    return {
        "num_documents": len(pieces),
        "num_train": sum(counted["train"] for counted in domains.values()),
        "num_heldout": sum(counted["heldout"] for counted in domains.values()),
        "num_bytes": sum(counted["bytes"] for counted in domains.values()),
        "domains": {domain: dict(counted) for domain, counted in domains.items()},
    }
