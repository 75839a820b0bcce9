"""Messages as SQS delivers them: which are tried together, which alone, and which wait for others."""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from threefold.protocols import message as protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from threefold.errors import ThreefoldError
    from threefold.outcomes import Place
    from threefold.protocols.message import Message

# Received more often than this, a message may be what ends the function each time.
SUSPECT_RECEIVES: Final = 3


class Delivery:
    """One message on its way to an outcome.

    Attributes:
        message_id: by which SQS knows it.
        receives: how often it was received, this time included.
        tries: how often it was tried, this time included; in a FIFO queue it may only have waited for others.
        group: its message group, in a FIFO queue. In other queues a group orders nothing.
        message: what its body says; None if it cannot be read.
        outcome: what became of it.
        place: where its outcome stands in the predictions table; None if nowhere.
        stored: whether it stands there.
        encoded: the outcome as it is sent; empty if it is still to be encoded.
    """

    __slots__ = (
        "_record",
        "encoded",
        "group",
        "message",
        "message_id",
        "outcome",
        "place",
        "receives",
        "stored",
        "tries",
    )

    # Measured: a dataclass that reads all of a record takes three times as long, and most of it is asked for once.
    def __init__(self, record: Mapping[str, Any]) -> None:
        """Take one of the `Records` of a Lambda event.

        https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html
        """
        attributes = record["attributes"]
        self._record = record
        self.message_id: str = record["messageId"]
        self.receives = int(attributes["ApproximateReceiveCount"])
        group = attributes.get("MessageGroupId")
        self.group: str | None = group if group is not None and record["eventSourceARN"].endswith(".fifo") else None
        self.tries = self.receives if self.group is None else min(self.receives, SUSPECT_RECEIVES)
        self.message: Message | None = None
        self.outcome: dict[str, Any] | None = None
        self.place: Place | None = None
        self.stored = False
        self.encoded = b""

    @property
    def text(self) -> str:
        """Its body."""
        text: str = self._record["body"]
        return text

    @property
    def handle(self) -> str:
        """By which it is deleted."""
        handle: str = self._record["receiptHandle"]
        return handle

    @property
    def identity(self) -> tuple[str, int]:
        """Its id and time, as far as they are known before its body is read."""
        return protocol.identity(self._record)

    @property
    def again(self) -> bool:
        """Whether it may have its outcome: delivered before, moved back from the dead-letter queue, or sent before.

        A producer that names its message may send it again: whoever got no answer to a send does.
        """
        return (
            self.receives > 1 or (self.message is not None and self.message.named) or protocol.was_moved(self._record)
        )

    @property
    def suspect(self) -> bool:
        """Whether it may be what ends the function."""
        return self.receives > SUSPECT_RECEIVES

    def let_go(self) -> None:
        """Drop what was scored. Measured: it is freed twice as fast while it is in the processor's caches."""
        if self.message is not None:
            self.message.record = self.message.tensors = None

    def rejection(self, error: ThreefoldError) -> dict[str, Any]:
        """An error outcome: permanent, so that a retry could not change it."""
        return self.envelope("rejected", code=error.code, message=str(error))

    def envelope(self, status: str, **more: str) -> dict[str, Any]:
        """An outcome that no model gave."""
        message = self.message
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        outcome = {
            "id": message.id if message else self.identity[0],
            "model": message.model if message else None,
            "key": message.key if message else None,
            "status": status,
            **more,
            "at": at,
        }
        return {name: value for name, value in outcome.items() if value is not None}

    def order(self) -> dict[str, str]:
        """What a FIFO queue asks of its outcome: the group, and what it is known by for five minutes."""
        outcome = self.outcome or {}
        name = "#".join(str(outcome.get(part)) for part in ("model", "id", "status", "code"))
        return {
            "MessageGroupId": str(self.group),
            "MessageDeduplicationId": hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest(),
        }


def rounds(deliveries: Sequence[Delivery]) -> Iterator[list[Delivery]]:
    """What is tried together: first all that nothing speaks against, then each suspect alone.

    Suspects come in another order each time, so that one that ends the function does not keep the same ones from their
    turn; but in a message group everything stays in its order, and after a suspect each comes alone.
    """
    together: list[Delivery] = []
    alone: list[Delivery] = []
    waiting: set[str] = set()
    for delivery in deliveries:
        if delivery.suspect or delivery.group in waiting:
            alone.append(delivery)
            if delivery.group is not None:
                waiting.add(delivery.group)
        else:
            together.append(delivery)
    if together or not deliveries:
        yield together
    if not waiting:
        random.shuffle(alone)
    yield from ([delivery] for delivery in alone)


def followers(deliveries: Sequence[Delivery], failed: Iterable[str]) -> Iterator[Delivery]:
    """Those that come after a failed one of their message group: they must wait for it.

    Args:
        deliveries: in their order.
        failed: the ids of those that go back to the queue.
    """
    gone, stopped = {*failed}, set[str]()
    for delivery in deliveries:
        if delivery.group is None:
            continue
        if delivery.message_id in gone:
            stopped.add(delivery.group)
        elif delivery.group in stopped:
            yield delivery
