"""The three graphs of the kept model folders, and what they must answer, computed without ONNX Runtime."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

CLASSES: Final = ("accept", "refer", "refuse")
WEIGHTS: Final = np.array(
    [
        [0.02, 0.0, -0.02],
        [-0.001, 0.0, 0.001],
        [-0.3, 0.1, 0.3],
        [-0.4, 0.2, 0.4],
        [0.8, 0.0, -0.8],
        [0.2, 0.1, -0.2],
    ],
    np.float32,
)
BIAS: Final = np.array([0.1, 0.4, 0.2], np.float32)
SLOPES: Final = (12.5, 80.0)


def claims() -> onnx.ModelProto:
    """A classifier with one input a feature: all six types of features, an absent amount as NaN."""
    kinds = {
        "age": TensorProto.FLOAT,
        "amount": TensorProto.DOUBLE,
        "visits": TensorProto.INT32,
        "points": TensorProto.INT64,
        "insured": TensorProto.BOOL,
        "region": TensorProto.STRING,
    }
    nodes = [
        helper.make_node("IsNaN", ["amount"], ["absent"]),
        helper.make_node("Where", ["absent", "zero", "amount"], ["known"]),
        helper.make_node(
            "LabelEncoder",
            ["region"],
            ["place"],
            domain="ai.onnx.ml",
            keys_strings=["north", "south"],
            values_floats=[0.0, 1.0],
        ),
        *(
            helper.make_node("Cast", [name], [f"{name}_cast"], to=TensorProto.FLOAT)
            for name in ("known", "visits", "points", "insured")
        ),
        helper.make_node(
            "Concat", ["age", "known_cast", "visits_cast", "points_cast", "insured_cast", "place"], ["x"], axis=1
        ),
        helper.make_node("Gemm", ["x", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["classes", "best"], ["label"]),
    ]
    names: Any = [name.encode() for name in CLASSES]
    constants = [
        helper.make_tensor("zero", TensorProto.DOUBLE, [1], [0.0]),
        helper.make_tensor("weights", TensorProto.FLOAT, WEIGHTS.shape, WEIGHTS.reshape(-1).tolist()),
        helper.make_tensor("bias", TensorProto.FLOAT, BIAS.shape, BIAS.tolist()),
        helper.make_tensor("classes", TensorProto.STRING, [len(CLASSES)], names),
    ]
    inputs = [helper.make_tensor_value_info(name, kind, ["n", 1]) for name, kind in kinds.items()]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, ["n"]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(CLASSES)]),
    ]
    return _model(nodes, inputs, outputs, constants)


def scores(record: Mapping[str, Any]) -> dict[str, float]:
    """What `claims` must say of a record, in double precision."""
    x = [
        record["age"],
        record.get("amount", 0.0),
        record.get("visits", 0),
        record["points"],
        float(record.get("insured", True)),
        0.0 if record.get("region", "north") == "north" else 1.0,
    ]
    logits = (np.array(x) @ WEIGHTS.astype(np.float64) + BIAS.astype(np.float64)).tolist()
    exponents = [math.exp(logit - max(logits)) for logit in logits]
    return {name: round(value / sum(exponents), 7) for name, value in zip(CLASSES, exponents, strict=True)}


def rent(base: float) -> onnx.ModelProto:
    """A regression over one packed tensor: value = x @ SLOPES + base."""
    nodes = [
        helper.make_node("MatMul", ["x", "slopes"], ["product"]),
        helper.make_node("Add", ["product", "base"], ["value"]),
    ]
    constants = [
        helper.make_tensor("slopes", TensorProto.FLOAT, [len(SLOPES), 1], list(SLOPES)),
        helper.make_tensor("base", TensorProto.FLOAT, [1], [base]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(SLOPES)])]
    outputs = [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["n", 1])]
    return _model(nodes, inputs, outputs, constants)


def sums(sign: str) -> onnx.ModelProto:
    """Tensors only: total = left + right, or their difference."""
    nodes = [helper.make_node(sign, ["left", "right"], ["total"])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("left", "right")]
    outputs = [helper.make_tensor_value_info("total", TensorProto.FLOAT, ["n", 2])]
    return _model(nodes, inputs, outputs, [])


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    operators = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=operators, ir_version=9)
