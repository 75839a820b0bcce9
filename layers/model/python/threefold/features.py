"""From named features to tensors: checked, defaulted and packed, many records at once."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from operator import itemgetter, le
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold.errors import shown
from threefold.signature import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from threefold.signature import Feature, Scalar, Signature, TensorSpec

Row = tuple["Scalar", ...]
Tensors = dict[str, "npt.NDArray[Any]"]

_NUMBERS: Final = frozenset({float, int})
# JSON has no word for them: Triton's and KServe's clients send these.
_NON_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# The integers that a float of this width holds exactly; not FP64's 2**53, for 2**53 + 1 becomes it on the way.
_EXACT: Final = {"FP16": 2**11, "FP32": 2**24, "FP64": 2**53 - 1}


@dataclass(slots=True)
class Encoded:
    """Records as tensors.

    Attributes:
        tensors: input name to an array whose first axis is the accepted records, in order.
        rows: the position of each accepted record, shape [accepted]; None when all were accepted.
        problems: by position, why a record was not accepted: one sentence each, what, wanted, got.
        reasons: by position, what a reader should know of an accepted record: defaults used, values flagged.
        counts: rows per accepted record, where records brought several; None when each is one row.
    """

    tensors: Tensors
    rows: npt.NDArray[np.intp] | None = None
    problems: dict[int, list[str]] = field(default_factory=dict)
    reasons: dict[int, list[str]] = field(default_factory=dict)
    counts: list[int] | None = None

    def without(self, refused: dict[int, list[str]], size: int) -> Encoded:
        """The same with some of the accepted records refused after all.

        Args:
            refused: why, by position among the accepted.
            size: how many were accepted.
        """
        keep = np.array([i not in refused for i in range(size)], np.bool_)
        positions = np.arange(size) if self.rows is None else self.rows
        rows = keep if self.counts is None else np.repeat(keep, self.counts)
        return Encoded(
            {name: array[rows] for name, array in self.tensors.items()} if keep.any() else {},
            positions[keep],
            self.problems | {int(positions[i]): problems for i, problems in refused.items()},
            {i: notes for i, notes in self.reasons.items() if i not in set(positions[~keep].tolist())},
            None if self.counts is None else [count for count, kept in zip(self.counts, keep, strict=True) if kept],
        )


class FeatureEncoder:
    """Turns records into a model's input tensors, by its signature.

    What a value must be is said once, in `_examine`. Before it stands a screen over all records at a time that lets
    through only what `_examine` would accept unchanged; what the screen holds back is examined one by one.
    """

    def __init__(self, signature: Signature) -> None:
        self._features = signature.features
        self._specs = signature.inputs
        self._packed = signature.layout != "columns"
        by_name = {spec.name: spec for spec in signature.inputs}
        self._datatypes = [
            (signature.inputs[0] if self._packed else by_name[feature.name]).datatype for feature in self._features
        ]
        self._getter = _getter([feature.name for feature in self._features])
        self._pack_row = struct.Struct(f"{len(self._features)}d").pack
        self._numeric = all(feature.type in {"float32", "float64", "int32", "int64"} for feature in self._features)
        bounds = [_bounds(*pair) for pair in zip(self._features, self._datatypes, strict=True)]
        self._bounds = tuple(zip(*bounds, strict=True))
        self._low = np.array([low for low, _ in bounds], np.float64)
        self._high = np.array([high for _, high in bounds], np.float64)
        self._integers = [i for i, feature in enumerate(self._features) if feature.type in {"int32", "int64"}]
        self._allowed = {
            i: np.array(feature.allowed, np.float64)
            for i, feature in enumerate(self._features)
            if self._numeric and feature.allowed is not None
        }

        self._ranges_only = self.matrix_ready and not self._integers and not self._allowed

    @property
    def matrix_ready(self) -> bool:
        """Whether `encode_matrix` can be used: one packed tensor of numbers."""
        return self._packed and self._numeric

    def encode(self, records: Sequence[Mapping[str, object]]) -> Encoded:
        """Encode records as they come from JSON.

        Args:
            records: n mappings from feature name to value; fields that are no features are left alone.
        """
        if len(records) == 1 and self._ranges_only and (row := self._screen_alone(records[0])) is not None:
            return Encoded({self._specs[0].name: row})
        if self.matrix_ready and (matrix := self._screen(records)) is not None:
            return self._finish_matrix(matrix, records.__getitem__)
        rows: list[Row | None] = [None] * len(records)
        problems: dict[int, list[str]] = {}
        reasons: dict[int, list[str]] = {}
        for i, record in enumerate(records):
            rows[i] = self._examine(record, i, problems, reasons)
        accepted = [row for row in rows if row is not None]
        positions = None if not problems else np.array([i for i, row in enumerate(rows) if row is not None], np.intp)
        return Encoded(self._pack(accepted), positions, problems, reasons)

    def encode_matrix(self, matrix: npt.NDArray[np.float64]) -> Encoded:
        """Encode rows that are numbers already.

        Args:
            matrix: shape [n, features], in the order of the features; NaN stands for a missing value. Rows that
                need a second look are changed.
        """
        return self._finish_matrix(matrix, lambda i: self._record(matrix[i]))

    def _screen_alone(self, record: Mapping[str, object]) -> npt.NDArray[Any] | None:
        """One record's values as a [1, features] tensor, if every one is a number within its bounds.

        Measured: numpy's setting up, which a thousand records share, takes twice as long as this.
        """
        try:
            values = self._getter(record)
        except (KeyError, TypeError):
            return None
        low, high = self._bounds
        if _NUMBERS.issuperset(map(type, values)) and all(map(le, low, values)) and all(map(le, values, high)):
            return np.array([values], self._specs[0].dtype)
        return None

    def _screen(self, records: Sequence[Mapping[str, object]]) -> npt.NDArray[np.float64] | None:
        """All values as a [n, features] matrix, if every one is a number."""
        try:
            rows = [self._getter(record) for record in records]
            packed = bytearray().join([self._pack_row(*row) for row in rows])
        except (KeyError, TypeError, OverflowError, struct.error):
            return None
        matrix = np.frombuffer(packed, np.float64).reshape(len(rows), len(self._features))
        # True and False were packed as well. Measured: to ask every value for its type takes as long as all the rest.
        doubtful = ((matrix == 0.0) | (matrix == 1.0)).any(axis=1)
        if all(_NUMBERS.issuperset(map(type, rows[i])) for i in np.flatnonzero(doubtful).tolist()):
            return matrix
        return None

    def _finish_matrix(
        self, matrix: npt.NDArray[np.float64], record_at: Callable[[int], Mapping[str, object]]
    ) -> Encoded:
        good = (matrix >= self._low) & (matrix <= self._high)
        for column in self._integers:
            good[:, column] &= matrix[:, column] == np.floor(matrix[:, column])
        for column, values in self._allowed.items():
            good[:, column] &= np.isin(matrix[:, column], values)
        spec = self._specs[0]
        # For one record `good.all()` takes three times as long.
        if np.count_nonzero(good) == good.size:
            return Encoded({spec.name: matrix.astype(spec.dtype)})
        problems: dict[int, list[str]] = {}
        reasons: dict[int, list[str]] = {}
        examined = np.flatnonzero(~good.all(axis=1)).tolist()
        rows = {i: self._examine(record_at(i), i, problems, reasons) for i in examined}
        matrix[examined] = 0.0
        packed = matrix.astype(spec.dtype)
        for i, row in rows.items():
            if row is not None:
                # Not by way of the matrix: float64 holds no integer beyond 2**53 exactly.
                packed[i] = row
        if not problems:
            return Encoded({spec.name: packed}, None, problems, reasons)
        keep = np.ones(len(matrix), np.bool_)
        keep[list(problems)] = False
        return Encoded({spec.name: packed[keep]}, np.flatnonzero(keep), problems, reasons)

    def _examine(
        self, record: object, position: int, problems: dict[int, list[str]], reasons: dict[int, list[str]]
    ) -> Row | None:
        """One record's values, checked and defaulted; or None, with its problems noted."""
        if not hasattr(record, "get"):
            problems[position] = [f"record: want an object of features, got {shown(record)}"]
            return None
        wrong: list[str] = []
        notes: list[str] = []
        row: list[Scalar] = []
        for feature, datatype in zip(self._features, self._datatypes, strict=True):
            value = record.get(feature.name)
            if isinstance(value, str) and feature.type != "string":
                value = _NON_FINITE.get(value, value)
            if value is None or (isinstance(value, float) and math.isnan(value)):
                if feature.missing is None:
                    wrong.append(f"input '{feature.name}': want {_wanted(feature)}, got nothing")
                else:
                    notes.append(f"input '{feature.name}': missing, {feature.missing} stands in")
                    row.append(feature.missing)
                continue
            if (verdict := _judge(feature, datatype, value)) is not None:
                problem = f"input '{feature.name}': want {_wanted(feature)}, got {shown(value)}"
                (notes if verdict == "flag" else wrong).append(problem)
            row.append(value)
        if wrong:
            problems[position] = wrong
            return None
        if notes:
            reasons[position] = notes
        return tuple(row)

    def _pack(self, rows: list[Row]) -> Tensors:
        if self._packed:
            spec = self._specs[0]
            return {spec.name: np.array(rows, spec.dtype).reshape(len(rows), len(self._features))}
        columns = {feature.name: [row[i] for row in rows] for i, feature in enumerate(self._features)}
        return {spec.name: _column(columns[spec.name], spec) for spec in self._specs}

    def _record(self, row: npt.NDArray[np.float64]) -> dict[str, object]:
        return {
            feature.name: int(value) if feature.type.startswith("int") and value.is_integer() else value
            for feature, value in zip(self._features, row.tolist(), strict=True)
        }


def parse_cell(feature: Feature, text: str) -> object:
    """What a CSV cell says, as JSON would say it; text that is no such value stays text, and fails its check.

    Args:
        feature: the feature that the cell belongs to.
        text: the cell; empty means missing.
    """
    if feature.type == "string":
        return text or None
    text = text.strip()
    if feature.type == "bool":
        return {"true": True, "1": True, "false": False, "0": False, "": None}.get(text.lower(), text)
    if not text or "_" in text:  # Python reads 1_000 as a number; no CSV means that.
        return text or None
    try:
        return _whole(text) if feature.type.startswith("int") else float(text)
    except ValueError:
        return text


def _whole(text: str) -> float:
    """An integer however it is written, exact where it is written as one; any other number as it is."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        return int(number) if number.is_integer() else number


def _getter(names: Sequence[str]) -> Callable[[Mapping[str, object]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda record: tuple(record[name] for name in names)


def _bounds(feature: Feature, datatype: str) -> tuple[float, float]:
    """The closed range in which a number needs no second look."""
    if datatype in {"BYTES", "BOOL"}:
        return -math.inf, math.inf
    low, high = _representable(feature, datatype)
    return (
        low if feature.min is None else max(low, feature.min),
        high if feature.max is None else min(high, feature.max),
    )


def _representable(feature: Feature, datatype: str) -> tuple[float, float]:
    """The numbers that the tensor can hold: finite ones; for integer features, those it holds exactly."""
    if datatype in _EXACT:
        limit = float(_EXACT[datatype]) if feature.type.startswith("int") else float(np.finfo(DTYPES[datatype]).max)
        return -limit, limit
    information = np.iinfo(DTYPES[datatype])
    # A matrix of float64 carries no larger integer exactly; what lies beyond is examined as the integer it was.
    limit = float(_EXACT["FP64"])
    return max(float(information.min), -limit), min(float(information.max), limit)


def _judge(feature: Feature, datatype: str, value: object) -> str | None:
    """What a value that is there means: None when it is right, else the feature's word for it."""
    if not _has_type(feature, value) or not _fits(feature, datatype, value):
        return "error"
    if feature.allowed is not None and value not in feature.allowed:
        return "error"
    return feature.outside if _outside(feature, value) else None


def _has_type(feature: Feature, value: object) -> bool:
    if feature.type == "string":
        return isinstance(value, str)
    if feature.type == "bool":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if feature.type.startswith("int"):
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, int | float)


def _fits(feature: Feature, datatype: str, value: Any) -> bool:  # noqa: ANN401 - any scalar that has its type
    if datatype in {"BYTES", "BOOL"} or isinstance(value, bool | str):
        return True
    if datatype in _EXACT:
        low, high = _representable(feature, datatype)
        return bool(low <= value <= high)
    information = np.iinfo(DTYPES[datatype])
    return bool(information.min <= value <= information.max)


def _outside(feature: Feature, value: Any) -> bool:  # noqa: ANN401 - any scalar that has its type
    if isinstance(value, str):
        return False
    return (feature.min is not None and value < feature.min) or (feature.max is not None and value > feature.max)


def _wanted(feature: Feature) -> str:
    if feature.allowed is not None:
        return f"one of {list(feature.allowed)}"
    wanted = feature.datatype if feature.type not in {"string", "bool"} else feature.type
    if feature.min is not None or feature.max is not None:
        low = "-inf" if feature.min is None else f"{feature.min:g}"
        high = "inf" if feature.max is None else f"{feature.max:g}"
        wanted = f"{wanted} in [{low}, {high}]"
    return wanted


def _column(values: list[Scalar], spec: TensorSpec) -> npt.NDArray[Any]:
    array = np.array(values, spec.dtype)
    return array.reshape(len(values), 1) if len(spec.shape) > 1 else array
