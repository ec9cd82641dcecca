"""How many requests may be under way: a sliding window that finds its size, budgets per minute, pauses.

The window follows inspect's adaptive connections: it doubles until the server first says 429, is cut to four fifths
once per episode of 429s, and grows by a fixed step after. Only answers count for growth, and only when the window was
full; errors of the server (5xx) change nothing. Nothing polls: a request waits for a slot, or for the one known moment
at which a pause ends or a budget has room.
"""

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

# A minute and a second: two requests sent 60 s apart may arrive closer, because they travel at different speeds.
WINDOW_SECONDS = 61.0
# Budgets are spread over the minute; this much of it may go at once. Servers check shorter spans than a minute too.
BURST_SECONDS = 6.0
START_REQUESTS = 8
SHRINK = 0.8
COOLDOWN_SECONDS = 2.0  # the window stays as it is for so long after a pause; longer, and rare 429s would freeze it
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0  # where the server names no time
LONGEST_RETRY_SECONDS = 86_400.0

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|us|µs|ns|d|h|m|s)")
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Stopped(Exception):
    """No request starts any more: the run is stopping."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the window: when (the limiter's clock), from how many requests to how many, and why."""

    seconds: float
    old: int
    new: int
    reason: str


class _Budget:
    """At most `per_minute` units in any `WINDOW_SECONDS`, by a log of what was taken, and spread over the minute.

    The log gives the guarantee; the spreading is the generic cell rate algorithm: `_even_seconds` is when all that was
    taken would be done at an even pace, and the next may run ahead of it by `BURST_SECONDS`.
    """

    def __init__(self, per_minute: float) -> None:
        self._most = per_minute
        self._seconds_per_unit = 60.0 / per_minute
        self._even_seconds = -math.inf
        self._log: deque[list[float]] = deque()  # [seconds, units], oldest first
        self._taken = 0.0  # sum of the log's units

    def ready_seconds(self, units: float, now: float) -> float:
        """The earliest time for `units`; more than the whole budget waits for an empty log and so goes alone."""
        self._forget(now)
        ready = self._even_seconds - BURST_SECONDS
        excess = self._taken + units - self._most
        for seconds, taken in self._log:
            if excess <= 0:
                break
            excess -= taken
            ready = max(ready, seconds + WINDOW_SECONDS)
        return ready

    def take(self, units: float, now: float) -> None:
        self._log.append([now, units])
        self._taken += units
        self._even_seconds = max(self._even_seconds, now) + units * self._seconds_per_unit

    def correct(self, difference: float, now: float) -> None:
        """Takes `difference` more, or gives it back to the oldest in the log, which leave first (never too soon)."""
        if difference > 0:
            self.take(difference, now)
            return
        self._forget(now)
        self._even_seconds += difference * self._seconds_per_unit
        surplus = -difference
        while surplus > 0 and self._log:
            oldest = self._log[0]
            given = min(oldest[1], surplus)
            oldest[1] -= given
            self._taken -= given
            surplus -= given
            if oldest[1] == 0:
                self._log.popleft()

    def _forget(self, now: float) -> None:
        while self._log and self._log[0][0] + WINDOW_SECONDS <= now:
            self._taken -= self._log.popleft()[1]


class Limiter:
    """Lets requests start, first come first served; for one event loop.

    Each request calls `acquire`, then `limited` if it met a 429, `settle` if its usage is known, and `release`.
    """

    def __init__(
        self,
        *,
        most: int,
        start: int | None = None,
        requests_per_minute: float = 0,
        tokens_per_minute: float = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Sets the limiter up.

        Args:
            most: requests under way at once, never more.
            start: the window at first (default: 8, or `most` if that is less).
            requests_per_minute: starts in any 60 seconds, at most; 0 = no budget.
            tokens_per_minute: tokens of the requests that start in any 60 seconds, at most; 0 = no budget. It holds
                for the estimates given to `acquire`, and for the tokens used by requests that `settle` in a minute.
            clock: seconds that only grow.
            sleep: waits for so many seconds of `clock`.

        Raises:
            ValueError: a value out of range.
        """
        start = min(START_REQUESTS, most) if start is None else start
        if not 1 <= start <= most:
            raise ValueError(f"1 <= start <= most expected, got start {start} and most {most}")
        for budget in (requests_per_minute, tokens_per_minute):
            if not (budget == 0 or 1 <= budget < math.inf):
                raise ValueError(f"a budget per minute is 0 (none) or at least 1, got {budget}")
        self.limit = start
        self.num_in_flight = 0
        self.history: list[Change] = []
        self._most, self._clock, self._sleep = most, clock, sleep
        self._requests = _Budget(requests_per_minute) if requests_per_minute else None
        self._tokens = _Budget(tokens_per_minute) if tokens_per_minute else None
        self._waiting: deque[tuple[asyncio.Future[int], int]] = deque()
        self._timer: asyncio.Task[None] | None = None
        self._timer_seconds = math.inf
        self._stopped = False
        self._num_started = 0
        # Growth: doubling until the first 429; answers since the last change, counted from `_grow_seconds` on.
        self._doubling, self._num_answered, self._grow_seconds = True, 0, -math.inf
        # 429s: requests before `_episode_end` belong to the last episode; pauses without a given time double.
        self._episode_end, self._num_episodes = 0, 0
        self._paused_until, self._pause_total = -math.inf, 0.0

    @property
    def paused_seconds(self) -> float:
        """How long starts were paused until now, in all."""
        return self._pause_total - max(0.0, self._paused_until - self._clock())

    async def acquire(self, num_tokens: int) -> int:
        """Waits until a request of `num_tokens` may start, and counts it as started.

        Returns:
            The request's number, which `limited` takes.

        Raises:
            Stopped: the limiter was stopped.
            ValueError: `num_tokens` is negative.
        """
        if num_tokens < 0:
            raise ValueError(f"num_tokens must not be negative, got {num_tokens}")
        if self._stopped:
            raise Stopped
        if not self._waiting and self.num_in_flight < self.limit:
            now = self._clock()
            if self._ready_seconds(num_tokens, now) <= now:
                return self._start(num_tokens, now)
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((waiter, num_tokens))
        self._admit()
        try:
            return await waiter
        except asyncio.CancelledError:
            # Let in and cancelled before it ran: the slot goes back (the budgets keep the charge, to be safe).
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.num_in_flight -= 1
            self._admit()
            raise

    def release(self, *, answered: bool) -> None:
        """Frees a request's slot; `answered` (a usable reply came) counts for growth.

        Raises:
            ValueError: no request is under way.
        """
        if self.num_in_flight == 0:
            raise ValueError("released more often than acquired")
        if answered:
            self._count_answer()
        self.num_in_flight -= 1
        if self._waiting:
            self._admit()

    def limited(self, retry_after_seconds: float | None, number: int | None = None) -> None:
        """Heeds a 429: pauses all starts, and cuts the window once per episode.

        Args:
            retry_after_seconds: as the server said; None or 0 gives a pause that doubles with each episode.
            number: what `acquire` returned. Requests that started before the last cut belong to its episode; without
                a number, 429s that arrive during the pause do.
        """
        now = self._clock()
        same_episode = now < self._paused_until if number is None else number < self._episode_end
        if not same_episode:
            self._episode_end = self._num_started
            self._num_episodes += 1
            self._doubling = False
            self._resize(max(1, int(self.limit * SHRINK)), now, "limited")
        seconds = retry_after_seconds or min(
            FIRST_PAUSE_SECONDS * 2.0 ** min(max(self._num_episodes - 1, 0), 30), LONGEST_PAUSE_SECONDS
        )
        if now + seconds > self._paused_until:  # a pause is never made shorter
            self._pause_total += now + seconds - max(now, self._paused_until)
            self._paused_until = now + seconds
        self._grow_seconds = self._paused_until + COOLDOWN_SECONDS

    def settle(self, estimated_tokens: int, used_tokens: int) -> None:
        """Corrects the token budget by what an answered request has used."""
        if self._tokens is not None:
            self._tokens.correct(used_tokens - estimated_tokens, self._clock())
            if used_tokens < estimated_tokens and self._waiting:
                self._admit()

    def stop(self) -> None:
        """Ends all waiting: waiters and later calls of `acquire` raise `Stopped`. Requests under way may go on."""
        self._stopped = True
        self._set_timer(math.inf)
        while self._waiting:
            waiter, _ = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(Stopped())

    def _ready_seconds(self, num_tokens: int, now: float) -> float:
        """The earliest time at which pause and budgets let a request start, given a slot."""
        ready = self._paused_until
        if self._requests is not None:
            ready = max(ready, self._requests.ready_seconds(1, now))
        if self._tokens is not None:
            ready = max(ready, self._tokens.ready_seconds(num_tokens, now))
        return ready

    def _start(self, num_tokens: int, now: float) -> int:
        self.num_in_flight += 1
        if self._requests is not None:
            self._requests.take(1, now)
        if self._tokens is not None:
            self._tokens.take(num_tokens, now)
        number = self._num_started
        self._num_started += 1
        return number

    def _admit(self, due_seconds: float = -math.inf) -> None:
        """Starts waiters in order as far as possible; sets the timer when the first one waits for a known time.

        Timers may fire a hair early, so the time is at least `due_seconds`, for which was slept.
        """
        now = max(self._clock(), due_seconds)
        while self._waiting and self.num_in_flight < self.limit:
            waiter, num_tokens = self._waiting[0]
            if not waiter.done():  # else it was cancelled
                ready = self._ready_seconds(num_tokens, now)
                if ready > now:
                    self._set_timer(ready)
                    return
                waiter.set_result(self._start(num_tokens, now))
            self._waiting.popleft()
        self._set_timer(math.inf)  # nobody waits, or for a slot

    def _set_timer(self, seconds: float) -> None:
        """Has `_admit` called at `seconds`, the only such time (inf: never)."""
        if seconds == self._timer_seconds:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_seconds = seconds
        self._timer = None if seconds == math.inf else asyncio.get_running_loop().create_task(self._wake(seconds))

    async def _wake(self, seconds: float) -> None:
        await self._sleep(max(0.0, seconds - self._clock()))
        self._timer, self._timer_seconds = None, math.inf
        self._admit(seconds)

    def _count_answer(self) -> None:
        """Grows the window after as many answers as it holds, if it was full (an idle window proves nothing)."""
        now = self._clock()
        if now >= self._paused_until:
            self._num_episodes = 0
        if self.limit == self._most or self.num_in_flight < self.limit or now < self._grow_seconds:
            return
        self._num_answered += 1
        if self._num_answered >= self.limit:
            # A 32nd of the cap, so that large windows come back in a time like that of small ones.
            step = self.limit if self._doubling else max(1, self._most // 32)
            self._resize(min(self.limit + step, self._most), now, "answered")

    def _resize(self, new: int, now: float, reason: str) -> None:
        if new != self.limit:
            self.history.append(Change(now, self.limit, new, reason))
        self.limit, self._num_answered = new, 0


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """How long a server asks to wait, by its headers (names in any case), at most a day.

    `retry-after-ms`, then `Retry-After` (seconds or a date), then the longest `x-ratelimit-reset-requests|tokens` of
    those whose `remaining` is 0. What cannot be read is passed over; a date that has passed is 0.

    Args:
        headers: of the reply.
        now: Unix time, for dates.

    Returns:
        Seconds, finite and at least 0, or None where no header says.
    """
    lower = {name.lower(): value.strip() for name, value in headers.items()}
    seconds: float | None = None
    if _NUMBER.fullmatch(lower.get("retry-after-ms", "")):
        seconds = float(lower["retry-after-ms"]) / 1000.0
    if seconds is None and "retry-after" in lower:
        seconds = _seconds_or_date(lower["retry-after"], now)
    if seconds is None:
        resets = [
            _duration_seconds(lower.get(f"x-ratelimit-reset-{what}", ""))
            for what in ("requests", "tokens")
            if lower.get(f"x-ratelimit-remaining-{what}") == "0"
        ]
        seconds = max((reset for reset in resets if reset is not None), default=None)
    return None if seconds is None else min(seconds, LONGEST_RETRY_SECONDS)


def _seconds_or_date(value: str, now: float) -> float | None:
    if _NUMBER.fullmatch(value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _duration_seconds(value: str) -> float | None:
    """A duration as OpenAI writes it ("1s", "6m0s", "120ms"), or a plain number of seconds."""
    if _NUMBER.fullmatch(value):
        return float(value)
    parts = _DURATION_PART.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        return None
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
