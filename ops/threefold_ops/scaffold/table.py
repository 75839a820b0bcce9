"""A CSV as a person has it: its columns, the rows that have its form, and how many have not."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from threefold.errors import InvalidTable
from threefold.tables.header import read_header
from threefold.tables.records import MAXIMUM_RECORD_BYTES
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

# A cell takes some 60 bytes of memory; more data than this says nothing more of ranges and examples.
MAXIMUM_CELLS: Final = 5_000_000


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV in memory.

    Attributes:
        columns: the names in the header, without spaces around them.
        rows: the cells of the rows that have as many as the header.
        lines: the line that each of them ends on.
        malformed: how many rows have another number of cells, or cannot be read.
        unread: whether there are more rows than were read.
        sha256: of the file.
    """

    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    malformed: int
    unread: bool
    sha256: str

    def cells(self, column: str) -> list[str]:
        """One column's cells, as they are written."""
        position = self.columns.index(column)
        return [row[position] for row in self.rows]


def read_table(path: Path, wanted: Collection[str] = ()) -> Table:
    """Read a CSV with a header.

    Args:
        path: UTF-8, with or without a byte order mark; its delimiter is found as the batch door finds it.
        wanted: names that columns may have, which tell one delimiter from another.

    Raises:
        OperatorError: it cannot be read, has no header, or a name stands in the header twice.
    """
    try:
        content = path.read_bytes()
        header = read_header(content, wanted).header
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise OperatorError(f"{path}: want a file that can be read, got: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise OperatorError(f"{path}:{line}: want UTF-8, got byte 0x{content[error.start]:02x}") from error
    except InvalidTable as error:
        raise OperatorError(f"{path}: {error}") from error
    columns = header.columns
    csv.field_size_limit(MAXIMUM_RECORD_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=header.delimiter)
    rows: list[list[str]] = []
    lines: list[int] = []
    malformed = -1  # The header is none.
    most = max(1, MAXIMUM_CELLS // len(columns))
    while len(rows) < most:
        try:
            row = next(reader)
        except StopIteration:
            return Table(columns, rows, lines, malformed, unread=False, sha256=hashlib.sha256(content).hexdigest())
        except csv.Error:
            malformed += 1
            continue
        if not row:
            continue
        if malformed < 0:
            malformed = 0
        elif len(row) != len(columns):
            malformed += 1
        else:
            rows.append(row)
            lines.append(reader.line_num)
    return Table(columns, rows, lines, malformed, unread=True, sha256=hashlib.sha256(content).hexdigest())
