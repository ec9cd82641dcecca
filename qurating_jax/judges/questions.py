"""What is asked: every question of a run, in its order, with the key of its request."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.judges import canaries
from qurating_jax.judges.criteria import Criterion, Layout
from qurating_jax.judges.options import JudgeConfig, JudgingOptions, shard_of
from qurating_jax.judges.planning import Sources
from qurating_jax.judges.requests import Question, Requests, Sending
from qurating_jax.judges.store import Store, Task
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.progress import progress

_PLAN_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked, of whom: the part of the options that language models need."""

    judges: Sequence[JudgeConfig]
    criteria: Sequence[Criterion]
    mode: str
    layout: Layout
    shard: str = "0/1"
    max_cost: float = 0.0
    max_requests: int = 0
    retry_failed: bool = True
    allow_unresolved: float = 0.0


def asked_by(options: JudgingOptions, sources: Sources) -> Asked:
    """What the options of a run ask."""
    return Asked(
        judges=sources.judges,
        criteria=sources.criteria,
        mode=options.mode,
        layout=options.layout,
        shard=options.shard,
        max_cost=options.max_cost,
        max_requests=options.max_requests,
        retry_failed=options.retry_failed,
        allow_unresolved=options.allow_unresolved,
    )


def requests_of(judge: JudgeConfig, sending: Sending, asked: Asked) -> Requests:
    """What builds the requests of a judge, given what its endpoint accepts."""
    return Requests(judge, sending, layout=asked.layout, label_tokens=_label_tokens(judge, asked))


def _label_tokens(judge: JudgeConfig, asked: Asked) -> dict[str, int]:
    """The token id of every label in the judge's own tokenizer.

    Raises:
        UserError: a label is several tokens there.
    """
    if judge.constrain != "logit_bias":
        return {}
    tokenizer = load_tokenizer(judge.tokenizer)
    labels = {label for criterion in asked.criteria for label in _example(criterion, asked.mode).labels}
    found = dict(zip(sorted(labels), tokenizer.encode(sorted(labels)), strict=True))
    for label, tokens in found.items():
        if len(tokens) != 1:
            raise UserError(
                f"judge {judge.title}: the label `{label}` is {len(tokens)} tokens of {judge.tokenizer}; logit_bias "
                "needs single tokens, choose other labels or another judge.constrain"
            )
    return {label: int(tokens[0]) for label, tokens in found.items()}


def _example(criterion: Criterion, mode: str) -> Question:
    return Question(criterion, "", "" if mode == "pairwise" else None)


def question_of(criteria: Sequence[Criterion], task: Task) -> Question:
    """The question of a task; the texts of a canary get their injected command here."""
    criterion, texts = criteria[task.criterion], list(task.texts)
    if task.injected is not None:
        pairwise = len(texts) == 2
        label = criterion.labels[task.injected] if pairwise else str(criterion.grades[1])
        position = task.injected if pairwise else 0
        texts[position] = canaries.inject(texts[position], task.variant, label=label)
    return Question(criterion, texts[0], texts[1] if len(texts) == 2 else None, task.repeat)


def plan_tasks(store: Store, asked: Asked, index: int, judge: JudgeConfig, sending: Sending) -> None:
    """Writes every question of a judge and its key, in one transaction."""
    requests = requests_of(judge, sending, asked)
    units = units_of_shard(store, asked.shard)
    rows: list[tuple[int, int, int, int, int | None, bytes]] = []
    with store.transaction(), progress(f"plan {judge.title}", len(units), "groups") as advance:
        for task, unit, first, second in all_tasks(store, asked, index, units, advance):
            rows.append((unit, index, task.criterion, first, second, requests.key(question_of(asked.criteria, task))))
            if len(rows) >= _PLAN_ROWS:
                store.add_tasks(rows)
                rows = []
        store.add_tasks(rows)
        store.put(f"planned {index}", True)


def units_of_shard(store: Store, shard: str) -> list[tuple[int, int, str, str, int | None, int]]:
    """The units that one of several runs asks."""
    part, num_parts = shard_of(shard)
    return [unit for unit in store.units() if unit[1] % num_parts == part]


def all_tasks(
    store: Store,
    asked: Asked,
    index: int,
    units: Sequence[tuple[int, int, str, str, int | None, int]],
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[Task, int, int, int | None]]:
    """Every question in the order of asking: pair by pair, so that the criteria of a pair meet a warm prompt cache.

    Yields:
        The task (without id and key), its unit, and the slots of the texts shown.
    """
    for unit, group, _, variant, injected, repeat in units:
        texts = [text for _, _, text in store.group(group)]
        slots = range(len(texts))
        if asked.mode == "individual":
            shown: list[tuple[int, ...]] = [(slot,) for slot in slots if injected in (None, slot)]
        else:
            shown = [(i, j) for i in slots for j in slots if i != j and (injected is None or injected in (i, j))]
        for places in shown:
            for criterion in range(len(asked.criteria)):
                task = Task(
                    id=0,
                    key=b"",
                    judge=index,
                    criterion=criterion,
                    texts=tuple(texts[place] for place in places),
                    injected=None if injected is None else places.index(injected),
                    variant=variant,
                    repeat=repeat,
                )
                yield task, unit, places[0], places[1] if len(places) == 2 else None
        advance(1)
