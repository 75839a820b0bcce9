"""The stream door under load: workers killed, the table throttled, the queue failing, messages that come twice."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Self

import pytest

from tests.long.batch_door import MODEL, open_door
from tests.long.faulty import Faults, proxy
from threefold.outcomes import from_attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.long.batch_door import Door, Rows

COUNT: Final = 100_000
TWICE: Final = 0.03
KILLS: Final = 12
# What was sent twice has one outcome: the lead has to grow with it.
AHEAD: Final = 4_000 + int(TWICE * COUNT)
FUNCTION: Final = "threefold-dev-stream"
# Bounded, whatever the machine.
SECONDS: Final = 1_800.0
# As long as a message of a killed worker is hidden: six minutes by default, more than a test has.
VISIBILITY_SECONDS: Final = 15
ROUNDING: Final = 1e-5


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Door]:
    context = {"streamBatchSize": "500", "streamMaxConcurrency": "4"}
    with open_door(tmp_path_factory.mktemp("stream"), models, context) as found:
        yield found


@pytest.fixture(scope="module")
def faults(door: Door) -> Iterator[Faults]:
    """The stream function's own AWS fails now and then; everybody else's does not."""
    found = Faults(5, throttled=0.1, unprocessed=0.1, unsent=0.1, refused=0.05)
    with proxy(door.emulator.endpoint_url, found) as url:
        functions = door.target.client("lambda")
        variables = functions.get_function_configuration(FunctionName=FUNCTION)["Environment"]["Variables"]
        functions.update_function_configuration(
            FunctionName=FUNCTION, Environment={"Variables": variables | {"AWS_ENDPOINT_URL": url}}
        )
        version = functions.publish_version(FunctionName=FUNCTION)["Version"]
        functions.update_alias(FunctionName=FUNCTION, Name="live", FunctionVersion=version)
        sqs = door.target.client("sqs")
        sqs.set_queue_attributes(
            QueueUrl=door.system.requests_queue_url, Attributes={"VisibilityTimeout": str(VISIBILITY_SECONDS)}
        )
        yield found


def send(door: Door, messages: list[dict[str, Any]], consumer: Consumer, deadline: float) -> None:
    """Send them as a producer does, but never far ahead: the embedded queue is the slower the longer it is."""
    sqs = door.target.client("sqs")

    def post(start: int) -> None:
        while start > len(consumer.seen) + AHEAD and time.monotonic() < deadline:
            time.sleep(0.05)
        entries = [
            {"Id": str(i), "MessageBody": json.dumps(message)} for i, message in enumerate(messages[start : start + 10])
        ]
        assert not sqs.send_message_batch(QueueUrl=door.system.requests_queue_url, Entries=entries).get("Failed")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(post, range(0, len(messages), 10)))


class Consumer:
    """Reads the predictions queue as a consumer does: it keeps what it has seen, by id."""

    def __init__(self, door: Door) -> None:
        self.seen: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.twice = 0
        self._door = door
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read) for _ in range(2)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        sqs, url = self._door.target.client("sqs"), self._door.system.predictions_queue_url
        while not self._stop.is_set():
            found = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1).get("Messages", [])
            for message in found:
                outcome = json.loads(message["Body"])
                self.seen[outcome["id"]].append(outcome)
            if found:
                entries = [{"Id": str(i), "ReceiptHandle": each["ReceiptHandle"]} for i, each in enumerate(found)]
                sqs.delete_message_batch(QueueUrl=url, Entries=entries)


def stored(door: Door) -> dict[str, list[dict[str, Any]]]:
    """The items of the predictions table, by prediction id."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    pages = door.dynamodb.get_paginator("scan").paginate(TableName=door.system.predictions_table)
    for page in pages:
        for raw in page["Items"]:
            item = {name: from_attribute(value) for name, value in raw.items()}
            found[item["id"]].append(item)
    return found


def test_a_hundred_thousand_messages_have_one_outcome_each_whatever_fails(
    door: Door, faults: Faults, make_rows: Callable[[int, int], Rows], tell: Callable[[str], None]
) -> None:
    dice = random.Random(20261129)
    rows = make_rows(7, 1_000)
    names = rows.names[1:]
    records = [dict(zip(names, map(float, text.split(b",")), strict=True)) for text in rows.texts]
    messages = [
        {
            "model": MODEL,
            "id": f"m-{i}",
            "at": 1_767_323_045_000 + i,
            "record": {"sample_id": f"k-{i}"} | records[i % 1_000],
        }
        for i in range(COUNT)
    ]
    # A part of them that no model can answer.
    for message in messages[::97]:
        message["record"] = {**message["record"], names[0]: "n/a"}
    again = dice.sample(messages, int(TWICE * COUNT))
    everything = [*messages, *again]
    dice.shuffle(everything)
    began, kills = time.monotonic(), 0
    with Consumer(door) as consumer:
        sender = threading.Thread(target=send, args=(door, everything, consumer, began + SECONDS))
        sender.start()
        while len(consumer.seen) < COUNT and time.monotonic() < began + SECONDS:
            time.sleep(dice.uniform(0.5, 2.5))
            found = door.environments(b"stream.handler")
            if kills < KILLS and found and len(consumer.seen) > 1_000:
                os.kill(dice.choice(found), signal.SIGKILL)
                kills += 1
        sender.join()
        took = time.monotonic() - began
    assert kills == KILLS
    assert len(consumer.seen) == COUNT, f"{COUNT - len(consumer.seen)} without an outcome after {took:.0f} s"
    assert {fault for fault, count in faults.done.items() if count > 10} == {
        *("throttled", "unprocessed", "unsent", "refused")
    }
    items = stored(door)
    assert len(items) == COUNT
    assert {len(each) for each in items.values()} == {1}
    for i, message in enumerate(messages):
        outcomes, (item,) = consumer.seen[message["id"]], items[message["id"]]
        assert item["pk"] == f"{MODEL}#k-{i}"
        for outcome in outcomes:
            assert outcome["key"] == f"k-{i}"
            if i % 97 == 0:
                assert outcome["error"]["code"] == item["code"] == "outside_signature"
            else:
                said = outcome["prediction"]
                assert (said["label"], said["digest"]) == (item["label"], item["digest"])
                assert said["score"] == pytest.approx(item["score"], rel=ROUNDING)
    letters = door.target.client("sqs").get_queue_attributes(
        QueueUrl=door.system.dead_letter_queue_url, AttributeNames=["ApproximateNumberOfMessages"]
    )
    assert letters["Attributes"]["ApproximateNumberOfMessages"] == "0"
    doubled = sum(len(each) - 1 for each in consumer.seen.values())
    tell(
        f"{COUNT:,} messages in {took:.0f} s, {COUNT / took:,.0f} a second; {kills} workers killed, "
        f"{len(again):,} sent twice, {dict(faults.done)}; {doubled:,} outcomes seen more than once"
    )
