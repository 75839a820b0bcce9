"""Labelled records: a CSV whose rows say what was right, and how well a model answers them."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np

from threefold.errors import OutsideSignature, shown
from threefold.features import parse_cell
from threefold.model import Answer
from threefold.quality import measure
from threefold.signature import Feature

if TYPE_CHECKING:
    from _csv import Reader
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import TextIO

    from threefold.model import Model
    from threefold.package import Manifest

    Truth = str | int | float
    Problem = tuple[int | None, str]

# In the order in which they win, where several explain a header equally well.
_DELIMITERS: Final = ",;\t|"


@dataclass(slots=True)
class Labelled:
    """Some rows of a labelled CSV.

    Attributes:
        records: those that can be read, feature name to value, as JSON would say it.
        truth: what was right for each of them: a class or a number.
        lines: the line that each of them begins on.
        keys: each record's own id, where the model has a key and the file a column for it.
        problems: what is wrong with the other rows, or with the file: (line, what wanted got).
    """

    records: list[dict[str, object]] = field(default_factory=list)
    truth: list[Truth] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    keys: list[str | None] | None = None
    problems: list[Problem] = field(default_factory=list)


def read_labelled(path: Path, manifest: Manifest) -> Labelled:
    """Read a whole labelled CSV.

    Args:
        path: UTF-8, with a header: a column per feature, found by its name, and one for the truth, which is the
            gate's target or else `label` or `value`, by the output's kind. Other columns are left alone. A feature
            that has a default needs no column.
        manifest: what the rows are read for.

    Returns:
        All rows that can be read, and what is wrong with the others. Whether the model takes a record is for its
        encoder to say.
    """
    (whole,) = read_slices(path, manifest, None)
    return whole


def read_slices(path: Path, manifest: Manifest, rows: int | None) -> Iterator[Labelled]:
    """Read a labelled CSV some rows at a time; at least one slice comes, and the last may be without any row.

    Args:
        path: as for `read_labelled`.
        manifest: as for `read_labelled`.
        rows: how many at a time; None for all at once.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = _open(file, manifest)
            if isinstance(reader, str):
                yield Labelled(problems=[(1, reader)])
                return
            more = True
            while more:
                part, more = reader.read(rows)
                yield part
    except OSError as error:
        yield Labelled(problems=[(None, f"want a file that can be read, got {error.strerror}")])
    except UnicodeDecodeError:
        yield Labelled(problems=[_undecodable(path)])


class Scored:
    """A model's answers to labelled records, which come in slices.

    Attributes:
        truth: what was right for each row that was answered.
        lines: the line of each of them.
    """

    def __init__(self, model: Model) -> None:
        """Make an empty one.

        Args:
            model: one that takes records.
        """
        self.truth: list[Truth] = []
        self.lines: list[int] = []
        self._model = model
        self._answers: list[Answer] = []

    def __len__(self) -> int:
        """How many rows were answered."""
        return len(self.truth)

    def add(self, part: Labelled) -> tuple[list[Answer], list[Problem]]:
        """Have the model answer a slice.

        Returns:
            The answers, which together hold a row for each record that was answered, in order; and what is wrong with
            the others, and with what could not be read before.

        Raises:
            InvalidPackage: an output does not hold what the manifest says.
        """
        if self._model.encoder is None:
            message = "records: want a model with features, got one that takes tensors only"
            raise OutsideSignature(message)
        encoded = self._model.encoder.encode(part.records)
        problems = [*part.problems, *((part.lines[i], "; ".join(found)) for i, found in encoded.problems.items())]
        accepted = [i for i in range(len(part.records)) if i not in encoded.problems]
        answers: list[Answer] = []
        try:
            if accepted:
                answers.append(self._model.answer(encoded.tensors))
        except OutsideSignature:
            # A graph may refuse one of the rows, or only their company: each alone says which.
            alone, accepted = accepted, []
            for row, i in enumerate(alone):
                tensors = {name: array[row : row + 1] for name, array in encoded.tensors.items()}
                try:
                    answers.append(self._model.answer(tensors))
                    accepted.append(i)
                except OutsideSignature as error:
                    problems.append((part.lines[i], str(error)))
        self.truth += [part.truth[i] for i in accepted]
        self.lines += [part.lines[i] for i in accepted]
        # Without the tensors, which nobody asks for again.
        self._answers += [replace(answer, tensors={}) for answer in answers]
        return answers, problems

    def answer(self) -> Answer:
        """All answers as one: labels, scores and values."""
        answers = self._answers
        if not answers:
            return Answer({})
        first = answers[0]
        return Answer(
            {},
            labels=None if first.labels is None else [label for part in answers for label in part.labels or ()],
            scores=None if first.scores is None else np.concatenate([part.scores for part in answers]),
            values=None if first.values is None else np.concatenate([part.values for part in answers]),
        )

    def measure(self, metric: str) -> float:
        """Say how good the answers are.

        Raises:
            NotMeasurable: the metric says nothing of them.
        """
        said, classes = self.answer(), self._model.manifest.output.classes
        return measure(metric, self.truth, labels=said.labels, scores=said.scores, values=said.values, classes=classes)


def _undecodable(path: Path) -> Problem:
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return content.count(b"\n", 0, error.start) + 1, f"want UTF-8, got byte 0x{content[error.start]:02x}"
    return None, "want UTF-8, got something else"


def _open(file: TextIO, manifest: Manifest) -> _Rows | str:
    """What reads the rows under the header, or what is wrong with the header."""
    target = manifest.gate.target or ("value" if manifest.output.kind == "regression" else "label")
    features = manifest.signature.features
    wanted = {feature.name for feature in features} | {target}
    headers = []
    for delimiter in _DELIMITERS:
        file.seek(0)
        try:
            columns = [name.strip() for name in next(csv.reader(file, delimiter=delimiter), [])]
        except csv.Error as error:
            return f"want a header row, got {error}"
        headers.append((len(wanted & set(columns)), delimiter, columns))
    _, delimiter, columns = max(headers, key=lambda header: header[0])
    if not columns:
        return "want a header row, got nothing"
    if doubled := sorted({name for name in columns if columns.count(name) > 1}):
        return f"want each column once, got {doubled} more than once"
    needed = [feature.name for feature in features if feature.missing is None]
    if missing := [name for name in (*needed, target) if name not in columns]:
        return f"want columns {missing}, got {shown(columns)}"
    file.seek(0)
    reader = csv.reader(file, delimiter=delimiter)
    next(reader)
    return _Rows(reader, columns, target, manifest)


class _Rows:
    """Reads the rows under a header."""

    def __init__(self, reader: Reader, columns: list[str], target: str, manifest: Manifest) -> None:
        self._reader = reader
        self._width = len(columns)
        self._cells = [
            (feature, columns.index(feature.name)) for feature in manifest.signature.features if feature.name in columns
        ]
        self._truth = columns.index(target)
        self._key = columns.index(manifest.key) if manifest.key in columns else None
        self._target = target
        self._parse_truth, self._wanted = _truth_parser(manifest)

    def read(self, rows: int | None) -> tuple[Labelled, bool]:
        """The next rows, and whether there may be more."""
        part = Labelled(keys=None if self._key is None else [])
        cells: list[list[str]] = []
        count = 0
        for line, row in islice(self._numbered(part), rows):
            count += 1
            if len(row) != self._width:
                part.problems.append((line, f"want {self._width} cells, got {len(row)}"))
            elif (truth := self._parse_truth(text := row[self._truth])) is None:
                part.problems.append((line, f"{self._target}: want {self._wanted}, got {shown(text)}"))
            else:
                cells.append(row)
                part.truth.append(truth)
                part.lines.append(line)
                if part.keys is not None and self._key is not None:
                    part.keys.append(row[self._key] or None)
        names = [feature.name for feature, _ in self._cells]
        values = [_parse_column(feature, [row[i] for row in cells]) for feature, i in self._cells]
        part.records = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
        if not names:
            part.records = [{} for _ in cells]
        return part, count == rows

    def _numbered(self, part: Labelled) -> Iterator[tuple[int, list[str]]]:
        """The rows, each with the line that it begins on; blank lines are none."""
        line = self._reader.line_num + 1
        try:
            for row in self._reader:
                if row:
                    yield line, row
                line = self._reader.line_num + 1
        except csv.Error as error:
            part.problems.append((line, f"want CSV, got {error}"))


def _parse_column(feature: Feature, cells: list[str]) -> list[object]:
    """A column's values, as `parse_cell` reads each; plain numbers are read at once."""
    number = {"float32": float, "float64": float, "int32": int, "int64": int}.get(feature.type)
    if number is not None and "_" not in "".join(cells):
        try:
            return list(map(number, cells))
        except ValueError:  # A missing value, or text: each cell for itself.
            pass
    return [parse_cell(feature, cell) for cell in cells]


def _truth_parser(manifest: Manifest) -> tuple[Callable[[str], Truth | None], str]:
    """What reads the truth of a cell, None for none, and what it wants."""
    output = manifest.output
    if output.kind == "regression":
        return _finite, "a finite number"
    if classes := output.classes:
        whole = not any(isinstance(name, str) for name in classes)
        known: dict[object, Truth] = {str(name): name for name in classes}
        # A column of whole numbers that once had a gap is written 1.0 by pandas.
        known |= {name: name for name in classes} if whole else {}
        read = _reader("INT64" if whole else "BYTES")
        return lambda text: known.get(text, known.get(read(text))), f"one of {shown(list(classes))}"
    datatype = next((spec.datatype for spec in manifest.signature.outputs if spec.name == output.label), "BYTES")
    return _reader(datatype), f"a class, {datatype}"


def _reader(datatype: str) -> Callable[[str], Truth | None]:
    """What reads a class of a tensor's datatype."""
    if datatype == "BYTES":
        return lambda text: text or None
    if datatype.startswith("FP"):
        return _finite
    feature = Feature(name="class", type="bool" if datatype == "BOOL" else "int64")

    def read(text: str) -> Truth | None:
        value = parse_cell(feature, text)
        return value if isinstance(value, int) else None

    return read


def _finite(text: str) -> float | None:
    value = parse_cell(Feature(name="value", type="float64"), text)
    return value if isinstance(value, float) and math.isfinite(value) else None
