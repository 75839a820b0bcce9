"""What an ONNX file says of itself beyond its tensors: files beside it, class labels, and what made each output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from threefold.package import FILE_NAME, MANIFEST, MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    Labels = tuple[str | int, ...]

# What these operators are given first comes out again, row by row, in the same order of columns.
# https://onnx.ai/onnx/operators/
_PASSING: Final = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Normalizer", "Softmax"})
# Where they take a label out of a table: the operator, and which of its inputs the table is.
_TABLES: Final = {"ArrayFeatureExtractor": 0, "Gather": 0}
_LABELS: Final = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")


class NoGraph(Exception):
    """A file that is no ONNX file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """An ONNX file as far as it is read without its weights.

    Attributes:
        weights: the files beside it that hold some of its tensors, as it names them.
        labels: output name to the class labels that go with it, in the order of its columns; only where the graph
            leaves no doubt.
        maps: outputs that are scikit-learn's lists of {class: score}.
        makers: output name to the operator that makes it.
        producer: what wrote the file, such as `skl2onnx 1.20.0`; empty if it does not say.
    """

    weights: tuple[str, ...] = ()
    labels: Mapping[str, Labels] = field(default_factory=dict)
    maps: frozenset[str] = frozenset()
    makers: Mapping[str, str] = field(default_factory=dict)
    producer: str = ""


def read_graph(path: Path) -> Graph:
    """Read an ONNX file without the weights beside it.

    Raises:
        NoGraph: it is none.
    """
    # Loaded when a graph is read: it takes a fifth of a second, which every command would wait for.
    import onnx  # noqa: PLC0415
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # noqa: PLC0415

    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        message = f"want an ONNX file, got: {error or 'another one'}"
        raise NoGraph(message) from error
    except OSError as error:
        message = f"want a file that can be read, got: {error.strerror}"
        raise NoGraph(message) from error
    if not model.graph.output:
        message = "want an ONNX file, got one without outputs"
        raise NoGraph(message)
    external = onnx.TensorProto.EXTERNAL
    names = (
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == external
        for entry in tensor.external_data
        if entry.key == "location"
    )
    made = {name: node for node in model.graph.node for name in node.output}
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    outputs = [output.name for output in model.graph.output]
    found = {name: _labels_of(name, made, tables) for name in outputs}
    return Graph(
        weights=tuple(dict.fromkeys(names)),
        labels={name: labels for name, labels in found.items() if labels},
        maps=frozenset(name for name in outputs if name in made and made[name].op_type == "ZipMap"),
        makers={name: made[name].op_type for name in outputs if name in made},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
    )


def misplaced(weights: tuple[str, ...]) -> list[str]:
    """Of the files that a graph names, those that cannot lie beside it in a package."""
    return [name for name in weights if not FILE_NAME.fullmatch(name) or name in {MODEL, MANIFEST}]


def faults(path: Path) -> str | None:
    """What ONNX's own checker finds wrong with a file and the files beside it; None if nothing."""
    import onnx  # noqa: PLC0415 - as above
    from onnx import checker  # noqa: PLC0415

    try:
        checker.check_model(str(path))
    except (checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return " ".join(str(error).split())[:300]
    return None


def _tensors(message: Any) -> Iterator[Any]:  # noqa: ANN401 - protobuf's messages share no public type
    """All tensors of a file, wherever they stand: in subgraphs, attributes, functions, sparse ones."""
    waiting = [message]
    while waiting:
        part = waiting.pop()
        if part.DESCRIPTOR.name == "TensorProto":
            # Not into it: to list its fields is to copy its weights.
            yield part
            continue
        for descriptor, value in part.ListFields():
            if descriptor.message_type is not None:
                waiting.extend([value] if hasattr(value, "DESCRIPTOR") else value)


def _labels_of(output: str, made: Mapping[str, Any], tables: Mapping[str, Any]) -> Labels:
    """The class labels that go with an output, if the graph says them where it is made."""
    name, seen = output, set()
    while name in made and name not in seen:
        seen.add(name)
        node = made[name]
        found = {attribute.name: attribute for attribute in node.attribute}
        for key in _LABELS:
            if key in found and (found[key].strings or found[key].ints):
                return tuple(text.decode() for text in found[key].strings) or tuple(found[key].ints)
        if node.op_type in _TABLES and node.input[_TABLES[node.op_type]] in tables:
            return _table(tables[node.input[_TABLES[node.op_type]]])
        if node.op_type not in _PASSING or not node.input:
            break
        name = node.input[0]
    return ()


def _table(tensor: Any) -> Labels:  # noqa: ANN401 - as above
    from onnx import TensorProto, numpy_helper  # noqa: PLC0415 - as above

    if tensor.data_type == TensorProto.STRING:
        return tuple(text.decode() for text in tensor.string_data)
    if tensor.data_type not in {TensorProto.INT32, TensorProto.INT64} or tensor.data_location == TensorProto.EXTERNAL:
        return ()
    return tuple(numpy_helper.to_array(tensor).reshape(-1).tolist())
