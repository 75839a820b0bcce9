"""What a person gives on the command line: records, messages, and pairs."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterator


def read_json(text: str) -> Any:  # noqa: ANN401 - JSON
    """JSON as it stands, out of `@file`, or for `-` from standard input.

    Raises:
        OperatorError: it is none.
    """
    try:
        if text == "-":
            return json.load(sys.stdin)
        return json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except (OSError, ValueError) as error:
        raise OperatorError(f"records: want JSON, got {error}") from error


def read_messages(model: str, file: Path) -> list[dict[str, Any]]:
    """Messages out of JSON (records, or whole messages; lines or an array) or a CSV with a header; `-` is stdin.

    Raises:
        OperatorError: what cannot be read, and where; or there is no record.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OperatorError(f"{file}: want UTF-8 text, got {error}") from error
    except OSError as error:
        raise OperatorError(f"{file}: want a file that can be read, got: {error.strerror}") from error
    text = text.lstrip("\ufeff \t\r\n")
    if text.startswith("["):
        found = [_message(model, each, f"{file}: number {i}") for i, each in enumerate(_parsed(text, f"{file}"), 1)]
    elif text.startswith("{"):
        # Not by splitlines: a JSON text may have other line ends within.
        lines = [(line, f"{file}:{i}") for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
        found = [_message(model, _parsed(line, place), place) for line, place in lines]
    else:
        found = [{"model": model, "record": record} for record in _records(text, file)]
    if not found:
        raise OperatorError(f"{file}: want records, got none")
    return found


def _records(text: str, file: Path) -> Iterator[dict[str, Any]]:
    head = text.partition("\n")[0]
    delimiter = max(",;\t|", key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = [name.strip() for name in next(rows, [])]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise OperatorError(f"{file}: want each column once, got {doubled} more than once")
    for cells in rows:
        if cells and len(cells) != len(names):
            raise OperatorError(f"{file}:{rows.line_num}: want {len(names)} cells, got {len(cells)}")
        if cells:
            yield {name: _cell(cell) for name, cell in zip(names, cells, strict=True) if cell}


def _parsed(text: str, place: str) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(text)
    except ValueError as error:
        raise OperatorError(f"{place}: want JSON, got {error}") from error


def _message(model: str, found: object, place: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise OperatorError(f"{place}: want a JSON object, got {found!r:.60}")
    return {"model": model, **found} if {"record", "inputs"} & found.keys() else {"model": model, "record": found}


def _cell(text: str) -> Any:  # noqa: ANN401 - JSON
    """A number or a truth as such; all else is text, for who knows what it is is the model."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def pair(text: str) -> tuple[str, str]:
    """A `key=value`.

    Raises:
        OperatorError: there is no equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise OperatorError(f"--context: want key=value, got {text!r}")
    return name, value
