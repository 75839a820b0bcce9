"""Sending to SQS: by count and by size, and what failed again."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.stub import ANY, Stubber
from moto import mock_aws

from threefold.queues import BYTES_PER_CALL, QueueSender, _calls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_sqs import SQSClient


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[SQSClient]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        yield boto3.client("sqs")


@pytest.fixture
def queue(client: SQSClient) -> str:
    return client.create_queue(QueueName="predictions")["QueueUrl"]


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def sender(client: SQSClient, queue: str, waits: list[float]) -> QueueSender:
    return QueueSender(client, queue, target="predictions queue", sleep=waits.append)


def soon() -> float:
    return time.monotonic() + 5


def received(client: SQSClient, queue: str) -> list[str]:
    bodies: list[str] = []
    while messages := client.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", []):
        bodies += [message["Body"] for message in messages]
    return bodies


def failure(identifier: int, code: str = "InternalError", *, sender_fault: bool = False) -> dict[str, Any]:
    return {"Id": str(identifier), "Code": code, "SenderFault": sender_fault}


def answer(*failures: dict[str, Any]) -> dict[str, Any]:
    return {"Successful": [], "Failed": list(failures)}


def expected(*positions: int) -> dict[str, Any]:
    return {"QueueUrl": ANY, "Entries": [{"Id": str(i), "MessageBody": f"body-{i}"} for i in positions]}


@pytest.mark.parametrize("count", [0, 1, 10, 11, 95])
def test_every_body_arrives_once(count: int, sender: QueueSender, client: SQSClient, queue: str) -> None:
    bodies = [json.dumps({"id": i, "text": "é"}).encode() for i in range(count)]
    assert sender.send(bodies, deadline=soon()) == {}
    assert sorted(received(client, queue)) == sorted(body.decode() for body in bodies)


@pytest.mark.parametrize(
    ("sizes", "calls"),
    [
        ([1] * 10, [10]),
        ([1] * 11, [10, 1]),
        ([524_288, 524_288], [2]),
        ([524_288, 524_289], [1, 1]),
        ([1_048_576, 1, 1_048_576], [1, 1, 1]),
        ([2_000_000, 1], [1, 1]),
        ([], []),
    ],
)
def test_a_call_holds_ten_messages_and_a_mebibyte(sizes: list[int], calls: list[int]) -> None:
    found = list(_calls(range(len(sizes)), [b"x" * size for size in sizes], BYTES_PER_CALL))
    assert [len(call) for call in found] == calls
    assert [i for call in found for i in call] == list(range(len(sizes)))


def test_what_sqs_reports_as_failed_is_sent_again(sender: QueueSender, client: SQSClient, waits: list[float]) -> None:
    with Stubber(client) as stub:
        stub.add_response("send_message_batch", answer(failure(0), failure(2)), expected(0, 1, 2))
        stub.add_client_error("send_message_batch", "ServiceUnavailable", expected_params=expected(0, 2))
        stub.add_response("send_message_batch", answer(failure(2)), expected(0, 2))
        stub.add_response("send_message_batch", answer(), expected(2))
        assert sender.send([b"body-0", b"body-1", b"body-2"], deadline=soon()) == {}
        stub.assert_no_pending_responses()
    assert all(0.025 * 2**i <= wait <= 0.05 * 2**i for i, wait in enumerate(waits))


def test_a_fault_of_the_sender_is_told_and_the_others_go_on(sender: QueueSender, client: SQSClient) -> None:
    faulty = failure(1, "InvalidMessageContents", sender_fault=True)
    with Stubber(client) as stub:
        stub.add_response("send_message_batch", answer(failure(0), faulty), expected(0, 1, 2))
        stub.add_response("send_message_batch", answer(), expected(0))
        failed = sender.send([b"body-0", b"body-1", b"body-2"], deadline=soon())
        stub.assert_no_pending_responses()
    assert failed == {1: "predictions queue: InvalidMessageContents"}


def test_what_is_not_sent_by_the_deadline_is_named(sender: QueueSender, client: SQSClient) -> None:
    with Stubber(client) as stub:
        stub.add_response("send_message_batch", answer(failure(0), failure(2)))
        failed = sender.send([b"body-0", b"body-1", b"body-2"], deadline=time.monotonic() - 1)
    assert failed == {0: "predictions queue: InternalError", 2: "predictions queue: InternalError"}


def test_a_queue_that_cannot_be_reached_fails_every_body(waits: list[float]) -> None:
    client = boto3.client(
        "sqs",
        endpoint_url="http://127.0.0.1:1",
        region_name="eu-central-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
    )
    sender = QueueSender(client, "http://127.0.0.1:1/queue", target="predictions queue", sleep=waits.append)
    with Stubber(client) as stub:
        for _ in range(2):
            stub.add_client_error("send_message_batch", "RequestTimeout")
        failed = sender.send([b"1"] * 11, deadline=time.monotonic() - 1)
    assert failed == dict.fromkeys(range(11), "predictions queue: ClientError")
