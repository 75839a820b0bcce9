"""The test files of a new folder: a confidence set, examples and a drift reference out of a graph's first run."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from threefold import strict_json
from threefold.model import Answer
from threefold_ops.scaffold.proposal import propose
from threefold_ops.scaffold.samples import (
    LEAST_ROWS,
    MAXIMUM_EXAMPLES,
    MAXIMUM_ROWS,
    Split,
    choose_examples,
    expectation,
    split,
    thin,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from threefold.package import Output
    from threefold_ops.scaffold.first_run import FirstRun
    from threefold_ops.scaffold.inference import Inputs
    from threefold_ops.scaffold.proposal import Proposal
    from threefold_ops.scaffold.table import Table

EXAMPLES: Final = "examples.jsonl"
CONFIDENCE: Final = "confidence.csv"
REFERENCE: Final = "reference.csv"
_HALF: Final = "float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the files are made of.

    Attributes:
        run: what went into the graph.
        answer: what came out.
        output: what that means.
        truth: what was right for each record, None where the data does not say; empty without a target.
        target: the data's column for it.
        inputs: the features, and the data's columns for them.
        table: the data.
        stacked: whether rows can be stacked; else the run is one example.
    """

    run: FirstRun
    answer: Answer
    output: Output
    truth: Sequence[Any]
    target: str | None
    inputs: Inputs
    table: Table | None
    stacked: bool

    def split(self) -> Split:
        """Which rows are held out."""
        if self.table is None or not self.run.rows:
            return Split([], list(range(len(self.run.records))))
        cells = self.cells(self.inputs.columns, range(len(self.run.rows)))
        rows = [[cell.strip() for cell in row] for row in cells]
        known = [value is not None for value in self.truth] if self.truth else [False] * len(rows)
        classes = self.truth if self.output.kind == "classification" and self.truth else [None] * len(rows)
        return split(rows, classes, known)

    def cells(self, columns: Sequence[str], positions: Sequence[int]) -> list[list[str]]:
        """What the data says of some of the records."""
        assert self.table is not None, "there are rows"
        places = [self.table.columns.index(column) for column in columns]
        rows = (self.table.rows[self.run.rows[i]] for i in positions)
        return [[row[place] for place in places] for row in rows]

    def whole_key(self) -> str | None:
        """The record's own id, where it is no feature."""
        key = self.inputs.key
        return key if key not in self.inputs.names and self.table is not None and self.run.rows else None


def write_confidence(path: Path, material: Material, parts: Split, notes: list[str]) -> Proposal | None:
    """Write the rows that were held out, and propose a metric for them; None without a truth."""
    target = material.target
    if target is None or material.table is None or material.output.kind == "tensors":
        return None
    rows = parts.confidence
    if not rows:
        notes.append(f"no confidence set: fewer than {LEAST_ROWS} rows of the data could be held out")
        return None
    answer = material.answer
    held = Answer(
        {},
        labels=None if answer.labels is None else [answer.labels[i] for i in rows],
        scores=None if answer.scores is None else answer.scores[rows],
        values=None if answer.values is None else answer.values[rows],
    )
    proposal = propose(material.output, held, [material.truth[i] for i in rows])
    if proposal is None:
        notes.append("no confidence set: no metric can be measured on these answers")
        return None
    columns = dict(zip(material.inputs.names, material.inputs.columns, strict=True))
    if (key := material.whole_key()) is not None:
        columns = {key: key, **columns}
    body = material.cells([*columns.values(), target], rows)
    if material.output.kind == "classification":
        # A class as the model says it: the data may have 1.0 for 1.
        body = [[*row[:-1], str(material.truth[i])] for row, i in zip(body, rows, strict=True)]
    _write_csv(path, [*columns, target], body)
    return proposal


def write_examples(path: Path, material: Material, parts: Split, notes: list[str]) -> int:
    """Write the examples, and say how many they are."""
    run = material.run
    if not run.tensors:
        notes.append("no examples: the graph takes nothing that was tried, or answers otherwise the second time")
        return 0
    if not material.stacked:
        lines = [{"inputs": _plain(run.tensors), "expect": _plain(run.answers)}]
    else:
        count = len(next(iter(run.tensors.values())))
        chosen = choose_examples(material.output, material.answer, parts.rest or range(count), MAXIMUM_EXAMPLES)
        lines = [
            {**_given(material, i), "expect": _plain(expectation(material.output, material.answer, i))} for i in chosen
        ]
    if not lines:
        notes.append("no examples: no answer is finite, and clear enough to be the same on every machine")
        return 0
    path.write_bytes(b"".join(strict_json.dumps(line) + b"\n" for line in lines))
    return len(lines)


def write_reference(path: Path, material: Material, parts: Split) -> int:
    """Write the records that are not held out, and say how many they are."""
    if material.table is None or not material.run.rows or not parts.rest:
        return 0
    rows = thin(parts.rest, MAXIMUM_ROWS)
    _write_csv(path, material.inputs.names, material.cells(material.inputs.columns, rows))
    return len(rows)


def _given(material: Material, position: int) -> dict[str, Any]:
    run = material.run
    if not run.features:
        return {"inputs": _plain({name: array[position] for name, array in run.tensors.items()})}
    record = dict(run.records[position])
    key = material.whole_key()
    if key is not None:
        record = {key: material.cells([key], [position])[0][0], **record}
    return {"record": record}


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON, with numpy's arrays and numbers
    """What the encoder takes: texts are objects to numpy, and half floats are no numbers to the encoder."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if getattr(value, "dtype", None) is not None and (value.dtype.kind == "O" or value.dtype == _HALF):
        return value.tolist()
    return value


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
