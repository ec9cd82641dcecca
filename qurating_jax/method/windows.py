"""Documents as windows of at most 512 tokens, and a document's rating from its windows' (REFERENCE step 3)."""

import numpy as np


def window_spans(
    lengths: np.ndarray, window_tokens: int, max_windows: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Consecutive windows of every document.

    Args:
        lengths: int [n], tokens of each document; 0 has no window.
        window_tokens: most tokens of a window; only a document's last window is shorter.
        max_windows: of a document that has more, so many are kept: the first, the last, and evenly spaced ones between
            them (the first alone where it is 1); None: all.

    Returns:
        Three int64 [m] arrays, windows in document order: document index, first token, number of tokens.
    """
    if window_tokens < 1:
        raise ValueError(f"window_tokens is {window_tokens}; it must be at least 1")
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"max_windows is {max_windows}; it must be at least 1")
    lengths = np.asarray(lengths, np.int64)
    num_windows = -(-lengths // window_tokens)
    num_kept = num_windows if max_windows is None else np.minimum(num_windows, max_windows)
    documents = np.repeat(np.arange(len(lengths)), num_kept)
    place = np.arange(len(documents)) - (np.cumsum(num_kept) - num_kept)[documents]
    if max_windows is not None:
        gaps = np.maximum(num_kept - 1, 1)[documents]
        place = (2 * place * (num_windows - 1)[documents] + gaps) // (2 * gaps)  # rounded to the nearest window
    starts = place * window_tokens
    return documents, starts, np.minimum(window_tokens, lengths[documents] - starts)


def weighted_means(values: np.ndarray, weights: np.ndarray, documents: np.ndarray, num_documents: int) -> np.ndarray:
    """Mean over each document's windows, weighted by their token counts.

    Args:
        values: float [m, C], a score per window and criterion.
        weights: int [m], tokens of each window (positive).
        documents: int [m], the document of each window.
        num_documents: n.

    Returns:
        float64 [n, C]; NaN for a document without windows.
    """
    weights = np.asarray(weights, np.float64)
    totals = np.bincount(documents, weights=weights, minlength=num_documents)
    sums = np.stack(
        [np.bincount(documents, weights=weights * column, minlength=num_documents) for column in values.T], axis=1
    )
    with np.errstate(invalid="ignore"):
        return sums / totals[:, None]


def first_windows(documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documents that have windows, and the place of each one's first window.

    Args:
        documents: int [m], the document of each window, increasing.

    Returns:
        Two int64 [k] arrays. `np.maximum.reduceat(values, places)` is each document's highest score.
    """
    return np.unique(documents, return_index=True)
