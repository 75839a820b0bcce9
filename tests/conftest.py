"""What more than one tier of tests needs: the example models, small graphs, and packages made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnx
import pytest
from hypothesis import HealthCheck, settings
from onnx import TensorProto, helper

from threefold.model import open_session, read_signature
from threefold.package import MANIFEST, MODEL, Gate, Manifest, Output, Package, digest_of, open_package

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from threefold.signature import Feature, Layout

# A test says what is true, and not how fast this machine happened to be.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

ROOT: Final = Path(__file__).resolve().parents[1]
ELEMENTS: Final = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}

Spec = tuple[str, str, "Sequence[int | str]"]


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the example models."""
    return ROOT / "models"


class Graphs:
    """Small ONNX graphs, each with one property that models in the wild have."""

    def make(
        self,
        nodes: list[onnx.NodeProto],
        inputs: Sequence[Spec],
        outputs: Sequence[Spec | onnx.ValueInfoProto],
        constants: Sequence[onnx.TensorProto] = (),
    ) -> onnx.ModelProto:
        """A graph of nodes; a tensor is (name, datatype, shape)."""
        infos = [helper.make_tensor_value_info(name, ELEMENTS[kind], shape) for name, kind, shape in inputs]
        found = [
            output
            if isinstance(output, onnx.ValueInfoProto)
            else helper.make_tensor_value_info(output[0], ELEMENTS[output[1]], output[2])
            for output in outputs
        ]
        graph = helper.make_graph(nodes, "graph", infos, found, list(constants))
        operators = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
        return helper.make_model(graph, opset_imports=operators, ir_version=9)

    def identity(self, datatype: str, shape: Sequence[int | str] = ("n", 2)) -> onnx.ModelProto:
        """y = x."""
        node = helper.make_node("Identity", ["x"], ["y"])
        return self.make([node], [("x", datatype, shape)], [("y", datatype, shape)])

    def linear(self, weights: Sequence[float], bias: float = 0.0, datatype: str = "FP32") -> onnx.ModelProto:
        """value = x @ weights + bias: a regression over packed features."""
        kind = ELEMENTS[datatype]
        constants = [
            helper.make_tensor("w", kind, [len(weights), 1], list(weights)),
            helper.make_tensor("b", kind, [1], [bias]),
        ]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["value"])]
        return self.make(nodes, [("x", datatype, ["n", len(weights)])], [("value", datatype, ["n", 1])], constants)

    def lonely(self) -> onnx.ModelProto:
        """value = a, of one row: its shape is fixed inside, where the declaration does not show it."""
        nodes = [
            helper.make_node("Reshape", ["x", "shape"], ["fixed"]),
            helper.make_node("Slice", ["fixed", "start", "end", "axis"], ["value"]),
        ]
        whole = {"shape": [1, 2], "start": [0], "end": [1], "axis": [1]}
        constants = [helper.make_tensor(name, TensorProto.INT64, [len(found)], found) for name, found in whole.items()]
        return self.make(nodes, [("x", "FP32", ["n", 2])], [("value", "FP32", ["n", 1])], constants)

    def scorer(self, classes: Sequence[str], datatype: str = "FP32", *, label: bool = True) -> onnx.ModelProto:
        """A classifier whose scores are its features, so that a test says what it thinks."""
        width = len(classes)
        nodes = [helper.make_node("Identity", ["x"], ["scores"])]
        outputs: list[Spec] = [("scores", datatype, ["n", width])]
        if label:
            nodes += [
                helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
                helper.make_node("Gather", ["classes", "best"], ["label"]),
            ]
            outputs.insert(0, ("label", "BYTES", ["n"]))
        constants = [helper.make_tensor("classes", TensorProto.STRING, [width], [name.encode() for name in classes])]
        return self.make(nodes, [("x", datatype, ["n", width])], outputs, constants if label else [])

    def zipmap(self, **classes: Any) -> onnx.ModelProto:
        """Scikit-learn's form of scores: a list of {class: score}."""
        width = len(next(iter(classes.values())))
        node = helper.make_node("ZipMap", ["x"], ["scores"], domain="ai.onnx.ml", **classes)
        key = TensorProto.STRING if "classlabels_strings" in classes else TensorProto.INT64
        value = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        scores = helper.make_value_info("scores", helper.make_sequence_type_proto(value))
        return self.make([node], [("x", "FP32", ["n", width])], [scores])

    def addition(self) -> onnx.ModelProto:
        """total = left + right: two inputs that must have the same rows."""
        node = helper.make_node("Add", ["left", "right"], ["total"])
        return self.make(
            [node], [("left", "FP32", ["n", 2]), ("right", "FP32", ["n", 2])], [("total", "FP32", ["n", 2])]
        )

    def lookup(self) -> onnx.ModelProto:
        """y = table[x] with three entries: the graph itself refuses an index of 3."""
        table = helper.make_tensor("table", TensorProto.FLOAT, [3], [10.0, 20.0, 30.0])
        node = helper.make_node("Gather", ["table", "x"], ["y"])
        return self.make([node], [("x", "INT64", ["n", 1])], [("y", "FP32", ["n", 1])], [table])

    def total(self) -> onnx.ModelProto:
        """y = sum(x): all rows of a call become one number, so that no two records may share one."""
        node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
        return self.make([node], [("x", "FP32", ["n"])], [("y", "FP32", [])])

    def columns(self, *specs: Spec) -> onnx.ModelProto:
        """Each input comes out again, as `<name>_out`: one tensor a feature."""
        nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in specs]
        return self.make(nodes, specs, [(f"{name}_out", kind, shape) for name, kind, shape in specs])


@pytest.fixture(scope="session")
def graphs() -> Graphs:
    return Graphs()


@dataclass(frozen=True, kw_only=True)
class PackageMaker:
    """Writes package folders."""

    root: Callable[[], Path]

    def __call__(
        self,
        graph: onnx.ModelProto,
        *,
        name: str = "small",
        version: str = "1.0.0",
        features: Sequence[Feature] = (),
        layout: Layout | None = None,
        output: Output | None = None,
        key: str | None = None,
        examples: Sequence[object] | None = None,
        document: dict[str, Any] | None = None,
    ) -> Package:
        """A package of a graph.

        Args:
            document: fields of the manifest that are written as they stand, whatever they say.
        """
        folder = self.root()
        (folder / MODEL).write_bytes(graph.SerializeToString())
        signature = replace(
            read_signature(open_session(folder / MODEL)),
            features=tuple(features),
            layout=layout or ("packed" if features else None),
        )
        if examples is not None:
            (folder / "examples.jsonl").write_text("\n".join(json.dumps(example) for example in examples))
        manifest = Manifest(
            name=name,
            version=version,
            signature=signature,
            output=output or Output(kind="tensors"),
            key=key,
            gate=Gate(examples=None if examples is None else "examples.jsonl"),
        )
        (folder / MANIFEST).write_text(json.dumps(manifest.to_json() | (document or {})))
        return open_package(folder, digest_of(folder))


@pytest.fixture(scope="session")
def make_package(tmp_path_factory: pytest.TempPathFactory) -> PackageMaker:
    return PackageMaker(root=lambda: tmp_path_factory.mktemp("package"))
