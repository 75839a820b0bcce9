"""Two ways to read records, one result."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.features import Encoded, FeatureEncoder
from threefold.request import Matrix, Records
from threefold.signature import Feature, Signature, TensorSpec
from threefold.tables import reader as reader_module
from threefold.tables.header import Header
from threefold.tables.reader import Batch, RowReader
from threefold.tables.records import read_blocks

FEATURES = (
    Feature(name="a", type="float32", missing=2.5, min=-1e6, max=1e6, outside="flag"),
    Feature(name="b", type="int64"),
    Feature(name="c", type="float64", missing=math.nan),
)
INTEGERS = (
    Feature(name="a", type="int64", missing=3, min=-1e6, max=1e6, outside="flag"),
    Feature(name="b", type="int64"),
    Feature(name="c", type="int32", allowed=(1, 0, -9)),
)
OVER = {"FP32": FEATURES, "FP64": FEATURES, "INT64": INTEGERS}
COLUMNS = ("id", "c", "note", "b", "a")
# Features side by side between a key and a note are found by counting, others by looking for each delimiter.
LAYOUTS = (COLUMNS, ("id", "a", "b", "c", "note"), ("a", "b", "c"), ("b", "id", "c"), ("note", "a", "b", "c", "id"))


def batches(
    text: str,
    datatype: str = "FP64",
    *,
    numeric: bool = True,
    delimiter: str = ",",
    key: str | None = "id",
    columns: tuple[str, ...] = COLUMNS,
) -> list[Batch]:
    header = Header(delimiter.join(columns), delimiter, "\n")
    reader = RowReader(header, OVER[datatype], key=key, numeric=numeric)
    return [batch for block in read_blocks(iter([text.encode()]), delimiter) for batch in reader.read(block)]


def encoder(datatype: str) -> FeatureEncoder:
    return FeatureEncoder(Signature((TensorSpec("x", datatype, (-1, 3)),), (), OVER[datatype], layout="packed"))


def encode(found: Batch, datatype: str) -> Encoded:
    rows = found.rows
    if isinstance(rows, Matrix):
        return encoder(datatype).encode_matrix(rows.values.copy())
    assert isinstance(rows, Records)
    return encoder(datatype).encode(rows.records)


def outcome(found: list[Batch], datatype: str) -> list[Any]:
    """What every row comes to, in order: its tensor's bytes and reasons, or why it is rejected."""
    told: list[Any] = []
    for batch in found:
        encoded = encode(batch, datatype)
        tensor = encoded.tensors.get("x", np.zeros((0, 3)))
        accepted = range(len(batch.rows)) if encoded.rows is None else encoded.rows.tolist()
        by_position: dict[int, Any] = {
            position: (tensor[i].tobytes(), encoded.reasons.get(position)) for i, position in enumerate(accepted)
        }
        by_position |= encoded.problems
        keys = batch.keys or [None] * len(batch.rows)
        good = {position: (keys[i], by_position[i]) for i, position in enumerate(batch.good)}
        told += [batch.bad.get(i) or good[i] for i in range(batch.count)]
    return told


PLAIN = st.one_of(
    st.floats(width=32).map(str),
    st.floats().map(repr),
    st.integers().map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.integers(-9, 9).map(lambda n: f"{n}.0"),
    st.sampled_from(["", "1", "0", "-0", "-0.0", "1e400", "-1e-400", "9007199254740993", "5e-0", "16777217"]),
)
ODDITIES = (
    *("nan", "NaN", "inf", "-Infinity", "null", "true", "false", "[1]", "{}", " 5 ", "+3", ".5", "5.", "007", "1_000"),
    *("0x10", "\u0664", "- 1", "1 2", "-0 ", '"7"', "1,5", "1\x00", "\xa05", "1e5", "1E+5", "-", "--1", "1\r"),
)
ODD = st.one_of(st.text(alphabet='0123456789.eE+-_ xn\t"', max_size=6), st.sampled_from(ODDITIES))
WORDS = st.one_of(
    st.sampled_from(["", "x", "é", "a b", '"q"', '"x,y"', '"two\nlines"', '"say ""hi"""', "7", 'in"side', "nan"]),
    st.text(alphabet="abcé", max_size=3),
)


@st.composite
def tables(draw: st.DrawFn, cells: st.SearchStrategy[str], delimiter: str = ",") -> tuple[tuple[str, ...], str]:
    columns = draw(st.sampled_from(LAYOUTS))
    lines = []
    for _ in range(draw(st.integers(1, 6))):
        row = [draw(WORDS if name in {"id", "note"} else cells) for name in columns]
        row = draw(st.sampled_from([row] * 12 + [row[:-1], [*row, "9"]]))
        lines.append(delimiter.join(row) + draw(st.sampled_from(["\n"] * 6 + ["\r\n", "\n\n"])))
    return columns, "".join(lines)


def agree(table: tuple[tuple[str, ...], str], datatype: str, delimiter: str = ",") -> None:
    columns, text = table
    fast = batches(text, datatype, delimiter=delimiter, columns=columns)
    careful = batches(text, datatype, delimiter=delimiter, columns=columns, numeric=False)
    assert outcome(fast, datatype) == outcome(careful, datatype)


@given(tables(PLAIN), st.sampled_from(["FP32", "FP64", "INT64"]))
def test_the_block_reader_and_the_careful_reader_agree_on_numbers(
    table: tuple[tuple[str, ...], str], datatype: str
) -> None:
    agree(table, datatype)


@given(tables(st.one_of(PLAIN, ODD)), st.sampled_from(["FP32", "FP64", "INT64"]))
def test_the_block_reader_and_the_careful_reader_agree_on_anything(
    table: tuple[tuple[str, ...], str], datatype: str
) -> None:
    agree(table, datatype)


@given(tables(st.one_of(PLAIN, ODD), ";"))
def test_they_agree_with_another_delimiter(table: tuple[tuple[str, ...], str]) -> None:
    agree(table, "FP64", ";")


@given(tables(PLAIN))
def test_the_careful_reader_reads_what_pythons_csv_module_reads(table: tuple[tuple[str, ...], str]) -> None:
    columns, text = table
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    found = batches(text, numeric=False, columns=columns)
    assert sum(batch.count for batch in found) == len(rows)
    whole = [row for row in rows if len(row) == len(columns)]
    keys = [key for batch in found for key in batch.keys or ()]
    assert keys == ([row[columns.index("id")] or None for row in whole] if "id" in columns else [])
    assert [i for batch in found for i in batch.bad] == [i for i, row in enumerate(rows) if row not in whole]


def test_numbers_are_read_as_a_block() -> None:
    (batch,) = batches('k1,1.5,"a, ""b"", c",7,\nk2,,plain,-8,2e3\r\n')
    assert isinstance(batch.rows, Matrix)
    np.testing.assert_array_equal(batch.rows.values, [[np.nan, 7, 1.5], [2000, -8, np.nan]])
    assert batch.keys == ["k1", "k2"]
    assert batch.texts() == [b'k1,1.5,"a, ""b"", c",7,', b"k2,,plain,-8,2e3"]


@pytest.mark.parametrize("cell", ["true", "null", "[1]", "1_000", "2..5", '"5"', "9007199254740993", "1 2"])
def test_what_is_no_plain_number_is_read_with_care(cell: str) -> None:
    (batch,) = batches(f"k1,1,x,{cell},2\n")
    assert isinstance(batch.rows, Records)


def test_a_ragged_row_is_bad_alone() -> None:
    (batch,) = batches("k1,1,x,2,3\nk2,1,x,2\nk3,1,x,2,3,4\nk4,1,x,2,3\n")
    assert batch.bad == {1: "want 5 cells, got 4", 2: "want 5 cells, got 6"}
    assert list(batch.good) == [0, 3]
    assert batch.keys == ["k1", "k4"]
    assert list(batch.numbers) == [1, 2, 3, 4]


@pytest.mark.parametrize("columns", [COLUMNS, LAYOUTS[1]])
def test_rows_that_are_ragged_in_opposite_ways_do_not_pass_for_whole_ones(columns: tuple[str, ...]) -> None:
    (batch,) = batches("1,1,1,2\n2,1,1,2,3,4\n", columns=columns)
    assert set(batch.bad) == {0, 1}


def test_a_row_too_short_does_not_borrow_a_cell_from_one_too_long() -> None:
    # Every cell is a number, and there are as many delimiters as two whole rows have.
    (batch,) = batches("1,1,7,2,3\n,1,7,2,3,9,9\n", columns=("id", "a", "note", "b", "c", "x"))
    assert set(batch.bad) == {0, 1}


@pytest.mark.parametrize("width", [255, 256, 257, 600])
def test_wide_rows_are_read_like_narrow_ones(width: int) -> None:
    names = [f"x{i}" for i in range(width)]
    reader = RowReader(Header(",".join(names), ",", "\n"), [Feature(name=name, type="float64") for name in names])
    row, longer = (",".join(map(str, range(size))) + "\n" for size in (width, width + 256))
    whole, mixed = (
        next(reader.read(next(read_blocks(iter([text.encode()]), ",")))) for text in (row * 3, row + longer)
    )
    assert isinstance(whole.rows, Matrix)
    assert whole.rows.values.tolist() == [list(range(width))] * 3
    assert list(mixed.bad) == [1]


@pytest.mark.parametrize("cell", ["-0", "-0.0", " -0", "-0e5", "0"])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_a_zero_has_the_sign_that_its_feature_gives_it(cell: str, datatype: str) -> None:
    table = (("a", "b", "c"), f"{cell},{cell},{cell}\n")
    agree(table, datatype)
    (batch,) = batches(table[1], datatype, columns=table[0])
    signs = np.signbit(encode(batch, datatype).tensors["x"]).tolist()
    assert signs == [[cell != "0", False, cell != "0"]]


def test_a_lone_carriage_return_is_bad_alone() -> None:
    (batch,) = batches('k1,1,x\ry,2,3\nk2,1,"x\ry",2,3\n')
    assert batch.bad == {0: "want a carriage return only in quotes or at a line's end"}
    assert batch.keys == ["k2"]


def test_an_open_quote_is_bad_alone() -> None:
    found = batches('k1,1,"x,2,3\nk2,1,x,2,3\n')
    assert [batch.bad for batch in found] == [{0: "want quotes that are closed"}, {}]
    assert found[1].keys == ["k2"]


def test_a_field_of_any_length_is_read() -> None:
    long = "x" * 300_000
    (batch,) = batches(f'k1,1,"{long}",true,3\n')
    assert isinstance(batch.rows, Records)
    assert not batch.bad


@pytest.mark.parametrize("numeric", [True, False])
def test_a_key_that_no_item_could_hold_is_bad_alone(numeric: bool) -> None:
    fits, long = "k" * 65_536, "é" * 32_769
    (batch,) = batches(f"{fits},1,x,2,3\n{long},1,x,2,3\n", numeric=numeric)
    assert batch.bad == {1: "want a key of at most 65536 bytes, got 65538"}
    assert batch.keys == [fits]


def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "ROWS_PER_BATCH", 4)
    found = batches("k,1,x,2,3\n" * 10)
    assert [(batch.numbers.start, batch.count) for batch in found] == [(1, 4), (5, 4), (9, 2)]
    assert all(isinstance(batch.rows, Matrix) for batch in found)


def test_a_file_without_the_key_column_has_no_keys() -> None:
    (batch,) = batches("k1,1,x,2,3\n", key="other")
    assert batch.keys is None
    (batch,) = batches("k1,1,x,2,3\n", key=None)
    assert batch.keys is None


def test_a_column_that_is_not_there_is_missing_in_both_ways() -> None:
    header = Header("b", ",", "\n")
    for numeric in (True, False):
        reader = RowReader(header, OVER["FP64"], numeric=numeric)
        (batch,) = [batch for block in read_blocks(iter([b"7\n8\n"]), ",") for batch in reader.read(block)]
        assert encode(batch, "FP64").tensors["x"][:, :2].tolist() == [[2.5, 7.0], [2.5, 8.0]]


ROWS = st.sampled_from(
    ["k,1,x,2,3\n", '"k,1",1,"two\nlines",2,3\r\n', "\n", "short\n", 'q,"1,x,2,3\n', "k,1,x,2,3\r\n\r\n", "é,1,ü,2,3\n"]
)


@given(lines=st.lists(ROWS, max_size=30), most=st.integers(1, 5), last=st.sampled_from(["", "k,1"]))
def test_what_follows_a_batch_begins_where_it_says(lines: list[str], most: int, last: str) -> None:
    data = ("".join(lines) + last).encode()
    reader = RowReader(Header(",".join(COLUMNS), ",", "\n"), OVER["FP64"], key="id")

    def read(start: int, row: int, line: int, size: int = 4096) -> list[Batch]:
        return [
            batch
            for block in read_blocks(iter([data[start:]]), ",", offset=start, row=row, line=line)
            for batch in reader.read(block, lambda: size)
        ]

    def told(found: list[Batch]) -> list[Any]:
        return [
            row
            for batch in found
            for row in zip(batch.numbers, batch.lines(list(range(batch.count))), batch.texts(), strict=True)
        ]

    whole = told(read(0, 1, 1))
    found = read(0, 1, 1, most)
    assert told(found) == whole
    for i, batch in enumerate(found):
        assert batch.count <= most
        assert told(found[: i + 1]) + told(read(*batch.end)) == whole
