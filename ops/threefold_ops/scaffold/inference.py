"""What a graph's inputs and somebody's data say of a model's features: names, types, ranges, and the record's key."""

from __future__ import annotations

import decimal
import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from threefold.errors import shown
from threefold.features import parse_cell
from threefold.signature import DTYPES, Feature
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from threefold.signature import Layout, Scalar, Signature, TensorSpec
    from threefold_ops.scaffold.table import Table

# Of the data's spread, on each side: what comes next is not exactly what came before.
MARGIN: Final = 0.15
# Whole numbers of so few values, each seen so often, are codes: another one is a mistake. Of one value nothing is
# known.
MAXIMUM_CODES: Final = 12
LEAST_ROWS_A_CODE: Final = 20
MAXIMUM_WORDS: Final = 100
LEAST_ROWS_A_WORD: Final = 2
_DIGITS: Final = 3
_MATRIX: Final = 2
# No tensor holds a larger whole number.
_LARGEST: Final = 2**64
_ID: Final = re.compile(r"(?:.*[_ -])?id", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a record is made of.

    Attributes:
        layout: None for a model that takes tensors only.
        names: of the features, in order.
        columns: the data's column for each of them; none without data.
        key: the record's own id.
    """

    layout: Layout | None = None
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """What the data says of a feature.

    Attributes:
        feature: its type, and its range or its values; nothing stands in for a missing value yet.
        blanks: in how many rows it is missing.
        common: what could stand in: the median of numbers, else the most frequent value; None without values.
    """

    feature: Feature
    blanks: int = 0
    common: Scalar | None = None


def infer_inputs(signature: Signature, table: Table | None, target: str | None, key: str | None) -> Inputs:
    """Find the features in the inputs' names, or by their number in the data's columns.

    Args:
        signature: the graph's tensors.
        table: the data, if there is any.
        target: its column that holds the truth.
        key: its column that is the record's own id; None to look for one that is called so.

    Raises:
        OperatorError: the data's columns are not the graph's inputs.
    """
    specs = signature.inputs
    rows = all(spec.shape and spec.shape[0] == -1 for spec in specs) or signature.fixed_batch > 0
    if not rows or not specs:
        return Inputs(key=key)
    if len(specs) == 1 and len(specs[0].shape) == _MATRIX and specs[0].datatype != "BYTES":
        return _packed(specs[0], table, target, key)
    if all(spec.shape[1:] in {(1,), ()} or (table and spec.shape[1:] == (-1,)) for spec in specs):
        return _columns(specs, table, target, key)
    return Inputs(key=key)


def _packed(spec: TensorSpec, table: Table | None, target: str | None, key: str | None) -> Inputs:
    width = spec.shape[1]
    if table is None:
        return (
            Inputs(None, key=key)
            if width < 0
            else Inputs("packed", tuple(f"feature_{i}" for i in range(width)), key=key)
        )
    # pandas writes its index under no name.
    named = [name for name in table.columns if name and name != target]
    found = [name for name in named if name != key]
    if key is None and width != len(found):
        key = _key(table, found)
        found = [name for name in found if name != key] if width in {-1, len(found) - 1} else found
    if key in named and width == len(named):
        found = named
    if width not in {-1, len(found)} or not found:
        want = f"{width} columns" if width > 0 else "a column or more"
        raise OperatorError(
            f"--data: want {want} for input '{spec.name}' {list(spec.shape)}, "
            f"got {len(found)} beside the target and the key: {found}; "
            f"all columns are {list(table.columns)}; name the target with --target and the record's id with --key"
        )
    return Inputs("packed", tuple(found), tuple(found), key)


def _columns(specs: Sequence[TensorSpec], table: Table | None, target: str | None, key: str | None) -> Inputs:
    names = tuple(spec.name for spec in specs)
    if table is None:
        return Inputs("columns", names, key=key)
    known = {_plain(name): name for name in reversed(table.columns) if name}
    found = [name if name in table.columns else known.get(_plain(name)) for name in names]
    lacking = [name for name, column in zip(names, found, strict=True) if column is None]
    if len(lacking) == len(names) and any(spec.shape[1:] == (-1,) for spec in specs):
        return Inputs(key=key)  # Open in both dimensions, and no column of theirs: tensors, as a text encoder's.
    if lacking:
        raise OperatorError(
            f"--data: want a column for each of the graph's inputs {list(names)}, got none for {lacking}; "
            f"the columns are {list(table.columns)}"
        )
    columns = tuple(column for column in found if column is not None)
    if target in columns:
        raise OperatorError(f"--target: want a column that is no input of the graph, got {target!r}, which is one")
    others = [name for name in table.columns if name not in columns and name != target]
    return Inputs("columns", names, columns, key or _key(table, others))


def _key(table: Table, columns: Sequence[str]) -> str | None:
    """A column that is called an id, and is one: every row has its own."""
    for name in columns:
        if _ID.fullmatch(name) and table.rows and len({*map(str.strip, table.cells(name))} - {""}) == len(table.rows):
            return name
    return None


def infer_column(name: str, datatype: str, cells: Sequence[str], lines: Sequence[int]) -> Column:
    """A feature's type, range and values.

    Args:
        name: the feature's.
        datatype: of the tensor that it goes to.
        cells: its column; without any, nothing is known but the type.
        lines: where they stand.

    Raises:
        OperatorError: most of them are not what the tensor takes.
    """
    kind = _type(datatype, cells)
    feature = Feature(name=name, type=kind)
    found: list[Scalar] = []
    odd: list[int] = []
    for i, cell in enumerate(cells):
        value = parse_cell(feature, cell)
        if value is None or value != value:  # noqa: PLR0124 - only NaN differs from itself
            continue
        if (scalar := _scalar(kind, value)) is None:
            odd.append(i)
        else:
            found.append(scalar)
    if len(odd) > len(found):
        first = odd[0]
        raise OperatorError(
            f"--data: column {name!r}: want {datatype} values, as the graph takes, "
            f"got {shown(cells[first])} (line {lines[first]})"
        )
    blanks = len(cells) - len(found) - len(odd)
    if not found:
        return Column(feature, blanks)
    return _described(feature, datatype, found, blanks)


def with_missing(column: Column, nan: bool) -> Feature:
    """The feature with what stands in for a missing value, if the data has blanks.

    Args:
        column: what the data says.
        nan: whether the graph itself knows what to do with a NaN.
    """
    feature = column.feature
    if not column.blanks or column.common is None:
        return feature
    if nan and feature.type in {"float32", "float64", "int32", "int64"}:
        if feature.allowed is None:
            return replace(feature, missing=math.nan)
        # A code has no NaN, so it is a number after all.
        codes = [float(code) for code in feature.allowed]
        low, high = _range(codes[0], codes[-1], whole=False)
        return replace(feature, type="float32", allowed=None, min=low, max=high, missing=math.nan)
    return replace(feature, missing=column.common)


def _type(datatype: str, cells: Sequence[str]) -> str:
    if datatype == "BYTES":
        return "string"
    if datatype == "BOOL":
        return "bool"
    if DTYPES[datatype].kind in "iu":
        return "int32" if datatype == "INT32" else "int64"
    words = {cell.strip().casefold() for cell in cells} - {""}
    if words and words <= {"true", "false"}:
        return "bool"
    return "float64" if datatype == "FP64" else "float32"


def _scalar(kind: str, value: object) -> Scalar | None:
    """A value that was read, if it is of its type: numbers finite, and whole where they must be."""
    if kind in {"string", "bool"}:
        return value if isinstance(value, str if kind == "string" else bool) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < _LARGEST else None
    whole = isinstance(value, float) and math.isfinite(value) and (kind.startswith("float") or value.is_integer())
    return value if isinstance(value, float) and whole else None


def _described(feature: Feature, datatype: str, found: list[Scalar], blanks: int) -> Column:
    counts = Counter(found)
    common, average = counts.most_common(1)[0][0], len(found) / len(counts)
    if feature.type == "bool":
        return Column(feature, blanks, common)
    if feature.type == "string":
        few = len(counts) <= MAXIMUM_WORDS and average >= LEAST_ROWS_A_WORD
        words = tuple(sorted(counts, key=str)) if few else None
        return Column(replace(feature, allowed=words), blanks, common)
    numbers = sorted(float(value) for value in found)
    whole = all(number.is_integer() for number in numbers)
    if whole and 1 < len(counts) <= MAXIMUM_CODES and average >= LEAST_ROWS_A_CODE:
        kind = feature.type if feature.type.startswith("int") else "int64"
        codes = tuple(int(code) for code in sorted(counts, key=float))
        return Column(replace(feature, type=kind, allowed=codes), blanks, int(common))
    low, high = _range(numbers[0], numbers[-1], whole=whole and DTYPES[datatype].kind in "iu")
    middle = numbers[len(numbers) // 2]
    median = int(middle) if feature.type.startswith("int") else middle
    return Column(replace(feature, min=low, max=high), blanks, median)


def _range(low: float, high: float, *, whole: bool) -> tuple[float, float]:
    """The data's range and a margin, rounded outward; what is never negative stays so."""
    margin = (high - low) * MARGIN or abs(low) * MARGIN or 1.0
    least, most = _outward(low - margin, decimal.ROUND_FLOOR), _outward(high + margin, decimal.ROUND_CEILING)
    if low >= 0:
        least = max(least, 0.0)
    if high <= 0:
        most = min(most, 0.0)
    return (float(math.floor(least)), float(math.ceil(most))) if whole else (least, most)


def _outward(value: float, rounding: str) -> float:
    """A number of few digits, on the far side of another."""
    # By way of 12 digits: 7.9 + 0.54 is more than 8.44, by the last of its bits.
    return float(decimal.Context(_DIGITS, rounding).create_decimal(f"{value:.12g}"))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")
