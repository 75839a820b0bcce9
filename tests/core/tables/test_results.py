"""Result files: the upload's own bytes, the outcomes beside them, and nothing a spreadsheet would run."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.signature import Feature
from threefold.tables.header import Header
from threefold.tables.reader import Batch, RowReader
from threefold.tables.records import read_blocks
from threefold.tables.results import ResultRows, escape

FEATURES = (Feature(name="a", type="float32"),)
LABEL = {"id": "job-1", "status": "predicted", "label": "red", "score": np.float32(0.1), "version": "1.0", "at": "now"}


def read(header: Header, text: str) -> list[Batch]:
    reader = RowReader(header, FEATURES)
    return [batch for block in read_blocks(iter([text.encode()]), header.delimiter) for batch in reader.read(block)]


def parse(content: bytes, delimiter: str = ",") -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter))


def test_a_record_is_carried_through_byte_for_byte() -> None:
    header = Header("a;note", ";", "\r\n")
    text = '1;"x; ""y"""\r\n 2 ;in"side\r\n'
    (batch,) = read(header, text)
    rows = ResultRows(header, "classification")
    predictions: list[dict[str, Any]] = [LABEL, {**LABEL, "id": "job-2", "reasons": ['say; "no"'], "label": 5}]
    content = rows.head() + rows.joined(batch, predictions)
    lines = content.split(b"\r\n")
    assert lines[0].startswith(b"a;note;threefold_prediction_id;threefold_status;threefold_label;threefold_score;")
    assert lines[1].startswith(b'1;"x; ""y""";job-1;predicted;red;0.1;')
    assert lines[2].startswith(b' 2 ;in"side;job-2;predicted;5;0.1;')
    table = parse(content, ";")
    assert {len(row) for row in table} == {2 + len(rows.columns)}
    assert dict(zip(table[0], table[2], strict=True))["threefold_reasons"] == '["say; \\"no\\""]'


def test_a_result_file_can_be_uploaded_again() -> None:
    rows = ResultRows(Header("a,threefold_status", ",", "\n"), "regression")
    assert rows.columns[:3] == (
        "threefold_threefold_prediction_id",
        "threefold_threefold_status",
        "threefold_threefold_value",
    )


def test_a_record_of_another_form_is_fitted_to_the_header() -> None:
    header = Header("a,b,c", ",", "\n")
    found = read(header, '1,2\n1,2,3,4\n1,"2\n1,2\r3,4\n')
    rejection = {"id": "job-1", "status": "rejected", "code": "invalid_table", "message": "record: want 3 cells"}
    rows = ResultRows(header, "regression")
    content = b"".join(rows.joined(batch, [rejection] * batch.count) for batch in found)
    table = parse(content)
    assert [row[:3] for row in table] == [["1", "2", ""], ["1", "2", "3"], ["1", "2", ""], ["1", "2 3", "4"]]
    assert {len(row) for row in table} == {3 + len(rows.columns)}
    rejects = parse(b"".join(rows.rejected(batch, [rejection] * batch.count) for batch in found))
    assert [(row[0], row[1], row[4]) for row in rejects] == [
        ("1", "1", "1,2"),
        ("2", "2", "1,2,3,4"),
        ("3", "3", '1,"2'),
        ("4", "4", "1,2\r3,4"),
    ]


def test_a_reject_says_row_line_column_reason_and_text() -> None:
    header = Header("a,b,note", ",", "\n")
    (batch,) = read(header, '1,2,"two\nlines"\n=1+1,x,y\n')
    message = "input 'a': want FP32, got '=1+1'; input 'b': want FP32, got 'x'"
    rejection = {"id": "job-2", "status": "rejected", "code": "outside_signature", "message": message}
    rows = ResultRows(header, "classification")
    table = parse(rows.rejects_head() + rows.rejected(batch, [LABEL, rejection]))
    assert table == [
        ["row", "line", "column", "reason", "text"],
        ["2", "3", "a; b", message, "'=1+1,x,y"],
    ]


def test_a_time_that_is_none_is_found_in_its_column() -> None:
    header = Header("a,at,at 2", ",", "\n")
    (batch,) = read(header, "1,soon,x\n")
    rejection = {"id": "job-1", "status": "rejected", "code": "outside_signature"}
    rejection["message"] = "time 'at': want ISO 8601 or milliseconds, got 'soon'"
    ((_, _, column, _, _),) = parse(ResultRows(header, "regression").rejected(batch, [rejection]))
    assert column == "at"


@pytest.mark.parametrize("text", ["=A1", "+1", "-1", "@sum", "\tx", "\rx", "\uff1dA1"])
def test_formula_looking_text_gets_an_apostrophe(text: str) -> None:
    assert escape(text) == "'" + text


@pytest.mark.parametrize("text", ["", "1,2", "a=1", "'=1"])
def test_other_text_is_left_alone(text: str) -> None:
    assert escape(text) == text


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), min_size=4, max_size=4))
def test_whatever_stands_in_an_outcome_comes_back_from_the_file(cells: list[str]) -> None:
    header = Header("a", ",", "\n")
    (batch,) = read(header, "1\n")
    names = ("id", "label", "code", "message")
    prediction = {**dict(zip(names, cells, strict=True)), "status": "predicted"}
    rows = ResultRows(header, "classification")
    head, row = parse(rows.head() + rows.joined(batch, [prediction]))
    found = dict(zip(head, row, strict=True))
    columns = ("prediction_id", "label", "code", "message")
    assert [found[f"threefold_{column}"] for column in columns] == cells
