"""What a device can do at most, what bfloat16 changes, and what is lost between the scorer and a file of ratings."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jax import Array

from qurating_jax.data.document_writers import write_table
from qurating_jax.method.agreement import spearman
from qurating_jax.models.flops import peak_flops
from qurating_jax.models.llama import Params
from qurating_jax.runtime.turns import Amount, in_turns, ratios, spread, summary
from qurating_jax.scoring.benching.host import rate
from qurating_jax.scoring.benching.samples import Sample, sample_of
from qurating_jax.scoring.benching.setting import CRITERIA, Setting, mfu, our_side, score
from qurating_jax.scoring.part_source import AnnotationInput

_ROUNDING_TOKENS = 131_072  # enough to compare by; float32 is slow on an accelerator
_CALLS = 10  # of a measurement: the device has the next one while it works on one


def ceilings(size: int, num_bytes: int, dtype: str, rounds: int) -> dict[str, Any]:
    """What one device reaches on random numbers.

    Args:
        size: n of a product of two n x n matrices.
        num_bytes: of the array that is copied; it should be much larger than every cache.
        dtype: of the matrices.
        rounds: how often each is measured.

    Returns:
        FLOP/s of the product, bytes per second of a copy (what is read and what is written), and the peak of the data
        sheet where it is known.
    """
    left, right = (jax.random.normal(key, (size, size), dtype) for key in jax.random.split(jax.random.key(0)))
    copied = jax.random.bits(jax.random.key(1), (num_bytes // 4,), jnp.uint32)
    products = _rates(jax.jit(jnp.matmul), (left, right), 2.0 * size**3, rounds)
    # A copy alone is no program of XLA's; one operation per number costs nothing beside the memory.
    copies = _rates(jax.jit(lambda x: x ^ jnp.uint32(1)), (copied,), 2.0 * copied.nbytes, rounds)
    found: dict[str, Any] = {"matmul_size": size, "matmul_dtype": dtype, "matmul_flops_per_second": products}
    found |= {"copied_bytes": copied.nbytes, "copy_bytes_per_second": copies}
    return found | {"datasheet_flops_per_second": peak_flops(jax.local_devices()[0].device_kind)}


def _rates(
    function: Callable[..., Array], arguments: tuple[Array, ...], amount: float, rounds: int
) -> dict[str, float]:
    function(*arguments).block_until_ready()
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(_CALLS):
            result = function(*arguments)
        result.block_until_ready()
        rates.append(_CALLS * amount / (time.perf_counter() - began))
    return spread(rates)


def rounding(setting: Setting, params: Params, sample: Sample) -> dict[str, Any]:
    """bfloat16 against float32 on the first windows of a sample, about `turn_tokens` tokens of them or 131 072.

    Returns:
        Spearman's correlation and the number of distinct scores in either dtype, by criterion.
    """
    tokens = min(setting.turn_tokens, _ROUNDING_TOKENS)
    windows = np.arange(max(2, int(np.searchsorted(np.cumsum(sample.sizes), tokens))))[: len(sample)]
    scores = {}
    for dtype in ("float32", "bfloat16"):
        cast = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), params)
        # Not the kernels asked for: cuDNN's do no float32.
        model = setting.rater(cast, dtype=dtype, attention="auto").suited_to(sample.sizes[windows], 1)
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):  # no TF32 in the truth
            scores[dtype] = score(model, sample, windows)
    exact, rounded = scores["float32"].T, scores["bfloat16"].T
    criteria = {
        name: {
            "spearman": spearman(exact[number], rounded[number]),
            "distinct": len(np.unique(rounded[number])),
            "distinct_float32": len(np.unique(exact[number])),
        }
        for number, name in enumerate(CRITERIA)
    }
    largest = float(np.abs(exact - rounded).max())
    return {"windows": len(windows), "largest_difference": largest, "criteria": criteria}


def end_to_end(
    setting: Setting, params: Params, mixture: Sample, *, tokens: int, rows_per_part: int, rounds: int
) -> dict[str, Any]:
    """From Parquet with token ids to Parquet with ratings, against the scorer alone on the same windows.

    Args:
        setting: the model.
        params: its weights.
        mixture: documents, of which the first are rated.
        tokens: of these documents together, about (a single one may have more).
        rows_per_part: documents per file of ratings; every part fills its last batches up, as in a run.
        rounds: turns of either side.
    """
    num = int(np.searchsorted(mixture.offsets, tokens, side="right")) - 1
    lengths = np.diff(mixture.offsets)[: max(1, num)]
    sample = sample_of(lengths, setting.window_tokens, setting.model.vocab_size)
    model = setting.rater(params).suited_to(mixture.sizes, setting.num_shapes)
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/documents.parquet"
        ids = pa.ListArray.from_arrays(sample.offsets.astype(np.int32), sample.values)
        write_table(path, pa.table({"id": [str(number) for number in range(len(lengths))], "input_ids": ids}))
        source = AnnotationInput((path,), "text", "id", "input_ids", None, rows_per_part, 1 << 40)
        parts = source.open([path], None).parts

        def annotate(_: int) -> Amount:
            before = model.work
            with tempfile.TemporaryDirectory() as output:
                rate(source, parts, model, model.tokenizer, setting.window_tokens, output)
            done = model.work - before
            return Amount(done.tokens, done.places, done.flops)

        scorer = our_side(model, sample, [np.arange(len(sample))] * rounds)
        sides = {"Parquet to Parquet": dataclasses.replace(scorer, run=annotate), "scorer alone": scorer}
        turns = in_turns(sides, rounds)
    first, second = sides
    found = {name: summary(of_side) for name, of_side in turns.items()}
    for entry in found.values():
        entry["mfu"] = mfu(entry["flops_per_second"], setting.mesh.size)
    return {
        "documents": len(lengths),
        "parts": len(parts),
        "sides": found,
        "ratio": ratios(turns[first], turns[second]),
    }


def memory_bytes() -> int | None:
    """Most memory that JAX held on the first device so far, where the device tells."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
