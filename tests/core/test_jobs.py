"""A job's identity, its counts, and where its files are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from threefold.chunks import Counts
from threefold.errors import UnknownJob
from threefold.jobs import Files, JobState, JobTable, Upload, iso

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW_MS = time.time_ns() // 1_000_000


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobTable]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        client = boto3.client("dynamodb")
        client.create_table(
            TableName="jobs",
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        )
        yield JobTable(client, "jobs", ttl_days=1)


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
    assert Counts(5, 2, 1, 1, held=1).reconciled


def test_a_chunk_that_was_only_tried_has_no_counts() -> None:
    assert Counts.of(None) is None
    assert Counts.of({"attempts": 2, "reason": "no time"}) is None
    old = {"attempt": 2, "rows": 3, "predicted": 2, "abstained": 0, "rejected": 1}
    assert Counts.of(old) == Counts(3, 2, 0, 1)
    assert Counts.of(old | {"held": 1, "predicted": 1}) == Counts(3, 1, 0, 1, 1)


def test_a_jobs_files_stand_under_its_model_and_sort_by_chunk() -> None:
    files = Files("wine", "abc")
    assert files.predictions == "wine/abc/predictions.csv"
    assert files.chunk("chunks", 12) == "wine/abc/chunks/00012.csv"
    assert files.part("parts", 12, 0) == "wine/abc/parts/00012-0000.csv"
    names = [files.part("parts", *part) for part in ((2, 0), (2, 1), (2, 10), (12, 0))]
    assert names == sorted(names)
    assert files.resumed(2) == "wine/abc/chunks-2.json"
    assert files.large(7) == "wine/abc/large/7.json"


def test_times_are_written_in_utc_with_milliseconds() -> None:
    assert iso(1773342238041) == "2026-03-12T19:03:58.041Z"


@pytest.mark.parametrize("state", JobState)
def test_a_state_is_its_word(state: JobState) -> None:
    assert state == state.name.lower()


def upload(name: str, model: str = "wine") -> Upload:
    return Upload("inbox", f"{model}/{name}.csv", "v1", 0, 1, "")


def test_a_models_jobs_are_listed_newest_first_and_page_by_page(table: JobTable) -> None:
    jobs = [upload(f"{i}").job for i in range(250)]
    for i in range(250):
        # Out of order, and two of them planned at one time.
        number = (i * 7) % 250
        table.begin(upload(f"{number}"), NOW_MS + max(number, 1) * 1000)
    table.begin(upload("x", "other"), NOW_MS)
    assert [item["job"] for item in table.list("other", limit=9)] == [upload("x", "other").job]
    assert table.list("nobody", limit=9) == []
    found: list[str] = []
    while page := table.list("wine", limit=60, after=found[-1] if found else None):
        assert len(page) == (60 if len(found) < 240 else 10)
        assert all(item["state"] == "planned" for item in page)
        found += [item["job"] for item in page]
    assert found[:-2] == jobs[:1:-1]
    assert set(found[-2:]) == set(jobs[:2])
    assert len(table.list("wine", limit=230)) == 230
    for after in ("nothing", upload("x", "other").job):
        with pytest.raises(UnknownJob):
            table.list("wine", limit=3, after=after)


def test_what_expired_is_not_listed_and_does_not_shorten_a_page(table: JobTable) -> None:
    for i in range(4):
        table.begin(upload(f"{i}"), NOW_MS + 1000 * i - (2 * 86_400_000 if i % 2 == 0 else 0))
    assert [item["job"] for item in table.list("wine", limit=3)] == [upload("3").job, upload("1").job]


def test_a_job_that_comes_twice_is_listed_once_where_it_was_first(table: JobTable) -> None:
    first = table.begin(upload("a"), NOW_MS, digest="one")
    assert table.begin(upload("a"), NOW_MS + 5, digest="two") == first | {"pk": f"job#{first['job']}", "sk": "job"}
    assert [item["digest"] for item in table.list("wine", limit=9)] == ["one"]


def test_a_job_is_resumed_once_and_only_from_an_end_that_is_not_complete(table: JobTable) -> None:
    job = table.begin(upload("a"), NOW_MS)["job"]
    assert not table.resume(job, after=job, execution=f"{job}-1")
    table.move(job, JobState.FAILED, execution=job, code="x", reason="y")
    assert table.resume(job, after=job, execution=f"{job}-1", resumes=1)
    assert not table.resume(job, after=job, execution=f"{job}-1", resumes=1)
    item = table.find(job) or {}
    assert [item[name] for name in ("state", "execution", "resumes", "reason")] == ["running", f"{job}-1", 1, ""]
    # The first execution ends late.
    assert not table.move(job, JobState.FAILED, execution=job)
    assert table.move(job, JobState.FAILED, execution=f"{job}-1")
    # Somebody who read the job before it was resumed would take up an execution's name for the second time.
    assert not table.resume(job, after=job, execution=f"{job}-1", resumes=1)
    assert table.move(job, JobState.COMPLETE, execution=f"{job}-1")
    assert not table.resume(job, after=f"{job}-1", execution=f"{job}-2")


def test_of_two_that_begin_a_collection_one_does(table: JobTable) -> None:
    assert table.collection("wine") is None
    assert table.begin_collection("wine", "a", 1, after=None)
    assert not table.begin_collection("wine", "b", 2, after=None)
    assert table.begin_collection("wine", "b", 2, after="a")
    assert not table.begin_collection("wine", "c", 3, after="a")
    found = table.collection("wine") or {}
    assert (found["collection"], found["at_ms"]) == ("b", 2)
    assert table.begin_collection("other", "a", 1, after=None)
