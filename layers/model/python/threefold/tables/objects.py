"""Objects of any size in S3, read and written in bounded memory."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlencode

from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

from threefold import strict_json
from threefold.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

PIECE_BYTES: Final = 1024**2
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html: 5 MiB to 5 GiB a part, the last may be smaller.
LEAST_PART_BYTES: Final = 5 * 1024**2
# Memory follows from this; 10,000 parts of it are 80 GB.
PART_BYTES: Final = 8 * 1024**2
CONTENT_TYPE: Final = "text/csv; charset=utf-8"
# More objects than this, or larger ones, are put together in larger parts: S3 takes 10,000 of them.
_PARTS: Final = 4_500
_TRIES: Final = 4
_COPIES_AT_A_TIME: Final = 8


def read(  # noqa: PLR0913 - an object's address has three parts, a range two
    client: S3Client, bucket: str, key: str, *, version: str | None = None, start: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """Stream a byte range of one version of an object, in pieces of at most PIECE_BYTES.

    A connection that breaks is taken up again where it broke: botocore's retries cover the request, not the body.

    Args:
        client: an S3 client.
        bucket: where the object is.
        key: its key.
        version: its version; None reads the newest.
        start: the first byte.
        end: the byte after the last one; None reads to the end.

    Raises:
        StorageUnavailable: the body broke off again and again, or the object ends before `end`.
    """
    address: Any = {"Bucket": bucket, "Key": key, **({"VersionId": version} if version else {})}
    tries = 0
    while end is None or start < end:
        if start or end is not None:
            address["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        response = client.get_object(**address)
        body = response["Body"]
        broken: Exception | None = None
        try:
            size = response["ContentLength"]
            if "Range" in address and "ContentRange" not in response:
                # RFC 9110, 14.2: a server may leave the range aside and send everything; the embedded AWS does, where
                # a version is named.
                _skip(body, start)
            else:
                size += start
            if end is not None and size < end:
                message = f"object {key}: want bytes to {end}, got one that ends at {size}"
                raise StorageUnavailable(message)
            end = size if end is None else end
            while start < end and (piece := body.read(min(PIECE_BYTES, end - start))):
                yield piece
                start += len(piece)
                tries = 0
        except (HTTPClientError, IncompleteReadError) as error:
            broken = error
        finally:
            body.close()
        tries += 1
        if tries == _TRIES and (end is None or start < end):
            message = f"object {key}: want bytes {start} to {end}, got {broken or 'nothing'}"
            raise StorageUnavailable(message) from broken


def _skip(body: StreamingBody, count: int) -> None:
    while count and (piece := body.read(min(PIECE_BYTES, count))):
        count -= len(piece)


class ObjectWriter:
    """Writes an object piece by piece: at once if it is small, else in parts, and not at all if the block fails.

    Attributes:
        size_bytes: how much was written so far.
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        key: str,
        *,
        tags: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Make a writer; use it as a context manager.

        Args:
            client: an S3 client.
            bucket: where the object goes.
            key: its key.
            tags: by which lifecycle rules know it.
            metadata: what goes with it.
        """
        self._client = client
        self._address: Any = {"Bucket": bucket, "Key": key}
        self._about: Any = {"ContentType": CONTENT_TYPE, "Metadata": dict(metadata or {}), **_tagging(tags)}
        self._part_bytes = PART_BYTES
        self._pieces: list[bytes] = []
        self._size = 0
        self.size_bytes = 0
        self._upload: str | None = None
        self._parts: dict[int, str] = {}
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def write(self, piece: bytes) -> None:
        """Add bytes."""
        if piece:
            self._pieces.append(piece)
            self._size += len(piece)
            self.size_bytes += len(piece)
        if self._size >= self._part_bytes:
            self._flush()

    def append(self, objects: Sequence[tuple[str, int]]) -> None:
        """Add objects of the same bucket, given as (key, size): S3 copies the large ones itself."""
        self._part_bytes = max(PART_BYTES, sum(size for _, size in objects) // _PARTS)
        least = LEAST_PART_BYTES if len(objects) <= _PARTS else self._part_bytes
        with ThreadPoolExecutor(_COPIES_AT_A_TIME) as pool:
            copies = []
            for key, size in objects:
                # A part has a least size: what is pending is filled up to it before S3 copies the rest.
                lacking = LEAST_PART_BYTES - self._size if 0 < self._size < LEAST_PART_BYTES else 0
                if size - lacking < least:
                    lacking = size
                for piece in read(self._client, self._address["Bucket"], key, end=lacking):
                    self.write(piece)
                if lacking < size:
                    if self._size:
                        self._flush()
                    copies.append(pool.submit(self._copy, next(self._numbers), self._open(), key, lacking, size))
            for copy in copies:
                copy.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            if self._upload is not None:
                self._client.abort_multipart_upload(**self._address, UploadId=self._upload)
            return
        if self._upload is None:
            self._client.put_object(**self._address, Body=b"".join(self._pieces), **self._about)
            return
        if self._size:
            self._flush()
        parts: Any = [{"PartNumber": number, "ETag": self._parts[number]} for number in sorted(self._parts)]
        self._client.complete_multipart_upload(**self._address, UploadId=self._upload, MultipartUpload={"Parts": parts})

    def _open(self) -> str:
        if self._upload is None:
            created = self._client.create_multipart_upload(**self._address, **self._about)
            self._upload = created["UploadId"]
        return self._upload

    def _flush(self) -> None:
        number, upload = next(self._numbers), self._open()
        body, self._pieces, self._size = b"".join(self._pieces), [], 0
        sent = self._client.upload_part(**self._address, UploadId=upload, PartNumber=number, Body=body)
        self._parts[number] = sent["ETag"]

    def _copy(self, number: int, upload: str, key: str, start: int, end: int) -> None:
        copied = self._client.upload_part_copy(
            **self._address,
            UploadId=upload,
            PartNumber=number,
            CopySource={"Bucket": self._address["Bucket"], "Key": key},
            CopySourceRange=f"bytes={start}-{end - 1}",
        )
        self._parts[number] = copied["CopyPartResult"]["ETag"]


def sizes(client: S3Client, bucket: str, prefix: str) -> dict[str, int]:
    """The objects under a prefix, in the order of their keys: sizes in bytes, by key."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}


def merge(client: S3Client, bucket: str, objects: Sequence[tuple[str, int]], target: str, head: bytes) -> None:
    """Put objects of a bucket together.

    Args:
        client: an S3 client.
        bucket: where all of them are.
        objects: which, in order, as (key, size).
        target: the key of the whole.
        head: what the whole begins with; the first object may begin with it already.
    """
    with ObjectWriter(client, bucket, target) as writer:
        first, size = objects[0] if objects else ("", 0)
        if size < len(head) or next(read(client, bucket, first, end=len(head)), b"") != head:
            writer.write(head)
        writer.append(objects)


def read_json(client: S3Client, bucket: str, key: str) -> Any:  # noqa: ANN401 - JSON
    """A JSON document."""
    return json.loads(b"".join(read(client, bucket, key)))


def write_json(
    client: S3Client, bucket: str, key: str, document: object, *, tags: Mapping[str, str] | None = None
) -> None:
    """Put a JSON document."""
    about: Any = {"ContentType": "application/json", **_tagging(tags)}
    client.put_object(Bucket=bucket, Key=key, Body=strict_json.dumps(document), **about)


def create(client: S3Client, bucket: str, key: str, body: bytes, *, tags: Mapping[str, str] | None = None) -> None:
    """Put an object, unless there is one already: then that one stays."""
    try:
        client.put_object(Bucket=bucket, Key=key, Body=body, IfNoneMatch="*", **_tagging(tags))  # type: ignore[arg-type]
    except ClientError as error:
        # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html: 409 is another one right now.
        if error.response["Error"]["Code"] not in {"PreconditionFailed", "ConditionalRequestConflict"}:
            raise


def exists(client: S3Client, bucket: str, key: str) -> bool:
    """Whether there is an object."""
    found = client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", [])
    return any(entry["Key"] == key for entry in found)


def _tagging(tags: Mapping[str, str] | None) -> dict[str, str]:
    return {"Tagging": urlencode(tags)} if tags else {}
