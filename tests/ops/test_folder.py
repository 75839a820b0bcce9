"""Everything that is wrong with a model folder, all at once and by its line; and the package of one that is right."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from threefold_ops.authoring.folder import build_package, inspect_folder, model_folders
from threefold_ops.authoring.graph import read_graph
from threefold_ops.authoring.manifest import read_model_file
from threefold_ops.cli import load
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.conftest import Graphs
    from threefold_ops.authoring.folder import Inspection

# As they were before folders were inspected, and as every registry knows them.
DIGESTS = {
    "breast-cancer": "939adb98ea4a990059c9ed5eba4a4cdcdc79160988390c1c20e47a6e9a3209e8",
    "card-fraud": "d2de16b889bd0d321f8e6f9adf74ff76df5052e3b07ec286e8658afc32fc468d",
    "diabetes": "f55443a79047c9eb86efea0dcb964ecd6a60f51d830c008c1b0fca3456b77909",
    "digit-pairs": "6718ab67d8fa11e4e264ead114fcacb3fecc6713f6783cd428a8b69131a33867",
    "digits": "6940617ec13edcd81e778de3f3e9a2983b24c2738e38a0adc38b01969890d25c",
}
HEAD = "schema: 1\nname: sums\nversion: 1.0.0\n"
FEATURES = "features:\n  - {name: a, type: float32}\n  - {name: b, type: float32}\n"
REGRESSION = "output: {kind: regression, value: value}\n"
TRAINING = "training: {data_sha256: x, script_sha256: y, libraries: {z: '1'}, at: now}\n"


@dataclass(frozen=True)
class Desk:
    """Where folders are made: value = a + b unless another graph is asked for."""

    root: Path
    graph: onnx.ModelProto

    def folder(
        self, text: str, *, name: str = "sums", graph: onnx.ModelProto | None = None, **files: str | Sequence[object]
    ) -> Path:
        """A folder; a list becomes JSON lines, and the keywords' double underscores dots."""
        folder = self.root / name
        folder.mkdir(parents=True)
        (folder / "model.yaml").write_text(text, encoding="utf-8")
        onnx.save(graph or self.graph, folder / "model.onnx")
        for file, content in files.items():
            lines = content if isinstance(content, str) else "".join(f"{json.dumps(line)}\n" for line in content)
            (folder / file.replace("__", ".")).write_text(lines, encoding="utf-8")
        return folder


@pytest.fixture
def desk(graphs: Graphs, tmp_path: Path) -> Desk:
    return Desk(tmp_path / "models", graphs.linear([1.0, 1.0]))


def example(a: float, b: float, value: float, **more: object) -> dict[str, Any]:
    return {"record": {"a": a, "b": b, **more}, "expect": {"value": value}}


def errors(inspection: Inspection) -> list[str]:
    return [str(finding) for finding in inspection.errors]


def warnings_of(inspection: Inspection) -> list[str]:
    return [str(finding) for finding in inspection.warnings]


# What is right


def test_the_example_folders_have_nothing_wrong_and_the_digests_that_they_had(models: Path, tmp_path: Path) -> None:
    assert [folder.name for folder in model_folders(models)] == list(DIGESTS)
    for folder in model_folders(models):
        found = inspect_folder(folder)
        assert (found.errors, found.warnings) == ([], [])
        assert found.digest == DIGESTS[folder.name]
        (tmp_path / folder.name).mkdir()
        assert build_package(folder, tmp_path / folder.name)[0].digest == found.digest


def test_new_keys_go_into_the_package_and_serving_beside_it(desk: Desk, tmp_path: Path) -> None:
    text = f"{HEAD}notes: seen twice\n{FEATURES}{REGRESSION}{TRAINING}serving: {{rollback_on_failure: true}}\n"
    text += (
        "gate: {examples: e.jsonl, latency_ms: 500, confidence: c.csv, target: sum, metric: mae, acceptable: [0, 1]}\n"
    )
    folder = desk.folder(text, e__jsonl=[example(1, 2, 3)], c__csv="a,b,sum\n1,2,3.25\n")
    (tmp_path / "package").mkdir()
    package, serving = build_package(folder, tmp_path / "package")
    manifest = package.manifest
    assert (manifest.notes, manifest.gate.target, manifest.gate.latency_ms) == ("seen twice", "sum", 500)
    assert serving == {"rollback_on_failure": True}
    report = inspect_folder(folder).report
    assert report is not None
    assert (report.examples, report.rows, report.value) == (1, 1, pytest.approx(0.25))


def test_the_training_script_of_the_folder_is_told_by_its_digest_if_it_is_not_named(desk: Desk, tmp_path: Path) -> None:
    folder = desk.folder(f"{HEAD}{REGRESSION}", train__py="print()")

    def script() -> object:
        target = tmp_path / hashlib.sha256(str(sorted(folder.iterdir())).encode()).hexdigest()[:8]
        target.mkdir(exist_ok=True)
        shutil.rmtree(target)
        target.mkdir()
        return build_package(folder, target)[0].manifest.training.get("script_sha256")

    assert script() == hashlib.sha256(b"print()").hexdigest()
    (folder / "train_again.py").write_text("")
    assert script() is None
    (folder / "train_again.py").unlink()
    (folder / "model.yaml").write_text(f"{HEAD}{REGRESSION}training: {{script_sha256: abc}}\n")
    assert script() == "abc"


# What is wrong


def test_everything_is_said_at_once_and_by_its_line(desk: Desk) -> None:
    text = (
        "schema: 1\n"
        "name: My Sums\n"
        "version: 1.0.0\n"
        "ouput: {}\n"
        f"{FEATURES}"
        "output: {kind: regression, value: value}\n"
        "gate:\n"
        "  examples: e.jsonl\n"
        "  confidence: none.csv\n"
        "  metric: rmse\n"
        "  acceptable: [0, 1]\n"
        "drift: {reference: none.csv}\n"
        "serving: {options: 0}\n"
    )
    lines = [example(1, 2, 3), example(1, 2, 4), {"record": {"a": 1}, "expect": {"value": 1}}]
    folder = desk.folder(text, e__jsonl=lines)
    found = inspect_folder(folder)
    assert errors(found) == [
        "model.yaml:2: name: want a-z, 0-9 and -, at most 63, no - first, got 'My Sums'",
        "model.yaml:4: ouput: want a known key, got this one (is 'output' meant?)",
        "model.yaml:11: gate.confidence: want the file none.csv, got none",
        "model.yaml:14: drift.reference: want the file none.csv, got none",
        "model.yaml:15: serving.options: want at least 1, got 0",
        "examples.jsonl:2: want value 4, got 3".replace("examples", "e"),
        "e.jsonl:3: input 'b': want FP32, got nothing",
    ]
    (desk.root / "package").mkdir()
    with pytest.raises(OperatorError) as caught:
        build_package(folder, desk.root / "package")
    assert str(caught.value).splitlines() == [f"{folder}/{line}" for line in errors(found)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"{HEAD}features:\n  - {{name: a, type: float32}}\n{REGRESSION}",
            ["model.yaml:4: features: layout packed: want an input of shape [-1, 1] for 1 features, got [-1, 2]"],
        ),
        (
            f"{HEAD}features:\n  - {{name: a, type: string}}\n  - {{name: a, type: bool}}\n{REGRESSION}",
            [
                "model.yaml:5: features.0: layout packed: want numbers, got string features ['a']",
                "model.yaml:6: features.1.name: want a name once, got 'a' again",
            ],
        ),
        (
            f"{HEAD}layout: columns\n{FEATURES}{REGRESSION}",
            [
                "model.yaml:5: features: layout columns: want one input per feature, got inputs ['x'] for features",
            ],
        ),
        (
            f"{HEAD}{FEATURES}output:\n  kind: regression\n  value: total\n",
            ["model.yaml:9: output.value: want one of the graph's outputs ['value'], got 'total'"],
        ),
        (
            f"{HEAD}output:\n  kind: classification\n  label: value\n  scores: value\n  classes: [no, maybe, maybe]\n",
            ["model.yaml:8: output.classes.0: want a whole number or text, got false"],
        ),
        (
            f"{HEAD}output:\n  kind: classification\n  label: value\n  scores: value\n  classes: [a, b]\n",
            [
                "model.yaml:7: output.scores: want a score for each of the 2 classes, [n, 2], got FP32 [-1, 1]",
                "model.yaml:8: output.classes: want whole numbers, as the labels of 'value' are, got ['a', 'b']",
            ],
        ),
        (
            f"{HEAD}output:\n  kind: classification\n  label: value\n  classes: [1, 2, 1]\n",
            ["model.yaml:7: output.classes: want each class once, got [1] again"],
        ),
        (f"{HEAD}{REGRESSION}training: {{at: 1, when: &a {{x: *a}}}}\n", ["model.yaml:5: training: want what JSON"]),
        (
            f"{HEAD}{REGRESSION}gate: {{examples: model.onnx, confidence: manifest.json}}\n",
            [
                "model.yaml:5: gate.examples: want a file of its own, got model.onnx",
                "model.yaml:5: gate.confidence: want a file of its own, got manifest.json",
            ],
        ),
        (
            f"{HEAD}{FEATURES}{REGRESSION}gate:\n  latency_ms: 5\n",
            ["model.yaml:8: gate: want examples that latency_ms is measured with, got none"],
        ),
    ],
)
def test_what_does_not_fit_the_graph_is_said_by_its_line(text: str, said: list[str], desk: Desk) -> None:
    found = errors(inspect_folder(desk.folder(text)))
    assert len(found) == len(said)
    for line, wanted in zip(found, said, strict=True):
        assert line.startswith(wanted)


def test_several_features_that_do_not_fit_are_each_named(graphs: Graphs, desk: Desk) -> None:
    graph = graphs.columns(("a", "INT64", ["n", 1]), ("b", "BYTES", ["n", 1]), ("c", "FP32", ["n", 2]))
    text = (
        f"{HEAD}layout: columns\nfeatures:\n  - {{name: a, type: float32}}\n  - {{name: b, type: float32}}\n"
        "  - {name: c, type: float32}\n  - {name: d, type: bool}\noutput: {kind: tensors}\n"
    )
    wanted = "want one input per feature, got inputs ['a', 'b', 'c']"
    assert errors(inspect_folder(desk.folder(text, graph=graph))) == [
        f"model.yaml:5: features: layout columns: {wanted} for features ['a', 'b', 'c', 'd']",
        "model.yaml:6: features.0: feature 'a': want an input [-1, 1] for float32, got INT64 [-1, 1]",
        "model.yaml:7: features.1: feature 'b': want an input [-1, 1] for float32, got BYTES [-1, 1]",
        "model.yaml:8: features.2: feature 'c': want an input [-1, 1] for float32, got FP32 [-1, 2]",
    ]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("[low, high]", []),
        ("[high, low]", ["output.classes: want them in the order of the scores, ['low', 'high'], got ['high', 'low']"]),
        ("[low, top]", ["output.classes: want the classes of the graph's labels, ['low', 'high'], got ['low', 'top']"]),
    ],
)
def test_classes_are_those_of_the_graph_in_its_order(classes: str, said: list[str], graphs: Graphs, desk: Desk) -> None:
    coefficients = {"coefficients": [1.0, 0.0, 0.0, 1.0], "intercepts": [0.0, 0.0], "multi_class": 1}
    node = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        classlabels_strings=["low", "high"],
        **coefficients,
    )
    graph = graphs.make([node], [("x", "FP32", ["n", 2])], [("label", "BYTES", ["n"]), ("scores", "FP32", ["n", 2])])
    text = f"{HEAD}output:\n  kind: classification\n  label: label\n  scores: scores\n  classes: {classes}\n"
    assert errors(inspect_folder(desk.folder(text, graph=graph))) == [f"model.yaml:8: {line}" for line in said]


def test_the_classes_of_a_map_may_stand_in_any_order_but_must_be_its_own(graphs: Graphs, desk: Desk) -> None:
    graph = graphs.zipmap(classlabels_int64s=[3, 7])
    text = f"{HEAD}output: {{kind: classification, scores: scores, classes: CLASSES}}\n"
    assert errors(inspect_folder(desk.folder(text.replace("CLASSES", "[7, 3]"), graph=graph))) == []
    found = inspect_folder(desk.folder(text.replace("CLASSES", "['3', '7']"), graph=graph, name="texts"))
    assert errors(found) == [
        "model.yaml:4: output.classes: want the classes of the graph's scores, [3, 7], got ['3', '7']"
    ]


def test_a_folder_without_its_files_or_with_others_says_so(desk: Desk, tmp_path: Path) -> None:
    assert errors(inspect_folder(tmp_path)) == [
        "model.yaml: want a readable file, got: No such file or directory",
        "model.onnx: want the file model.onnx, got none",
    ]
    folder = desk.folder(f"{HEAD}{REGRESSION}")
    for content, said in (
        (b"", "want an ONNX file, got one without outputs"),
        (b"PK\x03\x04 no graph", "want an ONNX file, got"),
        (
            onnx.ModelProto(graph=helper.make_graph([], "g", [], desk.graph.graph.output)).SerializeToString(),
            "want an ONNX",
        ),
    ):
        (folder / "model.onnx").write_bytes(content)
        (found,) = errors(inspect_folder(folder))
        assert found.startswith(f"model.onnx: {said}")


def test_too_large_a_package_is_refused_before_it_is_copied(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"{HEAD}{FEATURES}{REGRESSION}gate: {{examples: e.jsonl}}\n"
    folder = desk.folder(text, e__jsonl=[example(1, 2, 3)])
    monkeypatch.setattr("threefold_ops.authoring.folder.MAXIMUM_BYTES", 300)
    monkeypatch.setattr("threefold_ops.authoring.folder.MAXIMUM_FILES", 2)
    assert errors(inspect_folder(folder)) == [
        "model.onnx: want at most 2 files in the package, got 3 with manifest.json",
    ]
    monkeypatch.setattr("threefold_ops.authoring.folder.MAXIMUM_BYTES", 100)
    assert any("want at most 100 bytes in the package, got" in line for line in errors(inspect_folder(folder)))


# Weights beside the graph


def external(desk: Desk, location: str, *, inside: bool = False) -> onnx.ModelProto:
    """A graph with weights in another file: its own initializer's, or those of a branch of an If."""
    array = numpy_helper.from_array(np.ones((2, 1), np.float32), "w")
    array.ClearField("raw_data")
    array.data_location = onnx.TensorProto.EXTERNAL
    array.external_data.add(key="location", value=location)
    array.external_data.add(key="length", value="8")
    value = helper.make_tensor_value_info("value", 1, ["n", 1])
    take = helper.make_node("MatMul", ["x", "w"], ["value"])
    if not inside:
        graph = helper.make_graph([take], "g", [helper.make_tensor_value_info("x", 1, ["n", 2])], [value], [array])
    else:
        branch = helper.make_graph([take], "b", [], [value], [array])
        yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True), "t"))
        both = helper.make_node("If", ["yes"], ["value"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([yes, both], "g", [helper.make_tensor_value_info("x", 1, ["n", 2])], [value])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("inside", [False, True])
def test_weights_beside_the_graph_go_into_the_package(inside: bool, desk: Desk, tmp_path: Path) -> None:
    text = f"{HEAD}{FEATURES}{REGRESSION}gate: {{examples: e.jsonl}}\n"
    folder = desk.folder(text, graph=external(desk, "w.bin", inside=inside), e__jsonl=[example(1, 2, 3)])
    assert errors(inspect_folder(folder)) == [
        "model.onnx: want the file w.bin, which holds some of its weights, got none"
    ]
    (folder / "w.bin").write_bytes(np.ones(2, np.float32).tobytes())
    (tmp_path / "package").mkdir()
    package, _ = build_package(folder, tmp_path / "package")
    assert package.manifest.weights == ("w.bin",)
    assert sorted(path.name for path in package.folder.iterdir()) == ["e.jsonl", "manifest.json", "model.onnx", "w.bin"]


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "sub/w.bin", "model.onnx", "manifest.json", ".hidden"])
def test_weights_that_are_no_plain_file_beside_the_graph_are_refused(location: str, desk: Desk) -> None:
    folder = desk.folder(f"{HEAD}{REGRESSION}", graph=external(desk, location))
    (desk.root / "w.bin").write_bytes(bytes(8))
    (found,) = errors(inspect_folder(folder))
    assert found.startswith(f"model.onnx: want weights in plain files beside it, got {location!r}")


def test_a_value_is_one_a_row_and_a_label_too(graphs: Graphs, desk: Desk) -> None:
    graph = graphs.identity("FP32", ["n", 3])
    for part, kind in (("value", "regression"), ("label", "classification")):
        folder = desk.folder(f"{HEAD}output:\n  kind: {kind}\n  {part}: y\n", name=part, graph=graph)
        said = f"model.yaml:6: output.{part}: want an output of one value a row, [n] or [n, 1], got FP32 [-1, 3]"
        assert errors(inspect_folder(folder)) == [said]


def test_the_labels_of_a_model_within_the_model_are_not_its_own(graphs: Graphs, tmp_path: Path) -> None:
    weights = {"coefficients": [1.0, 0.0, 0.0, 1.0], "intercepts": [0.0, 0.0], "classlabels_ints": [0, 1]}
    inner = helper.make_node("LinearClassifier", ["x"], ["inner", "two"], domain="ai.onnx.ml", multi_class=1, **weights)
    joined = helper.make_node("Concat", ["two", "two"], ["four"], axis=1)
    spec = ("x", "FP32", ["n", 2])
    onnx.save(graphs.make([inner, joined], [spec], [("four", "FP32", ["n", 4])]), tmp_path / "g.onnx")
    assert read_graph(tmp_path / "g.onnx").labels == {}
    softmax = helper.make_node("Softmax", ["two"], ["four"])
    onnx.save(graphs.make([inner, softmax], [spec], [("four", "FP32", ["n", 2])]), tmp_path / "g.onnx")
    assert read_graph(tmp_path / "g.onnx").labels == {"four": (0, 1)}


def test_a_graph_says_what_made_its_outputs(graphs: Graphs, tmp_path: Path) -> None:
    onnx.save(graphs.scorer(["a", "b"]), tmp_path / "g.onnx")
    found = read_graph(tmp_path / "g.onnx")
    assert (found.labels, found.maps, found.weights) == ({"label": ("a", "b")}, frozenset(), ())
    assert found.makers == {"label": "Gather", "scores": "Identity"}


# What is worth a thought


def test_a_bare_folder_is_warned_of_what_it_lacks(desk: Desk) -> None:
    found = inspect_folder(desk.folder(f"{HEAD}{FEATURES}{REGRESSION}"))
    assert found.errors == []
    said = "\n".join(warnings_of(found))
    for what in ("want examples, got none", "want a confidence set, got none", "want a reference, got none"):
        assert what in said
    assert "training: want data_sha256, script_sha256, libraries, at, got none" in said


def whole(desk: Desk, text: str = "", *, name: str = "sums", **more: Any) -> Inspection:
    """A folder with all that a check asks for, and what is given beside."""
    head = HEAD.replace("name: sums", f"name: {name}")
    checks = "  examples: e.jsonl\n  confidence: c.csv\n  metric: rmse\n  acceptable: [0, 1]\n"
    files = {
        "e__jsonl": [example(i, 1, i + 1) for i in range(6)],
        "c__csv": "a,b,value\n" + "".join(f"{i},1,{i + 1.1}\n" for i in range(20)),
        "r__csv": "a,b\n" + "".join(f"{i},2\n" for i in range(20)),
    } | more
    parts = {
        "features": FEATURES,
        "gate": f"gate:\n{checks}",
        "drift": "drift: {reference: r.csv}\n",
        "training": TRAINING,
    }
    for key in parts:
        if text.startswith(f"{key}:") or f"\n{key}:" in text:
            parts[key] = ""
    return inspect_folder(desk.folder(f"{head}{REGRESSION}{''.join(parts.values())}{text}", name=name, **files))


def test_a_whole_folder_is_warned_of_nothing(desk: Desk) -> None:
    found = whole(desk)
    assert (found.errors, found.warnings) == ([], [])


@pytest.mark.parametrize(
    ("text", "files", "said"),
    [
        ("", {"e__jsonl": [example(1, 2, 3)]}, "model.yaml:9: gate.examples: want 5 examples or more, got 1"),
        ("training: {at: now}\n", {}, "training: want data_sha256, script_sha256, libraries, got none"),
        (
            "gate: {examples: e.jsonl, confidence: c.csv, metric: rmse}\n",
            {},
            "gate: want confidence, metric and acceptable together, got no acceptable",
        ),
        (
            "gate: {examples: e.jsonl, confidence: c.csv, metric: rmse, acceptable: [0, .inf]}\n",
            {},
            "gate.acceptable: want a range that a bad model misses, got all that rmse can be",
        ),
        (
            "gate: {examples: e.jsonl, confidence: c.csv, metric: rmse, acceptable: [0, 0]}\n",
            {"c__csv": "a,b,value\n1,1,2\n"},
            "gate.acceptable: want room between the ends, got 0 alone",
        ),
        (
            "",
            {"r__csv": "a,b\n" + "".join(f"{i},1\n" for i in range(5, 25))},
            "c.csv:7: want records that no training saw, got 15",
        ),
        ("", {"r__csv": "a,c\n1,2\n"}, "r.csv: want a column for each feature, got none for ['b']"),
        ("", {"r__csv": "a,a\n1,2\n"}, "r.csv: header: want each name once, got ['a'] more than once"),
        (
            "key: shop\n",
            {"c__csv": "shop,a,b,value\n" + "".join(f"{i % 3},{i},1,{i + 1.1}\n" for i in range(20))},
            "key: want a record's own id, got 3 values in 20 records",
        ),
        (
            "key: shop\n",
            {"e__jsonl": [example(i, 1, i + 1, shop=i % 2) for i in range(12)]},
            "key: want a record's own id, got 2 values in 12 records",
        ),
        (
            "key: a\nfeatures:\n  - {name: a, type: int64, allowed: [0, 1, 2, 3, 4, 5]}\n  - {name: b, type: int64}\n",
            {"c__csv": "a,b,value\n1,1,2.1\n2,1,3.1\n"},
            "key: want a record's own id, got a feature of 6 values",
        ),
    ],
)
def test_what_is_worth_a_thought_is_a_warning(text: str, files: dict[str, Any], said: str, desk: Desk) -> None:
    found = whole(desk, text, **files)
    assert found.errors == []
    said_of_it = warnings_of(found)
    assert len(said_of_it) == 1, said_of_it
    assert said in said_of_it[0]


def test_rows_that_repeat_by_their_nature_are_no_leak(desk: Desk) -> None:
    found = whole(
        desk,
        c__csv="a,b,value\n" + "".join(f"{i % 2},1,{i % 2 + 1.1}\n" for i in range(20)),
        r__csv="a,b\n" + "".join(f"{i % 3},1\n" for i in range(300)),
    )
    assert found.warnings == []


def test_an_id_that_every_record_has_of_its_own_is_no_group(desk: Desk) -> None:
    body = "".join(f"k{i},{i},1,{i + 1.1}\n" for i in range(20))
    assert whole(desk, "key: shop\n", c__csv=f"shop,a,b,value\n{body}").warnings == []


@pytest.mark.parametrize(
    ("feature", "source"),
    [
        ("risk", "an answer of 'risk'"),
        ("risk_label", "an answer of 'risk'"),
        ("Risk score", "an answer of 'risk'"),
        ("defaulted", "an answer of 'risk'"),
        ("hazard", "an answer of 'risk'"),
        ("threefold_value", "a column of a result file"),
        ("sums_value", "an answer of its own"),
        ("label", None),
        ("value", None),
        ("sums", None),
        ("risky", None),
    ],
)
def test_a_feature_that_is_named_as_an_answer_is_a_loop(
    feature: str, source: str | None, desk: Desk, graphs: Graphs
) -> None:
    desk.folder(
        f"{HEAD.replace('sums', 'risk')}output: {{kind: regression, value: hazard}}\ngate: {{target: defaulted}}\n",
        name="other",
        graph=graphs.make(
            [helper.make_node("Identity", ["x"], ["hazard"])], [("x", "FP32", ["n", 1])], [("hazard", "FP32", ["n", 1])]
        ),
    )
    found = whole(
        desk, f"features:\n  - {{name: {feature}, type: float32}}\n  - {{name: b, type: float32}}\n", e__jsonl=""
    )
    loops = [line for line in warnings_of(found) if "before any answer" in line]
    assert len(loops) == (source is not None)
    if source is not None:
        assert (
            f"features.0: want what is known before any answer, got {feature!r}, which is named as {source}" in loops[0]
        )


def test_a_package_that_fills_the_layer_is_a_warning_unless_it_is_not_baked(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threefold_ops.authoring.cautions.BAKED_BYTES", 100)
    (warning,) = warnings_of(whole(desk, "bake: true\n"))
    assert "bake: want at most 100 bytes in the model layer, got" in warning
    assert whole(desk, "bake: false\n", name="other").warnings == []


def test_what_only_onnx_itself_refuses_is_a_warning(desk: Desk) -> None:
    graph = onnx.ModelProto()
    graph.CopyFrom(desk.graph)
    graph.graph.name = ""
    (warning,) = warnings_of(whole(desk, graph=graph))
    assert warning.startswith("model.onnx: want what ONNX's checker accepts, though ONNX Runtime loads it: got ")


# The verb


@pytest.fixture
def run() -> Callable[..., tuple[int, str]]:
    def run(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(load(), [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit | OperatorError)
        return result.exit_code, result.output if result.exception is None else result.output + str(result.exception)

    return run


def test_check_says_all_and_exits_by_it(run: Callable[..., tuple[int, str]], desk: Desk) -> None:
    good = desk.folder(f"{HEAD}{FEATURES}{REGRESSION}gate: {{examples: e.jsonl}}\n", e__jsonl=[example(1, 2, 3)])
    bad = desk.folder(f"{HEAD}{FEATURES}{REGRESSION}key: [b]\n", name="bad")
    code, said = run("check", good)
    assert code == 0
    assert f"{good}/model.yaml:8: warning: gate.examples: want 5 examples or more, got 1" in said
    assert f"{good}: can be published, 4 warnings, sums 1.0.0 (" in said
    assert "1 example, " in said
    assert run("check", "--strict", good)[0] == 1
    code, said = run("check", good, bad)
    assert code == 1
    assert f"{bad}/model.yaml:8: key: want text, got ['b']" in said
    assert f"{bad}: 1 error" in said
    code, said = run("check", "--json", good, bad)
    assert code == 1
    documents = json.loads(said.split("\n1")[0])
    assert [len(document["errors"]) for document in documents] == [0, 1]
    assert documents[0]["name"] == "sums"
    assert documents[1]["errors"] == [{"file": "model.yaml", "message": "key: want text, got ['b']", "line": 8}]
    assert "want a model folder, got none" in run("check", desk.root / "nothing")[1]


def test_check_without_folders_takes_the_examples(run: Callable[..., tuple[int, str]]) -> None:
    code, said = run("check", "--strict")
    assert code == 0
    assert "accuracy 0.9767 in [0.95, 1] on 300 rows" in said


def test_new_says_what_it_made_and_what_comes_next(
    run: Callable[..., tuple[int, str]], models: Path, tmp_path: Path
) -> None:
    arguments = ("--from", models / "diabetes" / "model.onnx", "--data", models / "diabetes" / "confidence.csv")
    code, said = run("new", "sugar", *arguments, "--target", "value", "--into", tmp_path)
    assert code == 0
    folder = tmp_path / "sugar"
    assert f"{folder}/confidence.csv  32 labelled records, for the metric" in said
    assert f"next: read {folder}/model.yaml, then 'threefold publish {folder}'" in said
    code, said = run("new", "sugar", *arguments, "--target", "value", "--into", tmp_path)
    assert code == 1
    assert "want a folder that is not there yet, got one; nothing is overwritten" in said
    code, said = run("new", "salt", "--from", models / "diabetes" / "model.onnx", "--into", tmp_path, "--json")
    assert code == 0
    assert json.loads(said)["check"]["errors"] == []


def test_what_a_link_points_at_is_not_published(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "diabetes", tmp_path / "diabetes")
    secret = tmp_path / "secret.csv"
    (folder / "reference.csv").rename(secret)
    (folder / "reference.csv").symlink_to(secret)
    assert "reference.csv: want a file, got a link to one" in [str(each) for each in inspect_folder(folder).errors]


def test_a_few_lines_of_aliases_do_not_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    file = tmp_path / "model.yaml"
    head = "schema: 1\nname: a\nversion: 1.0.0\noutput: {kind: tensors}\n"
    file.write_text(f"{head}training: {{{', '.join(lines)}}}\n")
    with pytest.raises(OperatorError, match="want at most 1000000 values"):
        read_model_file(file)
