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
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from threefold.signature import Feature
    from threefold.tables.header import Header
    from threefold.tables.records import Block

# Measured: more do not make the model faster, and these stay in the processor's cache.
ROWS_PER_BATCH: Final = 1024
# With these a cell may be JSON, but no number: true, false, null, "text", [list], {object}.
_NO_NUMBERS: Final = (b"t", b"f", b"n", b'"', b"[", b"{")
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

    def texts(self) -> list[bytes]:
        """The records as they are written, without their lines' ends."""
        rows = slice(self.first, self.first + self.count)
        return _texts(self.block, self.block.starts[rows], self.block.stops[rows])

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
        self._integers = [positions[feature.name] for _, feature in ordered if feature.type.startswith("int")]

    def read(self, block: Block) -> Iterator[Batch]:
        """A block's records, at most ROWS_PER_BATCH at a time."""
        if block.unclosed:
            yield Batch(block, 0, 1, Records([]), None if self._key is None else [], {0: "want quotes that are closed"})
            return
        delimiters = self._delimiters(block)
        for first in range(0, len(block), ROWS_PER_BATCH):
            last = min(first + ROWS_PER_BATCH, len(block))
            fast = None if delimiters is None else self._read_numbers(block, first, last, delimiters)
            yield fast or self._read_cells(block, first, last)

    def _delimiters(self, block: Block) -> npt.NDArray[np.intp] | None:
        """Where cells end, if the block may be numbers: a carriage return within a record needs the careful way."""
        data = block.data
        if not self._numeric or (b"\r" in data and data.count(b"\r") != data.count(b"\r\n")):
            return None
        return block.find(ord(self._delimiter))

    def _read_numbers(self, block: Block, first: int, last: int, delimiters: npt.NDArray[np.intp]) -> Batch | None:
        starts, stops, rows = block.starts[first:last], block.stops[first:last], last - first
        inner = self._width - 1
        low, high = np.searchsorted(delimiters, (starts[0], stops[-1]))
        if high - low != rows * inner:
            return None
        cuts = delimiters[low:high].reshape(rows, inner)
        if inner and not ((cuts[:, 0] >= starts).all() and (cuts[:, -1] < stops).all()):
            return None

        def texts(left: int, right: int) -> list[bytes]:
            """The text from one column to another, of each record."""
            begin = starts if left == 0 else cuts[:, left - 1] + 1
            end = stops if right == inner else cuts[:, right]
            return _texts(block, begin, end)

        matrix = self._parse([texts(*run) for run in self._runs], rows)
        if matrix is None:
            return None
        keys = None
        if self._key is not None:
            found = texts(self._key, self._key)
            if len(block.opens) and any(cell.startswith(b'"') for cell in found):
                return None
            keys = [cell.decode() or None for cell in found]
        return Batch(block, first, rows, Matrix(matrix, self._names), keys)

    def _parse(self, runs: list[list[bytes]], rows: int) -> npt.NDArray[np.float64] | None:
        """Numbers from the cells of neighboring columns; None if any cell is no JSON number."""
        text = b",".join(runs[0] if len(runs) == 1 else chain.from_iterable(zip(*runs, strict=True)))
        if self._delimiter != ",":
            text = text.replace(self._delimiter.encode(), b",")
        if any(mark in text for mark in _NO_NUMBERS):
            return None
        flat = _numbers(text)
        # A comma within a cell, where the delimiter is another one, makes two values of it.
        if flat is None or len(flat) != rows * len(self._order):
            return None
        # JSON's -0 is the integer 0; float's has a sign.
        if not flat.all() and _NEGATIVE_ZERO.search(text):
            return None
        matrix = flat.reshape(rows, -1)
        if not self._whole:
            matrix = np.full((rows, len(self._names)), np.nan)
            matrix[:, self._order] = flat.reshape(rows, -1)
        if self._integers:
            whole = matrix[:, self._integers]
            # Larger ones are examined as the integers they are written as; and an integer's zero has no sign.
            if (np.abs(whole) >= _EXACT).any():
                return None
            matrix = matrix.copy()
            matrix[:, self._integers] = whole + 0.0
        return matrix

    def _read_cells(self, block: Block, first: int, last: int) -> Batch:
        texts = [text.decode() for text in _texts(block, block.starts[first:last], block.stops[first:last])]
        bad: dict[int, str] = {}
        records: list[dict[str, object]] = []
        keys: list[str | None] = []
        for i, row in enumerate(self._split(texts)):
            if isinstance(row, str):
                bad[i] = row
            elif len(row) != self._width:
                bad[i] = f"want {self._width} cells, got {len(row)}"
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


def _numbers(text: bytes) -> npt.NDArray[np.float64] | None:
    """The numbers of a comma-separated text, NaN where there is none; None if it is no such text."""
    try:
        values = orjson.loads(b"[%s]" % text)
        # Measured: a third of the time of numpy's own ways to take in a list.
        return np.frombuffer(struct.pack(f"{len(values)}d", *values))
    except (orjson.JSONDecodeError, struct.error):
        pass
    # Only where that fails is it worth a look for cells without text.
    filled = b",%s," % text
    filled = filled.replace(b",,", b",null,").replace(b",,", b",null,")[1:-1]
    try:
        return np.array(orjson.loads(b"[%s]" % filled), np.float64)
    except orjson.JSONDecodeError:
        return None


def _texts(block: Block, starts: npt.NDArray[np.intp], stops: npt.NDArray[np.intp]) -> list[bytes]:
    data = block.data
    return [data[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


def _runs(columns: list[int]) -> list[tuple[int, int]]:
    """Neighboring columns, as (first, last)."""
    runs: list[tuple[int, int]] = []
    for column in columns:
        if runs and runs[-1][1] == column - 1:
            runs[-1] = (runs[-1][0], column)
        else:
            runs.append((column, column))
    return runs
