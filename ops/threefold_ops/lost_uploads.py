"""Uploads that could not be planned: the events that Lambda gave up, and how they are sent once more."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_plus

from threefold_ops.errors import OperatorError
from threefold_ops.held_queue import HeldQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class LostUploads(HeldQueue):
    """The queue of them. What is read goes back, unless it is sent again."""

    def read(self) -> list[Lost]:
        """All that is there, the oldest first."""
        return sorted(map(_read, self.messages()), key=lambda lost: lost.at)

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
        self.remove(lost.handle)


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
