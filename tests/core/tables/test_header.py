"""The header row: found, read and refused."""

from __future__ import annotations

import pytest

from threefold.errors import InvalidTable
from threefold.signature import Feature
from threefold.tables.header import read_header


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_delimiter_line_end_and_byte_order_mark_are_found(delimiter: str, newline: str, mark: bytes) -> None:
    head = mark + delimiter.join(["id", "alcohol", "ash"]).encode() + newline.encode()
    top = read_header(head + b"1", ["ash", "alcohol"])
    assert top.header.columns == ("id", "alcohol", "ash")
    assert (top.header.delimiter, top.header.newline, top.line) == (delimiter, newline, 2)
    assert top.size_bytes == len(head)


def test_the_delimiter_is_the_one_that_finds_the_features() -> None:
    assert read_header(b'"a;b;c;d",x,y\n', ["x", "y"]).header.delimiter == ","
    assert read_header(b"a,b,c,d;x;y\n", ["x", "y"]).header.delimiter == ";"
    assert read_header(b"x\n", ["x"]).header.columns == ("x",)


def test_a_delimiter_that_is_said_holds_against_what_would_be_found() -> None:
    head = b'"a;b;c;d",x,y\n'
    assert read_header(head, ["x", "y"], delimiter=";").header.columns == ("a;b;c;d,x,y",)
    assert read_header(b"a;b,c\n", ["a", "b,c"], delimiter=",").header.columns == ("a;b", "c")


def test_names_may_be_quoted_and_span_lines() -> None:
    top = read_header(b'\r\n"two\nlines", x \n1,2\n', ["x"])
    assert top.header.columns == ("two\nlines", "x")
    assert top.line == 4
    assert top.size_bytes == 18
    assert top.header.text == '"two\nlines", x '


def test_a_header_without_line_end_is_one() -> None:
    assert read_header(b"a,b", ["a"]).header.columns == ("a", "b")


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "got nothing"),
        (b"\xef\xbb\xbf\r\n\n", "got no text"),
        (b"\xff\xfea\0", "got UTF-16"),
        (b"PK\x03\x04", "got a zip file"),
        (b"a,b\xff\n", "want UTF-8, got byte 0xff"),
        (b"a,b,a,b,c\n", r"got \['a', 'b'\] more than once"),
        (b'a,"b\n1,2\n', "want quotes that are closed"),
        (b"a,b\r1,2\r3,4\r", "want a line of CSV that ends in LF or CRLF, got a lone CR in it"),
        (b"a,b\rc", "got a lone CR in it"),
    ],
)
def test_what_is_no_header_is_refused_with_the_reason(head: bytes, reason: str) -> None:
    with pytest.raises(InvalidTable, match=reason):
        read_header(head, ["a"])


def test_missing_columns_are_listed_unless_they_have_a_default() -> None:
    features = [
        Feature(name="a", type="float32"),
        Feature(name="b", type="float32"),
        Feature(name="c", type="float32", missing=1.0),
        Feature(name="d", type="string"),
    ]
    with pytest.raises(InvalidTable, match=r"want columns \['b', 'd'\], got columns \['a'\]"):
        read_header(b"a\n", ["a"]).header.check(features)
    read_header(b"d,b,a\n", ["a"]).header.check(features)
