"""Settings of judging: plain dataclasses that `judge run` and `judge batch submit` share, so that both mean one run."""

import re
from dataclasses import dataclass, fields
from typing import Literal
from urllib.parse import urlsplit

from qurating_jax.config import decode, identity, load, load_yaml, option
from qurating_jax.judges import criteria as known
from qurating_jax.runtime.errors import UsageError

OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who judges: text statistics, a column of known scores, or a language model behind an endpoint."""

    kind: Literal["offline", "column", "openai"] = option(
        "offline", "offline: text statistics, no LLM; column: known scores; openai: an OpenAI-compatible endpoint"
    )
    temperature: float = option(0.5, "offline: difference in strength that counts one logit")
    noise: float = option(0.5, "offline: standard deviation of a verdict's noise, in logits")
    position_bias: float = option(0.25, "offline: logits in favour of the text shown first")
    score_field: str = option("", "column: field with the score of a document, higher is better")
    criterion: str = option("", "column: name of the criterion that the score stands for")
    scale: float = option(1.0, "column: difference in score that counts one logit")

    model: str = option("", "openai: the model's name at the endpoint")
    base_url: str = option(OPENAI_URL, "openai: the endpoint, up to and with `/v1`")
    name: str = option("", "openai: the judge's name in the outputs; empty: the model's")
    key_env: str = option("", "openai: environment variable with the key; empty: OPENAI_API_KEY for OpenAI, else none")
    method: Literal["auto", "logprobs", "samples"] = option(
        "auto", "openai: probabilities of the labels, or votes; auto: logprobs where the endpoint has them"
    )
    samples: int = option(20, "openai: generations per question where votes are counted")
    sampling_temperature: float = option(1.0, "openai: temperature of those generations")
    max_tokens: int = option(0, "openai: longest answer; 0: 1 for logprobs, 16 for samples (reasoning needs more)")
    reasoning_effort: str = option("", "openai: sent as it is where given (`none`, `low`, ...)")
    top_logprobs: int = option(20, "openai: alternatives asked for at the answer's first token")
    min_mass: float = option(0.5, "openai: least probability on the labels; below, a verdict is flagged and left out")
    constrain: Literal["none", "logit_bias", "vllm_choice"] = option(
        "none", "openai: hold the answer to the labels by logit_bias (needs judge.tokenizer) or vLLM's choice"
    )
    tokenizer: str = option("", "openai: the judge's own tokenizer (directory, file, hub id), for logit_bias")
    concurrency: int = option(32, "openai: most requests under way at once", runtime=True)
    rpm: float = option(0.0, "openai: requests per minute; 0: no such limit", runtime=True)
    tpm: float = option(0.0, "openai: tokens per minute, prompt and answer; 0: no such limit", runtime=True)
    timeout_seconds: float = option(120.0, "openai: longest wait for an answer", runtime=True)
    max_attempts: int = option(6, "openai: attempts per request before it counts as failed", runtime=True)
    max_wait_seconds: float = option(30.0, "openai: longest pause between two attempts of one request", runtime=True)
    price_input: float = option(0.0, "openai: price of a million prompt tokens", runtime=True)
    price_cached: float | None = option(None, "openai: of a million cached ones; null: as price_input", runtime=True)
    price_output: float = option(0.0, "openai: price of a million answer tokens", runtime=True)

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.noise >= 0 and self.scale > 0):
            raise ValueError("judge.temperature and judge.scale must be positive, judge.noise at least 0")
        if self.kind == "column" and not (self.score_field and re.fullmatch(r"[a-z][a-z0-9_]*", self.criterion)):
            raise ValueError("judge.kind column needs judge.score_field and judge.criterion (a name like `easiness`)")
        if self.kind != "column" and (self.score_field or self.criterion):
            raise ValueError("judge.score_field and judge.criterion need judge.kind column")
        if self.kind != "openai" and self.model:
            raise ValueError("judge.model needs judge.kind openai")
        if self.kind == "openai":
            self._check_endpoint()

    def _check_endpoint(self) -> None:
        if not self.model:
            raise ValueError("judge.kind openai needs judge.model, the model's name at the endpoint")
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.password or url.query:
            raise ValueError(f"judge.base_url {self.base_url!r} is no endpoint like {OPENAI_URL} (without a key)")
        if self.key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_env):
            raise ValueError("judge.key_env is the NAME of an environment variable, never a key")
        if min(self.samples, self.concurrency, self.max_attempts, self.top_logprobs) < 1 or self.max_tokens < 0:
            raise ValueError("judge.samples, concurrency, max_attempts and top_logprobs must be at least 1")
        if not 0 < self.min_mass <= 1 or self.sampling_temperature < 0:
            raise ValueError("judge.min_mass must lie in 0..1 (0 excluded), sampling_temperature must not be negative")
        if any(limit and limit < 1 for limit in (self.rpm, self.tpm)):
            raise ValueError("judge.rpm and judge.tpm are 0 (no limit) or at least 1")
        if min(self.price_input, self.price_output, self.price_cached or 0) < 0:
            raise ValueError("prices must not be negative")
        if min(self.timeout_seconds, self.max_wait_seconds) <= 0:
            raise ValueError("judge.timeout_seconds and judge.max_wait_seconds must be positive")
        if self.constrain == "logit_bias" and not self.tokenizer:
            raise ValueError("judge.constrain logit_bias needs judge.tokenizer, the judge's own, for token ids")

    @property
    def title(self) -> str:
        """The judge's name in the outputs."""
        return self.name or self.model

    @property
    def has_prices(self) -> bool:
        """True where the user gave prices, so that tokens can be money."""
        return bool(self.price_input or self.price_output)


@dataclass(frozen=True, kw_only=True)
class JudgingOptions:
    """What is judged, in which pairs, by whom."""

    input: tuple[str, ...] = option((), "documents: files, globs, directories, hf:// ids", reads=True)
    criteria: tuple[str, ...] = option(known.NAMES, "names of criteria, or files of your own (`criteria list`)")
    judge: JudgeConfig = JudgeConfig()
    more_judges: tuple[str, ...] = option((), "YAML files, each with the `judge` settings of one more LLM judge")
    aggregate: Literal["mean", "majority"] = option("mean", "several judges: mean probability, or one vote each")
    mode: Literal["pairwise", "individual"] = option("pairwise", "openai: compare pairs, or grade texts one by one")
    layout: Literal["criterion_first", "documents_first"] = option(
        "criterion_first", "openai: what comes first in a prompt; documents_first lets criteria share a cached prefix"
    )
    tokenizer: str = option("", "tokenizer that excerpts are measured with: directory, file or hub id", reads=True)
    design: Literal["adjacent", "random", "within_domain", "across_domain"] = option(
        "random", "which documents meet: neighbours in the input, any, of one domain, of different domains"
    )
    degree: int = option(1, "groups that each document is in; 2 and more make a connected design (a ranking)")
    num_pairs: int = option(0, "groups of texts to judge; 0: as many as `degree` gives")
    group_size: int = option(2, "texts in a group; all its ordered pairs are judged")
    previous: str = option("", "an earlier run: its groups stay, its answers are not paid again", reads=True)
    num_repeats: int = option(0, "openai: groups asked twice, for the test-retest noise")
    num_canaries: int = option(0, "openai: groups asked again with an injected command, for the flip rate")
    shard: str = option("0/1", "openai: i/n asks the i-th of n parts of the groups (`judge merge` joins them)")
    tokens_min: int = option(256, "shortest excerpt; shorter documents are left out")
    tokens_max: int = option(512, "longest excerpt, and the length of half of them")
    whole_documents: bool = option(False, "judge whole documents: no excerpts, no tokenizer")
    text_field: str = option("text", "field of the text; dots reach nested fields")
    id_field: str = option("id", "field of the document id; without it the id is a hash of the text")
    domain_field: str = option("domain", "field of the domain")
    on_bad_row: Literal["error", "skip"] = option("error", "rows that are no documents: stop, or count and skip")
    max_cost: float = option(0.0, "openai: stop when so much money is spent in all (exit 4); 0: no limit", runtime=True)
    max_requests: int = option(0, "openai: stop after so many requests in all (exit 4); 0: no limit", runtime=True)
    retry_failed: bool = option(True, "openai: ask again what failed in an earlier start of the run", runtime=True)
    allow_unresolved: float = option(0.0, "openai: share of verdicts that may lack without exit 3", runtime=True)

    def __post_init__(self) -> None:
        if self.judge.kind == "column" and self.criteria != known.NAMES:
            raise ValueError("a column is judged on judge.criterion; leave `criteria` out")
        if self.judge.kind == "offline":
            known.by_name(self.criteria)
        if not 1 <= self.tokens_min <= self.tokens_max:
            raise ValueError("1 <= tokens_min <= tokens_max expected; whole_documents judges without excerpts")
        if self.num_pairs < 0 or self.group_size < 2 or self.degree < 1:
            raise ValueError("num_pairs >= 0, group_size >= 2 and degree >= 1 expected")
        if self.num_pairs and self.degree > 1:
            raise ValueError("num_pairs and degree both say how many groups there are; give one of them")
        if min(self.num_repeats, self.num_canaries, self.max_cost, self.max_requests) < 0:
            raise ValueError("num_repeats, num_canaries, max_cost and max_requests must not be negative")
        if not 0 <= self.allow_unresolved <= 1:
            raise ValueError("allow_unresolved is a share, 0..1")
        shard_of(self.shard)
        if self.judge.kind != "openai":
            self._refuse_llm_options()

    def _refuse_llm_options(self) -> None:
        given = [name for name in ("num_repeats", "num_canaries", "max_cost", "max_requests") if getattr(self, name)]
        given += ["more_judges"] * bool(self.more_judges) + ["shard"] * (self.shard != "0/1")
        given += ["mode"] * (self.mode != "pairwise") + ["layout"] * (self.layout != "criterion_first")
        if given:
            raise ValueError(f"{', '.join(given)}: for language models; judge.kind is {self.judge.kind}, not openai")

    def judges(self) -> tuple[JudgeConfig, ...]:
        """All judges of the run, those of `more_judges` read from their files.

        Raises:
            UsageError: a file that is no judge's, two judges of one name, a cost limit without prices.
        """
        found = (self.judge, *(load(JudgeConfig, path) for path in self.more_judges))
        for path, judge in zip(self.more_judges, found[1:], strict=True):
            if judge.kind != "openai":
                raise UsageError(f"{path}: more judges are language models (kind: openai), not {judge.kind}")
        names = [judge.title for judge in found]
        if len(set(names)) < len(names):
            raise UsageError(f"two judges of one name ({', '.join(names)}); set `name` in one of them")
        asked = [identity_of(judge) | {"name": ""} for judge in found]
        if any(one in asked[:number] for number, one in enumerate(asked)):
            raise UsageError("two judges are the same model with the same settings; its answers would count twice")
        if self.max_cost and not all(judge.has_prices for judge in found):
            raise UsageError("--max_cost needs judge.price_input and judge.price_output of every judge")
        return found


def shard_of(text: str) -> tuple[int, int]:
    """`i/n` as two numbers with 0 <= i < n; raises ValueError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if not index < count:
        raise ValueError(f"shard {text!r} is not i/n with 0 <= i < n, like 0/4")
    return index, count


def identity_of(judge: JudgeConfig) -> dict[str, object]:
    """What of a judge's settings can change its answers (limits, prices and the key's name cannot)."""
    return identity(judge) | {"key_env": ""}


def recorded(path: str) -> JudgingOptions:
    """The options of a run from its `config.yaml`, for the commands that work on its directory (`UsageError`)."""
    names = {one.name for one in fields(JudgingOptions)}
    values = {name: value for name, value in load_yaml(path).items() if name in names}
    return decode(JudgingOptions, values, where=path)
