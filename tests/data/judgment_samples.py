"""Judgments in memory and in files, for the tests of what reads, splits and writes them."""

import gzip
import json

import numpy as np
import zstandard

from qurating_jax.data import judgments as jd


def row(p, texts=("first", "second"), criterion="quality", **more):
    """One row of the published schema; p is p(second > first)."""
    matrix = [[-100.0, p], [-100.0 if p == -100 else 1 - p, -100.0]]
    return {"texts": list(texts), f"{criterion}_average": matrix, f"{criterion}_votes_a": matrix} | more


def write(path, rows):
    text = "".join(json.dumps(one) + "\n" for one in rows).encode()
    if path.name.endswith(".zst"):
        text = zstandard.ZstdCompressor().compress(text)
    path.write_bytes(gzip.compress(text) if path.name.endswith(".gz") else text)
    return str(path)


def make(groups, ids=None, domains=None):
    """Judgments on the given texts, with ids of their own where none are given."""
    groups = [tuple(group) for group in groups]
    ids = [tuple(group) for group in ids] if ids else [tuple(f"id of {text}" for text in group) for group in groups]
    k = len(groups[0])
    domains = [(domain,) * k for domain in domains or ["unknown"] * len(groups)]
    return jd.from_averages(groups, ids, domains, ("quality",), np.full((len(groups), k, k, 1), 0.7))


def numbered(n, k=2, criteria=("q", "r"), start=0):
    """A chunk of n groups from number `start` on: judgments, votes_a, votes_b, some of them missing."""
    rng = np.random.default_rng(0)
    values = rng.random((3, 100, k, k, len(criteria))).round(3)
    values[rng.random(values.shape) < 0.2] = np.nan
    averages, votes_a, votes_b = values[:, start : start + n]
    names = [tuple(f"{g}.{i}" for i in range(k)) for g in range(start, start + n)]
    texts = [tuple(f"text {name}" for name in group) for group in names]
    return jd.from_averages(texts, names, [("web",) * k] * n, criteria, averages), votes_a, votes_b


def published(n=12, k=2):
    """Rows as published: lists of floats with -100, no ids or domains."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(n):
        average = np.full((k, k), -100.0)
        if number % 4:  # each fourth group got no votes
            upper = np.triu_indices(k, 1)
            average[upper] = rng.integers(0, 41, len(upper[0])) / 40
            average.T[upper] = 1 - average[upper]
        matrix = average.tolist()
        rows.append({"texts": [f"text {number}.{i}" for i in range(k)]} | {
            f"{criterion}_{name}": matrix
            for criterion in ("writing_style", "facts_and_trivia")
            for name in ("average", "votes_a", "votes_b")
        })  # fmt: skip
    return rows
