"""Tensor specs and features: what fits together, and the way through the manifest."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.errors import InvalidManifest
from threefold.signature import DTYPES, FEATURE_TYPES, Feature, Signature, TensorSpec
from threefold.sources import TableSource, WindowSource

NAMES = st.text(min_size=1, max_size=20)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SPECS = st.builds(
    TensorSpec, NAMES, st.sampled_from(sorted(DTYPES)), st.lists(st.integers(-1, 2**40), max_size=4).map(tuple)
)
FEATURES = st.builds(
    Feature,
    name=NAMES,
    type=st.sampled_from(sorted(FEATURE_TYPES)),
    missing=st.none() | NUMBERS | st.integers() | st.booleans() | st.text(max_size=2),
    min=st.none() | NUMBERS,
    max=st.none() | NUMBERS,
    outside=st.sampled_from(["error", "flag"]),
    allowed=st.none() | st.lists(NUMBERS | st.text() | st.integers(), min_size=1).map(tuple),
    unit=st.none() | st.text(),
    description=st.none() | st.text(),
)


@given(
    st.builds(
        Signature,
        st.lists(SPECS).map(tuple),
        st.lists(SPECS).map(tuple),
        st.lists(FEATURES).map(tuple),
        st.sampled_from([None, "packed", "columns"]),
    )
)
def test_a_signature_survives_the_manifest(signature: Signature) -> None:
    read = Signature.from_json(json.loads(json.dumps(signature.to_json())))
    assert read == signature


def test_a_missing_value_of_nan_survives_the_manifest() -> None:
    feature = Feature(name="a", type="float32", missing=float("nan"))
    read = Feature.from_json(json.loads(json.dumps(feature.to_json(), allow_nan=False)))
    assert read.missing != read.missing
    text = Feature(name="a", type="string", missing="NaN")
    assert Feature.from_json(text.to_json()) == text


def features(*types: str) -> tuple[Feature, ...]:
    return tuple(Feature(name=f"f{i}", type=kind) for i, kind in enumerate(types))


def packed(datatype: str, shape: tuple[int, ...], *types: str) -> Signature:
    return Signature((TensorSpec("x", datatype, shape),), (), features(*types), "packed")


def column(datatype: str, shape: tuple[int, ...], kind: str) -> Signature:
    return Signature((TensorSpec("f0", datatype, shape),), (), features(kind), "columns")


@pytest.mark.parametrize(
    "signature",
    [
        packed("FP32", (-1, 2), "float32", "int64"),
        packed("FP64", (-1, -1), "float64", "bool"),
        packed("INT64", (4, 1), "int32"),
        packed("BOOL", (-1, 1), "bool"),
        column("BYTES", (-1, 1), "string"),
        column("INT64", (-1,), "int64"),
        column("FP16", (-1, 1), "float32"),
        Signature((TensorSpec("x", "BYTES", ()),), ()),
    ],
)
def test_features_that_fit_their_inputs_pass(signature: Signature) -> None:
    signature.check()


@pytest.mark.parametrize(
    ("signature", "word"),
    [
        (packed("FP32", (-1, 3), "float32", "float32"), "shape"),
        (packed("FP32", (-1,), "float32"), "shape"),
        (packed("FP32", (-1, 2, 2), "float32", "float32"), "shape"),
        (packed("BYTES", (-1, 1), "string"), "numeric"),
        (packed("FP32", (-1, 1), "string"), "strings need layout"),
        (packed("INT64", (-1, 1), "float32"), "can hold"),
        (packed("BOOL", (-1, 1), "int64"), "can hold"),
        (column("INT64", (-1, 1), "float32"), "want an input"),
        (column("BOOL", (-1, 1), "int64"), "want an input"),
        (column("BYTES", (-1, 1), "float32"), "want an input"),
        (column("FP32", (-1, 1), "string"), "want an input"),
        (column("FP32", (-1, 2), "float32"), "want an input"),
        (column("FP32", (), "float32"), "want an input"),
        (
            Signature((TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "FP32", (-1, 1))), (), features("float32")),
            "one numeric input",
        ),
        (Signature((TensorSpec("a", "FP32", (-1, 1)),), (), features("float32"), "columns"), "one input per feature"),
        (
            Signature((TensorSpec("x", "FP32", (-1, 2)),), (), features("float32")[:1] * 2, "packed"),
            "more than once",
        ),
    ],
)
def test_features_that_do_not_fit_are_refused_and_named(signature: Signature, word: str) -> None:
    with pytest.raises(InvalidManifest, match=word):
        signature.check()


def specs(*shapes: tuple[int, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(f"t{i}", "FP32", shape) for i, shape in enumerate(shapes))


@pytest.mark.parametrize(
    ("inputs", "outputs", "batched", "fixed"),
    [
        (specs((-1, 2)), specs((-1,)), True, 0),
        (specs((-1, 2), (-1,)), specs((-1,)), True, 0),
        (specs((4, 2)), specs((4,)), False, 4),
        (specs((4, 2)), specs((-1,)), False, 4),
        (specs((4, 2), (4,)), specs((4,)), False, 4),
        (specs((4, 2), (3,)), specs((4,)), False, 0),
        (specs((4, 2)), specs((2, 2)), False, 0),
        (specs((4, 2)), specs(()), False, 0),
        (specs((-1, 2)), specs(()), False, 0),
        (specs(()), specs(()), False, 0),
        (specs((4, 2), ()), specs((4,)), False, 0),
    ],
)
def test_rows_may_share_a_call_only_where_every_tensor_has_them(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], batched: bool, fixed: int
) -> None:
    signature = Signature(inputs, outputs)
    assert (signature.batched, signature.fixed_batch) == (batched, fixed)
    assert signature.stackable == (batched or fixed > 0)


@pytest.mark.parametrize(
    ("kind", "datatype", "missing", "fits"),
    [
        ("float32", "FP32", 0.1, True),
        ("float32", "FP32", float("nan"), True),
        ("float32", "FP32", 1e39, False),
        ("float32", "FP32", float("inf"), False),
        ("float32", "FP16", 70000, False),
        ("float32", "FP32", "0.1", False),
        ("float32", "FP32", True, False),
        ("float64", "FP64", 10**400, False),
        ("int64", "FP32", 2**24 + 1, False),
        ("int64", "FP32", 3, True),
        ("int64", "FP64", 2.5, False),
        ("int64", "FP64", float("nan"), False),
        ("int64", "INT64", 2**53 + 1, True),
        ("int64", "INT64", 2**63, False),
        ("int32", "UINT8", -1, False),
        ("int32", "UINT8", 255, True),
        ("bool", "FP32", True, True),
        ("bool", "BOOL", 1, False),
    ],
)
def test_a_default_must_be_a_value_that_the_tensor_holds(kind: str, datatype: str, missing: Any, fits: bool) -> None:
    feature = Feature(name="f0", type=kind, missing=missing)
    for signature in (
        Signature((TensorSpec("x", datatype, (-1, 1)),), (), (feature,), "packed"),
        Signature((TensorSpec("f0", datatype, (-1, 1)),), (), (feature,), "columns"),
    ):
        if fits:
            signature.check()
        else:
            with pytest.raises(InvalidManifest, match="want a missing value"):
                signature.check()


SOURCES: Final = [
    WindowSource(entity="card_id", agg="sum", over="7d", of="amount"),
    WindowSource(entity="card_id", agg="count", over="1h"),
    TableSource(entity="user_id", field="age"),
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_feature_that_is_looked_up_is_read_as_it_was_written(source: WindowSource | TableSource) -> None:
    feature = Feature(name="looked_up", type="float32", missing=0.0, source=source)
    document = feature.to_json()
    assert document["from"] in {"window", "table"}
    assert Feature.from_json(json.loads(json.dumps(document))) == feature


@pytest.mark.parametrize(
    "document",
    [
        {"from": "stream"},
        {"from": "window", "entity": "card_id", "agg": "median", "over": "7d"},
        {"from": "window", "entity": "card_id", "agg": "sum", "over": "7w"},
        {"from": "window", "entity": "card_id", "agg": "sum", "over": "7d", "field": "age"},
        {"from": "table", "entity": "user_id"},
        {"entity": "user_id"},
    ],
)
def test_a_source_that_this_release_does_not_know_is_refused(document: dict[str, str]) -> None:
    with pytest.raises(InvalidManifest, match=r"want .*, got "):
        Feature.from_json({"name": "a", "type": "float32", **document})


def test_a_window_says_numbers() -> None:
    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    for type_, source in (("int64", SOURCES[0]), ("bool", SOURCES[1])):
        feature = Feature(name="x", type=type_, source=source)
        with pytest.raises(InvalidManifest, match=r"feature 'x': want .* for (sum|count), got "):
            Signature(inputs, (), (feature,), "packed").check()
    Signature(inputs, (), (Feature(name="x", type="int64", source=SOURCES[1]),), "packed").check()


def test_a_signature_tells_what_a_record_brings_from_what_we_look_up() -> None:
    own = Feature(name="amount", type="float32")
    looked_up = [Feature(name=f"f{i}", type="float32", source=source) for i, source in enumerate(SOURCES)]
    signature = Signature((), (), (looked_up[0], own, *looked_up[1:]), "packed")
    assert signature.online
    assert not Signature((), (), (own,), "packed").online
    assert signature.own == (own,)
    assert [name for name, _ in signature.windows] == ["f0", "f1"]
    assert [(feature.name, source.field) for feature, source in signature.tables] == [("f2", "age")]
