"""What a job hands back: the upload's rows with their outcomes beside them, and the rows that have none."""

from __future__ import annotations

import csv
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from threefold import strict_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from threefold.package import Kind
    from threefold.tables.header import Header
    from threefold.tables.reader import Batch

    Prediction = Mapping[str, Any]

# Before each of our columns' names, once more for as long as the upload has such a name itself: a result file can be
# uploaded again, and no column stands in a file twice.
PREFIX: Final = "threefold_"
ANSWERS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "classification": ("label", "score", "options"),
    "regression": ("value",),
    "tensors": ("tensors",),
}
REJECT_COLUMNS: Final = ("row", "line", "column", "reason", "text")
# https://owasp.org/www-community/attacks/CSV_Injection: what a spreadsheet takes for the beginning of a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# Where the name of an outcome's field is not the name of its column.
_FIELDS: Final = {"prediction_id": "id", "model_version": "version"}


class ResultRows:
    """Writes the lines of `predictions.csv` and `rejects.csv`.

    `predictions.csv` has the upload's delimiter and line ends, and each record as it was uploaded, byte for byte; a
    record that has not the header's form is fitted to the header's width, and its text stands in `rejects.csv`.
    """

    def __init__(self, header: Header, kind: Kind) -> None:
        """Make a writer.

        Args:
            header: the upload's header row.
            kind: what the model answers.
        """
        self._header = header
        self._width = len(header.columns)
        columns = ("prediction_id", "status", *ANSWERS[kind], "reasons", "model_version", "digest", "role")
        self._columns = (*columns, "code", "message")
        self._fields = [_FIELDS.get(column, column) for column in self._columns]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the outcome columns."""
        prefix = PREFIX
        while any(prefix + column in self._header.columns for column in self._columns):
            prefix += PREFIX
        return tuple(prefix + column for column in self._columns)

    def head(self) -> bytes:
        """The header line of `predictions.csv`."""
        header = self._header
        return f"{header.text}{header.delimiter}{header.delimiter.join(self.columns)}{header.newline}".encode()

    def rejects_head(self) -> bytes:
        """The header line of `rejects.csv`."""
        return b"".join(self._lines([REJECT_COLUMNS]))

    def joined(self, batch: Batch, predictions: Sequence[Prediction]) -> bytes:
        """The lines of a batch in `predictions.csv`.

        Args:
            batch: its records.
            predictions: one for each record of the batch, as `Outcomes.predictions()` has them.
        """
        fields, delimiter = self._fields, self._header.delimiter.encode()
        lines = self._lines([_cell(prediction.get(field)) for field in fields] for prediction in predictions)
        texts = batch.texts()
        for position in batch.bad:
            texts[position] = self._fit(texts[position])
        return b"".join([part for text, line in zip(texts, lines, strict=True) for part in (text, delimiter, line)])

    def rejected(self, batch: Batch, predictions: Sequence[Prediction]) -> bytes:
        """The lines of a batch in `rejects.csv`: formula-looking text has an apostrophe before it."""
        positions = [i for i, prediction in enumerate(predictions) if prediction["status"] == "rejected"]
        if not positions:
            return b""
        texts, numbers, columns = batch.texts(), batch.numbers, self._header.columns
        rows = []
        for position, line in zip(positions, batch.lines(positions), strict=True):
            reason = predictions[position]["message"]
            named = [name for name in columns if f"input '{name}': " in reason or f"time '{name}': " in reason]
            cells = ("; ".join(named), reason, texts[position].decode())
            rows.append([numbers[position], line, *map(escape, cells)])
        return b"".join(self._lines(rows))

    def _lines(self, rows: Iterable[Iterable[object]]) -> list[bytes]:
        lines: list[str] = []
        # A writer calls `write` once a row, and wants nothing else of a file.
        file: Any = SimpleNamespace(write=lines.append)
        # Python before 3.13 quotes only those line ends that are its own: with both, it quotes both.
        csv.writer(file, delimiter=self._header.delimiter, lineterminator="\r\n").writerows(rows)
        newline = self._header.newline
        return [f"{line[:-2]}{newline}".encode() for line in lines]

    def _fit(self, text: bytes) -> bytes:
        """A record of another form in the header's form: cells left empty or left out, and everything quoted."""
        # The module takes a CR in a record for a line's end, and refuses what comes after it.
        plain = text.decode().replace("\r", " ")
        try:
            cells = next(csv.reader([plain], delimiter=self._header.delimiter), [])
        except csv.Error:
            cells = []
        cells = [*cells, *[""] * self._width][: self._width]
        lines: list[str] = []
        file: Any = SimpleNamespace(write=lines.append)
        csv.writer(file, delimiter=self._header.delimiter, lineterminator="", quoting=csv.QUOTE_ALL).writerow(cells)
        return lines[0].encode()


def escape(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _cell(value: object) -> object:
    """A value as a cell; lists as JSON."""
    return strict_json.dumps(value).decode() if isinstance(value, list) else value
