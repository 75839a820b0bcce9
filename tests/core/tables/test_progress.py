"""What of a job is done: parts followed from each chunk's first to its last, and nothing taken for done that is not."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from threefold.chunks import Chunk, Counts
from threefold.jobs import Files
from threefold.tables.progress import PARTS, REJECTS, survey

FILES = Files("wine", "job")
CHUNKS = [Chunk(i, "inbox", "wine/a.csv", "v", 100 * i, 100 * i + 100, 10 * i + 1, 10 * i + 2, 10) for i in range(3)]
Items = dict[tuple[int, int], dict[str, Any]]


def rest_of(chunk: Chunk, rows: int) -> Chunk:
    done = chunk.rows - rows
    return replace(
        chunk, part=chunk.part + 1, rows=rows, start=chunk.start + done, row=chunk.row + done, line=chunk.line + done
    )


def done(chunk: Chunk, rows: int, rest: Chunk | None = None) -> Items:
    counts = asdict(Counts(rows, predicted=rows - 1, rejected=1))
    sizes = {"parts_bytes": 5 * rows, "rejects_bytes": rows}
    item = {**counts, **sizes, "attempt": 1, "rest": rest.to_json() if rest else {}, "worker_ms": 7, "written_items": 2}
    return {chunk.id: item}


def sizes(items: Items) -> dict[str, int]:
    found = {}
    for (number, part), item in items.items():
        found[FILES.part(PARTS, number, part)] = item.get("parts_bytes", 0)
        found[FILES.part(REJECTS, number, part)] = item.get("rejects_bytes", 0)
    return found


def whole() -> Items:
    """The first chunk in one, the second in three parts, the third in two."""
    second, third = rest_of(CHUNKS[1], 6), rest_of(CHUNKS[2], 1)
    last = rest_of(second, 2)
    return {
        **done(CHUNKS[0], 10),
        **done(CHUNKS[1], 4, second),
        **done(second, 4, last),
        **done(last, 2),
        **done(CHUNKS[2], 9, third),
        **done(third, 1),
    }


def test_parts_are_put_in_the_order_of_their_rows() -> None:
    items = whole()
    found = survey(CHUNKS, items, FILES, sizes(items))
    assert found.missing == []
    assert found.counts == Counts(30, predicted=24, rejected=6)
    assert [key for key, _ in found.files[PARTS]] == [
        f"wine/job/parts/{name}.csv"
        for name in ("00000-0000", "00001-0000", "00001-0001", "00001-0002", "00002-0000", "00002-0001")
    ]
    assert [size for _, size in found.files[REJECTS]] == [10, 4, 4, 2, 9, 1]
    assert found.spent == {"worker_ms": 42, "written_items": 12}


@given(st.sets(st.sampled_from(sorted(whole()))))
def test_what_is_missing_and_what_is_done_are_all_rows_once(lost: set[tuple[int, int]]) -> None:
    items = {part: item for part, item in whole().items() if part not in lost}
    found = survey(CHUNKS, items, FILES, sizes(items))
    assert found.counts.rows + sum(chunk.rows for chunk in found.missing) == 30
    assert bool(found.missing) == bool(lost)
    # Each chunk is taken up at its first part that is lost.
    assert [chunk.id for chunk in found.missing] == [
        min(part for part in lost if part[0] == number) for number in sorted({number for number, _ in lost})
    ]


def test_a_part_that_was_done_again_to_its_end_has_no_later_parts() -> None:
    items = whole() | done(CHUNKS[1], 10)
    found = survey(CHUNKS, items, FILES, sizes(items))
    assert (found.missing, found.counts.rows) == ([], 30)
    assert not [key for key, _ in found.files[PARTS] if "00001-0001" in key]


def test_a_later_part_of_an_earlier_attempt_is_none_of_a_later_one() -> None:
    again = rest_of(CHUNKS[1], 3)
    items = whole() | done(CHUNKS[1], 7, again)
    assert survey(CHUNKS, items, FILES, sizes(items)).missing == [again]


def test_counts_that_do_not_add_up_and_files_of_another_size_are_not_done() -> None:
    for change in ({"predicted": 8}, {"rows": 9, "predicted": 8}, {"parts_bytes": 49}, {"rejects_bytes": 11}):
        items = whole() | {(0, 0): done(CHUNKS[0], 10)[0, 0] | change}
        there = sizes(whole())
        assert survey(CHUNKS, items, FILES, there).missing == [CHUNKS[0]], change
    items, there = whole(), sizes(whole())
    del there[FILES.part(REJECTS, 0, 0)]
    assert survey(CHUNKS, items, FILES, there).missing == [CHUNKS[0]]
    only_tried: Items = {(0, 0): {"attempts": 3, "reason": "no time"}}
    assert survey(CHUNKS, items | only_tried, FILES, sizes(items)).missing == [CHUNKS[0]]


def test_a_job_of_an_earlier_release_is_read_by_its_names() -> None:
    items: Items = {
        (i, 0): {"attempt": 1, "rows": 10, "predicted": 10, "abstained": 0, "rejected": 0} for i in range(3)
    }
    there = {FILES.chunk(folder, i): 5 for folder in (PARTS, REJECTS) for i in range(3)}
    found = survey(CHUNKS, items, FILES, there)
    assert (found.missing, found.counts.rows) == ([], 30)
    assert [key for key, _ in found.files[PARTS]] == [f"wine/job/parts/0000{i}.csv" for i in range(3)]
    # One of its chunks was done by this release.
    mixed = items | done(CHUNKS[1], 10)
    found = survey(CHUNKS, mixed, FILES, there | sizes(done(CHUNKS[1], 10)))
    assert found.missing == []
    assert found.files[PARTS][1] == ("wine/job/parts/00001-0000.csv", 50)
