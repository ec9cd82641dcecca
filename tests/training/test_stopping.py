"""Signals and clocks between steps: what each process hears, and what is set back afterwards."""

import os
import signal

import pytest

from qurating_jax.parallel import distributed
from qurating_jax.training import stopping
from qurating_jax.training.stopping import SaveTimer, StopSignal


class Processes:
    """Several processes in one: what `any_process` was asked, and what another process answers."""

    def __init__(self, patch, *, index=0, others=False):
        self.asked, self.others = [], others
        patch.setattr(distributed, "process_count", lambda: 4)
        patch.setattr(distributed, "is_primary", lambda: index == 0)
        patch.setattr(distributed, "any_process", self.any_process)

    def any_process(self, flag):
        self.asked.append(flag)
        return flag or self.others


def test_the_first_signal_is_a_flag_and_the_second_acts():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.agreed(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed(2)
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_handler_from_outside_python_is_replaced_by_the_default():
    previous = signal.getsignal(signal.SIGUSR2)
    stopping.restore({signal.SIGUSR2: None})
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    signal.signal(signal.SIGUSR2, previous)


def test_several_processes_ask_each_other_at_some_steps_only(monkeypatch):
    processes = Processes(monkeypatch, others=True)
    with StopSignal() as stop:
        answers = [step for step in range(1, 31) if stop.agreed(step)]
    assert answers == [10, 20, 30]
    assert processes.asked == [False] * 3


def test_a_timer_of_one_process():
    now = [0.0]
    timer = SaveTimer(2, clock=lambda: now[0])
    heard = []
    for step in range(1, 21):
        now[0] += 30
        if timer.agreed(step):
            heard.append(step)
            timer.restart()
    assert heard == [4, 8, 12, 16, 20]


@pytest.mark.parametrize("minutes", [0, 2])
def test_only_the_clock_of_the_first_process_counts(monkeypatch, minutes):
    processes = Processes(monkeypatch, index=1)
    timer = SaveTimer(minutes, clock=iter(range(0, 10**6, 10**4)).__next__)
    assert not any(timer.agreed(step) for step in range(1, 31))
    assert processes.asked == ([False] * 3 if minutes else [])
    processes.others = True  # process 0 says that it is time
    assert [step for step in range(1, 31) if timer.agreed(step)] == ([10, 20, 30] if minutes else [])
