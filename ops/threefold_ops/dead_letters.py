"""The messages that the stream door gave up: read, sent again under their first identity, or deleted."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from threefold.protocols.message import ORIGINAL_AT, ORIGINAL_ID, REASON
from threefold_ops.errors import OperatorError
from threefold_ops.held_queue import HeldQueue

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_UNSAID: Final = "none was said: its function ended each time, or SQS moved it; the stream function's log has more"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message that was given up.

    Attributes:
        id: its identity: its body's, or the one under which SQS first knew it.
        model: whose it is, as far as its body can be read.
        at: when it was first sent.
        reason: what its last try failed with.
        body: as it was sent.
        attributes: that a redrive gives it: its first identity.
        group: its message group, in a FIFO queue.
        handle: by which the queue knows it.
    """

    id: str
    model: str
    at: str
    reason: str
    body: str
    attributes: dict[str, str]
    group: str | None
    handle: str

    def to_json(self) -> dict[str, Any]:
        """As `threefold dlq` prints it."""
        found = {"id": self.id, "model": self.model, "at": self.at, "reason": self.reason, "group": self.group}
        return {**found, "body": self.body}


class DeadLetterQueue(HeldQueue):
    """The dead-letter queue, and the requests queue that it is sent back to. What is read goes back, unless it is."""

    def __init__(self, sqs: Any, queue_url: str, requests_url: str) -> None:  # noqa: ANN401 - a client
        """Make a reader.

        Args:
            sqs: an SQS client.
            queue_url: of the dead-letter queue.
            requests_url: of the queue that the stream door reads.
        """
        super().__init__(sqs, queue_url)
        self._requests_url = requests_url

    def read(self) -> Iterator[DeadLetter]:
        """All that is there."""
        return map(_read, self.messages())

    def redrive(self, letter: DeadLetter) -> None:
        """Send a message to the requests queue once more, and delete it here when that has it.

        Raises:
            OperatorError: SQS did not take it.
        """
        attributes = {
            name: {"DataType": "String", "StringValue": text} for name, text in letter.attributes.items() if text
        }
        order = {}
        if letter.group is not None and self._requests_url.endswith(".fifo"):
            # By its content, a FIFO queue would take it for what it had five minutes ago.
            order = {"MessageGroupId": letter.group, "MessageDeduplicationId": uuid.uuid4().hex}
        try:
            self._sqs.send_message(
                QueueUrl=self._requests_url, MessageBody=letter.body, MessageAttributes=attributes, **order
            )
        except ClientError as error:
            raise OperatorError(f"message {letter.id}: want the requests queue to take it, got {error}") from error
        self.remove(letter.handle)


def chosen(letters: Iterable[DeadLetter], wanted: Iterable[str], model: str | None) -> list[DeadLetter]:
    """Some of the messages: those with an id, or with one that begins so if none is that; all of a model; or all.

    Raises:
        OperatorError: an id that none has.
    """
    found = [letter for letter in letters if model is None or letter.model == model]
    names = list(wanted)
    if not names:
        return found
    ids = {letter.id for letter in found}
    meant = {name: {name} & ids or {one for one in ids if one.startswith(name)} for name in names}
    if missing := [name for name in names if not meant[name]]:
        raise OperatorError(f"dead letters: want ids of messages that are there, got {missing}")
    return [letter for letter in found if any(letter.id in some for some in meant.values())]


def _read(message: dict[str, Any]) -> DeadLetter:
    said = {name: each.get("StringValue", "") for name, each in (message.get("MessageAttributes") or {}).items()}
    system = message.get("Attributes") or {}
    identity = said.get(ORIGINAL_ID) or message["MessageId"]
    at_ms = said.get(ORIGINAL_AT) or system.get("SentTimestamp", "0")
    at = datetime.fromtimestamp((int(at_ms) if re.fullmatch(r"[0-9]{1,14}", at_ms) else 0) / 1000, UTC)
    try:
        document = json.loads(message["Body"])
    except (ValueError, RecursionError):
        document = None
    own = document if isinstance(document, dict) else {}
    return DeadLetter(
        id=str(own.get("id") or identity),
        model=str(own.get("model") or "?"),
        at=at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        reason=said.get(REASON) or _UNSAID,
        body=message["Body"],
        attributes={ORIGINAL_ID: identity, ORIGINAL_AT: at_ms},
        group=system.get("MessageGroupId"),
        handle=message["ReceiptHandle"],
    )
