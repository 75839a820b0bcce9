"""The messages that the stream door gave up: read, sent again under their first identity, or deleted."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from threefold.protocols.message import ORIGINAL_AT, ORIGINAL_ID, REASON
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# So long nobody else sees what is in our hands; whoever does not put it back in time shows it again.
_VISIBILITY_SECONDS: Final = 300
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


class DeadLetterQueue:
    """The dead-letter queue, and the requests queue that it is sent back to. What is read goes back, unless it is."""

    def __init__(self, sqs: Any, queue_url: str, requests_url: str) -> None:  # noqa: ANN401 - a client
        """Make a reader.

        Args:
            sqs: an SQS client.
            queue_url: of the dead-letter queue.
            requests_url: of the queue that the stream door reads.
        """
        self._sqs = sqs
        self._queue_url = queue_url
        self._requests_url = requests_url
        self._held: dict[str, str] = {}

    def read(self) -> Iterator[DeadLetter]:
        """All that is there, each once; nobody else sees it until `put_back`."""
        seen: set[str] = set()
        while True:
            answer = self._sqs.receive_message(
                QueueUrl=self._queue_url,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=1,
                VisibilityTimeout=_VISIBILITY_SECONDS,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )
            fresh = [message for message in answer.get("Messages", []) if message["MessageId"] not in seen]
            # So many that the first ones are visible again by now: that is all.
            if not fresh:
                return
            for message in fresh:
                seen.add(message["MessageId"])
                self._held[message["ReceiptHandle"]] = message["MessageId"]
                yield _read(message)

    def redrive(self, letter: DeadLetter) -> None:
        """Send a message to the requests queue once more, and delete it here when that has it.

        Raises:
            OperatorError: SQS did not take it.
        """
        attributes = {
            name: {"DataType": "String", "StringValue": text} for name, text in letter.attributes.items() if text
        }
        order = {}
        if letter.group is not None:
            # By its content, a FIFO queue would take it for what it had five minutes ago.
            order = {"MessageGroupId": letter.group, "MessageDeduplicationId": uuid.uuid4().hex}
        try:
            self._sqs.send_message(
                QueueUrl=self._requests_url, MessageBody=letter.body, MessageAttributes=attributes, **order
            )
        except ClientError as error:
            raise OperatorError(f"message {letter.id}: want the requests queue to take it, got {error}") from error
        self.delete(letter)

    def delete(self, letter: DeadLetter) -> None:
        """Forget a message for good."""
        self._sqs.delete_message(QueueUrl=self._queue_url, ReceiptHandle=letter.handle)
        self._held.pop(letter.handle, None)

    def put_back(self) -> None:
        """Let others see what was read and is still there."""
        for handle in self._held:
            with contextlib.suppress(ClientError):  # shown again by now: it has been in our hands for long
                self._sqs.change_message_visibility(QueueUrl=self._queue_url, ReceiptHandle=handle, VisibilityTimeout=0)
        self._held = {}


def chosen(letters: Iterable[DeadLetter], wanted: Iterable[str], model: str | None) -> list[DeadLetter]:
    """Some of the messages: those with an id that begins so, or all of a model, or all.

    Raises:
        OperatorError: an id that none has.
    """
    found = [letter for letter in letters if model is None or letter.model == model]
    names = list(wanted)
    if not names:
        return found
    if missing := [name for name in names if not any(letter.id.startswith(name) for letter in found)]:
        raise OperatorError(f"dead letters: want ids of messages that are there, got {missing}")
    return [letter for letter in found if any(letter.id.startswith(name) for name in names)]


def _read(message: dict[str, Any]) -> DeadLetter:
    said = {name: each.get("StringValue", "") for name, each in (message.get("MessageAttributes") or {}).items()}
    system = message.get("Attributes") or {}
    identity = said.get(ORIGINAL_ID) or message["MessageId"]
    at_ms = said.get(ORIGINAL_AT) or system.get("SentTimestamp", "0")
    at = datetime.fromtimestamp((int(at_ms) if re.fullmatch(r"[0-9]{1,14}", at_ms) else 0) / 1000, UTC)
    try:
        document = json.loads(message["Body"])
    except ValueError:
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
