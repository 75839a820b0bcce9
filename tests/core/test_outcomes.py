"""The predictions table: what is written is read, and what DynamoDB leaves is tried again."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

import boto3
import numpy as np
import pytest
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from threefold import strict_json
from threefold.errors import StorageUnavailable
from threefold.outcomes import (
    MAXIMUM_ITEM_BYTES,
    OutcomeTable,
    Place,
    from_attribute,
    item_bytes,
    lighten,
    milliseconds,
    to_attribute,
    whole,
)
from threefold.pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_dynamodb import DynamoDBClient

TABLE = "predictions"
NOW_MS = time.time_ns() // 1_000_000


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[DynamoDBClient]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        found = boto3.client("dynamodb")
        found.create_table(
            TableName=TABLE,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        )
        yield found


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def table(client: DynamoDBClient, waits: list[float]) -> OutcomeTable:
    return OutcomeTable(client, TABLE, ttl_days=30, sleep=waits.append)


def place(source: str, key: str = "customer") -> Place:
    return Place("wine", key, 1_700_000_000_000, source)


def soon() -> float:
    return time.monotonic() + 5


def item(table: OutcomeTable, source: str, value: object = 1) -> dict[str, Any]:
    return table.item(place(source), {"id": source, "value": value}, now_ms=NOW_MS)


def test_an_outcome_is_read_as_it_was_written(table: OutcomeTable) -> None:
    prediction = {
        "id": "message-1",
        "status": "abstained",
        "score": np.float32(0.1),
        "label": "süd",
        "ok": True,
        "count": np.int64(2**53 + 1),
        "nothing": None,
        "options": [{"label": 3, "score": np.float32(1 / 3)}, {"label": -1, "score": "NaN"}],
        "tensors": [{"name": "y", "shape": [2, 0], "data": np.array([0.1, -2.5], np.float32)}],
        "big": [1e20, 2.5e-200, 1e300, np.float16(0.5), math.inf, -math.inf, math.nan, 2**64 - 1, 0.0],
    }
    assert table.write([table.item(place("m"), prediction, now_ms=NOW_MS)], deadline=soon()) == []
    found = table.find([place("m")])[place("m").pk, place("m").sk]
    assert found == {
        "id": "message-1",
        "status": "abstained",
        "score": 0.1,
        "label": "süd",
        "ok": True,
        "count": 2**53 + 1,
        "options": [{"label": 3, "score": 0.33333334}, {"label": -1, "score": "NaN"}],
        "tensors": [{"name": "y", "shape": [2, 0], "data": [0.1, -2.5]}],
        "big": [1e20, "2.5e-200", "1e+300", 0.5, "Infinity", "-Infinity", "NaN", 2**64 - 1, 0],
    }
    # What stands in the table can be sent again.
    strict_json.dumps(found)


@pytest.mark.parametrize("text", ["100000000000000000000", "20000000000000000000", "-9999999999999999999", "1E+300"])
def test_a_number_that_dynamodb_writes_out_in_full_can_be_sent_again(text: str) -> None:
    value = from_attribute({"N": text})
    assert isinstance(value, float)
    assert json.loads(strict_json.dumps(value)) == float(text)


@given(st.floats(width=32))
def test_float32_keep_their_shortest_text(value: float) -> None:
    attribute = to_attribute(np.float32(value))
    if math.isfinite(value):
        assert np.float32(from_attribute(attribute)) == np.float32(value)
        assert len(next(iter(attribute.values()))) <= 16
    else:
        assert attribute == {"S": {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_goes_through_attributes_unchanged(document: object) -> None:
    assert from_attribute(to_attribute(document)) == document


def test_a_retry_lands_on_the_same_item(table: OutcomeTable, client: DynamoDBClient) -> None:
    for _ in range(2):
        assert table.write([item(table, f"m-{i}") for i in range(60)], deadline=soon()) == []
    assert client.scan(TableName=TABLE)["Count"] == 60


def test_of_two_outcomes_at_one_place_in_a_call_the_first_is_written(table: OutcomeTable) -> None:
    assert table.write([item(table, "m", 1), item(table, "m", 2), item(table, "n", 3)], deadline=soon()) == []
    found = table.find([place("m"), place("m"), place("n"), place("o")])
    assert {key[1][-1]: outcome["value"] for key, outcome in found.items()} == {"m": 1, "n": 3}


def test_an_expired_outcome_is_not_found(table: OutcomeTable) -> None:
    old = table.item(place("old"), {"id": "old"}, now_ms=NOW_MS - 31 * 86_400_000)
    new = table.item(place("new"), {"id": "new"}, now_ms=NOW_MS - 29 * 86_400_000)
    table.write([old, new], deadline=soon())
    assert [outcome["id"] for outcome in table.find([place("old"), place("new")]).values()] == ["new"]


def test_nothing_to_write_and_nothing_to_find_ask_nobody(table: OutcomeTable, client: DynamoDBClient) -> None:
    with Stubber(client):
        assert table.write([], deadline=soon()) == []
        assert table.find([]) == {}


def test_unprocessed_items_are_written_again_with_growing_waits(
    table: OutcomeTable, client: DynamoDBClient, waits: list[float]
) -> None:
    items = [item(table, f"m-{i}") for i in range(3)]
    puts = [{"PutRequest": {"Item": found}} for found in items]
    with Stubber(client) as stub:
        stub.add_response("batch_write_item", {"UnprocessedItems": {TABLE: puts[1:]}}, {"RequestItems": {TABLE: puts}})
        stub.add_client_error("batch_write_item", "ProvisionedThroughputExceededException")
        stub.add_client_error("batch_write_item", "ThrottlingException")
        stub.add_response(
            "batch_write_item", {"UnprocessedItems": {TABLE: puts[2:]}}, {"RequestItems": {TABLE: puts[1:]}}
        )
        stub.add_response("batch_write_item", {"UnprocessedItems": {}}, {"RequestItems": {TABLE: puts[2:]}})
        assert table.write(items, deadline=soon()) == []
        stub.assert_no_pending_responses()
    assert len(waits) == 4
    # Each with jitter: between a half and the whole of a wait that doubles.
    assert all(0.025 * 2**i <= wait <= 0.05 * 2**i for i, wait in enumerate(waits))


def test_what_cannot_be_written_by_the_deadline_is_named(table: OutcomeTable, client: DynamoDBClient) -> None:
    items = [item(table, f"m-{i}") for i in range(3)]
    puts = [{"PutRequest": {"Item": found}} for found in items]
    with Stubber(client) as stub:
        stub.add_response("batch_write_item", {"UnprocessedItems": {TABLE: puts[1:]}})
        left = table.write(items, deadline=time.monotonic() - 1)
    assert left == [(place(f"m-{i}").pk, place(f"m-{i}").sk) for i in (1, 2)]


def test_an_item_that_dynamodb_refuses_keeps_no_other_out(table: OutcomeTable) -> None:
    items = [item(table, "m-1"), item(table, "large", "x" * 500_000), item(table, "m-2")]
    assert table.write(items, deadline=soon()) == [(place("large").pk, place("large").sk)]
    assert len(table.find([place("m-1"), place("m-2"), place("large")])) == 2


def test_another_error_is_not_swallowed(table: OutcomeTable, client: DynamoDBClient) -> None:
    with Stubber(client) as stub:
        stub.add_client_error("batch_write_item", "ResourceNotFoundException")
        with pytest.raises(client.exceptions.ResourceNotFoundException):
            table.write([item(table, "m")], deadline=soon())


def test_unprocessed_keys_are_read_again(table: OutcomeTable, client: DynamoDBClient, waits: list[float]) -> None:
    written = item(table, "m")
    keys = {TABLE: {"Keys": [{"pk": written["pk"], "sk": written["sk"]}], "ConsistentRead": True}}
    with Stubber(client) as stub:
        stub.add_response("batch_get_item", {"UnprocessedKeys": keys}, {"RequestItems": keys})
        stub.add_response("batch_get_item", {"Responses": {TABLE: [written]}}, {"RequestItems": keys})
        assert len(table.find([place("m")])) == 1
    assert len(waits) == 1
    with Stubber(client) as stub:
        for _ in range(8):
            stub.add_response("batch_get_item", {"UnprocessedKeys": keys})
        with pytest.raises(StorageUnavailable):
            table.find([place("m")])


def test_more_than_a_call_takes_is_written_and_found(table: OutcomeTable) -> None:
    places = [place(f"m-{i}") for i in range(230)]
    assert table.write([table.item(one, {"id": one.source}, now_ms=NOW_MS) for one in places], deadline=soon()) == []
    assert len(table.find(places)) == 230


@pytest.mark.parametrize("key", ["x" * 5000, "é" * 3000, "\U0001f600" * 2000])
def test_a_key_longer_than_a_partition_key_keeps_its_own_place(key: str, table: OutcomeTable) -> None:
    one, other = place("m", key), place("m", key + "!")
    assert len(one.pk.encode()) < 1024
    assert one.pk != other.pk
    assert table.write([table.item(one, {"id": "m"}, now_ms=NOW_MS)], deadline=soon()) == []
    assert list(table.find([one, other])) == [(one.pk, one.sk)]


def test_places_sort_by_time() -> None:
    times = [0, 999, 1_700_000_000_000, 9_999_999_999_999]
    keys = [Place("wine", "k", at, "s").sk for at in times]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    ("at", "expected"),
    [("2026-01-02T03:04:05.678Z", 1767323045678), ("2026-01-02T03:04:05.678+00:00", 1767323045678), ("1970-01-01", 0)],
)
def test_a_time_is_milliseconds(at: str, expected: int) -> None:
    assert milliseconds(at) == expected


def test_writes_keep_the_pace_by_the_kilobyte(client: DynamoDBClient) -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    paced = OutcomeTable(client, TABLE, ttl_days=30, threads=1, pacer=Pacer(100, clock=lambda: now[0], sleep=sleep))
    assert paced.write([item(paced, f"m-{i}") for i in range(100)], deadline=1e9) == []
    # Four calls of 25 items; each waits for the one before it.
    assert slept == pytest.approx([0.25] * 3)
    slept.clear()
    large = [item(paced, f"l-{i}", "x" * 4050) for i in range(50)]
    assert 4 * 1024 < item_bytes(large[0]) < 5 * 1024
    assert paced.write(large, deadline=1e9) == []
    assert slept == pytest.approx([0.25, 1.25])


def test_what_the_pace_leaves_no_time_for_is_named(client: DynamoDBClient) -> None:
    paced = OutcomeTable(client, TABLE, ttl_days=30, threads=1, pacer=Pacer(1, clock=lambda: 0.0, sleep=lambda _: None))
    items = [item(paced, f"m-{i}") for i in range(60)]
    left = paced.write(items, deadline=30)
    assert left == [(one["pk"]["S"], one["sk"]["S"]) for one in items[50:]]
    assert client.scan(TableName=TABLE)["Count"] == 50


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.floats(width=32),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_an_items_size_is_no_smaller_than_its_text(document: object) -> None:
    typed = {"value": to_attribute(document)}
    assert item_bytes(typed) >= sum(len(str(leaf).encode()) for leaf in _leaves(typed["value"]))


def _leaves(attribute: dict[str, Any]) -> Iterator[str]:
    ((kind, value),) = attribute.items()
    if kind in {"S", "N"}:
        yield value
    elif kind in {"L", "M"}:
        for part in value.values() if kind == "M" else value:
            yield from _leaves(part)


def test_an_outcome_too_large_for_an_item_leaves_its_provenance_and_a_pointer(table: OutcomeTable) -> None:
    data = np.arange(200_000, dtype=np.float32)
    prediction = {
        "id": "job-7",
        "status": "predicted",
        "digest": "0" * 64,
        "key": "k" * 20_000,
        "tensors": [{"name": "y", "datatype": "FP32", "shape": [200_000], "data": data}],
    }
    heavy = table.item(place("large"), prediction, now_ms=NOW_MS)
    assert item_bytes(heavy) > MAXIMUM_ITEM_BYTES
    assert lighten(heavy, "wine/job/large/7.json") == ["tensors"]
    assert item_bytes(heavy) < MAXIMUM_ITEM_BYTES
    assert table.write([heavy], deadline=soon()) == []
    (found,) = table.find([place("large")]).values()
    assert found == {
        "id": "job-7",
        "status": "predicted",
        "digest": "0" * 64,
        "key": "k" * 20_000,
        "pointer": "wine/job/large/7.json",
    }
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="results", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    s3.put_object(Bucket="results", Key="wine/job/large/7.json", Body=strict_json.dumps(prediction))
    resolved = whole(found, s3, "results")
    assert resolved == {**prediction, "tensors": [{**prediction["tensors"][0], "data": data.tolist()}]}  # type: ignore[index, dict-item]
    assert whole(resolved, s3, "results") == resolved
