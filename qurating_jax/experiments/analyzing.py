"""What an analysis reads: rated documents, selections among them, judged pairs with a rater's scores."""

import contextlib
import dataclasses
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qurating_jax.analysis import sample as sampling
from qurating_jax.analysis.corpus import Corpus, read_corpus
from qurating_jax.analysis.inputs import Plan
from qurating_jax.analysis.judged import JudgedPairs, texts_to_score, with_ratings
from qurating_jax.analysis.judged_files import read_judged
from qurating_jax.analysis.sample import Sample
from qurating_jax.analysis.selection_grid import Made, Sampling
from qurating_jax.data.document_columns import AVERAGE
from qurating_jax.data.parts import cut_parts
from qurating_jax.experiments.run_outputs import ANNOTATE
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.progress import progress
from qurating_jax.scoring.rater import Rater
from qurating_jax.selection.explaining.overlap import read_chosen
from qurating_jax.selection.keys.source import SelectionSource
from qurating_jax.selection.options import EXPLANATION

_WINDOW_TOKENS = 512
BUDGET_FRACTION = 0.2  # of the tokens, where no selection says another

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How documents are read, see `qurating analyze --help`."""

    text_field: str
    id_field: str
    on_bad_row: Literal["error", "skip"]
    max_documents: int
    max_characters: int
    rows_per_part: int
    bytes_per_part: int
    seed: int


@dataclass(frozen=True, eq=False)
class RatedDocuments:
    """All documents, the sample of them with texts, and how many have a rating."""

    corpus: Corpus
    sample: Sample
    num_rated: int


def read_rated(plan: Plan, files: Sequence[str], side_files: Sequence[str], options: ReadOptions) -> RatedDocuments:
    """Reads numbers of all documents, then the texts of those with a rating that the sample draws.

    Args:
        plan: which columns.
        files: of the documents.
        side_files: of scores, joined by id.
        options: see there.

    Raises:
        UserError: no document has a rating; what `read_corpus` and `read_sample` raise.
    """
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_open(files, options))
        with progress("analyze: numbers", source.parts.num_rows, "documents") as advance:
            corpus = read_corpus(source, plan.documents, advance)
        side = None
        if side_files:
            side = stack.enter_context(_open(side_files, options))
            beside = read_corpus(side, plan.scores)
            corpus = _join(corpus, beside, has_tokens=bool(plan.scores.tokens))
        rated = np.zeros(len(corpus), bool)
        for column in plan.columns.values():
            rated |= ~np.isnan(corpus.numbers[column])
        if not rated.any():
            ratings = ", ".join(plan.columns.values())
            raise UserError(f"{len(corpus):,} documents, and none has a rating ({ratings}); rate them first")
        rows = sampling.draw(corpus.hashes, rated, options.max_documents, options.seed)
        log.info("analyze: %d documents, %d rated, texts of %d", len(corpus), rated.sum(), len(rows))
        with progress("analyze: texts", len(rows), "documents") as advance:
            sample = sampling.read_sample(
                source,
                corpus,
                rows,
                text_field=options.text_field,
                criteria=plan.criteria,
                most_characters=options.max_characters,
                on_read=advance,
            )
        if side is not None:
            sample = sampling.with_windows(sample, side, beside, corpus.hashes[rows])
    return RatedDocuments(corpus, sample, int(rated.sum()))


def corpus_notes(corpus: Corpus) -> list[str]:
    """What is to be said of rows that were left out, and of a corpus of one domain."""
    notes = []
    if corpus.num_rejected:
        notes.append(f"{corpus.num_rejected:,} rows are no documents and were left out.")
    if corpus.num_repeated:
        note = f"{corpus.num_repeated:,} documents repeat the id of another: one of each id counts"
        if corpus.num_differing:
            note += (
                f", that of the least numbers; {corpus.num_differing:,} differ from it in numbers, domain or group "
                "(`qurating select` refuses such input)"
            )
        notes.append(f"{note}.")
    if len(corpus.domain_names) == 1 and corpus.domain_names != [""]:
        notes.append(f"All documents are of one domain, {corpus.domain_names[0]}: nothing is said within domains.")
    return notes


def read_selections(
    places: Mapping[str, str], corpus: Corpus, criteria: Sequence[str]
) -> tuple[dict[str, Made], list[str]]:
    """Selections as rows of the corpus, and notes on documents that are not among its.

    Args:
        places: directories or id lists by name.
        corpus: all documents.
        criteria: that are analysed; a selection by another rating has no criterion here.

    Raises:
        UserError: no finished selection, or one that shares no document with the corpus.
    """
    found, notes = {}, []
    for name, place in places.items():
        rows = corpus.rows_of(read_chosen(place, name=name).hashes)
        missing = int((rows < 0).sum())
        if missing == len(rows) and len(rows):
            raise UserError(f"{place}: none of its {missing:,} documents is among the rated ones; name their selection")
        if missing:
            notes.append(f"selection {name}: {missing:,} of its {len(rows):,} documents are not among the rated ones.")
        explanation = _explanation(place)
        settings = explanation.get("settings") or {}
        rating = [str(column).partition("=")[0].removesuffix(AVERAGE) for column in settings.get("rating") or []]
        strategy = str(settings.get("strategy") or "")
        found[name] = Made(
            rows=np.sort(rows[rows >= 0]),
            strategy=strategy,
            temperature=settings.get("temperature"),
            criterion=rating[0] if len(rating) == 1 and rating[0] in criteria and strategy != "uniform" else "",
            sampling=Sampling.of_explanation(explanation),
        )
    return found, notes


def budget_share(
    asked: float | None, selections: Mapping[str, Made], corpus: Corpus, columns: Mapping[str, str]
) -> tuple[float, str]:
    """The share of the tokens that thresholds, tried selections and the audit are of, and a sentence that says why.

    What is asked for comes first, then what the selections took of the tokens that have their rating (the lower median
    of several, to three digits), then `BUDGET_FRACTION`.

    Args:
        asked: the option.
        selections: by name.
        corpus: all documents.
        columns: of the criteria.
    """
    what = "of the tokens is what thresholds, tried selections and the audit take"
    if asked is not None:
        return asked, f"{asked:.3g} {what}, as was asked for."
    taken = []
    for made in selections.values():
        column = columns.get(made["criterion"])
        able = corpus.tokens if column is None else corpus.tokens[~np.isnan(corpus.numbers[column])]
        if share := int(corpus.tokens[made["rows"]].sum()) / max(int(able.sum()), 1):
            taken.append(min(float(f"{share:.3g}"), 1.0))
    taken.sort()
    if not taken:
        return BUDGET_FRACTION, f"{BUDGET_FRACTION} {what} (--budget_fraction)."
    share = statistics.median_low(taken)
    spread = "" if taken[0] == taken[-1] else f", the median of {taken[0]} to {taken[-1]}"
    return share, f"{share} {what}, as the selections that were made do{spread} (--budget_fraction)."


def read_judged_pairs(
    judgments: Sequence[str], rater: str, *, num_pairs: int, window_tokens: int, seed: int
) -> JudgedPairs | None:
    """Judged pairs with the rater's probabilities; None where there are none to read.

    Args:
        judgments: where they are.
        rater: the rater; empty: there is none, and its probabilities are null.
        num_pairs: at most.
        window_tokens: longest window of the rater.
        seed: of the draw.

    Raises:
        UserError: judgments or a rater that cannot be read.
    """
    if not judgments or not num_pairs:
        return None
    judged = read_judged(judgments, rater=rater or None, num_pairs=num_pairs, seed=seed)
    if not rater:
        return judged
    texts = texts_to_score(judged)
    loaded = Rater.load(manifest.exported(rater, *manifest.RATER_STAGES), window_tokens=window_tokens)
    log.info("analyze: the rater scores %d judged texts", len(texts))
    with progress("analyze: judged texts", len(texts), "texts") as advance:
        scores = loaded.rate(texts, advance).averages
    return with_ratings(judged, {name: scores[:, place] for place, name in enumerate(loaded.criteria)})


def judgment_notes(judged: JudgedPairs | None, rater: str, criteria: Sequence[str]) -> list[str]:
    """Why judgments or a rater that were given say nothing."""
    if judged is None:
        return ["The rater scores nothing: no judgments were given (--judgments)."] if rater else []
    if not set(judged.criteria) & set(criteria):
        return [f"The judgments are on {', '.join(judged.criteria)}, which are no criteria of these documents."]
    if not rater:
        return ["The judgments are compared with nothing: no rater was given that scores their texts (--rater)."]
    return []


def window_tokens_of(places: Sequence[str]) -> int:
    """The longest window that `annotate` was given for the first of its outputs among these; 512 for none."""
    for place in places:
        if manifest.is_artifact(place):
            found = manifest.read(place)
            if found["stage"] == ANNOTATE:
                return int(found["config"]["window_tokens"])
    return _WINDOW_TOKENS


def _open(files: Sequence[str], options: ReadOptions) -> SelectionSource:
    parts = cut_parts(files, max_rows=options.rows_per_part, max_bytes=options.bytes_per_part)
    return SelectionSource(
        files, parts, text_field=options.text_field, id_field=options.id_field, on_bad_row=options.on_bad_row
    )


def _join(corpus: Corpus, beside: Corpus, *, has_tokens: bool) -> Corpus:
    """The corpus with the numbers of files of scores, NaN where these lack a document."""
    if beside.num_differing:
        raise UserError(f"{beside.num_differing:,} ids stand twice in the files of scores, with different scores")
    places = beside.rows_of(corpus.hashes)
    known = places >= 0
    numbers = dict(corpus.numbers)
    for name, values in beside.numbers.items():
        numbers[name] = np.where(known, values[places] if len(values) else np.nan, np.nan)
    tokens = corpus.tokens
    if has_tokens and len(beside):
        tokens = np.where(known, beside.tokens[places], 0)
    return dataclasses.replace(corpus, numbers=numbers, tokens=tokens)


def _explanation(place: str) -> Mapping[str, Any]:
    directory = place.rpartition("/")[0] if place.endswith(".parquet") else place
    path = storage.join(directory, EXPLANATION)
    document = storage.read_json(path) if storage.exists(path) else {}
    return document if isinstance(document, dict) else {}
