"""A job's identity, its counts, and where its files are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.jobs import Counts, Files, JobState, Upload, iso


def event(key: str, version: str | None = "v1", at: str = "2026-03-12T19:03:58.041Z") -> dict[str, Any]:
    found = {"key": key, "size": 7, "sequencer": "0065"} | ({"versionId": version} if version else {})
    return {"eventTime": at, "s3": {"bucket": {"name": "inbox"}, "object": found}}


def test_a_key_is_decoded_as_s3_encodes_it() -> None:
    upload = Upload.from_event(event("wine/in+march/a%2Bb+%C3%A9.csv"))
    assert upload == Upload("inbox", "wine/in march/a+b é.csv", "v1", 1773342238041, 7, "0065")
    assert upload.model == "wine"


def test_a_job_id_is_pinned_for_good() -> None:
    # A changed id would score every upload again whose event comes twice across a deploy.
    assert Upload.from_event(event("wine/a.csv")).job == "f0ea430fb0236fd67aff22f76dad082a"


def test_a_job_id_is_that_of_the_version_and_of_nothing_else() -> None:
    one = Upload.from_event(event("wine/a.csv"))
    assert Upload.from_event(event("wine/a.csv", at="2027-01-01T00:00:00.000Z")).job == one.job
    others = {
        Upload.from_event(event(*found)).job
        for found in (("wine/a.csv", "v2"), ("wine/b.csv", "v1"), ("wine/a.csv", None))
    }
    assert len(others | {one.job}) == 4


@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_different_objects_never_share_a_job(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    jobs = {Upload(*found, 0, 0, "").job for found in (one, other)}
    assert len(jobs) == len({one, other})
    assert all(len(job) == 32 and set(job) <= set("0123456789abcdef") for job in jobs)


def test_counts_are_added_and_reconciled() -> None:
    total = Counts(3, 1, 1, 1) + Counts(2, 2)
    assert total == Counts(5, 3, 1, 1)
    assert total.reconciled
    assert not Counts(5, 3, 1).reconciled


def test_a_chunk_that_was_only_tried_has_no_counts() -> None:
    assert Counts.of(None) is None
    assert Counts.of({"attempts": 2, "reason": "no time"}) is None
    assert Counts.of({"attempt": 2, "rows": 3, "predicted": 2, "abstained": 0, "rejected": 1}) == Counts(3, 2, 0, 1)


def test_a_jobs_files_stand_under_its_model_and_sort_by_chunk() -> None:
    files = Files("wine", "abc")
    assert files.predictions == "wine/abc/predictions.csv"
    assert files.numbered("parts", 12) == "wine/abc/parts/00012.csv"
    assert files.numbered("parts", 2).startswith(files.folder("parts"))
    assert files.numbered("parts", 2) < files.numbered("parts", 12)


def test_times_are_written_in_utc_with_milliseconds() -> None:
    assert iso(1773342238041) == "2026-03-12T19:03:58.041Z"


@pytest.mark.parametrize("state", JobState)
def test_a_state_is_its_word(state: JobState) -> None:
    assert state == state.name.lower()
