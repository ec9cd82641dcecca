"""From documents to groups of excerpts in the run's store: the part of a run that comes before anybody is asked.

Two passes over the documents, neither of which keeps texts: the first counts tokens, the second cuts the excerpts that
the design asks for and writes them into the store. A plan is written in one transaction, so that it is there or not.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qurating_jax.data import documents
from qurating_jax.data.documents import Document, Rejects
from qurating_jax.data.tokenizer import TextTokenizer, load_tokenizer
from qurating_jax.judges import canaries, draws, excerpts, pairs
from qurating_jax.judges import criteria as known
from qurating_jax.judges.candidates import Candidates, survey
from qurating_jax.judges.criteria import Criterion
from qurating_jax.judges.options import JudgeConfig, JudgingOptions, identity_of
from qurating_jax.judges.pairs import Design
from qurating_jax.judges.store import FILE, Store
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.progress import progress

_EXCERPT_ROWS = 1024

log = logging.getLogger(__name__)

Group = tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """What a run reads, opened and digested: documents, tokenizer, criteria, judges, the earlier run's store."""

    files: list[str]
    tokenizer: TextTokenizer | None
    criteria: tuple[Criterion, ...]
    judges: tuple[JudgeConfig, ...]
    previous: str
    inputs: dict[str, Any] = field(compare=False)

    @property
    def criteria_names(self) -> tuple[str, ...]:
        """Names of the criteria in the order of the labels' last axis."""
        judge = self.judges[0]
        return (judge.criterion,) if judge.kind == "column" else tuple(one.name for one in self.criteria)


def open_sources(options: JudgingOptions) -> Sources:
    """Opens everything a run reads; raises `UserError` for the first thing that is not there."""
    judges = options.judges()
    criteria = known.load(options.criteria)
    for criterion in criteria if judges[0].kind == "openai" else ():
        criterion.template(options.mode, options.layout)  # a custom template may lack this layout
    files = documents.find_files(options.input)
    tokenizer = None if options.whole_documents else load_tokenizer(options.tokenizer)
    previous = storage.join(options.previous, FILE) if options.previous else ""
    if previous and not os.path.exists(previous):
        raise UserError(f"--previous {options.previous}: no {FILE} there; name the output of an earlier `judge run`")
    inputs: dict[str, Any] = {
        "documents": manifest.input_digest(options.input, files),
        "tokenizer": tokenizer and tokenizer.identity,
        "criteria": {criterion.name: criterion.hash for criterion in criteria},
        "judges": [identity_of(judge) for judge in judges],
    }
    if previous:
        with Store(previous, lock=False) as store:
            inputs["previous"] = store.get("plan")
    return Sources(files, tokenizer, criteria, judges, previous, inputs)


def survey_documents(options: JudgingOptions, sources: Sources, rejects: Rejects) -> Candidates:
    """The first pass: which documents can be judged, and how long they are."""
    candidates = survey(
        read(options, sources, rejects),
        tokenizer=sources.tokenizer and sources.tokenizer.backend,
        tokens_min=options.tokens_min,
        domain_field=options.domain_field,
        score_field=options.judge.score_field,
    )
    candidates.counts["num_rejected"] = rejects.count
    log.info("judge: %(num_eligible)d of %(num_documents)d documents can be judged", candidates.counts)
    return candidates


def read(options: JudgingOptions, sources: Sources, rejects: Rejects) -> Iterator[Document]:
    """The documents of a run, with progress."""
    found = documents.read_documents(
        sources.files, text_field=options.text_field, id_field=options.id_field, rejects=rejects
    )
    with progress("read documents", None, "documents") as advance:
        for document in found:
            yield document
            advance(1)


def choose_groups(options: JudgingOptions, sources: Sources, candidates: Candidates, seed: int) -> Design:
    """The groups to judge: those of the earlier run first, as they were.

    Raises:
        UserError: too few documents, or more groups asked for than there can be.
    """
    keep: list[Group] = []
    if sources.previous:
        with Store(sources.previous, lock=False) as store:
            keep = [tuple(name for name, _, _ in members) for _, members in store.groups()]
    try:
        design = pairs.design(
            candidates.domains,
            kind=options.design,
            group_size=options.group_size,
            degree=options.degree,
            num_groups=options.num_pairs,
            seed=seed,
            keep=keep,
        )
    except ValueError as error:
        raise UserError(f"--design {options.design}: {error}") from None
    if not design.groups:
        counts = ", ".join(f"{name} {count}" for name, count in candidates.counts.items())
        raise UserError(f"{options.input[0]}: too few documents to judge ({counts}); lower tokens_min or give more")
    _say(options, design)
    return design


def _say(options: JudgingOptions, design: Design) -> None:
    num_groups = len(design.groups)
    log.info(
        "judge: design %s: %d groups of %d over %d documents, %d left out",
        *(options.design, num_groups, options.group_size, design.num_documents, design.num_left_out),
    )
    if design.num_components == 1:
        return
    if options.degree > 1 or num_groups * options.group_size > design.num_documents:
        log.warning(
            "judge: the comparisons fall into %d parts that never meet: documents of different parts cannot be ranked; "
            "raise degree, or choose another design",
            design.num_components,
        )
    else:
        log.info("judge: each document is in one group: right for a rater, no ranking of the documents (see --degree)")


def plan_excerpts(options: JudgingOptions, candidates: Candidates, groups: Sequence[Group], seed: int) -> excerpts.Plan:
    """Which stretch of which document is cut for which group (REFERENCE step 1)."""
    if options.whole_documents:
        return excerpts.plan_whole(groups)
    limits = {"tokens_min": options.tokens_min, "tokens_max": options.tokens_max}
    return excerpts.plan_cuts(seed, groups, candidates.num_tokens, **limits)


def ensure_plan(store: Store, options: JudgingOptions, sources: Sources, seed: int, rejected: str) -> Candidates | None:
    """Fills the store with groups and excerpts, unless an earlier start has; returns the candidates if it looked.

    Rows that are no documents are listed in the file `rejected`.
    """
    if store.get("plan") is not None:
        return None
    with Rejects(rejected, options.on_bad_row) as rejects:
        candidates = survey_documents(options, sources, rejects)
    design = choose_groups(options, sources, candidates, seed)
    counts = candidates.counts | group_counts(options, sources, design)
    write_plan(store, options, sources, candidates, design.groups, seed, counts)
    return candidates


def write_plan(
    store: Store,
    options: JudgingOptions,
    sources: Sources,
    candidates: Candidates,
    groups: Sequence[Group],
    seed: int,
    counts: Mapping[str, Any],
) -> None:
    """The second pass: cuts the excerpts into the store and writes down the units and what they were made of."""
    plan = plan_excerpts(options, candidates, groups, seed)
    backend = sources.tokenizer and sources.tokenizer.backend
    with store.transaction(), Rejects(None, "skip") as again:  # the rows that the survey rejected
        rows: list[tuple[int, int, str, str, str]] = []
        for group, slot, excerpt in excerpts.cut_all(read(options, sources, again), plan, backend):
            rows.append((group, slot, excerpt.document_id, candidates.domains[excerpt.document_id], excerpt.text))
            if len(rows) >= _EXCERPT_ROWS:
                store.add_excerpts(rows)
                rows = []
        store.add_excerpts(rows)
        store.add_units(_units(options, groups, seed))
        store.put("criteria", [dataclasses.asdict(criterion) for criterion in sources.criteria])
        store.put("mode", options.mode)
        store.put("layout", options.layout)
        store.put("group_size", options.group_size)
        store.put("counts", dict(counts))
        # The digest of the inputs stands for the plan: equal ones have equal groups and excerpts.
        identity = {"inputs": sources.inputs, "seed": seed, "groups": groups}
        store.put("plan", manifest.sha256(json.dumps(identity, sort_keys=True)))


def _units(
    options: JudgingOptions, groups: Sequence[Group], seed: int
) -> Iterator[tuple[int, str, str, int | None, int]]:
    """The groups as they are asked: all of them, then those asked again, then those with a canary."""
    for group in range(len(groups)):
        yield group, "main", "", None, 0
    for group in _drawn(groups, options.num_repeats, seed, "repeat"):
        yield group, "repeat", "", None, 1
    for group in _drawn(groups, options.num_canaries, seed, "canary"):
        variant, slot = canaries.draw(seed, groups[group])
        yield group, "canary", variant, slot, 0


def _drawn(groups: Sequence[Group], count: int, seed: int, purpose: Literal["repeat", "canary"]) -> list[int]:
    """`count` groups by a hash of theirs, in order."""
    if count > len(groups):
        option = {"repeat": "num_repeats", "canary": "num_canaries"}[purpose]
        raise UserError(f"--{option} {count}: there are {len(groups)} groups")
    keyed = sorted(range(len(groups)), key=lambda group: draws.integer(seed, f"groups for {purpose}", *groups[group]))
    return sorted(keyed[:count])


def group_counts(options: JudgingOptions, sources: Sources, design: Design) -> dict[str, int]:
    """How much is judged."""
    k, num_groups = options.group_size, len(design.groups)
    questions = k if options.mode == "individual" else k * (k - 1)
    return {
        "num_groups": num_groups,
        "num_judged_documents": design.num_documents,
        "num_left_out_by_design": design.num_left_out,
        "num_components": design.num_components,
        "num_verdicts": num_groups * questions * len(sources.criteria_names),
    }
