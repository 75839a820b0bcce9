"""What a door hands to the predictor: n records for one model, in one of three forms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from threefold.errors import OutsideSignature
from threefold.features import Encoded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from threefold.model import Model
    from threefold.signature import TensorSpec


@dataclass(slots=True)
class Records:
    """Records as JSON objects: n mappings from feature name to value."""

    records: Sequence[Mapping[str, object]]

    def __len__(self) -> int:
        """How many records."""
        return len(self.records)

    def select(self, rows: npt.NDArray[np.intp]) -> Records:
        """The records at some positions."""
        return Records([self.records[i] for i in rows.tolist()])

    def encode(self, model: Model) -> Encoded:
        """The model's tensors for them.

        Raises:
            OutsideSignature: the model takes tensors only.
        """
        if model.encoder is None:
            raise _tensors_only(model)
        return model.encoder.encode(self.records)


@dataclass(slots=True)
class Matrix:
    """Records as numbers: shape [n, features], float64, in the order of the features, NaN for a missing value.

    Attributes:
        features: the names of the columns, which must be the model's features.
    """

    values: npt.NDArray[np.float64]
    features: tuple[str, ...]

    def __len__(self) -> int:
        """How many records."""
        return len(self.values)

    def select(self, rows: npt.NDArray[np.intp]) -> Matrix:
        """The records at some positions."""
        return Matrix(self.values[rows], self.features)

    def encode(self, model: Model) -> Encoded:
        """The model's tensors for them.

        Raises:
            OutsideSignature: the model takes tensors only.
        """
        if model.encoder is None:
            raise _tensors_only(model)
        names = tuple(feature.name for feature in model.manifest.signature.features)
        if names != self.features or not model.encoder.matrix_ready:
            # A challenger may know other features than the champion that the rows were read for.
            rows = [dict(zip(self.features, row, strict=True)) for row in self.values.tolist()]
            return model.encoder.encode(rows)
        return model.encoder.encode_matrix(self.values.copy())


@dataclass(slots=True)
class Tensors:
    """Records as raw tensors, each with as many rows as its sender chose: input name to array."""

    records: Sequence[Mapping[str, npt.NDArray[Any]]]

    def __len__(self) -> int:
        """How many records."""
        return len(self.records)

    def select(self, rows: npt.NDArray[np.intp]) -> Tensors:
        """The records at some positions."""
        return Tensors([self.records[i] for i in rows.tolist()])

    def encode(self, model: Model) -> Encoded:
        """The model's tensors for them, stacked; where its rows cannot be, for one record only."""
        problems: dict[int, list[str]] = {}
        specs = model.manifest.signature.inputs
        for i, tensors in enumerate(self.records):
            if wrong := check_tensors(tensors, specs, stackable=model.manifest.signature.stackable):
                problems[i] = wrong
        accepted = [tensors for i, tensors in enumerate(self.records) if i not in problems]
        rows = np.array([i for i in range(len(self.records)) if i not in problems], np.intp) if problems else None
        if not accepted:
            return Encoded({}, rows, problems)
        if len(accepted) == 1:
            return Encoded(dict(accepted[0]), rows, problems)
        assert model.manifest.signature.stackable, "the predictor hands in records one by one where it is not"
        counts = [len(next(iter(tensors.values()))) for tensors in accepted]
        stacked = {spec.name: np.concatenate([tensors[spec.name] for tensors in accepted]) for spec in specs}
        return Encoded(stacked, rows, problems, counts=counts)


@dataclass(slots=True, kw_only=True)
class Request:
    """n records for one model.

    Attributes:
        version: a version label or digest that the caller asks for; None follows the release.
        release_id: the release document's object version to follow; None follows the one in force.
        ids: the prediction ids, one a record; minted if None.
        keys: the records' own keys, one a record, if they have any.
        at_ms: when each record happened, unless it says so itself, milliseconds since 1970; None means now.
        now_ms: the time that no record may be far ahead of; None means now.
        counted: the records are counted afterwards, so that the windows of later ones hold the earlier ones.
        windows: the windows' values, where they were replayed already: by the package's digest and the feature, one a
            record, NaN for none.
    """

    model: str
    rows: Records | Matrix | Tensors
    version: str | None = None
    release_id: str | None = None
    ids: Sequence[str] | None = None
    keys: Sequence[str | None] | None = field(default=None)
    at_ms: Sequence[int] | None = None
    now_ms: int | None = None
    counted: bool = False
    windows: Mapping[str, Mapping[str, npt.NDArray[np.float64]]] | None = None


def record_keys(records: Sequence[Any], field: str | None) -> list[str | None] | None:
    """The records' own keys, by the field that holds them; None if the model declares no key."""
    if field is None:
        return None
    found = (record.get(field) if hasattr(record, "get") else None for record in records)
    # A list or an object is nobody's id; a record that has one goes by its prediction id.
    return [str(value) if isinstance(value, str | int | float) and value != "" else None for value in found]


def check_tensors(
    tensors: Mapping[str, npt.NDArray[Any]], specs: Sequence[TensorSpec], *, stackable: bool = True
) -> list[str]:
    """Say all that is wrong with raw tensors: names, datatypes, shapes, and rows that do not match.

    Args:
        tensors: input name to array.
        specs: the model's inputs.
        stackable: whether the first dimension is rows, as many as the sender likes.
    """
    names = {spec.name for spec in specs}
    wrong = [f"input '{name}': want one of {sorted(names)}" for name in tensors if name not in names]
    rows = set()
    for spec in specs:
        array = tensors.get(spec.name)
        if array is None:
            wrong.append(f"input '{spec.name}': want {spec.datatype} {list(spec.shape)}, got nothing")
            continue
        if array.dtype != spec.dtype:
            wrong.append(f"input '{spec.name}': want {spec.datatype}, got {array.dtype}")
        # A fixed batch dimension is chunked and padded by the model, so that only the other dimensions must match.
        first = int(stackable)
        fits = array.ndim == len(spec.shape) and all(
            want in {-1, got} for want, got in zip(spec.shape[first:], array.shape[first:], strict=True)
        )
        if not fits:
            wrong.append(f"input '{spec.name}': want shape {list(spec.shape)}, got {list(array.shape)}")
        elif stackable:
            rows.add(len(array))
    if not wrong and len(rows) > 1:
        wrong.append(f"inputs: want the same number of rows in each, got {sorted(rows)}")
    return wrong


def _tensors_only(model: Model) -> OutsideSignature:
    names = [spec.name for spec in model.manifest.signature.inputs]
    message = f"model '{model.manifest.name}': want tensors {names}, for it has no named features; got records"
    return OutsideSignature(message)
