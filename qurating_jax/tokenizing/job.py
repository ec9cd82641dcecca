"""What a run of `qurating tokenize` is made of: its settings and the places of its files."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data.tokenizer import TextTokenizer, load_tokenizer
from qurating_jax.data.tokens import smallest_type
from qurating_jax.method import gumbel
from qurating_jax.runtime import storage
from qurating_jax.tokenizing.layouts import Layout, Packed, Segments
from qurating_jax.tokenizing.options import TokenizeOptions

WORK = "work"
TRAINING, VALIDATION = "training", "validation"


class Selection(Protocol):
    """The documents of a selection by id, found without holding them in memory.

    Attributes:
        order: name of its order; in the order `source` rows follow the input.
    """

    order: str

    def __len__(self) -> int:
        """Documents."""

    def ranks_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Ranks of documents, int64 [m]; -1 where the selection does not have them."""

    def keys_of(self, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Selection keys by rank, float64 [m]."""

    def domains_of(self, ranks: NDArray[np.int64]) -> pa.Array:
        """Domains by rank, text [m], null where the selection knows none."""

    def check_complete(self, ranks: NDArray[np.int64]) -> None:
        """Raises `UserError` where ranks are missing among those that were found, int64 [m] ascending."""


def _no_check() -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class TokenizeJob:
    """A run.

    Attributes:
        output: directory, local or remote.
        base: local directory of the working files and claims (the output itself, where that is local).
        files: of documents.
        tokenizer_path: where the tokenizer is loaded from, in every process.
        options: what is written, and how.
        seed: of the validation split.
        open_selection: opens the selection in every process (a function of a module, or a `functools.partial` of one);
            None: all documents.
        verify: raises where the directory has been given to another run; called before every commit.
        loaded: the tokenizer, where this process has it already; it is not sent to others.
    """

    output: str
    base: str
    files: tuple[str, ...]
    tokenizer_path: str
    options: TokenizeOptions
    seed: int = 0
    share: tuple[int, int] = (0, 1)
    num_workers: int = 1
    open_selection: Callable[[], Selection] | None = None
    verify: Callable[[], None] = _no_check
    loaded: TextTokenizer | None = None

    def path(self, *parts: str) -> str:
        """A path inside the output directory."""
        return storage.join(self.output, *parts)

    def work_path(self, *parts: str) -> str:
        """The path of a working file."""
        return storage.join(self.base, WORK, *parts)

    def encoded_path(self, number: int) -> str:
        """The table of a part's documents: the last file of an encoded part."""
        return self.work_path("documents", f"part-{number:05d}.parquet")

    def flat_path(self, number: int) -> str:
        """The tokens of a part."""
        return self.work_path("tokens", f"part-{number:05d}.bin")

    def rejected_path(self, number: int) -> str:
        """The rows of a part that were no documents."""
        return self.work_path("rejected", f"part-{number:05d}.jsonl")

    def pieces_path(self, split: str, number: int) -> str:
        """The pieces of a shard's rows: the last file of a written shard.

        It lies in the output: where the shard is taken away (--overwrite), so is what says that it is written.
        """
        return self.path(WORK, split, f"rows-{number:05d}.parquet")

    def split_path(self, split: str, *parts: str) -> str:
        """A path in the output of a split: training rows lie in the directory itself."""
        return self.path(*parts) if split == TRAINING else self.path(split, *parts)

    def rows_path(self, split: str) -> str:
        """The directory of a split's arrays."""
        return self.path("tokens") if split == TRAINING else self.path(split, "tokens")

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are written."""
        return (TRAINING, VALIDATION) if self.options.validation_fraction else (TRAINING,)

    @property
    def validation_stream(self) -> int:
        """The draw that splits documents."""
        return gumbel.noise_stream(self.seed, "validation")

    @cached_property
    def layout(self) -> Layout:
        """The layout of the rows."""
        options = self.options
        if options.layout == "packed":
            return Packed(options.sequence_tokens)
        return Segments(options.sequence_tokens, options.overlap_tokens, options.min_tail_tokens)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer, loaded once in every process."""
        return self.loaded or load_tokenizer(self.tokenizer_path)

    @property
    def token_type(self) -> np.dtype[Any]:
        """The type of stored tokens."""
        return smallest_type(self.tokenizer.vocab_size)

    def with_selection(self, open_selection: Callable[[], Selection]) -> "TokenizeJob":
        """The same job for the documents of a selection."""
        return dataclasses.replace(self, open_selection=open_selection)

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in ("tokenizer", "layout")}
        return kept | {"loaded": None}
