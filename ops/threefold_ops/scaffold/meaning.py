"""What a graph's outputs mean: by its own labels, by what it answers, and by the truth beside the data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold.errors import shown
from threefold.package import Output
from threefold.signature import DTYPES
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from threefold.signature import TensorSpec
    from threefold_ops.authoring.graph import Graph

    Answers = Mapping[str, npt.NDArray[Any]]
    Label = str | int

# Where a graph has several that would do.
_USUAL: Final = ("label", "output_label", "probabilities", "output_probability", "scores", "value", "variable")
# More classes than this are numbers that happen to be whole.
MAXIMUM_CLASSES: Final = 1000


def infer_output(specs: Sequence[TensorSpec], answers: Answers, graph: Graph, truth: Sequence[str]) -> Output:
    """Say which of the outputs mean what.

    Args:
        specs: the graph's outputs.
        answers: what it answered to n records, output name to array; n is 0 where nothing could be run.
        graph: what else it says of itself.
        truth: the data's target, one a record; empty if it has none.
    """
    rows = max((len(array) for array in answers.values() if array.ndim), default=0)
    one = [spec for spec in specs if _width(answers.get(spec.name), rows, spec) == 1 and spec.name not in graph.maps]
    label = _usual([spec for spec in one if DTYPES[spec.datatype].kind in "Oiu"])
    many = [
        spec
        for spec in specs
        if DTYPES[spec.datatype].kind == "f"
        and (spec.name in graph.maps or spec.name in graph.labels or _width(answers.get(spec.name), rows, spec) > 1)
    ]
    scores = _usual(many)
    if scores is not None:
        return _classification(label, scores, _classes(label, scores, answers, graph, truth), answers)
    if label is not None:
        if _fractions(truth):
            return Output(kind="regression", value=label)  # Whole numbers that stand for others.
        return Output(kind="classification", label=label, classes=graph.labels.get(label, ()))
    numbers = [spec for spec in one if DTYPES[spec.datatype].kind == "f"]
    if len(numbers) == 1 or any(spec.name in _USUAL for spec in numbers):
        return Output(kind="regression", value=_usual(numbers))
    return Output(kind="tensors")


def _classification(label: str | None, scores: str, classes: tuple[Label, ...], answers: Answers) -> Output:
    if label is not None and classes and not _agreed(answers, label, scores, classes):
        return Output(kind="classification", label=label)  # Distances, or votes: not a score a class.
    if label is None and not classes:
        return Output(kind="tensors")  # Nothing says what they are scores of.
    return Output(kind="classification", label=label, scores=scores, classes=classes)


def read_truth(output: Output, specs: Sequence[TensorSpec], cells: Sequence[str]) -> list[str | int | float | None]:
    """The truth as the model would say it; None where a cell says no such thing.

    Raises:
        OperatorError: no cell does.
    """
    if output.kind == "tensors":
        return [None] * len(cells)
    found: list[str | int | float | None]
    if output.kind == "regression":
        wanted, found = "numbers", [_number(cell) for cell in cells]
    elif output.classes:
        wanted = f"the graph's classes {shown(list(output.classes))}"
        found = [_class(cell, output.classes) for cell in cells]
    else:
        text = any(spec.name == output.label and spec.datatype == "BYTES" for spec in specs)
        wanted = "classes"
        found = [(cell or None) if text else _whole(cell) for cell in cells]
    if cells and all(value is None for value in found):
        got = shown(sorted({*cells})[:5])
        hint = "; if these are the names of classes that the graph only numbers, write the numbers into the file"
        raise OperatorError(f"--target: want {wanted}, got {got}{hint if output.classes else ''}")
    return found


def _width(array: npt.NDArray[Any] | None, rows: int, spec: TensorSpec) -> int:
    """How many values a row has; 0 if there are no rows, or that is not known."""
    if array is not None and rows:
        return array.size // rows if array.ndim and len(array) == rows else 0
    if not spec.shape:
        return 0
    return 0 if -1 in spec.shape[1:] else math.prod(spec.shape[1:])


def _usual(specs: Sequence[TensorSpec]) -> str | None:
    names = [spec.name for spec in specs]
    return next((name for name in _USUAL if name in names), names[0] if names else None)


def _classes(label: str | None, scores: str, answers: Answers, graph: Graph, truth: Sequence[str]) -> tuple[Label, ...]:
    """The classes in the order of the scores; none if nothing says them."""
    array = answers.get(scores)
    width = array.size // len(array) if array is not None and len(array) else 0
    of_scores, of_label = graph.labels.get(scores, ()), graph.labels.get(label or "", ())
    # Of other names than the label's are those of a model within the model, as a stack has one.
    inner = scores not in graph.maps and of_label and set(of_scores) != set(of_label)
    for found in (() if inner else of_scores, of_label):
        if found and width in {0, len(found)}:
            return found
    if not width:
        return ()
    if label is not None and (seen := _observed(answers[label], answers[scores])):
        return seen
    if truth:
        return _named(sorted(set(truth)), width, texts=label is None)
    return tuple(range(width)) if label is None and graph.makers.get(scores) == "Softmax" else ()


def _named(words: Sequence[str], width: int, *, texts: bool) -> tuple[Label, ...]:
    """The classes by the truth: positions, or as many values as there are scores, in their order.

    Args:
        words: the values of the truth.
        width: how many scores there are.
        texts: whether classes may be text; a graph whose labels are text says them itself.
    """
    whole = [number for number in map(_whole, words) if number is not None]
    if len(whole) == len(words):
        if min(whole) >= 0 and max(whole) < width:
            return tuple(range(width))
        return tuple(sorted(whole)) if len(whole) == width else ()
    # As scikit-learn's encoders order them.
    return (
        tuple(words) if texts and len(words) == width and not any(_number(word) is not None for word in words) else ()
    )


def _observed(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> tuple[Label, ...]:
    """The classes by which label the graph gives where a column is best, if each column is, and says one alone."""
    best = np.argmax(scores.reshape(len(scores), -1), axis=1)
    flat = labels.reshape(-1)
    found = [set(flat[best == column].tolist()) for column in range(scores.size // len(scores))]
    if any(len(names) != 1 for names in found):
        return ()
    classes = tuple(name for names in found for name in names)
    return classes if len(set(classes)) == len(classes) else ()


def _agreed(answers: Answers, label: str, scores: str, classes: Sequence[Label]) -> bool:
    """Whether the best score is the label's, in most rows."""
    if label not in answers or scores not in answers or not len(answers[label]):
        return True
    best = np.argmax(answers[scores].reshape(len(answers[scores]), -1), axis=1)
    said = answers[label].reshape(-1).tolist()
    agreed = [classes[i] == name for i, name in zip(best.tolist(), said, strict=True)]
    return 2 * agreed.count(True) > len(agreed)


def _fractions(truth: Sequence[str]) -> bool:
    numbers = [_number(cell) for cell in truth if cell]
    return bool(numbers) and any(number is not None and not number.is_integer() for number in numbers)


def _class(cell: str, classes: Sequence[Label]) -> Label | None:
    known: dict[object, Label] = {str(name): name for name in classes}
    if cell in known:
        return known[cell]
    # A column of whole numbers that once had a gap is written 1.0 by pandas.
    by_number = {_number(str(name)): name for name in classes}
    number = _number(cell)
    return None if number is None or None in by_number else by_number.get(number)


def _number(cell: str) -> float | None:
    try:
        value = float(cell) if "_" not in cell else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _whole(cell: str) -> int | None:
    number = _number(cell)
    return int(number) if number is not None and number.is_integer() else None
