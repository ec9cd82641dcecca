"""DSIR of real text of ten domains beside the authors' package and beside the published formula."""

import hashlib
import itertools
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from input_samples import put_rows

from qurating_jax.data.documents import Rejects, read_documents
from qurating_jax.method.dsir import num_tokens
from qurating_jax.method.hashed_ngrams import NgramHasher
from qurating_jax.runtime import manifest
from qurating_jax.selection.dsir.weights import DsirOptions, weigh_documents
from qurating_jax.selection.keys import cache as key_cache
from qurating_jax.selection.keys.scan import KeyFields
from qurating_jax.selection.keys.source import SelectionSource

TOLERANCE = 1e-6  # relative
PER_DOMAIN = 15
TARGETS = {"wiki": "encyclopedia_wikipedia", "science": "science_arxiv_abstracts"}


def documents_of(file, start, stop):
    with Rejects(None, "error") as rejects:
        found = itertools.islice(read_documents([str(file)], rejects=rejects), start, stop)
        return [{"id": document.id, "text": document.text} for document in found]


@pytest.fixture
def texts(real_data):
    """Files of JSON lines with documents of all domains, and with documents of each target, which come later there."""
    files = sorted((real_data / "raw").glob("*.jsonl.zst"))
    assert len(files) == 10
    raw = [row for file in files for row in documents_of(file, 0, PER_DOMAIN)]
    targets = {name: documents_of(real_data / "raw" / f"{file}.jsonl.zst", 100, 140) for name, file in TARGETS.items()}
    return raw, targets


@pytest.fixture
def weights(texts, tmp_path):
    """float64 [n] by target, and the lengths of the targets."""
    raw, targets = texts
    directory = tmp_path / "ours"
    files = [put_rows(directory, "raw.jsonl", raw)]
    options = key_cache.ScanOptions(max_rows=40)
    keys = key_cache.prepare(
        str(directory / "cache"), files, KeyFields(), options, inputs=manifest.input_digest(files, files)
    )
    weighed = weigh_documents(
        keys,
        partial(SelectionSource, files, keys.parts),
        {name: [put_rows(directory, f"{name}.jsonl", rows)] for name, rows in targets.items()},
        DsirOptions(),
        cache=str(directory / "cache"),
        num_workers=2,
    )
    keys = keys.with_scores({column.score: column.directory for column in weighed.values()})
    found = {
        name: np.concatenate([keys.block(number).scores[column.score] for number in range(len(keys))])
        for name, column in weighed.items()
    }
    return found, {name: column.num_ngrams for name, column in weighed.items()}


def test_weights_by_the_published_formula(texts, weights):
    raw, targets = texts

    def buckets(rows):
        for row in rows:
            words = re.findall(r"\w+|[^\w\s]+", row["text"].lower())
            ngrams = words + [" ".join(pair) for pair in itertools.pairwise(words)]
            yield [int(hashlib.sha256(ngram.encode("utf8")).hexdigest(), 16) % 10_000 for ngram in ngrams]

    def probabilities(documents):
        counts = np.bincount(list(itertools.chain.from_iterable(documents)), minlength=10_000)
        return counts / counts.sum()

    of_raw = list(buckets(raw))
    q = probabilities(of_raw)
    for name, rows in targets.items():
        p = probabilities(buckets(rows))
        terms = [math.log(p[bucket] + 1e-8) - math.log(q[bucket] + 1e-8) for bucket in range(10_000)]
        expected = [
            math.fsum(terms[bucket] for bucket in document) if len(document) >= 2 * 100 - 1 else math.nan
            for document in of_raw
        ]
        assert 20 < np.isnan(expected).sum() < 120
        np.testing.assert_allclose(weights[0][name], expected, rtol=1e-10)


def test_weights_and_lengths_of_the_authors_package(texts, weights, tmp_path):
    package = pytest.importorskip("data_selection", reason="data-selection is in the extra `dev`")
    nltk = pytest.importorskip("nltk")
    if tuple(map(int, nltk.__version__.split(".")[:2])) >= (3, 10):
        pytest.skip("nltk 3.10 and later cut words by the engine `regex`, not by Python's `re`")
    raw, targets = texts
    files = {name: put_rows(tmp_path, f"{name}.jsonl", rows) for name, rows in ({"raw": raw} | targets).items()}
    peer = package.HashedNgramDSIR(
        [files["raw"]], [files[name] for name in targets], str(tmp_path / "cache"), num_proc=1, separate_targets=True
    )
    peer.fit_importance_estimator()
    peer.compute_importance_weights()
    found = np.load(Path(peer.log_importance_weights_dir) / "0.npy", allow_pickle=False)
    lengths = np.load(Path(peer.perexample_metadata_dir) / "0.npy", allow_pickle=False)
    is_long = peer.perexample_metadata_filter(lengths)
    ngrams = NgramHasher().hash_texts(row["text"] for row in raw)
    np.testing.assert_array_equal(num_tokens(ngrams.lengths()), lengths)
    assert found.shape == (len(raw), 2)
    for place, name in enumerate(targets):
        assert np.isnan(weights[0][name]).tolist() == (~is_long).tolist()
        np.testing.assert_allclose(weights[0][name][is_long], found[is_long, place], rtol=TOLERANCE)
    sizes = np.array([weights[1][name] for name in targets])
    np.testing.assert_allclose(sizes / sizes.sum(), peer.target_proportions, rtol=1e-15)
