"""A graph's first run over somebody's data, before there is a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold.errors import OutsideSignature
from threefold.features import parse_cell
from threefold.model import Model
from threefold.package import Manifest, Output, Package
from threefold.signature import DTYPES, Signature
from threefold_ops.scaffold.inference import infer_column, with_missing
from threefold_ops.scaffold.samples import thin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from threefold.signature import Feature
    from threefold_ops.scaffold.inference import Column, Inputs
    from threefold_ops.scaffold.table import Table

    Tensors = dict[str, npt.NDArray[Any]]

# What is measured on so many rows is not measured better on more.
MAXIMUM_ROWS: Final = 20_000
MAXIMUM_VALUES: Final = 2_000_000
# A graph that knows what a NaN is knows it in each of these.
_NAN_ROWS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRun:
    """What went in and what came out.

    Attributes:
        features: with their types, ranges and defaults.
        remarks: by feature, what the data says that the feature does not.
        rows: the positions in the data of the n records that the graph takes; none where there is no data.
        records: the n records; none for a model that takes tensors only.
        tensors: what the graph was given for them.
        answers: what it answered, output name to array.
        refused: why other rows of the data were not taken, by their position.
        drawn: whether the inputs were drawn at random.
    """

    features: tuple[Feature, ...] = ()
    remarks: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[int] = ()
    records: Sequence[Mapping[str, Any]] = ()
    tensors: Tensors = field(default_factory=dict)
    answers: Tensors = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    drawn: bool = False


def load(path: Path, signature: Signature, weights: tuple[str, ...], output: Output) -> Model:
    """A model whose package is not written yet; what it is called does not matter.

    Raises:
        InvalidPackage: its features do not fit its inputs.
    """
    manifest = Manifest(name="new", version="0", signature=signature, output=output, weights=weights)
    return Model(Package(path.parent, "0" * 64, manifest))


def run_over(path: Path, found: Signature, weights: tuple[str, ...], inputs: Inputs, table: Table | None) -> FirstRun:
    """Run a graph over a table's rows; without any, say what its features are.

    Args:
        path: the ONNX file, called as in a package.
        found: its tensors.
        weights: the files beside it.
        inputs: its features.
        table: the data.

    Raises:
        OperatorError: a column of the data is not what its input takes.
        InvalidPackage: the features do not fit the inputs.
    """
    datatypes = _datatypes(found, inputs)
    cells = [table.cells(column) for column in inputs.columns] if table else [[] for _ in inputs.names]
    columns = [
        infer_column(name, datatype, column, table.lines if table else ())
        for name, datatype, column in zip(inputs.names, datatypes, cells, strict=True)
    ]
    features = tuple(with_missing(column, nan=False) for column in columns)
    if table is None or not table.rows or inputs.layout is None:
        return FirstRun(features=features)

    def model(features: tuple[Feature, ...]) -> Model:
        named = Signature(found.inputs, found.outputs, features, inputs.layout)
        return load(path, named, weights, Output(kind="tensors"))

    rows = thin(range(len(table.rows)), min(MAXIMUM_ROWS, max(1, MAXIMUM_VALUES // len(columns))))
    knows = [False] * len(columns)
    if any(column.blanks for column in columns):
        first = model(features)
        sample = _run(first, [_record(features, cells, row) for row in rows[:_NAN_ROWS]]).tensors
        knows = [
            bool(column.blanks) and DTYPES[datatype].kind == "f" and _knows_nan(first, sample, inputs, i)
            for i, (column, datatype) in enumerate(zip(columns, datatypes, strict=True))
        ]
        features = tuple(with_missing(column, nan=nan) for column, nan in zip(columns, knows, strict=True))
    done = _run(model(features), [_record(features, cells, row) for row in rows])
    return FirstRun(
        features=features,
        remarks={
            column.feature.name: _remark(column, len(table.rows), nan=nan)
            for column, nan in zip(columns, knows, strict=True)
            if column.blanks
        },
        rows=[rows[i] for i in done.rows],
        records=done.records,
        tensors=done.tensors,
        answers=done.answers,
        refused={rows[i]: why for i, why in done.refused.items()},
    )


def _datatypes(found: Signature, inputs: Inputs) -> list[str]:
    if inputs.layout == "packed":
        return [found.inputs[0].datatype] * len(inputs.names)
    types = {spec.name: spec.datatype for spec in found.inputs}
    return [types[name] for name in inputs.names]


def _record(features: Sequence[Feature], cells: Sequence[Sequence[str]], row: int) -> dict[str, Any]:
    """A row as JSON has it, without what is missing."""
    values = ((feature.name, parse_cell(feature, column[row])) for feature, column in zip(features, cells, strict=True))
    return {name: value for name, value in values if value is not None and value == value}  # noqa: PLR0124 - NaN


def _run(model: Model, records: list[dict[str, Any]]) -> FirstRun:
    """Run the records that the features and the graph take; positions are those among the records."""
    assert model.encoder is not None, "it has features"
    encoded = model.encoder.encode(records)
    accepted = list(range(len(records))) if encoded.rows is None else encoded.rows.tolist()
    outside: dict[int, str] = {}
    parts = _run_parts(model, encoded.tensors, range(len(accepted)), outside)
    taken = [i for i in range(len(accepted)) if i not in outside]
    rows = [accepted[i] for i in taken]
    refused = {i: "; ".join(problems) for i, problems in encoded.problems.items()}
    return FirstRun(
        rows=rows,
        records=[records[i] for i in rows],
        tensors={name: array[taken] for name, array in encoded.tensors.items()} if rows else {},
        answers={name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {},
        refused=refused | {accepted[i]: why for i, why in outside.items()},
    )


def _run_parts(model: Model, tensors: Tensors, rows: Sequence[int], refused: dict[int, str]) -> list[Tensors]:
    """Run a graph over rows, without those that it refuses.

    Args:
        model: whose rows can be stacked.
        tensors: the rows' inputs.
        rows: the positions of those to run.
        refused: takes why, by position.

    Returns:
        The answers to the others, in parts.
    """
    if not rows:
        return []
    try:
        return [model.run({name: array[list(rows)] for name, array in tensors.items()})]
    except OutsideSignature as error:
        if len(rows) == 1:
            refused[rows[0]] = str(error)
            return []
    # Halved until those are alone that the graph refuses.
    halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    return [answers for half in halves for answers in _run_parts(model, tensors, half, refused)]


def _knows_nan(model: Model, sample: Tensors, inputs: Inputs, position: int) -> bool:
    """Whether a graph answers with finite numbers where a feature is NaN."""
    name = next(iter(sample), "") if inputs.layout == "packed" else inputs.names[position]
    if name not in sample or not len(sample[name]):
        return False
    blank = sample[name].copy()
    if inputs.layout == "packed":
        blank[:, position] = np.nan
    else:
        blank[:] = np.nan
    try:
        answers = model.run({**sample, name: blank})
    except OutsideSignature:
        return False
    return all(bool(np.isfinite(array).all()) for array in answers.values() if array.dtype.kind == "f")


def _remark(column: Column, rows: int, *, nan: bool) -> str:
    found = f"blank in {column.blanks} of {rows} rows: "
    if column.common is None:
        return f"{found}nothing is known of it"
    if nan:
        return f"{found}the graph itself answers a NaN"
    ordered = column.feature.type not in {"bool", "string"} and column.feature.allowed is None
    return f"{found}the {'median' if ordered else 'most frequent value'} stands in; see what the training did"
