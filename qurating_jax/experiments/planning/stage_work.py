"""What a run of each stage comes to before it is started: units of work, FLOPs, bytes on disk, memory.

One function per kind of stage, each from what the run reads (`amounts`) and its config alone; no device is touched.
What cannot be known stays None; what training would refuse is told in `refused`, beside the numbers all the same.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qurating_jax.experiments.graph import Node
from qurating_jax.experiments.planning import architectures
from qurating_jax.experiments.planning.amounts import Amounts, node_at
from qurating_jax.experiments.planning.lengths import capped_share, tokenized_rows, windows_of
from qurating_jax.experiments.planning.rates import Unit
from qurating_jax.judges.options import JudgingOptions
from qurating_jax.models.config import DecoderConfig
from qurating_jax.models.flops import forward_flops, num_parameters, training_flops
from qurating_jax.parallel.devices import DeviceModel
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.training import planning
from qurating_jax.training.planning import Machine, Memory, Rows

Where = Literal["device", "host", "elsewhere"]

# Bytes per document that stages write beside texts, tokens and ratings: ids, domains and numbers, compressed. Of an id
# list docs/tokenize.md tells; the others are of the same order, and little beside what they are added to.
_BYTES_PER_ID, _BYTES_PER_INDEXED, _BYTES_PER_RATED = 24, 60, 60
# The index of rows has a line for every piece of a document in a row, and a footer: counted on tokens of 96 to 2 472
# documents with four ratings each.
_BYTES_PER_PIECE, _INDEX_FOOTER = 6, 2600
_FLOAT = 4
_STATE_BYTES = 3 * _FLOAT  # of a parameter in a checkpoint: itself and Adam's two moments

# A device of which only the platform matters: how much memory this machine has is not asked.
_CPU = DeviceModel("cpu", (), 1.0, 1 << 62, 1.0, "cpu")


@dataclass(frozen=True)
class Site:
    """Where everything is to run: accelerators of one kind (None: the CPU itself), and hosts' cores."""

    device: DeviceModel | None
    num_devices: int
    cores: int
    device_price: float | None = None
    host_price: float | None = None
    mfu: float | None = None

    @property
    def machine(self) -> Machine:
        """As plans of training know it."""
        return Machine(self.device or _CPU, self.num_devices if self.device else 1)


@dataclass(frozen=True)
class Work:
    """What a run comes to.

    Attributes:
        where: on the accelerators; on the cores of a host; or somewhere that has no price here (an endpoint, the hub).
        unit: what speed is measured in.
        units: how many.
        flops: of the models, for all units.
        cores: that the run can use at most; None: as many as there are.
        storage: bytes on disk in the end; of documents their text as it is, so at most so many.
        memory: of one device, where it can be estimated.
        refused: what the stage would say instead of running.
        notes: what is not in the numbers.
        facts: further numbers of the stage: rows, steps, parameters, requests.
    """

    where: Where
    unit: Unit | None = None
    units: float | None = None
    flops: float | None = None
    cores: int | None = None
    storage: int | None = None
    memory: Memory | None = None
    refused: str = ""
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def flops_per_unit(self) -> float | None:
        """Of a model; None where there is none."""
        return self.flops / self.units if self.flops and self.units else None

    def cores_of(self, there: int) -> int:
        """Cores that it uses of those that are there."""
        return min(there, self.cores or there)


def work_of(known: Amounts, node: Node, site: Site) -> Work:
    """What a run of a node comes to; of stages without a function of their own nothing is known."""
    try:
        return _STAGES.get(node.stage, _unknown)(known, node, site)
    except UserError as error:
        return Work("host", refused=str(error))


def rows_of(known: Amounts, places: Sequence[str]) -> Rows | None:
    """The rows of outputs of `tokenize`, counted or expected; None where nothing is known of one."""
    found = [_rows_at(known, place) for place in places]
    rows = [one for one in found if one is not None]
    if not rows or len(rows) < len(found):
        return None
    return Rows(sum(one.num_rows for one in rows), rows[0].tokens, all(one.packed for one in rows))


def _rows_at(known: Amounts, place: str) -> Rows | None:
    found = node_at(known.graph, place)
    if found is None:
        return _rows_outside(place)
    node = found[0]
    if node.stage != "tokenize":
        return None
    holds = known.nodes[node.key]
    number = tokenized_rows(node.config, holds) if holds.rows is None else holds.rows
    return None if number is None else Rows(number, node.config.sequence_tokens, node.config.layout == "packed")


def _rows_outside(place: str) -> Rows | None:
    if "<" in place or not storage.exists(storage.join(place, manifest.MANIFEST)):
        return None
    counts = manifest.read(place, stages=("tokenize",))["counts"]
    return Rows(counts["rows"], counts["sequence_tokens"], counts["layout"] == "packed")


# --- documents --------------------------------------------------------------------------------------------------------


def _unknown(known: Amounts, node: Node, site: Site) -> Work:
    return Work("host", notes=(f"nothing is known of how long `{node.stage}` takes",))


def _corpus(known: Amounts, node: Node, site: Site) -> Work:
    """Documents that are cut and written; one process."""
    found = known.nodes[node.key]
    notes = (
        () if found.documents is not None else ("how much it writes is known when it has run, and so is all behind it",)
    )
    return Work("host", "documents", found.documents, cores=1, storage=found.bytes, notes=notes)


def _fetch(known: Amounts, node: Node, site: Site) -> Work:
    """Bytes over a network of which nothing is known here."""
    found = known.nodes[node.key]
    return Work("elsewhere", "bytes", found.bytes, storage=found.bytes, notes=("the network's speed is not known",))


def _split(known: Amounts, node: Node, site: Site) -> Work:
    """Bytes of text, read and written once."""
    found = known.read_by(node)
    return Work("host", "bytes", found.bytes, cores=node.config.num_workers or None, storage=found.bytes)


def _train_tokenizer(known: Amounts, node: Node, site: Site) -> Work:
    """Bytes of text; they are read twice, once to learn and once to measure, which the rate contains."""
    return Work("host", "bytes", known.read_by(node).bytes)


def _select(known: Amounts, node: Node, site: Site) -> Work:
    """Documents whose few numbers are read; of DSIR bytes, since it reads the texts."""
    config, read, chosen = node.config, known.read_by(node), known.nodes[node.key]
    ids = None if chosen.documents is None else _BYTES_PER_ID * chosen.documents
    size = ids if config.write == "ids" else chosen.bytes
    if config.strategy == "dsir":
        return Work("host", "bytes", read.bytes, cores=config.num_workers, storage=size)
    return Work("host", "documents", read.documents, cores=config.num_workers, storage=size)


def _tokenize(known: Amounts, node: Node, site: Site) -> Work:
    """Tokens of the documents that are kept (of others the ids alone are read); rows by the layout."""
    config, kept = node.config, known.nodes[node.key]
    rows = kept.rows if kept.rows is not None else tokenized_rows(config, kept)
    vocabulary = architectures.vocabulary_at(known, config.tokenizer)
    size = None
    if rows is not None:
        held_out = 1 / (1 - config.validation_fraction)
        size = round(held_out * token_bytes(rows * config.sequence_tokens, vocabulary))
        documents = kept.documents or 0
        size += _INDEX_FOOTER + _BYTES_PER_INDEXED * documents + _BYTES_PER_PIECE * (rows + documents)
    facts = {"rows": rows, "sequence_tokens": config.sequence_tokens, "vocabulary": vocabulary}
    return Work("host", "tokens", kept.tokens, cores=config.num_workers or None, storage=size, facts=facts)


def token_bytes(num_tokens: float, vocabulary: int) -> float:
    """Bytes of rows on disk as zstd packs them, uint16 or int32. Of segment ids, which are runs, little stays.

    A line through what tokens of real text took: 1.19 bytes with a vocabulary of 1 024, 1.2 to 1.5 (mostly 1.4) with
    32 003 and 50 277. Larger vocabularies were not measured.
    """
    stored = 2 if vocabulary <= 1 << 16 else 4
    return num_tokens * min(stored, 0.73 + 0.046 * math.log2(vocabulary))


# --- judgments and raters ---------------------------------------------------------------------------------------------


def _judge_run(known: Amounts, node: Node, site: Site) -> Work:
    """Groups of texts; of language models the requests, since neither their speed nor their price is known here."""
    config = node.config
    groups = _groups(known, node)
    facts: dict[str, Any] = {"groups": groups}
    if config.judge.kind != "openai":
        return Work("host", "pairs", groups, cores=1, facts=facts)
    k = config.group_size
    questions = k * (k - 1) if config.mode == "pairwise" else k
    if groups is not None:
        units = groups + config.num_repeats + config.num_canaries
        requests = units * questions * len(config.criteria) * (1 + len(config.more_judges))
        facts["requests"] = requests * (config.judge.samples if config.judge.method == "samples" else 1)
    notes = ("time and money of the endpoint are not in here: `judge run --dry_run` tells them",)
    return Work("elsewhere", "pairs", groups, notes=notes, facts=facts)


def _groups(known: Amounts, node: Node) -> int | None:
    """Groups of texts that a run of `judge run` judges."""
    counts, config = known.finished.get(node.key, {}), node.config
    if "num_groups" in counts:
        return int(counts["num_groups"])
    if config.num_pairs:
        return int(config.num_pairs)
    documents = known.read_by(node).documents
    return None if documents is None else documents * config.degree // config.group_size


def _train_rater(known: Amounts, node: Node, site: Site) -> Work:
    """Tokens of the judged texts, times the epochs and members; of n-grams the judged groups."""
    config, counts = node.config, known.finished.get(node.key, {})
    groups, options = _judged(known, config.judgments)
    model = architectures.trained(known, node)
    trained = counts.get(
        "train_groups", groups and round(groups * (1 - (0 if config.validation else config.validation_fraction)))
    )
    if model == "ngrams":
        return Work("host", "pairs", trained, cores=1, facts={"groups": trained})
    mean = min(config.max_tokens, mean_excerpt(options))
    tokens = counts.get("tokens_per_epoch", trained and trained * options.group_size * mean)
    if not isinstance(model, DecoderConfig):
        return Work("device", "tokens", notes=("which model is trained is not known",))
    parameters = num_parameters(model)
    kept = min(config.loop.keep_checkpoints, 2)
    size = config.num_members * parameters * (_FLOAT + _STATE_BYTES * kept)
    facts = {"groups": trained, "parameters": parameters, "mean_tokens": mean}
    if not tokens:
        return Work("device", "tokens", storage=size, facts=facts)
    units = tokens * config.num_epochs * config.num_members
    flops = units * float(training_flops(model, float(mean))) / mean
    return Work(
        "device", "tokens", units, flops, storage=size, facts=facts, notes=("memory is not estimated for raters",)
    )


def mean_excerpt(options: JudgingOptions) -> float:
    """Mean tokens of a judged text: half of them have the greatest length, the others any from the least to it."""
    return 0.5 * options.tokens_max + 0.25 * (options.tokens_min + options.tokens_max)


def _judged(known: Amounts, places: Sequence[str]) -> tuple[int | None, JudgingOptions]:
    """Groups of all judgments, and how the first of them were made (as the published ones where nobody knows)."""
    total, options = 0, None
    for place in places:
        found = node_at(known.graph, place)
        if found is not None and found[0].stage == "judge run":
            groups, own = _groups(known, found[0]), found[0].config
        else:
            groups, own = known.of(place).documents, None
        if groups is None:
            return None, options or JudgingOptions()
        total, options = total + groups, options or own
    return total or None, options or JudgingOptions()


# --- models that read -------------------------------------------------------------------------------------------------


def _annotate(known: Amounts, node: Node, site: Site) -> Work:
    """Tokens that go through every model, forward; of n-grams alone bytes of text on a core."""
    config, read = node.config, known.read_by(node)
    models = [
        model
        for place in config.rater
        for model in architectures.models_at(known, place, criteria=architectures.DEFAULT_CRITERIA)
    ]
    models += [model for place in config.language_model for model in architectures.models_at(known, place)]
    neural = [model for model in models if isinstance(model, DecoderConfig)]
    criteria = sum(model.num_criteria or 1 for model in neural) + architectures.DEFAULT_CRITERIA * models.count(
        "ngrams"
    )
    size = None
    if read.documents is not None:
        size = round(
            read.documents * (_BYTES_PER_RATED + _FLOAT * criteria * (1 + windows_of(read, config.window_tokens)))
        )
        size = size if config.write == "sidecar" else size + (read.bytes or 0)
    if None in models:
        return Work("device", "tokens", read.tokens, storage=size, notes=("which model rates is not known",))
    if not neural:
        return Work("host", "bytes", read.bytes, cores=1, storage=size)
    if read.tokens is None:
        return Work("device", "tokens", storage=size)
    longest = None if config.max_windows is None else config.max_windows * config.window_tokens
    tokens = read.tokens * capped_share(read, longest)
    window = config.window_tokens
    if read.mean_tokens is not None:
        window = min(window, max(1.0, read.mean_tokens / windows_of(read, config.window_tokens)))
    flops = sum(float(forward_flops(model, float(window))) for model in neural) * tokens / window
    return Work("device", "tokens", tokens, flops, storage=size, facts={"mean_window_tokens": round(window, 1)})


def _eval_lm(known: Amounts, node: Node, site: Site) -> Work:
    """Tokens of the held-out documents, once per model, and again what windows share; tasks are not counted."""
    config, read = node.config, known.read_by(node)
    asked = (f"tasks are not counted ({', '.join(config.tasks)})",) if config.tasks else ()
    if asked and not config.input:
        return Work("device", "tokens", notes=asked)
    models = [model for place in config.model for model in architectures.models_at(known, place)]
    decoders = [model for model in models if isinstance(model, DecoderConfig)]
    if len(decoders) < len(models) or not decoders:
        return Work("device", "tokens", notes=("which model is evaluated is not known", *asked))
    if read.tokens is None:
        return Work("device", "tokens", notes=asked)
    tokens = float(read.tokens)
    if config.max_documents is not None and read.documents:
        tokens *= min(1.0, config.max_documents / read.documents)
    context = config.context_tokens or min(model.max_positions for model in decoders)
    stride = config.stride_tokens or context - 1
    beyond = 1 - capped_share(read, context)
    tokens *= 1 + beyond * ((context - 1) / stride - 1)
    length = float(min(context, max(1.0, read.mean_tokens or context)))
    flops = sum(float(forward_flops(model, length)) for model in decoders) * tokens / length
    notes = (*(f"{place}: counted as one model" for place in config.model if place.endswith("@all")), *asked)
    size = None if read.documents is None else _BYTES_PER_RATED * read.documents * len(decoders)
    facts = {"models": len(decoders)}
    return Work("device", "tokens", tokens * len(decoders), flops, storage=size, notes=notes, facts=facts)


def _train_lm(known: Amounts, node: Node, site: Site) -> Work:
    """As `qurating plan RECIPE` has it, with the rows that reach the run."""
    config = node.config
    model = architectures.trained(known, node)
    rows = rows_of(known, config.tokens)
    if rows is None or not isinstance(model, DecoderConfig):
        what = "how many rows there will be" if rows is None else "which model is trained"
        return Work("device", "tokens", notes=(f"{what} is not known",))
    done = planning.work(config, model, rows)
    stored = planning.storage(_without_best(known, config), model, done.steps)
    facts = {
        "rows": rows.num_rows, "sequence_tokens": rows.tokens, "steps": done.steps, "epochs": done.epochs,
        "parameters": num_parameters(model), "checkpoint_bytes": stored.checkpoint, "kept_checkpoints": stored.kept,
        "export_bytes": stored.export,
    }  # fmt: skip
    memory, refused = None, ""
    notes: tuple[str, ...] = ()
    try:
        memory = planning.plan(config, model, rows, site.machine).memory
        notes = _what_would_fit(node, model, rows, site, memory)
    except UserError as error:
        refused = str(error)
    size = stored.checkpoints + stored.export
    return Work("device", "tokens", done.tokens, done.flops, None, size, memory, refused, notes, facts)


def _what_would_fit(node: Node, model: DecoderConfig, rows: Rows, site: Site, memory: Memory) -> tuple[str, ...]:
    """Where the memory of an accelerator may not do: what of the config would help."""
    if site.device is None or memory.verdict == "fits":
        return ()
    others = planning.alternatives(node.config, model, rows, site.machine)
    changes = [f"{node.steps[0]}.{other.change.removeprefix('--').replace(' ', '=')}" for other in others]
    helps = f"--set {' or '.join(changes)} would" if changes else "take more devices"
    return (f"memory: {memory.verdict} by an estimate; {helps}",)


def _without_best(known: Amounts, config: Any) -> Any:
    """The options; where no rows are held out, no best checkpoint is kept either."""
    made = [node_at(known.graph, place) for place in config.tokens]
    if any(found is None or found[0].config.validation_fraction for found in made):
        return config
    return dataclasses.replace(config, held_out=dataclasses.replace(config.held_out, max_rows=0))


_STAGES: dict[str, Callable[[Amounts, Node, Site], Work]] = {
    "corpus": _corpus,
    "fetch": _fetch,
    "split": _split,
    "train-tokenizer": _train_tokenizer,
    "judge run": _judge_run,
    "train-rater": _train_rater,
    "annotate": _annotate,
    "select": _select,
    "tokenize": _tokenize,
    "train-lm": _train_lm,
    "eval-lm": _eval_lm,
}
