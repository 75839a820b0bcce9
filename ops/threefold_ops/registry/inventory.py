"""What the model bucket holds, and what needs it: packages, labels, the versions of a release, jobs under way."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from threefold.errors import InvalidManifest
from threefold.jobs import JobState
from threefold.names import Prefix
from threefold.release import Release

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from threefold_ops.target import Target

# A job in one of these can still run: one that has ended otherwise can be resumed.
ALIVE: Final = tuple(state for state in JobState if state != JobState.COMPLETE)
# https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html: the most that come at once.
_PAGE: Final = 1000
# What S3 says of an object, or of a version, that is not there; the last of a text that is no version's.
_MISSING: Final = frozenset({"404", "NoSuchKey", "NoSuchVersion", "InvalidArgument"})
_PARTS: Final = 3


@dataclass(frozen=True, slots=True)
class Stored:
    """A package as it lies in the bucket."""

    digest: str
    size_bytes: int
    published: datetime


@dataclass(frozen=True, slots=True)
class Released:
    """One version of a release document.

    Attributes:
        id: its object version, which jobs are pinned to.
        release: None if this Threefold cannot read it.
        problem: why not.
        until: when the next one took its place; None for the newest.
    """

    id: str
    release: Release | None
    problem: str
    until: datetime | None

    @property
    def digests(self) -> frozenset[str]:
        """What it names."""
        return _digests(self.release)


class Inventory:
    """Reads one registry and its table of jobs, through the operator's own session."""

    def __init__(self, target: Target, bucket: str, jobs_table: str = "") -> None:
        """Make an inventory.

        Args:
            target: the account, or the embedded AWS.
            bucket: the model bucket.
            jobs_table: the table of jobs; only `pinned` reads it.
        """
        self._s3 = target.client("s3")
        self._dynamodb = target.client("dynamodb")
        self._bucket = bucket
        self._jobs_table = jobs_table

    def packages(self) -> dict[str, list[Stored]]:
        """The packages of each model, the oldest first."""
        found: defaultdict[str, list[Stored]] = defaultdict(list)
        for entry in self._list(Prefix.PACKAGES):
            parts = str(entry["Key"]).split("/")
            if len(parts) == _PARTS and parts[2].endswith(".zip"):
                found[parts[1]].append(Stored(parts[2].removesuffix(".zip"), entry["Size"], entry["LastModified"]))
        return {model: sorted(stored, key=lambda one: one.published) for model, stored in sorted(found.items())}

    def labels(self, model: str) -> dict[str, str]:
        """The version label of each of a model's digests."""
        prefix = f"{Prefix.PACKAGES}{model}/versions/"
        return {
            self._read(str(entry["Key"])).decode().strip(): str(entry["Key"]).removeprefix(prefix)
            for entry in self._list(prefix)
        }

    def release_id(self, model: str) -> str:
        """The object version of a model's release; empty if it has none."""
        try:
            return str(self._s3.head_object(Bucket=self._bucket, Key=_key(model))["VersionId"])
        except ClientError as error:
            if error.response["Error"]["Code"] not in _MISSING:
                raise
            return ""

    def releases(self, model: str) -> Iterator[Released]:
        """The versions of a model's release, the newest first, each read when it is asked for."""
        pages = self._s3.get_paginator("list_object_versions").paginate(
            Bucket=self._bucket, Prefix=_key(model), PaginationConfig={"PageSize": _PAGE}
        )
        until = None
        for page in pages:
            for version in page.get("Versions", []):
                if version["Key"] == _key(model):
                    identity = str(version["VersionId"])
                    yield Released(identity, *_parse(self._read(_key(model), identity)), until)
                    until = version["LastModified"]

    def pinned(self) -> dict[str, set[str]]:
        """What jobs that can still run are pinned to: of each model, the package and all that the release names."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        documents: dict[tuple[str, str], frozenset[str]] = {}
        pages = self._dynamodb.get_paginator("scan").paginate(
            TableName=self._jobs_table,
            ConsistentRead=True,
            FilterExpression=f"sk = :job AND #state IN ({', '.join(f':{state.value}' for state in ALIVE)})",
            ProjectionExpression="#model, #digest, #release",
            ExpressionAttributeNames={f"#{name}": name for name in ("state", "model", "digest", "release")},
            ExpressionAttributeValues={
                ":job": {"S": "job"},
                **{f":{state.value}": {"S": state.value} for state in ALIVE},
            },
        )
        for page in pages:
            for item in page["Items"]:
                if not {"model", "digest", "release"} <= item.keys():
                    continue  # It was refused before it was pinned to anything, and cannot run.
                model, release = item["model"]["S"], item["release"]["S"]
                if (model, release) not in documents:
                    documents[model, release] = self._named_by(model, release)
                found[model] |= {item["digest"]["S"], *documents[model, release]}
        return dict(found)

    def _named_by(self, model: str, release_id: str) -> frozenset[str]:
        try:
            return _digests(_parse(self._read(_key(model), release_id))[0])
        except ClientError as error:
            if error.response["Error"]["Code"] not in _MISSING:
                raise
            return frozenset()  # Without its release the job cannot run either.

    def _list(self, prefix: str) -> Iterator[dict[str, Any]]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=prefix, PaginationConfig={"PageSize": _PAGE}
        )
        for page in pages:
            yield from page.get("Contents", [])

    def _read(self, key: str, version: str | None = None) -> bytes:
        which = {} if version is None else {"VersionId": version}
        content: bytes = self._s3.get_object(Bucket=self._bucket, Key=key, **which)["Body"].read()
        return content


def _key(model: str) -> str:
    return f"{Prefix.RELEASES}{model}.json"


def _parse(content: bytes) -> tuple[Release | None, str]:
    """The document, or why it cannot be read."""
    try:
        return Release.from_json(json.loads(content)), ""
    except (ValueError, InvalidManifest) as error:
        return None, str(error)


def _digests(release: Release | None) -> frozenset[str]:
    return frozenset(version.digest for version in release.named()) if release else frozenset()
