"""The dead-letter queue from the command line: read without loss, sent again under the first identity, deleted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto import mock_aws

from threefold.dead_letters import DeadLetters
from threefold.deliveries import Delivery
from threefold.protocols import message as protocol
from threefold_ops.dead_letters import DeadLetterQueue, chosen
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterator


class World:
    def __init__(self) -> None:
        self.sqs = boto3.client("sqs")
        self.requests, self.letters = (self.sqs.create_queue(QueueName=name)["QueueUrl"] for name in ("r", "d"))

    @property
    def queue(self) -> DeadLetterQueue:
        return DeadLetterQueue(self.sqs, self.letters, self.requests)

    def give_up(self, number: int, **fields: Any) -> None:
        """As the stream function does it."""
        body = json.dumps({"model": "wine", "record": {"a": number}, **fields})
        attributes = {"ApproximateReceiveCount": "10", "SentTimestamp": str(1000 + number)}
        delivery = Delivery({"messageId": f"m-{number}", "body": body, "attributes": attributes})
        assert DeadLetters(self.sqs, self.letters, target="dead-letter queue").give_up(
            delivery, f"reason {number}", deadline=1e12
        )

    def requested(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        wanted = {"MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"]}
        while messages := self.sqs.receive_message(QueueUrl=self.requests, **wanted).get("Messages"):
            found += messages
        return found


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield World()


def test_what_was_given_up_is_read_with_its_reason_and_left_where_it_is(world: World) -> None:
    for i in range(25):
        world.give_up(i, **({"id": "own", "model": "beer"} if i == 3 else {}))
    world.sqs.send_message(QueueUrl=world.letters, MessageBody="no json")
    for _ in range(2):
        queue = world.queue
        found = {letter.id: letter for letter in queue.read()}
        queue.put_back()
        assert len(found) == 26
        assert (found["m-7"].model, found["m-7"].reason, found["m-7"].at) == (
            *("wine", "reason 7", "1970-01-01T00:00:01.007Z"),
        )
        assert (found["own"].model, found["own"].reason) == ("beer", "reason 3")
        (moved,) = [letter for letter in found.values() if letter.body == "no json"]
        assert moved.reason.startswith("none was said: its function ended each time")


def test_a_message_is_sent_again_under_its_first_identity_and_gone_here(world: World) -> None:
    for i in range(3):
        world.give_up(i)
    queue = world.queue
    for letter in chosen(queue.read(), ["m-1"], None):
        queue.redrive(letter)
    queue.put_back()
    (sent,) = world.requested()
    record = {
        "messageId": sent["MessageId"],
        "attributes": {"SentTimestamp": "9"},
        "messageAttributes": {
            name: {"stringValue": each["StringValue"]} for name, each in sent["MessageAttributes"].items()
        },
    }
    assert protocol.identity(record) == ("m-1", 1001)
    assert protocol.was_moved(record)
    assert json.loads(sent["Body"])["record"] == {"a": 1}
    assert {letter.id for letter in world.queue.read()} == {"m-0", "m-2"}


def test_a_message_that_sqs_moved_itself_keeps_the_id_that_it_had(world: World) -> None:
    moved = world.sqs.send_message(QueueUrl=world.letters, MessageBody=json.dumps({"model": "wine", "record": {}}))
    queue = world.queue
    for letter in queue.read():
        queue.redrive(letter)
    (sent,) = world.requested()
    assert sent["MessageAttributes"]["threefold-id"]["StringValue"] == moved["MessageId"]


def test_messages_are_chosen_by_the_beginning_of_their_ids_or_by_their_model(world: World) -> None:
    for i in range(12):
        world.give_up(i, model="beer" if i % 2 else "wine")
    letters = list(world.queue.read())
    assert {one.id for one in chosen(letters, ["m-1"], None)} == {"m-1"}
    assert {one.id for one in chosen(letters, ["m-10", "m-2"], None)} == {"m-10", "m-2"}
    assert len(chosen(letters, ["m-"], None)) == 12
    assert {one.id for one in chosen(letters, [], "beer")} == {f"m-{i}" for i in range(1, 12, 2)}
    assert len(chosen(letters, [], None)) == 12
    with pytest.raises(OperatorError, match=r"want ids of messages that are there, got \['x'\]"):
        chosen(letters, ["m-1", "x"], None)
