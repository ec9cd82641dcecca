"""Which steps are traced, into which folder."""

import os
import signal

import jax
import pytest

from qurating_jax.parallel import distributed
from qurating_jax.training.profiling import Profiler


@pytest.fixture
def traces(monkeypatch):
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: found.append(directory))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


def run(traces, planned, *, signals=(), steps=range(1, 21)):
    """What happens before and after which steps."""
    events = []
    with Profiler("p", planned) as profiler:
        for step in steps:
            if step in signals:
                os.kill(os.getpid(), signal.SIGUSR1)
            profiler.before(step)
            events += [(step, event) for event in traces]
            traces.clear()
            profiler.after(step, {})
            events += [(step, event) for event in traces]
            traces.clear()
    return events + [("end", event) for event in traces]


def test_planned_steps(traces):
    assert run(traces, (3, 2)) == [(3, "p"), (4, "stop")]
    assert run(traces, ()) == []


def test_a_run_that_resumes_within_the_planned_steps_traces_the_rest(traces):
    assert run(traces, (3, 4), steps=range(5, 10)) == [(5, "p"), (6, "stop")]


def test_a_run_that_ends_within_a_trace_ends_it(traces):
    assert run(traces, (19, 9)) == [(19, "p"), ("end", "stop")]


def test_on_demand(traces):
    before = signal.getsignal(signal.SIGUSR1)
    assert run(traces, (), signals=(4, 15)) == [(4, "p"), (8, "stop"), (15, "p"), (19, "stop")]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_other_processes_trace_on_demand_alone_in_folders_of_their_own(traces, monkeypatch):
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    monkeypatch.setattr(distributed, "process_index", lambda: 3)
    assert run(traces, (3, 2)) == []
    assert run(traces, (3, 2), signals=(10,)) == [(10, "p/process-00003"), (14, "stop")]
