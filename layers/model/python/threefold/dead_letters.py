"""Messages that are given up: copied to the dead-letter queue with the identity that they came with, and the reason."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

from threefold.protocols.message import ORIGINAL_AT, ORIGINAL_ID, REASON
from threefold.queues import QueueSender

if TYPE_CHECKING:
    from collections.abc import Mapping

    from threefold.deliveries import Delivery

# A message is given up at the receive of this number, if it fails once more.
RECEIVES: Final = 10
_MAXIMUM_REASON: Final = 1_000
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html: characters of XML 1.0.
_FORBIDDEN: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class DeadLetters(QueueSender):
    """The dead-letter queue, as one that gives messages up sees it.

    SQS moves what was received too often by itself, but without a reason, and under an id and time that another move
    changes.
    """

    def give_up(self, delivery: Delivery, reason: str, *, deadline: float) -> bool:
        """Copy a message; whoever gives it up may then delete it.

        Args:
            delivery: the message.
            reason: what its last try failed with.
            deadline: on the monotonic clock.

        Returns:
            Whether the copy is there.
        """
        more = [_about(delivery, reason)]
        return not self.send([delivery.text.encode()], deadline=deadline, more=more)


def _about(delivery: Delivery, reason: str) -> Mapping[str, Any]:
    """The attributes, and in a FIFO queue the group and what tells the copy from others."""
    identity, at_ms = delivery.identity
    texts = {
        ORIGINAL_ID: _FORBIDDEN.sub("?", identity),
        ORIGINAL_AT: str(at_ms),
        REASON: _FORBIDDEN.sub("?", reason)[:_MAXIMUM_REASON] or "unknown",
    }
    found: dict[str, Any] = {
        "MessageAttributes": {name: {"DataType": "String", "StringValue": text} for name, text in texts.items()}
    }
    if delivery.group is not None:
        found["MessageGroupId"] = delivery.group
        name = f"{delivery.message_id}#{delivery.receives}"
        found["MessageDeduplicationId"] = hashlib.sha256(name.encode()).hexdigest()
    return found
