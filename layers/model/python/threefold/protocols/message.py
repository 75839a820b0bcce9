"""The SQS message: one record with its identity in, one outcome out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from threefold import strict_json
from threefold.errors import Malformed, ThreefoldError, shown
from threefold.protocols.open_inference import decode_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

# A redrive from the dead-letter queue changes MessageId and SentTimestamp: ours keeps the originals here.
ORIGINAL_ID: Final = "threefold-id"
ORIGINAL_AT: Final = "threefold-at"
# Beside a message that was given up: what its last try failed with.
REASON: Final = "threefold-reason"
# In bytes: it is part of a DynamoDB sort key, which holds 1,024.
MAXIMUM_ID: Final = 256
_MILLISECONDS: Final = re.compile(r"[0-9]{1,14}")


@dataclass(slots=True)
class Message:
    """One message of the requests queue.

    Attributes:
        id: its identity, the same at every delivery.
        at_ms: when its producer says it happened, milliseconds since 1970.
        record: named features, or None where `tensors` is there.
        tensors: raw tensors, or None where `record` is there.
        problem: why there is neither, although the message says whose it is.
        expires_ms: after which nobody wants its outcome any more; None if it is never too late.
        named: whether its id is its producer's own, under which it may have been sent before.
    """

    id: str
    at_ms: int
    model: str
    key: str | None
    record: Mapping[str, Any] | None = None
    tensors: Mapping[str, npt.NDArray[Any]] | None = None
    problem: ThreefoldError | None = None
    expires_ms: int | None = None
    named: bool = False

    def group(self) -> tuple[Any, ...]:
        """What messages must share to be scored in one call: the model, and the form of their tensors."""
        if self.tensors is None:
            return (self.model,)
        return (self.model, *((name, array.dtype.str, array.shape[1:]) for name, array in sorted(self.tensors.items())))


def was_moved(record: Mapping[str, Any]) -> bool:
    """Whether a message came back from the dead-letter queue with its first identity kept beside it."""
    return ORIGINAL_ID in (record.get("messageAttributes") or ())


def identity(record: Mapping[str, Any]) -> tuple[str, int]:
    """What SQS knows of a message before its body is read: its id and time, the originals after a redrive.

    Args:
        record: one of the `Records` of a Lambda event.
    """
    attributes = record.get("messageAttributes")
    if not attributes:
        return record["messageId"], int(record["attributes"]["SentTimestamp"])
    original = attributes.get(ORIGINAL_ID, {}).get("stringValue")
    at = attributes.get(ORIGINAL_AT, {}).get("stringValue") or ""
    # Anybody can set attributes; what is no id or time there must not stop the batch.
    return (
        original if is_identifier(original) else record["messageId"],
        int(at if _MILLISECONDS.fullmatch(at) else record["attributes"]["SentTimestamp"]),
    )


def decode(body: str, fallback: tuple[str, int]) -> Message:
    """Read a message's body.

    Args:
        body: JSON: `{"model", "id"?, "at"?, "expires_at"?, "key"?, "record" | "inputs"}`.
        fallback: the identity where the body brings none.

    Raises:
        Malformed: it does not even say whose it is. What is wrong with the rest of it is the message's `problem`.
    """
    document = strict_json.loads(body)
    if not isinstance(document, dict):
        message = f"message: want an object, got a JSON {type(document).__name__}"
        raise Malformed(message)
    if not isinstance(model := document.get("model"), str):
        message = f"message: want a model's name, got {shown(model)}"
        raise Malformed(message)
    envelope = Message(*fallback, model, None)
    if "id" in document:
        envelope.id, envelope.named = _identifier(document["id"]), True
    try:
        if (key := document.get("key")) is not None:
            envelope.key = key if isinstance(key, str) else _key(key)
        if "at" in document:
            envelope.at_ms = _milliseconds("at", document["at"])
        if (expires := document.get("expires_at")) is not None:
            envelope.expires_ms = _milliseconds("expires_at", expires)
        record, inputs = document.get("record"), document.get("inputs")
        if inputs is None and isinstance(record, dict):
            envelope.record = record
        else:
            envelope.tensors = _tensors(record, inputs)
    except ThreefoldError as error:
        envelope.problem = error
    return envelope


def encode(prediction: dict[str, Any]) -> bytes:
    """Write an outcome for the predictions queue.

    Args:
        prediction: one of `Outcomes.predictions()`, or a rejection of its form.
    """
    envelope = {"id": prediction["id"], "model": prediction.get("model"), "key": prediction.get("key")}
    if prediction["status"] == "rejected":
        return strict_json.dumps({**envelope, "error": {name: prediction[name] for name in ("code", "message")}})
    return strict_json.dumps({**envelope, "prediction": prediction})


def _tensors(record: object, inputs: object) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a message that has no record."""
    if (record is None) == (inputs is None):
        message = "message: want one of record and inputs, got " + ("neither" if record is None else "both")
        raise Malformed(message)
    if record is not None:
        message = f"message: want a record that is an object, got {shown(record)}"
        raise Malformed(message)
    return decode_tensors(inputs)


def is_identifier(found: object) -> TypeGuard[str]:
    """Whether something may be a message's id."""
    return isinstance(found, str) and 0 < len(found.encode(errors="surrogatepass")) <= MAXIMUM_ID


def _identifier(found: object) -> str:
    """A producer's id for its message."""
    if not is_identifier(found):
        message = f"message: want an id of 1 to {MAXIMUM_ID} bytes, got {shown(found)}"
        raise Malformed(message)
    return found


def _key(found: object) -> str:
    """A record's own id that is no text."""
    if not isinstance(found, int):
        message = f"message: want a key that is text or a whole number, got {shown(found)}"
        raise Malformed(message)
    return str(found)


def _milliseconds(field: str, at: object) -> int:
    """A producer's time: ISO 8601 (without a zone: UTC), or milliseconds since 1970."""
    try:
        if isinstance(at, bool):
            raise TypeError  # noqa: TRY301 - True is no time
        if isinstance(at, int):
            moment = datetime.fromtimestamp(at / 1000, UTC)
        else:
            moment = datetime.fromisoformat(at)  # type: ignore[arg-type]
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1000)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        message = f"message: want {field} as ISO 8601 or as milliseconds, got {shown(at)}"
        raise Malformed(message) from error
