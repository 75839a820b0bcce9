"""The stream door: requests queue in, predictions queue and predictions table out."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from threefold.counting import UNCOUNTED, EventCounter
from threefold.errors import NotServable, ThreefoldError, TooLarge
from threefold.feature_table import open_feature_table
from threefold.names import Metric
from threefold.outcomes import OutcomeTable, Place
from threefold.predictor import Predictor, open_predictor, warm
from threefold.protocols import message as protocol
from threefold.queues import QueueSender
from threefold.release import MODEL_NAME
from threefold.request import Records, Request, Tensors, record_keys
from threefold.settings import Settings
from threefold.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from threefold.protocols.message import Message

Event = dict[str, Any]
# Left before the function's deadline to say what was not done.
RESERVE_SECONDS = 2.0
# An item of the predictions table holds 400 KB; a digit in a list takes two bytes as JSON, and three there.
MAXIMUM_OUTCOME_BYTES = 200_000


@dataclass(slots=True)
class _Delivery:
    """One SQS message on its way to an outcome."""

    message_id: str
    again: bool
    message: Message | None = None
    outcome: dict[str, Any] | None = None
    place: Place | None = None
    stored: bool = False
    body: bytes = b""


def handler(event: Event, context: Any) -> dict[str, Any]:  # noqa: ANN401 - Lambda's context
    """Score one SQS batch; what could not be finished is returned for another try."""
    started = time.perf_counter()
    telemetry = _telemetry()
    deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - RESERVE_SECONDS
    deliveries = [_decode(record) for record in event["Records"]]
    failed: dict[str, str] = {}
    try:
        _place(deliveries, failed)
        _recall(deliveries)
        _score(deliveries, failed)
        _store(deliveries, failed, deadline)
        _count(deliveries, failed, deadline)
        _send(deliveries, failed, deadline)
    except Exception as error:  # the last line of defence: what is not sent goes back to the queue
        telemetry.logger.exception("batch failed")
        failed |= {delivery.message_id: repr(error) for delivery in deliveries}
    if failed:
        telemetry.add(Metric.ERRORS, len(failed))
        telemetry.logger.warning("messages returned", count=len(failed), reasons=sorted(set(failed.values()))[:5])
    sent_at = min((int(record["attributes"]["SentTimestamp"]) for record in event["Records"]), default=0)
    telemetry.add(Metric.STREAM_LAG, max(0, time.time() * 1000 - sent_at))
    telemetry.flush(started, messages=len(deliveries), returned=len(failed))
    return {"batchItemFailures": [{"itemIdentifier": identifier} for identifier in failed]}


def _decode(record: Mapping[str, Any]) -> _Delivery:
    # Delivered before: by SQS, or by whoever moved it back from the dead-letter queue under its first identity.
    again = int(record["attributes"]["ApproximateReceiveCount"]) > 1 or protocol.was_moved(record)
    delivery = _Delivery(record["messageId"], again)
    identity = protocol.identity(record)
    try:
        message = delivery.message = protocol.decode(record["body"], identity)
    except ThreefoldError as error:
        delivery.outcome = _rejection(identity[0], None, error)
        return delivery
    if message.problem is not None:
        delivery.outcome = _rejection(message.id, message, message.problem)
    return delivery


def _place(deliveries: Sequence[_Delivery], failed: dict[str, str]) -> None:
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
        delivery.message = message if key == message.key else message.with_key(key)
        delivery.place = Place(message.model, key or message.id, message.at_ms, message.id)


def _recall(deliveries: Sequence[_Delivery]) -> None:
    """First answer wins: what was delivered before may have its outcome already."""
    again = [delivery for delivery in deliveries if delivery.again and delivery.place is not None]
    if not again:
        return
    found = _table().find([delivery.place for delivery in again if delivery.place is not None])
    for delivery in again:
        assert delivery.place is not None
        if (outcome := found.get((delivery.place.pk, delivery.place.sk))) is not None:
            delivery.outcome, delivery.stored = outcome, True


def _score(deliveries: Sequence[_Delivery], failed: dict[str, str]) -> None:
    """One call per model and form, whatever the number of messages."""
    groups: dict[tuple[Any, ...], list[_Delivery]] = defaultdict(list)
    for delivery in deliveries:
        if delivery.outcome is None and delivery.message is not None and delivery.message_id not in failed:
            groups[delivery.message.group()].append(delivery)
    telemetry = _telemetry()
    for members in groups.values():
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
            continue
        except ThreefoldError as error:
            for delivery, message in zip(members, messages, strict=True):
                delivery.outcome = _rejection(message.id, message, error)
            continue
        telemetry.outcomes(outcomes)
        for delivery, message, prediction in zip(members, messages, outcomes.predictions(), strict=True):
            delivery.outcome, delivery.body = prediction, protocol.encode(prediction)
            if len(delivery.body) > MAXIMUM_OUTCOME_BYTES:
                size = TooLarge(f"outcome: want at most {MAXIMUM_OUTCOME_BYTES} bytes, got {len(delivery.body)}")
                delivery.outcome, delivery.body = _rejection(message.id, message, size), b""


def _store(deliveries: Sequence[_Delivery], failed: dict[str, str], deadline: float) -> None:
    table, now_ms = _table(), time.time_ns() // 1_000_000
    items = [
        table.item(delivery.place, delivery.outcome, now_ms=now_ms)
        for delivery in deliveries
        if delivery.place is not None and delivery.outcome is not None and not delivery.stored
    ]
    if unwritten := set(table.write(items, deadline=deadline)):
        for delivery in deliveries:
            if delivery.place is not None and (delivery.place.pk, delivery.place.sk) in unwritten:
                failed[delivery.message_id] = "predictions table: want the outcome written, got it refused or no time"


def _count(deliveries: Sequence[_Delivery], failed: dict[str, str], deadline: float) -> None:
    """Count for the models' windows what has its outcome: a crash before this, or after it, is another delivery."""
    groups: dict[str, list[tuple[_Delivery, Message]]] = defaultdict(list)
    for delivery in deliveries:
        message, outcome = delivery.message, delivery.outcome
        if message is None or message.record is None or outcome is None or delivery.message_id in failed:
            continue
        if delivery.place is not None and outcome["status"] not in UNCOUNTED:
            groups[message.model].append((delivery, message))
    for model, members in groups.items():
        messages = [message for _, message in members]
        counted = _counter().count(
            model,
            [message.record for message in messages if message.record is not None],
            [message.at_ms for message in messages],
            [message.id for message in messages],
            deadline=deadline,
        )
        failed |= {members[i][0].message_id: reason for i, reason in counted.undone.items()}
        if counted.late:
            _telemetry().add(Metric.LATE_EVENTS, counted.late, model)


def _send(deliveries: Sequence[_Delivery], failed: dict[str, str], deadline: float) -> None:
    ready = [delivery for delivery in deliveries if delivery.outcome is not None and delivery.message_id not in failed]
    bodies = [delivery.body or protocol.encode(delivery.outcome) for delivery in ready if delivery.outcome is not None]
    for position, reason in _sender().send(bodies, deadline=deadline).items():
        failed[ready[position].message_id] = reason


def _rejection(identifier: str, message: Message | None, error: ThreefoldError) -> dict[str, Any]:
    """An error outcome: permanent, so that a retry could not change it."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    outcome = {
        "id": identifier,
        "model": message.model if message else None,
        "key": message.key if message else None,
        "status": "rejected",
        "code": error.code,
        "message": str(error),
        "at": at,
    }
    return {name: value for name, value in outcome.items() if value is not None}


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
def _sender() -> QueueSender:
    client = boto3.client("sqs", config=Config(max_pool_connections=16, parameter_validation=False))
    return QueueSender(client, _settings().predictions_queue_url)


if _settings().initialization:
    # Lambda's initialization is the time to pay for clients and champions.
    _table()
    _sender()
    warm(_predictor(), _telemetry().logger)
