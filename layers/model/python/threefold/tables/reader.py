"""CSV records as a request's rows: numbers a block at a time where they allow it, else carefully, cell by cell."""

from __future__ import annotations

import csv
import re
import struct
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np
import orjson

from threefold.features import parse_cell
from threefold.request import Matrix, Records
from threefold.tables.records import MAXIMUM_RECORD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from threefold.signature import Feature
    from threefold.tables.header import Header
    from threefold.tables.records import Block

    Positions = npt.NDArray[np.intp]

# An item of the predictions table holds 400 KB, and the key is one of its attributes.
MAXIMUM_KEY_BYTES: Final = 64 * 1024
# As many as one call of the model takes.
ROWS_PER_BATCH: Final = 4096
# Measured: their text and their numbers stay in the processor's cache.
_ROWS_AT_A_TIME: Final = 512
# So many columns can be counted in a byte.
_COUNTABLE: Final = 256
_NEGATIVE_ZERO: Final = re.compile(rb"-0(?![0-9.eE])")
# float64 holds whole numbers exactly below this.
_EXACT: Final = 2.0**53


@dataclass(frozen=True, slots=True)
class Batch:
    """Some consecutive records of a block.

    Attributes:
        block: where they stand.
        first: the position of the first in it.
        count: how many they are.
        rows: the values of those that have the header's form, n of them.
        keys: their own keys, if the model has a key and the file a column for it.
        bad: why the others do not have it, by their position in the batch.
    """

    block: Block
    first: int
    count: int
    rows: Matrix | Records
    keys: Sequence[str | None] | None = None
    bad: dict[int, str] = field(default_factory=dict)

    @property
    def numbers(self) -> range:
        """The records' row numbers."""
        start = self.block.row + self.first
        return range(start, start + self.count)

    @property
    def good(self) -> Sequence[int]:
        """The positions of `rows` in the batch."""
        return [i for i in range(self.count) if i not in self.bad] if self.bad else range(self.count)

    @property
    def end(self) -> tuple[int, int, int]:
        """Where the next record begins: its place in the object, its number, and the number of its line."""
        block = self.block
        stop = int(block.ends[self.first + self.count - 1])
        return block.offset + stop, self.numbers.stop, block.line + int(np.searchsorted(block.newlines, stop))

    def texts(self) -> list[bytes]:
        """The records as they are written, without their lines' ends."""
        return _records(self.block, self.first, self.first + self.count)

    def lines(self, positions: Sequence[int]) -> list[int]:
        """The numbers of the lines that some of the records begin on."""
        return self.block.lines([self.first + position for position in positions])


class RowReader:
    """Reads the records of one file for one set of features.

    Both ways give the same outcomes for the same bytes: the fast one takes only what the other reads as plain numbers,
    and leaves the batch to it otherwise.
    """

    def __init__(
        self, header: Header, features: Sequence[Feature], *, key: str | None = None, numeric: bool = True
    ) -> None:
        """Make a reader.

        Args:
            header: the file's header row.
            features: what the records are read for.
            key: the column with the records' own keys, if there is one.
            numeric: whether the features are packed numbers, so that a matrix can be made of them.
        """
        columns = header.columns
        self._width = len(columns)
        self._delimiter = header.delimiter
        self._names = tuple(feature.name for feature in features)
        # A feature without a column has a default, or the planner would have refused the file.
        self._cells = [(columns.index(feature.name), feature) for feature in features if feature.name in columns]
        self._key = columns.index(key) if key in columns else None
        self._numeric = numeric and bool(self._cells)
        positions = {feature.name: i for i, feature in enumerate(features)}
        ordered = sorted(self._cells, key=lambda cell: cell[0])
        self._runs = _runs([column for column, _ in ordered])
        self._order = np.array([positions[feature.name] for _, feature in ordered], np.intp)
        self._whole = self._order.tolist() == list(range(len(features)))
        ends = {edge for left, right in self._runs for edge in (left, right + 1)}
        ends |= set() if self._key is None else {self._key, self._key + 1}
        self._columns = ends - {0, self._width}
        self._near = self._width <= _COUNTABLE and self._columns <= {1, self._width - 1}
        self._integers = [positions[feature.name] for _, feature in ordered if feature.type.startswith("int")]

    def read(self, block: Block, most: Callable[[], int] = lambda: ROWS_PER_BATCH) -> Iterator[Batch]:
        """A block's records, a bounded number at a time.

        Args:
            block: some records.
            most: how many at a time, asked before each batch.
        """
        if block.unclosed:
            yield Batch(block, 0, 1, Records([]), None if self._key is None else [], {0: "want quotes that are closed"})
            return
        # A carriage return within a record, and not at its end, needs the careful way.
        data = block.data
        numeric = self._numeric and (b"\r" not in data or data.count(b"\r") == data.count(b"\r\n"))
        first = 0
        while first < len(block):
            last = min(first + most(), len(block))
            yield (self._read_numbers(block, first, last) if numeric else None) or self._read_cells(block, first, last)
            first = last

    def _read_numbers(self, block: Block, first: int, last: int) -> Batch | None:
        if self._key is not None and (block.stops[first:last] - block.starts[first:last]).max() > MAXIMUM_KEY_BYTES:
            return None
        parts: list[npt.NDArray[np.float64]] = []
        keys: list[str | None] = []
        for start in range(first, last, _ROWS_AT_A_TIME):
            rows = slice(start, min(start + _ROWS_AT_A_TIME, last))
            cuts = self._cuts(block, block.starts[rows], block.stops[rows])
            if cuts is None:
                return None
            flat = self._parse([_texts(block.data, cuts[left], cuts[right + 1]) for left, right in self._runs])
            if flat is None:
                return None
            parts.append(flat)
            if self._key is not None:
                found = _texts(block.data, cuts[self._key], cuts[self._key + 1])
                if len(block.opens) and any(cell.startswith(b'"') for cell in found):
                    return None
                keys += [cell.decode() or None for cell in found]
        matrix = self._arrange(np.concatenate(parts).reshape(last - first, -1))
        if matrix is None:
            return None
        return Batch(block, first, last - first, Matrix(matrix, self._names), None if self._key is None else keys)

    def _cuts(self, block: Block, starts: Positions, stops: Positions) -> dict[int, list[int]] | None:
        """What stands before some of the columns: the byte before each record's cell, or the record's end.

        Returns:
            By column, as far as it is needed; None if some record has too few cells or too many.
        """
        inner, data = self._width - 1, block.data
        cuts = {0: [start - 1 for start in starts.tolist()], self._width: stops.tolist()}
        if len(block.opens) or not self._near:
            found = block.find(ord(self._delimiter), int(starts[0]), int(stops[-1]))
            if len(found) != len(starts) * inner:
                return None
            shaped = found.reshape(len(starts), inner)
            if inner and not ((shaped[:, 0] >= starts).all() and (shaped[:, -1] < stops).all()):
                return None
            return cuts | {column: shaped[:, column - 1].tolist() for column in self._columns}
        # Measured: counting costs a tenth of finding, and most files have but a key before their features.
        begin, mark = int(starts[0]), self._delimiter.encode()
        found = (np.frombuffer(data, np.uint8, int(stops[-1]) - begin, begin) == ord(mark)).view(np.uint8)
        counts = np.add.reduceat(found, starts - begin, dtype=np.uint8)
        if (counts != inner).any() or np.count_nonzero(found) != len(starts) * inner:
            return None
        if 1 in self._columns:
            cuts[1] = [data.find(mark, start) for start in starts.tolist()]
        if inner in self._columns:
            cuts[inner] = [
                data.rfind(mark, start, stop) for start, stop in zip(cuts[0], cuts[self._width], strict=True)
            ]
        return cuts

    def _parse(self, runs: list[list[bytes]]) -> npt.NDArray[np.float64] | None:
        """The numbers in the cells of neighboring columns, record by record; None if any cell is no JSON number."""
        cells = runs[0] if len(runs) == 1 else list(chain.from_iterable(zip(*runs, strict=True)))
        rows = len(runs[0])
        if self._delimiter != ",":
            cells = [b",".join(cells).replace(self._delimiter.encode(), b",")]
        flat = _numbers(cells)
        # A comma within a cell, where the delimiter is another one, makes two values of it.
        return flat if flat is not None and len(flat) == rows * len(self._order) else None

    def _arrange(self, found: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
        """The columns in the features' order, NaN for those that the file does not have."""
        matrix = found
        if not self._whole:
            matrix = np.full((len(found), len(self._names)), np.nan)
            matrix[:, self._order] = found
        if self._integers:
            # Larger ones are examined as the integers they are written as; and an integer's zero has no sign.
            if (np.abs(matrix[:, self._integers]) >= _EXACT).any():
                return None
            matrix[:, self._integers] += 0.0
        return matrix

    def _read_cells(self, block: Block, first: int, last: int) -> Batch:
        texts = [text.decode() for text in _records(block, first, last)]
        bad: dict[int, str] = {}
        records: list[dict[str, object]] = []
        keys: list[str | None] = []
        for i, row in enumerate(self._split(texts)):
            if isinstance(row, str):
                bad[i] = row
            elif len(row) != self._width:
                bad[i] = f"want {self._width} cells, got {len(row)}"
            elif self._key is not None and (size := len(row[self._key].encode())) > MAXIMUM_KEY_BYTES:
                bad[i] = f"want a key of at most {MAXIMUM_KEY_BYTES} bytes, got {size}"
            else:
                records.append({feature.name: parse_cell(feature, row[column]) for column, feature in self._cells})
                if self._key is not None:
                    keys.append(row[self._key] or None)
        return Batch(block, first, last - first, Records(records), None if self._key is None else keys, bad)

    def _split(self, texts: list[str]) -> list[list[str] | str]:
        """Each record's cells, or what is wrong with it."""
        csv.field_size_limit(MAXIMUM_RECORD_BYTES)
        try:
            rows: list[list[str] | str] = [*csv.reader(texts, delimiter=self._delimiter)]
        except csv.Error:
            return [self._split_one(text) for text in texts]
        assert len(rows) == len(texts), "a record is one row of Python's csv module"
        return rows

    def _split_one(self, text: str) -> list[str] | str:
        try:
            return next(csv.reader([text], delimiter=self._delimiter))
        except csv.Error:
            # All that is left for it to refuse: records are cut at newlines, and no longer than a field may be.
            return "want a carriage return only in quotes or at a line's end"


def _numbers(cells: list[bytes]) -> npt.NDArray[np.float64] | None:
    """The numbers of comma-separated texts, NaN where there is none; None if they are no such texts."""
    # JSON that is no number needs one of these: a text, true, false; None, lists and objects cannot be packed.
    text = b"[%s]" % b",".join(cells)
    if b'"' in text or b"t" in text or b"f" in text:
        return None
    try:
        values = orjson.loads(text)
        # Measured: a third of the time of numpy's own ways to take in a list.
        flat: npt.NDArray[np.float64] | None = np.frombuffer(struct.pack(f"{len(values)}d", *values))
    except (orjson.JSONDecodeError, struct.error):
        # Only where that fails is it worth a look for cells without text.
        flat = _sparse_numbers(text)
    # JSON's -0 is the integer 0; float's has a sign.
    if flat is None or (not flat.all() and _NEGATIVE_ZERO.search(text)):
        return None
    return flat


def _sparse_numbers(text: bytes) -> npt.NDArray[np.float64] | None:
    if b"n" in text or b"{" in text or text.count(b"[") > 1:
        return None
    filled = b",%s," % text[1:-1]
    filled = filled.replace(b",,", b",null,").replace(b",,", b",null,")[1:-1]
    try:
        return np.array(orjson.loads(b"[%s]" % filled), np.float64)
    except orjson.JSONDecodeError:
        return None


def _records(block: Block, first: int, last: int) -> list[bytes]:
    data, edges = block.data, zip(block.starts[first:last].tolist(), block.stops[first:last].tolist(), strict=True)
    return [data[start:stop] for start, stop in edges]


def _texts(data: bytes, cuts: list[int], stops: list[int]) -> list[bytes]:
    return [data[cut + 1 : stop] for cut, stop in zip(cuts, stops, strict=True)]


def _runs(columns: list[int]) -> list[tuple[int, int]]:
    """Neighboring columns, as (first, last)."""
    runs: list[tuple[int, int]] = []
    for column in columns:
        if runs and runs[-1][1] == column - 1:
            runs[-1] = (runs[-1][0], column)
        else:
            runs.append((column, column))
    return runs
