"""The gate: every thing that is wrong is found, named with its place, and said in plain words."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from threefold import gate as gate_module
from threefold.errors import InvalidPackage, OutsideSignature
from threefold.features import parse_cell
from threefold.gate import FINDINGS_PER_FILE, Finding, Report, admit, inspect
from threefold.labelled import Scored, read_labelled
from threefold.model import Model
from threefold.package import Output
from threefold.signature import Feature

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx

    from tests.conftest import Graphs, PackageMaker
    from tests.core.conftest import Clock
    from threefold.package import Package

VALUE = Output(kind="regression", value="value")
TWO = (Feature(name="a", type="float32", max=100), Feature(name="b", type="float32", max=100))
CLASSES = ("low", "mid", "high")
THREE = tuple(Feature(name=name, type="float32") for name in "abc")
GOOD = {"record": {"a": 1, "b": 2}, "expect": {"value": 3}}


@dataclass(frozen=True)
class Maker:
    """Makes packages with a gate: value = a + b, or the class of the largest feature."""

    graphs: Graphs
    make_package: PackageMaker

    def package(
        self,
        graph: onnx.ModelProto,
        *,
        files: dict[str, str] | None = None,
        gate: dict[str, Any] | None = None,
        **of: Any,
    ) -> Package:
        whole: dict[str, Any] = dict.fromkeys(("examples", "confidence", "metric", "acceptable")) | (gate or {})
        package = self.make_package(graph, document={"gate": whole}, **of)
        for name, text in (files or {}).items():
            (package.folder / name).write_text(text, encoding="utf-8", newline="")
        return package

    def regression(self, *, files: dict[str, str] | None = None, **gate: Any) -> Model:
        graph = self.graphs.linear([1.0, 1.0])
        return Model(self.package(graph, files=files, gate=gate, features=TWO, output=VALUE, key="id"))

    def examples(self, *lines: object) -> Model:
        """A regression with an end-to-end set of these lines, written as they are if they are text."""
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        return self.regression(files={"examples.jsonl": text}, examples="examples.jsonl")

    def confidence(
        self, text: str, *, metric: str = "mae", acceptable: Sequence[float] = (0, 0.5), **gate: Any
    ) -> Model:
        declared = {"confidence": "confidence.csv", "metric": metric, "acceptable": list(acceptable), **gate}
        return self.regression(files={"confidence.csv": text}, **declared)

    def classifier(
        self,
        text: str,
        *,
        metric: str = "accuracy",
        classes: Sequence[str] = CLASSES,
        acceptable: Sequence[float] = (0.9, 1),
    ) -> Model:
        package = self.package(
            self.graphs.scorer(CLASSES),
            files={"confidence.csv": text},
            gate={"confidence": "confidence.csv", "metric": metric, "acceptable": list(acceptable)},
            features=THREE,
            output=Output(kind="classification", label="label", scores="scores", classes=tuple(classes)),
        )
        return Model(package)


@pytest.fixture(scope="module")
def make(graphs: Graphs, make_package: PackageMaker) -> Maker:
    return Maker(graphs, make_package)


def said(report: Report) -> list[str]:
    return [str(finding) for finding in report.findings]


def table(*rows: tuple[object, ...], header: str = "a,b,value") -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def test_a_finding_reads_as_a_compiler_would_say_it() -> None:
    assert str(Finding("examples.jsonl", "want x, got y", 3)) == "examples.jsonl:3: want x, got y"
    assert str(Finding("manifest.json", "want x, got y")) == "manifest.json: want x, got y"


def test_a_model_that_says_what_the_training_library_said_is_served(models: Path, tmp_path: Path) -> None:
    from threefold_ops.registry.publish import build_package

    figures = {}
    for folder in sorted(path.parent for path in models.glob("*/model.yaml")):
        target = tmp_path / folder.name
        target.mkdir()
        report = admit(Model(build_package(folder, target)[0]))
        assert report.complete
        assert report.examples > 1
        assert report.latency_ms is not None
        figures[folder.name] = (report.rows, report.value)
    assert figures["digit-pairs"] == (0, None)
    # What scikit-learn's own model scored on these rows when it was trained.
    assert figures["digits"][1] == pytest.approx(0.9767, abs=1e-4)
    assert all(rows > 100 and value is not None for name, (rows, value) in figures.items() if name != "digit-pairs")


def test_a_package_without_a_gate_is_served(make: Maker) -> None:
    assert admit(make.regression()) == Report()


# What goes in and what must come out.


def test_every_wrong_answer_is_found_with_its_line(make: Maker) -> None:
    off = {"record": {"a": 1, "b": 2}, "expect": {"value": 200}}
    assert said(inspect(make.examples(GOOD, "", off, GOOD, off))) == [
        "examples.jsonl:3: want value 200, got 3",
        "examples.jsonl:5: want value 200, got 3",
    ]


def test_an_answer_within_the_tolerance_of_its_datatype_is_right(make: Maker) -> None:
    assert said(inspect(make.examples({**GOOD, "expect": {"value": 3.0001}}))) == []
    assert said(inspect(make.examples({**GOOD, "expect": {"value": 3.001}}))) == [
        "examples.jsonl:1: want value 3.001, got 3"
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "want JSON, got '{'"),
        ("NaN", "want an object, got nan"),
        ("[" * 100_000, "want JSON of a sensible size and depth, got more"),
        ("9" * 5000, "want JSON of a sensible size and depth, got more"),
        ([1], "want an object, got [1]"),
        (None, "want an object, got None"),
        ({}, 'want "record", an object of features, got none'),
        ({"record": [], "expect": {"value": 3}}, 'want "record", an object of features, got []'),
        ({"inputs": {"x": [1, 2]}, "expect": {"value": 3}}, 'want "record", an object of features, got none'),
        ({"record": {"a": 1, "b": 2}}, 'want "expect", an object of what must come out, got none'),
        ({"record": {"a": 1, "b": 2}, "expect": 3}, 'want "expect", an object of what must come out, got 3'),
        ({"record": {"a": 1, "b": 2}, "expect": {}}, "expect: want at least one output, got none"),
        ({"record": {"a": 1, "b": 2}, "expect": {"valeu": 3}}, "expect: want names out of ['value'], got 'valeu'"),
        ({"record": {"a": 1, "b": 2}, "expect": {"value": {"a": 3}}}, "expect value: want numbers, got {'a': 3}"),
        ({"record": {"a": 1, "b": 2}, "expect": {"value": "three"}}, "expect value: want numbers, got 'three'"),
        ({"record": {"a": 1, "b": 2}, "expect": {"value": [3, 4]}}, "want value of 2 values, got 1"),
        ({"record": {"a": 1, "b": 2}, "expect": {"value": [[3], []]}}, "expect value: want numbers, got [[3], []]"),
        ({"record": {"a": 1, "b": 2}, "expect": {"value": None}}, "want value nan, got 3"),
        ({"record": {"a": 1, "b": 2}, "expect": {"value": 10**400}}, "expect value: want numbers, got 1000"),
        ({"record": {"a": 1, "b": 2}, "expect": {"value": float("inf")}}, "want value inf, got 3"),
        ({"record": {"a": 1}, "expect": {"value": 3}}, "input 'b': want FP32 in [-inf, 100], got nothing"),
        ({"record": {"a": 1, "b": "x"}, "expect": {"value": 3}}, "input 'b': want FP32 in [-inf, 100], got 'x'"),
    ],
)
def test_an_example_that_is_none_is_found_in_plain_words(line: object, message: str, make: Maker) -> None:
    found = said(inspect(make.examples(GOOD, line, GOOD)))
    assert len([finding for finding in found if finding.startswith(f"examples.jsonl:2: {message}")]) == 1
    assert all(finding.startswith("examples.jsonl:2: ") for finding in found)


def test_bytes_that_are_no_text_are_found(make: Maker) -> None:
    model = make.examples(GOOD)
    (model.package.folder / "examples.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"record": "\xff"}\n')
    assert said(inspect(model)) == ["examples.jsonl:2: want UTF-8, got byte 0xff"]


def test_a_gate_that_checks_nothing_is_none(make: Maker) -> None:
    assert said(inspect(make.examples())) == ["examples.jsonl: want at least one example, got none"]
    assert said(inspect(make.regression(examples="gone.jsonl"))) == [
        "gone.jsonl: want a file that can be read, got No such file or directory"
    ]
    empty = make.confidence(table())
    assert said(inspect(empty)) == ["confidence.csv: mae: want at least one row, got none"]


def test_no_more_is_listed_than_somebody_reads(make: Maker) -> None:
    off = {"record": {"a": 1, "b": 2}, "expect": {"value": 200}}
    found = said(inspect(make.examples(*[off] * 50)))
    assert len(found) == FINDINGS_PER_FILE + 1
    assert found[-1] == "examples.jsonl: 30 more like these"


def test_a_refusal_names_the_package_and_its_first_findings(make: Maker) -> None:
    off = {"record": {"a": 1, "b": 2}, "expect": {"value": 200}}
    model = make.examples(*[off] * 5)
    first = "; ".join(f"examples.jsonl:{line}: want value 200, got 3" for line in (1, 2, 3))
    with pytest.raises(InvalidPackage) as caught:
        admit(model)
    assert str(caught.value) == f"package {model.digest[:12]}: {first}; and 2 more"


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"label": "high", "scores": {"low": 0.1, "mid": 0.2, "high": 0.7}}, None),
        ({"scores": {"high": 0.7, "mid": 0.2, "low": 0.1}}, None),
        ({"label": "low"}, "want label 'low', got 'high'"),
        ({"label": 1}, "expect label: want text, got 1"),
        ({"scores": {"low": 0.1, "mid": 0.3, "high": 0.7}}, "want scores['mid'] 0.3, got 0.2"),
        ({"scores": {"low": 0.1}}, "expect scores: want a number for each of ['low', 'mid', 'high'], got ['low']"),
        ({"scores": [0.1, 0.2, 0.7]}, "expect scores: want a number for each of ['low', 'mid', 'high'], got [0.1, 0.2"),
        ({"scores": {"low": "x", "mid": 0.2, "high": 0.7}}, "expect scores['low']: want numbers, got 'x'"),
    ],
)
def test_what_a_classifier_says_is_compared_part_by_part(expect: object, message: str | None, make: Maker) -> None:
    text = json.dumps({"record": {"a": 0.1, "b": 0.2, "c": 0.7}, "expect": expect})
    output = Output(kind="classification", label="label", scores="scores", classes=CLASSES)
    package = make.package(
        make.graphs.scorer(CLASSES),
        files={"x.jsonl": text},
        gate={"examples": "x.jsonl"},
        features=THREE,
        output=output,
    )
    found = said(inspect(Model(package)))
    assert len(found) == (message is not None)
    assert not found or found[0].startswith(f"x.jsonl:1: {message}")


def tensors(make: Maker, graph: onnx.ModelProto, *lines: object, **gate: Any) -> Report:
    text = "\n".join(json.dumps(line) for line in lines)
    package = make.package(graph, files={"examples.jsonl": text}, gate={"examples": "examples.jsonl", **gate})
    return inspect(Model(package))


def test_an_example_of_tensors_is_compared_whole_where_rows_do_not_stack(make: Maker) -> None:
    good = {"inputs": {"x": [1, 2, 3]}, "expect": {"y": 6}}
    graph = make.graphs.total()
    assert said(tensors(make, graph, good, {"inputs": {"x": [1]}, "expect": {"y": 1}})) == []
    assert said(tensors(make, graph, good, {"inputs": {"x": [1]}, "expect": {"y": 2}})) == [
        "examples.jsonl:2: want y 2, got 1"
    ]


def test_examples_of_tensors_may_differ_in_size(make: Maker) -> None:
    lines = [{"inputs": {"x": [1] * size}, "expect": {"y": [1] * size}} for size in (1, 3, 2, 3)]
    report = tensors(make, make.graphs.identity("FP32", ["n", "m"]), *lines)
    assert (said(report), report.examples) == ([], 4)
    lines[3]["expect"]["y"][1] = 5
    assert said(tensors(make, make.graphs.identity("FP32", ["n", "m"]), *lines)) == [
        "examples.jsonl:4: want y[1] 5, got 1"
    ]


@pytest.mark.parametrize(
    ("datatype", "value", "message"),
    [
        ("FP32", [1, 2.5], None),
        ("FP32", [None, "NaN"], None),
        ("FP32", [1, "2"], "input 'x': want FP32 values, got [1, '2']"),
        ("FP32", [1e300, 1], "input 'x': want FP32 values, got [1e+300, 1]"),
        ("FP32", [1, 2, 3], "input 'x': want shape [2], got [3]"),
        ("FP32", [[1, 2], [3]], "input 'x': want FP32 values, got [[1, 2], [3]]"),
        ("FP32", {"a": 1}, "input 'x': want FP32 values, got {'a': 1}"),
        ("INT64", [1, 2**62 + 1], None),
        ("INT64", [1, 2.5], "input 'x': want INT64 values, got [1, 2.5]"),
        ("INT64", [1, 2**63], "input 'x': want INT64 values, got [1, 9223372036854775808]"),
        ("INT8", [1, 128], "input 'x': want INT8 values, got [1, 128]"),
        ("UINT8", [1, -1], "input 'x': want UINT8 values, got [1, -1]"),
        ("BOOL", [True, False], None),
        ("BOOL", [1, 0], "input 'x': want BOOL values, got [1, 0]"),
        ("BYTES", ["a", "é"], None),
        ("BYTES", ["a", 1], "input 'x': want BYTES values, got ['a', 1]"),
    ],
)
def test_a_tensor_of_an_example_is_never_cast(datatype: str, value: Any, message: str | None, make: Maker) -> None:
    report = tensors(make, make.graphs.identity(datatype), {"inputs": {"x": value}, "expect": {"y": value}})
    assert said(report) == ([] if message is None else [f"examples.jsonl:1: {message}"])


def test_whole_numbers_are_compared_to_the_last_digit(make: Maker) -> None:
    line = {"inputs": {"x": [2**60, 0]}, "expect": {"y": [2**60 + 1, 0]}}
    assert said(tensors(make, make.graphs.identity("INT64"), line)) == [
        f"examples.jsonl:1: want y[0] {2**60 + 1}, got {2**60}"
    ]


def test_other_tensors_than_the_models_are_found(make: Maker) -> None:
    graph = make.graphs.identity("FP32")
    for inputs in ({}, {"x": [1, 2], "z": [1]}):
        found = said(tensors(make, graph, {"inputs": inputs, "expect": {"y": [1, 2]}}))
        assert found == [f"examples.jsonl:1: inputs: want tensors ['x'], got {list(inputs)}"]
    assert said(tensors(make, graph, {"record": {}, "expect": {"y": [1, 2]}})) == [
        'examples.jsonl:1: want "inputs", an object of tensors, got none'
    ]


def test_what_a_graph_refuses_is_a_finding(make: Maker) -> None:
    lines = [{"inputs": {"x": [index]}, "expect": {"y": [10.0 * (index + 1)]}} for index in (0, 3, 2)]
    (finding,) = said(tensors(make, make.graphs.lookup(), *lines))
    assert finding.startswith("examples.jsonl:2: inputs: want values that the model can compute with, got: ")


def test_a_graph_that_takes_one_row_only_is_found(make: Maker) -> None:
    """It says the right thing of each record, and nothing of two."""
    for count, found in ((1, 0), (2, 1)):
        text = "\n".join([json.dumps({"record": {"a": 1, "b": 2}, "expect": {"value": 1}})] * count)
        gate = {"examples": "examples.jsonl"}
        package = make.package(
            make.graphs.lonely(), files={"examples.jsonl": text}, gate=gate, features=TWO, output=VALUE
        )
        report = inspect(Model(package))
        assert len(report.findings) == found
        assert all("examples.jsonl: all in one call: inputs: want values" in line for line in said(report))


def test_an_answer_that_depends_on_its_company_is_found(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make.examples(GOOD, GOOD)
    run = model.run
    monkeypatch.setattr(model, "run", lambda feed: {"value": run(feed)["value"] + (len(feed["x"]) == 1)})
    assert said(inspect(model)) == [f"examples.jsonl:{line}: alone: want value 3, got 4" for line in (1, 2)]
    monkeypatch.setattr(model, "run", lambda feed: {"value": run(feed)["value"] + (len(feed["x"]) == 2)})
    assert said(inspect(model)) == [f"examples.jsonl:{line}: want value 3, got 4" for line in (1, 2)]


def test_what_a_graph_refuses_alone_is_found(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make.examples(GOOD, GOOD)
    run = model.run

    def unsociable(feed: Any) -> Any:
        if len(feed["x"]) == 1:
            message = "inputs: want company"
            raise OutsideSignature(message)
        return run(feed)

    monkeypatch.setattr(model, "run", unsociable)
    assert said(inspect(model)) == [f"examples.jsonl:{line}: alone: inputs: want company" for line in (1, 2)]


@pytest.mark.parametrize("axes", [("n", 2), (4, 2)])
def test_an_output_that_is_not_what_the_manifest_says_is_found(axes: Sequence[int | str], make: Maker) -> None:
    package = make.package(
        make.graphs.identity("FP32", axes),
        files={"examples.jsonl": json.dumps(GOOD)},
        gate={"examples": "examples.jsonl"},
        features=TWO,
        output=Output(kind="regression", value="y"),
    )
    assert said(inspect(Model(package))) == ["model.onnx: want one 'y' a row, got shape [1, 2]"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "x", "value", "label", "scores", "low"]), inner, max_size=3)
    ),
    max_leaves=6,
)
LINES = st.one_of(
    st.text(max_size=20),
    st.builds(json.dumps, st.fixed_dictionaries({"record": JSON, "inputs": JSON, "expect": JSON})),
    st.builds(json.dumps, st.fixed_dictionaries({"record": st.just({"a": 1, "b": 2, "c": 0}), "expect": JSON})),
    st.builds(json.dumps, st.fixed_dictionaries({"inputs": st.fixed_dictionaries({"x": JSON}), "expect": JSON})),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, min_size=1, max_size=3), table=st.text("ab,;value\n\r\"'1.e-_\x00 \ufeff", max_size=60))
def test_nothing_that_somebody_wrote_stops_the_gate(lines: list[str], table: str, make: Maker, tmp_path: Path) -> None:
    """Whatever the files hold, there are findings or none: no error escapes, and none shows Python's own words."""
    declared = {"examples": "examples.jsonl", "confidence": "confidence.csv", "metric": "mae", "acceptable": [0, 1]}
    for model in (
        any_model(make, "regression", declared),
        any_model(make, "classifier", declared),
        any_model(make, "tensors", declared),
    ):
        (model.package.folder / "examples.jsonl").write_bytes("\n".join(lines).encode(errors="surrogatepass"))
        (model.package.folder / "confidence.csv").write_bytes(table.encode(errors="surrogatepass"))
        for finding in said(inspect(model)):
            assert not re.search(r"Error\(|Traceback|<class|object at 0x", finding)


MODELS: dict[str, Model] = {}


def any_model(make: Maker, kind: str, gate: dict[str, Any]) -> Model:
    if kind not in MODELS:
        scorer = Output(kind="classification", label="label", scores="scores", classes=CLASSES)
        package = {
            "regression": lambda: make.package(make.graphs.linear([1, 1]), gate=gate, features=TWO, output=VALUE),
            "classifier": lambda: make.package(
                make.graphs.scorer(CLASSES), gate={**gate, "metric": "auc"}, features=THREE, output=scorer
            ),
            "tensors": lambda: make.package(make.graphs.identity("FP32"), gate={"examples": "examples.jsonl"}),
        }[kind]()
        MODELS[kind] = Model(package)
    return MODELS[kind]


# The labelled confidence set.


def test_a_figure_within_the_acceptable_is_reported(make: Maker) -> None:
    report = inspect(make.confidence(table((1, 2, 3), (1, 2, 4))))
    assert (said(report), report.value, report.rows, report.complete) == ([], 0.5, 2, True)


@pytest.mark.parametrize(
    ("acceptable", "right"), [((0.5, 1), True), ((0, 0.5), True), ((0.51, 1), False), ((0, 0.49), False)]
)
def test_both_ends_of_the_acceptable_are_within_it(acceptable: tuple[float, float], right: bool, make: Maker) -> None:
    report = inspect(make.confidence(table((1, 2, 3), (1, 2, 4)), acceptable=acceptable))
    low, high = acceptable
    want = [] if right else [f"confidence.csv: mae: want within [{low:g}, {high:g}], got 0.5 (2 rows)"]
    assert said(report) == want
    assert report.value == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "b;a;note;value\r\n2;1;x;3\r\n",
        "\ufeffvalue,b,a\n3,2,1\n",
        "value\tb\t a \n3\t2\t1",
        'a|"b"|value\n1|"2"|"3"\n\n',
    ],
)
def test_columns_are_found_by_their_names(text: str, make: Maker) -> None:
    report = inspect(make.confidence(text, acceptable=(0, 0)))
    assert (said(report), report.rows) == ([], 1)


def test_the_truth_may_stand_in_another_column(make: Maker) -> None:
    text = table((1, 2, 9, 3), header="a,b,value,truth")
    assert said(inspect(make.confidence(text, acceptable=(0, 0), target="truth"))) == []
    assert said(inspect(make.confidence(text, acceptable=(0, 0)))) == [
        "confidence.csv: mae: want within [0, 0], got 6 (1 rows)"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "confidence.csv:1: want a header row, got nothing"),
        ("a,value\n1,2\n", "confidence.csv:1: want columns ['b'], got ['a', 'value']"),
        ("a,b\n1,2\n", "confidence.csv:1: want columns ['value'], got ['a', 'b']"),
        ("a,b,value,a\n1,2,3,4\n", "confidence.csv:1: want each column once, got ['a'] more than once"),
        (table((1, 2, 3), (1, "x", 3)), "confidence.csv:3: input 'b': want FP32 in [-inf, 100], got 'x'"),
        (table((1, 2, 3), (1, 200, 3)), "confidence.csv:3: input 'b': want FP32 in [-inf, 100], got 200.0"),
        (table((1, 2, 3), (1, "", 3)), "confidence.csv:3: input 'b': want FP32 in [-inf, 100], got nothing"),
        (table((1, 2, 3), (1, 2)), "confidence.csv:3: want 3 cells, got 2"),
        (table((1, 2, 3), (1, 2, "x")), "confidence.csv:3: value: want a finite number, got 'x'"),
        (table((1, 2, 3), (1, 2, "")), "confidence.csv:3: value: want a finite number, got ''"),
        (table((1, 2, 3), (1, 2, "inf")), "confidence.csv:3: value: want a finite number, got 'inf'"),
        (table((1, 2, '"3\n"'), (1, 2, "x")), "confidence.csv:4: value: want a finite number, got 'x'"),
    ],
)
def test_a_row_that_cannot_be_scored_is_found_with_its_line(text: str, message: str, make: Maker) -> None:
    report = inspect(make.confidence(text))
    assert len(report.findings) == 1
    assert said(report)[0].startswith(message)
    assert report.value is None, "a figure of some of the rows says nothing of the set"


def test_a_cell_beyond_all_measure_is_found(make: Maker) -> None:
    before = csv.field_size_limit(1000)
    try:
        (finding,) = said(inspect(make.confidence(table((1, 2, 3), (1, 2, "3" * 2000)))))
    finally:
        csv.field_size_limit(before)
    assert finding.startswith("confidence.csv:3: want CSV, got field larger than field limit")


def test_a_table_that_is_no_text_is_found(make: Maker) -> None:
    model = make.confidence(table())
    (model.package.folder / "confidence.csv").write_bytes(b"a,b,value\n1,2,3\n1,2,\xe9\n")
    assert said(inspect(model)) == ["confidence.csv:3: want UTF-8, got byte 0xe9"]
    (model.package.folder / "confidence.csv").unlink()
    assert said(inspect(model)) == ["confidence.csv: want a file that can be read, got No such file or directory"]


def test_a_feature_that_has_a_default_needs_no_column(make: Maker) -> None:
    features = (TWO[0], Feature(name="b", type="float32", missing=2))
    declared = {"confidence": "confidence.csv", "metric": "mae", "acceptable": [0, 0]}
    package = make.package(
        make.graphs.linear([1, 1]),
        files={"confidence.csv": "a,value\n1,3\n"},
        gate=declared,
        features=features,
        output=VALUE,
    )
    assert inspect(Model(package)).value == 0.0


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (
            {"metric": "auc", "confidence": "x.csv", "acceptable": [0, 1]},
            "want a metric of a regression, one of ['rmse',",
        ),
        ({"metric": "x", "confidence": "x.csv", "acceptable": [0, 1]}, "'r2'], got 'x'"),
        ({"metric": "mae", "confidence": "x.csv", "acceptable": [1, 0]}, "from least to greatest, got [1, 0]"),
    ],
)
def test_a_confidence_set_that_is_declared_wrong_is_found(declared: dict[str, Any], message: str, make: Maker) -> None:
    (finding,) = said(inspect(make.regression(**declared)))
    assert finding.startswith("manifest.json: gate: want ")
    assert message in finding


@pytest.mark.parametrize(
    "declared", [{"metric": "mae"}, {"confidence": "nothing.csv"}, {"confidence": "nothing.csv", "metric": "mae"}]
)
def test_half_a_confidence_set_measures_nothing_and_refuses_nothing(declared: dict[str, Any], make: Maker) -> None:
    report = inspect(make.regression(**declared))
    assert (said(report), report.value) == ([], None)


def test_a_model_without_records_has_no_confidence_set(make: Maker) -> None:
    example = {"inputs": {"x": [1, 2]}, "expect": {"y": [1, 2]}}
    gate = {"confidence": "confidence.csv", "metric": "mae", "acceptable": [0, 1]}
    assert said(tensors(make, make.graphs.identity("FP32"), example, **gate)) == [
        "manifest.json: gate: want no confidence set for a model that takes tensors only, got confidence.csv"
    ]


def rows(*best: str, truth: Sequence[str] = CLASSES) -> str:
    """A table whose rows each have one of the classes as the best by far, and a truth."""
    cells = [[f"{0.8 if name == winner else 0.1}" for name in CLASSES] for winner in best]
    return table(*((*row, label) for row, label in zip(cells, truth, strict=True)), header="a,b,c,label")


def test_a_classifier_is_measured_by_its_labels_or_its_scores(make: Maker) -> None:
    text = rows("low", "mid", "low", truth=CLASSES)
    assert inspect(make.classifier(text)).value == pytest.approx(2 / 3)
    assert inspect(make.classifier(text, metric="auc")).value == 0.75, "1/2, 1 and 3/4: ties count half"
    assert said(inspect(make.classifier(text))) == [
        "confidence.csv: accuracy: want within [0.9, 1], got 0.666667 (3 rows)"
    ]


def test_a_truth_that_is_no_class_is_found(make: Maker) -> None:
    assert said(inspect(make.classifier(rows("low", "mid", "high", truth=["low", "Mid", ""])))) == [
        "confidence.csv:3: label: want one of ['low', 'mid', 'high'], got 'Mid'",
        "confidence.csv:4: label: want one of ['low', 'mid', 'high'], got ''",
    ]


def test_a_metric_that_is_not_defined_is_found(make: Maker) -> None:
    assert said(inspect(make.classifier(rows("low", "mid", truth=["low", "low"]), metric="auc"))) == [
        "confidence.csv: auc: want truth of every class, got none of ['mid', 'high']"
    ]


def test_a_row_that_the_graph_refuses_is_found_alone(make: Maker) -> None:
    package = make.package(
        make.graphs.lookup(),
        files={"confidence.csv": table((0, 10), (3, 40), (2, 30), header="x,value")},
        gate={"confidence": "confidence.csv", "metric": "mae", "acceptable": [0, 0]},
        features=(Feature(name="x", type="int64"),),
        output=Output(kind="regression", value="y"),
    )
    report = inspect(Model(package))
    assert [finding.line for finding in report.findings] == [3]
    assert report.rows == 2


def test_a_graph_that_refuses_company_is_measured_as_it_is_served(make: Maker) -> None:
    package = make.package(
        make.graphs.lonely(),
        files={"confidence.csv": table((1, 0, 1), (5, 0, 7))},
        gate={"confidence": "confidence.csv", "metric": "mae", "acceptable": [0, 1]},
        features=TWO,
        output=VALUE,
    )
    report = inspect(Model(package))
    assert (said(report), report.value, report.rows) == ([], 1.0, 2)


@pytest.mark.parametrize("count", [7, 8])
def test_classes_in_another_order_than_the_scores_are_found(count: int, make: Maker) -> None:
    text = rows(*["low"] * count, truth=["low"] * count)
    assert said(inspect(make.classifier(text))) == []
    found = said(inspect(make.classifier(text, classes=("high", "mid", "low"))))
    want = "manifest.json: classes: want the order of scores; the best score is the label's in 0 of 8 rows"
    assert found == ([want] if count == 8 else [])


def test_a_set_of_many_slices_is_measured_as_one(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    text = table(*((i, 1, i + 1 + (i == 5)) for i in range(10)))
    whole = inspect(make.confidence(text))
    for size in (1, 3, 5, 10):
        monkeypatch.setattr(gate_module, "_ROWS_PER_SLICE", size)
        assert inspect(make.confidence(text)).value == whole.value == 0.1


# The time that there is.


def ticking(clock: Clock, model: Model, seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every run of the model take some seconds, and keep how many rows each had."""
    run, sizes = model.run, []

    def slow(feed: Any) -> Any:
        clock.seconds += seconds
        sizes.append(len(feed["x"]))
        return run(feed)

    monkeypatch.setattr(model, "run", slow)
    return sizes


def test_what_has_no_time_left_is_not_begun(make: Maker, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one call and one alone always run; a figure that was not measured is no finding."""
    text = "\n".join([json.dumps(GOOD)] * 5)
    declared = {"examples": "examples.jsonl", "confidence": "confidence.csv", "metric": "mae", "acceptable": [0, 0]}
    model = make.regression(files={"examples.jsonl": text, "confidence.csv": table((1, 2, 9))}, **declared)
    for seconds, expected in ((0.0, [5, 1]), (2.5, [5, 1, 1]), (60.0, [5, 1, 1, 1, 1, 1, 1])):
        with monkeypatch.context() as patch:
            sizes = ticking(clock, model, 1.0, patch)
            report = inspect(model, seconds=seconds, clock=clock)
        assert sizes == expected
        assert report.complete is (seconds == 60.0)
        assert (len(report.findings), report.value) == ((1, 6.0) if report.complete else (0, None))


def test_wrong_answers_are_found_without_any_time(make: Maker) -> None:
    assert len(inspect(make.examples(GOOD, {**GOOD, "expect": {"value": 4}}), seconds=0).findings) == 1


def test_a_set_that_is_cut_off_is_no_finding(make: Maker, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "_ROWS_PER_SLICE", 2)
    model = make.confidence(table(*[(1, 2, 9)] * 10), acceptable=(0, 0))
    ticking(clock, model, 1.0, monkeypatch)
    report = inspect(model, seconds=2.0, clock=clock)
    assert (said(report), report.rows, report.value, report.complete) == ([], 4, None, False)


@pytest.mark.parametrize(("limit", "slow"), [(249.0, True), (250.0, False)])
def test_a_record_that_takes_too_long_is_found(
    limit: float, slow: bool, make: Maker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make.regression(files={"x.jsonl": json.dumps(GOOD)}, examples="x.jsonl", latency_ms=limit)
    sizes = ticking(clock, model, 0.25, monkeypatch)
    report = inspect(model, clock=clock)
    assert report.latency_ms == 250.0
    assert said(report) == (
        ["x.jsonl: one record: want at most 249 ms, got 250 ms (median of 15 runs)"] if slow else []
    )
    assert sizes == [1] * 17, "all in one call, one to warm up, and enough for a median"


def test_the_median_forgives_a_hiccup_and_the_first_run(
    make: Maker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make.regression(files={"x.jsonl": "\n".join([json.dumps(GOOD)] * 16)}, examples="x.jsonl", latency_ms=100)
    run, times = model.run, iter([5.0, 5.0, 5.0, *[0.05] * 20])

    def uneven(feed: Any) -> Any:
        clock.seconds += next(times)
        return run(feed)

    monkeypatch.setattr(model, "run", uneven)
    report = inspect(model, clock=clock)
    assert said(report) == []
    assert report.latency_ms == pytest.approx(50)


def test_a_time_that_nothing_measures_is_found(make: Maker) -> None:
    assert said(inspect(make.regression(latency_ms=5))) == [
        "manifest.json: gate: want examples that latency_ms is measured with, got none"
    ]


# Labelled records, for whoever compares models on them.


def test_a_labelled_table_gives_records_truth_lines_and_keys(make: Maker) -> None:
    model = make.regression()
    path = model.package.folder / "labelled.csv"
    path.write_text('id,a,b,value,note\nx-1,1,2,3,"two\nlines"\n,1.5,,4,\nx-3,1,2,?,\n')
    found = read_labelled(path, model.manifest)
    assert found.records == [{"a": 1.0, "b": 2.0}, {"a": 1.5, "b": None}]
    assert (found.truth, found.lines, found.keys) == ([3.0, 4.0], [2, 4], ["x-1", None])
    assert found.problems == [(5, "value: want a finite number, got '?'")]
    scored = Scored(model)
    answers, problems = scored.add(found)
    assert (len(answers), len(scored), scored.lines) == (1, 1, [2])
    assert problems == [*found.problems, (4, "input 'b': want FP32 in [-inf, 100], got nothing")]
    assert scored.measure("mae") == 0.0


@pytest.mark.parametrize(
    ("classes", "cell", "truth"),
    [
        ((0, 1), "1", 1),
        ((0, 1), " 1.0 ", 1),
        ((0, 1), "2", None),
        ((0, 1), "0.5", None),
        (("0", "1"), "1", "1"),
        (("0", "1"), "1.0", None),
        (("a b", "c"), "a b", "a b"),
    ],
)
def test_a_truth_is_one_of_the_classes_as_the_model_says_them(
    classes: tuple[str | int, ...], cell: str, truth: object, make: Maker, tmp_path: Path
) -> None:
    output = Output(kind="classification", scores="y", classes=classes)
    package = make.package(make.graphs.identity("FP32"), features=TWO, output=output)
    (tmp_path / "x.csv").write_text(f"a,b,label\n1,2,{cell}\n")
    found = read_labelled(tmp_path / "x.csv", package.manifest).truth
    assert (found, [type(value) for value in found]) == (([truth], [type(truth)]) if truth is not None else ([], []))


def test_cells_are_read_as_the_batch_door_reads_them(make: Maker, tmp_path: Path) -> None:
    """Column by column or cell by cell, a cell means one thing."""
    cells = ["1", " 2 ", "1_000", "", "x", "1e3", "1.0", "nan", "-0", str(2**60 + 1), "True"]
    manifest = make.package(make.graphs.identity("FP32"), features=TWO, output=VALUE).manifest
    for kind in ("float64", "int64", "string", "bool"):
        feature = Feature(name="f", type=kind)
        only = replace(manifest, signature=replace(manifest.signature, features=(feature,)))
        for column in [*([cell] for cell in cells), cells]:
            (tmp_path / "x.csv").write_text("f,value\n" + "".join(f"{cell},1\n" for cell in column))
            found = [record["f"] for record in read_labelled(tmp_path / "x.csv", only).records]
            assert list(map(repr, found)) == [repr(parse_cell(feature, cell)) for cell in column]
