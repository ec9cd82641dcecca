"""Documents as windows of at most 512 tokens, and a document's rating from its windows' (REFERENCE step 3)."""

import numpy as np


def window_spans(lengths: np.ndarray, window_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Consecutive windows of every document.

    Args:
        lengths: int [n], tokens of each document; 0 has no window.
        window_tokens: most tokens of a window; only a document's last window is shorter.

    Returns:
        Three int64 [m] arrays, windows in document order: document index, first token, number of tokens.
    """
    if window_tokens < 1:
        raise ValueError(f"window_tokens is {window_tokens}; it must be at least 1")
    lengths = np.asarray(lengths, np.int64)
    num_windows = -(-lengths // window_tokens)
    documents = np.repeat(np.arange(len(lengths)), num_windows)
    first_window = np.cumsum(num_windows) - num_windows
    starts = (np.arange(len(documents)) - first_window[documents]) * window_tokens
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
