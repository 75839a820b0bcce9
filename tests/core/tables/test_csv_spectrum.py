"""The dialects of csv-spectrum, a corpus that CSV readers in many languages are tested with."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Final

import pytest

from threefold.request import Records
from threefold.signature import Feature
from threefold.tables.header import Header, read_header
from threefold.tables.reader import Batch, RowReader
from threefold.tables.records import read_blocks
from threefold.tables.results import ResultRows

CASES: Final[list[dict[str, Any]]] = json.loads(
    Path(__file__).with_name("csv_spectrum.json").read_text(encoding="utf-8")
)["cases"]


def read(case: dict[str, Any], size: int) -> tuple[Header, list[Batch]]:
    """A case through all that reads an upload, its records arriving so many bytes at a time."""
    content, columns = case["csv"].encode(), [*case["rows"][0]]
    top = read_header(content, columns)
    rest = iter([content[start : start + size] for start in range(top.size_bytes, len(content), size)])
    reader = RowReader(top.header, [Feature(name=name, type="string") for name in columns], numeric=False)
    blocks = read_blocks(rest, top.header.delimiter, offset=top.size_bytes, line=top.line)
    return top.header, [batch for block in blocks for batch in reader.read(block)]


@pytest.mark.parametrize("size", [1, 7, 4096])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_corpus_is_read_as_its_authors_say(case: dict[str, Any], size: int) -> None:
    header, batches = read(case, size)
    assert header.columns == (*case["rows"][0],)
    records: list[Any] = []
    for batch in batches:
        assert not batch.bad
        assert isinstance(batch.rows, Records)
        records += batch.rows.records
    # An empty cell is a missing value.
    assert [{name: cell or "" for name, cell in record.items()} for record in records] == case["rows"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_corpus_comes_back_beside_its_outcomes(case: dict[str, Any]) -> None:
    header, batches = read(case, 4096)
    rows = ResultRows(header, "regression")
    text = rows.head() + b"".join(rows.joined(batch, [{"value": 1.5}] * batch.count) for batch in batches)
    found = list(csv.DictReader(io.StringIO(text.decode(), newline="")))
    wanted = [{**row, **dict.fromkeys(rows.columns, ""), "threefold_value": "1.5"} for row in case["rows"]]
    assert found == wanted


def test_the_corpus_is_whole() -> None:
    assert len(CASES) == 12
