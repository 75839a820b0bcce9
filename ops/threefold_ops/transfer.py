"""Files of any size to and from S3, of which neither end ever holds a whole one in memory."""

from __future__ import annotations

import gzip
import uuid
from typing import TYPE_CHECKING, Any, Final

from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import BinaryIO

# A larger file goes up in parts, several at a time; a part that fails is sent again alone.
PARTS_ABOVE_BYTES: Final = 64 * 1024**2
_PART_BYTES: Final = 16 * 1024**2
_NOT_THERE: Final = frozenset({"404", "NoSuchKey", "NotFound"})


def upload(  # noqa: PLR0913 - an object's address, and what goes into it
    client: Any,  # noqa: ANN401 - boto3 makes its clients at run time
    path: Path,
    bucket: str,
    key: str,
    *,
    metadata: Mapping[str, str],
    moved: Callable[[int], None] = lambda _count: None,
    parts_above_bytes: int = PARTS_ABOVE_BYTES,
) -> str:
    """Put a file into a bucket that keeps versions.

    Args:
        client: an S3 client that nobody else uses meanwhile.
        path: the file.
        bucket: where it goes.
        key: what it is called there.
        metadata: what goes with it.
        moved: told of bytes as they are sent, from several threads.
        parts_above_bytes: the size above which it goes up in parts.

    Returns:
        The version that this very upload made: to ask for the newest one afterwards would be a race.

    Raises:
        OperatorError: it did not arrive whole, or the bucket keeps no versions.
    """
    versions: list[str] = []

    def note(parsed: Mapping[str, Any], **_: object) -> None:
        if "VersionId" in parsed:
            versions.append(parsed["VersionId"])

    # The managed transfer keeps the answer to itself. These calls are each made once, and end it.
    for operation in ("PutObject", "CompleteMultipartUpload"):
        client.meta.events.register(f"after-call.s3.{operation}", note)
    config = TransferConfig(multipart_threshold=parts_above_bytes, multipart_chunksize=_PART_BYTES)
    try:
        client.upload_file(
            str(path), bucket, key, ExtraArgs={"Metadata": dict(metadata)}, Callback=moved, Config=config
        )
    except (S3UploadFailedError, OSError) as error:
        raise OperatorError(f"{path}: want it in {bucket}, got {error}") from error
    if not versions:
        raise OperatorError(f"bucket {bucket}: want one that keeps versions, got none of {key}")
    return versions[-1]


def download(
    client: Any,  # noqa: ANN401 - boto3 makes its clients at run time
    bucket: str,
    key: str,
    path: Path,
    *,
    moved: Callable[[int], None] = lambda _count: None,
) -> None:
    """Write an object into a file, which is there only once it is whole; under a name that ends in `.gz`, packed.

    Args:
        client: an S3 client.
        bucket: where the object is.
        key: its key.
        path: the file; what stood there is replaced. What is no file, like a pipe, is written to as it is.
        moved: told of bytes as they come, from several threads.

    Raises:
        OperatorError: there is no such object, or the file cannot be written.
    """
    piped = path.exists() and not path.is_file()
    place = path.resolve()
    # A pipe's own name leads nowhere.
    temporary = path if piped else place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb" if piped else "xb") as file:
            if path.name.endswith(".gz"):
                with gzip.open(file, "wb", compresslevel=6) as packed:
                    client.download_fileobj(bucket, key, _InOrder(packed), Callback=moved)
            elif piped:
                client.download_fileobj(bucket, key, _InOrder(file), Callback=moved)
            else:
                client.download_fileobj(bucket, key, file, Callback=moved)
        if not piped:
            temporary.replace(place)
    except OSError as error:
        raise OperatorError(f"{path}: want to write it, got: {error.strerror or error}") from error
    except ClientError as error:
        if error.response["Error"]["Code"] not in _NOT_THERE:
            raise
        raise OperatorError(f"bucket {bucket}: want {key}, got none: it is gone") from error
    finally:
        if not piped:
            temporary.unlink(missing_ok=True)


class _InOrder:
    """A file without `seek`: the managed transfer then writes parts in their order, however they come."""

    def __init__(self, file: BinaryIO | gzip.GzipFile) -> None:
        self._file = file

    def write(self, content: bytes) -> int:
        return self._file.write(content)
