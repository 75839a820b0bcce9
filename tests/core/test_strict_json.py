"""JSON in and out: strict where it is written, forgiving of the non-finite literals where it is read."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold import strict_json
from threefold.errors import Malformed, shown

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Half a surrogate pair is no text.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_written_is_read_again(document: object) -> None:
    assert strict_json.loads(strict_json.dumps(document)) == document


def test_the_non_finite_literals_are_read() -> None:
    nan, high, low = strict_json.loads(b"[NaN, Infinity, -Infinity]")
    assert math.isnan(nan)
    assert (high, low) == (math.inf, -math.inf)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b"[1,]",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'"\\ud800"',
        b'{"\\udfff": 1}',
        b'[NaN, "\\ud83d"]',
        b"9" * 5000,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_json_is_malformed(content: bytes) -> None:
    with pytest.raises(Malformed):
        strict_json.loads(content)


def test_int64_stays_exact() -> None:
    assert strict_json.dumps(strict_json.loads(b"[9007199254740993,-9223372036854775808]")) == (
        b"[9007199254740993,-9223372036854775808]"
    )


def test_float32_is_written_with_its_shortest_text() -> None:
    assert strict_json.dumps([np.float32(0.1), np.array([0.1, 1e20], np.float32)]) == b"[0.1,[0.1,1e+20]]"


@pytest.mark.parametrize("value", [[[]] * 2000, "x" * 10**6, 10**4000, {"k" * 500: [1] * 500}])
def test_a_value_in_a_message_is_short(value: object) -> None:
    assert len(shown(value)) <= 60


def test_a_value_in_a_message_may_be_nested_however_deep() -> None:
    deep = json.loads("[" * 900 + "]" * 900)
    for _ in range(2000):
        deep = [deep]
    assert len(shown(deep)) <= 60
