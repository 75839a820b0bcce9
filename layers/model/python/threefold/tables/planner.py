"""Cuts a CSV into chunks, the same for the same bytes whenever they are planned, and says what a job goes by."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold.errors import InvalidTable
from threefold.release import check_schema
from threefold.tables.header import Header

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from threefold.package import Kind
    from threefold.tables.records import Block

SCHEMA: Final = 1
# After so many chunks they are twice as large, and again: 5 TB, S3's largest object, are 9,000 chunks of 8 MiB and
# more, and an object can be put together from 10,000 parts
# (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html).
DOUBLED_AFTER: Final = 900
_LATER: Final = frozenset({"windows", "counts"})


@dataclass(frozen=True, slots=True)
class Plan:
    """What the worker of any chunk needs to know, fixed when the job begins.

    Attributes:
        release: the release document's object version that the job follows, whatever is promoted meanwhile.
        digest: the champion that it names, or the version that was asked for.
        kind: what that answers.
        at_ms: the time of all records, milliseconds since 1970.
        header: the file's header row.
        version: the digest that alone scores the job, if the uploader named a version.
        store: whether outcomes go to the predictions table, and not to the result file alone.
        windows: the columns of the windows' values that were replayed, each a package's digest and a feature; None for
            a model without windows.
        counts: whether the rows are counted for windows when the job is complete.
    """

    job: str
    model: str
    release: str
    digest: str
    kind: Kind
    at_ms: int
    header: Header
    version: str | None = None
    store: bool = True
    windows: tuple[tuple[str, str], ...] | None = None
    counts: bool = False

    def to_json(self) -> dict[str, Any]:
        """The plan as the results bucket keeps it."""
        document = {"schema": SCHEMA, **asdict(self)}
        # Unknown to the workers of an earlier release, which serve no model with windows.
        return document if self.windows is not None else {k: v for k, v in document.items() if k not in _LATER}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Plan:
        """Read what `to_json` wrote.

        Raises:
            InvalidManifest: it has a newer schema.
        """
        check_schema("plan", document.get("schema"), SCHEMA)
        fields = {name: value for name, value in document.items() if name != "schema"}
        windows = fields.get("windows")
        fields["windows"] = None if windows is None else tuple((digest, name) for digest, name in windows)
        return cls(**{**fields, "header": Header(**fields["header"])})


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one chunk, and the numbers of what they begin with."""

    chunk: int
    data: bytes
    offset: int
    row: int
    line: int
    rows: int


def cut(blocks: Iterator[Block], *, chunk_bytes: int, chunk_rows: int) -> Iterator[Piece]:
    """Say which chunk each part of a file belongs to, in the file's order.

    A chunk ends with the first record that makes it as large as it should be.

    Args:
        blocks: the file's records.
        chunk_bytes: the size that a chunk aims at; later ones aim at more.
        chunk_rows: the most records of a chunk; later ones have more.

    Raises:
        InvalidTable: bytes that are not UTF-8.
    """
    number, size, rows = 0, 0, 0
    for block in blocks:
        check_text(block)
        first, start, line = 0, 0, block.line
        while start < len(block.data):
            # The first record that fills the chunk, by size or by count.
            times = 2 ** (number // DOUBLED_AFTER)
            by_size = int(np.searchsorted(block.ends, start + chunk_bytes * times - size))
            last = min(by_size, first + chunk_rows * times - rows - 1)
            full = last < len(block)
            end = int(block.ends[last]) if full else len(block.data)
            count = (last + 1 if full else len(block)) - first
            data = block.data[start:end]
            yield Piece(number, data, block.offset + start, block.row + first, line, count)
            size, rows = size + len(data), rows + count
            first, start, line = first + count, end, line + data.count(b"\n")
            if full:
                number, size, rows = number + 1, 0, 0


def check_text(block: Block) -> None:
    """See that records are text.

    Raises:
        InvalidTable: bytes that are not UTF-8.
    """
    if block.data.isascii():
        return
    try:
        block.data.decode()
    except UnicodeDecodeError as error:
        line = block.line + block.data.count(b"\n", 0, error.start)
        message = f"line {line}: want UTF-8, got byte 0x{block.data[error.start]:02x}"
        raise InvalidTable(message) from error
