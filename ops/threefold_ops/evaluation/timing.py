"""How long a package takes: acts timed in turns, and one act timed alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Act = Callable[[int], object]

# Fewer say nothing of a 99th percentile, and more than these say no more of a median.
LEAST_ROUNDS: Final = 5
MOST_ROUNDS: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long calls of one size took.

    Attributes:
        batch: rows a call.
        calls: how many were timed.
        rows_per_second: by the median.
    """

    batch: int
    calls: int
    p50_us: float
    p95_us: float
    p99_us: float
    rows_per_second: float


def measure(
    act: Act, *, batch: int, seconds: float, clock: Callable[[], float] = time.perf_counter, least: int = LEAST_ROUNDS
) -> Latency:
    """Time an act again and again; it is called once before, untimed.

    Args:
        act: told how often it was called before.
        batch: how many rows one call is.
        seconds: begin no more calls after so long.
        clock: in seconds.
        least: call it as often as this whatever the time.
    """
    taken = _times([act], seconds=seconds, clock=clock, least=least)[0]
    p50, p95, p99 = (float(one) for one in np.quantile(taken, [0.5, 0.95, 0.99]))
    return Latency(
        batch=batch,
        calls=len(taken),
        p50_us=p50 * 1e6,
        p95_us=p95 * 1e6,
        p99_us=p99 * 1e6,
        rows_per_second=batch / p50,
    )


def interleave(
    acts: Sequence[Act], *, seconds: float, clock: Callable[[], float] = time.perf_counter, least: int = LEAST_ROUNDS
) -> list[float]:
    """Time several acts in turns, A B, B A, …, so that a slow moment of the machine hits them all.

    Args:
        acts: each told how often it was called before, and each called once before, untimed.
        seconds: begin no more rounds after so long.
        clock: in seconds.
        least: as many rounds as this whatever the time.

    Returns:
        For each act, the median of its seconds.
    """
    return [median(taken) for taken in _times(acts, seconds=seconds, clock=clock, least=least)]


def _times(acts: Sequence[Act], *, seconds: float, clock: Callable[[], float], least: int) -> list[list[float]]:
    for act in acts:
        act(0)
    taken: list[list[float]] = [[] for _ in acts]
    begun = clock()
    for i in range(MOST_ROUNDS):
        if i >= least and clock() - begun > seconds:
            break
        for j in range(len(acts)):
            position = (i + j) % len(acts)
            started = clock()
            acts[position](i)
            taken[position].append(clock() - started)
    return taken
