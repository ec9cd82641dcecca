"""Which side a document is on, and in which folder: pure functions of what it holds."""

import itertools
from collections.abc import Iterable
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.data import document_columns as columns
from qurating_jax.data.splits import fold
from qurating_jax.method import gumbel
from qurating_jax.runtime.errors import UserError

UNKNOWN = "unknown"

_MAX_FOLDERS = 1000
_MAX_NAME_BYTES = 200  # most filesystems take 255


def heldout(hashes: NDArray[np.uint64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which of n things are held out: each with the probability `fraction`, a pure function of its hash and the seed.

    Args:
        hashes: uint64 [n], of what is to stay together.
        fraction: above 0 and below 1. What a smaller one holds out, a larger one does too.
        seed: of the draw.

    Returns:
        bool [n].
    """
    return gumbel.uniform(hashes, gumbel.noise_stream(seed, "heldout")) < fraction


def text_hashes(texts: Iterable[str]) -> NDArray[np.uint64]:
    """64 bits of `data.splits.fold`, uint64 [n]: equal for texts that are equal up to case and white space."""
    return np.frombuffer(b"".join(fold(text)[:8] for text in texts), "<u8").astype(np.uint64)


def value_hashes(values: list[str | None], otherwise: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes of values, uint64 [n]; where there is none, that of `otherwise`, so that those are not one large group."""
    hashes = gumbel.hash_ids(value or "" for value in values)
    return np.where(np.array([value is None for value in values], bool), otherwise, hashes)


def field_values(table: pa.Table, field: str, option: str) -> list[str | None]:
    """Text or whole numbers at a column or dotted path, as text, None where there is none: [n].

    Raises:
        UserError: the column holds something else.
    """
    values = columns.find(table, field)
    if values is None or pa.types.is_null(values.type):
        return [None] * len(table)
    if not (columns.is_text(values.type) or pa.types.is_integer(values.type)):
        kind = f"is of type {values.type}, not text or whole numbers"
        raise UserError(f"the documents' column `{field}` {kind}; change --{option}")
    named: list[str | None] = values.cast(pa.string()).to_pylist()
    return named


def folder_name(value: str | None) -> str:
    """The folder of a value: letters, digits and `_.-~` as they are, all else percent-encoded, so that no two share it.

    A first `.` or `_`, which hides a folder from readers, is encoded too. Without a value, or with an empty one, it is
    `unknown`.
    """
    name = quote(value or UNKNOWN, safe="")
    return f"%{ord(name[0]):02X}{name[1:]}" if name[0] in "._" else name


def check_folders(names: Iterable[str]) -> None:
    """Refuses folders that could not all be made, whatever the disk.

    Raises:
        UserError: there are too many, a name is too long, or two differ in case alone.
    """
    ordered = sorted(set(names), key=lambda name: (name.casefold(), name))
    if len(ordered) > _MAX_FOLDERS:
        raise UserError(f"--folders_by gives {len(ordered):,} folders, more than {_MAX_FOLDERS:,}; name another field")
    for name in ordered:
        if len(name) > _MAX_NAME_BYTES:
            raise UserError(f"--folders_by: {name[:60]}... is too long for the name of a folder; name another field")
    for name, following in itertools.pairwise(ordered):
        if name.casefold() == following.casefold():
            raise UserError(
                f"--folders_by: the folders {name} and {following} are one on disks that do not tell case; make their "
                "values alike, or name another field"
            )


class SharedTexts:
    """Counts held-out documents whose text is a training document's as well; memory: 16 bytes per held-out document."""

    def __init__(self, held_out: Iterable[NDArray[np.uint64]]) -> None:
        """Takes the text hashes of all held-out documents, in any pieces."""
        hashes = np.concatenate([np.zeros(0, np.uint64), *held_out])
        self._hashes, self._numbers = np.unique(hashes, return_counts=True)
        self._found = np.zeros(len(self._hashes), bool)

    def add(self, train: NDArray[np.uint64]) -> None:
        """Looks at text hashes of training documents."""
        self._found |= np.isin(self._hashes, train)

    @property
    def count(self) -> int:
        """Held-out documents found among those looked at."""
        return int(self._numbers[self._found].sum())
