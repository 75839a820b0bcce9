"""Records left pending: collected into an upload, scored by the same path, and cleared once their outcomes stand."""

from __future__ import annotations

import csv
import gzip
import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from functions import batch
from tests.functions.batch_world import (
    Faults,
    chunks_of,
    open_world,  # noqa: F401 - a fixture
    restart,
    small_package,  # noqa: F401 - a fixture
)
from threefold.errors import StorageUnavailable, WrongState
from threefold.jobs import JobTable, Upload
from threefold.tables import pending

if TYPE_CHECKING:
    from tests.functions.batch_world import World

COLLECT = {"action": "collect"}
HOUR_MS = 3_600_000


@pytest.fixture(autouse=True)
def later(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time of day, which each collection finds a millisecond later; it can be moved on."""
    now = [1_800_000_000_000]

    def tick() -> int:
        now[0] += 1
        return now[0]

    monkeypatch.setattr(batch, "_now_ms", tick)
    return now


def leave(world: World, name: str, *records: Any, model: str = "small") -> tuple[str, str]:
    body = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    key = f"pending/{model}/{name}"
    return key, world.s3.put_object(Bucket="inbox", Key=key, Body=body)["VersionId"]


def left(world: World) -> dict[str, str]:
    """The versions that lie there."""
    found = world.s3.list_object_versions(Bucket="inbox", Prefix="pending/")
    assert "DeleteMarkers" not in found
    return {version["VersionId"]: version["Key"] for version in found.get("Versions", [])}


def uploads(world: World, model: str = "small") -> list[dict[str, Any]]:
    """The events of the collections, oldest first."""
    found = world.s3.list_object_versions(Bucket="inbox", Prefix=f"{model}/pending-").get("Versions", [])
    return [world.event(version["Key"], version["VersionId"]) for version in sorted(found, key=lambda one: one["Key"])]


def plan(world: World, event: dict[str, Any]) -> str:
    world.send(event)
    return Upload.from_event(event["Records"][0]).job


def body(world: World, event: dict[str, Any]) -> list[dict[str, str]]:
    key = event["Records"][0]["s3"]["object"]["key"]
    text = world.s3.get_object(Bucket="inbox", Key=key)["Body"].read().decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_what_was_left_is_scored_and_then_cleared(world: World) -> None:
    leave(world, "1.jsonl", {"id": "k1", "a": 1, "b": 2}, {"a": 3, "who": "me"})
    leave(world, "2.csv.gz")
    world.s3.put_object(Bucket="inbox", Key="pending/small/2.csv.gz", Body=gzip.compress(b"id;a\nk3;5\n"))
    leave(world, "3.jsonl", {"id": 4, "a": "no", "b": None}, [1, 2])
    before = left(world)
    assert world.send(COLLECT) == {}
    (event,) = uploads(world)
    assert list(body(world, event)[0])[:5] == ["a", "b", "id", "who"]
    job = plan(world, event)
    assert left(world) == before
    item = world.run(job)
    assert item["options"] == {"delimiter": ",", "pending": event["Records"][0]["s3"]["object"]["key"][6:-4]}
    assert [item[name] for name in ("state", "rows", "predicted", "rejected")] == ["complete", 5, 3, 2]
    rows = world.rows(item)
    assert [(row["id"], row["who"], row["threefold_value"]) for row in rows[:3]] == [
        ("k1", "", "21.0"),
        ("", "me", "8.0"),
        ("k3", "", "10.0"),
    ]
    assert [row["threefold_status"] for row in rows[3:]] == ["rejected", "rejected"]
    # All that was collected, and the version that it took the place of.
    assert left(world) == {}
    assert world.job(job)["cleared_at"] >= item["finished_at"]
    assert {("small#k1", f"{job}-1"), ("small#4", f"{job}-4")} <= {
        (pk, one["id"]) for (pk, _), one in world.items().items()
    }


def test_what_comes_while_a_collection_is_scored_waits_for_the_next(world: World) -> None:
    leave(world, "1.jsonl", {"a": 1})
    world.send(COLLECT)
    _, newer = leave(world, "1.jsonl", {"a": 2})
    _, other = leave(world, "2.jsonl", {"a": 3})
    # The first one's job is open, though nobody has noticed it yet, then planned, then running.
    world.send(COLLECT)
    (event,) = uploads(world)
    job = plan(world, event)
    world.send(COLLECT)
    assert len(uploads(world)) == 1
    world.run(job)
    assert set(left(world)) == {newer, other}
    world.send(COLLECT)
    first, second = uploads(world)
    assert [row["a"] for row in body(world, second)] == ["2", "3"]
    world.run(plan(world, second))
    assert left(world) == {}
    assert first != second


def test_what_a_failed_job_collected_stays_and_is_collected_again(world: World) -> None:
    leave(world, "1.jsonl", {"id": "k", "a": 1})
    before = left(world)
    world.send(COLLECT)
    (event,) = uploads(world)
    job = plan(world, event)
    world.send({"action": "fail", "job": job, "model": "small", "error": {}, "execution": job})
    assert left(world) == before
    leave(world, "2.jsonl", {"id": "l", "a": 2})
    world.send(COLLECT)
    _, second = uploads(world)
    assert [row["id"] for row in body(world, second)] == ["k", "l"]
    item = world.run(plan(world, second))
    assert (item["state"], left(world)) == ("complete", {})
    # They are that one's now: the failed one would score them a second time.
    with pytest.raises(WrongState, match="want its pending records left to it, got them collected again as pending-"):
        world.control().resume(job)


def test_what_was_overwritten_before_it_was_collected_never_comes_back(world: World) -> None:
    for records in ([{"id": "k1", "a": 1}], [{"id": "k1", "a": 2}], [{"id": "k1", "a": 3}, {"id": "k2", "a": 4}]):
        leave(world, "1.jsonl", *records)
    for _ in range(3):
        world.send(COLLECT)
        for event in uploads(world):
            world.run(plan(world, event))
    assert len(uploads(world)) == 1
    assert left(world) == {}
    assert sorted(pk for pk, _ in world.items()) == ["small#k1", "small#k2"]


def test_a_job_that_is_resumed_in_the_last_moment_keeps_its_records(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(world, "1.jsonl", {"id": "k", "a": 1})
    world.send(COLLECT)
    (event,) = uploads(world)
    job = plan(world, event)
    world.control().cancel(job)
    begin = JobTable.begin_collection

    def resumed(table: JobTable, *args: Any, **more: Any) -> bool:
        monkeypatch.setattr(JobTable, "begin_collection", begin)
        world.control().resume(job)
        return begin(table, *args, **more)

    monkeypatch.setattr(JobTable, "begin_collection", resumed)
    world.send(COLLECT)
    assert world.run(job, f"{job}-1")["state"] == "complete"
    world.send(COLLECT)
    assert (len(uploads(world)), left(world)) == (1, {})


def test_an_event_that_comes_after_its_records_were_collected_again_makes_no_second_job(
    world: World, later: list[int]
) -> None:
    leave(world, "1.jsonl", {"id": "k", "a": 1})
    world.send(COLLECT)
    (lost,) = uploads(world)
    later[0] += 25 * HOUR_MS
    world.send(COLLECT)
    _, event = uploads(world)
    job = plan(world, lost)
    assert "want them scored by the collection that has them" in world.job(job)["reason"]
    world.run(plan(world, event))
    assert len(world.items()) == 1


def test_an_incomplete_job_clears_nothing_until_it_is_complete(world: World) -> None:
    leave(world, "1.jsonl", {"a": 1})
    world.send(COLLECT)
    job = plan(world, uploads(world)[0])
    assert world.finish(job) == "incomplete"
    assert len(left(world)) == 1
    world.control().resume(job)
    assert world.run(job, f"{job}-1")["state"] == "complete"
    assert left(world) == {}


@pytest.mark.parametrize("before", [True, False])
def test_a_collection_cut_short_at_any_call_collects_nothing_twice_and_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, later: list[int], before: bool
) -> None:
    faults, cut = Faults(monkeypatch), []
    for call in range(1, 30):
        key, _ = leave(world, f"{call}.jsonl", {"id": f"k{call}", "a": call})
        name = faults.cut(world, COLLECT, call, before=before)
        restart()
        if name is None:
            break
        cut.append(name)
        for _ in range(3):
            world.send(COLLECT)
            # Until the lease of who began it is over, nobody knows that it was cut.
            later[0] += pending.LEASE_SECONDS * 1000 + 1
        event = uploads(world)[-1]
        assert [row["id"] for row in body(world, event)] == [f"k{call}"], name
        world.run(plan(world, event))
        assert key not in left(world).values(), name
    assert left(world)
    world.run(plan(world, uploads(world)[-1]))
    assert {"ListObjectsV2", "ListObjectVersions", "GetObject", "UpdateItem", "PutObject"} <= set(cut)
    ids = [one["key"] for one in world.items().values()]
    assert sorted(ids) == sorted({f"k{i}" for i in range(1, len(cut) + 2)})


@pytest.mark.parametrize("before", [True, False])
def test_a_clearing_cut_short_is_taken_up_by_the_next_collection(
    world: World, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    monkeypatch.setattr(pending, "_DELETES_PER_CALL", 1)
    faults, cut = Faults(monkeypatch), []
    # The calls before these only read, and write the results.
    for call in range(8, 40):
        for i in range(2):
            leave(world, f"{call}-{i}.jsonl", {"a": 1})
        world.send(COLLECT)
        job = plan(world, uploads(world)[-1])
        for event in world.chunk_events(job):
            world.chunk(event)
        finish = {"action": "finish", "job": job, "model": "small", "execution": job}
        name = faults.cut(world, finish, call, before=before)
        if name is None:
            break
        cut.append(name)
        if world.job(job)["state"] != "complete":
            assert len(left(world)) == 2
            world.finish(job)
        # Whatever became of the finish, the next collection sees to it.
        world.send(COLLECT)
        assert left(world) == {}, name
    assert cut.count("DeleteObjects") == 2


def test_duplicate_schedule_events_are_one_collection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(world, "1.jsonl", {"a": 1})
    world.send(COLLECT)
    world.send(COLLECT)
    assert len(uploads(world)) == 1
    world.run(plan(world, uploads(world)[0]))
    leave(world, "2.jsonl", {"a": 1})
    # Two at a time: both have looked, and one is first.
    look = pending.PendingRecords._look

    def beaten(self: Any, *arguments: Any) -> Any:
        found = look(self, *arguments)
        monkeypatch.setattr(pending.PendingRecords, "_look", look)
        world.send(COLLECT)
        return found

    monkeypatch.setattr(pending.PendingRecords, "_look", beaten)
    world.send(COLLECT)
    assert len(uploads(world)) == 2
    world.run(plan(world, uploads(world)[1]))
    assert len(world.items()) == 2


def test_an_upload_whose_event_was_lost_is_given_up_after_a_day(world: World, later: list[int]) -> None:
    leave(world, "1.jsonl", {"a": 1})
    world.send(COLLECT)
    for hours in range(24):
        later[0] += HOUR_MS - 10
        world.send(COLLECT)
        assert len(uploads(world)) == 1, hours
    later[0] += HOUR_MS
    world.send(COLLECT)
    assert len(uploads(world)) == 2


def test_a_model_that_cannot_take_them_keeps_its_records_and_others_get_theirs(
    world: World, make_package: Any, graphs: Any
) -> None:
    world.release(make_package(graphs.addition(), name="sums"))
    leave(world, "1.jsonl", {"a": 1}, model="nobody")
    leave(world, "1.jsonl", {"a": 1}, model="sums")
    leave(world, "1.jsonl", {"a": 1})
    leave(world, "1.jsonl", {"a": 1}, model="No Such Model")
    world.send(COLLECT)
    assert len(uploads(world)) == 1
    world.run(plan(world, uploads(world)[0]))
    assert len(left(world)) == 3


def test_a_csv_that_cannot_be_read_is_left_alone(world: World) -> None:
    world.s3.put_object(Bucket="inbox", Key="pending/small/a.csv", Body=b"a,a\n1,2\n")
    world.s3.put_object(Bucket="inbox", Key="pending/small/b.csv", Body=b"a,b\n1,2\n")
    world.send(COLLECT)
    item = world.run(plan(world, uploads(world)[0]))
    assert item["rows"] == 1
    assert list(left(world).values()) == ["pending/small/a.csv"]
    # With nothing else there, there is nothing to collect.
    world.send(COLLECT)
    assert len(uploads(world)) == 1


def test_what_lies_in_the_pending_folder_is_no_upload(world: World) -> None:
    version = world.s3.put_object(Bucket="inbox", Key="pending/small/a.csv", Body=b"a,b\n1,2\n")["VersionId"]
    assert world.send(world.event("pending/small/a.csv", version)) == {}
    assert world.dynamodb.scan(TableName="jobs")["Count"] == 0


def test_an_uploader_cannot_have_somebody_elses_records_cleared(world: World) -> None:
    leave(world, "1.jsonl", {"a": 1})
    world.send(COLLECT)
    key = uploads(world)[0]["Records"][0]["s3"]["object"]["key"]
    name = key.removeprefix("small/").removesuffix(".csv")
    item = world.score("a,b\n1,2\n", "small/mine.csv", pending=name)
    assert (item["state"], "cleared_at" in item) == ("complete", False)
    assert len(left(world)) == 1


def test_many_objects_of_all_sizes_are_collected_in_order_and_in_parts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "_AHEAD", 4)
    monkeypatch.setattr(pending, "_SMALL_BYTES", 100)
    monkeypatch.setattr(pending, "MAXIMUM_OBJECTS", 11)
    for i in range(15):
        leave(world, f"{i:02d}.jsonl", *({"id": f"{i}-{j}", "a": j} for j in range(1 + i % 3 * 5)))
    leave(world, "folder/")
    world.send(COLLECT)
    (event,) = uploads(world)
    assert [row["id"] for row in body(world, event)] == [f"{i}-{j}" for i in range(11) for j in range(1 + i % 3 * 5)]
    chunks_of(monkeypatch, 60)
    world.run(plan(world, event))
    assert len(left(world)) == 5


def test_a_collection_short_of_time_leaves_the_rest_for_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        leave(world, f"{i}.jsonl", {"id": f"{i}", "a": i})
    ticks = iter(range(0, 10_000, 60))
    batch._pending()._clock = lambda: float(next(ticks))
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    world.send(COLLECT)
    monkeypatch.undo()
    rows = body(world, uploads(world)[0])
    assert 0 < len(rows) < 5
    assert [row["id"] for row in rows] == [f"{i}" for i in range(len(rows))]


def test_a_clearing_that_s3_refuses_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(world, "1.jsonl", {"a": 1})
    world.send(COLLECT)
    job = plan(world, uploads(world)[0])
    for event in world.chunk_events(job):
        world.chunk(event)
    client = batch._s3()
    with monkeypatch.context() as refusing:
        refusing.setattr(client, "delete_objects", lambda **_: {"Errors": [{"Message": "slow down"}]})
        with pytest.raises(StorageUnavailable, match="got slow down"):
            world.finish(job)
    assert world.job(job)["state"] == "complete"
    assert world.finish(job) == "complete"
    assert left(world) == {}
