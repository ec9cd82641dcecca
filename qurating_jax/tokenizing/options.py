"""Options that decide what `qurating tokenize` writes, and how its work is shared."""

from dataclasses import dataclass
from typing import Literal

from qurating_jax.config import option


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions:
    """Options of the layout, of what is carried along, and of the work."""

    text_field: str = option("text", "field of the text")
    id_field: str = option("id", "field of the document id")
    domain_field: str = option("domain", "field of the domain, dotted paths reach into nested values; '' none")
    carry: tuple[str, ...] = option(("*_average",), "columns of numbers carried into rows.parquet: names or globs")
    on_bad_row: Literal["error", "skip"] = option("error", "rows that are no documents: stop, or count and skip")

    layout: Literal["packed", "segments"] = option("packed", "documents joined and cut, or windows of one document")
    sequence_tokens: int = option(1024, "tokens per row")
    overlap_tokens: int = option(1, "segments: tokens that a window shares with the one before it")
    min_tail_tokens: int = option(128, "segments: a last window of fewer tokens is dropped and counted")
    append_eos: bool = option(False, "segments: close every document with EOS, as `packed` always does")
    validation_fraction: float = option(0.0, "share of the documents held out, by a hash of id and seed")
    megatron: bool = option(False, "also write megatron.bin and megatron.idx")

    num_workers: int = option(0, "processes; 0: one per core", runtime=True)
    shard: str = option("", "i/n: only share i of n, where workers cannot see each other's claims", runtime=True)
    work: str = option("", "local directory of the working files (default: the output, if local)", runtime=True)
    rows_per_part: int = option(16384, "input rows that a process encodes at a time", runtime=True)
    bytes_per_part: int = option(32 << 20, "their bytes at most", runtime=True)

    def check(self) -> None:
        """Raises `ValueError` where options do not fit together."""
        if self.sequence_tokens < 2:
            raise ValueError("sequence_tokens must be at least 2: a row of one token predicts nothing")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction {self.validation_fraction} is not from 0 to below 1")
        if self.num_workers < 0:
            raise ValueError("num_workers must be at least 1, or 0 for one per core")
        if min(self.rows_per_part, self.bytes_per_part) < 1:
            raise ValueError("rows_per_part and bytes_per_part must be at least 1")
        if self.layout == "segments":
            self._check_segments()

    def _check_segments(self) -> None:
        if not 0 <= 2 * self.overlap_tokens < self.sequence_tokens:
            raise ValueError(
                f"overlap_tokens {self.overlap_tokens} must be below half of sequence_tokens {self.sequence_tokens}, "
                "else tokens would stand in more than two windows"
            )
        if not 1 <= self.min_tail_tokens <= self.sequence_tokens:
            raise ValueError(
                f"min_tail_tokens {self.min_tail_tokens} must be from 1 to sequence_tokens {self.sequence_tokens}, "
                "else every window, or none, would be a tail"
            )

    @property
    def closes_documents(self) -> bool:
        """True where every document that has tokens ends with EOS."""
        return self.layout == "packed" or self.append_eos
