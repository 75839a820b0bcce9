"""The batch door cut short: whatever ends in the middle, the job comes out as if nothing had."""

from __future__ import annotations

import itertools
import json
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from functions import batch
from tests.functions.batch_world import (
    SETTINGS,
    TEN,
    Clock,
    Faults,
    chunks_of,
    open_world,  # noqa: F401 - a fixture
    results,
    small_package,  # noqa: F401 - a fixture
    worker_with,
)
from threefold.errors import StorageUnavailable
from threefold.jobs import Upload
from threefold.outcomes import OutcomeTable
from threefold.tables import worker

if TYPE_CHECKING:
    from tests.functions.batch_world import World

# Every kind of record: plain, quoted over lines, rejected by the model, of another form, with the same key as another.
ODD = "id,note,a,b\n" + "".join(
    (f'k{i % 7},"two\nlines {i}",{i},1\n', f"k{i},short\n", f"k{i},=x,no,1\n", f"k{i},plain,{i},\n")[i % 4]
    for i in range(200)
)
# The same in short, for what is done again and again.
FEW = "".join(ODD.splitlines(keepends=True)[:51])


def executions(world: World) -> list[str]:
    found = world.steps.list_executions(stateMachineArn=SETTINGS.state_machine_arn)["executions"]
    return [execution["name"] for execution in found]


def chunks(world: World, job: str) -> list[dict[str, Any]]:
    """A job's chunks, but for the upload's own address."""
    names = ("key", "version", "bucket")
    return [
        {name: value for name, value in event["chunk"].items() if name not in names}
        for event in world.chunk_events(job)
    ]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_a_planner_killed_at_any_call_leaves_one_job_and_the_same_chunks(
    world: World, monkeypatch: pytest.MonkeyPatch, before: bool, packed: bool
) -> None:
    chunks_of(monkeypatch, 60)
    body, suffix = (batch_gzip(TEN), ".csv.gz") if packed else (TEN.encode(), ".csv")
    want = chunks(world, world.plan(body, f"small/undisturbed{suffix}"))
    faults, cut = Faults(monkeypatch), []
    for call in itertools.count(1):
        event = world.upload(body, f"small/{call}{suffix}")
        name = faults.cut(world, event, call, before=before)
        if name is None:
            break
        cut.append(name)
        job = Upload.from_event(event["Records"][0]).job
        world.send(event)
        world.send(event)
        assert world.job(job)["state"] == "running", name
        assert executions(world).count(job) == 1, name
        assert chunks(world, job) == want, name
        assert [item["job"] for item in batch._jobs().list("small", limit=100)].count(job) == 1, name
    assert {"HeadObject", "GetObject", "TransactWriteItems", "PutObject", "UpdateItem", "StartExecution"} <= set(cut)
    assert world.run(job)["state"] == "complete"
    assert len(set(executions(world))) == len(executions(world)) == len(cut) + 2


def batch_gzip(text: str) -> bytes:
    import gzip

    return gzip.compress(text.encode())


@pytest.mark.parametrize("before", [True, False])
def test_a_worker_killed_at_any_call_leaves_the_same_table_and_files(
    world: World, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    want = results(world, world.score(FEW, "small/undisturbed.csv"))
    assert len(want[2]) == 40
    faults, cut = Faults(monkeypatch), []
    for call in itertools.count(1):
        job = world.plan(FEW, f"small/{call}.csv")
        (event,) = world.chunk_events(job)
        name = faults.cut(world, event, call, before=before)
        if name is None:
            break
        cut.append(name)
        item = world.run(job)
        assert item["state"] == "complete", name
        assert results(world, item) == want, name
    assert {"GetItem", "UpdateItem", "GetObject", "BatchWriteItem", "PutObject"} <= set(cut)


@pytest.mark.parametrize("before", [True, False])
def test_a_finish_killed_at_any_call_is_finished_again_and_told_of(
    world: World, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    chunks_of(monkeypatch, 60)
    want = results(world, world.score(TEN, "small/undisturbed.csv"))
    faults, cut = Faults(monkeypatch), []
    world.told()
    for call in itertools.count(1):
        job = world.plan(TEN, f"small/{call}.csv")
        for event in world.chunk_events(job):
            world.chunk(event)
        name = faults.cut(
            world, {"action": "finish", "job": job, "model": "small", "execution": job}, call, before=before
        )
        world.finish(job)
        world.finish(job)
        assert results(world, world.job(job)) == want, name
        told = [each for each in world.told() if each["job"] == job]
        # Told, and noted that it was: who dies between the two tells again.
        assert len(told) == (2 if (name == "PutEvents" and not before) or last_note(name, before, cut) else 1), name
        assert {each["state"] for each in told} == {"complete"}
        if name is None:
            break
        cut.append(name)
    assert {"PutObject", "PutEvents", "UpdateItem"} <= set(cut)


def last_note(name: str | None, before: bool, cut: list[str]) -> bool:
    return before and name == "UpdateItem" and "PutEvents" in cut


@pytest.mark.parametrize("seed", range(6))
def test_duplicate_events_in_any_order_are_one_job(world: World, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chunks_of(monkeypatch, 200)
    want = results(world, world.score(FEW, "small/undisturbed.csv"))
    world.told()
    event = world.upload(FEW)
    world.send(event)
    job = Upload.from_event(event["Records"][0]).job
    finish = {"action": "finish", "job": job, "model": "small", "execution": job}
    events = [event, event, finish, finish, *world.chunk_events(job), *world.chunk_events(job)]
    random.Random(seed).shuffle(events)
    for each in events:
        world.send(json.loads(json.dumps(each)))
    assert world.finish(job) == "complete"
    assert results(world, world.job(job)) == want
    assert executions(world).count(job) == 1
    states = [each["state"] for each in world.told()]
    assert states in (["complete"], ["incomplete", "complete"])


def slow_writes(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: float) -> None:
    """Every write of a batch takes so long."""
    write = OutcomeTable.write

    def slow(table: OutcomeTable, items: Any, *, deadline: float) -> Any:
        clock.passed += seconds
        return write(table, items, deadline=deadline)

    monkeypatch.setattr(OutcomeTable, "write", slow)


@pytest.mark.parametrize("seconds", [250, 400, 589])
def test_a_worker_short_of_time_hands_the_rest_on_and_the_result_is_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    chunks_of(monkeypatch, 2500)
    want = results(world, world.score(ODD, "small/undisturbed.csv"))
    job = world.plan(ODD)
    clock = Clock()
    took = 0
    for event in world.chunk_events(job):
        with monkeypatch.context() as slowly:
            slow_writes(slowly, clock, seconds)

            def send(context: Any, event: dict[str, Any] = event) -> Any:
                # Each invocation has its 600 s.
                clock.passed = 0
                worker_with(clock)
                return batch.handler(event, context)

            context = SimpleNamespace(get_remaining_time_in_millis=lambda: 600_000)
            while "rest" in (answer := send(context)):
                event["chunk"] = json.loads(json.dumps(answer["rest"]))
                took += 1
    assert took >= 2
    world.finish(job)
    item = world.job(job)
    assert (item["state"], item["rows"], item["rejected"]) == ("complete", 200, 100)
    assert results(world, item) == want
    parts = world.s3.list_objects_v2(Bucket="results", Prefix=f"small/{job}/parts/")["Contents"]
    assert len(parts) == took + item["chunks"]


def test_a_worker_whose_writes_run_out_of_time_hands_on_what_is_not_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = results(world, world.score(ODD, "small/undisturbed.csv"))
    job = world.plan(ODD)
    (event,) = world.chunk_events(job)
    write, calls = OutcomeTable.write, itertools.count()

    def throttled(table: OutcomeTable, items: Any, *, deadline: float) -> Any:
        left = write(table, items, deadline=deadline)
        # The second batch was written, but nobody knows of all of it.
        return [(items[0]["pk"]["S"], items[0]["sk"]["S"])] if next(calls) == 1 else left

    monkeypatch.setattr(OutcomeTable, "write", throttled)
    answer = world.send(event)
    assert (answer["rest"]["part"], answer["rest"]["row"], answer["rest"]["rows"]) == (1, 17, 184)
    assert answer["rest"]["end"] == event["chunk"]["end"]
    assert world.chunk(event | {"chunk": answer["rest"]}) == 1
    world.finish(job)
    assert results(world, world.job(job)) == want
    assert world.job(job)["written_items"] == 200


def test_the_same_part_done_again_to_another_end_is_the_one_that_counts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = results(world, world.score(ODD, "small/undisturbed.csv"))
    job = world.plan(ODD)
    (event,) = world.chunk_events(job)
    clock = Clock()
    worker_with(clock)
    with monkeypatch.context() as slowly:
        slow_writes(slowly, clock, 589)
        first = world.send(event)["rest"]
        clock.passed = 0
        second = world.send(event | {"chunk": first})["rest"]
    clock.passed = 0
    # Step Functions did not hear the first answer, and asks again: all is done at once, and later parts are nobody's.
    assert world.send(event) == {}
    assert world.finish(job) == "complete"
    assert results(world, world.job(job)) == want
    # A worker that was given up writes late what it had.
    body = world.s3.get_object(Bucket="results", Key=f"small/{job}/parts/00000-0001.csv")["Body"].read()
    assert body
    assert second["row"] > first["row"]


def test_a_file_that_a_given_up_worker_wrote_late_is_not_taken_for_the_counted_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks_of(monkeypatch, 60)
    want = results(world, world.score(TEN, "small/undisturbed.csv"))
    job = world.plan(TEN)
    events = world.chunk_events(job)
    for event in events:
        world.chunk(event)
    world.s3.put_object(Bucket="results", Key=f"small/{job}/parts/00001-0000.csv", Body=b"half of it")
    assert world.finish(job) == "incomplete"
    assert world.job(job)["missing"] == [1]
    assert world.send(world.chunk_events(job)[1]) == {}
    assert world.finish(job) == "complete"
    assert results(world, world.job(job)) == want


def test_rows_that_take_long_are_scored_a_few_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.plan("id,a,b\n" + "".join(f"k{i},{i},1\n" for i in range(100)))
    (event,) = world.chunk_events(job)
    clock, sizes = Clock(), []
    worker_with(clock)
    predict = batch._predictor().predict

    def slow(request: Any) -> Any:
        sizes.append(len(request.rows))
        clock.passed += 10 * len(request.rows)
        return predict(request)

    monkeypatch.setattr(batch._predictor(), "predict", slow)
    rest = world.send(event)["rest"]
    # The first rows say how long a row takes, and a batch takes no longer than it should.
    assert sizes[0] == worker.FIRST_ROWS
    assert set(sizes[1:]) <= {2, 3}
    assert sum(sizes) * 10 <= 590
    assert rest["row"] == sum(sizes) + 1


def test_heavy_outcomes_make_small_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "BATCH_BYTES", 10_000)
    sizes: list[int] = []
    write = OutcomeTable.write
    monkeypatch.setattr(
        OutcomeTable, "write", lambda table, items, **more: [sizes.append(len(items)), write(table, items, **more)][1]
    )
    item = world.score("id,note,a,b\n" + "".join(f"k{i},{'n' * 1_000},{i},1\n" for i in range(60)))
    assert (item["state"], item["predicted"]) == ("complete", 60)
    # Two lines of a thousand characters in each of these bytes' fifths.
    assert sizes[0] == worker.FIRST_ROWS
    assert set(sizes[1:-1]) <= {6, 7, 8}


def test_a_batch_grows_by_steps(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = OutcomeTable.write
    monkeypatch.setattr(
        OutcomeTable, "write", lambda table, items, **more: [sizes.append(len(items)), write(table, items, **more)][1]
    )
    world.score("a,b\n" + "1,1\n" * 400)
    assert sizes == [16, 128, 256]


def test_a_slow_table_makes_small_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREEFOLD_WRITES_PER_SECOND", "0.2")
    chunks_of(monkeypatch, 10_000)
    job = world.plan(TEN)
    (event,) = world.chunk_events(job)
    written: list[int] = []
    monkeypatch.setattr(OutcomeTable, "write", lambda _table, items, deadline: written.append(len(items)))
    assert world.send(event) == {}
    # Half a minute's worth.
    assert written == [6, 4]


def test_not_one_batch_in_a_whole_invocation_is_tried_again(world: World) -> None:
    (event,) = world.chunk_events(world.plan("a,b\n1,1\n"))
    with pytest.raises(StorageUnavailable, match="got no time after 0"):
        batch.handler(event, SimpleNamespace(get_remaining_time_in_millis=lambda: 9_000))


def test_a_job_planned_by_an_earlier_release_is_finished_by_this_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks_of(monkeypatch, 60)
    want = results(world, world.score(TEN, "small/undisturbed.csv"))
    job = world.plan(TEN)
    first, *others = world.chunk_events(job)
    for event in (first, others[0]):
        world.chunk(event)
    # As the earlier release left the first chunk, and as its state machine speaks.
    for folder in ("parts", "rejects"):
        key = f"small/{job}/{folder}/00000-0000.csv"
        body = world.s3.get_object(Bucket="results", Key=key)["Body"].read()
        world.s3.put_object(Bucket="results", Key=f"small/{job}/{folder}/00000.csv", Body=body)
        world.s3.delete_object(Bucket="results", Key=key)
    world.dynamodb.update_item(
        TableName="jobs",
        Key={"pk": {"S": f"job#{job}"}, "sk": {"S": "chunk#00000"}},
        UpdateExpression="REMOVE held, parts_bytes, rejects_bytes, rest, worker_ms, written_items",
    )
    for event in others[1:]:
        del event["chunk"]["part"], event["execution"]
        world.chunk(event)
    world.send({"action": "finish", "job": job, "model": "small"})
    assert world.job(job)["state"] == "complete"
    assert results(world, world.job(job)) == want
