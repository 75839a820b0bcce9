"""The stream door in its other shapes on the embedded AWS: FIFO queues, a topic, outcomes by id, dead letters."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.conftest import Local
from tests.system.test_cli import command
from threefold_ops import target as targets
from threefold_ops.doors import Https, Queues
from threefold_ops.local import emulator
from threefold_ops.paths import EMULATOR_PYTHON
from threefold_ops.system import deploy_system

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system

PATIENT = {
    "patient_id": "p-1",
    "age": 49,
    "sex": 1,
    "bmi": 25.6,
    "blood_pressure": 90,
    "total_cholesterol": 161,
    "ldl": 99.8,
    "hdl": 51,
    "cholesterol_ratio": 3,
    "log_triglycerides": 3.9318,
    "glucose": 78,
}


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Local]:
    with running(tmp_path_factory.mktemp("ordered"), models, {"streamFifo": "true"}) as found:
        yield found


@contextmanager
def running(state: Path, models: Path, context: dict[str, str]) -> Iterator[Local]:
    """A system of one model."""
    shutil.copytree(models / "diabetes", state / "models" / "diabetes")
    with emulator.running(state, EMULATOR_PYTHON, port=0) as found:
        target = targets.emulator(found.endpoint_url)
        yield Local(state, target, deploy_system(target, context, models=state / "models"))


def taken(local: Local, url: str, count: int, seconds: float = 60) -> list[tuple[str, str]]:
    """What a queue gives out, as (group, id), in its order."""
    sqs, found = local.target.client("sqs"), list[tuple[str, str]]()
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        answer = sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1, AttributeNames=["MessageGroupId"]
        )
        for message in answer.get("Messages", []):
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            found.append((message["Attributes"]["MessageGroupId"], json.loads(message["Body"])["id"]))
    return found


def test_each_group_keeps_its_order(ordered: Local) -> None:
    messages = [
        {"model": "diabetes", "id": f"{group}-{i:02d}", "key": group, "record": PATIENT | {"age": 20 + i}}
        for i in range(15)
        for group in ("p-1", "p-2")
    ]
    Queues(ordered.system, ordered.target).send(messages)
    found = taken(ordered, ordered.system.predictions_queue_url, len(messages))
    for group in ("p-1", "p-2"):
        assert [identity for each, identity in found if each == group] == [f"{group}-{i:02d}" for i in range(15)]


def test_every_subscriber_of_the_topic_gets_each_outcome(tmp_path: Path, models: Path) -> None:
    with running(tmp_path, models, {"streamFanOut": "true"}) as local:
        sqs, sns = local.target.client("sqs"), local.target.client("sns")
        (topic,) = [each["TopicArn"] for each in sns.list_topics()["Topics"] if "-predictions" in each["TopicArn"]]
        second = sqs.create_queue(QueueName="second")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=second, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "true"})
        queues = Queues(local.system, local.target)
        ids = queues.send([{"model": "diabetes", "record": PATIENT | {"age": 20 + i}} for i in range(25)])
        first = {each["id"]: each for each in queues.receive(ids, timeout_seconds=60)}
        other = replace(local.system, predictions_queue_url=second)
        assert first == {each["id"]: each for each in Queues(other, local.target).receive(ids, timeout_seconds=60)}
        assert first.keys() == {*ids}


def test_what_is_asked_for_now_is_picked_up_by_its_id(ordered: Local) -> None:
    https = Https(ordered.system, ordered.target)
    answer = https.post("/models/diabetes/predictions?mode=async", {"records": [PATIENT, {"age": "old"}]})
    assert answer.status == 202
    found: list[dict[str, Any]] = []
    for each in answer.json()["predictions"]:
        for _ in range(120):
            outcome = https.get(f"/models/diabetes/predictions/{each['id']}")
            if outcome.status != 202:
                break
            time.sleep(0.25)
        assert outcome.status == 200
        found += outcome.json()["predictions"]
    assert [each["status"] for each in found] == ["predicted", "rejected"]
    live = https.post("/models/diabetes/predictions", {"records": [PATIENT]}).json()["predictions"][0]
    assert found[0]["value"] == pytest.approx(live["value"], rel=1e-5)


def test_dead_letters_are_listed_shown_sent_again_and_deleted(ordered: Local) -> None:
    sqs = ordered.target.client("sqs")
    for i in range(3):
        body = {"model": "diabetes", "id": f"dead-{i}", "record": PATIENT}
        said = {"threefold-id": f"dead-{i}", "threefold-at": str(1000 + i), "threefold-reason": f"no room, {i}"}
        sqs.send_message(
            QueueUrl=ordered.system.dead_letter_queue_url,
            MessageBody=json.dumps(body),
            MessageGroupId=f"g-{i}",
            MessageDeduplicationId=f"d-{i}",
            MessageAttributes={name: {"DataType": "String", "StringValue": text} for name, text in said.items()},
        )
    listed = command(ordered.state, "dlq", "list")
    assert listed.stdout.splitlines()[1] == "1970-01-01T00:00:01.001Z  diabetes  dead-1: no room, 1", listed.stderr
    assert json.loads(command(ordered.state, "dlq", "show", "dead-2").stdout)["reason"] == "no room, 2"
    assert command(ordered.state, "dlq", "redrive").returncode == 1
    again = command(ordered.state, "dlq", "redrive", "dead-0", "dead-1")
    assert again.returncode == 0, again.stderr
    assert {identity for _, identity in taken(ordered, ordered.system.predictions_queue_url, 2)} >= {"dead-0", "dead-1"}
    assert command(ordered.state, "dlq", "purge", "--all", "--yes").returncode == 0
    assert json.loads(command(ordered.state, "dlq", "list", "--json").stdout) == []
