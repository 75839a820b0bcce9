"""The end-to-end set: what goes into a model, and what must come out of it, as the training library said."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold.errors import shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from threefold.model import Answer
    from threefold.package import Manifest, Output
    from threefold.signature import TensorSpec

    Problem = tuple[int | None, str]

# Relative and absolute tolerance by the width of the output: what different builds of a runtime differ by.
TOLERANCE: Final = {"FP16": 1e-2, "FP32": 1e-4, "FP64": 1e-6}
# As many digits as show a difference beyond the tolerance.
_DIGITS: Final = {"FP16": 4, "FP32": 6, "FP64": 9}
# Beyond it stand the infinities, and whole numbers that no float holds.
_PLAIN: Final = 1e300
# As the doors take numbers that JSON has no word for.
_NON_FINITE: Final = {None: math.nan, "NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, slots=True)
class Example:
    """One line of the end-to-end set.

    Attributes:
        line: where it stands, from 1.
        record: what goes in: a record, or nothing for a model that takes tensors only.
        tensors: what goes in there: by input name, without the dimension of the rows where rows can be stacked.
        expect: what must come out, by the name of an output or of its meaning: label, scores, value.
    """

    line: int
    record: Mapping[str, object]
    tensors: Mapping[str, npt.NDArray[Any]]
    expect: Mapping[str, Any]


def read_examples(path: Path, manifest: Manifest) -> tuple[list[Example], list[Problem]]:
    """Read an end-to-end set: a JSON object a line, with what goes in (`record` or `inputs`) and what to `expect`.

    Returns:
        The examples that can be run, and what is wrong with the other lines, or with the file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        return [], [(None, f"want a file that can be read, got {error.strerror}")]
    examples: list[Example] = []
    problems: list[Problem] = []
    names = expectable(manifest)
    for line, text in enumerate(content.split(b"\n"), 1):
        if text.strip():
            found = _read_line(line, text, manifest, names)
            if isinstance(found, Example):
                examples.append(found)
            else:
                problems += [(line, problem) for problem in found]
    if not examples and not problems:
        problems.append((None, "want at least one example, got none"))
    return examples, problems


def expectable(manifest: Manifest) -> list[str]:
    """The names that an example may expect something under."""
    output, signature = manifest.output, manifest.signature
    meanings: list[str] = []
    if output.kind == "classification":
        meanings = ["label", "scores"] if output.scores else ["label"]
    elif output.kind == "regression":
        meanings = ["value"]
    # Whole tensors come out as they are: nothing says what a row of them means.
    rows = signature.features or signature.stackable
    return list(dict.fromkeys([*(meanings if rows else []), *(spec.name for spec in signature.outputs)]))


def differences(example: Example, answer: Answer, row: int | None, manifest: Manifest) -> list[str]:
    """How an answer is not what an example expects: what, wanted, got.

    Args:
        example: with names out of `expectable`.
        answer: what the model said.
        row: the example's row in it; None where the whole answer is the example's.
        manifest: the model's.
    """
    found = (_difference(name, want, *_said(name, answer, row, manifest)) for name, want in example.expect.items())
    return [difference for difference in found if difference is not None]


def _read_line(line: int, text: bytes, manifest: Manifest, names: list[str]) -> Example | list[str]:
    """An example, or what is wrong with its line."""
    try:
        document = json.loads(text.decode("utf-8-sig" if line == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        return [f"want UTF-8, got byte 0x{text[error.start]:02x}"]
    except json.JSONDecodeError as error:
        return [f"want JSON, got {shown(error.doc.strip())}: {error.msg} at character {error.pos + 1}"]
    except (ValueError, RecursionError):  # Digits without end, or brackets.
        return ["want JSON of a sensible size and depth, got more"]
    if not isinstance(document, dict):
        return [f"want an object, got {shown(document)}"]
    problems: list[str] = []
    record: Mapping[str, object] = {}
    tensors: dict[str, npt.NDArray[Any]] = {}
    if manifest.signature.features:
        record = _object(document, "record", "of features", problems) or {}
    elif (inputs := _object(document, "inputs", "of tensors", problems)) is not None:
        tensors = _tensors(inputs, manifest, problems)
    expect = _object(document, "expect", "of what must come out", problems)
    if expect is not None and not expect:
        problems.append("expect: want at least one output, got none")
    if unknown := [name for name in expect or {} if name not in names]:
        problems.append(f"expect: want names out of {names}, got {shown(unknown[0])}")
    return problems or Example(line, record, tensors, expect or {})


def _object(document: Mapping[str, Any], name: str, what: str, problems: list[str]) -> Mapping[str, Any] | None:
    part = document.get(name)
    if isinstance(part, dict):
        return part
    problems.append(f'want "{name}", an object {what}, got {shown(part) if name in document else "none"}')
    return None


def _tensors(inputs: Mapping[str, Any], manifest: Manifest, problems: list[str]) -> dict[str, npt.NDArray[Any]]:
    tensors: dict[str, npt.NDArray[Any]] = {}
    specs = {spec.name: spec for spec in manifest.signature.inputs}
    if inputs.keys() != specs.keys():
        problems.append(f"inputs: want tensors {list(specs)}, got {shown(list(inputs))}")
        return tensors
    for name, value in inputs.items():
        spec = specs[name]
        shape = spec.shape[1:] if manifest.signature.stackable else spec.shape
        array = _tensor(value, spec)
        if array is None:
            problems.append(f"input '{name}': want {spec.datatype} values, got {shown(value)}")
        elif len(array.shape) != len(shape) or any(w not in {-1, g} for w, g in zip(shape, array.shape, strict=True)):
            problems.append(f"input '{name}': want shape {list(shape)}, got {list(array.shape)}")
        else:
            tensors[name] = array
    return tensors


def _tensor(value: object, spec: TensorSpec) -> npt.NDArray[Any] | None:
    """A tensor of JSON values; None if they are not of its datatype, or nested unevenly."""
    array, dtype = _array(value, spec.dtype.kind), spec.dtype
    if array is None or dtype.kind in "Ob":
        return array
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            cast = array.astype(dtype)
        return cast if (np.isinf(cast) == np.isinf(array)).all() else None
    information = np.iinfo(dtype)
    return array.astype(dtype) if ((array >= information.min) & (array <= information.max)).all() else None


def _array(value: object, kind: str) -> npt.NDArray[Any] | None:
    """JSON values as an array of texts, truth values, whole numbers or any numbers, by numpy's letter for the kind."""
    try:
        if kind == "O":
            array = np.array(value, object)
            return array if all(isinstance(item, str) for item in array.flat) else None
        array = np.array(value)
        if kind == "f" and array.dtype.kind in "OU":
            items = np.array(value, object)
            array = np.array([_NON_FINITE.get(item, item) for item in items.flat]).reshape(items.shape)
    except (ValueError, TypeError):  # Nested unevenly, or an object among them.
        return None
    if not array.size:
        return array.astype({"f": np.float64, "b": np.bool_}.get(kind, np.int64))
    return array if array.dtype.kind in {"f": "iuf", "b": "b"}.get(kind, "iu") else None


def _said(name: str, answer: Answer, row: int | None, manifest: Manifest) -> tuple[Any, str]:
    """What a model said under a name, and the datatype by which it is compared."""
    output: Output = manifest.output
    datatypes = {spec.name: spec.datatype for spec in manifest.signature.outputs}
    if row is not None:
        if name == "label" and answer.labels is not None:
            return answer.labels[row], datatypes.get(output.label or "", "")
        if name == "value" and answer.values is not None:
            return answer.values[row].item(), datatypes[str(output.value)]
        if name == "scores" and answer.scores is not None:
            scores, datatype = answer.scores[row], datatypes[str(output.scores)]
            classes = map(str, output.classes)
            return (dict(zip(classes, scores.tolist(), strict=True)) if output.classes else scores), datatype
    tensor = answer.tensors[name]
    if row is not None:
        # An output without a row for each record says nothing of this one.
        got = tensor[row] if tensor.ndim and row < len(tensor) else tensor.reshape(-1)[:0]
        return (got.item() if isinstance(got, np.generic) else got), datatypes[name]
    return tensor, datatypes[name]


def _difference(name: str, want: object, got: Any, datatype: str) -> str | None:  # noqa: ANN401 - what a model may say
    if isinstance(got, dict):
        if not isinstance(want, dict) or want.keys() != got.keys():
            keys = list(want) if isinstance(want, dict) else want
            return f"expect {name}: want a number for each of {shown(list(got))}, got {shown(keys)}"
        parts = (_difference(f"{name}[{key!r}]", want[key], got[key], datatype) for key in got)
        return next((part for part in parts if part is not None), None)
    if _agree(want, got, TOLERANCE.get(datatype, 0.0)):
        return None
    return _array_difference(name, want, got, datatype)


def _array_difference(name: str, want: object, got: Any, datatype: str) -> str | None:  # noqa: ANN401 - what a model may say
    found = np.asarray(got, object) if isinstance(got, str) else np.asarray(got)
    texts = found.dtype.kind == "O"
    arrays = (_array(want, kind) for kind in ("O" if texts else "bf"))
    wanted = next((array for array in arrays if array is not None), None)
    if wanted is None:
        return f"expect {name}: want {'text' if texts else 'numbers'}, got {shown(want)}"
    if wanted.size != found.size:
        return f"want {name} of {wanted.size} values, got {found.size}"
    wanted, found = wanted.reshape(-1), found.reshape(-1)
    if tolerance := TOLERANCE.get(datatype, 0.0):
        wide = found.astype(np.float64), wanted.astype(np.float64)
        far = ~np.isclose(*wide, rtol=tolerance, atol=tolerance, equal_nan=True)
    else:
        far = wanted != found
    if not far.any():
        return None
    first = int(np.argmax(far))
    where = f"{name}[{first}]" if found.size > 1 else name
    return f"want {where} {_text(wanted[first], datatype)}, got {_text(found[first], datatype)}"


def _agree(want: object, got: object, tolerance: float) -> bool:
    """Whether one scalar plainly is what was wanted, by numpy's rule: most are, and need no arrays."""
    if isinstance(want, float | int) and isinstance(got, float | int):
        return want == got or (abs(want) < _PLAIN and abs(got - want) <= tolerance + tolerance * abs(want))
    return isinstance(want, str) and isinstance(got, str) and want == got


def _text(value: Any, datatype: str) -> str:  # noqa: ANN401 - any scalar
    if isinstance(value, float | np.floating):
        return f"{float(value):.{_DIGITS.get(datatype, 17)}g}"
    return shown(value.item() if isinstance(value, np.generic) else value)
