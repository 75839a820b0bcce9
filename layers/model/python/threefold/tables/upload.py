"""From an uploaded object to its header and its chunks."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError

from threefold.chunks import Chunk
from threefold.errors import InvalidTable
from threefold.names import SIDECAR_SUFFIX
from threefold.tables.compressed import MAGIC, gunzip
from threefold.tables.header import read_header
from threefold.tables.objects import ObjectWriter, read
from threefold.tables.options import MAXIMUM_BYTES, Options
from threefold.tables.planner import check_text, cut
from threefold.tables.records import fill, read_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mypy_boto3_s3 import S3Client

    from threefold.signature import Feature
    from threefold.tables.header import Header
    from threefold.tables.history import History
    from threefold.tables.records import Block

# The last two are what HeadObject can say, which has no body to say it in.
_GONE: Final = frozenset({"NoSuchKey", "NoSuchVersion", "MethodNotAllowed", "404", "405"})


@dataclass(frozen=True, slots=True)
class Source:
    """One version of an object."""

    bucket: str
    key: str
    version: str


@dataclass(frozen=True, slots=True)
class Cutting:
    """How an upload is cut.

    Attributes:
        chunk_bytes: the size that a chunk aims at.
        chunk_rows: the most records of a chunk.
        delimiter: the one that the uploader names, if one is named.
    """

    chunk_bytes: int
    chunk_rows: int
    delimiter: str | None = None


def cut_upload(  # noqa: PLR0913 - what is read, and where what is written goes
    client: S3Client,
    source: Source,
    features: Sequence[Feature],
    *,
    cutting: Cutting,
    bucket: str,
    name: Callable[[int], str],
    tags: Mapping[str, str],
    history: History | None = None,
) -> tuple[Header, list[Chunk]]:
    """Read an upload once and say where its chunks are. A gzip file has no ranges: its chunks are written out plain.

    Args:
        client: an S3 client.
        source: the upload.
        features: what the model reads.
        cutting: how it is cut.
        bucket: where the plain chunks of a gzip file go.
        name: the key of one of them, by its number.
        tags: theirs.
        history: takes in all rows, where the model has windows.

    Raises:
        InvalidTable: no job can be made of it, and why.
    """
    head, stream = _head(_open(client, source))
    packed = head.startswith(MAGIC)
    if packed:
        head, stream = _head(gunzip(itertools.chain([head], stream)))
    top = read_header(head, {feature.name for feature in features}, delimiter=cutting.delimiter)
    top.header.check(features)
    rest = itertools.chain([head[top.size_bytes :]], stream)
    blocks = read_blocks(rest, top.header.delimiter, offset=top.size_bytes, line=top.line)
    if history is not None:
        history.begin(top.header)
        blocks = _seen(blocks, history)
    chunks = []
    cuts = cut(blocks, chunk_bytes=cutting.chunk_bytes, chunk_rows=cutting.chunk_rows)
    for number, pieces in itertools.groupby(cuts, lambda piece: piece.chunk):
        first = next(pieces)
        rows, size = first.rows, len(first.data)
        if packed:
            with ObjectWriter(client, bucket, name(number), tags=tags) as writer:
                writer.write(first.data)
                for piece in pieces:
                    writer.write(piece.data)
                    rows, size = rows + piece.rows, size + len(piece.data)
            chunk = Chunk(number, bucket, name(number), None, 0, size, first.row, first.line, rows)
        else:
            for piece in pieces:
                rows, size = rows + piece.rows, size + len(piece.data)
            start = first.offset
            chunk = Chunk(
                number, source.bucket, source.key, source.version, start, start + size, first.row, first.line, rows
            )
        # Only blank lines can be left after the last chunk.
        if rows:
            chunks.append(chunk)
    return top.header, chunks


def _seen(blocks: Iterator[Block], history: History) -> Iterator[Block]:
    for block in blocks:
        check_text(block)
        history.see(block)
        yield block


def read_options(client: S3Client, source: Source) -> Options:
    """What the uploader says of a file: its own metadata, and what stands beside it as `<name>.job.json`.

    Raises:
        InvalidTable: there is no such file any more, or the options are wrong.
    """
    with _there(source):
        metadata = client.head_object(Bucket=source.bucket, Key=source.key, VersionId=source.version)["Metadata"]
    try:
        body = client.get_object(Bucket=source.bucket, Key=source.key + SIDECAR_SUFFIX)["Body"]
    except client.exceptions.NoSuchKey:
        return Options.read(metadata, None)
    with body:
        return Options.read(metadata, body.read(MAXIMUM_BYTES + 1))


def _head(stream: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    head, _ = fill(b"", stream)
    return head, stream


def _open(client: S3Client, source: Source) -> Iterator[bytes]:
    with _there(source):
        yield from read(client, source.bucket, source.key, version=source.version)


@contextmanager
def _there(source: Source) -> Iterator[None]:
    """Say of an upload that is not there any more that no job can be made of it."""
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] not in _GONE:
            raise
        message = f"file: want version {source.version} of {source.key}, got none: it was deleted"
        raise InvalidTable(message) from error
