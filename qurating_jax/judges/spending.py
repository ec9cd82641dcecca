"""What a run has cost and may cost."""

from dataclasses import dataclass, field

from qurating_jax.judges.options import JudgeConfig
from qurating_jax.judges.replies import Usage

PER_PRICE_TOKENS = 1_000_000


def cost(judge: JudgeConfig, usage: Usage) -> float:
    """Price of tokens at the user's prices per million; cached prompt tokens at their own."""
    cached = judge.price_input if judge.price_cached is None else judge.price_cached
    fresh_tokens = max(0, usage.prompt_tokens - usage.cached_tokens)
    return (
        fresh_tokens * judge.price_input + usage.cached_tokens * cached + usage.completion_tokens * judge.price_output
    ) / PER_PRICE_TOKENS


@dataclass
class Spending:
    """Requests, tokens and money of a run over all its starts, and where to stop (0: no limit)."""

    max_cost: float = 0.0
    max_requests: int = 0
    num_requests: int = 0
    cost: float = 0.0
    usage: dict[str, Usage] = field(default_factory=dict)

    def add(self, judge: JudgeConfig, usage: Usage) -> None:
        """Counts the tokens of a reply."""
        self.usage[judge.title] = self.usage.get(judge.title, Usage()) + usage
        self.cost += cost(judge, usage)

    def reached(self) -> str | None:
        """The limit that has been reached, in words; None while there is none."""
        if self.max_requests and self.num_requests >= self.max_requests:
            return f"--max_requests {self.max_requests} reached"
        if self.max_cost and self.cost >= self.max_cost:
            return f"--max_cost {self.max_cost:g} reached ({self.cost:.4g} spent)"
        return None
