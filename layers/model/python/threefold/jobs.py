"""Jobs: one uploaded CSV each, its identity, its state, and the counts of its chunks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, astuple, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import unquote_plus

from threefold.outcomes import from_attribute, milliseconds, to_attribute

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mypy_boto3_dynamodb import DynamoDBClient

Values = dict[str, Any]


class JobState(StrEnum):
    """Where a job stands."""

    PLANNED = "planned"
    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INCOMPLETE = "incomplete"


# The states that a state may follow. A duplicate event meets a job that has gone on, and changes nothing. A job that
# failed or came out incomplete can still become complete, for Step Functions can run the missing chunks again.
_FOLLOWS: Final[Mapping[JobState, frozenset[JobState]]] = {
    JobState.RUNNING: frozenset({JobState.PLANNED}),
    JobState.COMPLETE: frozenset({JobState.PLANNED, JobState.RUNNING, JobState.INCOMPLETE, JobState.FAILED}),
    JobState.INCOMPLETE: frozenset({JobState.PLANNED, JobState.RUNNING, JobState.INCOMPLETE, JobState.FAILED}),
    JobState.FAILED: frozenset({JobState.PLANNED, JobState.RUNNING, JobState.INCOMPLETE}),
    JobState.CANCELLED: frozenset({JobState.PLANNED, JobState.RUNNING}),
}


@dataclass(frozen=True, slots=True)
class Upload:
    """One version of one object in the inbox.

    Attributes:
        version: the object's version; empty if the bucket keeps none, which no job can be made of.
        at_ms: when it was created, milliseconds since 1970: the time of all records in it.
        sequencer: S3's order of the events of one key.
    """

    bucket: str
    key: str
    version: str
    at_ms: int
    size_bytes: int
    sequencer: str

    @classmethod
    def from_event(cls, record: Mapping[str, Any]) -> Self:
        """Read one of the `Records` of an S3 event.

        https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html
        """
        found = record["s3"]["object"]
        return cls(
            bucket=record["s3"]["bucket"]["name"],
            key=unquote_plus(found["key"]),
            version=found.get("versionId") or "",
            at_ms=milliseconds(record["eventTime"]),
            size_bytes=int(found.get("size") or 0),
            sequencer=found.get("sequencer") or "",
        )

    @property
    def model(self) -> str:
        """The model that it is for: the key's first segment."""
        return self.key.partition("/")[0]

    @property
    def job(self) -> str:
        """The job's id: the same however often S3 tells of the upload."""
        identity = json.dumps([self.bucket, self.key, self.version], ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows ended how."""

    rows: int = 0
    predicted: int = 0
    abstained: int = 0
    rejected: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def of(cls, item: Mapping[str, Any] | None) -> Counts | None:
        """The counts in a chunk's item, if it has any."""
        return cls(*(item[field.name] for field in fields(cls))) if item and "attempt" in item else None

    @property
    def reconciled(self) -> bool:
        """Whether every row that was read has exactly one outcome."""
        return self.rows == self.predicted + self.abstained + self.rejected


@dataclass(frozen=True, slots=True)
class Files:
    """The keys of a job's files in the results bucket."""

    model: str
    job: str

    @property
    def prefix(self) -> str:
        """What all of them begin with."""
        return f"{self.model}/{self.job}/"

    @property
    def plan(self) -> str:
        """What every chunk's worker needs to know."""
        return f"{self.prefix}plan.json"

    @property
    def manifest(self) -> str:
        """The list of the chunks, which the state machine maps over."""
        return f"{self.prefix}chunks.json"

    @property
    def predictions(self) -> str:
        """The upload's rows with their outcomes."""
        return f"{self.prefix}predictions.csv"

    @property
    def rejects(self) -> str:
        """The rows that could not be scored."""
        return f"{self.prefix}rejects.csv"

    def folder(self, folder: str) -> str:
        """What the keys of one kind of numbered files begin with."""
        return f"{self.prefix}{folder}/"

    def numbered(self, folder: str, number: int) -> str:
        """One chunk's file: its plain text under `chunks`, its results under `parts`, its rejects under `rejects`."""
        return f"{self.folder(folder)}{number:05d}.csv"


class JobTable:
    """Keeps one item a job and one a chunk; every write can come twice, late, or after somebody else's."""

    def __init__(self, client: DynamoDBClient, table: str, *, ttl_days: int) -> None:
        """Make a table.

        Args:
            client: a DynamoDB client; parameter validation may be off.
            table: the table's name.
            ttl_days: how long a job stays.
        """
        self._client = client
        self._table = table
        self._ttl_seconds = ttl_days * 86_400

    def find(self, job: str) -> Values | None:
        """A job's item, or None."""
        found = self._client.get_item(TableName=self._table, Key=_key(job, "job"), ConsistentRead=True)
        return _values(found["Item"]) if "Item" in found else None

    def begin(self, upload: Upload, now_ms: int, **values: object) -> Values:
        """Note a job as planned, unless it is known already.

        Args:
            upload: what it is about.
            now_ms: milliseconds since 1970.
            values: what the job is pinned to, or another state that it begins in; None is left out.

        Returns:
            The job's item, as whoever was first wrote it.
        """
        item = {
            "job": upload.job,
            "model": upload.model,
            "state": JobState.PLANNED.value,
            "planned_at": iso(now_ms),
            "expires": now_ms // 1000 + self._ttl_seconds,
            **{name: value for name, value in asdict(upload).items() if value != ""},
            **{name: value for name, value in values.items() if value is not None},
        }
        try:
            self._client.put_item(
                TableName=self._table,
                Item={**_key(upload.job, "job"), **{name: to_attribute(value) for name, value in item.items()}},
                ConditionExpression="attribute_not_exists(pk)",
            )
        except self._client.exceptions.ConditionalCheckFailedException:
            return self.find(upload.job) or item
        return item

    def note(self, job: str, **values: object) -> None:
        """Add what planning found out, while the job is only planned."""
        self._update(job, "job", values, allowed={JobState.PLANNED})

    def move(self, job: str, state: JobState, **values: object) -> bool:
        """Bring a job into a state, if that may follow the one it is in.

        Returns:
            Whether it was.
        """
        return self._update(job, "job", {**values, "state": state.value}, allowed=_FOLLOWS[state])

    def claim(self, job: str, chunk: int, now_ms: int) -> int:
        """Begin an attempt at a chunk.

        Returns:
            Its number, larger than that of any attempt before.
        """
        response = self._client.update_item(
            TableName=self._table,
            Key=_key(job, _chunk(chunk)),
            UpdateExpression="ADD attempts :one SET expires = :expires",
            ExpressionAttributeValues={":one": {"N": "1"}, ":expires": {"N": str(now_ms // 1000 + self._ttl_seconds)}},
            ReturnValues="UPDATED_NEW",
        )
        return int(response["Attributes"]["attempts"]["N"])

    def count(self, job: str, chunk: int, attempt: int, counts: Counts) -> bool:
        """Put a chunk's absolute counts, unless a later attempt has put its own.

        Returns:
            Whether they were put.
        """
        values = {**asdict(counts), "attempt": attempt}
        return self._update(job, _chunk(chunk), values, attempt=attempt)

    def blame(self, job: str, chunk: int, attempt: int, reason: str) -> None:
        """Note why an attempt at a chunk failed, unless it has been counted meanwhile."""
        self._update(job, _chunk(chunk), {"reason": reason}, attempt=attempt)

    def chunks(self, job: str) -> dict[int, Values]:
        """The items of all chunks that were tried, by the chunk's number."""
        pages = self._client.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression="pk = :pk AND begins_with(sk, :sk)",
            ExpressionAttributeValues={":pk": _key(job, "")["pk"], ":sk": {"S": "chunk#"}},
            ConsistentRead=True,
        )
        items = [_values(item) for page in pages for item in page["Items"]]
        return {int(item["sk"].partition("#")[2]): item for item in items}

    def _update(
        self,
        job: str,
        sk: str,
        values: Mapping[str, object],
        *,
        allowed: Collection[JobState] = (),
        attempt: int | None = None,
    ) -> bool:
        kept = {name: value for name, value in values.items() if value is not None}
        names = {f"#{name}": name for name in kept}
        attributes = {f":{name}": to_attribute(value) for name, value in kept.items()}
        if allowed:
            names["#state"] = "state"
            attributes |= {f":may_{state.value}": {"S": state.value} for state in allowed}
            condition = f"#state IN ({', '.join(f':may_{state.value}' for state in allowed)})"
        else:
            names["#attempt"] = "attempt"
            attributes[":now"] = {"N": str(attempt)}
            condition = "attribute_not_exists(#attempt) OR #attempt <= :now"
        try:
            self._client.update_item(
                TableName=self._table,
                Key=_key(job, sk),
                UpdateExpression="SET " + ", ".join(f"#{name} = :{name}" for name in kept),
                ConditionExpression=condition,
                ExpressionAttributeNames=names,
                ExpressionAttributeValues=attributes,
            )
        except self._client.exceptions.ConditionalCheckFailedException:
            return False
        return True


def iso(at_ms: int) -> str:
    """Milliseconds since 1970 as ISO 8601, UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _key(job: str, sk: str) -> dict[str, Any]:
    return {"pk": {"S": f"job#{job}"}, "sk": {"S": sk}}


def _chunk(number: int) -> str:
    return f"chunk#{number:05d}"


def _values(item: Mapping[str, Any]) -> Values:
    return {name: from_attribute(value) for name, value in item.items()}
