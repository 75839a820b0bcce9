"""What a metric says of predictions whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from threefold.errors import ThreefoldError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    Labels = Sequence[str | int]

_BINARY: Final = 2


class NotMeasurable(ThreefoldError):
    """A metric that says nothing of these predictions: of the wrong kind, or not defined for such truth or scores."""

    code = "not_measurable"


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric as a gate may name it.

    Attributes:
        kind: the kind of output that it is about.
        higher_is_better: whether a greater value is a better one.
    """

    name: str
    kind: Literal["classification", "regression"]
    higher_is_better: bool


# As scikit-learn's functions of these names compute them; `auc` is its roc_auc_score, one against the rest, macro.
METRICS: Final[Mapping[str, Measure]] = MappingProxyType(
    {
        measure.name: measure
        for measure in (
            Measure("accuracy", "classification", higher_is_better=True),
            Measure("f1_macro", "classification", higher_is_better=True),
            Measure("auc", "classification", higher_is_better=True),
            Measure("log_loss", "classification", higher_is_better=False),
            Measure("rmse", "regression", higher_is_better=False),
            Measure("mae", "regression", higher_is_better=False),
            Measure("r2", "regression", higher_is_better=True),
        )
    }
)


def measure(  # noqa: PLR0913 - the parts of an answer, each by name
    metric: str,
    truth: Sequence[str | int | float],
    *,
    labels: Labels | None = None,
    scores: npt.NDArray[Any] | None = None,
    values: npt.NDArray[Any] | None = None,
    classes: Labels = (),
) -> float:
    """Say how good n predictions are.

    Args:
        metric: one of METRICS.
        truth: what was right: n classes, or n numbers.
        labels: the n predicted classes.
        scores: a score per class, shape [n, classes], in the order of `classes`.
        values: the n predicted values.
        classes: all classes there are; without them, any label is one, and scores mean nothing.

    Raises:
        NotMeasurable: the metric is unknown, is not about these predictions, or is not defined for them.
    """
    if (known := METRICS.get(metric)) is None:
        message = f"metric: want one of {list(METRICS)}, got {shown(metric)}"
        raise NotMeasurable(message)
    if not len(truth):
        raise _refusal(metric, "at least one row", "none")
    if known.kind == "regression":
        return _regression(metric, truth, values)
    if metric in _OF_LABELS:
        if labels is None:
            raise _refusal(metric, "predicted classes", "none")
        _same_size(metric, len(truth), len(labels))
        if classes:
            _codes(metric, truth, classes)
        return _OF_LABELS[metric](*_coded(truth, labels))
    if scores is None:
        raise _refusal(metric, "a score per class", "none")
    scores = _checked_scores(metric, scores, len(truth), len(classes))
    return _OF_SCORES[metric](_codes(metric, truth, classes), scores, classes)


def _refusal(metric: str, wanted: str, got: object) -> NotMeasurable:
    return NotMeasurable(f"{metric}: want {wanted}, got {got}")


def _same_size(metric: str, wanted: int, got: int) -> None:
    if wanted != got:
        raise _refusal(metric, f"a prediction for each of {wanted} rows", got)


def _codes(metric: str, truth: Sequence[object], classes: Labels) -> npt.NDArray[np.intp]:
    """The position of each row's true class, shape [n]."""
    index = {name: i for i, name in enumerate(classes)}
    try:
        return np.fromiter((index[name] for name in truth), np.intp, len(truth))  # type: ignore[index]
    except (KeyError, TypeError):
        odd = next(name for name in truth if name not in classes)
        raise _refusal(metric, f"truth out of the classes {shown(list(classes))}", shown(odd)) from None


def _coded(truth: Sequence[Any], labels: Labels) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], int]:
    """Truth and predictions as positions in the union of their classes, and how many classes that has."""
    union = {name: i for i, name in enumerate(dict.fromkeys([*truth, *labels]))}
    true, said = (np.fromiter(map(union.__getitem__, names), np.intp, len(names)) for names in (truth, labels))
    return true, said, len(union)


def _accuracy(true: npt.NDArray[np.intp], said: npt.NDArray[np.intp], _width: int) -> float:
    return float(np.mean(true == said))


def _f1_macro(true: npt.NDArray[np.intp], said: npt.NDArray[np.intp], width: int) -> float:
    hits = np.bincount(true[true == said], minlength=width)
    # Twice the hits over all mentions; every class of the union is mentioned.
    return float(np.mean(2 * hits / (np.bincount(true, minlength=width) + np.bincount(said, minlength=width))))


def _checked_scores(metric: str, scores: npt.NDArray[Any], rows: int, width: int) -> npt.NDArray[Any]:
    if width < _BINARY:
        raise _refusal(metric, "the names of two classes or more", width)
    if scores.shape != (rows, width):
        raise _refusal(metric, f"scores of shape [{rows}, {width}]", list(scores.shape))
    if scores.dtype.kind != "f":
        raise _refusal(metric, "scores that are floating-point numbers", scores.dtype)
    if not (finite := np.isfinite(scores)).all():
        raise _refusal(metric, "finite scores", shown(float(scores[~finite][0])))
    return scores.astype(np.float32) if scores.dtype == np.float16 else scores


def _auc(true: npt.NDArray[np.intp], scores: npt.NDArray[Any], classes: Labels) -> float:
    seen = np.bincount(true, minlength=len(classes))
    if not seen.all():
        absent = [name for name, count in zip(classes, seen.tolist(), strict=True) if not count]
        raise _refusal("auc", "truth of every class", f"none of {shown(absent)}")
    columns = [1] if len(classes) == _BINARY else range(len(classes))
    return float(np.mean([_area(true == column, scores[:, column]) for column in columns]))


def _area(positive: npt.NDArray[np.bool_], score: npt.NDArray[Any]) -> float:
    """The share of pairs of a positive and a negative row that the score puts in order; a tie counts half.

    It is Mann and Whitney's U over the number of pairs, from the ranks of the positive rows.
    """
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    positives = int(np.count_nonzero(positive))
    above = float(ranks[inverse[positive]].sum()) - positives * (positives + 1) / 2
    return above / (positives * (len(positive) - positives))


def _log_loss(true: npt.NDArray[np.intp], scores: npt.NDArray[Any], _classes: Labels) -> float:
    outside = (scores < 0) | (scores > 1)
    if outside.any():
        raise _refusal("log_loss", "scores in [0, 1]", float(scores[outside][0]))
    # Where scikit-learn clips and what it lets pass as a sum of one, by the width of the scores.
    epsilon = np.finfo(scores.dtype).eps
    sums = scores.sum(axis=1)
    if (odd := np.abs(sums - 1) > np.sqrt(epsilon)).any():
        raise _refusal("log_loss", "scores that add up to 1", f"{float(sums[odd][0]):g}")
    chosen = np.clip(scores[np.arange(len(true)), true], epsilon, 1 - epsilon)
    return float(-np.mean(np.log(chosen.astype(np.float64))))


def _regression(metric: str, truth: Sequence[object], values: npt.NDArray[Any] | None) -> float:
    if values is None:
        raise _refusal(metric, "predicted values", "none")
    _same_size(metric, len(truth), len(values))
    true, said = _numbers(metric, "truth", truth), _numbers(metric, "predicted values", values)
    # What is too large for its square says so by the result.
    with np.errstate(over="ignore", invalid="ignore"):
        result = _OF_VALUES[metric](true, said)
    if not np.isfinite(result):
        raise _refusal(metric, "a finite figure", result)
    return result


def _numbers(metric: str, what: str, values: Any) -> npt.NDArray[np.float64]:  # noqa: ANN401 - whatever stands there
    array = np.asarray(values)
    # numpy would read text as numbers, silently.
    if array.dtype.kind not in "iuf":
        raise _refusal(metric, f"{what} that are numbers", shown(next(iter(values))))
    if array.ndim != 1:
        raise _refusal(metric, f"{what} of shape [n]", list(array.shape))
    if not (finite := np.isfinite(array)).all():
        raise _refusal(metric, f"finite {what}", shown(float(array[~finite][0])))
    return array.astype(np.float64)


def _rmse(true: npt.NDArray[np.float64], said: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean((true - said) ** 2)))


def _mae(true: npt.NDArray[np.float64], said: npt.NDArray[np.float64]) -> float:
    return float(np.mean(np.abs(true - said)))


def _r2(true: npt.NDArray[np.float64], said: npt.NDArray[np.float64]) -> float:
    if (true == true[0]).all():
        raise _refusal("r2", "truth that varies", f"{len(true)} times {true[0]:g}")
    return float(1 - np.sum((true - said) ** 2) / np.sum((true - true.mean()) ** 2))


_OF_LABELS: Final[Mapping[str, Callable[[npt.NDArray[np.intp], npt.NDArray[np.intp], int], float]]] = MappingProxyType(
    {"accuracy": _accuracy, "f1_macro": _f1_macro}
)
_OF_SCORES: Final[Mapping[str, Callable[[npt.NDArray[np.intp], npt.NDArray[Any], Labels], float]]] = MappingProxyType(
    {"auc": _auc, "log_loss": _log_loss}
)
_OF_VALUES: Final[Mapping[str, Callable[[npt.NDArray[np.float64], npt.NDArray[np.float64]], float]]] = MappingProxyType(
    {"rmse": _rmse, "mae": _mae, "r2": _r2}
)
