"""Chunks: record-aligned byte ranges of a file, how their rows ended, and the items that say so."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, fields
from typing import TYPE_CHECKING, Any

from threefold.items import Values, read_values, update

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mypy_boto3_dynamodb import DynamoDBClient

# A chunk's number, and that of a part of it.
PartId = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A record-aligned byte range of an object.

    Attributes:
        number: counted from 0.
        bucket: where the object is.
        key: its key.
        version: its version, if it is the upload itself.
        start: the first byte.
        end: the byte after the last one.
        row: the number of the first record, 1 for the first under the header.
        line: the number of the line that the range begins with.
        rows: how many records.
        part: 0 for a whole chunk; a worker that ran short of time hands the rest on as the next part.
    """

    number: int
    bucket: str
    key: str
    version: str | None
    start: int
    end: int
    row: int
    line: int
    rows: int
    part: int = 0

    @property
    def id(self) -> PartId:
        """What tells it from all others of its job."""
        return self.number, self.part

    def to_json(self) -> dict[str, Any]:
        """The chunk as the manifest lists it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Chunk:
        """Read what `to_json` wrote."""
        return cls(**document)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows ended how."""

    rows: int = 0
    predicted: int = 0
    abstained: int = 0
    rejected: int = 0
    held: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def of(cls, item: Mapping[str, Any] | None) -> Counts | None:
        """The counts in a chunk's item, if it has any; one of an earlier release counts no held rows."""
        if not item or "attempt" not in item:
            return None
        return cls(**{field.name: item.get(field.name, 0) for field in fields(cls)})

    @property
    def reconciled(self) -> bool:
        """Whether every row that was read has exactly one outcome."""
        return self.rows == self.predicted + self.abstained + self.held + self.rejected


class ChunkTable:
    """Keeps one item for each part of each chunk; the word of a later attempt holds against an earlier one's."""

    def __init__(self, client: DynamoDBClient, table: str, *, ttl_days: int) -> None:
        """Make a table.

        Args:
            client: a DynamoDB client; parameter validation may be off.
            table: the jobs table's name.
            ttl_days: how long an item stays.
        """
        self._client = client
        self._table = table
        self._ttl_seconds = ttl_days * 86_400

    def claim(self, job: str, part: PartId, now_ms: int) -> int:
        """Begin an attempt at a part.

        Returns:
            Its number, larger than that of any attempt before.
        """
        response = self._client.update_item(
            TableName=self._table,
            Key=_key(job, part),
            UpdateExpression="ADD attempts :one SET expires = :expires",
            ExpressionAttributeValues={":one": {"N": "1"}, ":expires": {"N": str(now_ms // 1000 + self._ttl_seconds)}},
            ReturnValues="UPDATED_NEW",
        )
        return int(response["Attributes"]["attempts"]["N"])

    def put(
        self, job: str, part: PartId, attempt: int, values: Mapping[str, object], *, spent: Mapping[str, int]
    ) -> bool:
        """Say how an attempt ended, unless a later one has said so already.

        Args:
            job: the job's id.
            part: which.
            attempt: as `claim` gave it.
            values: what there is to say; counts go with `attempt`, which says whose they are.
            spent: what the attempt took, which adds up over all of them.

        Returns:
            Whether it is said.
        """
        return update(
            self._client,
            self._table,
            _key(job, part),
            values,
            condition="attribute_not_exists(#attempt) OR #attempt <= :this",
            operands={"this": attempt},
            added=spent,
        )

    def of(self, job: str) -> dict[PartId, Values]:
        """The items of all parts of a job that were tried, by the numbers of chunk and part."""
        pages = self._client.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression="pk = :pk AND begins_with(sk, :sk)",
            ExpressionAttributeValues={":pk": {"S": f"job#{job}"}, ":sk": {"S": "chunk#"}},
            ConsistentRead=True,
        )
        found = {}
        for item in (read_values(item) for page in pages for item in page["Items"]):
            _, number, *part = item["sk"].split("#")
            found[int(number), int(part[0]) if part else 0] = item
        return found


def _key(job: str, part: PartId) -> dict[str, Any]:
    number, later = part
    return {"pk": {"S": f"job#{job}"}, "sk": {"S": f"chunk#{number:05d}" + (f"#{later:04d}" if later else "")}}
