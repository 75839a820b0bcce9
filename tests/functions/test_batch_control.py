"""Jobs cancelled, stopped, resumed and told of: what was done stays, and what was not is done once."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from functions import batch
from tests.functions.batch_world import (
    SETTINGS,
    TEN,
    Clock,
    chunks_of,
    open_world,  # noqa: F401 - a fixture
    results,
    small_package,  # noqa: F401 - a fixture
    worker_with,
)
from threefold.errors import NotServable, StorageUnavailable, WrongState
from threefold.jobs import Upload
from threefold.outcomes import OutcomeTable, milliseconds
from threefold.tables.worker import LOOK_SECONDS

if TYPE_CHECKING:
    from tests.functions.batch_world import World

ARN = SETTINGS.state_machine_arn.replace("stateMachine", "execution")


def status_event(execution: str, status: str, **detail: Any) -> dict[str, Any]:
    """What EventBridge sends of an execution."""
    return {
        "source": "aws.states",
        "detail-type": "Step Functions Execution Status Change",
        "detail": {
            "executionArn": f"{ARN}:{execution}",
            "stateMachineArn": SETTINGS.state_machine_arn,
            "name": execution,
            "status": status,
            **detail,
        },
    }


def status(world: World, execution: str) -> str:
    return str(world.steps.describe_execution(executionArn=f"{ARN}:{execution}")["status"])


@pytest.fixture
def undisturbed(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    chunks_of(monkeypatch, 60)
    want = results(world, world.score(TEN, "small/undisturbed.csv"))
    world.told()
    return want


def test_a_job_cancelled_between_chunks_is_resumed_where_it_stopped(world: World, undisturbed: Any) -> None:
    job = world.plan(TEN)
    first, second, third = world.chunk_events(job)
    world.chunk(first)
    item = world.control().cancel(job)
    assert (item["state"], item["code"], item["reason"]) == ("cancelled", "cancelled", "cancelled")
    assert status(world, job) == "ABORTED"
    # What was on its way does nothing any more, and leaves nothing.
    assert world.send(second) == {}
    assert (1, 0) not in batch._jobs().chunks.of(job)
    assert world.finish(job) == "cancelled"
    world.send(status_event(job, "ABORTED", cause=f"job {job} was cancelled"))
    (told,) = world.told()
    rows = first["chunk"]["rows"]
    assert told == {
        "stage": "dev",
        "job": job,
        "model": "small",
        "state": "cancelled",
        "reason": "cancelled",
        "rows": 10,
        "predicted": rows,
        "abstained": 0,
        "held": 0,
        "rejected": 0,
        "results_bucket": "results",
    }
    resumed = world.control().resume(job)
    assert [resumed[name] for name in ("state", "execution", "resumes")] == ["running", f"{job}-1", 1]
    assert [event["chunk"] for event in world.chunk_events(job, f"{job}-1")] == [second["chunk"], third["chunk"]]
    item = world.run(job, f"{job}-1")
    assert (item["state"], item["missing"], item["reason"]) == ("complete", [], "")
    assert results(world, item) == undisturbed
    assert [each["state"] for each in world.told()] == ["complete"]


def test_a_job_cancelled_in_the_middle_of_a_chunk_stops_at_the_next_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "id,a,b\n" + "".join(f"k{i},{i},1\n" for i in range(900))
    chunks_of(monkeypatch, 1 << 20)
    want = results(world, world.score(rows, "small/whole.csv"))
    monkeypatch.setenv("THREEFOLD_WRITES_PER_SECOND", "1.0")
    chunks_of(monkeypatch, 1 << 20)
    job = world.plan(rows)
    (event,) = world.chunk_events(job)
    clock, sizes = Clock(), []
    write = OutcomeTable.write

    def slow(table: OutcomeTable, items: Any, *, deadline: float) -> Any:
        table._pacer = None
        sizes.append(len(items))
        clock.passed += LOOK_SECONDS / 4
        if len(sizes) == 6:
            world.control().cancel(job)
        return write(table, items, deadline=deadline)

    with monkeypatch.context() as slowly:
        slowly.setattr(OutcomeTable, "write", slow)
        worker_with(clock)
        assert world.send(event) == {}
    assert 6 < len(sizes) <= 11
    assert sum(sizes) < 900
    assert "attempt" not in batch._jobs().chunks.of(job)[0, 0]
    # It is billed all the same.
    assert batch._jobs().chunks.of(job)[0, 0]["worker_ms"] > 0
    assert batch._jobs().chunks.of(job)[0, 0]["written_items"] == sum(sizes)
    assert "Contents" not in world.s3.list_objects_v2(Bucket="results", Prefix=f"small/{job}/parts/")
    world.control().resume(job)
    restarted = world.run(job, f"{job}-1")
    assert restarted["state"] == "complete"
    assert results(world, restarted) == want


def test_a_job_that_was_handed_on_is_resumed_at_its_rest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "id,a,b\n" + "".join(f"k{i},{i},1\n" for i in range(100))
    want = results(world, world.score(rows, "small/whole.csv"))
    job = world.plan(rows)
    (event,) = world.chunk_events(job)
    clock = Clock()
    worker_with(clock)
    write = OutcomeTable.write

    def slow(table: OutcomeTable, items: Any, *, deadline: float) -> Any:
        clock.passed += 589
        return write(table, items, deadline=deadline)

    with monkeypatch.context() as slowly:
        slowly.setattr(OutcomeTable, "write", slow)
        rest = world.send(event)["rest"]
    clock.passed = 0
    world.send(
        {"action": "fail", "job": job, "model": "small", "error": {"Error": "x", "Cause": "y"}, "execution": job}
    )
    assert world.job(job)["predicted"] == rest["row"] - 1
    world.control().resume(job)
    (again,) = world.chunk_events(job, f"{job}-1")
    assert again["chunk"] == rest
    item = world.run(job, f"{job}-1")
    assert (item["state"], item["written_items"]) == ("complete", 100)
    assert results(world, item) == want


def test_an_incomplete_job_says_what_is_missing_and_can_be_completed(world: World, undisturbed: Any) -> None:
    job = world.plan(TEN)
    events = world.chunk_events(job)
    for event in (events[0], events[2]):
        world.chunk(event)
    # The state machine's choice looks at this word.
    assert world.finish(job) == "incomplete"
    item = world.job(job)
    rows = events[1]["chunk"]["rows"]
    assert (item["missing"], item["predicted"]) == ([1], 10 - rows)
    assert item["reason"] == f"rows: want 10 with an outcome each, got none of {rows} in 1 chunks"
    # Its execution failed for that, which is nothing new about the job.
    world.send(status_event(job, "FAILED", error="JobIncomplete", cause="rows have no outcome"))
    assert world.job(job)["state"] == "incomplete"
    assert [each["state"] for each in world.told()] == ["incomplete"]
    world.control().resume(job)
    item = world.run(job, f"{job}-1")
    assert item["state"] == "complete"
    assert results(world, item) == undisturbed
    assert [each["state"] for each in world.told()] == ["complete"]


def test_a_job_can_be_resumed_again_and_again(world: World, undisturbed: Any) -> None:
    job = world.plan(TEN)
    for times in (1, 2, 3):
        name = f"{job}-{times - 1}" if times > 1 else job
        world.send({"action": "fail", "job": job, "model": "small", "error": {}, "execution": name})
        assert world.control().resume(job)["execution"] == f"{job}-{times}"
        world.chunk(world.chunk_events(job, f"{job}-{times}")[0])
    item = world.run(job, f"{job}-3")
    assert results(world, item) == undisturbed
    assert [each["state"] for each in world.told()] == ["failed"] * 3 + ["complete"]


def test_a_job_of_which_only_the_finish_failed_is_resumed_too(world: World, undisturbed: Any) -> None:
    job = world.plan(TEN)
    events = world.chunk_events(job)
    for event in events:
        world.chunk(event)
    world.send({"action": "fail", "job": job, "model": "small", "error": {}, "execution": job})
    world.control().resume(job)
    # Something is to be mapped over: the last chunk lands on its own items again.
    assert [event["chunk"] for event in world.chunk_events(job, f"{job}-1")] == [events[-1]["chunk"]]
    item = world.run(job, f"{job}-1")
    assert item["state"] == "complete"
    assert results(world, item) == undisturbed


def test_an_execution_that_another_took_the_place_of_ends_nothing(world: World, undisturbed: Any) -> None:
    job = world.plan(TEN)
    stale = world.chunk_events(job)
    world.send({"action": "fail", "job": job, "model": "small", "error": {}, "execution": job})
    world.control().resume(job)
    assert world.send(stale[0]) == {}
    assert batch._jobs().chunks.of(job) == {}
    assert world.finish(job) == "superseded"
    world.send({"action": "fail", "job": job, "model": "small", "error": {}, "execution": job})
    world.send(status_event(job, "ABORTED"))
    assert world.job(job)["state"] == "running"
    assert results(world, world.run(job, f"{job}-1")) == undisturbed


@pytest.mark.parametrize(
    ("how", "detail", "state", "code", "reason"),
    [
        ("ABORTED", {"cause": "the wrong file"}, "cancelled", "aborted", "the wrong file"),
        ("ABORTED", {"cause": None, "error": None}, "cancelled", "aborted", "its execution ended: ABORTED"),
        ("TIMED_OUT", {}, "failed", "timed_out", "its execution ended: TIMED_OUT"),
        ("FAILED", {"error": "States.Runtime", "cause": "no such path"}, "failed", "States.Runtime", "no such path"),
    ],
)
def test_an_execution_that_does_not_end_by_its_own_steps_ends_its_job(  # noqa: PLR0917
    world: World, undisturbed: Any, how: str, detail: dict[str, Any], state: str, code: str, reason: str
) -> None:
    job = world.plan(TEN)
    world.chunk(world.chunk_events(job)[0])
    for _ in range(2):
        assert world.send(status_event(job, how, **detail)) == {}
    item = world.job(job)
    assert [item[name] for name in ("state", "code", "reason")] == [state, code, reason]
    assert item["predicted"] > 0
    (told,) = world.told()
    assert (told["state"], told["reason"], told["predicted"]) == (state, reason, item["predicted"])
    world.control().resume(job)
    assert results(world, world.run(job, f"{job}-1")) == undisturbed


def test_a_job_cancelled_while_it_is_planned_is_not_started(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    event = world.upload(TEN)
    job = Upload.from_event(event["Records"][0]).job
    cut = batch.cut_upload

    def cancelled(*arguments: Any, **options: Any) -> Any:
        found = cut(*arguments, **options)
        world.control().cancel(job)
        return found

    monkeypatch.setattr(batch, "cut_upload", cancelled)
    world.send(event)
    assert world.job(job)["state"] == "cancelled"
    assert world.steps.list_executions(stateMachineArn=SETTINGS.state_machine_arn)["executions"] == []
    assert [each["state"] for each in world.told()] == ["cancelled"]
    with pytest.raises(WrongState, match="want one that was planned, got one that was cancelled before"):
        world.control().resume(job)


def test_a_job_cancelled_just_before_its_execution_starts_does_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = world.upload(TEN)
    job = Upload.from_event(event["Records"][0]).job
    note = batch.JobTable.note

    def cancelled(table: Any, *arguments: Any, **values: Any) -> bool:
        noted = note(table, *arguments, **values)
        world.control().cancel(job)
        return noted

    monkeypatch.setattr(batch.JobTable, "note", cancelled)
    world.send(event)
    for chunk in world.chunk_events(job):
        assert world.send(chunk) == {}
    assert world.finish(job) == "cancelled"
    assert world.items() == {}
    assert [each["state"] for each in world.told()] == ["cancelled"]


def test_a_job_that_failed_for_its_package_is_resumed_when_it_is_there(
    world: World, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.plan(TEN)
    with monkeypatch.context() as away:
        away.setattr(batch, "_worker", lambda: (_ for _ in ()).throw(NotServable("not now")))
        with pytest.raises(NotServable):
            world.send(world.chunk_events(job)[0])
    world.send({"action": "fail", "job": job, "model": "small", "error": {"Error": "NotServable"}, "execution": job})
    item = world.job(job)
    assert (item["state"], item["reason"], item["predicted"]) == ("failed", "not now", 0)
    world.control().resume(job)
    assert results(world, world.run(job, f"{job}-1")) == undisturbed


def test_a_job_says_what_it_took(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512")
    chunks_of(monkeypatch, 60)
    job = world.plan(TEN)
    with pytest.raises(StorageUnavailable):
        batch.handler(world.chunk_events(job)[0], SimpleNamespace(get_remaining_time_in_millis=lambda: 0))
    failed_ms = batch._jobs().chunks.of(job)[0, 0]["worker_ms"]
    item = world.run(job)
    took = [found["worker_ms"] for found in batch._jobs().chunks.of(job).values()]
    assert item["worker_ms"] == sum(took) > failed_ms >= 0
    assert (item["written_items"], item["memory_megabytes"]) == (10, 512)
    assert item["seconds"] == pytest.approx(
        (milliseconds(item["finished_at"]) - milliseconds(item["started_at"])) / 1000, abs=0.01
    )
    assert item["rows_per_second"] == pytest.approx(10 / item["seconds"], rel=0.01)


def test_a_refused_upload_is_told_of_once(world: World) -> None:
    event = world.upload(TEN, "nobody/rows.csv")
    world.send(event)
    world.send(event)
    (told,) = world.told()
    assert (told["state"], told["model"], told["rows"]) == ("failed", "nobody", 0)
    assert "got 'nobody'" in told["reason"]


def test_a_complete_job_is_told_of_with_its_results(world: World) -> None:
    item = world.score(TEN + "k11,short\n")
    (told,) = world.told()
    assert told == {
        "stage": "dev",
        "job": item["job"],
        "model": "small",
        "state": "complete",
        "rows": 11,
        "predicted": 10,
        "abstained": 0,
        "held": 0,
        "rejected": 1,
        "predictions_key": item["predictions_key"],
        "rejects_key": item["rejects_key"],
        "results_bucket": "results",
    }


def test_an_event_that_the_bus_does_not_take_is_sent_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.plan(TEN)
    for event in world.chunk_events(job):
        world.chunk(event)
    teller = batch._endings()._events
    refused = {"FailedEntryCount": 1, "Entries": [{"ErrorCode": "x", "ErrorMessage": "throttled"}]}
    with monkeypatch.context() as broken:
        broken.setattr(teller, "_client", SimpleNamespace(put_events=lambda **_: refused))
        with pytest.raises(StorageUnavailable, match="want its end told, got throttled"):
            world.finish(job)
    assert world.told() == []
    assert world.finish(job) == "complete"
    assert len(world.told()) == 1


def test_working_files_are_tagged_and_results_are_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(monkeypatch, 60)
    job = world.plan(TEN)
    world.send({"action": "fail", "job": job, "model": "small", "error": {}, "execution": job})
    world.control().resume(job)
    item = world.run(job, f"{job}-1")
    keys = [entry["Key"] for entry in world.s3.list_objects_v2(Bucket="results")["Contents"]]
    tagged = {
        key
        for key in keys
        if {"Key": "threefold", "Value": "work"} in world.s3.get_object_tagging(Bucket="results", Key=key)["TagSet"]
    }
    assert set(keys) - tagged == {item["predictions_key"], item["rejects_key"]}
    assert {key.removeprefix(f"small/{job}/").partition("/")[0] for key in tagged} == {
        *("plan.json", "chunks.json", "chunks-1.json", "parts", "rejects"),
    }
    assert json.loads(world.s3.get_object(Bucket="results", Key=f"small/{job}/plan.json")["Body"].read())["job"] == job
