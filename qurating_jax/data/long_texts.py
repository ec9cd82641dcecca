"""Token ids of very long texts, piece by piece: `tokenizers` takes some 300 bytes for every token under way.

A tokenizer looks at a text's neighbourhood, not at the whole of it: pieces that overlap agree in the middle of the
overlap, on the same tokens at the same characters. There they are joined. Where they do not agree (one word of a
megabyte) the text is encoded at once, whatever memory that takes.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PIECE_CHARACTERS = 1 << 20
_OVERLAP_CHARACTERS = 1 << 14
# So many tokens in a row have to be the same for two pieces to be joined there.
_AGREED_TOKENS = 64


def encode_long(tokenizer: "Tokenizer", text: str) -> NDArray[np.int32]:
    """Token ids of a text, the same as from `encode`: int32 [num_tokens], no special tokens added."""
    try:
        ids = _encode_in_pieces(tokenizer, text)
    except TypeError:  # no Unicode
        raise
    except Exception:  # half a word may be one that the vocabulary lacks; the library raises nothing narrower
        ids = None
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32) if ids is None else ids


def _encode_in_pieces(tokenizer: "Tokenizer", text: str) -> NDArray[np.int32] | None:
    """None where two pieces do not agree."""
    ids: list[NDArray[np.int32]] = []
    before: tuple[NDArray[np.int32], NDArray[np.int64]] | None = None  # the piece that is not joined to the next yet
    start = 0
    while True:
        stop = min(start + PIECE_CHARACTERS, len(text))
        piece = _encode_piece(tokenizer, text, start, stop)
        if before is not None:
            joint = _find_joint(before, piece, start + _OVERLAP_CHARACTERS // 4, start + _OVERLAP_CHARACTERS * 3 // 4)
            if joint is None:
                return None
            ids.append(before[0][: joint[0]])
            piece = piece[0][joint[1] :], piece[1][joint[1] :]
        if stop == len(text):
            return np.concatenate([*ids, piece[0]])
        before, start = piece, stop - _OVERLAP_CHARACTERS


def _encode_piece(
    tokenizer: "Tokenizer", text: str, start: int, stop: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Ids of a piece's tokens, and the characters of the text that they stand for: int64 [num_tokens, 2]."""
    encoding = tokenizer.encode(text[start:stop], add_special_tokens=False)
    return np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2) + start


def _find_joint(
    first: tuple[NDArray[np.int32], NDArray[np.int64]],
    second: tuple[NDArray[np.int32], NDArray[np.int64]],
    begin: int,
    end: int,
) -> tuple[int, int] | None:
    """Places in both pieces from which on their tokens are the same, between two characters of the text."""
    (ids_a, spans_a), (ids_b, spans_b) = first, second
    start_a, start_b = (int(np.searchsorted(spans[:, 0], begin)) for spans in (spans_a, spans_b))
    stop_a, stop_b = (int(np.searchsorted(spans[:, 1], end, side="right")) for spans in (spans_a, spans_b))
    window_a = np.column_stack([ids_a[start_a:stop_a], spans_a[start_a:stop_a]])
    window_b = np.column_stack([ids_b[start_b:stop_b], spans_b[start_b:stop_b]])
    # Tokens that begin at the same character stand opposite each other, or the pieces do not agree.
    if len(window_a) != len(window_b) or len(window_a) < _AGREED_TOKENS or not np.array_equal(window_a, window_b):
        return None
    return start_a, start_b
