"""From a model file to a folder that passes its own check, whatever the graph and the data are."""

from __future__ import annotations

import csv
import datetime as dt
import json
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import RandomForestClassifier, StackingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from threefold_ops.authoring.folder import build_package
from threefold_ops.authoring.manifest import read_model_file
from threefold_ops.errors import OperatorError
from threefold_ops.scaffold.draft import inline
from threefold_ops.scaffold.scaffold import Scaffold, Wanted, scaffold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from tests.conftest import Graphs
    from threefold_ops.authoring.manifest import ModelFile

    Make = Callable[..., Scaffold]

TODAY = dt.date(2026, 1, 2)
NAMES = ["length, cm", "width: cm", 'petal "l"', "pétal # w"]
SPECIES = ["setosa", "versicolor", "virginica"]


@dataclass(frozen=True)
class Trained:
    """Graphs as scikit-learn's converter writes them, and the data they are of."""

    folder: Path

    def graph(self, name: str) -> Path:
        return self.folder / f"{name}.onnx"

    def data(self, name: str) -> Path:
        return self.folder / f"{name}.csv"


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in (train_on_flowers, train_on_patients, train_on_claims, train_on_a_rare_class):
            part(folder)
    return Trained(folder)


def export(path: Path, model: Any, types: list[tuple[str, Any]], *, zipmap: bool | None = None) -> None:
    options = None if zipmap is None else {id(model): {"zipmap": zipmap}}
    graph = convert_sklearn(model, initial_types=types, options=options, target_opset={"": 18, "ai.onnx.ml": 3})
    path.write_bytes(graph.SerializeToString())


def train_on_flowers(folder: Path) -> None:
    iris = load_iris()
    x, codes = iris.data.astype(np.float32), iris.target
    names = np.array(SPECIES)[codes]
    four = [("X", FloatTensorType([None, 4]))]
    logistic, numbered = (LogisticRegression(max_iter=500).fit(x, y) for y in (names, codes))
    export(folder / "logistic.onnx", logistic, four)
    export(folder / "logistic-tensor.onnx", logistic, four, zipmap=False)
    export(folder / "numbered.onnx", numbered, four)
    export(folder / "numbered-tensor.onnx", numbered, four, zipmap=False)
    forest, numbers = (RandomForestClassifier(10, random_state=0).fit(x, y) for y in (names, codes))
    export(folder / "forest.onnx", forest, four)
    export(folder / "forest-tensor.onnx", numbers, four, zipmap=False)
    stack = StackingClassifier([("a", GaussianNB())], LogisticRegression()).fit(x, names)
    export(folder / "stack.onnx", stack, four, zipmap=False)
    export(folder / "clusters.onnx", KMeans(3, n_init=1, random_state=0).fit(x), four)
    rows = iris.data.tolist()
    write_csv(
        folder / "iris.csv",
        ["id", *NAMES, "species"],
        [[i, *r, n] for i, (r, n) in enumerate(zip(rows, names, strict=True))],
    )
    write_csv(folder / "numbered.csv", [*NAMES, "t"], [[*r, n] for r, n in zip(rows, codes, strict=True)], ";")
    write_csv(folder / "floats.csv", [*NAMES, "t"], [[*r, float(n)] for r, n in zip(rows, codes, strict=True)], "\t")


def train_on_patients(folder: Path) -> None:
    diabetes = load_diabetes()
    types = [("f", FloatTensorType([None, 10]))]
    export(folder / "linear.onnx", LinearRegression().fit(diabetes.data, diabetes.target), types)
    body = [[*r, y] for r, y in zip(diabetes.data.round(4).tolist(), diabetes.target, strict=True)]
    write_csv(folder / "linear.csv", [*diabetes.feature_names, "y"], body)


def train_on_claims(folder: Path) -> None:
    rng = np.random.default_rng(0)
    region = rng.choice(["north", "so: uth", '#3 "x"'], 600)
    age, visits = rng.normal(40, 10, 600).round(1), rng.integers(0, 5, 600)
    answer = np.where((age > 40) ^ (region == "north"), "yes", "no")
    mixed = np.empty((600, 3), object)
    mixed[:, 0], mixed[:, 1], mixed[:, 2] = region, age, visits
    steps = ColumnTransformer([("r", OneHotEncoder(handle_unknown="ignore"), [0])], remainder="passthrough")
    columns = [("region", StringTensorType([None, 1])), *((n, FloatTensorType([None, 1])) for n in ("age", "visits"))]
    pipeline = make_pipeline(steps, RandomForestClassifier(10, random_state=0)).fit(mixed, answer)
    export(folder / "columns.onnx", pipeline, columns, zipmap=False)
    linear = make_pipeline(steps, LogisticRegression(max_iter=2000)).fit(mixed, answer)
    export(folder / "columns-linear.onnx", linear, columns, zipmap=False)
    gaps = rng.random((600, 3)) < 0.1
    body = [
        ["" if gap[0] else r, "" if gap[1] else a, "" if gap[2] else v, f"c-{i}", y]
        for i, (gap, r, a, v, y) in enumerate(zip(gaps, region, age, visits, answer, strict=True))
    ]
    write_csv(folder / "columns.csv", ["Region", "age", "visits", "claim_id", "granted?"], body)


def train_on_a_rare_class(folder: Path) -> None:
    rng = np.random.default_rng(1)
    rare = (rng.random(2000) < 0.05).astype(int)
    points = rng.normal(size=(2000, 4)).astype(np.float32)
    points[:, 0] += 2 * rare
    export(
        folder / "rare.onnx", LogisticRegression().fit(points, rare), [("X", FloatTensorType([None, 4]))], zipmap=False
    )
    write_csv(
        folder / "rare.csv", [*"abcd", "t"], [[*p, t] for p, t in zip(points.round(3).tolist(), rare, strict=True)]
    )


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(model: Path, **fields: Any) -> Scaffold:
        return scaffold(Wanted(**{"name": "made", "into": tmp_path / "models", "today": TODAY} | fields, model=model))

    return make


def written(made: Scaffold) -> ModelFile:
    return read_model_file(made.folder / "model.yaml")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# What it writes passes its own check


@pytest.mark.parametrize(
    ("graph", "data", "target"),
    [
        ("logistic", "iris", "species"),
        ("logistic-tensor", "iris", "species"),
        ("numbered", "numbered", "t"),
        ("numbered-tensor", "floats", "t"),
        ("forest", "iris", "species"),
        ("forest-tensor", "numbered", "t"),
        ("stack", "iris", "species"),
        ("clusters", "numbered", "t"),
        ("linear", "linear", "y"),
        ("columns", "columns", "granted?"),
        ("columns-linear", "columns", "granted?"),
        ("rare", "rare", "t"),
        *((name, None, None) for name in ("logistic", "forest-tensor", "clusters", "linear", "columns", "rare")),
    ],
)
def test_what_is_written_passes_its_check_and_can_be_published(
    graph: str, data: str | None, target: str | None, *, trained: Trained, make: Make, tmp_path: Path
) -> None:
    made = make(trained.graph(graph), data=data and trained.data(data), target=target)
    assert made.inspection.errors == []
    assert not [found for found in made.inspection.warnings if found.file != "model.yaml"]
    assert sorted(path.name for path in made.folder.iterdir()) == sorted(made.files)
    (tmp_path / "package").mkdir()
    package, _ = build_package(made.folder, tmp_path / "package")
    assert package.digest == made.inspection.digest
    report = made.inspection.report
    assert report is not None
    assert report.examples >= 10
    assert (report.value is None) == (data is None)


@pytest.mark.parametrize(
    ("folder", "target"),
    [("breast-cancer", "label"), ("diabetes", "value"), ("digits", "label"), ("digit-pairs", None)],
)
def test_a_folder_made_of_an_example_means_what_the_example_means(
    folder: str, target: str | None, models: Path, make: Make
) -> None:
    data = models / folder / "confidence.csv"
    made = make(models / folder / "model.onnx", data=data if target else None, target=target)
    assert made.inspection.errors == []
    found, wanted = written(made), read_model_file(models / folder / "model.yaml")
    assert found.output == wanted.output
    assert (found.layout, found.key if target else None) == (wanted.layout, wanted.key)
    assert [feature.name for feature in found.features] == [feature.name for feature in wanted.features]


# What it infers


def test_the_files_and_the_words_are_those_of_the_data(trained: Trained, make: Make) -> None:
    made = make(trained.graph("logistic"), data=trained.data("iris"), target="species", version="2.1")
    found = written(made)
    assert (found.name, found.version, found.key, found.layout) == ("made", "2.1", "id", "packed")
    assert [feature.name for feature in found.features] == NAMES
    assert (found.features[0].type, found.features[0].min, found.features[0].max) == ("float32", 3.76, 8.44)
    assert found.features[3].min == 0
    assert found.output.classes == SPECIES
    assert (found.gate.metric, found.gate.target, found.gate.latency_ms) == ("accuracy", "species", None)
    low, high = found.gate.acceptable or (1.0, 0.0)
    value = made.inspection.report and made.inspection.report.value
    assert value is not None
    assert 0.75 < low < value < high == 1.0
    assert found.training.keys() == {"data_sha256", "at"}
    assert found.training["at"] == "2026-01-02"
    assert "held out" in (made.folder / "model.yaml").read_text()


def test_no_row_is_both_held_out_and_in_the_reference_and_each_class_has_its_share(
    trained: Trained, make: Make
) -> None:
    made = make(trained.graph("logistic"), data=trained.data("iris"), target="species")
    confidence, reference = rows_of(made.folder / "confidence.csv"), rows_of(made.folder / "reference.csv")
    assert {name: [row["species"] for row in confidence].count(name) for name in SPECIES} == dict.fromkeys(SPECIES, 15)
    held, rest = ({tuple(row[name] for name in NAMES) for row in rows} for rows in (confidence, reference))
    assert held.isdisjoint(rest)
    assert 100 <= len(reference) <= 105
    examples = [json.loads(line) for line in (made.folder / "examples.jsonl").read_text().splitlines()]
    assert {example["expect"]["label"] for example in examples} == set(SPECIES)
    assert held.isdisjoint(tuple(f"{example['record'][name]:.1f}" for name in NAMES) for example in examples)


def test_the_same_rows_are_held_out_whatever_their_order(trained: Trained, make: Make, tmp_path: Path) -> None:
    lines = trained.data("numbered").read_text(encoding="utf-8").splitlines()
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join([lines[0], *reversed(lines[1:])]), encoding="utf-8")
    one, two = (
        make(trained.graph("numbered"), name=name, data=data, target="t")
        for name, data in (("one", trained.data("numbered")), ("two", turned))
    )
    held = [sorted(map(repr, rows_of(made.folder / "confidence.csv"))) for made in (one, two)]
    assert held[0] == held[1]


def test_columns_are_found_by_their_names_and_blanks_get_what_the_graph_can_do(trained: Trained, make: Make) -> None:
    forest = written(make(trained.graph("columns"), name="forest", data=trained.data("columns"), target="granted?"))
    linear = make(trained.graph("columns-linear"), name="linear", data=trained.data("columns"), target="granted?")
    region, age, visits = forest.features
    assert (region.name, region.type, region.allowed) == ("region", "string", ['#3 "x"', "north", "so: uth"])
    assert region.missing in {"north", "so: uth", '#3 "x"'}
    assert (age.missing, visits.missing) == (pytest.approx(np.nan, nan_ok=True),) * 2
    assert forest.key == "claim_id"
    _, age, visits = written(linear).features
    assert 35 < float(age.missing or 0) < 45
    assert (visits.type, visits.allowed) == ("int64", [0, 1, 2, 3, 4])
    assert visits.missing in visits.allowed
    text = (linear.folder / "model.yaml").read_text()
    assert "the median stands in" in text
    assert "the most frequent value stands in" in text


def test_a_rare_class_is_measured_by_its_ranks(trained: Trained, make: Make) -> None:
    found = written(make(trained.graph("rare"), data=trained.data("rare"), target="t"))
    assert found.gate.metric == "auc"
    assert found.output.classes == [0, 1]


def test_distances_are_no_scores(trained: Trained, make: Make) -> None:
    found = written(make(trained.graph("clusters"), data=trained.data("numbered"), target="t"))
    assert (found.output.label, found.output.scores) == ("label", None)


def test_the_classes_of_a_stack_are_those_of_its_labels(trained: Trained, make: Make) -> None:
    found = written(make(trained.graph("stack"), data=trained.data("iris"), target="species"))
    assert (found.output.label, found.output.scores, found.output.classes) == ("label", "probabilities", SPECIES)


def test_an_answer_that_hangs_on_a_last_digit_is_no_example(graphs: Graphs, make: Make, tmp_path: Path) -> None:
    onnx.save(graphs.scorer(["x", "y"]), tmp_path / "scores.onnx")
    body = [[i / 10, (5 - i) / 10 if i % 2 else i / 10, "x"] for i in range(40)]
    made = make(tmp_path / "scores.onnx", data=write_csv(tmp_path / "d.csv", ["a", "b", "t"], body), target="t")
    assert made.inspection.errors == []
    examples = [json.loads(line)["record"] for line in (made.folder / "examples.jsonl").read_text().splitlines()]
    assert len(examples) > 5
    assert all(example["a"] != example["b"] for example in examples)


def test_whole_numbers_are_codes_only_if_each_is_seen_often(graphs: Graphs, make: Make, tmp_path: Path) -> None:
    onnx.save(graphs.linear([1.0, 2.0]), tmp_path / "sum.onnx")
    body = [[i % 2, i % 12, i] for i in range(100)]
    often, seldom = written(
        make(tmp_path / "sum.onnx", data=write_csv(tmp_path / "d.csv", "abt", body), target="t")
    ).features
    assert (often.type, often.allowed, often.min) == ("int64", [0, 1], None)
    assert (seldom.type, seldom.allowed, seldom.min, seldom.max) == ("float32", None, 0, 12.7)


def test_text_for_a_graph_that_numbers_its_classes_is_refused_with_both(trained: Trained, make: Make) -> None:
    with pytest.raises(OperatorError, match=r"want the graph's classes \[0, 1, 2\], got \['setosa', 'versicolor'"):
        make(trained.graph("numbered"), data=trained.data("iris"), target="species")


def test_scores_alone_are_named_by_the_truth(graphs: Graphs, make: Make, tmp_path: Path) -> None:
    onnx.save(graphs.scorer(["x", "y"], label=False), tmp_path / "scores.onnx")
    data = write_csv(
        tmp_path / "d.csv", ["a", "b", "t"], [[i, 50 - i, "late" if i > 25 else "early"] for i in range(51)]
    )
    found = written(make(tmp_path / "scores.onnx", data=data, target="t"))
    assert (found.output.kind, found.output.label, found.output.classes) == ("classification", None, ["early", "late"])


# Odd data


def iris_rows(count: int) -> list[list[object]]:
    """Records by species in turn."""
    return [[5 + i % 3, 3.0, 1 + 2 * (i % 3), round(0.2 + i % 3 + i / 1000, 3), SPECIES[i % 3]] for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_too_few_rows_make_no_confidence_set(count: int, trained: Trained, make: Make, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "few.csv", [*NAMES, "species"], iris_rows(count))
    made = make(trained.graph("logistic"), data=data, target="species")
    assert made.inspection.errors == []
    assert "confidence.csv" not in made.files
    assert any("no confidence set" in note for note in made.notes)
    assert [feature.name for feature in written(made).features] == NAMES


def test_one_class_alone_is_measured_as_it_is(trained: Trained, make: Make, tmp_path: Path) -> None:
    body = [[5.0, 3.3, 1.4, round(0.2 + i / 1000, 3), "setosa"] for i in range(40)]
    made = make(trained.graph("logistic"), data=write_csv(tmp_path / "o.csv", [*NAMES, "s"], body), target="s")
    assert made.inspection.errors == []
    assert written(made).output.classes == SPECIES


def test_rows_that_cannot_be_used_are_left_out_and_told(trained: Trained, make: Make, tmp_path: Path) -> None:
    body = iris_rows(60)
    body[3][0] = "n/a"
    body[7][4] = "rosa"
    body[9] = [1, 2]
    made = make(trained.graph("logistic"), data=write_csv(tmp_path / "b.csv", [*NAMES, "s"], body), target="s")
    assert made.inspection.errors == []
    said = "\n".join(made.notes)
    assert "1 rows of the data have not the form of its header" in said
    assert "1 rows of the data are not what the model takes: left out; line 5: input 'length, cm'" in said
    assert "1 rows have nothing in 's' that the model could say" in said
    rows = rows_of(made.folder / "confidence.csv") + rows_of(made.folder / "reference.csv")
    assert len(rows) == 58
    assert "n/a" not in {row[NAMES[0]] for row in rows}


def test_rows_that_are_alike_are_never_on_both_sides(graphs: Graphs, make: Make, tmp_path: Path) -> None:
    onnx.save(graphs.linear([1.0, 2.0]), tmp_path / "sum.onnx")
    body = [[i % 5, i % 2, i % 5 + 2 * (i % 2) + i / 1000] for i in range(200)]
    made = make(tmp_path / "sum.onnx", data=write_csv(tmp_path / "d.csv", ["a", "b", "t"], body), target="t")
    assert made.inspection.errors == []
    held, rest = (
        {(row["a"], row["b"]) for row in rows_of(made.folder / name)} for name in ("confidence.csv", "reference.csv")
    )
    assert held
    assert rest
    assert held.isdisjoint(rest)
    assert written(made).features[0].allowed == [0, 1, 2, 3, 4]


def test_large_data_is_thinned(trained: Trained, make: Make, tmp_path: Path) -> None:
    made = make(
        trained.graph("logistic"),
        data=write_csv(tmp_path / "big.csv", [*NAMES, "species"], iris_rows(10_000)),
        target="species",
    )
    assert made.inspection.errors == []
    assert len(rows_of(made.folder / "confidence.csv")) <= 501
    assert len(rows_of(made.folder / "reference.csv")) == 500


@pytest.mark.parametrize(
    ("header", "body", "fields", "said"),
    [
        (
            ["a", "b", "t"],
            [[1, 2, 3]],
            {"target": "t"},
            r"want 4 columns for input 'X' \[-1, 4\], got 2 .*: \['a', 'b'\]",
        ),
        (["a", "b", "c", "d", "e", "t"], [[1] * 6], {"target": "t"}, r"want 4 columns .* got 5"),
        (["a", "b", "c", "d", "t"], [[1] * 5], {"target": "s"}, r"--target: want one of the columns .*, got 's'"),
        (["a", "b", "c", "d", "t"], [[1] * 5], {"target": "t", "key": "k"}, r"--key: want one of the columns"),
        (
            ["a", "b", "c", "d", "t"],
            [[1] * 5],
            {"target": "t", "key": "t"},
            "--key: want another column than the target",
        ),
        (["a", "a", "c", "d", "t"], [[1] * 5], {"target": "t"}, r"want each name once, got \['a'\]"),
        (
            ["a", "b", "c", "d", "t"],
            [[1, 2, 3, "x", 5]] * 3,
            {"target": "t"},
            r"column 'd': want FP32 .* got 'x' \(line 2\)",
        ),
        (
            ["a", "b", "c", "d", "t"],
            [[1, 2, 3, "", 5]] * 3,
            {"target": "t"},
            r"want rows that the model takes, got none; line 2",
        ),
        (["a", "b", "c", "d", "t"], [[1, 2, 3, 4, "no"]] * 3, {"target": "t"}, "--target: want the graph's classes"),
    ],
)
def test_data_that_is_not_the_models_is_refused_in_words_and_nothing_is_written(
    header: list[str],
    body: list[list[object]],
    fields: dict[str, str],
    said: str,
    *,
    trained: Trained,
    make: Make,
    tmp_path: Path,
) -> None:
    with pytest.raises(OperatorError, match=said):
        make(trained.graph("logistic"), data=write_csv(tmp_path / "d.csv", header, body), **fields)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "want a header row, got nothing"),
        (b"a;b\n\xe9;1\n", r"d\.csv:2: want UTF-8, got byte 0xe9"),
        (b"\x1f\x8b\x08", "want CSV in UTF-8, got gzip"),
        (b'"a', "want quotes that are closed"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_words(
    content: bytes, said: str, trained: Trained, make: Make, tmp_path: Path
) -> None:
    (tmp_path / "d.csv").write_bytes(content)
    with pytest.raises(OperatorError, match=said):
        make(trained.graph("logistic"), data=tmp_path / "d.csv")


def test_a_target_that_is_an_input_and_columns_that_lack_one_are_refused(trained: Trained, make: Make) -> None:
    with pytest.raises(OperatorError, match="--target: want a column that is no input of the graph, got 'age'"):
        make(trained.graph("columns"), data=trained.data("columns"), target="age")
    with pytest.raises(OperatorError, match=r"got none for \['region', 'age', 'visits'\]; the columns are \['id'"):
        make(trained.graph("columns"), data=trained.data("iris"), target="species")


# Odd graphs


def test_weights_beside_the_graph_come_along(make: Make, tmp_path: Path) -> None:
    path = save_external(tmp_path / "net.onnx", "net.onnx.data")
    made = make(path)
    assert made.inspection.errors == []
    assert made.inspection.manifest is not None
    assert made.inspection.manifest.weights == ("net.onnx.data",)
    assert (made.folder / "net.onnx.data").stat().st_size > 0
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(OperatorError, match=r"want the files \['net.onnx.data'\], which hold some of its weights"):
        make(path, name="again")


def test_weights_elsewhere_are_refused(make: Make, tmp_path: Path) -> None:
    path = save_external(tmp_path / "net.onnx", "net.onnx.data")
    model = onnx.load_model(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../net.onnx.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(OperatorError, match=r"want weights in plain files beside it, got \['../net.onnx.data'\]"):
        make(path)


def save_external(path: Path, location: str) -> Path:
    """A graph as PyTorch saves a large one: its weights in a file beside it."""
    weights = numpy_helper.from_array(np.linspace(-1, 1, 192, dtype=np.float32).reshape(64, 3), "w")
    nodes = [helper.make_node("MatMul", ["input", "w"], ["output"])]
    tensors = [helper.make_tensor_value_info(n, 1, ["batch", w]) for n, w in (("input", 64), ("output", 3))]
    graph = helper.make_graph(nodes, "main", tensors[:1], tensors[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


@pytest.mark.parametrize(
    ("inputs", "layout"),
    [
        ([("x", "FP32", ["n", 3, 8, 8])], None),
        ([("x", "FP32", ["n", 3, "h", "w"])], None),
        ([("x", "FP32", ["n", "m"])], None),
        ([("x", "BYTES", ["n", 3])], None),
        ([("x", "FP32", [4, 2]), ("y", "FP32", [3, 2])], None),
        ([("x", "FP32", ["n", 2]), ("y", "INT64", ["n", 2])], None),
        ([("x", "UINT8", ["n", 2]), ("y", "BOOL", ["n", 1])], None),
        ([("x", "FP16", ["n", 2])], "packed"),
        ([("x", "FP64", [4, 2])], "packed"),
        ([("x", "BOOL", ["n", 2])], "packed"),
        ([("x", "BYTES", ["n", 1])], "columns"),
        ([("x", "FP32", ["n"]), ("a b", "INT32", ["n", 1]), ("c", "BYTES", ["n"])], "columns"),
    ],
)
def test_every_form_of_inputs_makes_a_folder_without_data(
    inputs: list[Any], layout: str | None, graphs: Graphs, make: Make, tmp_path: Path
) -> None:
    onnx.save(graphs.columns(*inputs), tmp_path / "any.onnx")
    made = make(tmp_path / "any.onnx")
    assert made.inspection.errors == []
    assert written(made).layout == layout
    assert made.inspection.report is not None
    assert made.inspection.report.examples > 0
    assert "drawn at random" in (made.folder / "model.yaml").read_text()


def test_a_graph_that_takes_nothing_that_is_tried_has_no_examples(make: Make, tmp_path: Path, graphs: Graphs) -> None:
    onnx.save(graphs.lookup(), tmp_path / "lookup.onnx")
    found = make(tmp_path / "lookup.onnx", name="flags")
    assert (found.inspection.errors, "examples.jsonl" in found.files) == ([], True)
    random = [helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    onnx.save(graphs.make(random, [("x", "FP32", ["n", 2])], [("y", "FP32", ["n", 2])]), tmp_path / "random.onnx")
    made = make(tmp_path / "random.onnx", name="random")
    assert (made.inspection.errors, "examples.jsonl" in made.files) == ([], False)
    assert any("answers otherwise the second time" in note for note in made.notes)


def test_what_is_no_graph_or_no_name_or_there_already_is_refused(trained: Trained, make: Make, tmp_path: Path) -> None:
    for fields, said in (
        ({"name": "My Model"}, "name: want a-z, 0-9 and -"),
        ({"version": "a/b"}, "--version: want letters"),
        ({"target": "t"}, "--target: want --data with it"),
        ({"key": "t"}, "--key: want --data with it"),
    ):
        with pytest.raises(OperatorError, match=said):
            make(trained.graph("logistic"), **fields)
    with pytest.raises(OperatorError, match="want an ONNX file"):
        make(trained.data("iris"))
    with pytest.raises(OperatorError, match="No such file"):
        make(tmp_path / "none.onnx")
    (tmp_path / "models" / "made").mkdir(parents=True)
    with pytest.raises(OperatorError, match="want a folder that is not there yet"):
        make(trained.graph("logistic"))
    assert list((tmp_path / "models" / "made").iterdir()) == []


# What it writes into YAML


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_is_read_back_from_one_line(text: str) -> None:
    line = inline({"name": text, "allowed": [text, 1, 1.5, True]})
    assert "\n" not in line
    assert yaml.safe_load(f"  - {line}  # {text!r}") == [{"name": text, "allowed": [text, 1, 1.5, True]}]
    assert yaml.safe_load(f"key: {inline(text)}  # why") == {"key": text}


@pytest.mark.parametrize(
    "name", ["a: b", "#a", "yes", "1.0", "- x", "[a]", "{", "'", '"', "a,b", "a\u2028b", "null", "é", "<<"]
)
def test_odd_names_of_columns_come_through(name: str, graphs: Graphs, make: Make, tmp_path: Path) -> None:
    onnx.save(graphs.linear([1.0, 2.0]), tmp_path / "sum.onnx")
    body = [[i / 7, i, f"k{i}", 2 * i] for i in range(60)]
    data = write_csv(tmp_path / "d.csv", [name, "b", "my id", "out: #1"], body)
    made = make(tmp_path / "sum.onnx", data=data, target="out: #1", version="1.0")
    assert made.inspection.errors == []
    found = written(made)
    assert ([feature.name for feature in found.features], found.key) == ([name, "b"], "my id")
    assert found.gate.target == "out: #1"
