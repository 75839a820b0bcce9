"""Chunks: every record in exactly one of them, wherever they are cut."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.chunks import Chunk
from threefold.errors import InvalidTable
from threefold.tables import planner, records
from threefold.tables.header import Header
from threefold.tables.planner import Piece, Plan, cut
from threefold.tables.records import read_blocks

TEXTS = st.lists(
    st.sampled_from(["a", "é", ",", '"', '"x"', '"x\ny"', '"x\r\n,"', "\n", "\r\n", "\n\n", "1,2\n"]), max_size=60
).map("".join)
Row = tuple[int, int, bytes, bool]


def rows_of(data: bytes, offset: int = 0, row: int = 1, line: int = 1) -> list[Row]:
    return [
        (block.row + i, block.lines([i])[0], block.data[start:stop], block.unclosed)
        for block in read_blocks(iter([data]), ",", offset=offset, row=row, line=line)
        for i, (start, stop) in enumerate(zip(block.starts, block.stops, strict=True))
    ]


def chunks_of(data: bytes, chunk_bytes: int, chunk_rows: int, piece_bytes: int) -> list[list[Piece]]:
    stream = iter([data[i : i + piece_bytes] for i in range(0, len(data), piece_bytes)])
    pieces = cut(read_blocks(stream, ","), chunk_bytes=chunk_bytes, chunk_rows=chunk_rows)
    return [list(group) for _, group in groupby(pieces, lambda piece: piece.chunk)]


@given(
    text=TEXTS,
    chunk_bytes=st.integers(1, 80),
    chunk_rows=st.integers(1, 9),
    piece_bytes=st.integers(1, 30),
    limit=st.sampled_from([24, 200]),
)
def test_chunks_cover_every_row_once(
    text: str, chunk_bytes: int, chunk_rows: int, piece_bytes: int, limit: int
) -> None:
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "MAXIMUM_RECORD_BYTES", limit)
        try:
            expected = rows_of(data)
        except InvalidTable:
            return
        read: list[Row] = []
        chunks = chunks_of(data, chunk_bytes, chunk_rows, piece_bytes)
        for number, chunk in enumerate(chunks):
            first, content = chunk[0], b"".join(piece.data for piece in chunk)
            assert first.chunk == number
            assert data[first.offset : first.offset + len(content)] == content
            rows = rows_of(content, first.offset, first.row, first.line)
            assert len(rows) == sum(piece.rows for piece in chunk) <= chunk_rows
            read += rows
        assert read == expected
        assert b"".join(piece.data for chunk in chunks for piece in chunk) == data


@given(text=TEXTS, chunk_bytes=st.integers(1, 80), sizes=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_a_file_planned_again_has_the_same_chunks(text: str, chunk_bytes: int, sizes: tuple[int, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "MAXIMUM_RECORD_BYTES", 40)
        plans = []
        for piece_bytes in sizes:
            try:
                chunks = chunks_of(text.encode(), chunk_bytes, 5, piece_bytes)
                plans.append([(chunk[0].offset, chunk[0].row, chunk[0].line) for chunk in chunks])
            except InvalidTable as error:
                plans.append([str(error)])
        assert plans[0] == plans[1]


def test_a_chunk_ends_with_the_record_that_fills_it() -> None:
    data = b"1,a\n2,b\n3,c\n4,d\n"
    assert [b"".join(piece.data for piece in chunk) for chunk in chunks_of(data, 5, 100, 100)] == [data[:8], data[8:]]
    assert [sum(piece.rows for piece in chunk) for chunk in chunks_of(data, 100, 3, 100)] == [3, 1]


def test_chunks_grow_so_that_a_files_parts_never_pass_what_s3_puts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "DOUBLED_AFTER", 3)
    data = b"1,2\n" * 100
    by_size = [sum(piece.rows for piece in chunk) for chunk in chunks_of(data, 8, 10**9, 64)]
    assert by_size == [2, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16, 10]
    by_rows = [sum(piece.rows for piece in chunk) for chunk in chunks_of(data, 10**9, 2, 64)]
    assert by_rows == by_size


def test_the_largest_object_there_may_be_is_less_than_ten_thousand_chunks() -> None:
    left, number, size = 5 * 1024**4, 0, 8 * 1024**2
    while left > 0:
        left -= size * 2 ** (number // planner.DOUBLED_AFTER)
        number += 1
    assert number < 9_000


def test_bytes_that_are_not_utf_8_are_refused_with_their_line() -> None:
    with pytest.raises(InvalidTable, match="line 2: want UTF-8, got byte 0xff"):
        chunks_of(b"1,a\n2,\xff\n", 100, 100, 100)


def test_plans_and_chunks_survive_json() -> None:
    plan = Plan("job", "wine", "release", "digest", "regression", 1, Header("a;b", ";", "\r\n"))
    assert Plan.from_json(plan.to_json()) == plan
    asked = Plan("job", "wine", "release", "digest", "regression", 1, plan.header, version="digest", store=False)
    assert Plan.from_json(asked.to_json()) == asked
    # One of an earlier release.
    old = {name: value for name, value in plan.to_json().items() if name not in {"version", "store"}}
    assert Plan.from_json(old) == plan
    chunk = Chunk(3, "inbox", "wine/a.csv", "v1", 10, 20, 4, 5, 6)
    assert Chunk.from_json(chunk.to_json()) == chunk
    old_chunk = {name: value for name, value in chunk.to_json().items() if name != "part"}
    assert Chunk.from_json(old_chunk) == chunk
