"""Which of the data's rows become the confidence set, the drift reference and the examples."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold.prediction import json_values

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from threefold.model import Answer
    from threefold.package import Output

HELD_OUT: Final = 0.3
MAXIMUM_ROWS: Final = 500
# A metric of fewer rows is a coin's.
LEAST_ROWS: Final = 5
MAXIMUM_EXAMPLES: Final = 20
# Nearer than this, another machine's last digit may turn one class into the other.
_CLEAR: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Split:
    """Positions of rows, each in the order of the data.

    Attributes:
        confidence: held out, every class with its share; empty where that would be too few.
        rest: the others, without those that are like one held out.
    """

    confidence: list[int]
    rest: list[int]


def split(rows: Sequence[Sequence[str]], strata: Sequence[Hashable], labelled: Sequence[bool]) -> Split:
    """Hold out a share of the rows, the same ones each time, and never one of two that are alike.

    Args:
        rows: the features' cells, n rows.
        strata: each row's class; the same for all where there are none.
        labelled: whether a row's truth is known; one without is never held out.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[hashlib.sha256("\x1f".join(row).encode()).hexdigest()].append(i)
    by_stratum: dict[Hashable, list[tuple[str, list[int]]]] = defaultdict(list)
    for name, members in sorted(groups.items()):
        known = [i for i in members if labelled[i]]
        if known:
            by_stratum[strata[known[0]]].append((name, known))
    share = min(HELD_OUT, MAXIMUM_ROWS / max(1, len(rows)))
    confidence: list[int] = []
    taken: set[str] = set()
    for found in by_stratum.values():
        size = sum(len(members) for _, members in found)
        quota = max(round(share * size), 1) if size > 1 else 0
        for name, members in found:
            if quota <= 0:
                break
            confidence += members[:quota]
            quota -= len(members)
            taken.add(name)
    if len(confidence) < LEAST_ROWS:
        return Split([], list(range(len(rows))))
    return Split(
        sorted(confidence), sorted(i for name, members in groups.items() if name not in taken for i in members)
    )


def thin(positions: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly spread."""
    if len(positions) <= most:
        return list(positions)
    return [positions[i] for i in np.linspace(0, len(positions) - 1, most).round().astype(int).tolist()]


def choose_examples(output: Output, answer: Answer, candidates: Sequence[int], most: int) -> list[int]:
    """Rows whose answers lie evenly over all there are, and are none that another machine may give otherwise.

    Args:
        output: what the answer means.
        answer: to all rows.
        candidates: the positions to choose from.
        most: how many.
    """
    sure = [i for i in candidates if _sure(output, answer, i)]
    if answer.labels is not None:
        by_label: dict[str | int, list[int]] = defaultdict(list)
        for i in sure:
            by_label[answer.labels[i]].append(i)
        each = max(1, most // max(1, len(by_label)))
        return sorted([i for found in by_label.values() for i in thin(found, each)][:most])
    if answer.values is not None:
        values = answer.values
        return thin(sorted(sure, key=lambda i: float(values[i])), most)
    return thin(sure, most)


def expectation(output: Output, answer: Answer, row: int) -> dict[str, Any]:
    """What an example expects of a row: what the answer says now."""
    if answer.labels is not None:
        said: dict[str, Any] = {"label": answer.labels[row]}
        if answer.scores is not None and output.classes:
            said["scores"] = dict(zip(map(str, output.classes), json_values(answer.scores[row]), strict=True))
        return said
    if answer.values is not None:
        return {"value": json_values(answer.values[row : row + 1])[0]}
    return {name: array[row] for name, array in answer.tensors.items()}


def _sure(output: Output, answer: Answer, row: int) -> bool:
    if any(array.dtype.kind == "f" and not np.isfinite(array[row]).all() for array in answer.tensors.values()):
        return False
    if output.kind != "classification" or answer.scores is None or answer.scores.shape[1] == 1:
        return True
    first, second = np.sort(answer.scores[row])[:-3:-1].tolist()
    return bool(first - second > _CLEAR)
