"""The SQS door when messages fail again and again, come too late, come in groups, or when there is too little time."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.stub import Stubber

from tests.functions.test_stream import FEATURES, VALUE, by_id, message
from threefold import deliveries
from threefold.deliveries import Delivery, followers, rounds
from threefold.errors import GivenUp, NotServable, OutsideSignature, StorageUnavailable
from threefold.outcomes import OutcomeTable
from threefold.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Graphs, PackageMaker
    from tests.functions.conftest import Shelf, Stream
    from threefold.prediction import Outcomes
    from threefold.request import Request

Record = dict[str, Any]


@pytest.fixture
def made(
    make_stream: Callable[..., Stream], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> Callable[..., Stream]:
    """Streams of one model: value = a + b."""
    shelf.release(make_package(graphs.linear([1, 1]), name="line", features=FEATURES, output=VALUE, key="customer"))
    return lambda **options: make_stream(shelf.bucket, **options)


def requested(stream: Stream, records: list[Record]) -> list[Record]:
    """The same records with handles of messages that are really in the requests queue."""
    for record in records:
        group = record["attributes"].get("MessageGroupId")
        more = {"MessageGroupId": group, "MessageDeduplicationId": record["messageId"]} if group else {}
        stream.sqs.send_message(QueueUrl=stream.requests_url, MessageBody=record["body"], **more)
    handles: dict[str, str] = {}
    while found := stream.sqs.receive_message(QueueUrl=stream.requests_url, MaxNumberOfMessages=10).get("Messages"):
        handles |= {each["Body"]: each["ReceiptHandle"] for each in found}
    return [record | {"receiptHandle": handles[record["body"]]} for record in records]


def waiting(stream: Stream) -> int:
    """How many messages the requests queue holds, in flight or not."""
    names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
    found = stream.sqs.get_queue_attributes(QueueUrl=stream.requests_url, AttributeNames=list(names))["Attributes"]
    return sum(int(found[name]) for name in names)


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Request], bool], error: BaseException) -> list[int]:
    """Predictor.predict raises an error for some requests; the sizes of all that were asked."""
    sizes: list[int] = []
    predict = Predictor.predict

    def ask(self: Predictor, request: Request) -> Outcomes:
        sizes.append(len(request.rows))
        if fails(request):
            raise error
        return predict(self, request)

    monkeypatch.setattr(Predictor, "predict", ask)
    return sizes


class Killed(BaseException):
    """What ends the function for good."""


# Too late


def test_a_message_past_its_time_is_answered_as_expired_and_not_scored(
    made: Callable[..., Stream], sqs: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = made()
    now = time.time_ns() // 1_000_000
    sizes = failing(monkeypatch, lambda _: False, Killed())
    records = [
        sqs(message(1, id="late", expires_at="2026-01-02T03:04:05Z"), "m-1"),
        sqs(message(2, id="soon", expires_at=now + 60_000), "m-2"),
        sqs(message(3, id="wrong", expires_at="tomorrow"), "m-3"),
        sqs(message(4, id="oldest", expires_at=0), "m-4"),
    ]
    assert stream.handle(*records) == []
    sent = by_id(stream.sent())
    assert (sent["late"]["prediction"]["status"], sent["late"]["key"]) == ("expired", "c-1")
    assert sent["oldest"]["prediction"]["status"] == "expired"
    assert sent["soon"]["prediction"]["value"] == 2
    assert (
        sent["wrong"]["error"]["message"] == "message: want expires_at as ISO 8601 or as milliseconds, got 'tomorrow'"
    )
    assert sizes == [1]
    # It stays so, whenever it comes again.
    assert stream.stored()["late"]["status"] == "expired"


def test_an_answer_that_was_given_in_time_is_given_again_later(
    made: Callable[..., Stream], sqs: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = made()
    body = message(1, id="once", expires_at=time.time_ns() // 1_000_000 + 60_000)
    assert stream.handle(sqs(body, "m-1")) == []
    real = time.time_ns
    monkeypatch.setattr(stream.module.time, "time_ns", lambda: real() + 3_600 * 10**9)
    assert stream.handle(sqs(body, "m-1", receives=2)) == []
    assert [each["prediction"]["status"] for each in stream.sent()] == ["predicted"] * 2


# Again and again


def test_what_ends_the_function_each_time_takes_no_other_message_along(
    made: Callable[..., Stream], sqs: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = made()
    bodies = [message(i, id=f"m-{i}") for i in range(6)]
    records = requested(stream, [sqs(body, f"m-{i}", receives=5 if i < 3 else 1) for i, body in enumerate(bodies)])
    poison = bodies[1]["record"]
    failing(monkeypatch, lambda request: poison in request.rows.records, Killed())
    monkeypatch.setattr(deliveries.random, "shuffle", lambda alone: alone.sort(key=lambda one: one.message_id == "m-1"))
    with pytest.raises(Killed):
        stream.handle(*records)
    # All but it have their outcome, and are out of the queue although Lambda never heard of it.
    assert by_id(stream.sent()).keys() == {"m-0", "m-2", "m-3", "m-4", "m-5"}
    assert waiting(stream) == 1


def test_suspects_come_alone_in_any_order_and_last(sqs: Callable[..., Record]) -> None:
    some = [Delivery(sqs("", f"m-{i}", receives=1 + 3 * (i % 2))) for i in range(10)]
    orders = set()
    for _ in range(20):
        first, *alone = rounds(some)
        assert [one.message_id for one in first] == ["m-0", "m-2", "m-4", "m-6", "m-8"]
        assert all(len(each) == 1 for each in alone)
        assert {each[0].message_id for each in alone} == {"m-1", "m-3", "m-5", "m-7", "m-9"}
        orders.add(tuple(each[0].message_id for each in alone))
    assert len(orders) > 1


def test_a_message_that_fails_at_its_tenth_receive_is_given_up_with_its_reason_and_scored_when_it_is_sent_again(
    made: Callable[..., Stream], sqs: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = made()
    with monkeypatch.context() as patch:
        failing(patch, lambda _: True, NotServable("model 'line': want it loaded, got no memory"))
        assert stream.handle(sqs(message(1), "m-1", receives=9)) == ["m-1"]
        assert stream.handle(sqs(message(1), "m-1", receives=10), sqs(message(2), "m-2")) == ["m-2"]
    assert stream.sent() == []
    (letter,) = stream.given_up()
    assert json.loads(letter["Body"]) == message(1)
    said = {name: value["StringValue"] for name, value in letter["MessageAttributes"].items()}
    assert said == {
        "threefold-id": "m-1",
        "threefold-at": "1773342238123",
        "threefold-reason": "model 'line': want it loaded, got no memory",
    }
    back = {name.replace("-", "_"): text for name, text in said.items()}
    assert stream.handle(sqs(letter["Body"], "another", **back)) == []
    (outcome,) = stream.sent()
    assert (outcome["id"], outcome["prediction"]["value"]) == ("m-1", 1)
    assert stream.stored()["m-1"]["sk"] == "01773342238123#m-1"


def test_a_message_that_cannot_be_given_up_goes_back(
    made: Callable[..., Stream], sqs: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = made()
    failing(monkeypatch, lambda _: True, NotServable("no"))
    with Stubber(stream.module._dead_letters()._client) as stub:
        failed = [{"Id": "0", "Code": "InvalidMessageContents", "SenderFault": True}]
        stub.add_response("send_message_batch", {"Successful": [], "Failed": failed})
        assert stream.handle(sqs(message(1), "m-1", receives=10)) == ["m-1"]


# In order


def line_up(sqs: Callable[..., Record], groups: str, *, receives: int = 1) -> list[Record]:
    """Messages of the groups whose letters are given, numbered in their order."""
    return [
        sqs(message(i, id=f"{group}-{i}"), f"{group}-{i}", receives=receives, group=group)
        for i, group in enumerate(groups)
    ]


def taken(stream: Stream) -> list[tuple[str, str]]:
    """What the predictions queue gives out, as (group, id), in its order."""
    found: list[tuple[str, str]] = []
    wanted = {"MaxNumberOfMessages": 10, "AttributeNames": ["MessageGroupId"]}
    while messages := stream.sqs.receive_message(QueueUrl=stream.queue_url, **wanted).get("Messages"):
        for each in messages:
            stream.sqs.delete_message(QueueUrl=stream.queue_url, ReceiptHandle=each["ReceiptHandle"])
            found.append((each["Attributes"]["MessageGroupId"], json.loads(each["Body"])["id"]))
    return found


def test_outcomes_keep_the_order_and_the_groups_of_their_messages(
    made: Callable[..., Stream], sqs: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = made(fifo=True)
    assert stream.handle(*line_up(sqs, "ababbacaab")) == []
    found = taken(stream)
    assert [each for group, each in found if group == "a"] == ["a-0", "a-2", "a-5", "a-7", "a-8"]
    assert [each for group, each in found if group == "b"] == ["b-1", "b-3", "b-4", "b-9"]
    assert ("c", "c-6") in found
    # Delivered again, each goes by the name by which the queue knows it for five minutes.
    names: list[set[str]] = []
    post = stream.module._sender()._post
    monkeypatch.setattr(
        stream.module._sender(),
        "_post",
        lambda entries: [names[-1].update(each["MessageDeduplicationId"] for each in entries), post(entries)][1],
    )
    for receives in (2, 3):
        names.append(set())
        assert stream.handle(*line_up(sqs, "ababbacaab", receives=receives)) == []
    assert names[0] == names[1]
    assert len(names[0]) == 10


@pytest.mark.parametrize("step", ["score", "store", "send"])
def test_what_follows_a_failed_message_of_its_group_goes_back_with_it(
    made: Callable[..., Stream], sqs: Callable[..., Record], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    stream = made(fifo=True)
    records = line_up(sqs, "abab")
    records[0]["body"] = json.dumps(message(0, id="a-0", model="other" if step == "score" else "line"))
    with monkeypatch.context() as patch:
        if step == "score":
            failing(patch, lambda request: request.model == "other", NotServable("no"))
            patch.setattr(Predictor, "key_field", lambda _self, _model: "customer")
        elif step == "store":
            write = stream.module._table().write
            patch.setattr(
                stream.module._table(),
                "write",
                lambda items, deadline: [*write(items[1:], deadline=deadline), ("line#c-0", "01773342238123#a-0")],
            )
        else:
            sender = stream.module._sender()
            post = sender._post
            fault = [{"Id": "0", "Code": "InternalError", "SenderFault": True}]
            patch.setattr(
                sender,
                "_post",
                lambda entries: {"Failed": fault} if entries[0]["Id"] == "0" and len(entries) == 1 else post(entries),
            )
            patch.setattr("threefold.queues.MESSAGES_PER_CALL", 1)
        assert sorted(stream.handle(*records)) == ["a-0", "a-2"]
    assert taken(stream) == [("b", "b-1"), ("b", "b-3")]
    if step == "score":
        records[0]["body"] = json.dumps(message(0, id="a-0"))
    for record in records:
        record["attributes"]["ApproximateReceiveCount"] = "2"
    assert stream.handle(records[0], records[2]) == []
    assert taken(stream) == [("a", "a-0"), ("a", "a-2")]


def test_a_message_that_is_given_up_lets_its_group_go_on_and_takes_nobody_along(
    made: Callable[..., Stream], sqs: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = made(fifo=True)
    bad = message(0, id="a-0")["record"]
    failing(monkeypatch, lambda request: bad in request.rows.records, NotServable("no memory"))
    tries = 0
    for receives in range(1, 40):
        # Followers are received as often as the one that they wait for.
        tries += 1
        if not stream.handle(*line_up(sqs, "aab", receives=receives)):
            break
        assert [group for group, _ in taken(stream) if group == "a"] == []
    assert tries == 10
    assert [each for each in taken(stream) if each[0] == "a"] == [("a", "a-0"), ("a", "a-1")]
    (letter,) = stream.given_up()
    assert letter["MessageAttributes"]["threefold-reason"]["StringValue"] == "no memory"
    assert letter["Attributes"]["MessageGroupId"] == "a"
    # Sent again from there, it has its outcome after all.
    monkeypatch.undo()
    said = {name.replace("-", "_"): value["StringValue"] for name, value in letter["MessageAttributes"].items()}
    assert stream.handle(sqs(letter["Body"], "another", group="a", **said)) == []
    assert stream.stored()["a-0"]["status"] == "predicted"


def test_one_that_ends_the_function_each_time_is_given_up_too_and_its_group_goes_on(
    made: Callable[..., Stream], sqs: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = made(fifo=True)
    bad = message(0, id="a-0")["record"]
    failing(monkeypatch, lambda request: bad in request.rows.records, Killed())
    for receives in range(1, 40):
        try:
            assert stream.handle(*line_up(sqs, "aa", receives=receives)) == []
            break
        except Killed:
            assert taken(stream) == []
    assert receives <= 12
    found = stream.sent()
    assert [each["id"] for each in found] == ["a-0", "a-1"]
    assert found[0]["error"]["code"] == "given_up"
    assert found[1]["prediction"]["value"] == 1
    (letter,) = stream.given_up()
    assert "its function ended each time" in letter["MessageAttributes"]["threefold-reason"]["StringValue"]


def test_followers_are_those_after_a_failed_one_of_their_group(sqs: Callable[..., Record]) -> None:
    some = [Delivery(sqs("", name, group=name[0])) for name in ("a1", "b1", "a2", "c1", "b2", "a3")]
    assert [one.message_id for one in followers(some, ["a2", "c1"])] == ["a3"]
    assert [one.message_id for one in followers(some, ["b1", "a1"])] == ["a2", "b2", "a3"]
    assert list(followers(some, [])) == []


@pytest.mark.parametrize("trouble", ["table", "time"])
def test_a_message_that_waited_for_others_is_given_up_for_no_failure_of_its_first_try(
    made: Callable[..., Stream], sqs: Callable[..., Record], monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    stream = made(fifo=True)

    def fail(*_: object) -> Any:
        raise StorageUnavailable("the table is away")

    with monkeypatch.context() as patch:
        if trouble == "table":
            patch.setattr(OutcomeTable, "find", fail)
        milliseconds = 60_000 if trouble == "table" else 1_900
        assert stream.handle(sqs(message(1), "m-1", receives=30, group="a"), milliseconds=milliseconds) == ["m-1"]
    assert (stream.sent(), stream.given_up()) == ([], [])


def test_an_outcome_is_not_taken_for_the_one_that_it_follows(sqs: Callable[..., Record]) -> None:
    delivery = Delivery(sqs("", "m-1", group="a"))
    orders = []
    for error in (GivenUp("for now"), OutsideSignature("for good")):
        delivery.outcome = delivery.rejection(error)
        orders.append(delivery.order()["MessageDeduplicationId"])
    assert len(set(orders)) == 2


# Too little time


def test_what_there_is_no_time_for_goes_back_unscored(
    made: Callable[..., Stream], sqs: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = made()
    clock = SimpleNamespace(passed=0.0)
    real = time.monotonic
    monkeypatch.setattr(stream.module.time, "monotonic", lambda: real() + clock.passed)
    predict = Predictor.predict

    def slow(self: Predictor, request: Request) -> Outcomes:
        clock.passed += 0.1 * len(request.rows)
        return predict(self, request)

    monkeypatch.setattr(Predictor, "predict", slow)
    estimate = stream.module.Estimate
    monkeypatch.setattr(stream.module, "Estimate", lambda: estimate(lambda: real() + clock.passed))
    records = [sqs(message(i, id=f"m-{i}"), f"m-{i}") for i in range(300)]
    returned = stream.handle(*records, milliseconds=22_000)
    # A hundred tell how long one takes, 0.1 s; there are 20 s, of which some are left for what comes after scoring.
    assert 300 - 165 <= len(returned) <= 300 - 150
    assert returned == [f"m-{i}" for i in range(300 - len(returned), 300)]
    assert len(stream.sent()) == 300 - len(returned)


# To several consumers


def test_with_a_topic_every_subscriber_gets_each_outcome(
    made: Callable[..., Stream], sqs: Callable[..., Record]
) -> None:
    sns = boto3.client("sns")
    topic = sns.create_topic(Name="outcomes")["TopicArn"]
    stream = made(THREEFOLD_PREDICTIONS_TOPIC_ARN=topic)
    urls = [stream.queue_url, stream.sqs.create_queue(QueueName="second")["QueueUrl"]]
    for url in urls:
        arn = stream.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "true"})
    assert stream.handle(*[sqs(message(i, id=f"m-{i}"), f"m-{i}") for i in range(25)]) == []
    first = by_id(stream.sent())
    stream.queue_url = urls[1]
    assert first == by_id(stream.sent())
    assert len(first) == 25
    sns.close()
