"""Where records end: as Python's csv module has it, however the bytes arrive."""

from __future__ import annotations

import csv
import io
from itertools import chain

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from threefold.errors import InvalidTable
from threefold.tables import records
from threefold.tables.records import read_blocks

# Every token that the state machine knows, and words beside them.
TEXTS = st.lists(
    st.sampled_from(["a", "é", "7", ",", ";", '"', '""', '"x"', '"x\ny"', '"x\r\n,"', "\n", "\r\n", "\n\n", " "]),
    max_size=40,
).map("".join)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    cut, start = [], 0
    for size in sizes:
        cut.append(data[start : start + size])
        start += size
    return [*cut, data[start:]]


def found(data: bytes, delimiter: str = ",", sizes: list[int] | None = None) -> list[tuple[int, int, bytes, bool]]:
    """(row, line, text, unclosed) of each record."""
    out = []
    for block in read_blocks(iter(pieces(data, sizes or [])), delimiter):
        assert data[block.offset : block.offset + len(block.data)] == block.data
        lines = block.lines(list(range(len(block))))
        for i, (start, stop) in enumerate(zip(block.starts, block.stops, strict=True)):
            out.append((block.row + i, lines[i], block.data[start:stop], block.unclosed))
    return out


def found_or_refused(data: bytes, sizes: list[int] | None) -> list[tuple[int, int, bytes, bool]] | str:
    try:
        return found(data, sizes=sizes)
    except InvalidTable as error:
        return str(error)


@given(TEXTS, st.sampled_from(",;"))
def test_records_are_the_rows_of_pythons_csv_module(text: str, delimiter: str) -> None:
    ours = found(text.encode(), delimiter)
    assume(not any(unclosed for *_, unclosed in ours))
    theirs = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    assert [next(csv.reader([record.decode()], delimiter=delimiter)) for _, _, record, _ in ours] == theirs
    assert [row for row, *_ in ours] == list(range(1, len(ours) + 1))


def test_a_doubled_quote_does_not_close_beside_quotes_that_are_mere_characters() -> None:
    ours = found(b'a"x\n,"""\n1,2\n')
    assert [(record, unclosed) for *_, record, unclosed in ours] == [
        (b'a"x', False),
        (b',"""', True),
        (b"1,2", False),
    ]


@given(TEXTS)
def test_a_records_line_number_counts_the_newlines_before_it(text: str) -> None:
    data = text.encode()
    position = 0
    for _, line, record, _ in found(data):
        position = data.index(record, position)
        assert line == data.count(b"\n", 0, position) + 1
        position += len(record)


@pytest.fixture
def small_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAXIMUM_RECORD_BYTES", 12)


@given(data=st.data(), text=TEXTS)
def test_records_do_not_depend_on_how_the_stream_is_cut(data: st.DataObject, text: str) -> None:
    content = text.encode()
    sizes = data.draw(st.lists(st.integers(0, 9), max_size=20))
    limit = data.draw(st.integers(1, 30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "MAXIMUM_RECORD_BYTES", limit)
        whole, again = (found_or_refused(content, way) for way in (None, sizes))
    assert again == whole
    assert isinstance(whole, str) or all(len(record) <= limit for _, _, record, _ in whole)


@given(TEXTS)
def test_no_byte_but_line_ends_is_lost(text: str) -> None:
    kept = b"".join(record for *_, record, _ in found(text.encode()))
    assert kept.replace(b"\n", b"").replace(b"\r", b"") == text.encode().replace(b"\n", b"").replace(b"\r", b"")


def test_a_quote_that_is_never_closed_costs_one_row() -> None:
    ours = found(b'1,"a\n2,b\n3,"c"\n'.replace(b'"c"', b"c"))
    assert ours == [(1, 1, b'1,"a', True), (2, 2, b"2,b", False), (3, 3, b"3,c", False)]


def test_a_quote_that_closes_too_late_costs_one_row(small_records: None) -> None:
    ours = found(b'1,"a\n2,b\n3,c\n4,d\n5,"\n6,e\n')
    assert [(record, unclosed) for *_, record, unclosed in ours] == [
        (b'1,"a', True),
        (b"2,b", False),
        (b"3,c", False),
        (b"4,d", False),
        (b'5,"', True),
        (b"6,e", False),
    ]


def test_a_line_longer_than_a_record_may_be_is_refused(small_records: None) -> None:
    with pytest.raises(InvalidTable, match="line 2: want at most 12 bytes"):
        found(b"1,a\n" + b"x" * 13 + b"\n")


def test_a_file_full_of_open_quotes_is_refused(small_records: None) -> None:
    with pytest.raises(InvalidTable, match="want quotes that are closed, got 101"):
        found(b'a"b,"c\n' * 200)


def test_memory_is_bounded_by_a_record_and_not_by_the_stream() -> None:
    row = b"1,2,3\n" * 1000
    stream = iter([row] * 2000)
    largest = max(len(block.data) for block in read_blocks(chain(stream), ","))
    assert largest <= records.MAXIMUM_RECORD_BYTES + len(row)
