"""gzip as a stream."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.errors import InvalidTable
from threefold.tables.compressed import gunzip


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.integers(1, 50), st.integers(0, 3))
def test_members_and_padding_are_read_however_they_arrive(members: list[bytes], size: int, zeros: int) -> None:
    packed = b"".join(gzip.compress(member) for member in members) + b"\0" * zeros
    stream = iter([packed[i : i + size] for i in range(0, len(packed), size)])
    assert b"".join(gunzip(stream)) == b"".join(members)


def test_a_large_answer_comes_in_small_pieces() -> None:
    pieces = [len(piece) for piece in gunzip(iter([gzip.compress(b"0" * 5_000_000)]))]
    assert sum(pieces) == 5_000_000
    assert max(pieces) <= 1024**2


@pytest.mark.parametrize(
    ("packed", "reason"),
    [(gzip.compress(b"abc" * 99)[:-6], "ends too early"), (gzip.compress(b"abc")[:5] + b"garbage" * 9, "damaged")],
)
def test_a_damaged_file_is_refused(packed: bytes, reason: str) -> None:
    with pytest.raises(InvalidTable, match=reason):
        list(gunzip(iter([packed])))
