"""Collections of what was left pending: put together into one upload, and cleared once its outcomes stand."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from threefold.errors import InvalidTable, StorageUnavailable
from threefold.jobs import RESUMABLE, JobState, Upload, iso
from threefold.names import PENDING_PREFIX
from threefold.tables import objects
from threefold.tables.fields import read_fields
from threefold.tables.gathering import Columns, RowWriter, read_pending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from aws_lambda_powertools import Logger
    from mypy_boto3_s3 import S3Client

    from threefold.items import Values
    from threefold.jobs import JobTable
    from threefold.package import Manifest
    from threefold.tables.gathering import Pending

# What comes after so many waits for the next collection.
MAXIMUM_OBJECTS: Final = 20_000
# A collection without its upload is one whose function ended early: none runs as long as this.
LEASE_SECONDS: Final = 20 * 60
# An upload without a job that runs is one whose event is lost.
LOST_SECONDS: Final = 24 * 3600
# Reading what there is, and then writing it, take about as long as each other.
_READING: Final = 0.4
# https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
_DELETES_PER_CALL: Final = 1_000
# Small objects are read so many at a time, and held until their turn comes: 16 MiB at most.
_AHEAD: Final = 64
_SMALL_BYTES: Final = 256 * 1024
_THREADS: Final = 8


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an object that was left.

    Attributes:
        older: the versions that it took the place of, the oldest last: nobody wants their records any more.
    """

    key: str
    version: str
    size_bytes: int
    older: list[str] = field(default_factory=list)


class PendingRecords:
    """Collects what lies under `pending/<model>/` in the inbox, one collection of a model at a time."""

    def __init__(
        self,
        jobs: JobTable,
        s3: S3Client,
        logger: Logger,
        *,
        results_bucket: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a collector.

        Args:
            jobs: the jobs table.
            s3: an S3 client.
            logger: told of what is left out.
            results_bucket: where the lists of what was collected are.
            clock: seconds that never go back.
        """
        self._jobs = jobs
        self._s3 = s3
        self._logger = logger
        self._results = results_bucket
        self._clock = clock

    def models(self, inbox: str) -> list[str]:
        """The models that something was left for."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=inbox, Prefix=PENDING_PREFIX, Delimiter="/")
        found = [prefix["Prefix"] for page in pages for prefix in page.get("CommonPrefixes", [])]
        return [prefix.removeprefix(PENDING_PREFIX).rstrip("/") for prefix in found]

    def collect(self, inbox: str, model: str, manifest: Manifest, *, now_ms: int, deadline: float) -> str | None:
        """Put together what was left for a model, if its last collection is over.

        Args:
            inbox: the inbox bucket.
            model: whose records.
            manifest: its champion's.
            now_ms: milliseconds since 1970.
            deadline: on the clock.

        Returns:
            The key of the upload, of which S3 tells the batch door; None if there is nothing to collect now.
        """
        former = self._jobs.collection(model)
        if former is not None and not self._over(inbox, model, former, now_ms):
            return None
        left = self._left(inbox, model)
        features, key = read_fields(manifest), manifest.key
        columns = Columns(features, key)
        reading = self._clock() + _READING * (deadline - self._clock())
        own = columns.names
        collected, records = self._look(inbox, left, columns, reading)
        if not records:
            return None
        name = f"pending-{now_ms}"
        if not self._jobs.begin_collection(model, name, now_ms, after=former["collection"] if former else None):
            return None
        # The list first: the upload's job may be complete before this function ends.
        # Older versions go first: what is left by a clearing that is cut short is what was collected.
        listed = [[each.key, version] for each in collected for version in (*reversed(each.older), each.version)]
        objects.write_json(self._s3, self._results, _list_key(model, name), listed)
        if former is not None and not self._over(inbox, model, former, now_ms):
            # Resumed in the last moment: its records are its own again, and this collection is none.
            self._jobs.begin_collection(model, former["collection"], former["at_ms"], after=name)
            return None
        writer = RowWriter(columns.names, features, key)
        about = {"pending": name, "delimiter": ","}
        with objects.ObjectWriter(self._s3, inbox, _upload_key(model, name), metadata=about) as upload:
            upload.write(writer.head())
            for pending in self._records(inbox, collected, own):
                if self._clock() > deadline:
                    message = f"pending records of '{model}': want {records} written, got no time for all"
                    raise StorageUnavailable(message)
                upload.write(writer.row(pending))
        self._logger.info(
            "pending collected", model=model, objects=len(collected), records=records, left_out=columns.left_out
        )
        return _upload_key(model, name)

    def clear(self, item: Values, now_ms: int) -> None:
        """Delete what the upload of a complete job was collected from: those versions, older ones, and no newer one.

        Args:
            item: the job's.
            now_ms: milliseconds since 1970.
        """
        model, name = item["model"], item.get("options", {}).get("pending")
        if not name or "cleared_at" in item or item["key"] != _upload_key(model, name):
            return
        try:
            listed = objects.read_json(self._s3, self._results, _list_key(model, name))
        except self._s3.exceptions.NoSuchKey:
            listed = []
        mine = [(key, version) for key, version in listed if key.startswith(f"{PENDING_PREFIX}{model}/")]
        for some in _some(mine, _DELETES_PER_CALL):
            request: Any = {"Objects": [{"Key": key, "VersionId": version} for key, version in some], "Quiet": True}
            if errors := self._s3.delete_objects(Bucket=item["bucket"], Delete=request).get("Errors"):
                message = f"pending records of '{model}': want {len(some)} cleared, got {errors[0].get('Message')}"
                raise StorageUnavailable(message)
        self._jobs.add(item["job"], JobState.COMPLETE, cleared_at=iso(now_ms))
        self._logger.info("pending cleared", model=model, objects=len(mine))

    def _over(self, inbox: str, model: str, former: Values, now_ms: int) -> bool:
        """Whether the objects of a former collection, as far as they are still there, can be collected again."""
        age_seconds = (now_ms - former["at_ms"]) / 1000
        key = _upload_key(model, former["collection"])
        try:
            version = self._s3.head_object(Bucket=inbox, Key=key)["VersionId"]
        except ClientError as error:
            if error.response["Error"]["Code"] not in {"404", "405"}:
                raise
            return bool(age_seconds > LEASE_SECONDS)
        item = self._jobs.find(Upload(inbox, key, version, 0, 0, "").job)
        if item is None or item["state"] == JobState.PLANNED:
            return bool(age_seconds > LOST_SECONDS)
        if item["state"] == JobState.COMPLETE:
            self.clear(item, now_ms)
            return True
        return item["state"] in RESUMABLE

    def _left(self, inbox: str, model: str) -> list[Version]:
        """The newest versions of what was left, in the order of their keys, and no more than can be collected."""
        pages = self._s3.get_paginator("list_object_versions").paginate(
            Bucket=inbox, Prefix=f"{PENDING_PREFIX}{model}/"
        )
        found: list[Version] = []
        # By key, and of one key the newest first.
        for each in (each for page in pages for each in page.get("Versions", [])):
            if found and each["Key"] == found[-1].key:
                found[-1].older.append(each["VersionId"])
            elif each["IsLatest"] and not each["Key"].endswith("/"):
                if len(found) == MAXIMUM_OBJECTS:
                    break
                found.append(Version(each["Key"], each["VersionId"], each["Size"]))
        return found

    def _look(
        self, inbox: str, left: Sequence[Version], columns: Columns, deadline: float
    ) -> tuple[list[Version], int]:
        """Read everything once, for the columns' names: what can be collected, and how many records that is."""
        collected: list[Version] = []
        records, own = 0, columns.names
        for each, content in self._contents(inbox, left):
            found = 0
            try:
                for pending in read_pending(each.key, content, own):
                    # The first one is read to its end, or it would never be.
                    if collected and self._clock() > deadline:
                        self._logger.warning("pending left for later", object_key=each.key)
                        return collected, records
                    columns.see(pending)
                    found += 1
            except InvalidTable as error:
                self._logger.warning("pending left alone", object_key=each.key, reason=str(error))
                continue
            collected.append(each)
            records += found
        return collected, records

    def _records(self, inbox: str, collected: Sequence[Version], names: Sequence[str]) -> Iterator[Pending]:
        for each, content in self._contents(inbox, collected):
            yield from read_pending(each.key, content, names)

    def _contents(self, inbox: str, versions: Sequence[Version]) -> Iterator[tuple[Version, Iterator[bytes]]]:
        """Each object's content, in order; small ones are read several at a time."""

        def read(each: Version) -> Iterator[bytes]:
            return objects.read(self._s3, inbox, each.key, version=each.version) if each.size_bytes else iter(())

        def read_small(each: Version) -> list[bytes] | None:
            return list(read(each)) if each.size_bytes <= _SMALL_BYTES else None

        with ThreadPoolExecutor(_THREADS) as pool:
            for some in _some(versions, _AHEAD):
                for each, content in zip(some, pool.map(read_small, some), strict=True):
                    yield each, read(each) if content is None else iter(content)


def other_collection(jobs: JobTable, upload: Mapping[str, Any]) -> str | None:
    """The collection that has taken up the records of a collection's upload since; None if there is none.

    Args:
        jobs: the jobs table.
        upload: a job's item, or what there is of it: `model`, `key` and `options`.
    """
    model, name = upload["model"], upload.get("options", {}).get("pending")
    if not name or upload["key"] != _upload_key(model, name):
        return None
    last = jobs.collection(model)
    return str(last["collection"]) if last is not None and last["collection"] != name else None


def _some(things: Sequence[Any], count: int) -> Iterable[Sequence[Any]]:
    return (things[start : start + count] for start in range(0, len(things), count))


def _upload_key(model: str, name: str) -> str:
    return f"{model}/{name}.csv"


def _list_key(model: str, name: str) -> str:
    """Not beside the upload: who may upload for a model may not say what is deleted."""
    return f"{model}/{name}/collected.json"
