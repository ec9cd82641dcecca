"""Attention as a float64 softmax over an explicit mask, its derivatives, and inputs for both."""

import numpy as np


def brute_force(query, key, value, segment_ids, window):
    """float64, one query at a time; keys and values of query head n are those of head n // (N / K)."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    B, T, N, H = query.shape
    group = N // key.shape[2]
    out = np.zeros((B, T, N, H))
    for b in range(B):
        for t in range(T):
            seen = [
                s
                for s in range(t + 1)
                if (window is None or t - s < window)
                and (segment_ids is None or segment_ids[b, s] == segment_ids[b, t])
            ]
            for n in range(N):
                scores = key[b, seen, n // group] @ query[b, t, n] / np.sqrt(H)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights @ value[b, seen, n // group] / weights.sum()
    return out


def brute_force_gradients(query, key, value, segment_ids, window, gradient):
    """float64 derivatives of sum(gradient * attention), by the chain rule of one query at a time."""
    query, key, value, gradient = (np.asarray(array, np.float64) for array in (query, key, value, gradient))
    B, T, N, H = query.shape
    group = N // key.shape[2]
    d_query, d_key, d_value = np.zeros_like(query), np.zeros_like(key), np.zeros_like(value)
    for b in range(B):
        for t in range(T):
            seen = [
                s
                for s in range(t + 1)
                if (window is None or t - s < window)
                and (segment_ids is None or segment_ids[b, s] == segment_ids[b, t])
            ]
            for n in range(N):
                k = n // group
                scores = key[b, seen, k] @ query[b, t, n] / np.sqrt(H)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                d_weights = value[b, seen, k] @ gradient[b, t, n]
                d_scores = weights * (d_weights - weights @ d_weights) / np.sqrt(H)
                d_query[b, t, n] += d_scores @ key[b, seen, k]
                d_key[b, seen, k] += d_scores[:, None] * query[b, t, n]
                d_value[b, seen, k] += weights[:, None] * gradient[b, t, n]
    return d_query, d_key, d_value


def inputs(T, *, N=4, K=2, H=6, B=2, scale=2.0):
    generator = np.random.default_rng(T)
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H))
    return [(scale * generator.standard_normal(shape)).astype(np.float32) for shape in shapes]


def segments(B, T):
    """Sorted runs of ids, another split in every row."""
    return np.sort(np.random.default_rng(1).integers(0, 4, (B, T)), axis=1).astype(np.int32)
