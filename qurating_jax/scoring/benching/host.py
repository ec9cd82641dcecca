"""What the host does beside the devices: laying out batches, and reading, tokenizing, cutting and writing documents."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qurating_jax.data.document_writers import ShardWriter
from qurating_jax.data.parts import Parts
from qurating_jax.data.tokenizer import TextTokenizer
from qurating_jax.runtime.turns import Amount, Side, in_turns, ratios, spread, summary
from qurating_jax.scoring.annotator import Annotator, Layout
from qurating_jax.scoring.benching.samples import Sample
from qurating_jax.scoring.part_rater import PartRater
from qurating_jax.scoring.part_source import AnnotationInput
from qurating_jax.scoring.scorer import Work, lay_out
from qurating_jax.scoring.shapes import Shapes, plan
from qurating_jax.scoring.windows import OnShare, WindowModel, Windows

_ENCODED_CHARACTERS = 4 << 20  # of one call of the raw tokenizer, whose encodings are dropped after it
_ROWS_PER_PART = 1024
_BATCH_TOKENS = 65_536  # of an accelerator


@dataclass(frozen=True, eq=False)
class StandIn:
    """A rater that gives every window zeros at once: what is left is the work of the host."""

    criteria: tuple[str, ...]
    tokenizer: TextTokenizer
    reads_texts: bool = False
    work: Work = field(default_factory=Work)

    def suited_to(self, sizes: NDArray[np.int64], max_shapes: int) -> Self:
        """Itself."""
        return self

    def score_windows(self, windows: Windows, on_share: OnShare | None = None) -> NDArray[np.float32]:
        """Zeros: float32 [m, C]."""
        return np.zeros((len(windows), len(self.criteria)), np.float32)


def layout_speed(sample: Sample, shapes: Shapes, rounds: int) -> dict[str, Any]:
    """Tokens per second of planning a sample's batches and of laying its tokens out in them, each by itself."""
    planning, laying = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        batches = list(plan(sample.sizes, shapes, lambda shape: max(1, _BATCH_TOKENS // shape.num_tokens)))
        planned = time.perf_counter()
        for batch in batches:
            lengths = np.where(batch.members >= 0, sample.sizes[batch.members], 0)
            lay_out(sample.values, sample.starts[batch.members], lengths, batch.shape.num_tokens)
        planning.append(planned - began)
        laying.append(time.perf_counter() - planned)
    tokens = float(sample.sizes.sum())
    return {
        "tokens": int(tokens),
        "plan_tokens_per_second": spread([tokens / seconds for seconds in planning]),
        "lay_out_tokens_per_second": spread([tokens / seconds for seconds in laying]),
    }


def pipeline_speed(texts: Sequence[str], tokenizer: TextTokenizer, window_tokens: int, rounds: int) -> dict[str, Any]:
    """Annotation without its model against the tokenizer alone, on the same texts and with the same threads.

    Ours reads JSON lines (zstd), tokenizes, cuts windows and writes the documents with their ratings as Parquet; the
    other side has the texts in memory and drops what `encode_batch_fast` gives.
    """
    tokens = len(tokenizer.encode_flat(texts)[0])
    num_bytes = sum(len(text.encode()) for text in texts)
    chunks = _chunks(texts)

    def encode(_: int) -> Amount:
        for chunk in chunks:
            tokenizer.backend.encode_batch_fast(chunk, add_special_tokens=False)
        return Amount(tokens)

    with tempfile.TemporaryDirectory() as directory:
        with ShardWriter(directory, rows_per_shard=len(texts), kind="jsonl.zst") as writer:
            for number, text in enumerate(texts):
                writer.write({"id": str(number), "text": text})
        model = StandIn(("first", "second", "third", "fourth"), tokenizer)
        path = f"{directory}/part-00000.jsonl.zst"
        source = AnnotationInput((path,), "text", "id", None, None, _ROWS_PER_PART, _ENCODED_CHARACTERS)
        parts = source.open([path], None).parts

        def annotate(_: int) -> Amount:
            with tempfile.TemporaryDirectory() as output:
                rate(source, parts, model, tokenizer, window_tokens, output)
            return Amount(tokens)

        sides = {"ours": Side(lambda: None, annotate), "tokenizer alone": Side(lambda: None, encode)}
        annotate(0)  # imports, the pool of threads
        turns = in_turns(sides, rounds)
    found: dict[str, Any] = {name: summary(of_side) for name, of_side in turns.items()}
    for name, of_side in turns.items():
        found[name]["megabytes_per_second"] = spread([num_bytes / 1e6 / turn.wall for turn in of_side])
    return {
        "documents": len(texts),
        "tokens": tokens,
        "bytes": num_bytes,
        "sides": found,
        "ratio": ratios(turns["ours"], turns["tokenizer alone"]),
    }


def rate(
    source: AnnotationInput,
    parts: Parts,
    model: WindowModel,
    tokenizer: TextTokenizer,
    window_tokens: int,
    output: str,
) -> None:
    """Rates all parts of an input into a directory, as `annotate` does with one rater and no other workers.

    Raises:
        UserError: a part that cannot be rated.
    """
    layout = Layout({"": model.criteria}, bytes=source.has_texts)
    annotator = Annotator({"": model}, {}, tokenizer, window_tokens, None, layout)
    opened = source.open(source.find_files(), parts)
    failures: dict[int, Any] = {}
    rater = PartRater(opened, annotator, output, "columns", "error", None, lambda: None)
    rater.run(range(len(parts)), lambda _: None, failures)
    if failures:
        raise failures[min(failures)]
    Path(output, "metrics.jsonl").unlink()


def _chunks(texts: Sequence[str]) -> list[list[str]]:
    chunks: list[list[str]] = [[]]
    size = 0
    for text in texts:
        if size >= _ENCODED_CHARACTERS:
            chunks.append([])
            size = 0
        chunks[-1].append(text)
        size += len(text)
    return chunks
