"""The n-gram rater: a linear Bradley-Terry model on hashed n-grams and statistics of a text; no accelerator, no pickle.

A directory holds `rater.json` (settings, criteria, means and scales) and `model.safetensors` (weights, idf, the word
table). Fitting is convex and ends at the optimum; the same judgments give the same rater.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy import sparse

from qurating_jax.data.judgments import Judgments, distinct_texts
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring import ngram_features, text_features
from qurating_jax.scoring.linear import choose_ridge, fit_weights
from qurating_jax.scoring.ngram_features import batches
from qurating_jax.scoring.options import NgramConfig
from qurating_jax.scoring.pairs import pairs_of, text_folds
from qurating_jax.scoring.rater_files import (
    FILE,
    criteria_of,
    numbers_of,
    read_rater_file,
    require_keys,
    write_rater_file,
)
from qurating_jax.scoring.scorer import Work
from qurating_jax.scoring.text_features import WordFrequencies
from qurating_jax.scoring.windows import OnShare, Windows

KIND = "ngrams"
WEIGHTS = "model.safetensors"

_CLIP_DEVIATIONS = 4.0  # a page of dashes is no better an argument than the longest one that was seen
_LEAST_CORPUS_COUNT = 2  # words that a corpus has once are typing errors and names

log = logging.getLogger(__name__)

Array64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NgramModel:
    """A fitted n-gram rater.

    Attributes:
        criteria: names of the C scores.
        config: its settings.
        weights: float32 [features, C] of each family: `words`, `chars` (features are the 2^bits buckets), `statistics`.
        idf: float32 [2^bits] of `words` and `chars`; 0 where a bucket is no feature.
        means: float64 [S] of the statistics over the training texts.
        scales: float64 [S], their standard deviations.
        frequencies: how common words are in general.
    """

    criteria: tuple[str, ...]
    config: NgramConfig
    weights: dict[str, NDArray[np.float32]]
    idf: dict[str, NDArray[np.float32]]
    means: Array64
    scales: Array64
    frequencies: WordFrequencies

    @property
    def tokenizer(self) -> None:
        """Windows are cut by words."""

    @property
    def reads_texts(self) -> bool:
        """It reads nothing else."""
        return True

    @property
    def work(self) -> Work:
        """None on any device."""
        return Work()

    def suited_to(self, sizes: NDArray[np.int64], max_shapes: int) -> "NgramModel":
        """Itself: nothing is compiled."""
        return self

    def score_windows(self, windows: Windows, on_share: OnShare | None = None) -> NDArray[np.float32]:
        """Scores of windows, each by its own text: float32 [m, C]."""
        if windows.texts is None:
            raise ValueError("an n-gram rater scores windows by their texts")
        return self.score(windows.texts, on_share)

    def score(self, texts: Sequence[str], on_share: OnShare | None = None) -> NDArray[np.float32]:
        """Scores of texts, each as one window: float32 [n, C], finite also for an empty text."""
        weights = {family: array.astype(np.float64) for family, array in self.weights.items()}
        scores = [np.zeros((0, len(self.criteria)), np.float32)]
        for batch in batches(texts, 1024):
            total = np.zeros((len(batch), len(self.criteria)))
            for family, rows in self._features(batch).items():
                total += rows @ weights[family]
            scores.append(total.astype(np.float32))
            if on_share is not None:
                on_share(len(batch) / len(texts))
        return np.concatenate(scores)

    def save(self, directory: str) -> None:
        """Writes the rater; `rater.json` last, so that a directory with one is complete."""
        tensors: dict[str, np.ndarray] = {f"{family}.weights": array for family, array in self.weights.items()}
        tensors |= {f"{family}.idf": array for family, array in self.idf.items()}
        statistics = None
        if self.config.statistics:
            table = self.frequencies
            tensors |= {"corpus.hashes": table.hashes, "corpus.counts": np.ascontiguousarray(table.counts)}
            statistics = {
                "names": list(table.statistics),
                "means": self.means.tolist(),
                "scales": self.scales.tolist(),
                "domains": list(table.domains),
                "words": table.totals.tolist(),
            }
        with storage.atomic_write(storage.join(directory, WEIGHTS)) as stream:
            stream.write(save(tensors))
        write_rater_file(
            directory, KIND, criteria=list(self.criteria), config=self.config.to_json(), statistics=statistics
        )

    @classmethod
    def load(cls, directory: str) -> "NgramModel":
        """Reads a rater; `UserError` where a file is missing, or is not what `save` writes."""
        document, criteria = _read_file(directory)
        where = storage.join(directory, FILE)
        if not isinstance(document["config"], dict):
            raise UserError(f"{where}: `config` is not an object")
        config = NgramConfig.from_json(document["config"], where=where)
        means, scales, domains, totals = (
            _read_statistics(document["statistics"], where)
            if config.statistics
            else (_NO_STATISTICS, _NO_STATISTICS, _NO_WORDS.domains, _NO_WORDS.totals)
        )
        where = storage.join(directory, WEIGHTS)
        tensors = _read_tensors(where, _shapes(config, len(criteria), len(means), len(domains)))
        frequencies = _NO_WORDS
        if config.statistics:
            hashes, counts = tensors["corpus.hashes"], tensors["corpus.counts"]
            if len(hashes) != len(counts) or (hashes[1:] <= hashes[:-1]).any() or (counts < 0).any():
                raise UserError(f"{where}: its table of words is not in order")
            frequencies = WordFrequencies(hashes, counts, domains, totals)
        families = _families(config)
        return cls(
            criteria=criteria,
            config=config,
            weights={family: tensors[f"{family}.weights"] for family in families},
            idf={family: tensors[f"{family}.idf"] for family in families if family != "statistics"},
            means=means,
            scales=scales,
            frequencies=frequencies,
        )

    def _features(self, texts: Sequence[str]) -> dict[str, sparse.csr_array]:
        rows = {}
        for family, (count, scale) in _counters(self.config).items():
            rows[family] = ngram_features.weigh(count(texts, self.config), self.config, self.idf[family], scale)
        if self.config.statistics:
            values = text_features.statistics(texts, self.frequencies)
            rows["statistics"] = _standardised(values, self.means, self.scales, self.config)
        return rows


def read_criteria(directory: str) -> tuple[str, ...]:
    """The criteria of the n-gram rater in a directory."""
    return _read_file(directory)[1]


def fit(
    judgments: Judgments,
    config: NgramConfig,
    *,
    margin: float = 0.0,
    label_temperature: float = 1.0,
    corpus: Iterable[tuple[str, str]] = (),
) -> NgramModel:
    """Fits a rater: per criterion, the least of summed cross-entropy + ridge / 2 |w|^2 (REFERENCE step 2).

    Args:
        judgments: soft labels of groups of texts; every valid unordered pair counts once.
        config: features and penalty.
        margin: least confidence |2p - 1| of a label that is learned from.
        label_temperature: labels become sigmoid(logit(p) / temperature).
        corpus: (domain, text) of unlabelled texts, which tell how common words are, and of several domains, where;
            none: the judged texts tell it (each is left out of the counts that it is itself looked at with).

    Raises:
        UserError: a criterion without a label of that confidence.
    """
    judgments = _thinned(judgments, config.max_texts)
    texts, places = distinct_texts(judgments)
    links = [
        pairs_of(judgments, places, number, margin=margin, label_temperature=label_temperature)
        for number in range(len(judgments.criteria))
    ]
    blocks, learned = _training_features(texts, config, corpus)
    features = sparse.csr_array(sparse.hstack(list(blocks.values()), format="csr"))
    # Most buckets are empty, or too rare to be features.
    used = np.bincount(features.indices, minlength=features.shape[1]) > 0
    numbers = np.cumsum(used, dtype=np.int32) - 1
    compact = sparse.csr_array(
        (features.data, numbers[features.indices], features.indptr), shape=(len(texts), int(used.sum()))
    )
    log.info("n-grams: %d texts, %d features, %d values", len(texts), compact.shape[1], compact.nnz)
    weights = np.zeros((features.shape[1], len(judgments.criteria)), np.float32)
    folds = text_folds(texts, links, config.num_folds)
    for number, (criterion, pairs) in enumerate(zip(judgments.criteria, links, strict=True)):
        ridge, scale = config.ridge, 1.0
        if ridge is None:
            ridge, scale = choose_ridge(compact, pairs, folds, config.ridge_grid, criterion)
        weights[used, number] = scale * fit_weights(compact, pairs, ridge)
    ends = np.cumsum([block.shape[1] for block in blocks.values()])
    pieces = np.split(weights, ends[:-1])
    return NgramModel(judgments.criteria, config, dict(zip(blocks, pieces, strict=True)), **learned)


def _training_features(
    texts: Sequence[str], config: NgramConfig, corpus: Iterable[tuple[str, str]]
) -> tuple[dict[str, sparse.csr_array], dict[str, Any]]:
    """Rows of every family, and what was learned to make them (fields of `NgramModel`)."""
    blocks: dict[str, sparse.csr_array] = {}
    idf = {}
    for family, (count, scale) in _counters(config).items():
        counts = count(texts, config)
        idf[family] = ngram_features.inverse_frequencies(counts, config)
        blocks[family] = ngram_features.weigh(counts, config, idf[family], scale)
    means, scales, frequencies = _NO_STATISTICS, _NO_STATISTICS, _NO_WORDS
    if config.statistics:
        frequencies = WordFrequencies.count(corpus, least=_LEAST_CORPUS_COUNT)
        counted = frequencies.total == 0
        frequencies = WordFrequencies.count(("judged", text) for text in texts) if counted else frequencies
        values = text_features.statistics(texts, frequencies, counted=counted)
        means, deviations = values.mean(axis=0), values.std(axis=0)
        scales = np.where(deviations > 1e-9, deviations, 1.0)
        blocks["statistics"] = _standardised(values, means, scales, config)
    return blocks, {"idf": idf, "means": means, "scales": scales, "frequencies": frequencies}


_NO_STATISTICS = np.zeros(0)
_NO_WORDS = WordFrequencies.count([])


def _standardised(values: Array64, means: Array64, scales: Array64, config: NgramConfig) -> sparse.csr_array:
    clipped = np.clip((values - means) / scales, -_CLIP_DEVIATIONS, _CLIP_DEVIATIONS)
    return sparse.csr_array(clipped * (config.statistics_scale / np.sqrt(len(means))))


def _counters(config: NgramConfig) -> dict[str, tuple[Callable[[Sequence[str], NgramConfig], sparse.csr_array], float]]:
    """The families of n-grams in use: how they are counted, and the length of their rows."""
    families = {
        "words": (config.word_orders, ngram_features.word_counts, config.word_scale),
        "chars": (config.char_orders, ngram_features.char_counts, config.char_scale),
    }
    return {family: (count, scale) for family, (orders, count, scale) in families.items() if orders}


def _families(config: NgramConfig) -> list[str]:
    return [*_counters(config), *(["statistics"] if config.statistics else [])]


def _thinned(judgments: Judgments, max_texts: int) -> Judgments:
    """Every n-th group, so many that they hold at most `max_texts` texts."""
    num_texts = len({text for group in judgments.texts for text in group})
    if num_texts <= max_texts:
        return judgments
    kept = max(max_texts // judgments.group_size, 1)
    log.warning("n-grams: %d texts are judged; %d of %d groups are learned from (ngrams.max_texts)",
                num_texts, kept, len(judgments))  # fmt: skip
    return judgments.take(np.linspace(0, len(judgments) - 1, kept).round().astype(np.int64))


def _read_file(directory: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    document, where = read_rater_file(directory, KIND), storage.join(directory, FILE)
    require_keys(document, ("criteria", "config", "statistics"), where)
    return document, criteria_of(document, where)


def _shapes(
    config: NgramConfig, num_criteria: int, num_statistics: int, num_domains: int
) -> dict[str, tuple[Any, tuple[int | None, ...]]]:
    """Type and shape of every tensor; None: any size."""
    wanted: dict[str, tuple[Any, tuple[int | None, ...]]] = {}
    for family in _counters(config):
        wanted[f"{family}.weights"] = (np.float32, (1 << config.bits, num_criteria))
        wanted[f"{family}.idf"] = (np.float32, (1 << config.bits,))
    if config.statistics:
        wanted["statistics.weights"] = (np.float32, (num_statistics, num_criteria))
        wanted["corpus.hashes"] = (np.uint64, (None,))
        wanted["corpus.counts"] = (np.int64, (None, num_domains))
    return wanted


def _read_tensors(path: str, wanted: Mapping[str, tuple[Any, tuple[int | None, ...]]]) -> dict[str, np.ndarray]:
    with storage.open_read(path) as stream:
        content = stream.read()
    try:
        found = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a safetensors file ({' '.join(str(error).split())[:200]})") from None
    if found.keys() != wanted.keys():
        names = ", ".join(sorted(found.keys() ^ wanted.keys()))
        raise UserError(f"{path}: not the weights of this rater (missing or unexpected: {names})")
    for name, (dtype, shape) in wanted.items():
        array = found[name]
        fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        if array.dtype != dtype or not fits:
            raise UserError(f"{path}: {name} is {array.dtype}{list(array.shape)}, not {np.dtype(dtype)}{list(shape)}")
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} holds values that are no numbers")
    return found


def _read_statistics(value: Any, where: str) -> tuple[Array64, Array64, tuple[str, ...], NDArray[np.int64]]:
    """Means and scales of the statistics, domains of the corpus and their numbers of words."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: `statistics` is not an object")
    require_keys(value, ("names", "means", "scales", "domains", "words"), f"{where}: `statistics`")
    domains, words = value["domains"], value["words"]
    if not isinstance(domains, list) or not domains or not all(isinstance(name, str) for name in domains):
        raise UserError(f"{where}: `statistics.domains` is not a list of names")
    totals = numbers_of(words, len(domains), f"{where}: `statistics.words`").astype(np.int64)
    names = dataclasses.replace(_NO_WORDS, domains=tuple(domains)).statistics
    if value["names"] != list(names):
        raise UserError(f"{where}: made with other text statistics than this version's; fit the rater again")
    means, scales = (numbers_of(value[key], len(names), f"{where}: `statistics.{key}`") for key in ("means", "scales"))
    if (scales <= 0).any() or (totals < 0).any():
        raise UserError(f"{where}: `statistics.scales` and `statistics.words` are to be positive")
    return means, scales, tuple(domains), totals
