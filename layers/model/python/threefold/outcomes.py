"""The predictions table: outcomes under keys that a retry lands on again."""

from __future__ import annotations

import hashlib
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from botocore.exceptions import ClientError

from threefold import strict_json
from threefold.errors import StorageUnavailable
from threefold.names import LOOKUP_INDEX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

    from threefold.pacing import Pacer

T = TypeVar("T")
Item = dict[str, Any]
Key = tuple[str, str]

# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchWriteItem.html and API_BatchGetItem.html
WRITES_PER_CALL: Final = 25
READS_PER_CALL: Final = 100
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html: 400 KB is the most; what an item
# of this size leaves is for what sizes leave out.
MAXIMUM_ITEM_BYTES: Final = 350 * 1024
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/read-write-operations.html: a write unit is 1 KB.
UNIT_BYTES: Final = 1024
# What of an item is no part of its outcome. The index's key is <model>#<id>, of what stands under another key.
OWN_ATTRIBUTES: Final = frozenset({"pk", "sk", "expires", LOOKUP_INDEX})
# What of a large outcome makes it large.
_LARGE_FIELD_BYTES: Final = 8 * 1024
_NEVER_LEFT_OUT: Final = frozenset({"pk", "sk", "key", "status", "code", "message"})
# DynamoDB's numbers hold 38 digits between these magnitudes.
_LEAST, _MOST = 1e-130, 9.9e125
_LEAST_INTEGER, _MOST_INTEGER = -(2**63), 2**64 - 1
_THROTTLED: Final = frozenset({"ProvisionedThroughputExceededException", "RequestLimitExceeded", "ThrottlingException"})
# A partition key holds 2,048 bytes; beyond this a record's key is cut and told apart by its hash.
_KEY_BYTES: Final = 512
_FIRST_WAIT_SECONDS: Final = 0.05
_LONGEST_WAIT_SECONDS: Final = 2.0


@dataclass(slots=True)
class Place:
    """Where an outcome stands: the same for every try at the same record.

    Attributes:
        key: the record's own key, or its prediction id where it has none.
        at_ms: the record's time, milliseconds since 1970.
        source: what tells two records of one key and time apart: a message id, or a job and row.
    """

    model: str
    key: str
    at_ms: int
    source: str

    @property
    def pk(self) -> str:
        """The partition key."""
        return f"{self.model}#{capped(self.key)}"

    @property
    def sk(self) -> str:
        """The sort key: by time first, in fixed width, so that the newest is one descending query."""
        return f"{self.at_ms:014d}#{self.source}"


class OutcomeTable:
    """Writes outcomes in batches and reads them back."""

    def __init__(  # noqa: PLR0913 - its collaborators, each by name
        self,
        client: DynamoDBClient,
        table: str,
        *,
        ttl_days: int,
        threads: int = 4,
        sleep: Callable[[float], None] = time.sleep,
        pacer: Pacer | None = None,
    ) -> None:
        """Make a table.

        Args:
            client: a DynamoDB client; parameter validation may be off, for items are typed here.
            table: the table's name.
            ttl_days: how long an outcome stays.
            threads: calls in flight at a time.
            sleep: waits between tries.
            pacer: gives out write units; without one as many are written as the table takes.
        """
        self._client = client
        self._table = table
        self._ttl_seconds = ttl_days * 86_400
        self._threads = threads
        self._sleep = sleep
        self._pacer = pacer

    def item(self, place: Place, prediction: Mapping[str, Any], *, now_ms: int) -> Item:
        """An outcome as DynamoDB takes it: one of `Outcomes.predictions()`, typed."""
        # Measured: most values are texts, and to ask for that here takes half the time.
        item = {
            name: {"S": value} if type(value) is str else to_attribute(value)
            for name, value in prediction.items()
            if value is not None
        }
        item["pk"] = {"S": place.pk}
        item["sk"] = {"S": place.sk}
        item["expires"] = {"N": str(now_ms // 1000 + self._ttl_seconds)}
        return item

    def write(self, items: Iterable[Item], *, deadline: float) -> list[Key]:
        """Write items; what DynamoDB leaves unprocessed is tried again until the deadline.

        Args:
            items: distinct or not: of two with one key, the first is written.
            deadline: on the monotonic clock.

        Returns:
            The keys of the items that could not be written in time, or not at all.
        """
        distinct: dict[Key, Item] = {}
        for item in items:
            distinct.setdefault((item["pk"]["S"], item["sk"]["S"]), item)
        batches = list(_batches(list(distinct.values()), WRITES_PER_CALL))
        if len(batches) <= 1:
            return [key for batch in batches for key in self._write_batch(batch, deadline)]
        with ThreadPoolExecutor(self._threads) as pool:
            return [key for left in pool.map(lambda batch: self._write_batch(batch, deadline), batches) for key in left]

    def find(self, places: Sequence[Place]) -> dict[Key, dict[str, Any]]:
        """The outcomes that stand at some places already, by (pk, sk).

        Raises:
            StorageUnavailable: the table left some of the keys unread.
        """
        found: dict[Key, dict[str, Any]] = {}
        now = time.time()
        wanted = [{"pk": {"S": place.pk}, "sk": {"S": place.sk}} for place in places]
        distinct = list({(key["pk"]["S"], key["sk"]["S"]): key for key in wanted}.values())
        for keys in _batches(distinct, READS_PER_CALL):
            request: Any = {self._table: {"Keys": keys, "ConsistentRead": True}}
            for wait in _waits():
                response = self._client.batch_get_item(RequestItems=request)
                for item in response.get("Responses", {}).get(self._table, []):
                    # DynamoDB deletes expired items within days, not at once.
                    if from_attribute(item["expires"]) > now:
                        found[_key(item)] = outcome_of(item)
                request = response.get("UnprocessedKeys")
                if not request:
                    break
                self._sleep(wait)
            else:
                message = f"predictions table: want all of {len(keys)} keys read, got some unprocessed"
                raise StorageUnavailable(message)
        return found

    def count_try(self, message_id: str) -> int:
        """Note that a message is tried, before it is; the note outlasts what ends the function meanwhile.

        Args:
            message_id: by which the queue knows it.

        Returns:
            How often it was, this time included.
        """
        # No model's name begins so.
        key = {"pk": {"S": f"~message#{message_id}"}, "sk": {"S": "tries"}}
        expires = int(time.time()) + self._ttl_seconds
        found = self._client.update_item(
            TableName=self._table,
            Key=key,
            UpdateExpression="ADD tries :one SET expires = :expires",
            ExpressionAttributeValues={":one": {"N": "1"}, ":expires": {"N": str(expires)}},
            ReturnValues="UPDATED_NEW",
        )
        return int(found["Attributes"]["tries"]["N"])

    def _write_alone(self, batch: Sequence[Item], deadline: float) -> list[Key]:
        """One item that DynamoDB refuses, as one of more than 400 KB, does not keep the others out."""
        if len(batch) == 1:
            return [_key(batch[0])]
        return [key for item in batch for key in self._write_batch([item], deadline)]

    def _write_batch(self, batch: Sequence[Item], deadline: float) -> list[Key]:
        requests: Any = {self._table: [{"PutRequest": {"Item": item}} for item in batch]}
        wait = _FIRST_WAIT_SECONDS
        if self._pacer is not None:
            units = sum(-(-item_bytes(item) // UNIT_BYTES) for item in batch)
            if not self._pacer.take(units, deadline=deadline):
                return [_key(item) for item in batch]
        while True:
            try:
                requests = self._client.batch_write_item(RequestItems=requests).get("UnprocessedItems")
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code == "ValidationException":
                    return self._write_alone(batch, deadline)
                if code not in _THROTTLED:
                    raise
            if not requests:
                return []
            if time.monotonic() + wait > deadline:
                return [_key(request["PutRequest"]["Item"]) for request in requests[self._table]]
            self._sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)


def outcome_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome that an item holds, without what is the table's own."""
    return {name: from_attribute(value) for name, value in item.items() if name not in OWN_ATTRIBUTES}


def item_bytes(item: Item) -> int:
    """How large an item is, as DynamoDB counts, within some bytes a value."""
    size = 0
    for name, attribute in item.items():
        text = attribute.get("S")
        size += len(name) + (len(text) if text is not None and text.isascii() else attribute_bytes(attribute))
    return size


def attribute_bytes(attribute: Mapping[str, Any]) -> int:
    """How large an attribute's value is; numbers by their text, which is no smaller."""
    ((kind, value),) = attribute.items()
    if kind in {"S", "N"}:
        return len(value) if value.isascii() else len(value.encode())
    if kind == "M":
        return 3 + sum(len(name.encode()) + 1 + attribute_bytes(part) for name, part in value.items())
    return 3 + sum(1 + attribute_bytes(part) for part in value) if kind == "L" else 1


def lighten(item: Item, pointer: str) -> list[str]:
    """Leave out of an item what makes it too large, and say where it stands.

    Args:
        item: it is changed.
        pointer: the key of the object that holds the whole outcome.

    Returns:
        The names of what was left out.
    """
    heavy = [name for name in item if name not in _NEVER_LEFT_OUT and attribute_bytes(item[name]) > _LARGE_FIELD_BYTES]
    for name in heavy:
        del item[name]
    item["pointer"] = {"S": pointer}
    return heavy


def whole(outcome: Mapping[str, Any], client: S3Client, bucket: str) -> dict[str, Any]:
    """An outcome as it was, where a part of it was too large for the table.

    Args:
        outcome: as the table has it.
        client: an S3 client.
        bucket: where large outcomes stand.
    """
    values = {name: value for name, value in outcome.items() if name != "pointer"}
    if (pointer := outcome.get("pointer")) is None:
        return values
    large: dict[str, Any] = strict_json.loads(client.get_object(Bucket=bucket, Key=pointer)["Body"].read())
    return values | large


def _key(item: Mapping[str, Any]) -> Key:
    return item["pk"]["S"], item["sk"]["S"]


def milliseconds(at: str) -> int:
    """An ISO 8601 time in UTC as milliseconds since 1970."""
    moment = datetime.fromisoformat(at)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def to_attribute(value: Any) -> dict[str, Any]:  # noqa: ANN401, PLR0911 - JSON and numpy's scalars
    """A JSON value as a DynamoDB attribute; floats by their shortest text, non-finite ones as strings."""
    if isinstance(value, str):
        return {"S": value}
    if isinstance(value, bool | np.bool_):
        return {"BOOL": bool(value)}
    if isinstance(value, int | np.integer):
        return {"N": str(value)}
    if isinstance(value, float | np.floating):
        return _number(value)
    if value is None:
        return {"NULL": True}
    if isinstance(value, dict):
        return {"M": {str(name): to_attribute(part) for name, part in value.items()}}
    return {"L": [to_attribute(part) for part in value]}


def from_attribute(attribute: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """What `to_attribute` wrote, as JSON."""
    ((kind, value),) = attribute.items()
    if kind == "N":
        # DynamoDB writes 1e20 out in full: an integer wider than 64 bits was a float.
        whole = value.lstrip("-").isdigit() and _LEAST_INTEGER <= int(value) <= _MOST_INTEGER
        return int(value) if whole else float(value)
    if kind == "M":
        return {name: from_attribute(part) for name, part in value.items()}
    if kind == "L":
        return [from_attribute(part) for part in value]
    return None if kind == "NULL" else value


def _number(value: Any) -> dict[str, str]:  # noqa: ANN401 - a float of any width
    if not math.isfinite(value):
        return {"S": "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")}
    # As Python's float: the limits are beyond the range of numpy's narrower ones.
    if value != 0 and not _LEAST <= abs(float(value)) <= _MOST:
        return {"S": str(value)}
    return {"N": str(value)}


def capped(key: str) -> str:
    """A key that leaves room in a partition key: a long one is cut, and told apart by its hash."""
    encoded = key.encode()
    if len(encoded) <= _KEY_BYTES:
        return key
    return f"{encoded[:_KEY_BYTES].decode(errors='ignore')}~{hashlib.sha256(encoded).hexdigest()}"


def _waits() -> list[float]:
    return [min(_FIRST_WAIT_SECONDS * 2**i, _LONGEST_WAIT_SECONDS) for i in range(8)]


def _batches(things: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (things[start : start + size] for start in range(0, len(things), size))
