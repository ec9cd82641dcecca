"""Options of `qurating select`, by what they are about; the stage's config is all of them together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qurating_jax.config import option

Strategy = Literal[
    "uniform", "top_k", "sample", "threshold", "percentile", "fraction", "perplexity", "dsir", "mix"
]  # fmt: skip
Order = Literal["source", "key_ascending", "key_descending", "shuffled"]

_SAMPLED = ("sample", "mix")  # by a temperature
_LEAST_TEMPERATURE = 1e-100  # keys of ratings over far less are infinite, and order nothing
_CUT = ("threshold", "percentile", "fraction")  # where a rating ends, not where a budget does

EXPLANATION = "selection.json"  # what a selection did, in its output


@dataclass(frozen=True, kw_only=True)
class StrategyOptions:
    """Which documents are preferred."""

    strategy: Strategy = option("sample", "how documents are chosen; docs/selection.md explains each")
    rating: tuple[str, ...] = option(
        ("educational_value_average",), "column of the rating, or several as COLUMN=WEIGHT (uniform only reports them)"
    )
    scores: tuple[str, ...] = option((), "files with further columns of ratings, joined by id", reads=True)
    reference: str = option("", "column that is subtracted from every rating first")
    normalize: Literal["z", "rank", "none"] = option(
        "z", "ratings to mean 0, standard deviation 1: as they are (z), by their ranks, or not"
    )
    temperature: float = option(2.0, "of `sample` and `mix`: towards 0 it is top_k, large it is uniform")
    target_kl: float | None = option(None, "instead of a temperature: KL from uniform of the sampling weights, in nats")
    target_mean: float | None = option(None, "instead of a temperature: mean rating of the selected documents")
    inverse: bool = option(False, "prefer low ratings: they are negated before any noise")
    threshold: float | None = option(None, "of `threshold`: the least rating (with inverse: the greatest)")
    percentile: float | None = option(None, "of `percentile`: 0 to 100, documents rated at or above it")
    fraction: float | None = option(None, "of `fraction`: the best part of the documents, above 0 and at most 1")
    keep: Literal["lowest", "highest"] = option("lowest", "of `perplexity`: which end is selected")
    log_likelihood: str = option("log_likelihood_average", "of `perplexity`: column of mean log-likelihoods, or ...")
    perplexity: str = option("", "... column of perplexities (or of anything that is low for likely text)")
    targets: tuple[str, ...] = option((), "of `dsir`: NAME=PATH of documents like those wanted", reads=True)
    dsir_buckets: int = option(10_000, "of `dsir`: hash buckets of words and pairs of words")
    dsir_min_words: int = option(100, "of `dsir`: shorter documents are left out")
    dsir_length_norm: bool = option(False, "of `dsir`: divide a document's weight by its number of n-grams")
    dsir_pseudo_count: float = option(0.0, "of `dsir`: added to every bucket's count (Laplace)")
    dsir_raw_ngrams: int | None = option(None, "of `dsir`: raw frequencies from a sample of so many n-grams; null: all")
    members: tuple[str, ...] = option((), "of `mix`: rating columns, or directories of selections")
    noise_group: str = option("", "selections of one seed and one group share their noise; empty: each its own")

    def check_strategy(self) -> None:
        """Raises `ValueError` where options contradict each other."""
        if self.strategy in _SAMPLED and not self.temperature >= _LEAST_TEMPERATURE:
            raise ValueError(
                f"--temperature {self.temperature} samples nothing; use --strategy top_k for the highest ratings, "
                f"--strategy uniform for a random choice, or a temperature above 0 (at least {_LEAST_TEMPERATURE})"
            )
        if self.strategy == "uniform" and self.inverse:
            raise ValueError("--inverse has no meaning with --strategy uniform, which reads no rating")
        if self.strategy == "perplexity" and self.inverse:
            raise ValueError("--inverse beside --strategy perplexity: say --keep lowest or --keep highest")
        if self.strategy == "dsir" and self.inverse:
            raise ValueError("--inverse has no meaning with --strategy dsir")
        if self.strategy not in ("uniform", "perplexity", "dsir", "mix") and not self.rating:
            raise ValueError(f"--strategy {self.strategy} needs --rating")
        for name in _CUT:
            if (getattr(self, name) is not None) != (self.strategy == name):
                raise ValueError(f"--{name} and --strategy {name} go together")
        if self.percentile is not None and not 0 <= self.percentile <= 100:
            raise ValueError(f"--percentile {self.percentile} is not within 0 and 100")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"--fraction {self.fraction} is no share; give a number above 0 and at most 1")
        for name, strategy in (("targets", "dsir"), ("members", "mix")):
            if bool(getattr(self, name)) != (self.strategy == strategy):
                raise ValueError(f"--{name} and --strategy {strategy} go together")
        if len(self.members) == 1:
            raise ValueError("--members needs at least two of them")
        if len(set(self.members)) < len(self.members):
            raise ValueError("--members names one of them twice")
        if self.target_kl is not None and self.target_mean is not None:
            raise ValueError("--target_kl and --target_mean both say the temperature; give one")
        if (self.target_kl is not None or self.target_mean is not None) and self.strategy != "sample":
            raise ValueError("--target_kl and --target_mean go with --strategy sample")
        parse_weights(self.rating, "--rating")

    @property
    def ends_by_rating(self) -> bool:
        """True where a rating says which documents are selected, not a budget."""
        return self.strategy in _CUT

    @property
    def weights(self) -> dict[str, float]:
        """Columns of ratings and their weights; one column has the weight 1."""
        return parse_weights(self.rating, "--rating")


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """How much is selected, and how much of each domain."""

    budget_tokens: int | None = option(None, "tokens to select")
    budget_fraction: float | None = option(None, "share of the selectable tokens to select, above 0 and at most 1")
    budget_documents: int | None = option(None, "documents to select")
    allow_all: bool = option(False, "a budget above all there is selects all, instead of an error")
    num_epochs: int = option(1, "how often the selection is to be read: 1/N of the tokens are selected")
    domain_field: tuple[str, ...] = option((), "column of the domain (or several, for their product); none: one pool")
    domain_targets: tuple[str, ...] = option(
        (), "NAME=SHARE of the budget, `*` for the other domains; none: every domain's share of the tokens"
    )
    domain_caps: tuple[str, ...] = option((), "NAME=SHARE of the budget at most, `*` for the other domains")

    def check_budget(self, strategy: Strategy) -> None:
        """Raises `ValueError` where options contradict each other."""
        given = [name for name in ("budget_tokens", "budget_fraction", "budget_documents") if getattr(self, name)]
        given += [name for name in ("budget_tokens", "budget_documents") if getattr(self, name) == 0]
        if strategy in _CUT and (given or self.domain_targets or self.domain_caps):
            raise ValueError(f"--strategy {strategy} selects what its rating says and takes no budget")
        if strategy not in _CUT and len(given) != 1:
            raise ValueError("give exactly one of --budget_tokens, --budget_fraction and --budget_documents")
        for name in ("budget_tokens", "budget_documents", "num_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value} selects nothing; give a positive number")
        if self.budget_fraction is not None and not 0 < self.budget_fraction <= 1:
            raise ValueError(
                f"--budget_fraction {self.budget_fraction} is not a share; give a number above 0 and at most 1"
            )
        if (self.domain_targets or self.domain_caps) and not self.domain_field:
            raise ValueError("--domain_targets and --domain_caps need --domain_field")
        if len(set(self.domain_field)) < len(self.domain_field):
            raise ValueError("--domain_field names a column twice")
        parse_weights(self.domain_targets, "--domain_targets", need=True)
        parse_weights(self.domain_caps, "--domain_caps", need=True)

    @property
    def shares(self) -> dict[str, float] | None:
        """Given shares by domain name."""
        return parse_weights(self.domain_targets, "--domain_targets", need=True) or None

    @property
    def caps(self) -> dict[str, float] | None:
        """Largest shares by domain name."""
        return parse_weights(self.domain_caps, "--domain_caps", need=True) or None


@dataclass(frozen=True, kw_only=True)
class DocumentOptions:
    """What of the input is a document that can be selected."""

    id_field: str = option("id", "column (or dotted path) of the unique document id; without it a hash of the text")
    text_field: str = option("text", "column (or dotted path) of the text, read only where it is needed")
    tokens_field: str = option("length", "column of the documents' token counts")
    tokenizer: str = option("", "count tokens of the text by this tokenizer instead", reads=True)
    on_bad_row: Literal["error", "skip"] = option("error", "rows that are no documents: an error, or count and skip")
    on_null_rating: Literal["drop", "error"] = option(
        "drop", "documents without a rating: never selected (and counted), or an error"
    )
    on_duplicate_id: Literal["error", "drop"] = option(
        "error", "documents whose id stood before with the same values: an error, or each id counts once"
    )
    deduplicate_text: bool = option(False, "of documents with the same text one counts")


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """What is written."""

    write: Literal["rows", "ids"] = option("rows", "the selected documents, or their ids alone (ids.parquet)")
    format: Literal["parquet", "jsonl.zst"] = option("parquet", "of the documents")
    rows_per_shard: int = option(50_000, "documents of an output file")
    order: Order = option("source", "of the documents, kept over all files")
    order_by: str = option("", "rating whose keys order them instead of the selection's own")
    order_temperature: float | None = option(None, "of `order_by`: perturbed as by `sample`; null: the rating alone")
    compare: tuple[str, ...] = option((), "directories of other selections, for the overlap", reads=True)

    def check_writing(self) -> None:
        """Raises `ValueError` where options contradict each other."""
        if self.rows_per_shard < 1:
            raise ValueError("--rows_per_shard must be at least 1")
        if self.order_by and self.order not in ("key_ascending", "key_descending"):
            raise ValueError("--order_by goes with --order key_ascending or key_descending")
        if self.order_temperature is not None and not self.order_by:
            raise ValueError("--order_temperature goes with --order_by")
        if self.order_temperature is not None and not self.order_temperature >= _LEAST_TEMPERATURE:
            raise ValueError(
                f"--order_temperature must be above 0 (at least {_LEAST_TEMPERATURE}); null orders by the rating alone"
            )


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """How the work is done; none of it changes a result."""

    cache: str = option("", "directory of key files, to keep for other selections; empty: in the output", runtime=True)
    memory_limit: int = option(2 << 30, "bytes of keys in memory at once; above it more passes are made", runtime=True)
    num_workers: int = option(1, "processes that read and copy", runtime=True)
    shard: str = option("", "i/n: copy only the i-th of n equal shares, i from 0", runtime=True)
    rows_per_part: int = option(200_000, "documents that are read and committed at once, at most")
    bytes_per_part: int = option(256 << 20, "bytes of them, at most; a worker holds a few times as much")

    def check_work(self) -> None:
        """Raises `ValueError` for numbers that cannot be."""
        for name in ("memory_limit", "num_workers", "rows_per_part", "bytes_per_part"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SelectOptions(StrategyOptions, BudgetOptions, DocumentOptions, WriteOptions, WorkOptions):
    """All of them."""

    def check(self) -> None:
        """Raises `ValueError` where options contradict each other."""
        self.check_strategy()
        self.check_budget(self.strategy)
        self.check_writing()
        self.check_work()


def parse_weights(entries: Sequence[str], where: str, *, need: bool = False) -> dict[str, float]:
    """`NAME=NUMBER` entries as a mapping; a bare name has the weight 1 unless `need`. `ValueError` names `where`."""
    found: dict[str, float] = {}
    for entry in entries:
        name, sign, number = entry.rpartition("=") if "=" in entry else (entry, "", "1")
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"{where} {entry}: {number!r} is no number") from None
        if not name or (need and not sign):
            raise ValueError(f"{where} {entry}: give NAME=NUMBER")
        if name in found:
            raise ValueError(f"{where} names {name} twice")
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{where} {entry}: {number!r} is no finite number")
        found[name] = value
    return found
