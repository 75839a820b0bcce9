"""Where one CSV record ends and the next begins, in a stream of bytes of any size."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np

from threefold.errors import InvalidTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Positions = npt.NDArray[np.intp]

# What a reader holds at a time follows from this: a record is read whole, and blocks are not much larger.
MAXIMUM_RECORD_BYTES: Final = 1024**2
# Each costs another look at the bytes after it; beyond this many it is no CSV with a typing error in it.
MAXIMUM_UNCLOSED: Final = 100

_QUOTE, _LF, _CR = b'"\n\r'
_NONE: Final = np.zeros(0, np.intp)
# Possessive: a quote that was read as half of a doubled one does not become a closing one after all.
_CLOSED_FIELD: Final = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"')


@dataclass(frozen=True, slots=True)
class Block:
    """Whole records, as many as are at hand.

    Blank lines are no records: they count as lines, not as rows.

    Attributes:
        data: the bytes.
        offset: where they stand in the object.
        row: the number of the first record, 1 for the first under the header.
        line: the number of the line that `data` begins with, 1 for the file's first.
        starts: where each record begins in `data`.
        stops: where its text ends, the line's end left out.
        ends: where its line ends.
        opens: where quoted fields begin.
        closes: where they end, at their last quote.
        newlines: where lines end, within quotes or not.
        unclosed: the block is one record, which opens a quote that nothing closes.
    """

    data: bytes
    offset: int
    row: int
    line: int
    starts: Positions
    stops: Positions
    ends: Positions
    opens: Positions = field(repr=False)
    closes: Positions = field(repr=False)
    newlines: Positions = field(repr=False)
    unclosed: bool = False

    def __len__(self) -> int:
        """How many records."""
        return len(self.starts)

    def find(self, character: int, start: int, stop: int) -> Positions:
        """Where a character stands outside of quotes, in a part of the block."""
        part = np.frombuffer(self.data, np.uint8, stop - start, start)
        return _outside(np.flatnonzero(part == character) + start, self.opens, self.closes)

    def lines(self, positions: list[int]) -> list[int]:
        """The numbers of the lines that some of the records begin on."""
        found: list[int] = (np.searchsorted(self.newlines, self.starts[positions]) + self.line).tolist()
        return found


def read_blocks(
    stream: Iterator[bytes], delimiter: str, *, offset: int = 0, row: int = 1, line: int = 1
) -> Iterator[Block]:
    """Cut a stream into blocks of whole records, in memory bounded by the longest record there may be.

    A quote opens a quoted field at a field's start only, as Python's csv module and spreadsheets have it; anywhere
    else it is a character. A record ends at a newline outside of quotes. Where a quote is not closed within
    MAXIMUM_RECORD_BYTES, or by the stream's end, its record ends with its first line, so that one typing error costs
    one row. All of that depends on the bytes alone, never on how the stream is cut, so that planner and reader agree.

    Args:
        stream: pieces of any size, beginning at a record's start.
        delimiter: one ASCII character.
        offset: where the stream begins in its object.
        row: the number of its first record.
        line: the number of its first line.

    Raises:
        InvalidTable: a line that is longer than a record may be, or too many quotes that are not closed.
    """
    buffer, unclosed = b"", 0
    for piece in chain(stream, (None,)):
        buffer += piece or b""
        # What is left holds no whole record, unless it is too long for one.
        while buffer and (piece is None or b"\n" in piece or len(buffer) > MAXIMUM_RECORD_BYTES):
            ends, *marks = _scan(buffer, delimiter, last=piece is None)
            if len(ends):
                block = _block(buffer, (offset, row, line), ends, marks)
            elif piece is not None and len(buffer) <= MAXIMUM_RECORD_BYTES:
                break
            else:
                unclosed += 1
                cut = _first_line(buffer, line, unclosed)
                block = _block(
                    buffer, (offset, row, line), np.array([cut], np.intp), [_NONE, _NONE, marks[-1]], unclosed=True
                )
            yield block
            buffer = buffer[len(block.data) :]
            offset += len(block.data)
            row += len(block)
            line += len(block.newlines)
            if piece is not None and len(buffer) <= MAXIMUM_RECORD_BYTES:
                break


def _first_line(buffer: bytes, line: int, unclosed: int) -> int:
    """Where a record ends whose quote is not closed in time."""
    cut = buffer.find(b"\n", 0, MAXIMUM_RECORD_BYTES) + 1
    if not cut and len(buffer) > MAXIMUM_RECORD_BYTES:
        message = f"line {line}: want at most {MAXIMUM_RECORD_BYTES} bytes, got more"
        raise InvalidTable(message)
    if unclosed > MAXIMUM_UNCLOSED:
        message = f"line {line}: want quotes that are closed, got {unclosed} that are not"
        raise InvalidTable(message)
    return cut or len(buffer)


def fill(buffer: bytes, stream: Iterator[bytes]) -> tuple[bytes, bool]:
    """Enough bytes to say of the first record whether it ends in time, or all that are left.

    Args:
        buffer: what is at hand.
        stream: what follows.

    Returns:
        The bytes, and whether the stream is at its end.
    """
    pieces, size = [buffer], len(buffer)
    while size <= MAXIMUM_RECORD_BYTES:
        piece = next(stream, None)
        if piece is None:
            return b"".join(pieces), True
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces), False


def _scan(buffer: bytes, delimiter: str, *, last: bool) -> tuple[Positions, Positions, Positions, Positions]:
    """The ends of the records up to the first that does not end in time; quoted fields' begins and ends; newlines."""
    array = np.frombuffer(buffer, np.uint8)
    newlines = np.flatnonzero(array == _LF)
    opens, closes = _quoted(buffer, array, ord(delimiter))
    ends = _outside(newlines, opens, closes) + 1
    if last and len(opens) == len(closes) and len(buffer) > (ends[-1] if len(ends) else 0):
        ends = np.append(ends, len(buffer))
    long = np.flatnonzero(np.diff(ends, prepend=0) > MAXIMUM_RECORD_BYTES)
    if len(long):
        ends = ends[: long[0]]
    return ends, opens, closes, newlines


def _quoted(buffer: bytes, array: npt.NDArray[np.uint8], delimiter: int) -> tuple[Positions, Positions]:
    """Where quoted fields begin and end; an open one has no end."""
    if b'"' not in buffer:
        return _NONE, _NONE
    quotes = np.flatnonzero(array == _QUOTE)
    opens, closes = quotes[::2], quotes[1::2]
    # Every second quote closes, if each of the others stands at a field's start, or doubles the one before it.
    before = array[opens - 1]
    good = (opens == 0) | (before == delimiter) | (before == _LF)
    good[1:] |= opens[1:] == closes[: len(opens) - 1] + 1
    if good.all():
        return opens, closes
    return _walk(buffer, chr(delimiter).encode())


def _walk(buffer: bytes, delimiter: bytes) -> tuple[Positions, Positions]:
    """The same, field by field, where some quotes are mere characters."""
    field_start = re.compile(b'(?:(?<=[\n%s])|\\A)"' % re.escape(delimiter))
    opens, closes, position = [], [], 0
    while (found := field_start.search(buffer, position)) is not None:
        start = found.end() - 1
        opens.append(start)
        if (whole := _CLOSED_FIELD.match(buffer, start)) is None:
            break
        position = whole.end()
        closes.append(position - 1)
    return np.array(opens, np.intp), np.array(closes, np.intp)


def _outside(positions: Positions, opens: Positions, closes: Positions) -> Positions:
    if not len(opens):
        return positions
    outside: npt.NDArray[np.bool_] = np.searchsorted(opens, positions) == np.searchsorted(closes, positions)
    return positions[outside]


def _block(
    buffer: bytes,
    place: tuple[int, int, int],
    ends: Positions,
    marks: list[Positions],
    *,
    unclosed: bool = False,
) -> Block:
    data = buffer[: ends[-1]]
    array = np.frombuffer(data, np.uint8)
    starts = np.concatenate([np.zeros(1, np.intp), ends[:-1]])
    stops = ends - (array[ends - 1] == _LF)
    while (trailing := (stops > starts) & (array[stops - 1] == _CR)).any():
        stops = stops - trailing
    if not (full := stops > starts).all():
        starts, stops, ends = starts[full], stops[full], ends[full]
    opens, closes, newlines = marks
    inside = np.searchsorted(opens, len(data))
    lines = np.searchsorted(newlines, len(data))
    return Block(data, *place, starts, stops, ends, opens[:inside], closes[:inside], newlines[:lines], unclosed)
