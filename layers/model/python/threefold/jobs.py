"""Jobs: one uploaded CSV each, its identity, its state, and what became of its chunks."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import unquote_plus

from threefold.chunks import ChunkTable
from threefold.errors import UnknownJob, shown
from threefold.items import Values, get, read_values, update
from threefold.outcomes import milliseconds, to_attribute

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mypy_boto3_dynamodb import DynamoDBClient


class JobState(StrEnum):
    """Where a job stands."""

    PLANNED = "planned"
    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INCOMPLETE = "incomplete"


# States that nothing follows by itself; that a job came to one is told once.
ENDED: Final = frozenset({JobState.COMPLETE, JobState.FAILED, JobState.CANCELLED, JobState.INCOMPLETE})
# The states that a job can be taken up again from.
RESUMABLE: Final = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.INCOMPLETE})
_OPEN: Final = frozenset({JobState.PLANNED, JobState.RUNNING})
# The states that a state may follow. A duplicate event meets a job that has gone on, and changes nothing. A job that
# failed or came out incomplete can still become complete: a finish that was given up may end late.
_FOLLOWS: Final[Mapping[JobState, frozenset[JobState]]] = {
    JobState.RUNNING: frozenset({JobState.PLANNED}),
    JobState.COMPLETE: _OPEN | {JobState.INCOMPLETE, JobState.FAILED},
    JobState.INCOMPLETE: _OPEN | {JobState.INCOMPLETE, JobState.FAILED},
    JobState.FAILED: _OPEN,
    JobState.CANCELLED: _OPEN,
}
# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchGetItem.html
_READS_PER_CALL: Final = 100
Jobs = list[Values]


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

    @property
    def windows(self) -> str:
        """The windows' values of each row, replayed when the job was planned: float64, row by row."""
        return f"{self.prefix}windows.f64"

    @property
    def added(self) -> str:
        """What the rows come to as events, by entity, to be counted when the job is complete."""
        return f"{self.prefix}added.jsonl"

    def resumed(self, times: int) -> str:
        """The list of the chunks that were missing when the job was taken up again."""
        return f"{self.prefix}chunks-{times}.json"

    def folder(self, folder: str) -> str:
        """What the keys of one kind of numbered files begin with."""
        return f"{self.prefix}{folder}/"

    def chunk(self, folder: str, number: int) -> str:
        """One chunk's file: its plain text under `chunks`."""
        return f"{self.folder(folder)}{number:05d}.csv"

    def part(self, folder: str, number: int, part: int) -> str:
        """What one invocation wrote of a chunk: its results under `parts`, its rejects under `rejects`."""
        return f"{self.folder(folder)}{number:05d}-{part:04d}.csv"

    def large(self, row: int) -> str:
        """An outcome that is too large for an item of the predictions table."""
        return f"{self.folder('large')}{row}.json"


class JobTable:
    """Keeps one item a job, and its place among its model's; every write can come twice, late, or after another's.

    Attributes:
        chunks: the items of the jobs' chunks.
    """

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
        self.chunks = ChunkTable(client, table, ttl_days=ttl_days)

    def find(self, job: str) -> Values | None:
        """A job's item, or None."""
        return get(self._client, self._table, _key(job))

    def begin(self, upload: Upload, now_ms: int, **values: object) -> Values:
        """Note a job as planned, unless it is known already; and where it stands among its model's jobs.

        Args:
            upload: what it is about.
            now_ms: milliseconds since 1970.
            values: what the job is pinned to, or another state that it begins in; None is left out.

        Returns:
            The job's item, as whoever was first wrote it.
        """
        expires = now_ms // 1000 + self._ttl_seconds
        item = {
            "job": upload.job,
            "model": upload.model,
            "state": JobState.PLANNED.value,
            "planned_at": iso(now_ms),
            "expires": expires,
            **{name: value for name, value in asdict(upload).items() if value != ""},
            **{name: value for name, value in values.items() if value is not None},
        }
        place = {"job": upload.job, "expires": expires}
        puts: Any = [
            {"Item": {**key, **{name: to_attribute(value) for name, value in values.items()}}}
            for key, values in ((_key(upload.job), item), (_place(upload.model, now_ms, upload.job), place))
        ]
        for put in puts:
            put |= {"TableName": self._table, "ConditionExpression": "attribute_not_exists(pk)"}
        try:
            self._client.transact_write_items(TransactItems=[{"Put": put} for put in puts])
        except self._client.exceptions.TransactionCanceledException:
            found = self.find(upload.job)
            # Whoever else is writing the same job right now may not be done.
            if found is None:
                raise
            return found
        return item

    def list(self, model: str, *, limit: int, after: str | None = None) -> Jobs:
        """A model's jobs, newest first.

        Args:
            model: whose jobs.
            limit: the most that are given.
            after: the job that the last page ended with.

        Raises:
            UnknownJob: `after` is no job of this model.
        """
        start: dict[str, Any] = {}
        if after is not None:
            last = self.find(after)
            if last is None or last["model"] != model:
                message = f"job: want one of model '{model}', got {shown(after)}"
                raise UnknownJob(message)
            start = {"ExclusiveStartKey": _place(model, milliseconds(last["planned_at"]), after)}
        found: Jobs = []
        while len(found) < limit:
            page = self._client.query(
                TableName=self._table,
                KeyConditionExpression="pk = :pk",
                ExpressionAttributeValues={":pk": _place(model, 0, "")["pk"]},
                ScanIndexForward=False,
                Limit=min(limit - len(found), _READS_PER_CALL),
                **start,
            )
            found += self._read([read_values(item)["job"] for item in page["Items"]])
            if "LastEvaluatedKey" not in page:
                break
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
        return found

    def _read(self, jobs: Sequence[str]) -> Jobs:
        """The items of some jobs, in their order; what expired is left out."""
        request: Any = {self._table: {"Keys": [_key(job) for job in jobs]}} if jobs else {}
        found: dict[str, Values] = {}
        while request:
            response = self._client.batch_get_item(RequestItems=request)
            read = [read_values(item) for item in response.get("Responses", {}).get(self._table, [])]
            found |= {item["job"]: item for item in read}
            request = response.get("UnprocessedKeys")
        return [found[job] for job in jobs if job in found and found[job]["expires"] > time.time()]

    def note(self, job: str, **values: object) -> bool:
        """Add what planning found out, while the job is only planned.

        Returns:
            Whether it still was.
        """
        return self._update(job, values, allowed={JobState.PLANNED})

    def add(self, job: str, state: JobState, **values: object) -> bool:
        """Add to a job what changes nothing about its state.

        Returns:
            Whether it was in that state.
        """
        return self._update(job, values, allowed={state})

    def move(self, job: str, state: JobState, *, execution: str | None = None, **values: object) -> bool:
        """Bring a job into a state, if that may follow the one it is in.

        Args:
            job: its id.
            state: the new one.
            execution: who says so; a job that was taken up by another execution since is left alone.
            values: what else there is to say.

        Returns:
            Whether it was.
        """
        return self._update(job, {**values, "state": state.value}, allowed=_FOLLOWS[state], execution=execution)

    def resume(self, job: str, *, after: str, execution: str, **values: object) -> bool:
        """Bring a job that has ended without being complete back to running.

        Args:
            job: its id.
            after: its last execution; nobody else has taken it up since.
            execution: the one that goes on with it.
            values: what else there is to say.

        Returns:
            Whether it was.
        """
        renewed = {"code": "", "reason": "", "missing": [], "announced": ""}
        values = {**values, **renewed, "execution": execution, "state": JobState.RUNNING.value}
        return self._update(job, values, allowed=RESUMABLE, execution=after)

    def collection(self, model: str) -> Values | None:
        """The last collection of a model's pending records."""
        return get(self._client, self._table, _pending(model))

    def begin_collection(self, model: str, name: str, now_ms: int, *, after: str | None) -> bool:
        """Begin a collection, if nobody has begun another one.

        Args:
            model: whose records.
            name: the collection's.
            now_ms: milliseconds since 1970.
            after: the last collection's name.

        Returns:
            Whether it may go on.
        """
        return update(
            self._client,
            self._table,
            _pending(model),
            {"collection": name, "at_ms": now_ms},
            condition="#collection = :after" if after else "attribute_not_exists(#collection)",
            operands={"after": after} if after else {},
        )

    def _update(
        self,
        job: str,
        values: Mapping[str, object],
        *,
        allowed: Collection[JobState],
        execution: str | None = None,
    ) -> bool:
        operands = {f"may_{state.value}": state.value for state in allowed}
        condition = f"#state IN ({', '.join(f':{name}' for name in operands)})"
        if execution is not None:
            operands["from"] = execution
            condition += " AND (attribute_not_exists(#execution) OR #execution = :from)"
        return update(self._client, self._table, _key(job), values, condition=condition, operands=operands)


def iso(at_ms: int) -> str:
    """Milliseconds since 1970 as ISO 8601, UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _key(job: str) -> dict[str, Any]:
    return {"pk": {"S": f"job#{job}"}, "sk": {"S": "job"}}


def _place(model: str, planned_ms: int, job: str) -> dict[str, Any]:
    return {"pk": {"S": f"model#{model}"}, "sk": {"S": f"{planned_ms:014d}#{job}"}}


def _pending(model: str) -> dict[str, Any]:
    return {"pk": {"S": f"pending#{model}"}, "sk": {"S": "collection"}}
