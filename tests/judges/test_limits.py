"""The limiter in virtual time: the clock jumps to the next timer, and the loop fails if nothing can ever wake it."""

import asyncio
import math
import selectors
import time
from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.judges.limits import Limiter, Stopped, retry_after_seconds


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.now = 1000.0
        selector = selectors.SelectSelector()
        wait = selector.select

        def select(timeout=None):
            assert timeout is not None, "lost wake-up: tasks wait, and no timer runs"
            self.now += max(timeout, 0.0)
            return wait(0)

        selector.select = select
        super().__init__(selector)

    def time(self):
        return self.now


def run(scenario):
    """Runs `scenario(loop)` in virtual time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(scenario(loop))
    finally:
        loop.close()


def limiter_of(loop, **options):
    return Limiter(clock=loop.time, **options)


class Traffic:
    """Requests of a fixed duration through a limiter; keeps what happened."""

    def __init__(self, loop, limiter, seconds=1.0):
        self.loop, self.limiter, self.seconds = loop, limiter, seconds
        self.starts, self.order, self.most = [], [], 0

    async def request(self, name=None, tokens=0, seconds=None):
        await self.limiter.acquire(tokens)
        self.starts.append(self.loop.time())
        self.order.append(name)
        self.most = max(self.most, self.limiter.num_in_flight)
        assert self.limiter.num_in_flight <= self.limiter.limit
        await asyncio.sleep(self.seconds if seconds is None else seconds)
        self.limiter.release(answered=True)

    async def run(self, count, **options):
        await asyncio.gather(*(self.request(name, **options) for name in range(count)))


def most_in_window(times, amounts, seconds=60.0):
    """The largest sum of amounts over all closed windows, by brute force over their starts."""
    sums = [0.0]
    for amount in amounts:
        sums.append(sums[-1] + amount)
    return max(sums[bisect_left(times, begin + seconds + 1e-9)] - sums[i] for i, begin in enumerate(times))


# --- the window -------------------------------------------------------------------------------------------------------


def test_never_above_the_cap_and_first_come_first_served():
    async def scenario(loop):
        traffic = Traffic(loop, limiter_of(loop, most=7, start=7))
        await traffic.run(50)
        assert traffic.most == 7
        assert traffic.order == list(range(50))
        assert traffic.limiter.num_in_flight == 0
        assert loop.time() == pytest.approx(1000.0 + math.ceil(50 / 7))

    run(scenario)


def test_the_window_slides_and_does_not_wait_for_a_batch():
    async def scenario(loop):
        traffic = Traffic(loop, limiter_of(loop, most=2, start=2))
        slow = asyncio.create_task(traffic.request("slow", seconds=100.0))
        await asyncio.sleep(0)
        await traffic.run(10)
        assert loop.time() == pytest.approx(1010.0)  # one slot was left, and it was never idle
        assert not slow.done()
        await slow

    run(scenario)


def test_the_window_doubles_at_first():
    async def scenario(loop):
        traffic = Traffic(loop, limiter_of(loop, most=40, start=5))
        await traffic.run(300)
        assert [(change.old, change.new) for change in traffic.limiter.history] == [(5, 10), (10, 20), (20, 40)]
        assert [change.reason for change in traffic.limiter.history] == ["answered"] * 3
        assert traffic.most == 40

    run(scenario)


def test_a_window_that_is_not_full_does_not_grow():
    async def scenario(loop):
        limiter = limiter_of(loop, most=40, start=5)
        for _ in range(200):
            await limiter.acquire(0)
            limiter.release(answered=True)
        assert limiter.limit == 5

    run(scenario)


def test_failures_neither_grow_nor_shrink_the_window():
    async def scenario(loop):
        limiter = limiter_of(loop, most=40, start=2)
        for _ in range(50):
            await asyncio.gather(limiter.acquire(0), limiter.acquire(0))
            limiter.release(answered=False)
            limiter.release(answered=False)
        assert limiter.limit == 2
        assert limiter.history == []

    run(scenario)


def test_one_cut_per_episode():
    async def scenario(loop):
        limiter = limiter_of(loop, most=10, start=10)
        numbers = [await limiter.acquire(0) for _ in range(10)]
        for number in numbers[:9]:
            limiter.limited(1.0, number)
            limiter.release(answered=False)
        assert limiter.limit == 8
        await asyncio.sleep(5.0)
        new = await limiter.acquire(0)
        limiter.limited(1.0, numbers[9])  # late, but it started before the cut
        assert limiter.limit == 8
        limiter.limited(1.0, new)
        assert limiter.limit == 6
        assert [(change.old, change.new, change.reason) for change in limiter.history] == [
            (10, 8, "limited"),
            (8, 6, "limited"),
        ]
        assert [change.seconds for change in limiter.history] == [1000.0, 1005.0]

    run(scenario)


def test_without_numbers_the_pause_bounds_the_episode():
    async def scenario(loop):
        limiter = limiter_of(loop, most=10, start=10)
        limiter.limited(2.0)
        await asyncio.sleep(1.0)
        limiter.limited(0.5)
        assert limiter.limit == 8
        await asyncio.sleep(1.5)
        limiter.limited(2.0)
        assert limiter.limit == 6

    run(scenario)


@pytest.mark.parametrize("cap", [8, 32, 1000])
def test_recovery_to_the_cap_after_sustained_limiting(cap):
    async def scenario(loop):
        limiter = limiter_of(loop, most=cap, start=cap)
        for _ in range(100):  # every request is refused, minute after minute
            number = await limiter.acquire(0)
            limiter.limited(0.5, number)
            limiter.release(answered=False)
        assert limiter.limit == 1
        begin = loop.time()
        traffic = Traffic(loop, limiter, seconds=0.1)
        while limiter.limit < cap:
            await traffic.run(4 * cap)
        # 15 s of cooldown, then at most 32 steps (or as many as the cap) of a round trip each, and a rest per batch.
        assert loop.time() - begin < 15.0 + 0.1 * (2 * min(cap, 32) + 20)
        assert traffic.most <= cap

    run(scenario)


def test_no_growth_during_the_cooldown():
    async def scenario(loop):
        limiter = limiter_of(loop, most=32, start=32)
        limiter.limited(2.0, await limiter.acquire(0))
        limiter.release(answered=False)
        traffic = Traffic(loop, limiter, seconds=0.5)
        await traffic.run(25 * 3)  # 2 s of pause, 1.5 s of traffic
        assert loop.time() == pytest.approx(1003.5)
        assert limiter.limit == 25
        await traffic.run(25 * 28)
        assert [(change.old, change.new) for change in limiter.history[1:]] == [(i, i + 1) for i in range(25, 32)]

    run(scenario)


# --- pauses -----------------------------------------------------------------------------------------------------------


def test_a_pause_holds_everyone_for_its_time_even_300_seconds():
    async def scenario(loop):
        traffic = Traffic(loop, limiter_of(loop, most=4, start=4))
        limiter = traffic.limiter
        first = asyncio.create_task(traffic.run(30))
        await asyncio.sleep(0.5)
        limiter.limited(300.0)
        limiter.limited(1.0)  # never shorter
        limiter.limited(None)
        assert limiter.limit == 3
        await first
        assert [seconds for seconds in traffic.starts if 1000.0 < seconds < 1300.5] == []
        assert sum(seconds == 1000.0 for seconds in traffic.starts) == 4
        assert min(seconds for seconds in traffic.starts if seconds > 1000.0) == pytest.approx(1300.5)
        assert limiter.paused_seconds == pytest.approx(300.0)

    run(scenario)


def test_pauses_extend_and_are_counted_once():
    async def scenario(loop):
        limiter = limiter_of(loop, most=4, start=4)
        limiter.limited(10.0)
        await asyncio.sleep(4.0)
        assert limiter.paused_seconds == pytest.approx(4.0)
        limiter.limited(10.0)
        await asyncio.sleep(100.0)
        assert limiter.paused_seconds == pytest.approx(14.0)
        limiter.limited(3.0)
        await limiter.acquire(0)
        assert loop.time() == pytest.approx(1107.0)
        assert limiter.paused_seconds == pytest.approx(17.0)

    run(scenario)


@pytest.mark.parametrize("said", [None, 0.0])
def test_without_a_time_the_pauses_double_up_to_a_minute_and_start_over(said):
    async def scenario(loop):
        limiter = limiter_of(loop, most=4, start=4)
        pauses = []
        for _ in range(9):
            number = await limiter.acquire(0)
            begin = loop.time()
            limiter.limited(said, number)
            limiter.limited(said, number)  # the same episode: the same pause
            limiter.release(answered=False)
            await limiter.acquire(0)
            pauses.append(loop.time() - begin)
            limiter.release(answered=False)
        assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])
        for answered_in_pause, pause in [(True, 60.0), (False, 60.0), (False, 1.0)]:
            # An answer during the pause is an old request's: no sign of better times. One after it is.
            if pause == 1.0:
                await limiter.acquire(0)
                limiter.release(answered=True)
            begin, number = loop.time(), await limiter.acquire(0)
            limiter.limited(said, number)
            limiter.release(answered=answered_in_pause)
            await limiter.acquire(0)
            assert loop.time() - begin == pytest.approx(pause)
            limiter.release(answered=False)

    run(scenario)


# --- budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_minute", [1, 1.5, 7, 60, 600])
def test_requests_in_any_minute(per_minute):
    async def scenario(loop):
        traffic = Traffic(loop, limiter_of(loop, most=1000, start=1000, requests_per_minute=per_minute), seconds=0.3)
        count = max(6, int(4 * per_minute))
        await traffic.run(count)
        starts = traffic.starts
        assert len(starts) == count
        assert most_in_window(starts, [1] * count) <= per_minute
        # At a server that is 0.9 s away at first and at once later: still within the budget.
        assert most_in_window(sorted(s + 0.9 * (i % 2) for i, s in enumerate(starts)), [1] * count) <= per_minute
        # The budget is used: no slower than 61 s for each full budget after the first.
        assert starts[-1] - starts[0] <= 61.0 * math.ceil(count / int(per_minute))
        assert most_in_window(starts, [1] * count, seconds=5.0) <= max(1.5, per_minute * (11.0 / 60.0 + 0.01) + 1)

    run(scenario)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 700), st.floats(0, 20), st.floats(0.01, 50)), min_size=1, max_size=80),
    st.integers(300, 1000),
    st.integers(1, 40),
)
def test_tokens_and_requests_in_any_minute_whatever_the_traffic(requests, tokens_per_minute, requests_per_minute):
    async def scenario(loop):
        limiter = limiter_of(
            loop,
            most=10,
            start=10,
            tokens_per_minute=tokens_per_minute,
            requests_per_minute=requests_per_minute,
        )
        starts = []

        async def request(tokens, duration):
            await limiter.acquire(tokens)
            starts.append((loop.time(), tokens))
            await asyncio.sleep(duration)
            limiter.settle(tokens, tokens // 2)
            limiter.release(answered=True)

        tasks = []
        for tokens, wait, duration in requests:
            await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(request(tokens, duration)))
        await asyncio.gather(*tasks)
        times = [seconds for seconds, _ in starts]
        assert most_in_window(times, [1] * len(times)) <= requests_per_minute
        # A request above the whole budget goes alone: its minute holds nothing else.
        used = [tokens // 2 for _, tokens in starts]
        assert most_in_window(times, used) <= max(tokens_per_minute, *used)

    run(scenario)


def test_a_request_above_the_whole_budget_goes_alone():
    async def scenario(loop):
        limiter = limiter_of(loop, most=10, start=10, tokens_per_minute=100)
        traffic = Traffic(loop, limiter, seconds=0.1)
        await asyncio.gather(
            traffic.request("small", tokens=50), traffic.request("huge", tokens=1000), traffic.request("last", tokens=1)
        )
        assert traffic.order == ["small", "huge", "last"]
        assert traffic.starts[1] == pytest.approx(1061.0)
        assert traffic.starts[2] >= 1121.0

    run(scenario)


def test_settling_gives_tokens_back_and_takes_more():
    async def scenario(loop):
        limiter = limiter_of(loop, most=10, start=10, tokens_per_minute=100)
        await limiter.acquire(100)
        waiter = asyncio.create_task(limiter.acquire(90))
        await asyncio.sleep(30.0)
        assert not waiter.done()
        limiter.settle(100, 10)
        await waiter
        assert loop.time() == 1030.0  # at once: 10 + 90 tokens in this minute
        limiter.settle(90, 100)
        await limiter.acquire(1)
        assert loop.time() >= 1091.0  # 10 over: nothing until the 100 of 1030 are a minute old

    run(scenario)


def test_tokens_given_back_are_never_free_too_soon():
    async def scenario(loop):
        limiter = limiter_of(loop, most=10, start=10, tokens_per_minute=100)
        await limiter.acquire(40)
        await asyncio.sleep(20.0)
        await limiter.acquire(60)
        await asyncio.sleep(10.0)
        limiter.settle(40, 0)
        await limiter.acquire(40)
        assert loop.time() == 1030.0
        await limiter.acquire(1)
        assert loop.time() == 1081.0  # 60 and 40 fill the budget until the 60 are a minute old

    run(scenario)


def test_time_is_waited_for_once_not_polled():
    async def scenario(loop):
        sleeps = []

        async def sleep(seconds):
            sleeps.append(seconds)
            await asyncio.sleep(seconds - 1e-8)  # timers may fire a hair early

        limiter = Limiter(most=5, start=5, requests_per_minute=4, clock=loop.time, sleep=sleep)
        for _ in range(3):
            await limiter.acquire(0)
        assert sleeps == pytest.approx([9.0, 15.0])  # 15 s apart, the second 6 s early
        sleeps.clear()
        limiter.limited(300.0)
        waiting = [asyncio.create_task(limiter.acquire(0)) for _ in range(3)]
        for _ in range(3):
            await asyncio.sleep(1.0)
            limiter.release(answered=True)
        await asyncio.gather(*waiting)
        assert sleeps == pytest.approx([300.0, 9.0, 15.0])

    run(scenario)


def test_a_request_waits_once_until_enough_of_the_log_is_a_minute_old():
    async def scenario(loop):
        sleeps = []

        async def sleep(seconds):
            sleeps.append(seconds)
            await asyncio.sleep(seconds)

        limiter = Limiter(most=10, start=10, tokens_per_minute=100, clock=loop.time, sleep=sleep)
        for tokens in (30, 40, 30):
            await limiter.acquire(tokens)
            await asyncio.sleep(20.0)
        await limiter.acquire(70)
        assert loop.time() == 1081.0  # when the 30 and the 40 are gone
        assert sleeps == [21.0]

    run(scenario)


# --- cancellation and stopping ----------------------------------------------------------------------------------------


def test_cancelled_waiters_leak_no_slot_and_block_nobody():
    async def scenario(loop):
        limiter = limiter_of(loop, most=1)
        await limiter.acquire(0)
        tasks = [asyncio.create_task(limiter.acquire(0)) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[2].cancel()
        limiter.release(answered=True)  # lets the first living one in,
        tasks[1].cancel()  # which is cancelled before it runs: its slot goes to the next
        await asyncio.wait(tasks[:4])
        assert [task.cancelled() for task in tasks] == [True, True, True, False, False]
        assert limiter.num_in_flight == 1
        limiter.release(answered=True)
        await tasks[4]
        limiter.release(answered=True)
        assert limiter.num_in_flight == 0

    run(scenario)


def test_a_cancelled_head_lets_a_smaller_request_pass():
    async def scenario(loop):
        limiter = limiter_of(loop, most=5, tokens_per_minute=100)
        await limiter.acquire(50)
        large = asyncio.create_task(limiter.acquire(80))
        small = asyncio.create_task(limiter.acquire(10))
        await asyncio.sleep(30.0)  # the even pace would let the small one go; it waits for its turn
        late = asyncio.create_task(limiter.acquire(10))
        await asyncio.sleep(0)
        assert not small.done()
        assert not late.done()
        large.cancel()
        await asyncio.gather(small, late)
        assert loop.time() == 1030.0

    run(scenario)


def test_stop_ends_all_waiting():
    async def scenario(loop):
        limiter = limiter_of(loop, most=1)
        await limiter.acquire(0)
        by_slot = asyncio.create_task(limiter.acquire(0))
        await asyncio.sleep(0)
        limiter.limited(1000.0)
        by_pause = asyncio.create_task(limiter.acquire(0))
        await asyncio.sleep(0)
        limiter.stop()
        limiter.stop()
        for waiting in (by_slot, by_pause, limiter.acquire(0)):
            with pytest.raises(Stopped):
                await waiting
        limiter.release(answered=True)
        assert limiter.num_in_flight == 0
        assert loop.time() == 1000.0

        paused = limiter_of(loop, most=1)
        paused.limited(1000.0)
        waiting = asyncio.create_task(paused.acquire(0))
        await asyncio.sleep(1.0)
        paused.stop()
        with pytest.raises(Stopped):
            await waiting
        assert asyncio.all_tasks() == {asyncio.current_task()}  # no timer is left

    run(scenario)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 3),  # wait before it
            st.integers(0, 60),  # tokens
            st.floats(0.01, 5),  # duration
            st.sampled_from(["answered", "failed", "limited", "limited without time", "cancelled"]),
        ),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 12),
    st.sampled_from([0, 30]),
    st.sampled_from([0, 400]),
)
def test_any_traffic_ends_within_the_cap_in_order_with_all_slots_back(trace, most, requests, tokens):
    async def scenario(loop):
        limiter = limiter_of(loop, most=most, requests_per_minute=requests, tokens_per_minute=tokens)
        started, paused_until = [], [0.0]

        async def request(index, num_tokens, duration, fate):
            number = await limiter.acquire(num_tokens)
            started.append(index)
            try:
                assert 1 <= limiter.num_in_flight <= limiter.limit <= most
                assert loop.time() >= paused_until[0] - 1e-6
                await asyncio.sleep(duration)
                if fate.startswith("limited"):
                    limiter.limited(7.0 if fate == "limited" else None, number)
                    paused_until[0] = max(paused_until[0], loop.time() + (7.0 if fate == "limited" else 1.0))
            finally:
                limiter.release(answered=fate == "answered")

        tasks = []
        for index, (wait, num_tokens, duration, fate) in enumerate(trace):
            await asyncio.sleep(wait)
            task = asyncio.create_task(request(index, num_tokens, duration, fate))
            if fate == "cancelled":
                loop.call_later(duration / 2, task.cancel)
            tasks.append(task)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for (_, _, _, fate), outcome in zip(trace, outcomes, strict=True):
            assert outcome is None or (fate == "cancelled" and isinstance(outcome, asyncio.CancelledError))
        assert started == sorted(started)
        assert limiter.num_in_flight == 0
        for before, after in zip(limiter.history, limiter.history[1:], strict=False):
            assert before.new == after.old
            assert before.seconds <= after.seconds

    run(scenario)


@pytest.mark.parametrize(
    "options",
    [
        {"most": 0},
        {"most": 2, "start": 3},
        {"most": 2, "start": 0},
        {"most": 2, "requests_per_minute": -1},
        {"most": 2, "tokens_per_minute": 0.5},
        {"most": 2, "tokens_per_minute": math.inf},
        {"most": 2, "requests_per_minute": math.nan},
    ],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=r"expected|budget"):
        Limiter(**options)


def test_misuse_is_refused():
    async def scenario(loop):
        limiter = limiter_of(loop, most=2)
        with pytest.raises(ValueError, match="more often"):
            limiter.release(answered=True)
        with pytest.raises(ValueError, match="negative"):
            await limiter.acquire(-1)

    run(scenario)


def test_cheap_when_nothing_limits():
    async def spend(limiter, count):
        begin = time.process_time()
        for _ in range(count):
            await limiter.acquire(1000)
            limiter.settle(1000, 900)
            limiter.release(answered=True)
        return (time.process_time() - begin) / count

    limiter = Limiter(most=64, requests_per_minute=1e7, tokens_per_minute=1e10)
    assert min(asyncio.run(spend(limiter, 3000)) for _ in range(3)) < 20e-6


# --- Retry-After ------------------------------------------------------------------------------------------------------

NOW = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "1"}, 1.0),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"RETRY-AFTER": "300"}, 300.0),
        ({"Retry-After": "0"}, 0.0),
        ({"retry-after-ms": "300"}, 0.3),
        ({"Retry-After-Ms": "1500.5", "Retry-After": "9"}, 1.5005),
        ({"retry-after-ms": "soon", "Retry-After": "9"}, 9.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT"}, 30.0),
        ({"Retry-After": "Wednesday, 21-Oct-15 07:28:30 GMT"}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:30:30 +0002"}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 -0000"}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:27:00 GMT"}, 0.0),
        ({"Retry-After": "Thu, 21 Oct 2055 07:28:00 GMT"}, 86_400.0),
        ({"Retry-After": "9" * 400}, 86_400.0),
        ({"Retry-After": "1e3"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "Infinity"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "later"}, None),
        ({"Retry-After": "Wed, 99 Oct 2015 07:28:30 GMT"}, None),
        ({"Retry-After": "1_000"}, None),
        ({"Retry-After": "٣"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"}, 1.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "120ms"}, 0.12),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "7"}, 7.0),
        ({"x-ratelimit-remaining-tokens": "1", "x-ratelimit-reset-tokens": "6m0s"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0"}, None),
        ({"x-ratelimit-remaining-tokens": "0"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "12ms",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "2s",
            },
            2.0,
        ),
        ({"Retry-After": "x", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"}, 1.0),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after_seconds(headers, NOW) == (None if seconds is None else pytest.approx(seconds))


def test_a_date_without_a_zone_is_utc_whatever_the_machine(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert retry_after_seconds({"Retry-After": "Wed, 21 Oct 2015 07:28:30 -0000"}, NOW) == 30.0
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset-tokens"]), st.text() | st.floats().map(str))
def test_any_header_gives_a_finite_time_or_none(name, value):
    found = retry_after_seconds({name: value, "x-ratelimit-remaining-tokens": "0"}, NOW)
    assert found is None or 0.0 <= found <= 86_400.0
