"""Predictions asked for now: their ids, their messages, and what the queue does not take."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from threefold.deferral import Deferral, fifo_group, mint, waits
from threefold.errors import Malformed, StorageUnavailable
from threefold.protocols import message as protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_767_323_045_678


@pytest.fixture
def sqs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield boto3.client("sqs")


def bodies(sqs: Any, name: str) -> list[dict[str, Any]]:
    url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
    found: list[dict[str, Any]] = []
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=["All"]).get("Messages"):
        for message in messages:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        found += messages
    return found


def test_each_record_is_a_message_that_the_stream_door_reads(sqs: Any) -> None:
    sqs.create_queue(QueueName="requests")
    records = [{"customer": f"c-{i}", "a": i} for i in range(23)]
    keys = [None if i == 5 else f"c-{i}" for i in range(23)]
    pending = Deferral(sqs, "requests", now_ms=lambda: NOW).accept("line", records, keys, deadline=time.monotonic() + 5)
    assert [each["status"] for each in pending] == ["pending"] * 23
    assert pending[3]["key"] == "c-3"
    assert "key" not in pending[5]
    found = {
        message.id: message for message in (protocol.decode(each["Body"], ("", 0)) for each in bodies(sqs, "requests"))
    }
    assert list(found) != []
    for record, each in zip(records, pending, strict=True):
        message = found[each["id"]]
        assert (message.model, message.at_ms, message.record) == ("line", NOW, record)


def test_an_id_waits_as_long_as_its_message_may() -> None:
    identity = mint(NOW)
    assert waits(identity, NOW)
    assert waits(identity, NOW + 3 * 86_400_000)
    assert not waits(identity, NOW + 5 * 86_400_000)
    assert not waits(identity.upper(), NOW)
    assert not waits("order-1", NOW)


def test_in_a_fifo_queue_what_happens_to_one_key_is_a_group(sqs: Any) -> None:
    sqs.create_queue(QueueName="requests.fifo", Attributes={"FifoQueue": "true"})
    deferral = Deferral(sqs, "requests.fifo", now_ms=lambda: NOW)
    deferral.accept("line", [{"a": 1}, {"a": 2}], ["k 1", None], deadline=time.monotonic() + 5)
    groups = [each["Attributes"]["MessageGroupId"] for each in bodies(sqs, "requests.fifo")]
    assert groups[0] == fifo_group("k 1") != "k 1"
    assert groups[1].startswith("deferred-")


def test_what_the_queue_does_not_take_is_said_of_that_record_alone(sqs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threefold.queues._FIRST_WAIT_SECONDS", 3600)
    sqs.create_queue(QueueName="requests")
    deferral = Deferral(sqs, "requests", now_ms=lambda: NOW)
    with Stubber(sqs) as stub:
        failed = {"Id": "1", "Code": "InternalError", "SenderFault": False}
        stub.add_response("send_message_batch", {"Successful": [], "Failed": [failed]})
        found = deferral.accept("line", [{"a": i} for i in range(3)], None, deadline=time.monotonic() + 5)
        assert [each["status"] for each in found] == ["pending", "rejected", "pending"]
        assert (found[1]["code"], found[1]["message"]) == ("storage_unavailable", "requests queue: InternalError")
        stub.add_client_error("send_message_batch", "InternalError")
        with pytest.raises(StorageUnavailable, match="records: want one of 1 taken, got requests queue: "):
            deferral.accept("line", [{"a": 1}], None, deadline=time.monotonic() + 5)


def test_a_record_that_no_message_holds_is_rejected_alone(sqs: Any) -> None:
    sqs.create_queue(QueueName="requests")
    deferral = Deferral(sqs, "requests", now_ms=lambda: NOW)
    found = deferral.accept("line", [{"a": "x" * 1_100_000}, {"a": 1}], None, deadline=time.monotonic() + 5)
    assert [(each["status"], each.get("code")) for each in found] == [("rejected", "too_large"), ("pending", None)]
    assert len(bodies(sqs, "requests")) == 1


def test_records_of_one_key_go_to_a_fifo_queue_in_their_order(sqs: Any) -> None:
    sqs.create_queue(QueueName="requests.fifo", Attributes={"FifoQueue": "true"})
    deferral = Deferral(sqs, "requests.fifo", now_ms=lambda: NOW)
    keys = ["same" if i % 3 else "other" for i in range(40)]
    deferral.accept("line", [{"n": i} for i in range(40)], list(keys), deadline=time.monotonic() + 5)
    found: dict[str, list[int]] = {}
    url = sqs.get_queue_url(QueueName="requests.fifo")["QueueUrl"]
    wanted = {"MaxNumberOfMessages": 10, "AttributeNames": ["MessageGroupId"]}
    while messages := sqs.receive_message(QueueUrl=url, **wanted).get("Messages"):
        for each in messages:
            number = json.loads(each["Body"])["record"]["n"]
            found.setdefault(each["Attributes"]["MessageGroupId"], []).append(number)
            sqs.delete_message(QueueUrl=url, ReceiptHandle=each["ReceiptHandle"])
    assert found == {
        "same": [i for i in range(40) if i % 3],
        "other": [i for i in range(40) if not i % 3],
    }


@pytest.mark.parametrize("record", [1, None, [1]])
def test_what_is_no_record_is_refused(sqs: Any, record: Any) -> None:
    sqs.create_queue(QueueName="requests")
    deferral = Deferral(sqs, "requests", now_ms=lambda: NOW)
    with pytest.raises(Malformed, match="record 0: want an object of features"):
        deferral.accept("line", [record], None, deadline=0)
    assert json.dumps(bodies(sqs, "requests")) == "[]"
