"""How far two packages' answers to the same rows are apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold_ops.figures import UNWRITTEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from threefold.package import Output
    from threefold_ops.evaluation.trial import Answers

    Numbers = npt.NDArray[np.float64]

_MOST_FLIPS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """Rows whose label changed in one way."""

    a: str | int
    b: str | int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassDifference:
    """How far the scores of one class are apart, and their averages."""

    name: str | int
    mean: float
    max: float
    average_a: float
    average_b: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Absolute differences over all rows."""

    mean: float
    median: float
    p95: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """How far one output tensor is apart.

    Attributes:
        mean: of the absolute differences of all elements; None for text.
        max: likewise.
        unequal: rows that differ in any element, or in their shape.
        reshaped: rows that differ in their shape.
    """

    name: str
    mean: float | None
    max: float | None
    unequal: int
    reshaped: int


@dataclass(slots=True, kw_only=True)
class Agreement:
    """What two packages' answers have in common, over the rows that both of them took.

    A number that is not finite is infinitely far from any other one, and not apart from itself: what became NaN in one
    of them shows in every figure.

    Attributes:
        rows: how many.
        positions: which, shape [rows].
        distance: how far apart each row's answers are, shape [rows]: by the largest difference of a score, a value or
            an element; a flipped label comes before all rows that agree.
        flips: classification: rows whose label differs.
        flip_share: flips over rows.
        flip_table: the most frequent ways in which they differ.
        classes: classification: the scores, by class.
        only_a: classes that only a has; for tensors, outputs.
        only_b: likewise.
        score_mean: classification: the mean absolute difference of the scores, over rows and classes.
        differences: regression: of the values.
        relative: the same over the standard deviation of a's values; None where that is zero.
        average_a: regression: of a's values.
        average_b: of b's.
        tensors: tensors: by output.
    """

    rows: int
    positions: npt.NDArray[np.intp] = field(metadata=UNWRITTEN)
    distance: Numbers = field(metadata=UNWRITTEN)
    flips: int | None = None
    flip_share: float | None = None
    flip_table: list[Flip] = field(default_factory=list)
    classes: list[ClassDifference] = field(default_factory=list)
    only_a: list[str | int] = field(default_factory=list)
    only_b: list[str | int] = field(default_factory=list)
    score_mean: float | None = None
    differences: Spread | None = None
    relative: Spread | None = None
    average_a: float | None = None
    average_b: float | None = None
    tensors: list[TensorDifference] = field(default_factory=list)


def agree(a: Answers, b: Answers, outputs: tuple[Output, Output]) -> Agreement:
    """Compare the answers to the rows that both packages took.

    Args:
        a: of one package.
        b: of the other, to the same rows.
        outputs: what their outputs mean; of one kind.
    """
    positions, in_a, in_b = np.intersect1d(a.rows, b.rows, assume_unique=True, return_indices=True)
    found = Agreement(rows=len(positions), positions=positions, distance=np.zeros(len(positions)))
    if not len(positions):
        return found
    if outputs[0].kind == "classification":
        _scores(found, a, b, (in_a, in_b), outputs)
        _flips(found, a, b, (in_a, in_b))
    elif outputs[0].kind == "regression":
        assert a.values is not None, "a regression has values"
        assert b.values is not None, "as above"
        _values(found, a.values[in_a], b.values[in_b])
    else:
        _tensors(found, a, b, (in_a, in_b))
    return found


def apart(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Numbers:
    """Absolute differences, element by element: infinite where one is not finite and the other is something else."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.array(np.abs(x - y))
    difference[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
    difference[np.isnan(difference)] = np.inf
    if a.dtype.kind in "iu" and b.dtype.kind in "iu":
        # float64 holds no integer beyond 2**53 exactly: neighbors are one apart all the same.
        difference[(a != b) & (difference == 0)] = 1.0
    return difference


def _flips(found: Agreement, a: Answers, b: Answers, taken: tuple[Any, Any]) -> None:
    assert a.labels is not None, "a classification has labels"
    assert b.labels is not None, "as above"
    pairs = [(a.labels[i], b.labels[j]) for i, j in zip(*(part.tolist() for part in taken), strict=True)]
    # Python takes 1 for 1.0 and for True, as JSON's readers do: what a caller sees is the same.
    flipped = np.array([x != y and (x == x or y == y) for x, y in pairs], np.bool_)  # noqa: PLR0124 - NaN is itself
    found.flips = int(flipped.sum())
    found.flip_share = found.flips / found.rows
    counts = Counter(pair for pair, differs in zip(pairs, flipped.tolist(), strict=True) if differs)
    found.flip_table = [Flip(a=x, b=y, count=count) for (x, y), count in counts.most_common(_MOST_FLIPS)]
    # A score is at most 1 apart from another one, or it is no probability: a flip ranks above all of them.
    above = found.distance[np.isfinite(found.distance)].max(initial=0.0)
    found.distance = np.where(flipped, found.distance + above + 1, found.distance)


def _scores(found: Agreement, a: Answers, b: Answers, taken: tuple[Any, Any], outputs: tuple[Output, Output]) -> None:
    if a.scores is None or b.scores is None:
        return
    names = [_names(output, scores.shape[1]) for output, scores in zip(outputs, (a.scores, b.scores), strict=True)]
    common = [name for name in names[0] if name in names[1]]
    found.only_a = [name for name in names[0] if name not in common]
    found.only_b = [name for name in names[1] if name not in common]
    if not common:
        return
    x = a.scores[taken[0]][:, [names[0].index(name) for name in common]]
    y = b.scores[taken[1]][:, [names[1].index(name) for name in common]]
    difference = apart(x, y)
    found.distance = difference.max(axis=1)
    found.score_mean = float(difference.mean())
    found.classes = [
        ClassDifference(
            name=name,
            mean=float(difference[:, i].mean()),
            max=float(difference[:, i].max()),
            average_a=_mean(x[:, i]),
            average_b=_mean(y[:, i]),
        )
        for i, name in enumerate(common)
    ]


def _names(output: Output, width: int) -> Sequence[str | int]:
    """The classes in the order of the scores; where the manifest does not name them, their positions."""
    return list(output.classes) if len(output.classes) == width else list(range(width))


def _values(found: Agreement, x: Numbers, y: Numbers) -> None:
    difference = apart(x, y)
    found.distance = difference
    found.differences = _spread(difference)
    deviation = float(np.std(x[np.isfinite(x)])) if np.isfinite(x).any() else 0.0
    if deviation > 0:
        found.relative = _spread(difference / deviation)
    found.average_a, found.average_b = _mean(x), _mean(y)


def _spread(difference: Numbers) -> Spread:
    # A value that occurs, and none between two: nothing lies between a number and infinity.
    median, p95 = np.quantile(difference, [0.5, 0.95], method="higher")
    return Spread(mean=_mean(difference), median=float(median), p95=float(p95), max=float(difference.max()))


def _mean(values: npt.NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.mean(values, dtype=np.float64))


def _tensors(found: Agreement, a: Answers, b: Answers, taken: tuple[Any, Any]) -> None:
    found.only_a = [name for name in a.tensors if name not in b.tensors]
    found.only_b = [name for name in b.tensors if name not in a.tensors]
    for name in [name for name in a.tensors if name in b.tensors]:
        pairs = [
            (a.tensors[name][i], b.tensors[name][j]) for i, j in zip(*(part.tolist() for part in taken), strict=True)
        ]
        reshaped = np.array([x.shape != y.shape for x, y in pairs], np.bool_)
        # Shapes that do not match are as far apart as can be.
        parts = [apart_of(x, y) if x.shape == y.shape else np.full(1, np.inf) for x, y in pairs]
        row = np.array([part.max(initial=0.0) for part in parts])
        found.distance = np.maximum(found.distance, row)
        numeric = all(x.dtype.kind != "O" and y.dtype.kind != "O" for x, y in pairs)
        whole = np.concatenate([part.reshape(-1) for part in parts])
        found.tensors.append(
            TensorDifference(
                name=name,
                mean=_mean(whole) if numeric and whole.size else None,
                max=float(whole.max(initial=0.0)) if numeric else None,
                unequal=int(np.count_nonzero(row)),
                reshaped=int(reshaped.sum()),
            )
        )


def apart_of(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Numbers:
    """Two tensors of one shape: how far apart, element by element; texts are equal, or infinitely apart."""
    if x.dtype.kind == "O" or y.dtype.kind == "O":
        return np.where(x == y, 0.0, np.inf)
    return apart(x, y)
