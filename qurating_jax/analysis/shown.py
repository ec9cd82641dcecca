"""The documents of the sample as a table without texts, and those that a reader can open."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qurating_jax.analysis.corpus import Corpus
from qurating_jax.analysis.means import Floats
from qurating_jax.analysis.sample import CHUNK_LENGTHS, Sample, chunks_column


def documents_table(
    corpus: Corpus,
    sample: Sample,
    ratings: Mapping[str, Floats],
    shares: Mapping[str, Floats],
    topics: NDArray[np.int32] | None,
    scripts: Sequence[str],
) -> pa.Table:
    """The sampled documents, without texts.

    Args:
        corpus: all documents.
        sample: m of them.
        ratings: float64 [m] by criterion, NaN where a document has none.
        shares: percentiles among all documents, float64 [m] by criterion.
        topics: int32 [m], negative for none; None: there are no topics.
        scripts: [m].

    Returns:
        row, id, domain, topic, tokens, characters, script, and of every criterion the rating and `percentile_...`.
    """
    names = pa.array(corpus.domain_names, pa.string())
    columns: dict[str, pa.Array] = {
        "row": pa.array(sample.rows),
        "id": pa.array(sample.ids, pa.string()),
        "domain": names.take(pa.array(corpus.domains[sample.rows])),
        "topic": pa.nulls(len(sample.rows), pa.int32())
        if topics is None
        else pa.array(topics.astype(np.int32), mask=topics < 0),
        "tokens": pa.array(corpus.tokens[sample.rows]),
        "characters": pa.array(sample.characters),
        "script": pa.array(scripts, pa.string()),
    }
    columns |= {criterion: pa.array(values, from_pandas=True) for criterion, values in ratings.items()}
    columns |= {f"percentile_{criterion}": pa.array(values, from_pandas=True) for criterion, values in shares.items()}
    return pa.table(columns)


def texts_table(sample: Sample, rows: NDArray[np.int64], selections: Mapping[str, NDArray[np.int64]]) -> pa.Table:
    """The documents that a reader can open: texts, window ratings, and the selections that hold them.

    Args:
        sample: m documents; their texts are cut already.
        rows: int64 [k], which of them, ascending.
        selections: rows of the corpus by name of the selection.

    Returns:
        id, text, is_cut, chunk_lengths, of every criterion `..._chunks`, selected (names of selections).
    """
    taken = pa.array(rows)
    texts = [sample.texts[row] for row in rows]
    holders: list[list[str]] = [[] for _ in rows]
    for name, members in selections.items():
        for place in np.flatnonzero(np.isin(sample.rows[rows], members)).tolist():
            holders[place].append(name)
    lengths = pc.utf8_length(pa.array(texts, pa.large_string())).to_numpy(zero_copy_only=False)
    columns = {
        "id": pa.array([sample.ids[row] for row in rows], pa.string()),
        "text": pa.array(texts, pa.string()),
        "is_cut": pa.array(lengths < sample.characters[rows]),
        CHUNK_LENGTHS: sample.chunk_lengths.take(taken),
    }
    columns |= {chunks_column(criterion): lists.take(taken) for criterion, lists in sample.chunks.items()}
    columns["selected"] = pa.array(holders, pa.list_(pa.string()))
    return pa.table(columns)
