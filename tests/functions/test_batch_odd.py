"""The odd files that a CSV door is given, each with the one answer that it gets as a job."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Final

import pytest

from tests.functions.batch_world import (
    open_world,  # noqa: F401 - a fixture
    small_package,  # noqa: F401 - a fixture
)

if TYPE_CHECKING:
    from tests.functions.batch_world import World

# Python's csv module stops at 131,072 characters, if nobody tells it otherwise.
LONG: Final = "x" * 131_073
# What is uploaded, and the note and the value of each of its rows; no value is a reject.
READ: Final = {
    "one row": ("id,note,a,b\nk1,n,1,1\n", [("n", "11.0")]),
    "one row without a final newline": ("id,note,a,b\nk1,n,1,1", [("n", "11.0")]),
    "CRLF": ("id,note,a,b\r\nk1,n,1,1\r\nk2,m,2,1\r\n", [("n", "11.0"), ("m", "12.0")]),
    "CRLF without a final newline": ("id,note,a,b\r\nk1,n,1,1\r\nk2,m,2,1", [("n", "11.0"), ("m", "12.0")]),
    "both line ends": ("id,note,a,b\nk1,n,1,1\r\nk2,m,2,1\n", [("n", "11.0"), ("m", "12.0")]),
    "blank lines": ("\n\nid,note,a,b\n\nk1,n,1,1\n\n\r\nk2,m,2,1\n\n", [("n", "11.0"), ("m", "12.0")]),
    "quoted newlines": (
        'id,note,a,b\nk1,"two\nlines",1,1\nk2,"\r\n",2,1\n',
        [("two\nlines", "11.0"), ("\r\n", "12.0")],
    ),
    "everything quoted": ('"id","note","a","b"\n"k1","say ""n""","1","1"\n', [('say "n"', "11.0")]),
    "a long field": (f"id,note,a,b\nk1,{LONG},1,1\nk2,m,2,1\n", [(LONG, "11.0"), ("m", "12.0")]),
    "a long quoted field": (f'id,note,a,b\nk1,"{LONG},\n{LONG}",1,1\n', [(f"{LONG},\n{LONG}", "11.0")]),
    "a long number that is none": (f"id,note,a,b\nk1,n,{LONG},1\nk2,m,2,1\n", [("n", ""), ("m", "12.0")]),
    "a byte order mark": ("\ufeffid,note,a,b\nk1,n,1,1\n", [("n", "11.0")]),
    "a byte order mark before quotes": ('\ufeff"id","note","a","b"\r\nk1,n,1,1\r\n', [("n", "11.0")]),
    "the header alone": ("id,note,a,b\n", []),
}
REFUSED: Final = {
    "nothing": ("", "got nothing"),
    "a byte order mark alone": ("\ufeff", "got no text"),
    "blank lines alone": ("\r\n\n", "got no text"),
    "a name that stands twice": ("id,a,b,a\nk1,1,1,1\n", "got ['a'] more than once"),
    "another name that stands twice": ("id,note,note,a,b\nk1,n,n,1,1\n", "got ['note'] more than once"),
    "no header": ("k1,n,1,2\nk2,m,2,1\n", "want columns ['a']"),
}


@pytest.mark.parametrize(("body", "wanted"), READ.values(), ids=READ)
def test_an_odd_file_is_read_row_by_row_gzip_or_plain(world: World, body: str, wanted: list[tuple[str, str]]) -> None:
    rejected = sum(not value for _, value in wanted)
    for name, content in files(body).items():
        job = world.plan(content, name)
        item = world.run(job) if wanted else world.job(job)
        assert item["state"] == "complete"
        counts = [len(wanted), len(wanted) - rejected, rejected]
        assert [item[name] for name in ("rows", "predicted", "rejected")] == counts
        assert [(row["note"], row["threefold_value"]) for row in world.rows(item)] == wanted
        assert len(world.rows(item, "rejects")) == rejected
        assert len([sk for _, sk in world.items() if job in sk]) == len(wanted)


@pytest.mark.parametrize(("body", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_table_fails_with_the_reason_gzip_or_plain(world: World, body: str, reason: str) -> None:
    for name, content in files(body).items():
        item = world.job(world.plan(content, name))
        assert (item["state"], item["code"]) == ("failed", "invalid_table")
        assert reason in item["reason"]
    assert world.items() == {}


def files(body: str) -> dict[str, bytes]:
    """What is uploaded, by its name."""
    content = body.encode()
    return {"small/odd.csv": content, "small/odd.csv.gz": gzip.compress(content)}
