"""The Open Inference Protocol in JSON: what is read, what is refused, what is written."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold import errors, strict_json
from threefold.errors import Malformed, OutsideSignature, ThreefoldError
from threefold.prediction import tensor_to_json
from threefold.protocols import open_inference
from threefold.signature import DTYPES, TensorSpec

CASES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-32768, 32767],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**53 + 1],
    "FP16": [0.5, 65504],
    "FP32": [0.1, 3e38],
    "FP64": [0.1, 1e308],
    "BYTES": ["", "é\U0001f600\x00"],
}


def body(*tensors: Any, **fields: Any) -> bytes:
    return json.dumps({"inputs": list(tensors)} | fields).encode()


def tensor(datatype: Any, data: Any, shape: Any = None, name: Any = "x") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)] if shape is None else shape, "data": data}


def read(datatype: str, data: Any, shape: Any = None) -> np.ndarray:
    return open_inference.decode(body(tensor(datatype, data, shape)))[0]["x"]


def test_every_datatype_of_the_protocol_has_a_case() -> None:
    assert CASES.keys() == DTYPES.keys()


@pytest.mark.parametrize("datatype", sorted(CASES))
def test_every_datatype_is_read_flat_and_nested(datatype: str) -> None:
    values = CASES[datatype]
    expected = np.array(values, DTYPES[datatype])
    for data, shape in (
        (values, [2]),
        ([values], [1, 2]),
        ([[value] for value in values], [2, 1]),
        (values, [1, 2, 1]),
    ):
        found = read(datatype, data, shape)
        assert (found.dtype, list(found.shape)) == (DTYPES[datatype], shape)
        np.testing.assert_array_equal(found.reshape(-1), expected)


@pytest.mark.parametrize("datatype", sorted(CASES))
@pytest.mark.parametrize(("data", "shape"), [([], [0]), ([], [0, 3]), ([[], []], [2, 0])])
def test_no_values_are_a_tensor_too(datatype: str, data: list[Any], shape: list[int]) -> None:
    found = read(datatype, data, shape)
    assert (found.dtype, list(found.shape)) == (DTYPES[datatype], shape)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_int64_is_exact_both_ways(values: list[int]) -> None:
    array = read("INT64", values)
    assert array.tolist() == values
    assert json.loads(strict_json.dumps(tensor_to_json(TensorSpec("y", "INT64", (-1,)), array)))["data"] == values


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_missing_and_non_finite_numbers_are_read_in_each_form(datatype: str) -> None:
    content = (
        b'{"inputs": [{"name": "x", "datatype": "%s", "shape": [8], "data": '
        b'[null, "NaN", NaN, "Infinity", Infinity, "-Infinity", -Infinity, 1]}]}' % datatype.encode()
    )
    found = open_inference.decode(content)[0]["x"]
    expected = [math.nan, math.nan, math.nan, math.inf, math.inf, -math.inf, -math.inf, 1.0]
    np.testing.assert_array_equal(found, np.array(expected, DTYPES[datatype]))


@pytest.mark.parametrize(
    ("datatype", "value", "shown"),
    [
        ("FP32", "1.5", "'1.5'"),
        ("FP32", True, "True"),
        ("FP32", 1e39, "1e+39"),
        ("FP32", -(10**39), "-1e+39"),
        ("FP16", 70000, "70000.0"),
        ("FP64", {"a": 1}, "{'a': 1}"),
        ("INT64", 1.0, "1.0"),
        ("INT64", 2**63, "9223372036854775808"),
        ("INT64", 2**64, "1.8446744073709552e+19"),
        ("INT64", None, "None"),
        ("INT64", "NaN", "'NaN'"),
        ("INT64", True, "True"),
        ("INT8", 128, "128"),
        pytest.param("FP64", 10**400, errors.shown(10**400), id="FP64-huge"),
        ("UINT8", -1, "-1"),
        ("UINT64", -1, "-1"),
        ("BOOL", 2, "2"),
        ("BOOL", 1.0, "1.0"),
        ("BOOL", "true", "'true'"),
        ("BOOL", None, "None"),
        ("BYTES", 1, "1"),
        ("BYTES", None, "None"),
    ],
)
def test_a_value_of_another_type_is_outside_the_signature(datatype: str, value: object, shown: str) -> None:
    extremes = [math.nan, -math.inf] if datatype == "FP64" else CASES[datatype]
    with pytest.raises(OutsideSignature) as caught:
        read(datatype, [*extremes, value])
    assert str(caught.value) == f"input 'x': want {datatype} values, got {shown}"


GOOD = tensor("FP32", [1, 2])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"1",
        b'"text"',
        b"null",
        b"{}",
        body(),
        b'{"inputs": {}}',
        body(None),
        body([]),
        body(GOOD, GOOD),
        body(GOOD, id=1),
        body(GOOD, id=[]),
        body(GOOD, outputs={}),
        body(GOOD, outputs=["y"]),
        body(GOOD, outputs=[{"name": 1}]),
        body(GOOD | {"name": None}),
        body(GOOD | {"name": 1}),
        body({"datatype": "FP32", "shape": [0], "data": []}),
        body(GOOD | {"datatype": "BF16"}),
        body(GOOD | {"datatype": None}),
        body(GOOD | {"datatype": ["FP32"]}),
        body(GOOD | {"shape": 2}),
        body(GOOD | {"shape": None}),
        body(GOOD | {"shape": [2.0]}),
        body(GOOD | {"shape": [True, 2]}),
        body(GOOD | {"shape": [-1]}),
        body(GOOD | {"shape": ["2"]}),
        body(GOOD | {"shape": [3]}),
        body(GOOD | {"shape": []}),
        body(GOOD | {"data": None}),
        body(GOOD | {"data": "12"}),
        body(GOOD | {"data": {"a": 1}}),
        body(GOOD | {"data": [1, [2]]}),
        body(GOOD | {"data": [[1], 2]}),
        body({"name": "x", "datatype": "FP32", "shape": [2]}),
        body(tensor("FP32", [], [0, 10**30])),
        body(tensor("FP32", [], [0, 2**31 - 1, 2**31 - 1, 2**31 - 1])),
        body(tensor("FP32", [1.0], [1] * 100)),
        body(tensor("FP32", [1.0], [1] * 33)),
        body(tensor("FP32", [], [2**62, 4])),
        body(tensor("FP32", json.loads("[" * 40 + "1" + "]" * 40), [1])),
        body(json.loads("[" * 900 + "]" * 900)),
        body(GOOD | {"name": json.loads("[" * 900 + "]" * 900)}),
        body(GOOD | {"shape": json.loads("[" * 900 + "]" * 900)}),
        body(tensor("FP32", [json.loads("{" + '"a":{' * 900 + "}" * 901)], [1]) | {"datatype": "x"}),
    ],
    ids=lambda content: content[:60].decode(),
)
def test_a_bad_envelope_is_malformed(content: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        open_inference.decode(content)
    assert len(str(caught.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y"]) | JSON,
        "datatype": st.sampled_from(sorted(DTYPES)) | JSON,
        "shape": st.lists(st.integers(0, 3), max_size=3) | JSON,
        "data": st.lists(st.integers(-3, 300) | st.floats() | st.booleans() | st.text(max_size=2), max_size=4) | JSON,
    },
)


@given(st.fixed_dictionaries({"inputs": st.lists(TENSOR | JSON, max_size=3)}, optional={"id": JSON, "outputs": JSON}))
def test_any_json_is_read_or_refused_and_nothing_else(document: dict[str, Any]) -> None:
    content = json.dumps(document).encode()
    try:
        tensors, identity, names = open_inference.decode(content)
    except ThreefoldError as error:
        strict_json.dumps({"error": str(error)})
    else:
        assert all(isinstance(array, np.ndarray) for array in tensors.values())
        strict_json.dumps({"id": identity, "names": names})


def test_the_request_id_and_the_outputs_are_read() -> None:
    tensors, identity, names = open_inference.decode(body(GOOD, id="a", outputs=[{"name": "y"}, {"name": "z"}]))
    assert (list(tensors), identity, names) == (["x"], "a", ["y", "z"])
    assert open_inference.decode(body(GOOD))[1:] == (None, None)
