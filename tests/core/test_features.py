"""Records to tensors: the fast ways agree with the careful one, and each value is checked, defaulted or named."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.features import Encoded, FeatureEncoder, parse_cell
from threefold.signature import DTYPES, Feature, Layout, Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

INTEGERS = ["int32", "int64"]
FLOATS = ["float32", "float64"]
# Around every limit that a check or a cast may have.
EDGES = [0, 1, 2**11, 2**24, 2**31, 2**53, 2**63, 2**64, 10**400]
WHOLE = st.integers(-5, 5) | st.builds(
    lambda edge, step, sign: sign * (edge + step), st.sampled_from(EDGES), st.integers(-2, 2), st.sampled_from([1, -1])
)
VALUES = (
    WHOLE
    | st.floats()
    | st.sampled_from([65504.0, 65505.0, 3.4028234e38, 3.4028236e38, 2.0**53, 2.0**63, -(2.0**63), 0.5])
    | st.sampled_from([None, "", "NaN", "Infinity", "-Infinity", "1", "x", True, False, [], [1], {}])
)


class CarefulEncoder(FeatureEncoder):
    """Looks at each record by itself: what every faster way must agree with."""

    def _screen(self, records: Sequence[Mapping[str, object]]) -> None:
        return None


@st.composite
def numeric_features(draw: st.DrawFn, datatype: str) -> Feature:
    kind = draw(st.sampled_from(INTEGERS + (FLOATS if DTYPES[datatype].kind == "f" else [])))
    least = 0 if datatype.startswith("UINT") else -3
    value = st.integers(least, 3) if kind in INTEGERS else st.integers(-3, 3) | st.floats(-3, 3)
    low, high = sorted([draw(value), draw(value)])
    missing = value if kind in INTEGERS else value | st.just(math.nan)
    return Feature(
        name=draw(st.sampled_from(["a", "ä", "", "x" * 200])) + str(draw(st.integers())),
        type=kind,
        missing=draw(st.none() | missing),
        min=draw(st.none() | st.just(low)),
        max=draw(st.none() | st.just(high)),
        outside=draw(st.sampled_from(["error", "flag"])),
        allowed=draw(st.none() | st.lists(value, min_size=1, max_size=3).map(tuple)),
    )


@st.composite
def packed_signatures(draw: st.DrawFn) -> Signature:
    datatype = draw(st.sampled_from(["FP16", "FP32", "FP64", "INT8", "INT32", "INT64", "UINT8", "UINT64"]))
    features = draw(st.lists(numeric_features(datatype), min_size=1, max_size=3, unique_by=lambda found: found.name))
    signature = Signature((TensorSpec("x", datatype, (-1, len(features))),), (), tuple(features), "packed")
    signature.check()
    return signature


@st.composite
def signatures_and_records(draw: st.DrawFn) -> tuple[Signature, list[Any]]:
    signature = draw(packed_signatures())
    names = [feature.name for feature in signature.features]
    # Most records are plain numbers, so that the screen lets some through.
    record = st.fixed_dictionaries({name: st.integers(-3, 3) | st.floats(-3, 3) | VALUES for name in names})
    odd = st.dictionaries(st.sampled_from([*names, "other"]), VALUES) | st.sampled_from([None, [], "text", 1, [1, 2]])
    return signature, draw(st.lists(record, max_size=5) | st.lists(record | odd, max_size=5))


def same(left: Encoded, right: Encoded) -> bool:
    assert left.tensors.keys() == right.tensors.keys()
    for name, array in left.tensors.items():
        assert array.dtype == right.tensors[name].dtype
        np.testing.assert_array_equal(array, right.tensors[name])
    assert (left.rows is None) == (right.rows is None)
    if left.rows is not None and right.rows is not None:
        assert left.rows.tolist() == right.rows.tolist()
    return (left.problems, left.reasons) == (right.problems, right.reasons)


@given(signatures_and_records())
def test_the_fast_screen_agrees_with_the_careful_look(case: tuple[Signature, list[Any]]) -> None:
    signature, records = case
    assert same(FeatureEncoder(signature).encode(records), CarefulEncoder(signature).encode(records))


@st.composite
def signatures_and_matrices(draw: st.DrawFn) -> tuple[Signature, npt.NDArray[np.float64]]:
    signature = draw(packed_signatures())
    number = st.integers(-3, 3).map(float) | st.floats(-3, 3) | st.floats()
    rows = draw(st.lists(st.lists(number, min_size=(n := len(signature.features)), max_size=n), max_size=5))
    return signature, np.array(rows, np.float64).reshape(len(rows), n)


@given(signatures_and_matrices())
def test_a_matrix_gets_what_its_records_would_get(case: tuple[Signature, npt.NDArray[np.float64]]) -> None:
    signature, matrix = case
    names = [feature.name for feature in signature.features]
    records = [
        {
            # What JSON would say: whole numbers of integer features without a point.
            name: int(value) if feature.type in INTEGERS and value.is_integer() else value
            for name, feature, value in zip(names, signature.features, row, strict=True)
        }
        for row in matrix.tolist()
    ]
    encoder = FeatureEncoder(signature)
    assert same(encoder.encode_matrix(matrix.copy()), CarefulEncoder(signature).encode(records))


@given(signatures_and_records())
def test_a_record_is_judged_the_same_alone_and_among_others(case: tuple[Signature, list[Any]]) -> None:
    signature, records = case
    encoder = FeatureEncoder(signature)
    together = encoder.encode(records)
    for i, record in enumerate(records):
        alone = encoder.encode([record])
        assert alone.problems.get(0) == together.problems.get(i)
        assert alone.reasons.get(0) == together.reasons.get(i)


CELLS = {
    "float32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "float64": st.floats(allow_nan=False, allow_infinity=False),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "bool": st.booleans(),
    # An empty cell is a missing value.
    "string": st.text(min_size=1),
}


@st.composite
def cells(draw: st.DrawFn) -> tuple[Feature, object]:
    kind = draw(st.sampled_from(sorted(CELLS)))
    return Feature(name="f", type=kind), draw(CELLS[kind])


@given(cells(), st.sampled_from(["", " "]))
def test_a_cell_gives_the_tensor_of_the_value_it_was_written_from(case: tuple[Feature, object], space: str) -> None:
    feature, value = case
    text = str(value) if feature.type == "string" else f"{space}{value}{space}"
    signature = Signature((TensorSpec("f", feature.datatype, (-1, 1)),), (), (feature,), "columns")
    encoder = FeatureEncoder(signature)
    assert same(encoder.encode([{"f": parse_cell(feature, text)}]), encoder.encode([{"f": value}]))


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("float32", "", None),
        ("float32", "   ", None),
        ("float32", "1_000", "1_000"),
        ("float32", "1,5", "1,5"),
        ("float32", "inf", math.inf),
        ("int64", "12.0", 12),
        ("int64", "1e3", 1000),
        ("int64", "12.5", 12.5),
        ("int64", "9223372036854775807", 2**63 - 1),
        ("int64", "abc", "abc"),
        ("int64", "9" * 5000, math.inf),
        ("bool", "TRUE", True),
        ("bool", "0", False),
        ("bool", "yes", "yes"),
        ("bool", "", None),
        ("string", "", None),
        ("string", " a ", " a "),
        ("string", "NaN", "NaN"),
    ],
)
def test_a_cell_is_read_as_json_would_say_it(kind: str, text: str, value: object) -> None:
    assert parse_cell(Feature(name="f", type=kind), text) == value


def test_a_cell_of_nan_is_a_missing_value() -> None:
    feature = Feature(name="f", type="int64", missing=7)
    encoder = FeatureEncoder(Signature((TensorSpec("x", "FP32", (-1, 1)),), (), (feature,), "packed"))
    assert encoder.encode([{"f": parse_cell(feature, "nan")}]).tensors["x"].tolist() == [[7.0]]


WINE = (
    Feature(name="alcohol", type="float32", min=8, max=16),
    Feature(name="ash", type="float32", missing=2.5),
    Feature(name="proline", type="int64", min=0, max=100, outside="flag"),
    Feature(name="cultivar", type="int64", allowed=(1, 2, 3), missing=1),
)
WINE_SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (), WINE, "packed")
GOOD = {"alcohol": 13.5, "ash": 2.25, "proline": 50, "cultivar": 2}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"alcohol": None}, "input 'alcohol': want FP32 in [8, 16], got nothing"),
        ({"alcohol": "n/a"}, "input 'alcohol': want FP32 in [8, 16], got 'n/a'"),
        ({"alcohol": 99}, "input 'alcohol': want FP32 in [8, 16], got 99"),
        ({"alcohol": True}, "input 'alcohol': want FP32 in [8, 16], got True"),
        ({"alcohol": "Infinity"}, "input 'alcohol': want FP32 in [8, 16], got inf"),
        ({"ash": 1e39}, "input 'ash': want FP32, got 1e+39"),
        ({"ash": 10**400}, "input 'ash': want FP32, got 1"),
        ({"proline": 1.5}, "input 'proline': want INT64 in [0, 100], got 1.5"),
        ({"proline": 2**24 + 1}, "input 'proline': want INT64 in [0, 100], got 16777217"),
        ({"cultivar": 4}, "input 'cultivar': want one of [1, 2, 3], got 4"),
        ({"cultivar": {"a": 1}}, "input 'cultivar': want one of [1, 2, 3], got {'a': 1}"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_wanted(change: dict[str, object], problem: str) -> None:
    encoded = FeatureEncoder(WINE_SIGNATURE).encode([GOOD, GOOD | change, GOOD])
    assert list(encoded.problems) == [1]
    assert encoded.problems[1][0].startswith(problem)
    assert encoded.rows is not None
    assert encoded.rows.tolist() == [0, 2]
    assert encoded.tensors["x"].tolist() == [[13.5, 2.25, 50.0, 2.0]] * 2


def test_a_value_nested_deeper_than_python_prints_is_named_too() -> None:
    deep = json.loads("[" * 900 + "]" * 900)
    encoded = FeatureEncoder(WINE_SIGNATURE).encode([GOOD | {"alcohol": [deep]}])
    assert encoded.problems[0][0].startswith("input 'alcohol': want FP32 in [8, 16], got [[[")


def test_all_that_is_wrong_with_a_record_is_said_at_once() -> None:
    encoded = FeatureEncoder(WINE_SIGNATURE).encode([{"proline": "x", "cultivar": 9}])
    assert [problem.split("'")[1] for problem in encoded.problems[0]] == ["alcohol", "proline", "cultivar"]


def test_defaults_and_flags_are_told_as_reasons() -> None:
    encoded = FeatureEncoder(WINE_SIGNATURE).encode([GOOD, {"alcohol": 10, "ash": "NaN", "proline": 200}])
    assert encoded.problems == {}
    assert encoded.reasons == {
        1: [
            "input 'ash': missing, 2.5 stands in",
            "input 'proline': want INT64 in [0, 100], got 200",
            "input 'cultivar': missing, 1 stands in",
        ]
    }
    assert encoded.tensors["x"][1].tolist() == [10.0, 2.5, 200.0, 1.0]


@pytest.mark.parametrize("record", [None, [], "text", 3, True, [1, 2, 3, 4]])
def test_what_is_no_object_is_rejected(record: Any) -> None:
    encoded = FeatureEncoder(WINE_SIGNATURE).encode([record, GOOD])
    assert encoded.problems[0] == [f"record: want an object of features, got {record!r}"]
    assert encoded.tensors["x"].shape == (1, 4)


def test_fields_that_are_no_features_are_left_alone() -> None:
    encoded = FeatureEncoder(WINE_SIGNATURE).encode([GOOD | {"id": [{}], "": None}])
    assert encoded.problems == {}


@pytest.mark.parametrize("datatype", ["INT64", "UINT64"])
def test_packed_integers_stay_exact_beyond_what_a_float_holds(datatype: str) -> None:
    feature = Feature(name="n", type="int64", min=0, max=2**63, outside="flag")
    encoder = FeatureEncoder(Signature((TensorSpec("x", datatype, (-1, 1)),), (), (feature,), "packed"))
    values = [0, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1]
    encoded = encoder.encode([{"n": value} for value in values])
    assert encoded.problems == {}
    assert encoded.tensors["x"][:, 0].tolist() == values
    assert encoder.encode([{"n": 2**53 + 1}]).tensors["x"].tolist() == [[2**53 + 1]]


def columns(layout: Layout = "columns") -> FeatureEncoder:
    features = (
        Feature(name="region", type="string", allowed=("north", "süd")),
        Feature(name="ok", type="bool", missing=False),
        Feature(name="n", type="int64"),
        Feature(name="note", type="string", missing=""),
    )
    inputs = (
        TensorSpec("n", "INT64", (-1,)),
        TensorSpec("note", "BYTES", (-1, 1)),
        TensorSpec("region", "BYTES", (-1, 1)),
        TensorSpec("ok", "BOOL", (-1, 1)),
    )
    return FeatureEncoder(Signature(inputs, (), features, layout))


def test_columns_are_one_tensor_a_feature_strings_included() -> None:
    encoded = columns().encode(
        [{"region": "süd", "ok": True, "n": 2**53 + 1, "note": "\U0001f600\x00"}, {"region": "north", "n": 3.0}]
    )
    assert encoded.problems == {}
    assert encoded.tensors["region"].tolist() == [["süd"], ["north"]]
    assert encoded.tensors["note"].tolist() == [["\U0001f600\x00"], [""]]
    assert encoded.tensors["ok"].tolist() == [[True], [False]]
    assert encoded.tensors["n"].tolist() == [2**53 + 1, 3]
    assert encoded.tensors["region"].dtype == np.object_


@pytest.mark.parametrize(
    "change",
    [
        {"region": "Nord"},
        {"region": 1},
        {"region": None},
        {"ok": 1},
        {"ok": "true"},
        {"n": 2**63},
        {"n": True},
        {"note": 3},
    ],
)
def test_a_column_takes_only_values_of_its_type(change: dict[str, object]) -> None:
    encoded = columns().encode([{"region": "north", "ok": True, "n": 1} | change])
    assert list(encoded.problems) == [0]
    assert [array.shape[0] for array in encoded.tensors.values()] == [0, 0, 0, 0]


def test_no_records_are_no_rows() -> None:
    assert FeatureEncoder(WINE_SIGNATURE).encode([]).tensors["x"].shape == (0, 4)
    assert columns().encode([]).tensors["note"].shape == (0, 1)


def test_a_record_refused_later_leaves_the_others_in_place() -> None:
    encoded = Encoded(
        {"x": np.arange(6.0)}, np.array([0, 2, 5]), {1: ["no"]}, {2: ["a default"], 5: ["a flag"]}, counts=[1, 3, 2]
    ).without({1: ["out of bounds"]}, 3)
    assert encoded.tensors["x"].tolist() == [0.0, 4.0, 5.0]
    assert encoded.rows is not None
    assert encoded.rows.tolist() == [0, 5]
    assert encoded.problems == {1: ["no"], 2: ["out of bounds"]}
    assert encoded.reasons == {5: ["a flag"]}
    assert encoded.counts == [1, 2]
