"""The SQS message: whose it is, when it happened, and what is in it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold import strict_json
from threefold.errors import Malformed, OutsideSignature
from threefold.protocols import message

FALLBACK = ("message-1", 1_700_000_000_123)
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}


def decode(**fields: Any) -> message.Message:
    return message.decode(json.dumps({"model": "wine", "record": {"a": 1}} | fields), FALLBACK)


def record(**fields: Any) -> dict[str, Any]:
    return {"messageId": "m-1", "attributes": {"SentTimestamp": "1700000000123"}, "messageAttributes": {}} | fields


def attribute(value: Any) -> dict[str, Any]:
    return {"stringValue": value, "dataType": "String"}


def test_a_message_without_an_id_goes_by_its_sqs_id_and_time() -> None:
    found = decode()
    assert (found.id, found.at_ms, found.model, found.key) == (*FALLBACK, "wine", None)
    assert (found.record, found.tensors, found.problem) == ({"a": 1}, None, None)


def test_a_message_has_its_own_id_key_and_time() -> None:
    found = decode(id="é" * 128, key="customer", at="2026-01-02T03:04:05.678+02:00")
    assert (found.id, found.key, found.at_ms) == ("é" * 128, "customer", 1767315845678)


@pytest.mark.parametrize(
    ("at", "milliseconds"),
    [
        ("2026-01-02T03:04:05Z", 1767323045000),
        ("2026-01-02T03:04:05", 1767323045000),
        ("2026-01-02", 1767312000000),
        (1767323045678, 1767323045678),
        (0, 0),
        (-1000, -1000),
    ],
)
def test_a_time_is_iso_8601_or_milliseconds(at: object, milliseconds: int) -> None:
    assert decode(at=at).at_ms == milliseconds


@pytest.mark.parametrize(
    "at", ["", "now", "2026-13-01", None, True, [], {}, 1.5, 10**30, -(10**30), 10**400 // 10**380]
)
def test_what_is_no_time_is_malformed(at: object) -> None:
    found = decode(at=at, id="mine")
    assert isinstance(found.problem, Malformed)
    assert "want at as ISO 8601" in str(found.problem)
    # What is wrong with the rest does not take its name away.
    assert (found.id, found.model, found.record) == ("mine", "wine", None)


@pytest.mark.parametrize("identity", ["", None, 1, [], "x" * 257, "é" * 129, {"a": 1}])
def test_an_id_that_no_sort_key_holds_is_malformed(identity: object) -> None:
    with pytest.raises(Malformed, match="want an id of 1 to 256 bytes"):
        decode(id=identity)


@pytest.mark.parametrize(
    ("key", "text"), [("a", "a"), (7, "7"), (2**53 + 1, "9007199254740993"), ("", ""), (None, None)]
)
def test_a_key_is_text_or_a_whole_number(key: object, text: str | None) -> None:
    assert decode(key=key).key == text


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "{}",
        '{"model": null}',
        '{"model": 1, "record": {}}',
        '{"model": ["wine"], "record": {}}',
        '{"model": "\\ud800", "record": {}}',
        '{"model": "wine", "id": "\\udfff", "record": {}}',
    ],
)
def test_a_message_that_does_not_say_whose_it_is_is_malformed(body: str) -> None:
    with pytest.raises(Malformed):
        message.decode(body, FALLBACK)


@pytest.mark.parametrize("key", [1.5, [], {}])
def test_a_key_that_is_none_leaves_the_message_its_name(key: object) -> None:
    found = decode(id="order-7", key=key)
    assert (found.id, found.key, found.model, found.record) == ("order-7", None, "wine", None)
    assert "a key that is text or a whole number" in str(found.problem)


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"record": None}, Malformed, "got neither"),
        ({"inputs": [TENSOR]}, Malformed, "got both"),
        ({"record": {}, "inputs": []}, Malformed, "got both"),
        ({"record": []}, Malformed, "a record that is an object"),
        ({"record": False}, Malformed, "a record that is an object"),
        ({"record": None, "inputs": []}, Malformed, "a list of tensors"),
        ({"record": None, "inputs": [TENSOR | {"data": ["x", "y"]}]}, OutsideSignature, "FP32 values, got 'x'"),
    ],
)
def test_a_problem_with_the_content_leaves_the_message_its_name(
    fields: dict[str, Any], kind: type[Exception], text: str
) -> None:
    found = decode(id="order-7", key="customer", **fields)
    assert (found.id, found.key, found.model) == ("order-7", "customer", "wine")
    assert type(found.problem) is kind
    assert text in str(found.problem)
    assert (found.record, found.tensors) == (None, None)


def test_tensors_are_read_and_grouped_by_their_form() -> None:
    def tensors(**fields: Any) -> message.Message:
        return decode(record=None, inputs=[TENSOR | fields])

    one = tensors()
    assert one.tensors is not None
    np.testing.assert_array_equal(one.tensors["x"], np.array([[1, 2]], np.float32))
    same = tensors(shape=[2, 2], data=[1, 2, 3, 4])
    assert one.group() == same.group()
    others = [tensors(name="y"), tensors(datatype="FP64"), tensors(shape=[2]), tensors(shape=[2, 1]), decode()]
    assert len({found.group() for found in [one, *others]}) == 6


def test_the_originals_hold_after_a_redrive() -> None:
    attributes = {"threefold-id": attribute("first"), "threefold-at": attribute("1600000000000")}
    assert message.identity(record(messageAttributes=attributes)) == ("first", 1_600_000_000_000)
    assert message.identity(record()) == ("m-1", 1_700_000_000_123)
    assert message.identity(record(messageAttributes=None)) == ("m-1", 1_700_000_000_123)


@pytest.mark.parametrize("at", ["", "yesterday", "1.5", "-5", "9" * 5000, "\u0661", None])
def test_an_attribute_that_is_no_time_does_not_stop_the_batch(at: object) -> None:
    attributes = {"threefold-at": attribute(at)}
    assert message.identity(record(messageAttributes=attributes)) == ("m-1", 1_700_000_000_123)


@given(st.text(), st.text())
def test_any_body_is_a_message_or_malformed(body: str, name: str) -> None:
    for text in (body, json.dumps({"model": name, "record": {name: body}, "key": body})):
        try:
            found = message.decode(text, FALLBACK)
        except Malformed as error:
            strict_json.dumps(str(error))
        else:
            strict_json.dumps([found.id, found.model, found.key, found.record])


def test_an_outcome_is_a_prediction_or_an_error() -> None:
    prediction = {"id": "1", "model": "wine", "status": "predicted", "value": np.float32(0.1)}
    assert json.loads(message.encode(prediction)) == {
        "id": "1",
        "model": "wine",
        "key": None,
        "prediction": {"id": "1", "model": "wine", "status": "predicted", "value": 0.1},
    }
    rejected = {"id": "2", "status": "rejected", "code": "malformed", "message": "want, got", "at": "now"}
    assert json.loads(message.encode(rejected)) == {
        "id": "2",
        "model": None,
        "key": None,
        "error": {"code": "malformed", "message": "want, got"},
    }
