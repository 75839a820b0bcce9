"""What a person gives on the command line: records, messages, and pairs."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

from threefold_ops.errors import OperatorError


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
    """Messages out of JSON lines (records, or whole messages) or out of a CSV with a header; `-` is standard input.

    Raises:
        OperatorError: what cannot be read, and where.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{file}: want UTF-8 text, got {error}") from error
    if text.lstrip().startswith("{"):
        lines = enumerate(text.splitlines(), start=1)
        return [_message(model, line, f"{file}:{i}") for i, line in lines if line.strip()]
    head = text.partition("\n")[0]
    delimiter = max(",;\t|", key=head.count)
    rows = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter, restkey="")
    return [
        {"model": model, "record": {name: _cell(cell) for name, cell in row.items() if name and cell}} for row in rows
    ]


def _message(model: str, line: str, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise OperatorError(f"{place}: want a JSON object, got {error}") from error
    if not isinstance(found, dict):
        raise OperatorError(f"{place}: want a JSON object, got {line:.60}")
    return {"model": model, **found} if {"record", "inputs"} & found.keys() else {"model": model, "record": found}


def _cell(text: str) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(text)
    except ValueError:
        return text


def pair(text: str) -> tuple[str, str]:
    """A `key=value`.

    Raises:
        OperatorError: there is no equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise OperatorError(f"--context: want key=value, got {text!r}")
    return name, value
