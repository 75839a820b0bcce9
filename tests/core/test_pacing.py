"""The pace: on average no more than it says, for any number of takers, and nothing saved up."""

from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from threefold.pacing import Pacer


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def pacer(clock: Clock, per_second: float) -> Pacer:
    return Pacer(per_second, clock=clock, sleep=clock.sleep)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=50), st.floats(0.5, 5000))
def test_what_is_given_out_never_runs_ahead_of_the_pace(units: list[int], per_second: float) -> None:
    clock, given_out = Clock(), 0
    paced = pacer(clock, per_second)
    for count in units:
        assert paced.take(count, deadline=1e9)
        # What was given out before this turn is paid for.
        assert given_out <= (clock.now - 100.0) * per_second + 1e-6
        given_out += count
    assert (clock.now - 100.0) * per_second <= given_out + 1e-6


def test_a_pause_saves_nothing_up() -> None:
    clock = Clock()
    paced = pacer(clock, 10)
    paced.take(5, deadline=1e9)
    clock.now += 60
    paced.take(5, deadline=1e9)
    assert clock.slept == []
    paced.take(5, deadline=1e9)
    assert clock.slept == [0.5]


def test_a_turn_that_comes_too_late_is_not_taken() -> None:
    clock = Clock()
    paced = pacer(clock, 10)
    assert paced.take(100, deadline=105)
    assert not paced.take(1, deadline=105)
    assert clock.slept == []
    assert paced.take(1, deadline=111)
    assert clock.slept == [10.0]


def test_threads_share_one_pace() -> None:
    slept: list[float] = []
    # A list takes what is appended from any thread.
    paced = Pacer(1000, clock=lambda: 0.0, sleep=lambda seconds: slept.append(round(seconds, 6)))
    threads = [threading.Thread(target=paced.take, args=(25,), kwargs={"deadline": 1e9}) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(slept) == [round(0.025 * i, 6) for i in range(1, 20)]


def test_it_really_waits() -> None:
    paced, began = Pacer(100), time.monotonic()
    paced.take(3, deadline=began + 9)
    paced.take(3, deadline=began + 9)
    assert time.monotonic() - began >= 0.03
