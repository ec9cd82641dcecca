"""Topics: groups of texts that share words, found without labels.

TF-IDF over words with numbers folded, its leading singular directions (latent semantic analysis, Deerwester et al.
1990), every text a unit vector there, and k-means over all of them at every step (QuRating's own analysis restarts
k-means for every batch, so that the last one alone counts). Words and directions are learned from at most
`FIT_DOCUMENTS` texts, which bounds time and memory; every text is then clustered.

The topics depend on the texts and the seed alone: texts are sorted by a hash first, and linear algebra runs in one
thread, whose sums do not depend on the number of cores (another build of the libraries may round otherwise).
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.analysis.means import Moments, moments, nullable
from qurating_jax.analysis.words import words
from qurating_jax.runtime.progress import progress

if TYPE_CHECKING:
    from scipy import sparse

log = logging.getLogger(__name__)

FIT_DOCUMENTS = 30_000
NO_WORDS = -1
NUM_TERMS = 10
_STABILITY_DOCUMENTS = 10_000
_BLOCK_DOCUMENTS = 5_000
_LEAST_DOCUMENTS = 10  # with words; fewer have no topics
_DOCUMENTS_PER_TOPIC = 5  # at least, on average
_LEAST_LENGTH = 1e-6  # of a text before it is made a unit vector: less is rounding
_NUM_STARTS = 5
_MOST_STEPS = 100
# What English contractions leave of themselves; scikit-learn's list has the whole words.
_FRAGMENTS = (
    "ain", "aren", "couldn", "didn", "doesn", "don", "hadn", "hasn", "haven", "isn", "ll", "re", "shouldn", "ve",
    "wasn", "weren", "won", "wouldn",
)  # fmt: skip

Floats = NDArray[np.float32]

TOPICS = pa.schema(
    [("topic", pa.int64()), ("name", pa.string()), ("terms", pa.list_(pa.string()))]
    + [(name, pa.int64()) for name in ("num_documents", "num_tokens")]
    + [(name, pa.float64()) for name in ("share", "share_tokens", "similarity")]
)
TOPIC_RATINGS = pa.schema(
    [("topic", pa.int64()), ("criterion", pa.string()), ("num_documents", pa.int64())]
    + [(name, pa.float64()) for name in ("mean", "low", "high", "std")]
)
TOPIC_DOMAINS = pa.schema([("topic", pa.int64()), ("domain", pa.string()), ("num_documents", pa.int64())])


@dataclass(frozen=True, eq=False)
class Topics:
    """Topics of m texts, the largest first.

    Attributes:
        labels: int32 [m], number of the text's topic; `NO_WORDS` where it has none of the vocabulary's words.
        terms: of every topic the words that speak most for it, best first.
        similarity: float32 [m], cosine of the text and its topic's centre; NaN where it has no topic.
        stability: adjusted Rand index (Hubert and Arabie 1985) of two clusterings of the same texts from different
            seeds: 1 where the seed does not matter, 0 where they agree as chance would. None: nothing to cluster.
        stability_documents: how many texts it was measured on.
    """

    labels: NDArray[np.int32]
    terms: list[list[str]]
    similarity: Floats
    stability: float | None
    stability_documents: int

    @property
    def names(self) -> list[str]:
        """Names for people: the first three terms, and as many more as tell a topic from those before it."""
        found: list[str] = []
        for number, terms in enumerate(self.terms):
            names = [", ".join(terms[:count]) for count in range(min(3, len(terms)), len(terms) + 1)]
            new = [name for name in names if name and name not in found]
            found.append(new[0] if new else f"topic {number}")
        return found


def find_topics(
    texts: Sequence[str],
    *,
    num_topics: int,
    seed: int,
    max_features: int = 50_000,
    num_components: int = 128,
) -> Topics:
    """Finds the topics of texts.

    Args:
        texts: m texts in any order and script.
        num_topics: wanted, at least 1; there are fewer where there are fewer than five texts with words for each.
        seed: of the singular directions and the first centres.
        max_features: words of the vocabulary at most, the most frequent ones.
        num_components: singular directions at most.

    Raises:
        ValueError: `num_topics`, `max_features` or `num_components` is below 1.
    """
    if min(num_topics, max_features, num_components) < 1:
        raise ValueError("at least one topic, one word and one direction expected")
    order = _order(texts)
    labels, similarity = np.full(len(texts), NO_WORDS, np.int32), np.full(len(texts), np.nan, np.float32)
    nothing = Topics(labels, [], similarity, None, 0)
    if len(texts) < _LEAST_DOCUMENTS:
        return nothing
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), progress("words of the texts", len(texts), "texts") as advance:
        space = _Space.of([texts[row] for row in order.tolist()], seed, max_features, num_components, advance)
        rows = space.rows
        if len(rows) < _LEAST_DOCUMENTS:
            return nothing
        num_topics = min(num_topics, len(rows) // _DOCUMENTS_PER_TOPIC)
        found = _by_size(_cluster(space.points, num_topics, seed))
        some = space.points[:_STABILITY_DOCUMENTS]
        stability = _stability(some, num_topics, seed)
    centers = _centers(space.points, found)
    labels[order[rows]] = found
    similarity[order[rows]] = np.einsum("md,md->m", space.points, centers[found])
    log.info(
        "%d topics of %s texts (%s have no words); two seeds agree to %.2f (adjusted Rand index of %s texts)",
        len(centers),
        f"{len(texts):,}",
        f"{len(texts) - len(rows):,}",
        stability,
        f"{len(some):,}",
    )
    return Topics(labels, space.terms(centers), similarity, stability, len(some))


def tables(
    topics: Topics,
    ratings: Mapping[str, NDArray[np.float64]],
    tokens: NDArray[np.int64],
    domains: NDArray[np.int32],
    domain_names: Sequence[str],
    level: float,
) -> dict[str, pa.Table]:
    """What topics hold and how they are rated: `topics`, `topic_ratings`, `topic_domains`.

    Texts without words are the topic -1. `share` and `share_tokens` are of all m texts; `similarity` is the mean over
    the topic. Intervals are Student's t for the mean of independent texts. Every table carries `note`, a sentence on
    how topics were found, in its schema's metadata. No tables without topics.

    Args:
        topics: of m texts.
        ratings: float64 [m] by criterion, NaN where a text has none.
        tokens: int64 [m].
        domains: int32 [m], numbers into `domain_names`; a negative number is no domain.
        domain_names: their names.
        level: of the intervals.
    """
    if not topics.terms:
        return {}
    num_groups = len(topics.terms) + 1
    groups = np.where(topics.labels == NO_WORDS, num_groups - 1, topics.labels).astype(np.int64)
    documents = np.bincount(groups, minlength=num_groups)
    held = np.bincount(groups, weights=tokens, minlength=num_groups).astype(np.int64)  # exact below 2^53
    similarity = _moments(topics.similarity.astype(np.float64), groups, num_groups).mean
    shown = [number for number in range(num_groups) if documents[number]]
    labels = {number: number if number < num_groups - 1 else NO_WORDS for number in shown}
    names = [*topics.names, "(no words)"]
    rows = [
        {"topic": labels[number], "name": names[number], "terms": [*topics.terms, []][number]}
        | {"num_documents": int(documents[number]), "num_tokens": int(held[number])}
        | {"share": documents[number] / len(groups), "share_tokens": held[number] / max(int(held.sum()), 1)}
        | {"similarity": nullable(similarity[number])}
        for number in shown
    ]
    rated = []
    for criterion, values in ratings.items():
        found = _moments(values, groups, num_groups)
        low, high = found.interval(level)
        rated += [
            {"topic": labels[number], "criterion": criterion, "num_documents": int(found.count[number])}
            | {"mean": nullable(found.mean[number]), "low": nullable(low[number]), "high": nullable(high[number])}
            | {"std": nullable(np.sqrt(found.variance[number]))}
            for number in shown
        ]
    known = domains >= 0
    counts = np.zeros((num_groups, len(domain_names)), np.int64)
    np.add.at(counts, (groups[known], domains[known]), 1)
    placed = [
        {"topic": labels[number], "domain": domain_names[int(domain)], "num_documents": int(counts[number, domain])}
        for number in shown
        for domain in np.flatnonzero(counts[number])
    ]
    made = {"topics": (rows, TOPICS), "topic_ratings": (rated, TOPIC_RATINGS), "topic_domains": (placed, TOPIC_DOMAINS)}
    note = {"note": describe(topics)}
    return {name: pa.Table.from_pylist(rows, schema.with_metadata(note)) for name, (rows, schema) in made.items()}


def describe(topics: Topics) -> str:
    """A sentence for people: what was clustered, and how far the seed matters."""
    if not topics.terms:
        return f"Topics were not looked for: fewer than {_LEAST_DOCUMENTS} of the sampled texts have words."
    counted = "1 topic" if len(topics.terms) == 1 else f"{len(topics.terms)} topics"
    return (
        f"{counted} by k-means over all {len(topics.labels):,} sampled texts; clusterings from two "
        f"seeds agree to an adjusted Rand index of {topics.stability:.2f} (1: the same, 0: by chance; "
        f"{topics.stability_documents:,} texts)."
    )


def _moments(values: NDArray[np.float64], groups: NDArray[np.int64], num_groups: int) -> Moments:
    """Moments by group of the values that are there, added up in ascending order whatever order they came in."""
    known = np.flatnonzero(~np.isnan(values))
    known = known[np.argsort(values[known], kind="stable")]
    return moments(values[known], groups[known], num_groups)


def _order(texts: Sequence[str]) -> NDArray[np.int64]:
    """Rows by a hash of their text, so that the order in which they came does not count."""
    digests = b"".join(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.argsort(np.frombuffer(digests, "<u8"), kind="stable")


@dataclass(frozen=True, eq=False)
class _Space:
    """Texts as unit vectors.

    Attributes:
        rows: int64 [w], the texts that have words.
        points: float32 [w, d].
        directions: float32 [d, V].
        vocabulary: V words.
    """

    rows: NDArray[np.int64]
    points: Floats
    directions: Floats
    vocabulary: NDArray[np.str_]

    @classmethod
    def of(
        cls, texts: list[str], seed: int, max_features: int, num_components: int, advance: Callable[[int], None]
    ) -> "_Space":
        """The space that the first texts, sorted by a hash, span, and all texts in it."""
        from sklearn.utils.extmath import randomized_svd

        sample = texts[:FIT_DOCUMENTS]
        vectorizer = _vectorizer(len(sample), max_features, advance)
        try:
            weights = vectorizer.fit_transform(sample)
        except ValueError:  # no word is left: there is no other cause
            empty = np.zeros((0, 0), np.float32)
            return cls(np.zeros(0, np.int64), empty, empty, np.zeros(0, np.str_))
        num_components = min(num_components, *weights.shape)
        _, _, directions = randomized_svd(weights, num_components, n_iter=4, random_state=seed % 2**32)
        directions = directions.astype(np.float32)
        parts = [_project(weights, directions)]
        for start in range(len(sample), len(texts), _BLOCK_DOCUMENTS):
            parts.append(_project(vectorizer.transform(texts[start : start + _BLOCK_DOCUMENTS]), directions))
        points = np.concatenate(parts)
        lengths = np.sqrt(np.einsum("md,md->m", points, points))
        rows = np.flatnonzero(lengths > _LEAST_LENGTH)
        return cls(rows, points[rows] / lengths[rows, None], directions, vectorizer.get_feature_names_out())

    def terms(self, centers: Floats) -> list[list[str]]:
        """The words of every centre [k, d] with the greatest weights there beyond those of all texts' centre."""
        found, whole = [], self.points.mean(axis=0, dtype=np.float64).astype(np.float32)
        if len(centers) == 1:  # there is nothing that it could be told from
            whole = np.zeros_like(whole)
        for center in centers:
            weights = (center - whole) @ self.directions
            best = np.lexsort((self.vocabulary, -weights))[:NUM_TERMS]
            found.append([str(self.vocabulary[place]) for place in best if weights[place] > 0])
        return found


def _vectorizer(num_texts: int, max_features: int, advance: Callable[[int], None]) -> Any:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

    stop = ENGLISH_STOP_WORDS.union(_FRAGMENTS)

    def terms(text: str) -> list[str]:
        advance(1)
        return [
            word for word in words(text) if (len(word) > 1 or word == "#" or not word.isascii()) and word not in stop
        ]

    return TfidfVectorizer(
        analyzer=terms,
        min_df=1 if num_texts < 200 else 2 if num_texts < 2000 else 5,
        max_features=max_features,
        sublinear_tf=True,
        dtype=np.float32,
    )


def _project(weights: "sparse.csr_matrix", directions: Floats) -> Floats:
    return np.asarray(weights @ directions.T, np.float32)


def _cluster(points: Floats, num_topics: int, seed: int) -> NDArray[np.int32]:
    """Labels [w] of k-means, the best of several starts; clusters that end empty are not there."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(num_topics, n_init=_NUM_STARTS, max_iter=_MOST_STEPS, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # Of fewer different texts than topics it makes fewer topics, which is the answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return means.fit_predict(points)


def _stability(points: Floats, num_topics: int, seed: int) -> float:
    from sklearn.metrics import adjusted_rand_score

    num_topics = min(num_topics, len(points))
    first, second = (_cluster(points, num_topics, seed + step) for step in (1, 2))
    return float(adjusted_rand_score(first, second))


def _by_size(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Labels [w] renumbered: the largest topic is 0, the one with the earlier first text where two are as large."""
    names, first, inverse, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    ranks = np.empty(len(names), np.int32)
    ranks[np.lexsort((first, -counts))] = np.arange(len(names), dtype=np.int32)
    return ranks[inverse]


def _centers(points: Floats, labels: NDArray[np.int32]) -> Floats:
    """Unit vectors [k, d] of the topics' means."""
    num_topics = int(labels.max()) + 1
    sums = np.stack([points[labels == number].sum(axis=0, dtype=np.float64) for number in range(num_topics)])
    lengths = np.sqrt(np.square(sums).sum(axis=1, keepdims=True))
    return (sums / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
