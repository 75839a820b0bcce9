"""The metric that a new model's gate begins with, and the range around what the model reaches now."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold.quality import NotMeasurable, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from threefold.model import Answer
    from threefold.package import Output

# A class with a smaller share than this makes accuracy easy: who never says it is nearly always right.
UNBALANCED: Final = 0.2
_ERRORS: Final = 3.0
_BINARY: Final = 2
_PLACES: Final = 3
_ROUNDING: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Proposal:
    """A gate's metric.

    Attributes:
        value: what the model reaches now.
        error: the standard error of that figure, by the number of rows.
        acceptable: three of them on each side, rounded outward: a worse model fails, and so does one that is better
            than this data allows.
    """

    metric: str
    value: float
    error: float
    acceptable: tuple[float, float]


def propose(output: Output, answer: Answer, truth: Sequence[Any]) -> Proposal | None:
    """Choose a metric and a range for it.

    Args:
        output: what the answer means.
        answer: the model's, to the rows of the confidence set.
        truth: what was right for each of them.

    Returns:
        None where there is nothing to measure.
    """
    metric = _metric(output, answer, truth)
    if metric is None or not truth:
        return None
    try:
        value = measure(
            metric,
            truth,
            labels=answer.labels,
            scores=answer.scores,
            values=answer.values,
            classes=output.classes,
        )
    except NotMeasurable:
        return None
    error = _error(metric, value, answer, truth)
    low, high = max(value - _ERRORS * error, 0.0), value + _ERRORS * error
    if metric == "rmse":
        # Two digits of the greater end, whatever the unit.
        places = 1 - math.floor(math.log10(high)) if high > 0 else 0
    else:
        high, places = min(high, 1.0), _PLACES
    return Proposal(metric, value, error, (_rounded(low, places, math.floor), _rounded(high, places, math.ceil)))


def _rounded(value: float, places: int, toward: Callable[[float], int]) -> float:
    # By way of 12 digits: 0.93 * 1000 is not 930, and would be rounded past itself.
    return round(toward(float(f"{value * 10.0**places:.12g}")) / 10.0**places, max(places, 0))


def _metric(output: Output, answer: Answer, truth: Sequence[Any]) -> str | None:
    if output.kind == "regression":
        return "rmse"
    if output.kind != "classification":
        return None
    counts = Counter(truth)
    rare = len(counts) == _BINARY and min(counts.values()) < UNBALANCED * len(truth)
    known = len(output.classes) == _BINARY and answer.scores is not None
    return "auc" if rare and known else "accuracy"


def _error(metric: str, value: float, answer: Answer, truth: Sequence[Any]) -> float:
    rows = len(truth)
    if metric == "rmse":
        assert answer.values is not None, "a regression"
        squares = (np.asarray(truth, np.float64) - np.asarray(answer.values, np.float64)) ** 2
        if not squares.any():
            # Without a mistake there is no error of it; other machines round otherwise.
            return _ROUNDING * float(np.abs(np.asarray(truth, np.float64)).max()) or _ROUNDING
        # The error of the mean square, carried over to its root.
        return float(np.std(squares)) / math.sqrt(rows) / (2 * value)
    if metric == "auc":
        # J. Hanley and B. McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC)
        # curve", Radiology 143(1), 1982, 29-36.
        fewer, more = sorted(Counter(truth).values())
        one, two = value / (2 - value), 2 * value * value / (1 + value)
        spread = value * (1 - value) + (fewer - 1) * (one - value * value) + (more - 1) * (two - value * value)
        return math.sqrt(max(spread, 0.0) / (fewer * more))
    # A. Agresti and B. Coull, "Approximate is better than 'exact'", The American Statistician 52(2), 1998, 119-126:
    # two of each kind more, so that a model without a mistake has an error as well.
    share = (value * rows + 2) / (rows + 4)
    return math.sqrt(share * (1 - share) / (rows + 4))
