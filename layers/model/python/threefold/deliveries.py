"""Messages as SQS delivers them: which are tried together, which alone, and which wait for others."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from dataclasses import dataclass
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


@dataclass(slots=True)
class Delivery:
    """One message on its way to an outcome.

    Attributes:
        message_id: by which SQS knows it.
        handle: by which it is deleted.
        receives: how often it was received, this time included.
        group: its message group, in a FIFO queue.
        identity: id and time, as far as they are known before its body is read.
        text: its body.
        message: what its body says; None if it cannot be read.
        outcome: what became of it.
        place: where its outcome stands in the predictions table; None if nowhere.
        stored: whether it stands there.
        encoded: the outcome as it is sent; empty if it is still to be encoded.
    """

    message_id: str
    handle: str
    receives: int
    group: str | None
    moved: bool
    identity: tuple[str, int]
    text: str
    message: Message | None = None
    outcome: dict[str, Any] | None = None
    place: Place | None = None
    stored: bool = False
    encoded: bytes = b""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Delivery:
        """Read one of the `Records` of a Lambda event, but for its body.

        https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html
        """
        attributes = record["attributes"]
        return cls(
            message_id=record["messageId"],
            handle=record.get("receiptHandle", ""),
            receives=int(attributes["ApproximateReceiveCount"]),
            group=attributes.get("MessageGroupId"),
            moved=protocol.was_moved(record),
            identity=protocol.identity(record),
            text=record["body"],
        )

    @property
    def again(self) -> bool:
        """Whether it may have its outcome: delivered before, moved back from the dead-letter queue, or sent before.

        A producer that names its message may send it again: whoever got no answer to a send does.
        """
        return self.receives > 1 or self.moved or (self.message is not None and self.message.named)

    @property
    def suspect(self) -> bool:
        """Whether it may be what ends the function."""
        return self.receives > SUSPECT_RECEIVES

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
        name = f"{outcome.get('model')}#{outcome.get('id')}#{outcome.get('status')}"
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


def by_group(deliveries: Sequence[Delivery]) -> list[list[int]]:
    """The positions of each message group's deliveries, in their order."""
    found: defaultdict[str | None, list[int]] = defaultdict(list)
    for i, delivery in enumerate(deliveries):
        found[delivery.group].append(i)
    return list(found.values())
