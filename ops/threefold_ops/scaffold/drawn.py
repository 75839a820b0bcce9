"""Inputs drawn at random, for a graph without data: they show that it says the same everywhere, and no more."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold.errors import OutsideSignature
from threefold_ops.scaffold.first_run import FirstRun

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from threefold.model import Model
    from threefold.signature import Feature, Signature, TensorSpec

    Tensors = dict[str, npt.NDArray[Any]]

_SEED: Final = 20260101
_EXAMPLES: Final = 10
# What a free dimension is tried as: a few words, one, a patch, an image.
_SIZES: Final = (8, 1, 32, 224)
# What whole numbers are drawn below: digits, then flags, where the graph refuses indices beyond its tables.
_BELOW: Final = (10, 2)
_WORDS: Final = ("a", "b", "c", "d")
# An examples.jsonl of some megabytes; more would slow every load of the package.
MAXIMUM_ELEMENTS: Final = 200_000


def draw(model: Model) -> FirstRun:
    """Draw inputs that a graph takes, and answers with finite numbers, the same ones twice.

    Returns:
        Without rows, if it takes none that were tried.
    """
    signature = model.manifest.signature
    for size, below in product(_SIZES, _BELOW):
        rng = np.random.default_rng(_SEED)
        # Where rows cannot be stacked, an example is a whole call.
        stacked = signature.stackable or bool(signature.features)
        specs = (*signature.inputs, *signature.outputs)
        elements = sum(_elements(spec.shape[stacked:], size) for spec in specs)
        count = min(_EXAMPLES if stacked else 1, MAXIMUM_ELEMENTS // max(1, elements))
        if not count:
            continue
        tensors = {spec.name: _values(rng, spec, count if stacked else None, size, below) for spec in signature.inputs}
        try:
            answers, again = model.run(tensors), model.run(tensors)
        except OutsideSignature:
            continue
        if all(_sound(array, again[name], count if stacked else None) for name, array in answers.items()):
            return FirstRun(
                features=signature.features,
                records=_records(signature, tensors, count),
                tensors=tensors,
                answers=answers,
                drawn=True,
            )
    return FirstRun(features=signature.features)


def _elements(shape: Sequence[int], size: int) -> int:
    return math.prod(size if dimension < 0 else dimension for dimension in shape)


def _values(rng: np.random.Generator, spec: TensorSpec, rows: int | None, size: int, below: int) -> npt.NDArray[Any]:
    whole = [size if dimension < 0 else dimension for dimension in spec.shape]
    shape = whole if rows is None else [rows, *whole[1:]]
    kind = spec.dtype.kind
    if kind == "O":
        return rng.choice(np.array(_WORDS, object), shape)
    if kind in "iu":
        return rng.integers(0, below, shape).astype(spec.dtype)
    if kind == "b":
        return rng.integers(0, 2, shape).astype(spec.dtype)
    # Few digits, so that the file is short; JSON then holds them as they are.
    return rng.normal(size=shape).round(3).astype(spec.dtype)


def _sound(array: npt.NDArray[Any], again: npt.NDArray[Any], rows: int | None) -> bool:
    if rows is not None and (not array.ndim or len(array) != rows):
        return False
    if array.dtype.kind != "f":
        return bool(np.array_equal(array, again))
    return bool(np.isfinite(array).all() and np.array_equal(array, again))


def _records(signature: Signature, tensors: Tensors, count: int) -> Sequence[Mapping[str, Any]]:
    """The rows of the tensors under their features' names."""
    if not signature.features:
        return ()
    packed = next(iter(tensors.values()))
    columns = [
        packed[:, i] if signature.layout == "packed" else tensors[feature.name].reshape(count)
        for i, feature in enumerate(signature.features)
    ]
    return [
        {
            feature.name: _scalar(feature, column[row])
            for feature, column in zip(signature.features, columns, strict=True)
        }
        for row in range(count)
    ]


def _scalar(feature: Feature, value: Any) -> Any:  # noqa: ANN401 - a tensor's element
    if feature.type.startswith("float"):
        return round(float(value), 3)
    return value.item() if isinstance(value, np.generic) else value
