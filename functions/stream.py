"""The stream door: requests queue in, predictions queue and predictions table out."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from threefold import strict_json
from threefold.counting import UNCOUNTED, EventCounter
from threefold.dead_letters import RECEIVES, DeadLetters
from threefold.deliveries import SUSPECT_RECEIVES, Delivery, followers, rounds
from threefold.errors import GivenUp, Malformed, NotServable, ThreefoldError
from threefold.feature_table import open_feature_table
from threefold.garbage import search_between
from threefold.names import LOOKUP_INDEX, Metric
from threefold.outcomes import OutcomeTable, Place, lighten
from threefold.pacing import Estimate
from threefold.predictor import Predictor, open_predictor, warm
from threefold.protocols import message as protocol
from threefold.queues import MESSAGES_PER_CALL, QueueSender, TopicSender
from threefold.release import MODEL_NAME
from threefold.request import Records, Request, Tensors, record_keys
from threefold.settings import Settings
from threefold.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

    from threefold.protocols.message import Message

Event = dict[str, Any]
# By message id, why it goes back to the queue.
Failed = dict[str, str]
# Left before the function's deadline to say what was not done.
RESERVE_SECONDS = 2.0
# What is read of so many messages is still in the processor's caches when it is scored, stored and let go.
MESSAGES_AT_A_TIME = 256
# After as much of the time that is there, what is done has to be sent.
SENDING_BEGINS = 0.8
# An item of the predictions table holds 400 KB; a digit in a list takes two bytes as JSON, and three there.
MAXIMUM_OUTCOME_BYTES = 200_000
# As much as a field of a CSV may have.
MAXIMUM_KEY = 65_536


@search_between
def handler(event: Event, context: Any) -> dict[str, Any]:  # noqa: ANN401 - Lambda's context
    """Score one SQS batch; what could not be finished is returned for another try."""
    started = time.perf_counter()
    telemetry = _telemetry()
    deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - RESERVE_SECONDS
    deliveries = [Delivery(record) for record in event["Records"]]
    failed: Failed = {}
    done: list[Delivery] = []
    for some in rounds(deliveries):
        if done:
            # What comes next may end this function: what is done must not be done again for it.
            _forget(done)
            done = []
        _process([delivery for delivery in some if delivery.message_id not in failed], failed, deadline)
        failed |= {
            delivery.message_id: f"an earlier message of group {delivery.group} goes first"
            for delivery in followers(deliveries, failed)
        }
        done = [delivery for delivery in some if delivery.message_id not in failed]
    if failed:
        telemetry.add(Metric.ERRORS, len(failed))
        telemetry.logger.warning("messages returned", count=len(failed), reasons=sorted(set(failed.values()))[:5])
    sent_at = min((int(record["attributes"]["SentTimestamp"]) for record in event["Records"]), default=0)
    telemetry.add(Metric.STREAM_LAG, max(0, time.time() * 1000 - sent_at))
    telemetry.flush(started, messages=len(deliveries), returned=len(failed))
    return {"batchItemFailures": [{"itemIdentifier": identifier} for identifier in failed]}


def _process(deliveries: Sequence[Delivery], failed: Failed, deadline: float) -> None:
    """Bring some messages to their outcomes; what fails again and again is given up."""
    telemetry = _telemetry()
    same: dict[str, Delivery] = {}
    try:
        for some in _parts(deliveries, failed, deadline):
            _decode(some)
            _place(some, failed)
            counted = _counted(some)
            _recall(some, counted)
            _expire(some)
            if _tried_enough(some):
                failed[some[0].message_id] = "its function ended each time before it could say why"
            same |= _twins(some)
            part = [delivery for delivery in some if delivery.message_id not in same] if same else some
            _score(part, failed)
            _store(part, failed, deadline)
            # Before the next part is scored, whose windows have these events in them.
            _count(part, counted, failed, deadline)
            for delivery in some:
                delivery.let_go()
        _share(deliveries, same, failed)
        _send(deliveries, failed, deadline)
    except Exception as error:  # the last line of defence: what is not sent goes back to the queue
        telemetry.logger.exception("batch failed")
        failed |= {delivery.message_id: repr(error) for delivery in deliveries if delivery.message_id not in failed}
    for delivery in deliveries:
        if delivery.message_id in failed and delivery.tries >= RECEIVES:
            _give_up(delivery, failed, deadline)


def _parts(deliveries: Sequence[Delivery], failed: Failed, deadline: float) -> Iterator[Sequence[Delivery]]:
    """The messages, as many at a time as there is time for; the rest goes back."""
    now, estimate, start = time.monotonic(), _estimate(), 0
    # What is stored has to be sent.
    until = now + SENDING_BEGINS * (deadline - now)
    while start < len(deliveries):
        count = estimate.fits(min(MESSAGES_AT_A_TIME, len(deliveries) - start), until)
        if not count:
            left = deliveries[start:]
            failed |= {delivery.message_id: f"no time for {len(left)} of its batch" for delivery in left}
            return
        with estimate.timed(count):
            yield deliveries[start : start + count]
        start += count


def _decode(deliveries: Sequence[Delivery]) -> None:
    for delivery in deliveries:
        try:
            delivery.message = protocol.decode(delivery.text, delivery.identity)
        except ThreefoldError as error:
            delivery.outcome = delivery.rejection(error)
        else:
            if delivery.message.problem is not None:
                delivery.outcome = delivery.rejection(delivery.message.problem)


def _place(deliveries: Sequence[Delivery], failed: Failed) -> None:
    """Say where each outcome stands: the same place at every delivery."""
    fields: dict[str, str | None] = {}
    for delivery in deliveries:
        message = delivery.message
        if message is None or not MODEL_NAME.fullmatch(message.model):
            continue
        key = message.key
        if key is None and message.record is not None:
            try:
                if message.model not in fields:
                    fields[message.model] = _predictor().key_field(message.model)
                keys = record_keys([message.record], fields[message.model])
                key = keys[0] if keys else None
            except NotServable as error:
                # Under another key than at its next delivery, its answer would not be found again.
                failed[delivery.message_id] = str(error)
            except ThreefoldError:
                key = None  # Scoring will meet the same error, and answers it.
        message.key = key
        if key is not None and len(key) > MAXIMUM_KEY:
            message.key = None
            size = Malformed(f"message: want a key of at most {MAXIMUM_KEY} characters, got {len(key)}")
            delivery.outcome = delivery.rejection(size)
        delivery.place = Place(message.model, key or message.id, message.at_ms, message.id)


def _counted(deliveries: Sequence[Delivery]) -> set[str]:
    """The models of some messages whose events are counted for windows."""
    models = {delivery.place.model for delivery in deliveries if delivery.place is not None}
    return {model for model in models if _counter().needed(model)}


def _recall(deliveries: Sequence[Delivery], counted: set[str]) -> None:
    """First answer wins: what was delivered, or sent by its producer before, may have its outcome already."""
    again = [
        delivery
        for delivery in deliveries
        # SQS may deliver a message twice without a word; a window would count it as an event before itself.
        if delivery.place is not None and (delivery.again or delivery.place.model in counted)
    ]
    if not again:
        return
    found = _table().find([delivery.place for delivery in again if delivery.place is not None])
    for delivery in again:
        assert delivery.place is not None
        if (outcome := found.get((delivery.place.pk, delivery.place.sk))) is not None:
            delivery.outcome, delivery.stored = outcome, True


def _expire(deliveries: Sequence[Delivery]) -> None:
    """What comes too late is said to, and not scored."""
    now_ms = time.time_ns() // 1_000_000
    for delivery in deliveries:
        message = delivery.message
        if delivery.outcome is not None or message is None or message.expires_ms is None:
            continue
        if now_ms > message.expires_ms:
            delivery.outcome = delivery.envelope("expired")
            # Not by model: a producer may name any, and each name would be a metric.
            _telemetry().add(Metric.EXPIRED, 1)


def _twins(deliveries: Sequence[Delivery]) -> dict[str, Delivery]:
    """Messages that their producer sent twice, and that came together: by message id, the one that goes first."""
    first: dict[tuple[str, str], Delivery] = {}
    found: dict[str, Delivery] = {}
    for delivery in deliveries:
        message = delivery.message
        if message is not None and message.named and delivery.place is not None:
            known = first.setdefault((delivery.place.pk, delivery.place.sk), delivery)
            if known is not delivery:
                found[delivery.message_id] = known
    return found


def _share(deliveries: Sequence[Delivery], same: Mapping[str, Delivery], failed: Failed) -> None:
    """Give twins one outcome: the first one's, once that stands."""
    if not same:
        return
    for delivery in deliveries:
        if (first := same.get(delivery.message_id)) is not None:
            delivery.outcome, delivery.encoded = first.outcome, first.encoded
            if (reason := failed.get(first.message_id)) is not None:
                failed[delivery.message_id] = reason


def _tried_enough(deliveries: Sequence[Delivery]) -> bool:
    """Whether a suspect of a message group, which comes alone, was tried as often as it may be.

    How often it was received does not say so there: it may have waited for others of its group each time.
    """
    if len(deliveries) != 1 or deliveries[0].group is None or not deliveries[0].suspect:
        return False
    (delivery,) = deliveries
    delivery.tries = SUSPECT_RECEIVES + _table().count_try(delivery.message_id)
    return delivery.outcome is None and delivery.tries > RECEIVES


def _score(deliveries: Sequence[Delivery], failed: Failed) -> None:
    """One call per model and form, whatever the number of messages."""
    groups: dict[tuple[Any, ...], list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        if delivery.outcome is None and delivery.message is not None and delivery.message_id not in failed:
            groups[delivery.message.group()].append(delivery)
    for members in groups.values():
        _score_group(members, failed)


def _score_group(members: Sequence[Delivery], failed: Failed) -> None:
    messages = [delivery.message for delivery in members if delivery.message is not None]
    rows = (
        Records([message.record for message in messages if message.record is not None])
        if messages[0].record is not None
        else Tensors([message.tensors for message in messages if message.tensors is not None])
    )
    request = Request(
        model=messages[0].model,
        rows=rows,
        ids=[message.id for message in messages],
        keys=[message.key for message in messages],
        at_ms=[message.at_ms for message in messages],
        counted=True,
    )
    try:
        outcomes = _predictor().predict(request)
    except NotServable as error:
        failed |= {delivery.message_id: str(error) for delivery in members}
        return
    except ThreefoldError as error:
        for delivery in members:
            delivery.outcome = delivery.rejection(error)
        return
    _telemetry().outcomes(outcomes)
    for delivery, prediction in zip(members, outcomes.predictions(), strict=True):
        delivery.outcome, delivery.encoded = prediction, protocol.encode(prediction)


def _store(deliveries: Sequence[Delivery], failed: Failed, deadline: float) -> None:
    table, now_ms = _table(), time.time_ns() // 1_000_000
    items = []
    for delivery in deliveries:
        if delivery.place is None or delivery.outcome is None or delivery.stored or delivery.message_id in failed:
            continue
        if len(delivery.encoded) > MAXIMUM_OUTCOME_BYTES:
            _point(delivery)
        item = table.item(delivery.place, delivery.outcome, now_ms=now_ms)
        if delivery.place.key != delivery.place.source:
            item[LOOKUP_INDEX] = {"S": f"{delivery.place.model}#{delivery.place.source}"}
        items.append(item)
    if unwritten := set(table.write(items, deadline=deadline)):
        for delivery in deliveries:
            if delivery.place is not None and (delivery.place.pk, delivery.place.sk) in unwritten:
                failed[delivery.message_id] = "predictions table: want the outcome written, got it refused or no time"


def _count(deliveries: Sequence[Delivery], counted: set[str], failed: Failed, deadline: float) -> None:
    """Count for the models' windows what has its outcome: a crash before this, or after it, is another delivery."""
    groups: dict[str, list[tuple[Delivery, Message]]] = defaultdict(list)
    for delivery in deliveries if counted else ():
        message, outcome = delivery.message, delivery.outcome
        if message is None or message.record is None or outcome is None or outcome["status"] in UNCOUNTED:
            continue
        if delivery.place is not None and delivery.message_id not in failed and message.model in counted:
            groups[message.model].append((delivery, message))
    for model, members in groups.items():
        messages = [message for _, message in members]
        found = _counter().count(
            model,
            [message.record for message in messages if message.record is not None],
            [message.at_ms for message in messages],
            [message.id for message in messages],
            deadline=deadline,
        )
        failed |= {members[i][0].message_id: reason for i, reason in found.undone.items()}
        if found.late:
            _telemetry().add(Metric.LATE_EVENTS, found.late, model)


def _point(delivery: Delivery) -> None:
    """Put an outcome that no message or item holds into the results bucket, and its key where it was large."""
    place, outcome = delivery.place, delivery.outcome
    assert place is not None and outcome is not None, "it is about to be stored"  # noqa: PT018
    name = hashlib.sha256(f"{place.pk}\n{place.sk}".encode()).hexdigest()
    key = f"{place.model}/stream/{name}.json"
    item = _table().item(place, outcome, now_ms=0)
    heavy = lighten(item, key)
    light = {name: value for name, value in outcome.items() if name not in heavy} | {"pointer": key}
    _s3().put_object(
        Bucket=_settings().results_bucket, Key=key, Body=strict_json.dumps(outcome), ContentType="application/json"
    )
    delivery.outcome, delivery.encoded = light, protocol.encode(light)


def _send(deliveries: Sequence[Delivery], failed: Failed, deadline: float) -> None:
    held = {delivery.message_id for delivery in followers(deliveries, failed)}
    ready = [
        delivery
        for delivery in deliveries
        if delivery.outcome is not None and delivery.message_id not in failed and delivery.message_id not in held
    ]
    bodies = [
        delivery.encoded or protocol.encode(delivery.outcome) for delivery in ready if delivery.outcome is not None
    ]
    if ready and ready[0].group is not None:
        unsent = _sender().send_in_order(bodies, deadline=deadline, more=[one.order() for one in ready])
    else:
        unsent = _sender().send(bodies, deadline=deadline)
    failed |= {ready[position].message_id: reason for position, reason in unsent.items()}


def _give_up(delivery: Delivery, failed: Failed, deadline: float) -> None:
    """Copy a message to the dead-letter queue. In a message group an error goes on in its place, so that others can."""
    reason = failed[delivery.message_id]
    if not _dead_letters().give_up(delivery, reason, deadline=deadline):
        return
    _telemetry().logger.error("message given up", message_id=delivery.message_id, reason=reason)
    _telemetry().add(Metric.GIVEN_UP, 1)
    del failed[delivery.message_id]
    if delivery.group is not None:
        # Not stored: when it is sent again from there, it is to be scored.
        delivery.outcome, delivery.encoded = delivery.rejection(GivenUp(f"message: given up, for {reason}")), b""
        _send([delivery], failed, deadline)


def _forget(deliveries: Sequence[Delivery]) -> None:
    """Delete messages that are done; one that cannot be comes again, and gets the outcome that it has."""
    for start in range(0, len(deliveries), MESSAGES_PER_CALL):
        some = deliveries[start : start + MESSAGES_PER_CALL]
        entries: Any = [{"Id": str(i), "ReceiptHandle": delivery.handle} for i, delivery in enumerate(some)]
        try:
            _sqs().delete_message_batch(QueueUrl=_requests_url(), Entries=entries)
        except (BotoCoreError, ClientError):
            _telemetry().logger.exception("messages not deleted", count=len(some))


@cache
def _estimate() -> Estimate:
    """How long a message takes, as it was last seen in this environment."""
    return Estimate()


@cache
def _settings() -> Settings:
    return Settings.from_env()


@cache
def _telemetry() -> Telemetry:
    return Telemetry(_settings())


@cache
def _predictor() -> Predictor:
    return open_predictor(_settings(), _telemetry().add)


@cache
def _counter() -> EventCounter:
    return EventCounter(_predictor(), lambda: open_feature_table(_settings().features_table))


@cache
def _table() -> OutcomeTable:
    settings = _settings()
    client = boto3.client("dynamodb", config=Config(max_pool_connections=16, parameter_validation=False))
    return OutcomeTable(client, settings.predictions_table, ttl_days=settings.ttl_days)


@cache
def _sqs() -> SQSClient:
    return boto3.client("sqs", config=Config(max_pool_connections=16, parameter_validation=False))


@cache
def _sender() -> QueueSender:
    settings = _settings()
    if settings.predictions_topic_arn:
        client = boto3.client("sns", config=Config(max_pool_connections=16, parameter_validation=False))
        return TopicSender(client, settings.predictions_topic_arn, target="predictions topic")
    return QueueSender(_sqs(), settings.predictions_queue_url, target="predictions queue")


@cache
def _dead_letters() -> DeadLetters:
    return DeadLetters(_sqs(), _settings().dead_letter_queue_url, target="dead-letter queue")


@cache
def _requests_url() -> str:
    return _sqs().get_queue_url(QueueName=_settings().requests_queue)["QueueUrl"]


@cache
def _s3() -> S3Client:
    return boto3.client("s3")


if _settings().initialization:
    # Lambda's initialization is the time to pay for clients and champions.
    _table()
    _sender()
    warm(_predictor(), _telemetry().logger)
