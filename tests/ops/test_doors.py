"""The doors from outside: what a consumer takes off the predictions queue, and what it leaves there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto import mock_aws

from threefold_ops.doors import Queues
from threefold_ops.errors import OperatorError
from threefold_ops.system import System
from threefold_ops.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Queues, Any, str]]:
    """A predictions queue, and its consumer."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        session = boto3.Session(region_name="us-east-1")
        sqs = session.client("sqs")
        url = sqs.create_queue(QueueName="predictions")["QueueUrl"]
        fields = {name: "" for name in System.__dataclass_fields__ if name != "models"}
        system = System(**{**fields, "predictions_queue_url": url, "requests_queue_url": url})
        yield Queues(system, Target(session)), sqs, url


def test_other_consumers_outcomes_do_not_stand_in_the_way_and_are_left(world: tuple[Queues, Any, str]) -> None:
    queues, sqs, url = world
    for identifier in [*(f"other-{i}" for i in range(25)), "mine"]:
        sqs.send_message(QueueUrl=url, MessageBody=json.dumps({"id": identifier}))
    assert [outcome["id"] for outcome in queues.receive(["mine"], timeout_seconds=20)] == ["mine"]
    counts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])
    assert counts["Attributes"]["ApproximateNumberOfMessages"] == "25"


def test_what_does_not_come_is_said(world: tuple[Queues, Any, str]) -> None:
    queues, _, _ = world
    with pytest.raises(OperatorError, match="want 2 outcomes in 1 s, got 0"):
        list(queues.receive(["a", "b"], timeout_seconds=1))


def test_messages_get_an_id_unless_they_bring_one(world: tuple[Queues, Any, str]) -> None:
    queues, _, _ = world
    found = queues.send([{"model": "wine", "record": {}}] * 11 + [{"id": "own", "model": "wine", "record": {}}])
    assert len(set(found)) == 12
    assert found[-1] == "own"
