"""What a run of `qurating split` is made of: its settings and the places of its files."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from qurating_jax.runtime import manifest, storage

TRAIN, HELDOUT = "train", "heldout"
SIDES = (TRAIN, HELDOUT)
WORK = "work"


@dataclass(frozen=True, kw_only=True)
class SplitJob:
    """A run.

    Attributes:
        output: directory, local or remote.
        files: of documents.
        text_field, id_field: where their texts and ids are.
        by: field whose equal values stay on one side; empty: equal texts do.
        folders_by: field by which the rows of a side go to folders; empty: no folders.
        heldout_fraction: probability of being held out.
        seed: of the draw.
        on_bad_row: policy for rows that are no documents.
        rows_per_shard: rows of a part of the input at most.
        num_workers: processes.
        share: (i, n): only the share i of n equal ones, for workers that cannot claim.
        verify: raises where the directory has been given to another run; called before every commit.
    """

    output: str
    files: tuple[str, ...]
    text_field: str
    id_field: str
    by: str
    folders_by: str
    heldout_fraction: float
    seed: int
    on_bad_row: Literal["error", "skip"]
    rows_per_shard: int
    num_workers: int
    share: tuple[int, int]
    verify: Callable[[], None]

    def path(self, *parts: str) -> str:
        """A path inside the output directory."""
        return storage.join(self.output, *parts)

    def folder_path(self, side: str, folder: str) -> str:
        """A folder of a side; the side itself where the folder has no name."""
        return self.path(side, folder) if folder else self.path(side)

    def record_path(self, number: int) -> str:
        """What says of a part that all its files are there, and how many documents they have."""
        return self.path(WORK, f"part-{number:05d}.json")

    def rejected_path(self, number: int) -> str:
        """The rows of a part that were no documents."""
        return self.path(WORK, f"rejected-{number:05d}.jsonl")

    def texts_path(self, number: int) -> str:
        """Hashes of a part's texts, uint64 [documents], whose lowest bit says whether they are held out."""
        return self.path(WORK, f"texts-{number:05d}.npy")

    @property
    def plan_path(self) -> str:
        """The cut of the input."""
        return self.path(WORK, "parts.json")

    @property
    def finished(self) -> bool:
        """True where some worker has finished the run: its working files may be gone."""
        return storage.exists(self.path(manifest.MANIFEST))


def shard_name(number: int) -> str:
    """The file that a part leaves in a folder."""
    return f"part-{number:05d}.parquet"
