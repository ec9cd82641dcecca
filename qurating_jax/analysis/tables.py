"""All tables of an analysis, from arrays: what belongs to the corpus, to the sample, to the judged pairs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qurating_jax.analysis import (
    audit,
    correlations,
    covariates,
    distributions,
    groups,
    percentiles,
    scripts,
    selection_effect,
    shown,
    topics,
    window_variation,
)
from qurating_jax.analysis.corpus import Corpus
from qurating_jax.analysis.inputs import LOG_LIKELIHOOD, Plan
from qurating_jax.analysis.judged import JudgedPairs
from qurating_jax.analysis.means import Floats
from qurating_jax.analysis.sample import SHOWN_GROUP, Sample, draw, window_ratings
from qurating_jax.analysis.selection_effect import Studied
from qurating_jax.analysis.selection_grid import Made
from qurating_jax.analysis.topics import Topics
from qurating_jax.method import gumbel

DOCUMENTS_PER_TOPIC = 250  # of the sample, where the number of topics is not given
MOST_TOPICS = 40
MOST_CORRELATED = 1_000_000  # documents: ranks of more cost memory, and say the same to a thousandth

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the tables depend on beside the documents, see `qurating analyze --help`."""

    num_topics: int | None
    num_shown_documents: int
    temperatures: tuple[float, ...]
    audit_temperature: float
    budget_fraction: float
    by_domain: bool
    level: float
    seed: int


@dataclass(eq=False)
class Analysis:
    """What an analysis found: tables by name, those with nothing to say left out, and notes why."""

    tables: dict[str, pa.Table] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, table: pa.Table, otherwise: str) -> None:
        """Adds a table, or the note where it has no rows."""
        if len(table):
            self.tables[name] = table
        else:
            self.notes.append(f"{name}: {otherwise}")


def analyze(
    corpus: Corpus,
    sample: Sample,
    plan: Plan,
    settings: Settings,
    *,
    selections: Mapping[str, Made],
    judged: JudgedPairs | None,
    on_text: Callable[[int], None] = lambda _: None,
) -> Analysis:
    """Every table.

    Args:
        corpus: all documents.
        sample: some, with texts.
        plan: what the columns are.
        settings: see there.
        selections: by name.
        judged: pairs with the rater's scores.
        on_text: called with numbers of texts measured.
    """
    found = Analysis()
    ratings = {criterion: corpus.numbers[column] for criterion, column in plan.columns.items()}
    _note_ratings(found, ratings)
    _corpus_tables(found, corpus, ratings, plan, settings)
    shares = {name: percentiles.percentiles_among(values, sample.rows) for name, values in ratings.items()}
    features, script_codes, script_names = measure(sample, on_text)
    part = _Part(corpus, sample, ratings)
    _sample_tables(found, part, features, script_codes, script_names, settings)
    made = _topics(found, part, settings)
    labels = made.labels if made.terms else None
    found.tables |= _selection_effect(part, made, script_codes, script_names, selections, settings)
    found.tables |= _audit(part, labels, plan, judged, settings)
    of_text = [script_names[code] for code in script_codes]
    documents = shown.documents_table(corpus, sample, part.ratings, shares, labels, of_text)
    found.add("documents", documents, "no document of the sample is rated")
    _texts(found, part, shares, selections, settings)
    return found


def _texts(
    found: Analysis,
    part: "_Part",
    shares: Mapping[str, Floats],
    selections: Mapping[str, Made],
    settings: Settings,
) -> None:
    """The documents at percentiles, and those that are shown in full."""
    corpus, sample = part.corpus, part.sample
    examples = percentiles.examples(part.ratings, part.domains, corpus.domain_names)
    rows = percentiles.shown_documents(
        part.hashes,
        shares,
        [row for *_, row in examples],
        settings.num_shown_documents,
        gumbel.noise_stream(settings.seed, SHOWN_GROUP),
    )
    table = percentiles.examples_table(examples, part.ratings, sample.ids, sample.texts)
    found.add("percentiles", table, "no document of the sample is rated")
    members = {name: chosen["rows"] for name, chosen in selections.items()}
    found.add("texts", shown.texts_table(sample, rows, members), "no document of the sample is rated")


class _Part:
    """The sampled documents' share of the corpus' arrays."""

    def __init__(self, corpus: Corpus, sample: Sample, ratings: Mapping[str, Floats]) -> None:
        self.corpus, self.sample, self.all_ratings = corpus, sample, ratings
        self.ratings = {criterion: values[sample.rows] for criterion, values in ratings.items()}
        self.domains = corpus.domains[sample.rows]
        self.tokens = corpus.tokens[sample.rows]
        self.hashes = corpus.hashes[sample.rows]


def measure(sample: Sample, on_text: Callable[[int], None]) -> tuple[dict[str, Floats], NDArray[np.int32], list[str]]:
    """Text features float64 [m] by name, and the script of every text: int32 [m] into names."""
    values = np.zeros((len(sample.texts), len(covariates.TEXT_FEATURES)))
    found = []
    for row, text in enumerate(sample.texts):
        values[row] = covariates.text_features(text, int(sample.characters[row]))
        found.append(scripts.script_of(text))
        on_text(1)
    names = sorted(set(found))
    numbers = {name: place for place, name in enumerate(names)}
    features = {name: values[:, place] for place, name in enumerate(covariates.TEXT_FEATURES)}
    return features, np.array([numbers[name] for name in found], np.int32), names


def topics_for(num_documents: int) -> int:
    """How many topics a sample gets: one for `DOCUMENTS_PER_TOPIC` documents, 2 to `MOST_TOPICS`."""
    return max(2, min(MOST_TOPICS, num_documents // DOCUMENTS_PER_TOPIC))


def _note_ratings(found: Analysis, ratings: Mapping[str, Floats]) -> None:
    for criterion, values in ratings.items():
        rated = values[~np.isnan(values)]
        if not rated.size:
            found.notes.append(f"{criterion}: no document has this rating, and no selections by it are tried.")
        elif rated.min() == rated.max():
            found.notes.append(
                f"{criterion}: all {rated.size:,} ratings are {rated[0]:g}, so it has no normalised figures and no "
                "correlations, and no selections by it are tried."
            )


def _corpus_tables(
    found: Analysis, corpus: Corpus, ratings: Mapping[str, Floats], plan: Plan, settings: Settings
) -> None:
    domains, names, level = corpus.domains, corpus.domain_names, settings.level
    found.add("ratings_summary", distributions.summary(ratings, domains, names), "no documents")
    found.add("ratings_histogram", distributions.histogram(ratings, domains, names), "no document is rated")
    used = draw(corpus.hashes, np.ones(len(corpus), bool), MOST_CORRELATED, settings.seed)
    drawn = {name: values[used] for name, values in ratings.items()}
    pairs = correlations.criteria(drawn, domains[used], names, level)
    if len(used) < len(corpus):
        found.notes.append(f"correlations: of {len(used):,} documents, drawn as the sample is.")
    found.add("correlations", pairs, "there is one criterion")
    grouped = groups.by_group(
        ratings, corpus.tokens, corpus.groups, budget_fraction=settings.budget_fraction, level=level
    )
    found.add("groups", grouped, "no column of groups was named (--groups)")
    if len(grouped):
        found.notes.append(groups.CAUTION)
    for column, grouping in corpus.groups.items():
        num_null = int((grouping.codes < 0).sum())
        if num_null:
            found.notes.append(f"groups: {num_null:,} documents have no value in `{column}` and count in no group.")
        if len(grouping.names) > groups.MOST_GROUPS:
            found.notes.append(
                f"groups: of {len(grouping.names):,} values of `{column}` the {groups.MOST_GROUPS} largest are shown."
            )


def _sample_tables(
    found: Analysis,
    part: _Part,
    features: Mapping[str, Floats],
    script_codes: NDArray[np.int32],
    script_names: Sequence[str],
    settings: Settings,
) -> None:
    names, level = part.corpus.domain_names, settings.level
    numbers = {"length_tokens": part.tokens.astype(np.float64), **features}
    numbers |= {name: part.corpus.numbers[name][part.sample.rows] for name in _likelihoods(part.corpus)}
    correlated = covariates.correlated(part.ratings, numbers, part.domains, names, level)
    found.add("covariates", correlated, "there are no texts")
    found.add("covariate_bins", covariates.binned(part.ratings, numbers, level), "no document of the sample is rated")
    by_script = covariates.by_script(part.ratings, script_codes, script_names, level)
    found.add("scripts", by_script, "no document of the sample is rated")
    windows = window_ratings(part.sample.chunks, part.sample.chunk_lengths)
    without = "no document has the ratings of two windows (columns `CRITERION_chunks`)"
    found.add("windows", window_variation.variation(windows, part.domains, names), without)
    found.add("window_positions", window_variation.positions(windows, level), without)


def _likelihoods(corpus: Corpus) -> list[str]:
    return [name for name in corpus.numbers if name.startswith(LOG_LIKELIHOOD)]


def _topics(found: Analysis, part: "_Part", settings: Settings) -> Topics:
    texts = part.sample.texts
    num_topics = settings.num_topics or topics_for(len(texts))
    log.info("analyze: %d topics of %d texts", num_topics, len(texts))
    made = topics.find_topics(texts, num_topics=num_topics, seed=settings.seed)
    found.tables |= topics.tables(
        made, part.ratings, part.tokens, part.domains, part.corpus.domain_names, settings.level
    )
    chosen = "given" if settings.num_topics else f"one for {DOCUMENTS_PER_TOPIC} documents, 2 to {MOST_TOPICS}"
    found.notes.append(f"{topics.describe(made)} {num_topics} were asked for ({chosen}).")
    return made


def _selection_effect(
    part: "_Part",
    made: Topics,
    script_codes: NDArray[np.int32],
    script_names: Sequence[str],
    selections: Mapping[str, Made],
    settings: Settings,
) -> dict[str, pa.Table]:
    return selection_effect.tables(
        Studied(
            hashes=part.corpus.hashes,
            domains=part.corpus.domains,
            domain_names=part.corpus.domain_names,
            tokens=part.corpus.tokens,
            ratings=part.all_ratings,
            rows=part.sample.rows,
            topics=made.labels,
            topic_names=made.names,
            scripts=script_codes,
            script_names=script_names,
            texts=part.sample.texts,
        ),
        temperatures=settings.temperatures,
        budget_fraction=settings.budget_fraction,
        by_domain=settings.by_domain,
        seed=settings.seed,
        selections=selections,
        level=settings.level,
    )


def _audit(
    part: "_Part", labels: NDArray[np.int32] | None, plan: Plan, judged: JudgedPairs | None, settings: Settings
) -> dict[str, pa.Table]:
    return audit.tables(
        part.corpus.hashes,
        part.corpus.domains,
        part.corpus.domain_names,
        part.corpus.tokens,
        part.all_ratings,
        part.sample.rows,
        labels,
        labels={name: part.corpus.numbers[name] for name in plan.labels},
        judged=judged,
        budget_fraction=settings.budget_fraction,
        temperature=settings.audit_temperature,
        level=settings.level,
        seed=settings.seed,
    )
