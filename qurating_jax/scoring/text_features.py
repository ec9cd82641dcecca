"""Texts as a few dozen statistics: readability, marks, capitals, and how common the words are."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method.readability import TextStatistics, sentences, text_statistics, words
from qurating_jax.scoring.ngram_features import batches, hash_strings, number_words

# Common words of English that carry no content of their own.
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        the of and a to in is was he for it with as his on be at by i this had not are but from or have an they which
        one you were her all she there would their we him been has when who will no if out so what up
        """,
    )
)
_MARKS = {
    "comma": ",",
    "semicolon": ";",
    "colon": ":",
    "exclamation_mark": "!",
    "question_mark": "?",
    "quotation_mark": '"“”',
    "apostrophe": "'’",
    "dash": "-–—",
    "parenthesis": "()",
    "full_stop": ".",
    "line_break": "\n",
    "markup": "<>[]{}|\\",
}
_ENDS = tuple(".!?\"”')")
_QUANTILES = (0.05, 0.10, 0.25, 0.50)
_RARITIES = (-9, -10, -11, -12, -13, -14, -16)  # natural logarithms of a word's frequency
_LOGARITHMIC = ("num_words", "num_sentences")
_PRIOR_WORDS = 200.0
_MAX_TEXTS = 1024

_BASIC = tuple(field.name for field in dataclasses.fields(TextStatistics))
NAMES = (
    *_BASIC,
    "log_characters",
    "capital_share",
    *(f"{name}_rate" for name in _MARKS),
    "all_capitals_rate",
    "lower_case_start",
    "lower_case_sentences",
    "lower_case_i",
    "log_distinct_words",
    "root_words",
    "ends_with_mark",
    "asks",
    "exclaims",
    "frequency_mean",
    "frequency_deviation",
    *(f"frequency_quantile_{quantile:g}" for quantile in _QUANTILES),
    *(f"rarer_than_{rarity}" for rarity in _RARITIES),
    "content_frequency_mean",
    "content_frequency_least",
    "distinct_frequency_mean",
    "unknown_rate",
)


@dataclasses.dataclass(frozen=True, eq=False)
class WordFrequencies:
    """How often words stand in a corpus, by its domains.

    Attributes:
        hashes: uint64 [V], increasing: `hash_strings` of the lower-cased words.
        counts: int64 [V, D], a column per domain.
        domains: names of the D domains.
        totals: int64 [D], words of each domain, those outside the table too.
    """

    hashes: NDArray[np.uint64]
    counts: NDArray[np.int64]
    domains: tuple[str, ...]
    totals: NDArray[np.int64]

    @classmethod
    def count(cls, corpus: Iterable[tuple[str, str]], *, least: int = 1) -> "WordFrequencies":
        """Counts the words of (domain, text), text by text; words with fewer than `least` are not in the table."""
        found: dict[str, Counter[str]] = {}
        for domain, text in corpus:
            found.setdefault(domain, Counter()).update(_lower_words(words(text)))
        domains = tuple(sorted(found))
        overall: Counter[str] = sum((found[domain] for domain in domains), Counter())
        kept = [word for word, count in overall.items() if count >= least]
        hashes = hash_strings(kept)
        order = np.argsort(hashes)
        columns = [np.array([found[domain][word] for word in kept], np.int64)[order] for domain in domains]
        counts = np.stack(columns, axis=1) if domains else np.zeros((0, 0), np.int64)
        return cls(hashes[order], counts, domains, np.array([found[d].total() for d in domains], np.int64))

    @property
    def total(self) -> int:
        """Words of the corpus."""
        return int(self.totals.sum())

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics that `statistics` makes with this table."""
        return NAMES + (tuple(f"domain: {domain}" for domain in self.domains) if len(self.domains) > 1 else ())

    def of(self, distinct: Sequence[str]) -> NDArray[np.int64]:
        """Counts of words by domain: int64 [n, D], 0 for a word that the table lacks."""
        wanted = hash_strings(distinct)
        if not len(self.hashes):
            return np.zeros((len(wanted), len(self.domains)), np.int64)
        places = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where((self.hashes[places] == wanted)[:, None], self.counts[places], 0)


def statistics(texts: Sequence[str], frequencies: WordFrequencies, *, counted: bool = False) -> NDArray[np.float64]:
    """Statistics of texts: float64 [n, S], named by `frequencies.statistics`; a row depends on its own text alone.

    Args:
        texts: any texts, also empty ones.
        frequencies: of words in general.
        counted: the texts are the very ones that `frequencies` counts: each is then left out of the counts that it is
            looked at with, as no text met later will be in them.
    """
    rows = [np.zeros((0, len(frequencies.statistics)))]
    for batch in batches(texts, _MAX_TEXTS):
        found = [words(text) for text in batch]
        spelled, spellings = number_words(found)
        lower, distinct = number_words([_lower_words(spellings)])
        numbers = lower[spelled]
        capitals = np.array([word.isupper() and len(word) > 1 for word in spellings], bool)
        by_domain = frequencies.of(distinct)
        counts = by_domain.sum(axis=1)
        relations = _relations(by_domain, counts, frequencies)
        content = np.array([word not in _FUNCTION_WORDS for word in distinct], bool)
        ends = np.cumsum([len(own) for own in found])
        for text, own, start, end in zip(batch, found, [0, *ends[:-1]], ends, strict=True):
            here = numbers[start:end]
            commonness = _commonness(here, counts, content, frequencies.total, counted=counted)
            relation = relations[here].mean(axis=0) if len(here) else np.zeros(relations.shape[1])
            num_capitals = int(capitals[spelled[start:end]].sum())
            form = _form(text, own, len(np.unique(here)), num_capitals)
            rows.append(np.array([[*form, *commonness, *relation]]))
    return np.concatenate(rows)


def _form(text: str, own: Sequence[str], num_distinct: int, num_capitals: int) -> list[float]:
    """Everything that needs no word frequencies; `own` are the text's words."""
    basic = vars(text_statistics(text))
    values = [float(np.log1p(basic[name]) if name in _LOGARITHMIC else basic[name]) for name in _BASIC]
    num_words = max(len(own), 1)
    values += [float(np.log1p(len(text))), sum(map(str.isupper, text)) / max(len(text), 1)]
    values += [sum(text.count(mark) for mark in marks) / num_words for marks in _MARKS.values()]
    values += [num_capitals / num_words, float(text[:1].islower())]
    starts = [sentence[:1].islower() for sentence in sentences(text)]
    values += [sum(starts) / max(len(starts), 1), own.count("i") / num_words]
    values += [float(np.log1p(num_distinct)), len(own) ** 0.5]
    values += [float(text.rstrip()[-1:] in _ENDS), float("?" in text), float("!" in text)]
    return values


def _relations(
    by_domain: NDArray[np.int64], counts: NDArray[np.int64], frequencies: WordFrequencies
) -> NDArray[np.float64]:
    """How much more a word belongs to each domain than to the others, in log frequency: float64 [n, D or 0].

    A domain that has hardly any words is taken to be like the whole corpus.
    """
    if len(frequencies.domains) < 2:
        return np.zeros((len(counts), 0))
    overall = (counts + 0.5) / (frequencies.total + 1)
    logs = np.log((by_domain + _PRIOR_WORDS * overall[:, None]) / (frequencies.totals + _PRIOR_WORDS))
    return logs - logs.mean(axis=1, keepdims=True)


def _commonness(
    numbers: NDArray[np.int64], counts: NDArray[np.int64], content: NDArray[np.bool_], total: int, *, counted: bool
) -> list[float]:
    """Statistics of the log frequencies of a text's words; of a text without words, those of one unknown word.

    Args:
        numbers: int64 [words], indices into `counts` and `content`, in the order of the text.
        counts: how often each word stands in the corpus.
        content: whether it is a content word.
        total: words of the corpus.
        counted: the text is part of the corpus.
    """
    unknown = np.log(0.5 / (total + 1))
    distinct, inverse, here = np.unique(numbers, return_inverse=True, return_counts=True)
    seen = counts[distinct] - here if counted else counts[distinct]
    logs = np.log((seen + 0.5) / (total - len(numbers) * counted + 1))
    values = logs[inverse] if len(numbers) else np.array([unknown])
    of_content = values[content[numbers]] if len(numbers) else values
    of_content = of_content if len(of_content) else np.array([unknown])
    # Numbers of words differ from batch to batch, and with them the order of `logs`: sorted, their sum is the same.
    of_distinct = np.sort(logs) if len(logs) else values
    increasing = np.sort(values)
    places = np.array(_QUANTILES) * (len(values) - 1)
    return [
        values.mean(),
        values.std(),
        *np.interp(places, np.arange(len(values)), increasing),
        *(np.searchsorted(increasing, _RARITIES) / len(values)),
        of_content.mean(),
        of_content.min(),
        of_distinct.mean(),
        float((seen == 0)[inverse].mean()) if len(numbers) else 1.0,
    ]


def _lower_words(own: Iterable[str]) -> list[str]:
    return [word.lower().replace("’", "'") for word in own]
