"""Tensor specs, named features over them, and the datatypes of the Open Inference Protocol."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from threefold.errors import InvalidManifest
from threefold.sources import SOURCE_FIELDS, FeatureSource, TableSource, WindowSource, source_from_json

if TYPE_CHECKING:
    from collections.abc import Mapping

Scalar = float | int | str | bool
Layout = Literal["packed", "columns"]
Outside = Literal["error", "flag"]

# Open Inference Protocol, "Tensor Data Types"; BYTES is a string tensor in ONNX.
DTYPES: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype(np.uint8),
        "UINT16": np.dtype(np.uint16),
        "UINT32": np.dtype(np.uint32),
        "UINT64": np.dtype(np.uint64),
        "INT8": np.dtype(np.int8),
        "INT16": np.dtype(np.int16),
        "INT32": np.dtype(np.int32),
        "INT64": np.dtype(np.int64),
        "FP16": np.dtype(np.float16),
        "FP32": np.dtype(np.float32),
        "FP64": np.dtype(np.float64),
        "BYTES": np.dtype(np.object_),
    }
)
# onnxruntime names tensor types after C++: https://onnxruntime.ai/docs/api/python/api_summary.html
ONNX_DATATYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tensor(bool)": "BOOL",
        "tensor(uint8)": "UINT8",
        "tensor(uint16)": "UINT16",
        "tensor(uint32)": "UINT32",
        "tensor(uint64)": "UINT64",
        "tensor(int8)": "INT8",
        "tensor(int16)": "INT16",
        "tensor(int32)": "INT32",
        "tensor(int64)": "INT64",
        "tensor(float16)": "FP16",
        "tensor(float)": "FP32",
        "tensor(double)": "FP64",
        "tensor(string)": "BYTES",
    }
)
FEATURE_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {"float32": "FP32", "float64": "FP64", "int32": "INT32", "int64": "INT64", "bool": "BOOL", "string": "BYTES"}
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's name, datatype and shape; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the datatype; strings are objects."""
        return DTYPES[self.datatype]

    def to_json(self) -> dict[str, Any]:
        """The Open Inference Protocol's metadata of a tensor."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TensorSpec:
        """Read what `to_json` wrote."""
        return cls(document["name"], document["datatype"], tuple(document["shape"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One named value of a record.

    Attributes:
        type: one of FEATURE_TYPES.
        missing: what stands in for a missing value; None makes a missing value an error.
        min: the least value, inclusive.
        max: the greatest value, inclusive.
        outside: what a value outside [min, max] means: `error` rejects the record, `flag` names it in the reasons.
        allowed: the only values there are, if not None.
        source: where we look the value up; None for one that a record brings.
    """

    name: str
    type: str
    missing: Scalar | None = None
    min: float | None = None
    max: float | None = None
    outside: Outside = "error"
    allowed: tuple[Scalar, ...] | None = None
    unit: str | None = None
    description: str | None = None
    source: FeatureSource | None = None

    @property
    def datatype(self) -> str:
        """The Open Inference Protocol's name of the type."""
        return FEATURE_TYPES[self.type]

    def to_json(self) -> dict[str, Any]:
        """The feature without what it leaves to the defaults."""
        document: dict[str, Any] = {"name": self.name, "type": self.type}
        for field in ("missing", "min", "max", "unit", "description"):
            if (value := getattr(self, field)) is not None:
                document[field] = "NaN" if value != value else value  # noqa: PLR0124 - only NaN differs from itself
        if self.outside != "error":
            document["outside"] = self.outside
        if self.allowed is not None:
            document["allowed"] = list(self.allowed)
        return document if self.source is None else document | self.source.to_json()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Feature:
        """Read what `to_json` wrote."""
        fields = dict(document)
        if fields.get("missing") == "NaN" and fields["type"] != "string":
            fields["missing"] = float("nan")
        if "allowed" in fields:
            fields["allowed"] = tuple(fields["allowed"])
        source = source_from_json(fields)
        return cls(**{name: value for name, value in fields.items() if name not in SOURCE_FIELDS}, source=source)


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors a model takes and gives, and the named features over its inputs, if it has them.

    Attributes:
        features: in the order of the packed tensor; empty for a model that takes tensors only.
        layout: `packed`, one [n, features] tensor, or `columns`, one [n, 1] tensor a feature, named as the feature.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    features: tuple[Feature, ...] = ()
    layout: Layout | None = None

    @property
    def own(self) -> tuple[Feature, ...]:
        """The features that a record brings itself."""
        return tuple(feature for feature in self.features if feature.source is None)

    @property
    def windows(self) -> tuple[tuple[str, WindowSource], ...]:
        """The names and sources of the features that are windows over earlier events."""
        return tuple((each.name, each.source) for each in self.features if isinstance(each.source, WindowSource))

    @property
    def tables(self) -> tuple[tuple[Feature, TableSource], ...]:
        """The features that were loaded by entity, and their sources."""
        return tuple((each, each.source) for each in self.features if isinstance(each.source, TableSource))

    @property
    def online(self) -> bool:
        """Whether any feature is looked up by us."""
        return any(feature.source is not None for feature in self.features)

    @property
    def batched(self) -> bool:
        """Whether rows can be stacked: every input and output has a free first dimension."""
        return all(spec.shape and spec.shape[0] == -1 for spec in (*self.inputs, *self.outputs))

    @property
    def fixed_batch(self) -> int:
        """How many rows a call takes, where every input says the same number and every output follows it; else 0."""
        sizes = {spec.shape[0] if spec.shape else 0 for spec in self.inputs}
        size = sizes.pop() if len(sizes) == 1 else 0
        follow = all(spec.shape and spec.shape[0] in {-1, size} for spec in self.outputs)
        return size if size > 0 and follow else 0

    @property
    def stackable(self) -> bool:
        """Whether rows of different records may share a call."""
        return self.batched or self.fixed_batch > 0

    def check(self) -> None:
        """See that the features fit the inputs.

        Raises:
            InvalidManifest: they do not.
        """
        if not self.features:
            return
        names = [feature.name for feature in self.features]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            message = f"features: want names once each, got {doubled} more than once"
            raise InvalidManifest(message)
        if self.layout == "columns":
            self._check_columns()
        else:
            self._check_packed()
        datatypes = {spec.name: spec.datatype for spec in self.inputs}
        for feature in self.features:
            datatype = datatypes[feature.name] if self.layout == "columns" else self.inputs[0].datatype
            if isinstance(feature.source, WindowSource) and not _takes(feature, feature.source):
                wanted = "a number" if feature.source.agg == "count" else "float32 or float64"
                message = f"feature '{feature.name}': want {wanted} for {feature.source.agg}, got {feature.type}"
                raise InvalidManifest(message)
            if feature.missing is not None and not _stands_in(feature, datatype):
                message = f"feature '{feature.name}': want a missing value that is {datatype}, got {feature.missing!r}"
                raise InvalidManifest(message)

    def _check_packed(self) -> None:
        if len(self.inputs) != 1 or self.inputs[0].datatype == "BYTES":
            message = f"layout packed: want one numeric input tensor, got {[spec.to_json() for spec in self.inputs]}"
            raise InvalidManifest(message)
        width = self.inputs[0].shape[1] if len(self.inputs[0].shape) == 2 else None  # noqa: PLR2004 - rows, features
        if width not in {-1, len(self.features)}:
            message = (
                f"layout packed: want an input of shape [-1, {len(self.features)}] for {len(self.features)} features, "
                f"got {list(self.inputs[0].shape)}"
            )
            raise InvalidManifest(message)
        if texts := [feature.name for feature in self.features if feature.type == "string"]:
            message = f"layout packed: want numbers, got string features {texts}; strings need layout: columns"
            raise InvalidManifest(message)
        if lossy := [feature.name for feature in self.features if not _carries(self.inputs[0].datatype, feature.type)]:
            message = f"layout packed: want features that {self.inputs[0].datatype} can hold, got {lossy}"
            raise InvalidManifest(message)

    def _check_columns(self) -> None:
        specs = {spec.name: spec for spec in self.inputs}
        if set(specs) != {feature.name for feature in self.features}:
            message = (
                f"layout columns: want one input per feature, got inputs {sorted(specs)} "
                f"for features {sorted(feature.name for feature in self.features)}"
            )
            raise InvalidManifest(message)
        for feature in self.features:
            spec = specs[feature.name]
            if not _carries(spec.datatype, feature.type) or not spec.shape or spec.shape[1:] not in {(1,), (-1,), ()}:
                message = (
                    f"feature '{feature.name}': want an input [-1, 1] for {feature.type}, "
                    f"got {spec.datatype} {list(spec.shape)}"
                )
                raise InvalidManifest(message)

    def to_json(self) -> dict[str, Any]:
        """The signature as the package's manifest keeps it."""
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "features": [feature.to_json() for feature in self.features],
            "layout": self.layout,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Signature:
        """Read what `to_json` wrote."""
        return cls(
            inputs=tuple(TensorSpec.from_json(spec) for spec in document["inputs"]),
            outputs=tuple(TensorSpec.from_json(spec) for spec in document["outputs"]),
            features=tuple(Feature.from_json(feature) for feature in document["features"]),
            layout=document["layout"],
        )


def _takes(feature: Feature, source: WindowSource) -> bool:
    """Whether a feature's type holds what its window says."""
    return feature.type.startswith("float") or (source.agg == "count" and feature.type.startswith("int"))


def _stands_in(feature: Feature, datatype: str) -> bool:
    """Whether a feature's default is a value of its type that the tensor can hold."""
    value, dtype = feature.missing, DTYPES[datatype]
    if feature.type in {"string", "bool"}:
        return isinstance(value, str if feature.type == "string" else bool)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    if feature.type.startswith("int") and value != value // 1:
        return False
    if dtype.kind in "iu":
        return bool(np.iinfo(dtype).min <= value <= np.iinfo(dtype).max)
    if value != value:  # noqa: PLR0124 - only NaN differs from itself
        return True
    limit = float(np.finfo(dtype).max)
    return -limit <= value <= limit and (feature.type.startswith("float") or float(dtype.type(value)) == value)


def _carries(datatype: str, feature_type: str) -> bool:
    """Whether a tensor can hold a feature's values without a silent cast."""
    kind = DTYPES[datatype].kind
    if feature_type == "string":
        return kind == "O"
    if feature_type == "bool":
        return kind != "O"
    return kind == "f" or (kind in "iu" and feature_type.startswith("int"))
