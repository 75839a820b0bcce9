"""Uploads that could not be planned: the events that Lambda gave up, and how they are sent once more."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_plus

from botocore.exceptions import ClientError

from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Nobody else reads the queue; this long it shows nobody what is in our hands.
_VISIBILITY_SECONDS: Final = 120
_ACCEPTED: Final = 202


@dataclass(frozen=True, slots=True)
class Lost:
    """One event that Lambda gave up.

    Attributes:
        at: when, as Lambda says it.
        what: what it was about: the keys of uploads, or what else the function was called for.
        reason: what its last try failed with.
        event: the function's event; None of a message that is not Lambda's.
        handle: by which the queue knows the message.
    """

    at: str
    what: Sequence[str]
    reason: str
    event: dict[str, Any] | None
    handle: str


class LostUploads:
    """The queue of them. What is read goes back, unless it is sent again."""

    def __init__(self, sqs: Any, queue_url: str) -> None:  # noqa: ANN401 - boto3 makes its clients at run time
        """Make a reader of a queue."""
        self._sqs = sqs
        self._queue_url = queue_url
        self._held: dict[str, Lost] = {}

    def read(self) -> list[Lost]:
        """All that is there, the oldest first; nobody else sees it until `put_back`."""
        while True:
            answer = self._sqs.receive_message(
                QueueUrl=self._queue_url,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=1,
                VisibilityTimeout=_VISIBILITY_SECONDS,
            )
            messages = {one["MessageId"]: _read(one) for one in answer.get("Messages", [])}
            # So many that the first ones are visible again by now: that is all.
            if not messages.keys() - self._held.keys():
                self._held |= messages
                return sorted(self._held.values(), key=lambda lost: lost.at)
            self._held |= messages

    def redrive(self, lost: Lost, functions: Any, function: str, qualifier: str) -> None:  # noqa: ANN401 - a client
        """Send an event to its function once more, and forget the message when Lambda has taken it.

        Args:
            lost: what `read` gave, with an event.
            functions: a Lambda client.
            function: the function's name.
            qualifier: its alias.

        Raises:
            OperatorError: Lambda did not take it.
        """
        answer = functions.invoke(
            FunctionName=function,
            Qualifier=qualifier,
            InvocationType="Event",
            Payload=json.dumps(lost.event).encode(),
        )
        if answer["StatusCode"] != _ACCEPTED:
            raise OperatorError(f"{', '.join(lost.what)}: want Lambda to take it, got status {answer['StatusCode']}")
        self._sqs.delete_message(QueueUrl=self._queue_url, ReceiptHandle=lost.handle)
        self._held = {name: one for name, one in self._held.items() if one.handle != lost.handle}

    def put_back(self) -> None:
        """Let others see what was read and is still there."""
        for lost in self._held.values():
            with contextlib.suppress(ClientError):  # shown again by now: it has been in our hands for long
                self._sqs.change_message_visibility(
                    QueueUrl=self._queue_url, ReceiptHandle=lost.handle, VisibilityTimeout=0
                )
        self._held = {}


def _read(message: dict[str, Any]) -> Lost:
    """A record of https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html."""
    try:
        record = json.loads(message["Body"])
        event = record["requestPayload"]
        answer = record.get("responsePayload") or {}
        kind, said = answer.get("errorType"), answer.get("errorMessage") or record["requestContext"]["condition"]
        reason = f"{kind}: {said}" if kind else str(said)
        return Lost(str(record["timestamp"]), _about(event), reason, event, message["ReceiptHandle"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return Lost("", ["unknown"], "not an event that Lambda gave up", None, message["ReceiptHandle"])


def _about(event: dict[str, Any]) -> list[str]:
    if "Records" in event:
        return [unquote_plus(record["s3"]["object"]["key"]) for record in event["Records"]]
    return [str(event.get("action") or f"{event['detail-type']}: {event['detail']['name']}")]
