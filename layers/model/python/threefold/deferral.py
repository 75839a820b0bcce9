"""Predictions asked for now and picked up later: records on their way to the requests queue, and the ids they get."""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from threefold import strict_json
from threefold.errors import Malformed, StorageUnavailable, TooLarge
from threefold.queues import BYTES_PER_CALL, QueueSender

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mypy_boto3_sqs import SQSClient

# Requests stay in their queue for 4 days (infra/stage_stack.py): whoever has no outcome then will have none.
QUEUE_SECONDS: Final = 4 * 86_400
PENDING: Final = "pending"
_ID: Final = re.compile(r"deferred-([0-9]{13})-[0-9a-f]{32}")


def mint(now_ms: int) -> str:
    """An id that says when it was asked for; callers need not know that."""
    return f"deferred-{now_ms:013d}-{uuid.uuid4().hex}"


def waits(identity: str, now_ms: int) -> bool:
    """Whether a prediction without an outcome may still get one: it is one of ours, and not too old."""
    found = _ID.fullmatch(identity)
    return found is not None and now_ms - int(found[1]) < QUEUE_SECONDS * 1000


class Deferral:
    """The requests queue, as the HTTPS door fills it."""

    def __init__(
        self,
        client: SQSClient,
        queue: str,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Look the queue up.

        Args:
            client: an SQS client.
            queue: the queue's name; of a FIFO queue it ends in `.fifo`.
            now_ms: milliseconds since 1970.
        """
        self._sender = QueueSender(client, client.get_queue_url(QueueName=queue)["QueueUrl"], target="requests queue")
        self._ordered = queue.endswith(".fifo")
        self._now_ms = now_ms

    def accept(
        self, model: str, records: Sequence[Mapping[str, Any]], keys: Sequence[str | None] | None, *, deadline: float
    ) -> list[dict[str, Any]]:
        """Hand records to the stream door.

        Args:
            model: whose they are.
            records: as they came.
            keys: their own, where they have some.
            deadline: on the monotonic clock.

        Returns:
            For each record its prediction as it stands: pending, or rejected because the queue did not take it.

        Raises:
            Malformed: a record is no object, or holds a number that JSON's readers would not agree on.
            StorageUnavailable: the queue took none.
        """
        now_ms = self._now_ms()
        names = keys or [None] * len(records)
        pending = [
            {"id": mint(now_ms), "model": model, "status": PENDING} | ({"key": key} if key else {}) for key in names
        ]
        bodies = [
            _body(i, found, now_ms, record) for i, (found, record) in enumerate(zip(pending, records, strict=True))
        ]
        due = [i for i, body in enumerate(bodies) if len(body) <= BYTES_PER_CALL]
        unsent = self._send([pending[i] for i in due], [bodies[i] for i in due], deadline)
        if len(unsent) == len(bodies):
            message = f"records: want one of {len(bodies)} taken, got {next(iter(unsent.values()))}"
            raise StorageUnavailable(message)
        for i, body in enumerate(bodies):
            if len(body) > BYTES_PER_CALL:
                size = f"record: want at most {BYTES_PER_CALL} bytes as a message, got {len(body)}"
                pending[i] |= {"status": "rejected", "code": TooLarge.code, "message": size}
        for position, reason in unsent.items():
            refused = {"status": "rejected", "code": StorageUnavailable.code, "message": reason}
            pending[due[position]] |= refused
        return pending

    def _send(self, pending: Sequence[Mapping[str, Any]], bodies: Sequence[bytes], deadline: float) -> dict[int, str]:
        if not self._ordered:
            return self._sender.send(bodies, deadline=deadline)
        return self._sender.send_in_order(bodies, deadline=deadline, more=[_order(found) for found in pending])


def _body(position: int, found: Mapping[str, Any], now_ms: int, record: object) -> bytes:
    if not isinstance(record, dict):
        message = f"record {position}: want an object of features, got a JSON {type(record).__name__}"
        raise Malformed(message)
    try:
        return strict_json.dumps({**{name: found[name] for name in ("model", "id")}, "at": now_ms, "record": record})
    except TypeError as error:
        message = f"record {position}: want numbers of 64 bits, and at most 250 levels of nesting, got {error}"
        raise Malformed(message) from error


def _order(found: Mapping[str, Any]) -> dict[str, str]:
    """In a FIFO queue, what happens to one key stays in order."""
    identity = str(found["id"])
    return {"MessageGroupId": fifo_group(str(found.get("key") or identity)), "MessageDeduplicationId": identity}


def fifo_group(key: str) -> str:
    """A key as the name of a message group.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html: 128 plain characters.
    """
    return key if re.fullmatch(r"[!-~]{1,128}", key) else uuid.uuid5(uuid.NAMESPACE_OID, key).hex
