"""Inputs for DSIR, and a process that hashes one slowly: `python dsir_runs.py OUTPUT WORKERS SECONDS FILE...`."""

import sys
import time
from functools import partial

import numpy as np

from qurating_jax.data.parts import cut_parts
from qurating_jax.selection.dsir.ngram_files import HashJob
from qurating_jax.selection.keys.source import SelectionSource

WORDS = np.array([f"word{number}" for number in range(400)] + ["naïve", "x²", "—", "e\u0301t", "..."])
ROWS_PER_PART = 7


def rows_of(num, seed, *, shift=0):
    """Documents of up to 300 words, some empty or without a text; `shift` changes which words are common."""
    rng = np.random.default_rng(seed)
    frequencies = np.roll(1 / np.arange(1, len(WORDS) + 1), shift)
    frequencies /= frequencies.sum()
    rows = []
    for number in range(num):
        size = int(rng.integers(0, 300)) if number % 5 else int(rng.integers(0, 3))
        text = " ".join(rng.choice(WORDS, size, p=frequencies))
        rows.append({"id": f"{seed}-{number}", "text": None if number % 11 == 3 else text})
    return rows


class SlowSource(SelectionSource):
    def __init__(self, *arguments, seconds):
        super().__init__(*arguments)
        self._seconds = seconds

    def read(self, number, fields=None):
        time.sleep(self._seconds)
        return super().read(number, fields)


def hash_job(output, files, seconds=0.0):
    parts = cut_parts(files, max_rows=ROWS_PER_PART, max_bytes=1 << 26)
    return HashJob(output, parts, partial(SlowSource, files, parts, seconds=seconds), "text", 10_000)


if __name__ == "__main__":
    hash_job(sys.argv[1], sys.argv[4:], float(sys.argv[3])).run("n-grams", int(sys.argv[2]))
