"""One session: every datatype, odd shapes, chunks and padding."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from threefold import model as model_module
from threefold.errors import InvalidPackage, OutsideSignature
from threefold.model import Model, open_session, read_signature
from threefold.package import Output, digest_of, open_package
from threefold.signature import DTYPES, Feature, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Graphs, PackageMaker
    from threefold.package import Package

VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-32768, 32767],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [65504.0, math.nan],
    "FP32": [0.1, -math.inf],
    "FP64": [0.1, 1e300],
    "BYTES": ["", "é\U0001f600\x00b"],
}
CLASSES = Output(kind="classification", scores="scores", classes=("low", "mid", "high"))
TWO = (Feature(name="a", type="float32"), Feature(name="b", type="float32"))
THREE = (*TWO, Feature(name="c", type="float32"))


def test_every_datatype_of_the_protocol_has_a_case() -> None:
    assert VALUES.keys() == DTYPES.keys()


@pytest.mark.parametrize("datatype", sorted(VALUES))
def test_every_datatype_goes_through_unchanged(datatype: str, graphs: Graphs, make_package: PackageMaker) -> None:
    model = Model(make_package(graphs.identity(datatype)))
    array = np.array([VALUES[datatype]] * 3, DTYPES[datatype])
    found = model.run({"x": array})["y"]
    assert found.dtype == DTYPES[datatype]
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("datatype", sorted(VALUES))
def test_a_tensor_without_dimensions_goes_through(datatype: str, graphs: Graphs, make_package: PackageMaker) -> None:
    model = Model(make_package(graphs.identity(datatype, [])))
    assert model.manifest.signature.inputs == (TensorSpec("x", datatype, ()),)
    array = np.array(VALUES[datatype][1], DTYPES[datatype])
    found = model.run({"x": array})["y"]
    assert found.shape == ()
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (5, 2)])
def test_no_rows_are_rows_too(shape: tuple[int, int], graphs: Graphs, make_package: PackageMaker) -> None:
    assert Model(make_package(graphs.identity("FP32"))).run({"x": np.zeros(shape, np.float32)})["y"].shape == shape


def test_more_rows_than_a_call_takes_are_chunked(
    graphs: Graphs, make_package: PackageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "ROWS_PER_CALL", 4)
    model = Model(make_package(graphs.addition()))
    left = np.arange(22, dtype=np.float32).reshape(11, 2)
    assert model.run({"left": left, "right": -left + 1})["total"].tolist() == np.ones((11, 2)).tolist()


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 11])
def test_a_fixed_batch_is_padded_and_the_padding_cut_off(rows: int, graphs: Graphs, make_package: PackageMaker) -> None:
    model = Model(make_package(graphs.identity("FP32", [4, 2])))
    array = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    np.testing.assert_array_equal(model.run({"x": array})["y"], array)


def test_a_fixed_batch_of_no_rows_is_refused(graphs: Graphs, make_package: PackageMaker) -> None:
    with pytest.raises(OutsideSignature, match="at least one row"):
        Model(make_package(graphs.identity("FP32", [4, 2]))).run({"x": np.zeros((0, 2), np.float32)})


def test_rows_that_become_one_number_are_never_chunked(
    graphs: Graphs, make_package: PackageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "ROWS_PER_CALL", 4)
    model = Model(make_package(graphs.total()))
    assert model.run({"x": np.ones(10, np.float32)})["y"].item() == 10.0


@pytest.mark.parametrize("classes", [("low", "mid", "high"), ("high", "low", "mid")])
def test_a_zipmap_is_flattened_in_the_order_of_the_classes(
    classes: tuple[str, ...], graphs: Graphs, make_package: PackageMaker
) -> None:
    package = make_package(
        graphs.zipmap(classlabels_strings=["low", "mid", "high"]),
        features=THREE,
        output=Output(kind="classification", scores="scores", classes=classes),
    )
    model = Model(package)
    assert model.manifest.signature.outputs == (TensorSpec("scores", "FP32", (-1, -1)),)
    answer = model.answer({"x": np.array([[0.1, 0.2, 0.7], [0.5, 0.4, 0.1]], np.float32)})
    assert answer.labels == ["high", "low"]
    assert answer.scores is not None
    named = dict(zip(("low", "mid", "high"), (0.1, 0.2, 0.7), strict=True))
    assert answer.scores[0].tolist() == pytest.approx([named[label] for label in classes])


def test_a_zipmap_of_whole_numbers_keeps_them(graphs: Graphs, make_package: PackageMaker) -> None:
    package = make_package(
        graphs.zipmap(classlabels_int64s=[7, -1, 30]),
        features=THREE,
        output=Output(kind="classification", scores="scores", classes=(7, -1, 30)),
    )
    answer = Model(package).answer({"x": np.array([[0.1, 0.7, 0.2]], np.float32)})
    assert (answer.labels, answer.scores is not None and answer.scores.argmax()) == ([-1], 1)


def test_a_zipmap_of_other_classes_than_the_manifest_says_is_refused(
    graphs: Graphs, make_package: PackageMaker
) -> None:
    package = make_package(
        graphs.zipmap(classlabels_strings=["a", "b", "c"]),
        features=THREE,
        output=CLASSES,
    )
    with pytest.raises(InvalidPackage, match="want scores for"):
        Model(package).answer({"x": np.ones((1, 3), np.float32)})


def test_a_label_output_is_what_the_model_says(graphs: Graphs, make_package: PackageMaker) -> None:
    output = Output(kind="classification", label="label", scores="scores", classes=("low", "mid", "high"))
    model = Model(make_package(graphs.scorer(["low", "mid", "high"]), features=THREE, output=output))
    answer = model.answer({"x": np.array([[0, 1, 0], [3, 2, 1]], np.float32)})
    assert answer.labels == ["mid", "low"]


def test_a_regression_has_one_value_a_row(graphs: Graphs, make_package: PackageMaker) -> None:
    package = make_package(
        graphs.linear([1.0, 10.0], 0.5), features=TWO, output=Output(kind="regression", value="value")
    )
    answer = Model(package).answer({"x": np.array([[1, 2], [3, 4]], np.float32)})
    assert answer.values is not None
    assert answer.values.tolist() == [21.5, 43.5]


@pytest.mark.parametrize("axes", [("n", 2), (4, 2)])
def test_an_output_of_several_values_is_no_regression(
    axes: tuple[int | str, int], graphs: Graphs, make_package: PackageMaker
) -> None:
    package = make_package(
        graphs.identity("FP32", axes),
        features=TWO,
        output=Output(kind="regression", value="y"),
    )
    with pytest.raises(InvalidPackage, match="want one 'y' a row"):
        Model(package).answer({"x": np.ones((1, 2), np.float32)})


def test_one_score_for_two_classes_is_refused(graphs: Graphs, make_package: PackageMaker) -> None:
    package = make_package(
        graphs.linear([1.0, 1.0]),
        features=TWO,
        output=Output(kind="classification", scores="value", classes=("no", "yes")),
    )
    with pytest.raises(InvalidPackage, match="a score for each of 2 classes"):
        Model(package).answer({"x": np.ones((1, 2), np.float32)})


def test_what_the_graph_refuses_is_outside_the_signature(graphs: Graphs, make_package: PackageMaker) -> None:
    model = Model(make_package(graphs.lookup()))
    assert model.run({"x": np.array([[0], [2]])})["y"].tolist() == [[10.0], [30.0]]
    with pytest.raises(OutsideSignature, match=r"idx=3 must be within the inclusive range \[-3,2\]") as caught:
        model.run({"x": np.array([[0], [3]])})
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_onnx_is_refused(graphs: Graphs, make_package: PackageMaker) -> None:
    package = make_package(graphs.identity("FP32"))
    package.model_path.write_bytes(b"MZ" + bytes(100))
    with pytest.raises(InvalidPackage, match="want an ONNX model"):
        Model(package)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8])
def test_a_graph_that_was_cut_short_is_refused(share: float, graphs: Graphs, make_package: PackageMaker) -> None:
    package = make_package(graphs.linear([1.0, 2.0]))
    whole = package.model_path.read_bytes()
    package.model_path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InvalidPackage):
        Model(package)


SECRET = np.array([3.0, 4.0], np.float32)


def external(place: str, location: str) -> onnx.ModelProto:
    """A graph that reads two numbers from another file: value = x @ w."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 1], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    weights.external_data.add(key="length", value="8")
    product = helper.make_node("MatMul", ["x", "w"], ["value"])
    constant = helper.make_node("Constant", [], ["w"], value=weights)
    free, constants, functions = [product], [weights], []
    if place == "attribute":
        free, constants = [constant, product], []
    elif place == "subgraph":
        inner = helper.make_graph([product], "inner", [], [helper.make_empty_tensor_value_info("value")], [weights])
        free = [helper.make_node("If", ["always"], ["value"], then_branch=inner, else_branch=inner)]
        constants = [helper.make_tensor("always", TensorProto.BOOL, [], [True])]
    elif place == "function":
        opset = [helper.make_opsetid("", 17)]
        functions = [helper.make_function("own", "Product", ["x"], ["value"], [constant, product], opset)]
        free, constants = [helper.make_node("Product", ["x"], ["value"], domain="own")], []
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 2), ("value", 1))
    ]
    graph = helper.make_graph(free, "graph", infos[:1], infos[1:], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions)


PLACES = ["initializer", "attribute", "subgraph", "function"]


def weighted(made: PackageMaker, graphs: Graphs, graph: onnx.ModelProto, **document: Any) -> Package:
    """A package of a graph with weights in files of their own: `inside.bin` in it, `secret.bin` beside it."""
    package = made(graphs.linear([1.0, 2.0]), document=document)
    (package.folder.parent / "secret.bin").write_bytes(SECRET.tobytes())
    (package.folder / "inside.bin").write_bytes(SECRET.tobytes())
    package.model_path.write_bytes(graph.SerializeToString())
    return package


@pytest.mark.parametrize("place", PLACES)
def test_weights_may_stand_beside_the_graph(place: str, graphs: Graphs, make_package: PackageMaker) -> None:
    model = Model(weighted(make_package, graphs, external(place, "inside.bin"), weights=["inside.bin"]))
    assert model.run({"x": np.array([[1, 10]], np.float32)})["value"].tolist() == [[43.0]]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location", ["../secret.bin", "inside.bin/../../secret.bin", "absolute", "link.bin", "gone.bin"]
)
def test_weights_outside_of_the_package_are_never_read(
    place: str, location: str, graphs: Graphs, make_package: PackageMaker
) -> None:
    """What a graph names must not bring the machine's own files into its answers: ONNX Runtime refuses it."""
    package = weighted(make_package, graphs, external(place, "inside.bin"))
    secret = package.folder.parent / "secret.bin"
    (package.folder / "link.bin").symlink_to(secret)
    graph = external(place, str(secret) if location == "absolute" else location)
    package.model_path.write_bytes(graph.SerializeToString())
    with pytest.raises(InvalidPackage, match="want an ONNX model"):
        Model(package)


def test_weights_count_into_the_size_of_a_model(graphs: Graphs, make_package: PackageMaker) -> None:
    graph = external("initializer", "inside.bin")
    without, named = (
        Model(weighted(make_package, graphs, graph, **document)) for document in ({}, {"weights": ["inside.bin"]})
    )
    assert named.size_bytes - without.size_bytes == 2 * SECRET.nbytes


def test_weights_that_are_named_and_not_there_refuse_the_package(graphs: Graphs, make_package: PackageMaker) -> None:
    with pytest.raises(InvalidPackage, match=r"want the file weights\.bin, got none"):
        Model(make_package(graphs.linear([1.0, 2.0]), document={"weights": ["weights.bin"]}))


def test_a_graph_without_inputs_is_refused(graphs: Graphs, make_package: PackageMaker) -> None:
    node = helper.make_node("Constant", [], ["y"], value_floats=[1.0])
    with pytest.raises(InvalidPackage, match="want a graph with inputs"):
        Model(make_package(graphs.make([node], [], [("y", "FP32", [1])])))


def test_other_tensors_than_the_manifest_says_are_refused(graphs: Graphs, make_package: PackageMaker) -> None:
    package = make_package(graphs.identity("FP32"))
    package.model_path.write_bytes(graphs.identity("FP64").SerializeToString())
    with pytest.raises(InvalidPackage, match="want the tensors of its manifest"):
        Model(package)


@pytest.mark.parametrize(
    "document",
    [
        {"output": {"kind": "regression", "label": None, "scores": None, "value": "valeu", "classes": []}},
        {"output": {"kind": "regression", "label": None, "scores": None, "value": None, "classes": []}},
        {"output": {"kind": "classification", "label": None, "scores": "value", "value": None, "classes": []}},
        {"output": {"kind": "classification", "label": "lable", "scores": None, "value": None, "classes": []}},
    ],
)
def test_an_output_that_the_graph_does_not_have_is_refused(
    document: dict[str, Any], graphs: Graphs, make_package: PackageMaker
) -> None:
    package = make_package(graphs.linear([1.0, 2.0]), features=TWO, document=document)
    with pytest.raises(InvalidPackage, match="want an output of the graph's tensors"):
        Model(package)


def test_features_that_do_not_fit_the_graph_are_refused(graphs: Graphs, make_package: PackageMaker) -> None:
    with pytest.raises(InvalidPackage, match="for 3 features"):
        Model(make_package(graphs.linear([1.0, 2.0]), features=THREE))
    with pytest.raises(InvalidPackage, match="one input per feature"):
        Model(make_package(graphs.linear([1.0, 2.0]), features=TWO, layout="columns"))
    with pytest.raises(InvalidPackage, match="first dimension is the records"):
        Model(
            make_package(graphs.columns(("a", "FP32", [3, 1]), ("b", "FP32", [2, 1])), features=TWO, layout="columns")
        )


def test_a_datatype_that_the_protocol_has_no_name_for_is_refused(tmp_path: Path) -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    info = helper.make_value_info("x", helper.make_optional_type_proto(tensor))
    out = helper.make_tensor_value_info("y", TensorProto.BOOL, [])
    graph = helper.make_graph([helper.make_node("OptionalHasElement", ["x"], ["y"])], "g", [info], [out])
    document = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(document, tmp_path / "model.onnx")
    with pytest.raises(InvalidPackage, match="tensor 'x': want one of"):
        read_signature(open_session(tmp_path / "model.onnx"))


def test_the_digest_follows_the_examples(graphs: Graphs, make_package: PackageMaker) -> None:
    package = make_package(graphs.total(), examples=[{"inputs": {"x": [1]}, "expect": {"y": 1}}])
    (package.folder / "examples.jsonl").write_text(json.dumps({"inputs": {"x": [1]}, "expect": {}}))
    assert open_package(package.folder, digest_of(package.folder)).digest != package.digest
