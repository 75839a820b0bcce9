"""A CSV's first record: its encoding, its delimiter, and which of its columns a model wants."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from threefold.errors import InvalidTable
from threefold.tables.records import MAXIMUM_RECORD_BYTES, read_blocks

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from threefold.signature import Feature

# In the order in which they win, where several explain a header equally well.
DELIMITERS: Final = ",;\t|"
_BOM: Final = b"\xef\xbb\xbf"
_OTHER_BOMS: Final = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "gzip within gzip",
    b"PK\x03\x04": "a zip file",
}


@dataclass(frozen=True, slots=True)
class Header:
    """The header row.

    Attributes:
        text: as it is written, without byte order mark and line end.
        delimiter: one of DELIMITERS.
        newline: how its line ends, and the lines of the result file with it.
    """

    text: str
    delimiter: str
    newline: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, without spaces around them.

        Raises:
            InvalidTable: the text is no line of CSV.
        """
        csv.field_size_limit(MAXIMUM_RECORD_BYTES)
        try:
            return tuple(name.strip() for name in next(csv.reader([self.text], delimiter=self.delimiter), ()))
        except csv.Error as error:
            got = "a lone CR in it" if "\r" in self.text else str(error)
            message = f"header: want a line of CSV that ends in LF or CRLF, got {got}"
            raise InvalidTable(message) from error

    def check(self, features: Iterable[Feature]) -> None:
        """See that every feature without a default has its column.

        Raises:
            InvalidTable: with the list of those that have none.
        """
        columns = self.columns
        if missing := [feature.name for feature in features if feature.missing is None and feature.name not in columns]:
            shown = f"columns {list(columns)}"
            message = f"header: want columns {missing}, got {shown if len(shown) <= 1000 else f'{len(columns)} others'}"  # noqa: PLR2004
            raise InvalidTable(message)


@dataclass(frozen=True, slots=True)
class Top:
    """A file's header and what comes next.

    Attributes:
        size_bytes: where the first record begins.
        line: the number of the line that it begins on.
    """

    header: Header
    size_bytes: int
    line: int


def read_header(head: bytes, wanted: Collection[str], *, delimiter: str | None = None) -> Top:
    """Read the header row from a file's first bytes.

    Unless it is said, the delimiter is the one under which most of the wanted names are found, and after that most
    columns.

    Args:
        head: more bytes than MAXIMUM_RECORD_BYTES, or the whole file.
        wanted: names that a column may have.
        delimiter: the one that the uploader names.

    Raises:
        InvalidTable: there is none, it is not UTF-8, or a name stands in it twice.
    """
    for mark, name in _OTHER_BOMS.items():
        if head.startswith(mark):
            message = f"file: want CSV in UTF-8, got {name}"
            raise InvalidTable(message)
    body = head.removeprefix(_BOM).lstrip(b"\r\n")
    skipped = len(head) - len(body)
    if not body:
        message = f"file: want a header row, got {'nothing' if not head else 'no text'}"
        raise InvalidTable(message)
    tops = [_read(body, one) for one in (delimiter or DELIMITERS)]
    found = max(tops, key=lambda top: (len({*wanted} & {*top.header.columns}), len(top.header.columns)))
    columns = found.header.columns
    if doubled := sorted({name for name in columns if columns.count(name) > 1}):
        message = f"header: want each name once, got {doubled} more than once"
        raise InvalidTable(message)
    return Top(found.header, skipped + found.size_bytes, found.line + head[:skipped].count(b"\n"))


def _read(body: bytes, delimiter: str) -> Top:
    block = next(read_blocks(iter([body]), delimiter))
    if block.unclosed:
        message = "header: want quotes that are closed, got one that is not"
        raise InvalidTable(message)
    stop, end = int(block.stops[0]), int(block.ends[0])
    try:
        text = body[:stop].decode()
    except UnicodeDecodeError as error:
        message = f"line 1: want UTF-8, got byte 0x{body[error.start]:02x}"
        raise InvalidTable(message) from error
    newline = "\r\n" if body[stop:end].startswith(b"\r") else "\n"
    return Top(Header(text, delimiter, newline), end, 1 + body.count(b"\n", 0, end))
