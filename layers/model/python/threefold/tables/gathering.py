"""Records that were left pending, read from JSON lines and CSVs and written as the rows of one CSV."""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from threefold import strict_json
from threefold.errors import Malformed
from threefold.features import parse_cell
from threefold.tables.compressed import MAGIC, gunzip
from threefold.tables.header import read_header
from threefold.tables.records import MAXIMUM_RECORD_BYTES, fill, read_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from threefold.signature import Feature

CSV_SUFFIXES: Final = (".csv", ".csv.gz")
# What a header row has room for; names that come later are left out.
MAXIMUM_COLUMNS: Final = 2_000
_MAXIMUM_HEADER_BYTES: Final = MAXIMUM_RECORD_BYTES // 2
# What JSON has no word for, and the doors take as texts.
_NON_FINITE: Final = frozenset({"NaN", "Infinity", "-Infinity"})
# As much of what is no record as a reader of rejects.csv wants to see.
_SHOWN: Final = 1_000


@dataclass(frozen=True, slots=True)
class Pending:
    """One line of what was left.

    Attributes:
        fields: the record, or the cells of a CSV's row by column; None if it is neither.
        text: the line as it was left, if it is neither.
        problem: what is wrong with it then.
        cells: whether the fields are a CSV's cells, and not JSON's values.
    """

    fields: Mapping[str, Any] | None
    text: str = ""
    problem: str = ""
    cells: bool = False


def read_pending(key: str, stream: Iterator[bytes], names: Sequence[str]) -> Iterator[Pending]:
    """The records of one object, in bounded memory.

    Args:
        key: its key, which says whether it is a CSV; anything else is JSON lines.
        stream: its content, gzip or plain.
        names: columns that a CSV may have, by which its delimiter is found.

    Raises:
        InvalidTable: a CSV without a header row that can be read, or gzip that is damaged.
    """
    first = next(stream, b"")
    stream = itertools.chain([first], stream)
    if first.startswith(MAGIC):
        stream = gunzip(stream)
    return _rows(stream, names) if key.endswith(CSV_SUFFIXES) else _lines(stream)


def _lines(stream: Iterator[bytes]) -> Iterator[Pending]:
    """One record a line; a line that is too long is one that is wrong."""
    buffer, skipping = b"", False
    for piece in itertools.chain(stream, (b"\n",)):
        *whole, buffer = (buffer + piece).split(b"\n")
        for line in whole:
            if not skipping and (text := line.strip()):
                yield _record(text)
            skipping = False
        if len(buffer) > MAXIMUM_RECORD_BYTES:
            if not skipping:
                yield _too_long(buffer)
            buffer, skipping = b"", True


def _record(line: bytes) -> Pending:
    if len(line) > MAXIMUM_RECORD_BYTES:
        return _too_long(line)
    try:
        record = strict_json.loads(line)
    except Malformed as error:
        return Pending(None, _text(line), str(error))
    if not isinstance(record, dict):
        return Pending(None, _text(line), "record: want a JSON object")
    return Pending(record)


def _too_long(line: bytes) -> Pending:
    return Pending(None, _text(line), f"record: want at most {MAXIMUM_RECORD_BYTES} bytes, got more")


def _text(line: bytes) -> str:
    return line[: 4 * _SHOWN].decode(errors="replace")[:_SHOWN]


def _rows(stream: Iterator[bytes], names: Sequence[str]) -> Iterator[Pending]:
    head, _ = fill(b"", stream)
    if not head:
        return
    top = read_header(head, names)
    header, columns = top.header, top.header.columns
    for block in read_blocks(itertools.chain([head[top.size_bytes :]], stream), header.delimiter):
        for start, stop in zip(block.starts.tolist(), block.stops.tolist(), strict=True):
            line = block.data[start:stop]
            try:
                cells = next(csv.reader([line.decode()], delimiter=header.delimiter), [])
            except (csv.Error, UnicodeDecodeError) as error:
                yield Pending(None, _text(line), f"record: want a CSV's row, got {error}")
                continue
            if len(cells) != len(columns) or block.unclosed:
                yield Pending(None, _text(line), f"record: want {len(columns)} cells, got {len(cells)}")
            else:
                yield Pending(dict(zip(columns, cells, strict=True)), cells=True)


class Columns:
    """The columns of the CSV: the model's own, then whatever else occurs, in the order in which it does.

    Attributes:
        names: so far.
        left_out: how many names found no room.
    """

    def __init__(self, features: Sequence[Feature], key: str | None) -> None:
        """Begin with what the model reads."""
        own = [feature.name for feature in features]
        self._known = dict.fromkeys(own + ([key] if key is not None else []))
        self._size = sum(len(name.encode()) + 3 for name in self._known)
        self.left_out = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(self._known)

    def see(self, pending: Pending) -> None:
        """Take in the names of a record's fields."""
        for field in pending.fields or ():
            if (name := field.strip()) and name not in self._known:
                size = 2 * len(name.encode()) + 3
                if len(self._known) >= MAXIMUM_COLUMNS or self._size + size > _MAXIMUM_HEADER_BYTES:
                    self.left_out += 1
                    continue
                self._known[name] = None
                self._size += size


class RowWriter:
    """Writes pending records as rows that the batch door reads as the same values."""

    def __init__(self, columns: Sequence[str], features: Sequence[Feature], key: str | None) -> None:
        """Make a writer of rows under some columns."""
        self._columns = columns
        self._features = {feature.name: feature for feature in features}
        self._key = key

    def head(self) -> bytes:
        """The header row."""
        return _line(self._columns)

    def row(self, pending: Pending) -> bytes:
        """A record's row; what is no record becomes a row that the door rejects, with the reason in it."""
        if pending.fields is None:
            return self._wrong(pending.text, pending.problem)
        # A feature's name is taken to the letter, as at the other doors.
        found = {
            bare: value
            for name, value in pending.fields.items()
            if (bare := name.strip()) == name or bare not in self._features
        }
        if pending.cells:
            return self._bounded(_line([found.get(name, "") for name in self._columns]))
        cells = []
        for name in self._columns:
            value, feature = found.get(name), self._features.get(name)
            if feature is not None and feature.type == "string" and not isinstance(value, str | None):
                return self._wrong(_json(pending.fields), f"input '{name}': want string, got {_json(value)}")
            cells.append(_feature_cell(value, feature) if feature else _other_cell(value, key=name == self._key))
        return self._bounded(_line(cells))

    def _bounded(self, line: bytes) -> bytes:
        if len(line) <= MAXIMUM_RECORD_BYTES:
            return line
        return self._wrong(_text(line), f"record: want at most {MAXIMUM_RECORD_BYTES} bytes as a CSV's row, got more")

    def _wrong(self, text: str, problem: str) -> bytes:
        """A row with more cells than there are columns: that is what the door rejects, whatever the model takes."""
        return _line([text[:_SHOWN], problem[:_SHOWN], *[""] * (len(self._columns) - 1)])


def _feature_cell(value: object, feature: Feature) -> str:
    """A feature's value as a cell. What a cell could say only as a value of another type becomes one that fails.

    The empty text of a text feature cannot be said in a CSV, where it means that there is none.
    """
    if value is None or feature.type == "string":
        return str(value or "")
    if isinstance(value, str):
        return value if value in _NON_FINITE or parse_cell(feature, value) == value else _json(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _json(value)
    # JSON's 1 is no boolean, as a cell's is.
    return f"{value}.0" if feature.type == "bool" and isinstance(value, int) else str(value)


def _other_cell(value: object, *, key: bool) -> str:
    """What is no feature, as it is carried through."""
    if value is None or isinstance(value, str):
        return value or ""
    if key:
        # As `record_keys` has them at the other doors.
        return str(value) if isinstance(value, int | float) else ""
    return _json(value)


def _json(value: object) -> str:
    return strict_json.dumps(value).decode()


def _line(cells: Iterable[str]) -> bytes:
    lines: list[str] = []
    # A writer calls `write` once a row, and wants nothing else of a file. Both line ends: what holds either is quoted.
    file: Any = SimpleNamespace(write=lines.append)
    csv.writer(file, lineterminator="\r\n").writerow(cells)
    return lines[0].encode()
