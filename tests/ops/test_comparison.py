"""Two packages side by side: what they say of the same rows, how fast, and what is too much."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any, Never

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from tests.ops.trained import CLASSES, NAMES, ROWS, table, train
from threefold.package import Output
from threefold.signature import Feature
from threefold_ops.cli import load
from threefold_ops.errors import OperatorError
from threefold_ops.evaluation.comparison import compare
from threefold_ops.evaluation.limits import Limits, check, passed_over
from threefold_ops.figures import to_document
from threefold_ops.registry.reference import Found, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.conftest import Graphs, PackageMaker
    from tests.ops.trained import Models, Trained
    from threefold.package import Package
    from threefold_ops.evaluation.comparison import Comparison

SECONDS = 0.02


def nobody() -> Never:
    pytest.fail("the registry was opened, and a folder needs none")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return train(tmp_path_factory.mktemp("trained"))


Compare = "Callable[..., Comparison]"


@pytest.fixture
def folders(tmp_path_factory: pytest.TempPathFactory) -> Compare:
    """Compares two model folders."""

    def act(a: Trained, b: Trained, data: Path | None = None, show: int = 5) -> Comparison:
        scratch = tmp_path_factory.mktemp("compare")
        found = [resolve(str(one.folder), nobody, scratch / name) for one, name in ((a, "a"), (b, "b"))]
        return compare(found[0], found[1], data=data, scratch=scratch, show=show, seconds=SECONDS)

    return act


@pytest.fixture
def packages(tmp_path_factory: pytest.TempPathFactory) -> Compare:
    """Compares two packages."""

    def act(a: Package, b: Package, data: Path | None = None) -> Comparison:
        one, other = Found(a, "a", None), Found(b, "b", None)
        scratch = tmp_path_factory.mktemp("compare")
        return compare(one, other, data=data, scratch=scratch, show=5, seconds=SECONDS)

    return act


def only(found: Comparison, name: str) -> Any:
    (one,) = [one for one in found.sets if one.name == name]
    return one


def strict(text: str) -> Any:
    """JSON without any of the words that JSON does not have."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_the_flips_are_those_that_scikit_learn_sees(trained: Models, folders: Compare) -> None:
    a, b = trained.a, trained.b
    assert a.scores is not None
    assert b.scores is not None
    found = only(folders(a, b, trained.data), "data")
    flips = a.said != b.said
    assert found.agreement.flips == flips.sum() > 0
    assert found.agreement.flip_share == flips.mean()
    ways = {(flip.a, flip.b): flip.count for flip in found.agreement.flip_table}
    assert sum(ways.values()) == flips.sum()
    for (x, y), count in ways.items():
        assert count == np.sum((a.said == x) & (b.said == y))
    apart = np.abs(a.scores - b.scores)
    by_class = {one.name: one for one in found.agreement.classes}
    for i, name in enumerate(CLASSES):
        assert by_class[name].mean == pytest.approx(apart[:, i].mean(), rel=1e-4)
        assert by_class[name].max == pytest.approx(apart[:, i].max(), rel=1e-4)
        assert by_class[name].average_a == pytest.approx(a.scores[:, i].mean(), rel=1e-4)
    assert found.agreement.score_mean == pytest.approx(apart.mean(), rel=1e-4)


def test_features_in_another_order_are_found_by_name(trained: Models, folders: Compare) -> None:
    found = only(folders(trained.a, trained.b, trained.data), "data")
    assert (found.rows, found.rejected_a, found.rejected_b) == (ROWS, 0, 0)
    assert [found.read.keys[0], found.read.lines[0]] == ["row-0", 2]
    assert list(found.answers[0].labels) == trained.a.said.tolist()
    assert list(found.answers[1].labels) == trained.b.said.tolist()


def test_the_metric_is_measured_on_both_ones_confidence_sets(trained: Models, folders: Compare) -> None:
    found = folders(trained.a, trained.b)
    # The two files are the same, byte for byte: one set, not two.
    (metric,) = only(found, "confidence").metrics
    right = [float(np.mean(one.said == trained.truth)) for one in (trained.a, trained.b)]
    assert (metric.metric, metric.rows) == ("accuracy", ROWS)
    assert [metric.a, metric.b] == right
    assert metric.drop == pytest.approx(right[0] - right[1])
    assert metric.difference == pytest.approx(right[1] - right[0])


def test_each_carries_a_set_of_its_own(trained: Models, folders: Compare, tmp_path: Path) -> None:
    other = _copy(trained.b, tmp_path / "other")
    lines = (other.folder / "confidence.csv").read_text().splitlines()
    (other.folder / "confidence.csv").write_text("\n".join(lines[:101]) + "\n")
    found = folders(trained.a, other)
    assert [(one.name, one.rows) for one in found.sets] == [("confidence_a", ROWS), ("confidence_b", 100)]
    (metric,) = only(found, "confidence_b").metrics
    assert metric.a == np.mean(trained.a.said[:100] == trained.truth[:100])


def test_a_folder_is_no_different_from_itself(trained: Models, folders: Compare) -> None:
    for one in (trained.a, trained.line):
        found = folders(one, one, trained.data)
        for rows in found.sets:
            assert rows.agreement.flips in {0, None}
            assert not rows.agreement.distance.any()
            assert not rows.differing
            assert all(metric.drop == 0 for metric in rows.metrics)
        assert found.size_ratio == 1
        assert passed_over(found, Limits(mean_difference=0, metric_drop=0, rejections=0, size_ratio=1)) == []


def test_values_are_compared_by_their_spread(trained: Models, folders: Compare) -> None:
    a, b = trained.line.said, trained.slope.said
    agreement = only(folders(trained.line, trained.slope), "confidence").agreement
    apart = np.abs(a - b)
    assert agreement.differences.mean == pytest.approx(apart.mean(), rel=1e-4)
    assert agreement.differences.max == pytest.approx(apart.max(), rel=1e-4)
    assert agreement.differences.median == pytest.approx(np.quantile(apart, 0.5, method="higher"), rel=1e-3)
    assert agreement.differences.p95 == pytest.approx(np.quantile(apart, 0.95, method="higher"), rel=1e-3)
    assert agreement.relative.mean == pytest.approx(apart.mean() / a.std(), rel=1e-3)
    assert (agreement.average_a, agreement.average_b) == pytest.approx((a.mean(), b.mean()), rel=1e-4)


def test_the_rows_that_differ_most_come_first_and_flips_before_all_others(trained: Models, folders: Compare) -> None:
    assert trained.a.scores is not None
    assert trained.b.scores is not None
    shown = only(folders(trained.a, trained.b, trained.data, show=ROWS), "data").differing
    flipped = [row.a["label"] != row.b["label"] for row in shown]
    count = sum(flipped)
    assert flipped[:count] == [True] * count
    apart = np.abs(trained.a.scores - trained.b.scores).max(axis=1)
    first = shown[count]
    calm = np.where(trained.a.said == trained.b.said, apart, 0)
    assert first.key == f"row-{int(np.argmax(calm))}"
    assert first.line == int(np.argmax(calm)) + 2
    assert first.a["score"] == pytest.approx(trained.a.scores[np.argmax(calm)].max(), rel=1e-4)


def test_rows_that_one_of_them_rejects_are_counted_and_shown(trained: Models, folders: Compare, tmp_path: Path) -> None:
    tolerant = _copy(trained.b, tmp_path / "tolerant")
    model_file = tolerant.folder / "model.yaml"
    model_file.write_text(
        model_file.read_text().replace("{name: c, type: float32,", "{name: c, type: float32, missing: 0,")
    )
    data = tmp_path / "gaps.csv"
    lines = table(NAMES, trained.x[:4], key=True).splitlines()
    lines[1] = "row-0,0.5,0.5,,0.5"
    lines[2] = "row-1,99,0.5,0.5,0.5"
    lines.append("row-4,1,2")
    data.write_text("\n".join(lines) + "\n")
    found = only(folders(trained.a, tolerant, data), "data")
    assert (found.rows, found.unreadable) == (4, 1)
    assert (found.rejected_a, found.rejected_b, found.rejected_both) == (2, 1, 1)
    assert found.agreement.rows == 2
    (row,) = found.rejections
    assert row.key == "row-0"
    assert row.a == {"rejected": "input 'c': want FP32 in [-6, 6], got nothing"}
    assert set(row.b) == {"label", "score"}
    assert passed_over(folders(tolerant, trained.a, data), Limits(rejections=0.3)) == [
        "data: rejections: want at most 0.3, got 0.333333 (1 of 3 rows)"
    ]


def test_abstentions_are_those_of_each_ones_own_operation(trained: Models, folders: Compare) -> None:
    assert trained.a.scores is not None
    found = only(folders(trained.a, trained.b, trained.data), "data")
    assert found.abstained_a == pytest.approx(np.mean(trained.a.scores.max(axis=1) < 0.5), abs=1.01 / ROWS)
    assert found.abstained_b is None


def test_a_truth_that_is_known_of_some_rows_is_measured_on_those(
    trained: Models, folders: Compare, tmp_path: Path
) -> None:
    data = tmp_path / "some.csv"
    labels = [*trained.truth[:30].tolist(), *[""] * 30]
    data.write_text(table(NAMES, trained.x[:60], key=False, label=labels), encoding="utf-8")
    found = only(folders(trained.a, trained.b, data), "data")
    assert (found.rows, found.metrics[0].rows) == (60, 30)
    assert found.metrics[0].a == np.mean(trained.a.said[:30] == trained.truth[:30])
    bare = tmp_path / "none.csv"
    bare.write_text(table(NAMES, trained.x[:60], key=False))
    assert only(folders(trained.a, trained.b, bare), "data").metrics == []


def test_speed_and_size_are_of_both(trained: Models, folders: Compare) -> None:
    found = folders(trained.a, trained.b)
    assert found.a.model_bytes == (trained.a.folder / "model.onnx").stat().st_size
    assert found.a.package_bytes > found.a.model_bytes
    assert found.size_ratio == found.b.model_bytes / found.a.model_bytes
    assert found.speed is not None
    assert found.speed.single_ratio == pytest.approx(found.speed.single_us_b / found.speed.single_us_a)
    assert found.speed.batch_rows == 1000
    assert found.speed.rows_per_second_a > 1e6 / found.speed.single_us_a


def test_models_that_answer_different_questions_are_refused(
    trained: Models, folders: Compare, packages: Compare, graphs: Graphs, make_package: PackageMaker
) -> None:
    with pytest.raises(OperatorError, match=r"want two models of one kind, got .*: classification, and .*: regression"):
        folders(trained.a, trained.line)
    one, other = (_line(graphs, make_package, [1.0], names) for names in (["a"], ["z"]))
    with pytest.raises(OperatorError, match=r"want features that both have, got a: \['a'\], and b: \['z'\]"):
        packages(one, other)
    with pytest.raises(OperatorError, match=r"want two models that both take records, or both take tensors only"):
        packages(
            make_package(graphs.identity("FP32"), features=[_feature("a"), _feature("b")]),
            make_package(graphs.identity("FP32")),
        )
    with pytest.raises(OperatorError, match=r"want rows .*: --data, gate\.confidence or gate\.examples, got none"):
        packages(one, one)


def test_examples_are_asked_where_there_are_no_other_rows(
    packages: Compare, graphs: Graphs, make_package: PackageMaker
) -> None:
    one, other = (_line(graphs, make_package, [weight], ["a"], rows=[1, 2]) for weight in (1.0, 3.0))
    found = packages(one, other)
    assert [rows.name for rows in found.sets] == ["examples_a", "examples_b"]
    assert found.sets[0].agreement.differences.max == 4


def test_tensors_are_compared_output_by_output(packages: Compare, graphs: Graphs, make_package: PackageMaker) -> None:
    rows: list[list[float]] = [[1.0, 2.0], [3.0, 4.0]]
    same = [{"inputs": {"x": row}, "expect": {"y": row}} for row in rows]
    moved = [{"inputs": {"x": row}, "expect": {"y": [row[0] + 0.5, row[1] + 0.25]}} for row in rows]
    one = make_package(graphs.identity("FP32"), examples=same)
    other = make_package(_shifted(graphs, [0.5, 0.25]), examples=moved)
    found = packages(one, other)
    assert [(rows.name, rows.rows) for rows in found.sets] == [("examples_a", 2), ("examples_b", 2)]
    (tensor,) = found.sets[0].agreement.tensors
    assert (tensor.name, tensor.max, tensor.mean, tensor.unequal) == ("y", 0.5, 0.375, 2)
    assert found.sets[0].differing[0].b == {"y": [[1.5, 2.25]]}
    assert passed_over(found, Limits(mean_difference=0.4)) == []
    assert len(passed_over(found, Limits(mean_difference=0.3))) == 2
    with pytest.raises(OperatorError, match="--max-flips: want models of kind classification, got tensors"):
        check(Limits(flips=0.1), found.kind)


def test_neighbors_beyond_what_a_float_holds_are_not_equal(
    packages: Compare, graphs: Graphs, make_package: PackageMaker
) -> None:
    large = 2**53
    one, other = (
        make_package(
            _shifted(graphs, [step, step], TensorProto.INT64, "INT64"),
            examples=[{"inputs": {"x": [large, large]}, "expect": {"y": [large + step, large + step]}}],
        )
        for step in (0, 1)
    )
    assert packages(one, other).sets[0].agreement.tensors[0].unequal == 1


def test_what_is_not_finite_is_infinitely_apart_and_still_json(
    packages: Compare, graphs: Graphs, make_package: PackageMaker, tmp_path: Path
) -> None:
    steady, steep = (_line(graphs, make_package, [weight], ["a"]) for weight in (1.0, 1e30))
    data = tmp_path / "far.csv"
    data.write_text("a\n1\n1e20\n0\n")
    agreement = only(packages(steady, steep, data), "data").agreement
    assert agreement.differences.max == np.inf
    assert agreement.differences.median == pytest.approx(1e30, rel=1e-6)
    found = packages(steep, steep, data)
    # Infinity is not apart from itself.
    assert only(found, "data").agreement.differences.max == 0
    assert only(found, "data").agreement.average_a == np.inf
    document = strict(json.dumps(to_document(found), allow_nan=False))
    assert document["sets"][0]["agreement"]["average_a"] == "Infinity"
    assert passed_over(packages(steady, steep, data), Limits(mean_difference=1e40)) == [
        "data: mean difference: want at most 1e+40, got inf"
    ]


def test_what_became_nan_shows_in_every_figure(
    packages: Compare, graphs: Graphs, make_package: PackageMaker, tmp_path: Path
) -> None:
    steady, torn = (_line(graphs, make_package, [1.0], ["a"], bias=bias) for bias in (0.0, float("nan")))
    data = tmp_path / "two.csv"
    data.write_text("a\n1\n2\n")
    found = packages(steady, torn, data)
    assert only(found, "data").agreement.differences.max == np.inf
    assert only(found, "data").differing[0].line == 2
    document = strict(json.dumps(to_document(found), allow_nan=False))
    assert document["sets"][0]["agreement"]["average_b"] == "NaN"
    assert document["sets"][0]["differing"][0]["b"] == {"value": "NaN"}
    assert not only(packages(torn, torn, data), "data").agreement.distance.any()


def test_more_rows_than_a_call_takes_keep_their_places(
    packages: Compare, graphs: Graphs, make_package: PackageMaker, tmp_path: Path
) -> None:
    one, other = (_line(graphs, make_package, [weight], ["a"]) for weight in (1.0, 2.0))
    data = tmp_path / "many.csv"
    cells = [*map(str, range(5000))]
    cells[4500] = "none"
    data.write_text("\n".join(["a", *cells]) + "\n")
    found = only(packages(one, other, data), "data")
    assert (found.rows, found.rejected_both, found.agreement.rows) == (5000, 1, 4999)
    assert list(found.answers[0].problems) == [4500]
    assert found.differing[0].line == 5001
    assert (found.differing[0].a, found.differing[0].b) == ({"value": 4999.0}, {"value": 9998.0})


def test_a_limit_is_kept_up_to_its_own_value(trained: Models, folders: Compare) -> None:
    found = folders(trained.a, trained.b, trained.data)
    share = only(found, "data").agreement.flip_share
    drop = only(found, "data").metrics[0].drop
    assert drop > 0
    assert passed_over(found, Limits()) == []
    assert passed_over(found, Limits(flips=share, metric_drop=drop, rejections=0)) == []
    (line, again) = passed_over(found, Limits(flips=share - 0.001))
    assert line.startswith("data: flips: want at most")
    assert line.endswith(f"({found.sets[0].agreement.flips} of {ROWS} rows)")
    assert again.startswith("confidence: flips")
    assert passed_over(found, Limits(metric_drop=drop - 0.001))[0].startswith("data: drop of accuracy: want at most")
    # The other way round it is no drop, and a limit may even ask for a gain.
    turned = folders(trained.b, trained.a, trained.data)
    assert passed_over(turned, Limits(metric_drop=0)) == []
    assert passed_over(turned, Limits(metric_drop=-drop)) == []
    assert passed_over(turned, Limits(metric_drop=-1)) != []
    assert passed_over(found, Limits(latency_ratio=1e-9))[0].startswith("latency ratio: want at most 1e-09, got ")
    assert passed_over(found, Limits(size_ratio=0.01)) != []


def test_what_cannot_be_measured_keeps_no_limit(
    packages: Compare, graphs: Graphs, make_package: PackageMaker, tmp_path: Path
) -> None:
    one = _line(graphs, make_package, [1.0], ["a"])
    wider = _line(graphs, make_package, [1.0, 1.0], ["a", "z"])
    data = tmp_path / "rows.csv"
    data.write_text("a\n1\n2\n")
    found = packages(one, wider, data)
    assert found.speed is None
    assert found.size_ratio == wider.model_path.stat().st_size / one.model_path.stat().st_size > 1
    assert passed_over(found, Limits()) == []
    for limits in (
        Limits(mean_difference=1),
        Limits(metric_drop=1),
        Limits(latency_ratio=9),
        Limits(rejections=0.5),
    ):
        assert len(passed_over(found, limits)) == 1
    assert passed_over(packages(wider, one, data), Limits(mean_difference=1)) == [
        "rows: want some that both take, got none"
    ]


def test_a_class_that_the_other_does_not_know_is_one_that_it_gets_wrong(
    packages: Compare, graphs: Graphs, make_package: PackageMaker, tmp_path: Path
) -> None:
    few, many = (
        make_package(
            graphs.scorer(names),
            features=[_feature(f"x{i}") for i in range(len(names))],
            output=Output(kind="classification", label="label", scores="scores", classes=tuple(names)),
        )
        for names in (["red", "white"], ["red", "white", "blue"])
    )
    data = tmp_path / "rows.csv"
    data.write_text("x0,x1,x2,label\n9,1,0,red\n1,5,9,blue\n")
    found = only(packages(few, many, data), "data")
    (metric,) = found.metrics
    assert (metric.a, metric.b) == (0.5, 1.0)
    assert found.agreement.only_b == ["blue"]
    assert [(flip.a, flip.b) for flip in found.agreement.flip_table] == [("white", "blue")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "want a header row, got nothing"),
        (b"x,y\n1,2\n", r"want columns \['a', 'b', 'c', 'd'\], got \['x', 'y'\]"),
        (b"\x1f\x8b\x08", "want plain CSV, got gzip"),
        (b"id,a,b,c,d\n\xff,1,2,3,4\n", "want UTF-8, got byte 0xff"),
    ],
)
def test_data_that_cannot_be_read_say_why(
    content: bytes, said: str, trained: Models, folders: Compare, tmp_path: Path
) -> None:
    data = tmp_path / "data.csv"
    data.write_bytes(content)
    with pytest.raises(OperatorError, match=rf"data\.csv: .*{said}"):
        folders(trained.a, trained.b, data)
    with pytest.raises(OperatorError, match=r"nothere\.csv: want a file that can be read"):
        folders(trained.a, trained.b, tmp_path / "nothere.csv")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the verb, with little time for its measurements."""
    from threefold_ops.evaluation import comparison

    monkeypatch.setattr(comparison, "interleave", lambda acts, **_: [1e-5 * (i + 1) for i in range(len(acts))])
    runner = CliRunner()
    return lambda *args: runner.invoke(load(), ["compare", *map(str, args)])


def test_the_verb_ends_with_3_where_a_limit_is_passed_over(trained: Models, command: Callable[..., Any]) -> None:
    a, b = trained.a.folder, trained.b.folder
    assert command(a, b).exit_code == 0
    kept = command(a, a, "--max-flips", 0, "--max-metric-drop", 0, "--max-size-ratio", 1)
    assert (kept.exit_code, kept.stderr) == (0, "")
    over = command(a, b, "--max-flips", 0.001, "--max-latency-ratio", 1.5)
    assert over.exit_code == 3
    assert [line.split(": ")[1] for line in over.stderr.splitlines()] == ["confidence", "latency ratio"]
    assert "flips" in over.stdout
    refused = command(trained.line.folder, trained.slope.folder, "--max-flips", 0.1)
    assert isinstance(refused.exception, OperatorError)


def test_the_verb_speaks_strict_json(trained: Models, command: Callable[..., Any]) -> None:
    done = command(trained.a.folder, trained.b.folder, "--json", "--max-flips", 0, "--show", 2)
    document = strict(done.stdout)
    assert list(document) == ["kind", "a", "b", "size_ratio", "sets", "speed", "passed_over"]
    assert list(document["sets"][0]) == [
        *("name", "source", "rows", "unreadable", "rejected_a", "rejected_b", "rejected_both", "agreement"),
        *("abstained_a", "abstained_b", "metrics", "differing", "rejections"),
    ]
    assert len(document["sets"][0]["differing"]) == 2
    assert document["speed"]["single_ratio"] == 2
    assert len(document["passed_over"]) == 1
    assert done.exit_code == 3


def test_every_row_is_written_side_by_side_and_no_cell_is_a_formula(
    trained: Models, command: Callable[..., Any], tmp_path: Path
) -> None:
    data = tmp_path / "data.csv"
    lines = table(NAMES, trained.x[:3], key=True, label=trained.truth[:3].tolist()).splitlines()
    lines[1] = lines[1].replace("row-0", "=1+1")
    lines[3] = lines[3].replace(lines[3].split(",")[1], "99")
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    target = tmp_path / "rows.csv"
    assert command(trained.a.folder, trained.b.folder, "--data", data, "--per-row", target).exit_code == 0
    with target.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 + ROWS
    assert [row["key"] for row in rows[:3]] == ["'=1+1", "row-1", "row-2"]
    assert [row["a_label"] for row in rows[:2]] == trained.a.said[:2].tolist()
    assert float(rows[1]["a_score"]) > 0
    assert (rows[2]["a_label"], rows[2]["same"]) == ("", "")
    assert rows[2]["a_rejected"] == "input 'a': want FP32 in [-6, 6], got 99.0"
    assert [row["truth"] for row in rows[:3]] == trained.truth[:3].tolist()
    confidence = rows[3:]
    assert {row["set"] for row in confidence} == {"confidence"}
    assert [row["same"] == "no" for row in confidence] == (trained.a.said != trained.b.said).tolist()
    assert isinstance(
        command(trained.a.folder, trained.b.folder, "--per-row", tmp_path / "no" / "rows.csv").exception, OperatorError
    )


def _copy(one: Trained, folder: Path) -> Trained:
    folder.mkdir()
    for path in one.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return type(one)(folder, one.said, one.scores)


def _feature(name: str) -> Feature:
    return Feature(name=name, type="float32")


def _line(
    graphs: Graphs,
    make_package: PackageMaker,
    weights: Sequence[float],
    names: Sequence[str],
    *,
    rows: Sequence[float] = (),
    bias: float = 0.0,
) -> Package:
    """value = the features times the weights; with examples of one feature, if there are rows."""
    examples = [{"record": {names[0]: row}, "expect": {"value": row * weights[0]}} for row in rows]
    return make_package(
        graphs.linear(weights, bias),
        features=[_feature(name) for name in names],
        output=Output(kind="regression", value="value"),
        examples=examples or None,
    )


def _shifted(
    graphs: Graphs, step: Sequence[float], element: int = TensorProto.FLOAT, datatype: str = "FP32"
) -> onnx.ModelProto:
    """y = x + step."""
    node = helper.make_node("Add", ["x", "step"], ["y"])
    constant = helper.make_tensor("step", element, [len(step)], list(step))
    return graphs.make([node], [("x", datatype, ["n", 2])], [("y", datatype, ["n", 2])], [constant])
