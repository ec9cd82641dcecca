"""From options and input files to a choice: the key table is opened, the strategy decides, the outcome is explained."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from qurating_jax.data import documents
from qurating_jax.data.part_documents import check_columns
from qurating_jax.data.parts import Parts
from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.method import gumbel
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection import orders, strategies
from qurating_jax.selection.copying.id_list import KEY, id_list_path
from qurating_jax.selection.copying.ranks import Ranking
from qurating_jax.selection.copying.rows import REMEDY, added_names
from qurating_jax.selection.drawing.decision import Decision
from qurating_jax.selection.dsir.weights import DsirOptions, parse_targets, weigh_documents
from qurating_jax.selection.explaining.explanation import Asked, Scanned, explain
from qurating_jax.selection.explaining.overlap import chosen_by, compare, read_chosen, short_names
from qurating_jax.selection.keys import passes, statistics
from qurating_jax.selection.keys.cache import ScanOptions, prepare
from qurating_jax.selection.keys.duplicates import Duplicates, find_duplicates, together
from qurating_jax.selection.keys.files import KeyFiles
from qurating_jax.selection.keys.joined import join
from qurating_jax.selection.keys.scan import KeyFields
from qurating_jax.selection.keys.source import SelectionSource
from qurating_jax.selection.options import SelectOptions
from qurating_jax.selection.search import temperature_for_kl, temperature_for_mean
from qurating_jax.selection.settings import describe
from qurating_jax.selection.strategies import Budget, Preference

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The files that a selection reads.

    Attributes:
        files: of the documents.
        digests: what identifies all of them, for a manifest.
    """

    files: list[str]
    digests: dict[str, Any]

    @classmethod
    def find(cls, patterns: Sequence[str], options: SelectOptions) -> "Inputs":
        """Looks the files up.

        Raises:
            UserError: there are none, or the first one has a column that would be added.
        """
        files = documents.find_files(patterns)
        if options.write == "rows":
            added = added_names(
                ranked=options.order != "source", by=bool(options.order_by), members=_has_members(options)
            )
            # The header of one file says it at once; the scan looks at all of them.
            check_columns(files[:1], needed=[], added=added, remedy=REMEDY)
        found: dict[str, Any] = {"documents": manifest.input_digest(patterns, files)}
        others = {f"target {name}": paths for name, paths in parse_targets(options.targets).items()}
        if options.scores:
            others["scores"] = list(options.scores)
        for name, paths in others.items():
            found[name] = manifest.input_digest(paths, documents.find_files(paths))
        if options.tokenizer:
            found["tokenizer"] = load_tokenizer(options.tokenizer).identity
        for path in selections_among(options.members):
            found[f"member {path}"] = {"manifest": manifest.read(path, stages=("select",))["determined"]}
        return cls(files, found)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The documents that can be chosen from.

    Attributes:
        keys: the key table.
        scanned: what it does not say.
        duplicates: documents that it has without tokens because they stand elsewhere too.
        joined: of a mix, the score that holds the keys of a member that is a selection.
        weighed: of DSIR, by target the score with its log weights and its size.
    """

    keys: KeyFiles
    scanned: Scanned
    duplicates: Sequence[Duplicates] = ()
    joined: Mapping[str, str] = field(default_factory=dict)
    weighed: Mapping[str, tuple[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen.

    Attributes:
        keys: the key table with all scores that the decision reads.
        duplicates: documents that it has without tokens because they stand elsewhere too.
        decision: which documents.
        ranking: in which order.
        explanation: the content of `selection.json`.
    """

    keys: KeyFiles
    duplicates: Sequence[Duplicates]
    decision: Decision
    ranking: Ranking
    explanation: dict[str, Any]


def _has_members(options: SelectOptions) -> bool:
    """True where several members share the selection."""
    return options.strategy == "mix" or (options.strategy == "dsir" and len(parse_targets(options.targets)) > 1)


def selections_among(members: Sequence[str]) -> list[str]:
    """The members of a mix that are finished selections, not columns."""
    return [name for name in members if storage.is_dir(name)]


def open_source(options: SelectOptions, files: Sequence[str], parts: Parts, schema: pa.Schema) -> SelectionSource:
    """The rows behind a key table; all arguments can be sent to other processes."""
    return SelectionSource(
        files,
        parts,
        text_field=options.text_field,
        id_field=options.id_field,
        on_bad_row=options.on_bad_row,
        schema=schema,
    )


def open_candidates(options: SelectOptions, inputs: Inputs, cache: str) -> Candidates:
    """The key table of the input, scanned where the cache does not have it, with scores that come from elsewhere.

    Raises:
        UserError: what the scan finds wrong.
    """
    scan = ScanOptions(
        on_bad_row=options.on_bad_row,
        tokenizer=options.tokenizer,
        max_rows=options.rows_per_part,
        max_bytes=options.bytes_per_part,
        num_workers=options.num_workers,
    )
    elsewhere, fields = _fields(options, inputs)
    keys = prepare(cache, inputs.files, fields, scan, inputs=inputs.digests["documents"])
    counts, reopen = keys.counts, partial(open_source, options, inputs.files, keys.parts, keys.schema)
    keys, duplicates = _without_duplicates(options, keys, reopen)
    missing: Mapping[str, int] = {}
    join_scores = partial(join, cache=cache, options=scan, memory_bytes=options.memory_limit)
    if elsewhere:
        files = documents.find_files(options.scores)
        keys, found = join_scores(keys, files, elsewhere, inputs=inputs.digests["scores"], id_field=options.id_field)
        log.info("%s documents have scores in %s", f"{found.found:,}", " ".join(options.scores))
        missing = found.missing
        if options.tokens_field in elsewhere:
            keys = keys.with_tokens(options.tokens_field)
    joined = {}
    for path in selections_among(options.members):
        ids = [id_list_path(path)]
        keys, _ = join_scores(keys, ids, [KEY], inputs=manifest.input_digest(ids, ids), prefix=f"{path}: ")
        joined[path] = f"{path}: {KEY}"
    sizes: dict[str, tuple[str, int]] = {}
    if options.strategy == "dsir":
        keys, sizes = _weigh(options, keys, reopen, cache)
    scanned = Scanned(
        bad_rows=counts.rejected,
        duplicate_ids=duplicates[0].count,
        duplicate_texts=sum(found.count for found in duplicates[1:]),
        null_ratings=counts.null_ratings,
        infinite_ratings=counts.infinite_ratings,
        missing_scores={name: count for name, count in missing.items() if name != options.tokens_field},
        missing_domains=counts.missing_domains,
    )
    return Candidates(keys, scanned, duplicates, joined, sizes)


def _fields(options: SelectOptions, inputs: Inputs) -> tuple[list[str], KeyFields]:
    """The ratings that come from files of scores, and what is read of the documents."""
    wanted = strategies.needed_columns(options, options.order_by, selections_among(options.members))
    files = documents.find_files(options.scores) if options.scores else []
    elsewhere = [name for name in wanted if files and _is_there(name, files)]
    tokens = "" if options.tokenizer else options.tokens_field
    if tokens and files and not _is_there(tokens, inputs.files) and _is_there(tokens, files):
        elsewhere, tokens = [*elsewhere, tokens], ""  # as in what `annotate --write sidecar` wrote
    own = [name for name in wanted if name not in elsewhere]
    if options.strategy == "uniform":  # it only reports its rating
        own = [name for name in own if name == options.order_by or _is_there(name, inputs.files)]
    return elsewhere, KeyFields(
        id=options.id_field,
        text=options.text_field,
        tokens=tokens,
        domains=options.domain_field,
        ratings=tuple(own),
        text_hash=options.deduplicate_text,
    )


def _weigh(
    options: SelectOptions, keys: KeyFiles, reopen: Callable[[], SelectionSource], cache: str
) -> tuple[KeyFiles, dict[str, tuple[str, int]]]:
    """The table with DSIR's log weights, and by target the name of its score and its size."""
    weighed = weigh_documents(
        keys,
        reopen,
        parse_targets(options.targets),
        DsirOptions(
            text_field=options.text_field,
            num_buckets=options.dsir_buckets,
            min_tokens=options.dsir_min_words,
            length_norm=options.dsir_length_norm,
            pseudo_count=options.dsir_pseudo_count,
            max_raw_ngrams=options.dsir_raw_ngrams,
        ),
        cache=cache,
        num_workers=options.num_workers,
    )
    keys = keys.with_scores({found.score: found.directory for found in weighed.values()})
    return keys, {name: (found.score, found.num_ngrams) for name, found in weighed.items()}


def _without_duplicates(
    options: SelectOptions, keys: KeyFiles, reopen: Callable[[], SelectionSource]
) -> tuple[KeyFiles, list[Duplicates]]:
    """The table without documents that stand elsewhere too, and these: by id, and where asked for by text."""
    find = partial(
        find_duplicates,
        open_source=reopen,
        text_field=options.text_field,
        memory_bytes=options.memory_limit,
        num_workers=options.num_workers,
    )
    found = [find(keys, by="id")]
    if found[0].count:
        repeated = f"{found[0].count:,} documents repeat an id (`{found[0].example}`)"
        if options.on_duplicate_id == "error":
            raise UserError(f"{repeated}; make ids unique, or --on_duplicate_id drop to count each id once")
        log.warning("%s: each id counts once", repeated)
        keys = keys.without(together(found))
    if options.deduplicate_text:
        found.append(find(keys, by="text"))
        if found[1].count:
            log.info("%s documents repeat a text (`%s` ...)", f"{found[1].count:,}", found[1].example)
            keys = keys.without(together(found))
    return keys, found


def choose(asked: SelectOptions, candidates: Candidates, seed: int) -> Choice:
    """Decides and explains.

    Args:
        asked: the options as given.
        candidates: what can be chosen from.
        seed: of every draw.

    Raises:
        UserError: nothing can be selected, less than the budget, or a document has no rating and that is an error.
    """
    workers = passes.num_processes()
    try:
        options = _with_temperature(asked, candidates, seed)
        preference, decision, budget = _decide(options, candidates, seed)
        keys, ranking = _rank(options, preference.keys, seed)
        found = explain(
            preference.keys,
            decision,
            _asked(options, preference, budget),
            candidates.scanned,
            drafts=decision.drafts,
            workers=workers,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    _check_unrated(options, preference, found)
    found["ratings"] = {preference.labels.get(name, name): facts for name, facts in found["ratings"].items()}
    for row in found["members"]:
        row["score"] = preference.labels.get(row["score"], row["score"])
    overlap = None
    if options.compare:
        others = [read_chosen(path, name=name) for path, name in zip(options.compare, short_names(options.compare),
                                                                     strict=True)]  # fmt: skip
        overlap = compare(chosen_by(keys, decision, name="this selection", workers=workers), others)
    log.info(
        "selected %s of %s documents, %s tokens (%.2f %%)",
        f"{found['num_selected']:,}",
        f"{found['num_documents']:,}",
        f"{found['selected_tokens']:,}",
        100 * (found["share_tokens"] or 0),
    )
    settings = describe(
        asked,
        seed=seed,
        temperature=options.temperature,
        sizes={name: size for name, (_, size) in candidates.weighed.items()},
        scores=list(candidates.scanned.missing_scores),
    )
    explanation = {"settings": settings} | found | {"overlap": overlap}
    return Choice(keys, candidates.duplicates, decision, ranking, explanation)


def _decide(options: SelectOptions, candidates: Candidates, seed: int) -> tuple[Preference, Decision, Budget]:
    if options.strategy == "mix":
        preference = strategies.prefer_mix(options, candidates.keys, candidates.joined, seed, options.memory_limit)
    elif options.strategy == "dsir":
        preference = strategies.prefer_dsir(options, candidates.keys, candidates.weighed, seed)
    else:
        preference = strategies.prefer(options, candidates.keys, seed, options.memory_limit)
    if options.ends_by_rating:
        return preference, *strategies.decide_by_rating(options, preference, options.memory_limit)
    budget = strategies.measure_budget(options, preference)
    return preference, strategies.decide(options, preference, budget, seed, options.memory_limit), budget


def _with_temperature(options: SelectOptions, candidates: Candidates, seed: int) -> SelectOptions:
    """The options with the temperature that was asked for by its outcome."""
    if options.target_kl is None and options.target_mean is None:
        return options
    at_one = dataclasses.replace(options, temperature=1.0, target_kl=None, target_mean=None)
    preference = strategies.prefer(at_one, candidates.keys, seed, options.memory_limit)
    workers = passes.num_processes()
    if options.target_kl is not None:
        order = preference.members[0].order
        found = temperature_for_kl(preference.keys, order, options.target_kl, workers=workers)
    else:
        assert options.target_mean is not None
        assert preference.ratings is not None
        score = preference.ratings.score

        def mean_of(temperature: float) -> float:
            kept, decision, _ = _decide(dataclasses.replace(at_one, temperature=temperature), candidates, seed)
            return statistics.moments(kept.keys, score, workers, decision.taken).mean

        found = temperature_for_mean(mean_of, options.target_mean)
    return dataclasses.replace(at_one, temperature=found.temperature)


def _check_unrated(options: SelectOptions, preference: Preference, found: Mapping[str, Any]) -> None:
    num_unrated = found["rejected"]["no_rating"]
    if num_unrated:
        unrated = f"{num_unrated:,} documents have no rating in `{_label(preference)}`"
        if options.on_null_rating == "error":
            raise UserError(f"{unrated}; annotate them, or --on_null_rating drop to leave them out")
        log.warning("%s: they are not selected", unrated)


def _is_there(name: str, files: Sequence[str]) -> bool:
    try:
        check_columns(files, needed=[name], added=[])
    except UserError:
        return False
    return True


def _rank(options: SelectOptions, keys: KeyFiles, seed: int) -> tuple[KeyFiles, Ranking]:
    if options.order == "shuffled":
        return keys, Ranking("shuffled", stream=gumbel.noise_stream(seed, "order of the selection"))
    if not options.order_by:
        return keys, Ranking(options.order)
    ratings = orders.combine(
        keys, {options.order_by: 1.0}, reference="", normalize=options.normalize, memory_bytes=options.memory_limit
    )
    stream = None
    if options.order_temperature is not None:
        stream = orders.noise_stream(seed, "", strategy="sample", label=ratings.label)
    by = ratings.order(temperature=options.order_temperature, inverse=False, stream=stream)
    return ratings.keys, Ranking(options.order, by=by)


def _asked(options: SelectOptions, preference: Preference, budget: Budget) -> Asked:
    members = preference.members
    ratings = [preference.ratings.score] if preference.ratings else []
    ratings += [member.order.score for member in members if member.order.score]
    fills = budget.targets is not None
    by_domain = bool(options.domain_field)
    return Asked(
        orders=tuple(member.order for member in members),
        ratings=tuple(dict.fromkeys(ratings)),
        budget=budget.amount if fills else None,
        measure=budget.measure,
        targets=(budget.targets if fills else budget.available) if by_domain else None,
        quotas=[member.share * budget.amount for member in members] if len(members) > 1 else None,
    )


def _label(preference: Preference) -> str:
    if preference.ratings is not None:
        return preference.ratings.label
    return ", ".join(filter(None, (member.name for member in preference.members)))
