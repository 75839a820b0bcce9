"""The three forms of a request's rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from threefold.request import check_tensors, record_keys
from threefold.signature import TensorSpec

SPECS = (TensorSpec("left", "FP32", (-1, 8)), TensorSpec("right", "BYTES", (-1,)))
LEFT, RIGHT = np.zeros((2, 8), np.float32), np.array(["a", "b"], np.object_)


def test_tensors_that_fit_have_nothing_wrong() -> None:
    assert check_tensors({"left": LEFT, "right": RIGHT}, SPECS) == []


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"left": LEFT.astype(np.float64)}, ["input 'left': want FP32, got float64"]),
        ({"left": LEFT[0]}, ["input 'left': want shape [-1, 8], got [8]"]),
        ({"left": LEFT[:, :7]}, ["input 'left': want shape [-1, 8], got [2, 7]"]),
        ({"left": np.float32(1).reshape(())}, ["input 'left': want shape [-1, 8], got []"]),
        ({"right": RIGHT[:1]}, ["inputs: want the same number of rows in each, got [1, 2]"]),
        ({"other": LEFT}, ["input 'other': want one of ['left', 'right']"]),
    ],
)
def test_all_that_is_wrong_with_tensors_is_said(change: dict[str, np.ndarray], wrong: list[str]) -> None:
    assert check_tensors({"left": LEFT, "right": RIGHT} | change, SPECS) == wrong


def test_a_tensor_that_is_not_there_is_named() -> None:
    assert check_tensors({"right": RIGHT}, SPECS) == ["input 'left': want FP32 [-1, 8], got nothing"]


@pytest.mark.parametrize(("stackable", "wrong"), [(True, 0), (False, 1)])
def test_a_fixed_first_dimension_binds_unless_rows_are_padded(stackable: bool, wrong: int) -> None:
    spec = TensorSpec("x", "FP32", (4, 8))
    assert len(check_tensors({"x": LEFT}, [spec], stackable=stackable)) == wrong
    assert check_tensors({"x": np.zeros((4, 8), np.float32)}, [spec], stackable=stackable) == []


def test_padded_inputs_must_have_the_same_rows() -> None:
    specs = [TensorSpec("a", "FP32", (4, 8)), TensorSpec("b", "FP32", (4, 8))]
    assert check_tensors({"a": LEFT, "b": np.zeros((3, 8), np.float32)}, specs) == [
        "inputs: want the same number of rows in each, got [2, 3]"
    ]


def test_keys_are_texts_and_numbers_and_nothing_else() -> None:
    deep = json.loads("[" * 900 + "]" * 900)
    records = [{"k": value} for value in ["a", 7, 1.5, "", None, [], {}, [deep], "é"]]
    found = record_keys([*records, {}, None, "text"], "k")
    assert found == ["a", "7", "1.5", None, None, None, None, None, "é", None, None, None]
    assert record_keys(records, None) is None
