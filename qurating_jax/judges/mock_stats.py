"""What the mock server saw: a client's promises (nothing is paid twice, limits are kept) are checked against it."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

_SHOWN = 20


class Stats:
    """Counts of requests since the start (or `reset`); times are whole seconds and minutes since the first request.

    An answer is a verdict that was sent, or would have been had the connection held (`lost_reply`): what costs money.
    """

    def __init__(self, log: str = "") -> None:
        """Counts on from the lines of the log, if there is one: `sha256 of the body, time, sent|lost` per answer."""
        self._log = log
        self.reset()
        lines = Path(log).read_text(encoding="utf-8").splitlines() if log and Path(log).exists() else []
        for parts in (line.split() for line in lines):
            if len(parts) == 3:  # a killed server may leave half a line
                self._count(parts[0], is_lost=parts[2] == "lost")

    def reset(self) -> None:
        """Forgets all counts but the requests in flight."""
        self.answered: Counter[str] = Counter()
        self.by_status: Counter[str] = Counter()
        self.by_fault: Counter[str] = Counter()
        self._delivered: set[str] = set()
        self.num_lost = self.num_paid_again = 0
        self._per_second: Counter[int] = Counter()
        self._tokens_per_minute: Counter[int] = Counter()
        self._start = time.monotonic()
        self.num_requests = 0
        self.in_flight = getattr(self, "in_flight", 0)
        self.max_in_flight = self.in_flight

    def arrive(self) -> None:
        """A request came in."""
        if not self.num_requests:
            self._start = time.monotonic()
        self.num_requests += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self._per_second[int(time.monotonic() - self._start)] += 1

    def leave(self, status: str) -> None:
        """A request is done: a status, or how else it ended."""
        self.in_flight -= 1
        self.by_status[status] += 1

    def answer(self, key: str, *, is_lost: bool = False) -> None:
        """A verdict goes out, or is lost on the way."""
        self._count(key, is_lost=is_lost)
        if self._log:
            with open(self._log, "a", encoding="utf-8") as stream:
                stream.write(f"{key} {time.time():.3f} {'lost' if is_lost else 'sent'}\n")

    def _count(self, key: str, *, is_lost: bool) -> None:
        self.answered[key] += 1
        self.num_lost += is_lost
        self.num_paid_again += key in self._delivered
        if not is_lost:
            self._delivered.add(key)

    def add_prompt_tokens(self, num_tokens: int) -> None:
        """A prompt was read."""
        self._tokens_per_minute[int((time.monotonic() - self._start) / 60)] += num_tokens

    def report(self) -> dict[str, Any]:
        """All counts as plain values.

        `answered_more_than_once` counts requests, `repeated` names the first of them; `lost` counts answers that were
        lost on the way, `paid_again` answers to a request that had been answered before and not lost.
        """
        repeated = sorted(key for key, count in self.answered.items() if count > 1)
        return {
            "requests": self.num_requests,
            "answered": self.answered.total(),
            "distinct_answered": len(self.answered),
            "answered_more_than_once": len(repeated),
            "repeated": repeated[:_SHOWN],
            "lost": self.num_lost,
            "paid_again": self.num_paid_again,
            "in_flight": self.in_flight,
            "max_concurrency": self.max_in_flight,
            "by_status": dict(sorted(self.by_status.items())),
            "by_fault": dict(sorted(self.by_fault.items())),
            "per_second": sorted(self._per_second.items()),
            "prompt_tokens_per_minute": sorted(self._tokens_per_minute.items()),
        }


class Budget:
    """A token bucket: `per_minute` amounts a minute, the share of `burst_seconds` at once; 0 is no limit."""

    def __init__(self, per_minute: float, burst_seconds: float) -> None:
        self.per_minute = per_minute
        self._per_second = per_minute / 60
        self._size = max(1.0, self._per_second * burst_seconds)
        self._level, self._time = self._size, time.monotonic()

    def missing_seconds(self, amount: float) -> float:
        """How long a request of `amount` must wait; 0: it fits. One above the bucket's size fits a full bucket."""
        if not self.per_minute:
            return 0.0
        now = time.monotonic()
        self._level = min(self._size, self._level + (now - self._time) * self._per_second)
        self._time = now
        return max(0.0, (min(amount, self._size) - self._level) / self._per_second)

    def take(self, amount: float) -> None:
        """Uses up an amount."""
        self._level -= amount

    def headers(self, name: str) -> tuple[tuple[str, str], ...]:
        """The x-ratelimit headers for `requests` or `tokens`; none without a limit."""
        if not self.per_minute:
            return ()
        return (
            (f"x-ratelimit-limit-{name}", f"{self.per_minute:.0f}"),
            (f"x-ratelimit-remaining-{name}", f"{max(self._level, 0):.0f}"),
            (f"x-ratelimit-reset-{name}", f"{max(0.0, (self._size - self._level) / self._per_second):.3f}s"),
        )
