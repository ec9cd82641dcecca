"""Documents to pairwise judgments on quality criteria. The offline judge is text statistics, not a language model."""

import dataclasses
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qurating_jax.config import option
from qurating_jax.judges import criteria as known
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.progress import progress
from qurating_jax.stage import StageConfig, open_run, require

if TYPE_CHECKING:
    import numpy as np

    from qurating_jax.data.documents import Document, Rejects
    from qurating_jax.judges.candidates import Candidates
    from qurating_jax.judges.excerpts import Excerpt
    from qurating_jax.judges.verdicts import Judge

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who judges."""

    kind: Literal["offline", "column"] = option("offline", "offline: text statistics, no LLM; column: known scores")
    temperature: float = option(0.5, "offline: difference in strength that counts one logit")
    noise: float = option(0.5, "offline: standard deviation of a verdict's noise, in logits")
    position_bias: float = option(0.25, "offline: logits in favour of the text shown first")
    score_field: str = option("", "column: field with the score of a document, higher is better")
    criterion: str = option("", "column: name of the criterion that the score stands for")
    scale: float = option(1.0, "column: difference in score that counts one logit")

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.noise >= 0 and self.scale > 0):
            raise ValueError("judge.temperature and judge.scale must be positive, judge.noise at least 0")
        if self.kind == "column" and not (self.score_field and re.fullmatch(r"[a-z][a-z0-9_]*", self.criterion)):
            raise ValueError("judge.kind column needs judge.score_field and judge.criterion (a name like `easiness`)")
        if self.kind == "offline" and (self.score_field or self.criterion):
            raise ValueError("judge.score_field and judge.criterion need judge.kind column")


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """Options of `qurating judge run`."""

    input: tuple[str, ...] = option((), "documents: files, globs, directories, hf:// ids", runtime=True)
    criteria: tuple[str, ...] = option(known.NAMES, "offline: criteria to judge")
    judge: JudgeConfig = JudgeConfig()
    tokenizer: str = option("", "tokenizer that excerpts are measured with: directory, file or hub id", runtime=True)
    num_pairs: int = option(0, "groups of texts to judge; 0: each document in one")
    group_size: int = option(2, "texts in a group; all its ordered pairs are judged")
    within_domain: float = option(0.0, "share of the groups whose texts come from one domain")
    tokens_min: int = option(256, "shortest excerpt; shorter documents are left out")
    tokens_max: int = option(512, "longest excerpt, and the length of half of them")
    whole_documents: bool = option(False, "judge whole documents: no excerpts, no tokenizer")
    text_field: str = option("text", "field of the text; dots reach nested fields")
    id_field: str = option("id", "field of the document id; without it the id is a hash of the text")
    domain_field: str = option("domain", "field of the domain")
    on_bad_row: Literal["error", "skip"] = option("error", "rows that are no documents: stop, or count and skip")

    def __post_init__(self) -> None:
        known.by_name(self.criteria)
        if self.judge.kind == "column" and self.criteria != known.NAMES:
            raise ValueError("a column is judged on judge.criterion; leave `criteria` out")
        if not 1 <= self.tokens_min <= self.tokens_max:
            raise ValueError("1 <= tokens_min <= tokens_max expected; whole_documents judges without excerpts")
        if self.num_pairs < 0 or self.group_size < 2 or not 0 <= self.within_domain <= 1:
            raise ValueError("num_pairs >= 0, group_size >= 2 and within_domain in 0..1 expected")


def main(config: Config) -> dict[str, Any]:
    """Writes `judgments.parquet` (published schema) and `verdicts.parquet` (a row per verdict)."""
    from qurating_jax.data import documents
    from qurating_jax.data.judgments import VERDICTS, write_verdicts
    from qurating_jax.data.tokenizer import load_tokenizer

    require(config, "input", *(() if config.whole_documents else ("tokenizer",)))
    files = documents.find_files(config.input)
    tokenizer = None if config.whole_documents else load_tokenizer(config.tokenizer)
    encoder = tokenizer and tokenizer.backend
    if config.dry_run:
        with documents.Rejects(None, config.on_bad_row) as rejects:
            candidates = _survey(config, files, encoder, rejects)
        groups = _design(config, candidates)
        return candidates.counts | _size(config, groups)

    digest = manifest.input_digest(config.input, files)
    inputs = {"documents": digest, "tokenizer": tokenizer and tokenizer.identity}
    with open_run(config, "judge run", inputs) as run:
        if run.state == "finished":
            return run.counts
        with documents.Rejects(run.path("rejected.jsonl"), config.on_bad_row) as rejects:
            candidates = _survey(config, files, encoder, rejects)
        groups = _design(config, candidates)
        judge = _make_judge(config, candidates)
        log.info("judge: %s; %d groups of %d", judge.name, len(groups), config.group_size)
        excerpts = _cut(config, files, groups, encoder)
        p_second = _ask(judge, excerpts)
        _write_judgments(run, candidates, judge, excerpts, p_second)
        write_verdicts(run.path(VERDICTS), groups, judge.criteria, p_second, judge.name)
        verdicts = {"judge": judge.name, "criteria": _statistics(judge, p_second)}
        counts = candidates.counts | _size(config, groups) | verdicts
        manifest.finish(run, counts)
        return counts


def _survey(config: Config, files: Sequence[str], encoder: Any, rejects: "Rejects") -> "Candidates":
    from qurating_jax.judges.candidates import survey

    candidates = survey(
        _read(config, files, rejects),
        tokenizer=encoder,
        tokens_min=config.tokens_min,
        domain_field=config.domain_field,
        score_field=config.judge.score_field,
    )
    candidates.counts["num_rejected"] = rejects.count
    log.info("judge: %(num_eligible)d of %(num_documents)d documents can be judged", candidates.counts)
    return candidates


def _read(config: Config, files: Sequence[str], rejects: "Rejects") -> "Iterator[Document]":
    from qurating_jax.data import documents

    read = documents.read_documents(files, text_field=config.text_field, id_field=config.id_field, rejects=rejects)
    with progress("read documents", None, "documents") as advance:
        for document in read:
            yield document
            advance(1)


def _design(config: Config, candidates: "Candidates") -> list[tuple[str, ...]]:
    from qurating_jax.judges import pairs

    wanted = config.num_pairs or pairs.num_groups_per_round(len(candidates.domains), config.group_size)
    if not wanted:
        counts = ", ".join(f"{name} {count}" for name, count in candidates.counts.items())
        raise UserError(f"{config.input[0]}: too few documents to judge ({counts}); lower tokens_min or give more")
    try:
        return pairs.design(
            candidates.domains,
            num_groups=wanted,
            group_size=config.group_size,
            within_domain=config.within_domain,
            seed=config.seed,
        )
    except ValueError as error:
        raise UserError(f"--num_pairs: {error}") from None


def _cut(
    config: Config, files: Sequence[str], groups: list[tuple[str, ...]], encoder: Any
) -> "list[tuple[Excerpt, ...]]":
    """Reads the documents of the groups (the first of each id, as the survey did) and cuts their excerpts."""
    from qurating_jax.data import documents
    from qurating_jax.judges.excerpts import Excerpt, cut_group

    wanted = {name for group in groups for name in group}
    texts: dict[str, str] = {}
    with documents.Rejects(None, "skip") as again:  # the same ones as in the survey
        for document in _read(config, files, again):
            if document.id in wanted:
                texts.setdefault(document.id, document.text)
    if config.whole_documents:
        return [tuple(Excerpt(name, texts[name]) for name in group) for group in groups]
    limits = {"tokens_min": config.tokens_min, "tokens_max": config.tokens_max}
    return [cut_group(config.seed, group, [texts[name] for name in group], encoder, **limits) for group in groups]


def _make_judge(config: Config, candidates: "Candidates") -> "Judge":
    from qurating_jax.judges.column import ColumnJudge
    from qurating_jax.judges.offline import OfflineJudge

    options = config.judge
    if options.kind == "column":
        return ColumnJudge(options.criterion, candidates.scores, field=options.score_field, scale=options.scale)
    return OfflineJudge(
        config.criteria,
        seed=config.seed,
        temperature=options.temperature,
        noise=options.noise,
        position_bias=options.position_bias,
    )


def _ask(judge: "Judge", excerpts: "list[tuple[Excerpt, ...]]") -> "np.ndarray":
    """Verdicts [n, k, k, C] of all groups."""
    import numpy as np

    verdicts = []
    with progress("judge", len(excerpts), "groups") as advance:
        for group in excerpts:
            verdicts.append(judge.compare(group))
            advance(1)
    return np.stack(verdicts)


def _write_judgments(
    run: manifest.Run,
    candidates: "Candidates",
    judge: "Judge",
    excerpts: "list[tuple[Excerpt, ...]]",
    p_second: "np.ndarray",
) -> None:
    import numpy as np

    from qurating_jax.data import judgments as judged
    from qurating_jax.method.judgments import combine_orders

    labels = combine_orders(np.moveaxis(p_second, -1, 1))
    average, votes_a, votes_b = (np.moveaxis(m, 1, -1) for m in (labels.average, labels.votes_a, labels.votes_b))
    judgments = judged.from_averages(
        [tuple(excerpt.text for excerpt in group) for group in excerpts],
        [tuple(excerpt.document_id for excerpt in group) for group in excerpts],
        [tuple(candidates.domains[excerpt.document_id] for excerpt in group) for group in excerpts],
        judge.criteria,
        average,
    )
    judged.write_judgments(run.path(judged.FILE), judgments, votes_a=votes_a, votes_b=votes_b)


def _size(config: Config, groups: list[tuple[str, ...]]) -> dict[str, int]:
    num_criteria = 1 if config.judge.kind == "column" else len(config.criteria)
    return {
        "num_groups": len(groups),
        "num_judged_documents": len({name for group in groups for name in group}),
        "num_verdicts": len(groups) * config.group_size * (config.group_size - 1) * num_criteria,
    }


def _statistics(judge: "Judge", p_second: "np.ndarray") -> dict[str, dict[str, Any]]:
    """What the verdicts say about the judge, per criterion (see `method.judgments.JudgeStatistics`)."""
    from qurating_jax.method.judgments import judge_statistics

    result = {}
    for number, criterion in enumerate(judge.criteria):
        found = dataclasses.asdict(judge_statistics(p_second[..., number]))
        confident = {f"confident_{margin}": share for margin, share in found.pop("confident").items()}
        result[criterion] = found | confident
        log.info(
            "judge: %s: %s", criterion, ", ".join(f"{name} {value:.4g}" for name, value in result[criterion].items())
        )
    return result
