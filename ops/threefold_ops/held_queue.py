"""A queue that an operator reads through: each message once, and back where it was unless it was dealt with."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from collections.abc import Iterator

# So long nobody else sees what is in our hands; whoever does not put it back in time shows it again.
_VISIBILITY_SECONDS: Final = 300


class HeldQueue:
    """The messages of a queue, held while somebody looks at them."""

    def __init__(self, sqs: Any, queue_url: str) -> None:  # noqa: ANN401 - boto3 makes its clients at run time
        """Make a reader of a queue."""
        self._sqs = sqs
        self._queue_url = queue_url
        self._handles: set[str] = set()

    def messages(self) -> Iterator[dict[str, Any]]:
        """All that is there, each once, with its attributes; nobody else sees it until `put_back`."""
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
                self._handles.add(message["ReceiptHandle"])
                yield message

    def remove(self, handle: str) -> None:
        """Delete a message for good."""
        self._sqs.delete_message(QueueUrl=self._queue_url, ReceiptHandle=handle)
        self._handles.discard(handle)

    def put_back(self) -> None:
        """Let others see what was read and is still there."""
        for handle in self._handles:
            with contextlib.suppress(ClientError):  # shown again by now: it has been in our hands for long
                self._sqs.change_message_visibility(QueueUrl=self._queue_url, ReceiptHandle=handle, VisibilityTimeout=0)
        self._handles = set()
