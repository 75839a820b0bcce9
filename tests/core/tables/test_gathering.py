"""Pending records as a CSV: what a record comes to is what it comes to at the other doors."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.errors import InvalidTable
from threefold.features import Encoded, FeatureEncoder
from threefold.request import Matrix, Records, record_keys
from threefold.signature import Feature, Signature, TensorSpec
from threefold.tables import gathering
from threefold.tables.gathering import Columns, Pending, RowWriter, read_pending
from threefold.tables.header import read_header
from threefold.tables.reader import RowReader
from threefold.tables.records import MAXIMUM_RECORD_BYTES, fill, read_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

FEATURES = (
    Feature(name="f", type="float32", missing=2.5, min=-1e6, max=1e6, outside="flag"),
    Feature(name="i", type="int64", missing=7),
    Feature(name="t", type="string", missing="none"),
    Feature(name="b", type="bool", missing=False),
)
SPECS = (
    TensorSpec("f", "FP32", (-1, 1)),
    TensorSpec("i", "INT64", (-1, 1)),
    TensorSpec("t", "BYTES", (-1, 1)),
    TensorSpec("b", "BOOL", (-1, 1)),
)
ENCODER = FeatureEncoder(Signature(SPECS, (), FEATURES, layout="columns"))


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def gather(objects: dict[str, bytes], size: int = 1 << 20) -> bytes:
    columns = Columns(FEATURES, "id")
    for key, content in objects.items():
        for pending in read_pending(key, pieces(content, size), ["f", "i", "t", "b", "id"]):
            columns.see(pending)
    writer = RowWriter(columns.names, FEATURES, "id")
    rows = [
        writer.row(pending)
        for key, content in objects.items()
        for pending in read_pending(key, pieces(content, size), ["f", "i", "t", "b", "id"])
    ]
    return writer.head() + b"".join(rows)


def read(content: bytes) -> tuple[tuple[str, ...], list[Any]]:
    """The columns, and what each row comes to; one that the batch door rejects for its form comes to the reason."""
    stream = iter([content])
    head, _ = fill(b"", stream)
    top = read_header(head, ["f", "i", "t", "b"], delimiter=",")
    reader = RowReader(top.header, FEATURES, key="id", numeric=False)
    told: list[Any] = []
    for block in read_blocks(iter([content[top.size_bytes :]]), ","):
        for batch in reader.read(block):
            assert isinstance(batch.rows, Records)
            good = iter(outcomes(batch.rows.records, batch.keys or []))
            told += [batch.bad[i] if i in batch.bad else next(good) for i in range(batch.count)]
    return top.header.columns, told


def outcomes(records: Any, keys: Any) -> list[Any]:
    """Each record's tensors, key and reasons, or why it is rejected."""
    encoded: Encoded = ENCODER.encode(records)
    accepted = range(len(records)) if encoded.rows is None else encoded.rows.tolist()
    told: dict[int, Any] = {i: (keys[i], problems) for i, problems in encoded.problems.items()}
    for row, i in enumerate(accepted):
        values = [encoded.tensors[spec.name][row].tolist() for spec in SPECS]
        # A reason shows 5 where JSON had 5, and 5.0 where a cell had it.
        reasons = [reason.partition(", got ")[0] for reason in encoded.reasons.get(i, ())]
        told[i] = (keys[i], repr(values), reasons)
    return [told[i] for i in range(len(records))]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([1.0, 0.0, -0.0, 3.0, 1e20, 2**53 + 1, "NaN", "Infinity", "-Infinity", "nan", "inf", "1", " 1 "]),
    st.sampled_from(["true", "0", "1_000", "x", '"', '""', "a,b", "two\nlines", "two\r\nlines", "\r", "'", "=1+1"]),
    st.text(min_size=1),
    st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.sampled_from("ab"), st.integers(), max_size=1),
)
RECORDS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("f", "i", "t", "b", "id", "other", "two words", "f ", "Ünï"), VALUES)
)


def same(record: dict[str, Any], got: Any) -> bool:
    """Whether a row comes to what its record comes to."""
    text = record.get("t")
    keys = record_keys([record], "id")
    assert keys is not None
    (want,) = outcomes([record], keys)
    if text is not None and not isinstance(text, str):
        # Everything in a CSV is text: such a row is rejected as one of another form.
        return isinstance(got, str) and "cells, got" in got and isinstance(want[1], list)
    if isinstance(want[1], list) and len(want) == 2:
        # Rejected as well; the reason shows the cell.
        return len(got) == 2 and len(got[1]) == len(want[1]) and got[0] == want[0]
    return bool(got == want)


@given(st.lists(RECORDS, min_size=1, max_size=8), st.integers(1, 40))
def test_a_pending_record_comes_to_what_it_comes_to_at_the_other_doors(
    records: list[dict[str, Any]], size: int
) -> None:
    content = "\n".join(json.dumps(record) for record in records).encode()
    columns, told = read(gather({"a.jsonl": content}, size))
    assert columns[:5] == ("f", "i", "t", "b", "id")
    assert len(told) == len(records)
    for record, got in zip(records, told, strict=True):
        assert same(record, got), (record, got)


def rejected(content: bytes) -> list[tuple[int, str]]:
    """The rows that the door rejects for their form, with their text."""
    head, _ = fill(b"", iter([content]))
    top = read_header(head, ["f"], delimiter=",")
    reader = RowReader(top.header, FEATURES, key="id", numeric=False)
    return [
        (batch.numbers[i], batch.texts()[i].decode())
        for block in read_blocks(iter([content[top.size_bytes :]]), ",")
        for batch in reader.read(block)
        for i in batch.bad
    ]


def test_what_is_no_record_is_a_row_that_is_rejected_with_the_reason_in_it() -> None:
    lines = [b'{"f": 1}', b"[1]", b"5", b"{broken", b"", b"  ", b"\xff\xfe", b'{"t": 5}', b'{"f": 2}']
    content = gather({"a.jsonl": b"\n".join(lines)})
    found = rejected(content)
    assert [number for number, _ in found] == [2, 3, 4, 5, 6]
    assert [text.split(",")[0] for _, text in found][:3] == ["[1]", "5", "{broken"]
    assert "record: want a JSON object" in found[0][1]
    assert "input 't': want string, got 5" in found[4][1]


@pytest.mark.parametrize("size", [1000, 100_000, 1 << 20])
def test_lines_of_any_length_are_read_in_bounded_memory(size: int) -> None:
    long = b'{"t": "' + b"x" * (3 * MAXIMUM_RECORD_BYTES) + b'"}'
    wide = b'{"t": "' + b'\\"' * (MAXIMUM_RECORD_BYTES // 2 - 100) + b'"}'
    content = gather({"a.jsonl": b'{"f": 1}\n' + long + b"\n" + wide + b'\n{"f": 2}'}, size)
    found = rejected(content)
    assert [number for number, _ in found] == [2]
    assert "want at most" in found[0][1]
    assert len(found[0][1]) < 3000
    assert max(map(len, content.split(b"\n"))) <= MAXIMUM_RECORD_BYTES


def test_csvs_and_lines_gzip_or_plain_come_together_in_one() -> None:
    objects = {
        "one.csv": "t;f;note\nsüd;1;x\n;2\n".encode(),
        "two.csv.gz": gzip.compress(b"id,i\r\n7,3\r\n"),
        "three.jsonl.gz": gzip.compress(b'{"id": 8, "f": 5, "deep": {"a": [1]}}'),
        "four.jsonl": b"",
        "five.csv": b"",
    }
    content = gather(objects).decode()
    assert content.split("\r\n") == [
        "f,i,t,b,id,note,deep",
        "1,,süd,,,x,",
        ';2,"record: want 3 cells, got 2",,,,,,',
        ",3,,,7,,",
        '5,,,,8,,"{""a"":[1]}"',
        "",
    ]


def test_a_csv_without_a_header_that_can_be_read_is_refused() -> None:
    for content in (b"a,a\n1,2\n", b"\xff\xfea\0", gzip.compress(b"a,b\n")[:-5]):
        with pytest.raises(InvalidTable):
            list(read_pending("x.csv", iter([content]), ["f"]))


def test_a_guesser_of_names_does_not_make_a_header_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "MAXIMUM_COLUMNS", 8)
    columns = Columns(FEATURES, "id")
    for i in range(10):
        columns.see(Pending({f"x{i}": 1, " ": 2, "": 3}))
    assert columns.names == ("f", "i", "t", "b", "id", "x0", "x1", "x2")
    assert columns.left_out == 7
    wide = Columns(FEATURES, "id")
    wide.see(Pending({"é" * MAXIMUM_RECORD_BYTES: 1}))
    assert (len(wide.names), wide.left_out) == (5, 1)


def test_numbers_alone_are_read_as_a_block() -> None:
    features = FEATURES[:1]
    writer = RowWriter(("f",), features, None)
    content = b"".join(writer.row(Pending({"f": value})) for value in (1, 2.5, -1e-7))
    reader = RowReader(read_header(writer.head(), ["f"]).header, features)
    (batch,) = [batch for block in read_blocks(iter([content]), ",") for batch in reader.read(block)]
    assert isinstance(batch.rows, Matrix)
    assert batch.rows.values[:, 0].tolist() == [1.0, 2.5, -1e-7]
