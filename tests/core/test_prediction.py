"""Outcomes as JSON: shortest texts, non-finite numbers as strings, every datatype."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold import strict_json
from threefold.prediction import json_values, tensor_to_json
from threefold.signature import DTYPES, TensorSpec


@given(st.lists(st.floats(width=32)))
def test_float32_values_are_read_back_as_the_same_float32(values: list[float]) -> None:
    array = np.array(values, np.float32)
    read = json.loads(strict_json.dumps(json_values(array)))
    words = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    np.testing.assert_array_equal(np.array([words.get(value, value) for value in read], np.float32), array)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_float32_values_are_the_numbers_that_numpy_writes(values: list[float]) -> None:
    array = np.array(values, np.float32)
    assert json_values(array) == [float(str(value)) for value in array]


def test_float16_values_are_written_as_in_tensors() -> None:
    array = np.array([0.015625, 0.1], np.float16)
    assert strict_json.dumps(json_values(array)) == strict_json.dumps(array)


def test_float32_values_have_their_shortest_text() -> None:
    assert strict_json.dumps(json_values(np.array([0.1, 1 / 3], np.float32))) == b"[0.1,0.33333334]"


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_non_finite_values_are_the_strings_that_clients_decode(datatype: str) -> None:
    array = np.array([1.5, math.nan, math.inf, -math.inf], DTYPES[datatype])
    assert strict_json.dumps(json_values(array)) == b'[1.5,"NaN","Infinity","-Infinity"]'
    tensor = tensor_to_json(TensorSpec("y", datatype, (-1,)), array)
    assert strict_json.dumps(tensor["data"]) == b'[1.5,"NaN","Infinity","-Infinity"]'


@pytest.mark.parametrize(
    ("datatype", "values", "text"),
    [
        ("BOOL", [True, False], b"[true,false]"),
        ("UINT8", [255], b"[255]"),
        ("UINT16", [65535], b"[65535]"),
        ("UINT32", [4294967295], b"[4294967295]"),
        ("UINT64", [18446744073709551615], b"[18446744073709551615]"),
        ("INT8", [-128], b"[-128]"),
        ("INT16", [-32768], b"[-32768]"),
        ("INT32", [-2147483648], b"[-2147483648]"),
        ("INT64", [-9223372036854775808, 9007199254740993], b"[-9223372036854775808,9007199254740993]"),
        ("FP16", [0.5], b"[0.5]"),
        ("FP32", [0.1], b"[0.1]"),
        ("FP64", [0.1], b"[0.1]"),
        ("BYTES", ["é\x00", ""], b'["\xc3\xa9\\u0000",""]'),
    ],
)
def test_every_datatype_is_written(datatype: str, values: list[object], text: bytes) -> None:
    tensor = tensor_to_json(TensorSpec("y", datatype, (-1, 1)), np.array([values], DTYPES[datatype]).T)
    assert strict_json.dumps(tensor["data"]) == text
    assert tensor["shape"] == [len(values), 1]


@pytest.mark.parametrize(
    ("array", "shape", "data"),
    [
        (np.array(2.0, np.float32), [], b"[2.0]"),
        (np.zeros((0, 3), np.float32), [0, 3], b"[]"),
        (np.arange(6, dtype=np.float32).reshape(2, 3).T, [3, 2], b"[0.0,3.0,1.0,4.0,2.0,5.0]"),
        (np.arange(4, dtype=np.float32)[::2], [2], b"[0.0,2.0]"),
    ],
)
def test_odd_shapes_are_written_row_by_row(array: np.ndarray, shape: list[int], data: bytes) -> None:
    tensor = tensor_to_json(TensorSpec("y", "FP32", ()), array)
    assert (tensor["shape"], strict_json.dumps(tensor["data"])) == (shape, data)
