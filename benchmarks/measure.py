"""Interleaved timing, and the rows that say how it went."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Act = Callable[[], object]

MEGABYTE: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be: at most a limit, or at least."""

    limit: float
    at_most: bool = True

    def holds(self, figure: float) -> bool:
        """Whether a figure reaches the goal."""
        return figure <= self.limit if self.at_most else figure >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        value: what we take, or how fast we are.
        reference: the same figure of what we are compared with.
        ratio: value over reference.
        goal: for the ratio where there is a reference, else for the value.
        holds: whether the goal is reached; None where there is no goal.
    """

    name: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    goal: str | None = None
    holds: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as results.json keeps it: the unit goes with the name."""
        row = asdict(self)
        unit = row.pop("unit")
        return {**row, "name": f"{self.name.strip()} [{unit}]"}


def compare(name: str, value: float, unit: str, reference: float | None = None, goal: Goal | None = None) -> Row:
    """Make a row out of two figures of one interleaved run.

    Args:
        name: what was measured, against what.
        value: ours.
        unit: of both figures.
        reference: theirs; None where the goal is for the value itself.
        goal: None for a figure that only puts others into proportion.
    """
    ratio = None if reference is None else value / reference
    holds = None if goal is None else goal.holds(value if ratio is None else ratio)
    return Row(name, value, unit, reference, ratio, None if goal is None else str(goal), holds)


def interleave(
    acts: Mapping[str, Act], *, rounds: int, calls: int = 1, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Time several acts in turns, A B C, B C A, …, so that a slow moment of the machine hits them all.

    Args:
        acts: by name, what to time; each is called once before, untimed.
        rounds: how often the turn comes round.
        calls: calls of one act in one turn.
        clock: seconds.

    Returns:
        By name, the median over the rounds of the seconds per call.
    """
    names = list(acts)
    for act in acts.values():
        act()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            act = acts[name]
            started = clock()
            for _ in range(calls):
                act()
            taken[name].append((clock() - started) / calls)
    return {name: median(found) for name, found in taken.items()}
