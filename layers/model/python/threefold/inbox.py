"""The inbox as callers over HTTPS fill it: forms that let a browser upload a CSV, and records left pending."""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from threefold import strict_json
from threefold.errors import Malformed, TooLarge
from threefold.names import PENDING_PREFIX
from threefold.tables.options import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mypy_boto3_s3 import S3Client

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/UserMetadata.html: prefixed so, an option goes with the object.
METADATA: Final = "x-amz-meta-"
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_SUFFIX: Final = re.compile(r"\.csv(\.gz)?$", re.IGNORECASE)
_NAME_CHARACTERS: Final = 100


class Inbox:
    """The inbox bucket, with keys of our choice: no caller overwrites what another one brought."""

    def __init__(
        self, client: S3Client, bucket: str, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        """Make an inbox.

        Args:
            client: an S3 client that signs with version 4.
            bucket: the inbox bucket, which keeps versions.
            now_ms: milliseconds since 1970.
        """
        self._client = client
        self._bucket = bucket
        self._now_ms = now_ms

    def upload_form(
        self, model: str, name: str, options: Mapping[str, str | bool], *, limit_bytes: int, seconds: int
    ) -> dict[str, Any]:
        """A presigned POST: an address and the fields that go with the file, of which none can be changed.

        Args:
            model: whose job it becomes.
            name: what the uploader calls the file; the key keeps what is plain in it.
            options: the job's options.
            limit_bytes: the most bytes that S3 takes.
            seconds: how long the form is good for.

        Returns:
            `url`, `fields` and `key`.
        """
        fields = {f"{METADATA}{option}": encode(value) for option, value in options.items()}
        key = f"{model}/{self._unique()}/{safe_name(name)}"
        form = self._client.generate_presigned_post(
            self._bucket,
            key,
            Fields=dict(fields),
            Conditions=[["content-length-range", 1, limit_bytes], *({field: fields[field]} for field in fields)],
            ExpiresIn=seconds,
        )
        return {"url": form["url"], "fields": form["fields"], "key": key}

    def versions(self, key: str) -> list[str]:
        """The versions of an object, newest first: each is an upload, and each a job of its own."""
        found = self._client.list_object_versions(Bucket=self._bucket, Prefix=key).get("Versions", [])
        return [version["VersionId"] for version in found if version["Key"] == key]

    def leave(self, model: str, records: Sequence[Mapping[str, Any]], *, limit_bytes: int) -> str:
        """Leave records to be scored with the next collection.

        Args:
            model: whose records they are.
            records: as they came; they fit the model's signature.
            limit_bytes: the most bytes that one object may have.

        Returns:
            The key of the object that holds them, one record a line.

        Raises:
            Malformed: a number that JSON's readers would not agree on.
            TooLarge: they are more than `limit_bytes`.
        """
        try:
            content = b"".join(strict_json.dumps(record) + b"\n" for record in records)
        except TypeError as error:
            message = f"records: want numbers of at most 64 bits, got {error}"
            raise Malformed(message) from error
        if len(content) > limit_bytes:
            message = f"records: want at most {limit_bytes} bytes as JSON lines, got {len(content)}"
            raise TooLarge(message)
        key = f"{PENDING_PREFIX}{model}/{self._unique()}.jsonl"
        self._client.put_object(Bucket=self._bucket, Key=key, Body=content, ContentType="application/x-ndjson")
        return key

    def _unique(self) -> str:
        return f"{self._now_ms()}-{uuid.uuid4().hex}"


def safe_name(name: str) -> str:
    """A file's name as a key can have it: plain characters, and a suffix that the inbox notices."""
    suffix = ".csv.gz" if name.lower().endswith(".gz") else ".csv"
    stem = _SUFFIX.sub("", name.rpartition("/")[2].rpartition("\\")[2])
    if suffix == ".csv.gz" and stem.lower().endswith(".gz"):
        stem = stem[:-3]
    return (_UNSAFE.sub("-", stem).strip(".-")[:_NAME_CHARACTERS] or "upload") + suffix
