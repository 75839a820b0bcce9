"""The Open Inference Protocol v2 in JSON: tensors in, tensors out, and what a model says of itself."""

from __future__ import annotations

import math
import sys
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold import strict_json
from threefold.errors import Malformed, OutsideSignature, shown
from threefold.prediction import tensor_to_json
from threefold.signature import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from threefold.package import Manifest
    from threefold.prediction import Outcomes, Part
    from threefold.release import Release

NAME: Final = "threefold"
EXTENSIONS: Final = ()
PLATFORM: Final = "onnx_onnxv1"

_NON_FINITE: Final = {None: math.nan, "NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_DEPTH: Final = 32
# No dimension has more values than a body has bytes.
_LONGEST: Final = 2**31
_MOST: Final = sys.float_info.max
# What JSON values a datatype's elements may be.
_ELEMENTS: Final = {"f": frozenset({int, float}), "i": frozenset({int}), "u": frozenset({int})}


def decode(body: bytes) -> tuple[dict[str, npt.NDArray[Any]], str | None, list[str] | None]:
    """Read an inference request.

    Returns:
        The input tensors by name, the request's own id, and the names of the outputs that are asked for (None: all).

    Raises:
        Malformed: the envelope is not of the protocol's form, or a tensor's data do not fill its shape.
        OutsideSignature: data that are not of the datatype that they claim.
    """
    document = strict_json.loads(body)
    if not isinstance(document, dict):
        message = f"body: want an inference request object, got a JSON {type(document).__name__}"
        raise Malformed(message)
    tensors = decode_tensors(document.get("inputs"))
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        message = f"id: want a string, got {shown(identity)}"
        raise Malformed(message)
    outputs = document.get("outputs")
    if outputs is None:
        return tensors, identity, None
    if not isinstance(outputs, list) or not all(
        isinstance(output, dict) and isinstance(output.get("name"), str) for output in outputs
    ):
        message = f"outputs: want a list of objects with a name, got {shown(outputs)}"
        raise Malformed(message)
    return tensors, identity, [output["name"] for output in outputs]


def decode_tensors(inputs: object) -> dict[str, npt.NDArray[Any]]:
    """Read the `inputs` of a request.

    Raises:
        Malformed: they are not of the protocol's form.
        OutsideSignature: data that are not of the datatype that they claim.
    """
    if not isinstance(inputs, list) or not inputs:
        message = f"inputs: want a list of tensors, got {shown(inputs)}"
        raise Malformed(message)
    tensors = {}
    for tensor in inputs:
        name, array = _decode_tensor(tensor)
        if name in tensors:
            message = f"inputs: want each tensor once, got '{name}' twice"
            raise Malformed(message)
        tensors[name] = array
    return tensors


def encode(outcomes: Outcomes, part: Part, identity: str | None, names: Sequence[str] | None) -> bytes:
    """Write an inference response.

    Args:
        outcomes: of the one record that the request was.
        part: its answer.
        identity: the request's own id, echoed; else the prediction id.
        names: the outputs that were asked for; None for all.

    Raises:
        OutsideSignature: an output that the model does not have.
    """
    specs = {spec.name: spec for spec in part.specs}
    if names is None:
        names = list(specs)
    elif unknown := [name for name in names if name not in specs]:
        message = f"outputs: want some of {list(specs)}, got {unknown}"
        raise OutsideSignature(message)
    document = {
        "model_name": part.provenance.model,
        "model_version": part.provenance.version,
        "id": outcomes.ids[0] if identity is None else identity,
        "outputs": [tensor_to_json(specs[name], part.answer.tensors[name]) for name in names],
    }
    return strict_json.dumps(document)


def server_metadata(version: str) -> dict[str, Any]:
    """What `GET /v2` answers."""
    return {"name": NAME, "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(manifest: Manifest, release: Release) -> dict[str, Any]:
    """What `GET /v2/models/{model}` answers."""
    return {
        "name": manifest.name,
        "versions": list(dict.fromkeys(version.version for version in release.named())),
        "platform": PLATFORM,
        "inputs": [spec.to_json() for spec in manifest.signature.inputs],
        "outputs": [spec.to_json() for spec in manifest.signature.outputs],
    }


def _decode_tensor(tensor: object) -> tuple[str, npt.NDArray[Any]]:
    if not isinstance(tensor, dict):
        message = f"inputs: want objects, got {shown(tensor)}"
        raise Malformed(message)
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    if not isinstance(name, str):
        message = f"inputs: want a name for each tensor, got {shown(name)}"
        raise Malformed(message)
    if not isinstance(datatype, str) or datatype not in DTYPES:
        message = f"input '{name}': want a datatype out of {list(DTYPES)}, got {shown(datatype)}"
        raise Malformed(message)
    if (
        not isinstance(shape, list)
        or len(shape) > _DEPTH
        or not all(type(size) is int and 0 <= size < _LONGEST for size in shape)
    ):
        message = f"input '{name}': want a shape of at most {_DEPTH} whole numbers, got {shown(shape)}"
        raise Malformed(message)
    if "data" not in tensor or not isinstance(tensor["data"], list):
        message = f"input '{name}': want its data as a list, got {shown(tensor.get('data'))}"
        raise Malformed(message)
    flat = _flatten(tensor["data"], name)
    if len(flat) != math.prod(shape):
        message = f"input '{name}': want {math.prod(shape)} values for shape {shape}, got {len(flat)}"
        raise Malformed(message)
    try:
        return name, _array(name, datatype, flat).reshape(shape)
    except ValueError as error:
        # Zeros beside large sizes: no values, and yet more than numpy counts.
        message = f"input '{name}': want a shape that can be, got {shown(shape)}"
        raise Malformed(message) from error


def _flatten(data: list[Any], name: str) -> list[Any]:
    """Row-major values: the protocol allows nested and flat lists alike."""
    for _ in range(_DEPTH):
        if list not in set(map(type, data)):
            return data
        if not all(type(part) is list for part in data):
            message = f"input '{name}': want lists of one depth, got values beside lists"
            raise Malformed(message)
        data = list(chain.from_iterable(data))
    message = f"input '{name}': want at most {_DEPTH} dimensions, got more"
    raise Malformed(message)


def _array(name: str, datatype: str, flat: list[Any]) -> npt.NDArray[Any]:
    dtype = DTYPES[datatype]
    kinds = set(map(type, flat))
    if dtype.kind == "O":
        if kinds <= {str}:
            return np.array(flat, np.object_)
        raise _wrong(name, datatype, next(value for value in flat if type(value) is not str))
    if dtype.kind == "b":
        if odd := [value for value in flat if value not in (0, 1) or type(value) is float]:
            raise _wrong(name, datatype, odd[0])
        return np.array(flat, dtype)
    allowed = _ELEMENTS[dtype.kind]
    if not kinds <= allowed:
        flat = [value if type(value) in allowed else _non_finite(name, datatype, value) for value in flat]
    try:
        if dtype.kind != "f":
            return np.array(flat, dtype)
        wide = np.array(flat, np.float64)
    except OverflowError as error:
        low, high = (-_MOST, _MOST) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        too_large = (value for value in flat if type(value) is int and not low <= value <= high)
        raise _wrong(name, datatype, next(too_large)) from error
    with np.errstate(over="ignore"):
        array = wide.astype(dtype)
    if (lost := np.isfinite(wide) & ~np.isfinite(array)).any():
        raise _wrong(name, datatype, wide[lost][0].item())
    return array


def _non_finite(name: str, datatype: str, value: Any) -> float:  # noqa: ANN401 - JSON
    if not datatype.startswith("FP") or not isinstance(value, str | None) or value not in _NON_FINITE:
        raise _wrong(name, datatype, value)
    return _NON_FINITE[value]


def _wrong(name: str, datatype: str, value: object) -> OutsideSignature:
    return OutsideSignature(f"input '{name}': want {datatype} values, got {shown(value)}")
