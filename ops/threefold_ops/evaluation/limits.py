"""How much may change before somebody has to look: the limits that a comparison is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from threefold_ops.evaluation.comparison import Comparison
    from threefold_ops.evaluation.row_set import RowSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a comparison may show at most; None for anything.

    Attributes:
        flips: the share of rows whose label changes.
        mean_difference: the mean absolute difference: of the values, of the scores over rows and classes, or of the
            elements of any output tensor.
        metric_drop: by how much any metric becomes worse, in its own direction.
        rejections: the share of the rows that a takes and b rejects.
        latency_ratio: b's median time of one record over a's.
        size_ratio: b's model on disk over a's.
    """

    flips: float | None = None
    mean_difference: float | None = None
    metric_drop: float | None = None
    rejections: float | None = None
    latency_ratio: float | None = None
    size_ratio: float | None = None


def check(limits: Limits, kind: str) -> None:
    """See that the limits mean something for a kind of model.

    Raises:
        OperatorError: which does not.
    """
    if limits.flips is not None and kind != "classification":
        raise OperatorError(f"--max-flips: want models of kind classification, got {kind}")
    if limits.metric_drop is not None and kind == "tensors":
        raise OperatorError("--max-metric-drop: want models of kind classification or regression, got tensors")


def passed_over(comparison: Comparison, limits: Limits) -> list[str]:
    """The limits that a comparison does not keep, a line each: where, what is wanted, what is got.

    What could not be measured does not keep its limit.
    """
    lines = [line for one in comparison.sets for line in _of_rows(one, limits)]
    if all(one.rejected_a == one.rows for one in comparison.sets) and (
        limits.flips is not None or limits.mean_difference is not None
    ):
        lines.append("rows: want some that both take, got none")
    if limits.metric_drop is not None and not any(one.metrics for one in comparison.sets):
        lines.append("metric drop: want rows whose truth is known, got none")
    speed = comparison.speed
    lines += _above("latency ratio", limits.latency_ratio, None if speed is None else speed.single_ratio)
    lines += _above("size ratio", limits.size_ratio, comparison.size_ratio)
    return lines


def _of_rows(one: RowSet, limits: Limits) -> Iterator[str]:
    asked = one.rows - one.rejected_a
    lost = one.rejected_b - one.rejected_both
    if asked:
        yield from _above(f"{one.name}: rejections", limits.rejections, lost / asked, f"{lost} of {asked} rows")
        agreement = one.agreement
        flips = f"{agreement.flips} of {agreement.rows} rows" if agreement.rows else ""
        yield from _above(f"{one.name}: flips", limits.flips, agreement.flip_share, flips)
        yield from _above(f"{one.name}: mean difference", limits.mean_difference, mean_difference(one))
    for metric in one.metrics:
        name = f"{one.name}: drop of {metric.metric}"
        got = f"{metric.a} became {metric.b}" if metric.problem is None else metric.problem
        yield from _above(name, limits.metric_drop, metric.drop, got)


def mean_difference(one: RowSet) -> float | None:
    """The mean absolute difference of whatever the models answer; None where there is none."""
    agreement = one.agreement
    if agreement.differences is not None:
        return agreement.differences.mean
    means = [tensor.mean for tensor in agreement.tensors if tensor.mean is not None]
    return max(means) if means else agreement.score_mean


def _above(what: str, limit: float | None, got: float | None, more: str = "") -> list[str]:
    # Not «greater»: what is no number keeps no limit.
    if limit is None or (got is not None and got <= limit):
        return []
    told = "nothing that could be measured" if got is None else f"{got:.6g}"
    return [f"{what}: want at most {limit:g}, got {told}" + (f" ({more})" if more else "")]
