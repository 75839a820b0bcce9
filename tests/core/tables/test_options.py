"""What an uploader says of a file: understood, or refused with the reason."""

from __future__ import annotations

import json

import pytest

from threefold.errors import InvalidTable
from threefold.tables.options import MAXIMUM_BYTES, Options


def test_nothing_said_is_the_defaults() -> None:
    assert Options.read({}, None) == Options.read({}, b"{}") == Options()
    assert Options().to_json() == {}


def test_metadata_win_over_the_file_beside_key_by_key() -> None:
    beside = json.dumps({"delimiter": ";", "version": "1.0.0", "note": "from the file", "store": False}).encode()
    found = Options.read({"note": "from the object", "store": "True"}, beside)
    assert found == Options(delimiter=";", version="1.0.0", store=True, note="from the object")
    assert Options(**found.to_json()) == found


@pytest.mark.parametrize(
    ("said", "meant"), [(",", ","), (";", ";"), ("|", "|"), ("tab", "\t"), ("TAB", "\t"), ("\\t", "\t"), ("\t", "\t")]
)
def test_each_delimiter_can_be_said(said: str, meant: str) -> None:
    assert Options.read({"delimiter": said}, None).delimiter == meant
    assert Options.read({}, json.dumps({"delimiter": said}).encode()).delimiter == meant


def test_metadata_that_are_not_ascii_come_as_they_were_meant() -> None:
    assert Options.read({"note": "=?UTF-8?Q?M=C3=A4rz_2026?="}, None).note == "März 2026"
    assert Options.read({"note": "=?what?Q?x?= = 5"}, None).note == "=?what?Q?x?= = 5"


def test_metadata_of_other_programs_are_left_alone() -> None:
    assert Options.read({"mtime": "1700000000.5", "s3cmd-attrs": "uid:0", "x": ""}, None) == Options()


@pytest.mark.parametrize(
    ("metadata", "beside", "reason"),
    [
        ({"delimiter": "x"}, None, "option 'delimiter': want one of , ; | or tab, got 'x'"),
        ({"delimiter": ",;"}, None, "option 'delimiter'"),
        ({"delimiter": ""}, None, "option 'delimiter'"),
        ({"store": "maybe"}, None, "option 'store': want true or false, got 'maybe'"),
        ({"delimeter": ";"}, None, "options: want some of .*, got 'delimeter'"),
        ({"windows": "both"}, None, "option 'windows': want table or file, got 'both'"),
        ({"note": "x" * 1001}, None, "option 'note': want at most 1000 characters, got 1001"),
        ({}, b'{"delimeter": ";"}', "got 'delimeter'"),
        ({}, b'{"mtime": 5}', "got 'mtime'"),
        ({}, b'{"pending": "pending-1"}', "got 'pending'"),
        ({}, b'{"version": 2}', "option 'version': want text, got 2"),
        ({}, b'{"store": 1}', "option 'store': want true or false, got 1"),
        ({}, b"[]", r"options: want a JSON object, got \[\]"),
        ({}, b"", "options: .*want JSON"),
        ({}, b"\xff", "options: .*want JSON"),
        ({}, b" " * (MAXIMUM_BYTES + 1), "options: want at most"),
    ],
)
def test_what_is_wrong_is_refused_with_the_reason(metadata: dict[str, str], beside: bytes | None, reason: str) -> None:
    with pytest.raises(InvalidTable, match=reason):
        Options.read(metadata, beside)
