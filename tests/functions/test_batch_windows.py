"""A file as a part of the stream, or as all there is of it: the windows that training made, whatever happens."""

from __future__ import annotations

import csv
import io
import random
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from functions import batch
from tests.functions.batch_world import Faults, World, chunks_of, open_world, small_package
from threefold.jobs import Files
from threefold.package import Output
from threefold.release import Challenger
from threefold.signature import Feature
from threefold.sources import TableSource, WindowSource
from threefold.tables import history
from threefold.windows import Events, Windows, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conftest import Graphs, PackageMaker
    from threefold.package import Package

__all__ = ["open_world", "small_package"]

START = 1_767_000_000_000
SPEND = WindowSource(entity="card", of="amount", agg="sum", over="2d")
COUNT = WindowSource(entity="card", agg="count", over="1h")
LAST = WindowSource(entity="shop", of="amount", agg="last", over="1d")
WINDOWS = Windows((("spend_2d", SPEND), ("count_1h", COUNT), ("last_1d", LAST)))
FEATURES = (
    Feature(name="amount", type="float32", max=1000),
    Feature(name="spend_2d", type="float32", source=SPEND),
    Feature(name="count_1h", type="float32", source=COUNT),
    Feature(name="last_1d", type="float32", missing=-1.0, source=LAST),
    Feature(name="age", type="float32", missing=0.0, source=TableSource(entity="user", field="years")),
)
VALUE = Output(kind="regression", value="value")


@pytest.fixture(scope="session")
def fraud(graphs: Graphs, make_package: PackageMaker) -> Callable[..., Package]:
    def make(version: str = "1.0.0", features: Sequence[Feature] = FEATURES) -> Package:
        graph = graphs.linear([1.0] * len(features))
        about = {"features": features, "output": VALUE, "key": "id", "document": {"time": "happened_at"}}
        return make_package(graph, name="fraud", version=version, **about)  # type: ignore[arg-type]

    return make


def transactions(count: int, seed: int) -> list[dict[str, Any]]:
    """Some rows in no order."""
    chance = random.Random(seed)
    return [
        {
            "id": f"t{i}",
            "happened_at": START + chance.randrange(3 * 3_600_000),
            "card": chance.choice(["a", "b", "3", ""]),
            "shop": chance.choice(["x", "y"]),
            "user": chance.choice(["7", "8"]),
            "amount": chance.choice([5.5, 20, 999, 5000]),
            "spend_2d": 1e9,
        }
        for i in range(count)
    ]


def written(records: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def as_trained(records: Sequence[dict[str, Any]], states: Any = None) -> list[dict[str, Any]]:
    events = Events.of(WINDOWS, records, [record["happened_at"] for record in records], None)
    counts = lambda i, _values: records[i]["amount"] <= 1000  # noqa: E731
    found = replay(WINDOWS, events, {} if states is None else states, counts=counts)
    return [
        {name: None if column[i] != column[i] else column[i] for name, column in found.items()}
        for i in range(len(records))
    ]


def looked_up(world: World, job: str) -> list[dict[str, Any]]:
    """What was looked up for each row, by the predictions table."""
    found = {sk: item for (_, sk), item in world.items().items() if f"#{job}#" in sk}
    return [{name: found[sk]["features"][name] for name, _ in WINDOWS.features} for sk in sorted(found)]


def features_table() -> dict[str, dict[str, Any]]:
    found = boto3.client("dynamodb").scan(TableName="features")["Items"]
    return {item["pk"]["S"]: {name: item[name] for name in ("rings", "counted")} for item in found if "rings" in item}


@pytest.mark.parametrize("size", [200, 100_000])
@pytest.mark.parametrize("windows", ["file", "table"])
def test_a_replayed_file_sees_what_training_saw(
    windows: str, size: int, world: World, fraud: Callable[..., Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.release(fraud())
    chunks_of(monkeypatch, size)
    records = transactions(60, 1)
    item = world.score(written(records), "fraud/rows.csv", windows=windows)
    assert item["state"] == "complete"
    trained = as_trained(records)
    assert looked_up(world, item["job"]) == trained
    for row, record, wanted in zip(world.rows(item), records, trained, strict=True):
        if record["amount"] > 1000:
            assert row["threefold_status"] == "rejected"
        else:
            last = -1 if wanted["last_1d"] is None else wanted["last_1d"]
            total = record["amount"] + wanted["spend_2d"] + wanted["count_1h"] + last
            assert float(row["threefold_value"]) == pytest.approx(total, rel=1e-6)
    assert bool(features_table()) == (windows == "table")


def test_files_one_after_the_other_are_one_stream(world: World, fraud: Callable[..., Package]) -> None:
    world.release(fraud())
    records = sorted(transactions(60, 2), key=lambda record: record["happened_at"])
    trained = as_trained(records)
    for start in (0, 25, 40):
        part = records[start : {0: 25, 25: 40, 40: 60}[start]]
        item = world.score(written(part), f"fraud/{start}.csv")
        assert looked_up(world, item["job"]) == trained[start : start + len(part)]


def test_a_file_is_counted_once_when_it_is_complete_and_not_before(world: World, fraud: Callable[..., Package]) -> None:
    world.release(fraud())
    records = transactions(30, 3)
    job = world.plan(written(records), "fraud/rows.csv")
    for event in world.chunk_events(job):
        world.chunk(event)
    assert features_table() == {}
    world.finish(job)
    once = features_table()
    assert set(once) == {f"window#fraud#{name}" for name in ("card#a", "card#b", "card#3", "shop#x", "shop#y")}
    boto3.client("dynamodb").update_item(
        TableName="jobs",
        Key={"pk": {"S": f"job#{job}"}, "sk": {"S": "job"}},
        UpdateExpression="REMOVE counted_at",
    )
    world.finish(job)
    assert features_table() == once
    states: dict[Any, Any] = {}
    as_trained(records, states)
    found, _ = batch._windows()._open_table().read("fraud", states, ())
    assert {entity: state.rings for entity, state in found.items()} == {
        entity: state.rings for entity, state in states.items()
    }


def test_a_planner_that_is_cut_short_anywhere_plans_the_same_windows(
    world: World, fraud: Callable[..., Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.release(fraud())
    records = transactions(20, 4)
    faults, calls = Faults(monkeypatch), 0
    for number in range(1, 40):
        for before in (True, False):
            event = world.upload(written(records), f"fraud/{number}-{before}.csv", {"windows": "file"})
            if faults.cut(world, event, number, before=before) is None:
                assert number > 5
                assert calls > 10
                return
            calls += 1
            world.send(event)
            job = batch.Upload.from_event(event["Records"][0]).job
            world.run(job)
            assert looked_up(world, job) == as_trained(records)
    raise AssertionError("it never ended")


def test_a_planner_s_retry_keeps_what_was_replayed_whatever_was_counted_since(
    world: World, fraud: Callable[..., Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.release(fraud())
    records = transactions(20, 5)
    event = world.upload(written(records), "fraud/first.csv")
    job = batch.Upload.from_event(event["Records"][0]).job
    with monkeypatch.context() as patch:
        patch.setattr(batch, "Plan", lambda *_arguments, **_fields: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.send(event)
    world.score(written(records), "fraud/second.csv")
    world.send(event)
    world.run(job)
    assert looked_up(world, job) == as_trained(records)
    assert world.s3.get_object_tagging(Bucket="results", Key=Files("fraud", job).windows)["TagSet"]


def test_a_row_s_time_may_not_be_ahead_of_the_upload(world: World, fraud: Callable[..., Package]) -> None:
    world.release(fraud())
    records = transactions(3, 6)
    for record, text in zip(records, ("2027-01-01T00:00:00Z", "soon", ""), strict=True):
        record |= {"happened_at": text, "amount": 5}
    item = world.score(written(records), "fraud/rows.csv")
    first, second, third = world.rows(item)
    assert "want at most 300 s ahead of the clock, got '2027-01-01T00:00:00Z'" in first["threefold_message"]
    assert "time 'happened_at': want ISO 8601 or milliseconds since 1970, got 'soon'" in second["threefold_message"]
    assert third["threefold_status"] == "predicted"


def test_loaded_fields_are_looked_up_row_by_row(world: World, fraud: Callable[..., Package]) -> None:
    world.release(fraud())
    item = {"pk": {"S": "entity#user#7"}, "fields": {"M": {"years": {"S": "41"}}}}
    world.dynamodb.put_item(TableName="features", Item=item)
    records = [{**record, "amount": 5} for record in transactions(20, 7)]
    job = world.score(written(records), "fraud/rows.csv", windows="file")["job"]
    found = {item["key"]: item["features"]["age"] for item in world.items().values() if job in item["id"]}
    assert found == {record["id"]: 41 if record["user"] == "7" else None for record in records}


def test_a_file_without_the_columns_that_windows_need_is_refused(world: World, fraud: Callable[..., Package]) -> None:
    world.release(fraud())
    job = world.plan("id,amount,shop\n1,2,x\n", "fraud/rows.csv")
    assert (world.job(job)["state"], world.job(job)["reason"][:37]) == (
        "failed",
        "header: want columns ['card', 'user']",
    )


def test_a_file_of_too_many_rows_or_entities_is_refused_clearly(
    world: World, fraud: Callable[..., Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.release(fraud())
    monkeypatch.setattr(history, "MAXIMUM_ENTITIES", 3)
    job = world.plan(written(transactions(60, 1)), "fraud/rows.csv")
    assert "want at most 3 entities for a model with windows, got 5" in world.job(job)["reason"]
    monkeypatch.setattr(history.History.__init__, "__kwdefaults__", {"limit": 50})
    job = world.plan(written(transactions(60, 2)), "fraud/rows.csv")
    assert world.job(job)["reason"] == "file: want at most 50 rows for a model with windows, got more; cut it by time"


def test_rows_that_a_canary_answers_see_its_windows(world: World, fraud: Callable[..., Package]) -> None:
    longer = WindowSource(entity="card", of="amount", agg="sum", over="1h")
    canary = fraud("2.0.0", (FEATURES[0], Feature(name="spend_2d", type="float32", source=longer), *FEATURES[2:]))
    world.registry.packages.publish(canary)
    challenger = Challenger(digest=canary.digest, version="2.0.0", mode="canary", percent=50, salt="s")
    world.release(fraud(), challenger=challenger)
    records = [
        {"id": i, "happened_at": START + i * 40 * 60_000, "card": "a", "shop": "x", "user": "7", "amount": 1}
        for i in range(10)
    ]
    job = world.score(written(records), "fraud/rows.csv", windows="file")["job"]
    found = {int(item["key"]): item for item in world.items().values() if job in item["id"]}
    assert {item["role"] for item in found.values()} == {"champion", "canary"}
    for i, item in found.items():
        assert item["features"]["spend_2d"] == (i if item["role"] == "champion" else min(i, 1))


def test_models_without_windows_are_planned_as_before(world: World) -> None:
    item = world.score("id,a,b\nx,1,2\n")
    plan = world.s3.get_object(Bucket="results", Key=Files("small", item["job"]).plan)["Body"].read()
    assert b"windows" not in plan
    assert "counts" not in item
    assert features_table() == {}


def test_the_option_is_table_or_file(world: World, fraud: Callable[..., Package]) -> None:
    world.release(fraud())
    job = world.plan(written(transactions(3, 1)), "fraud/rows.csv", windows="both")
    assert world.job(job)["reason"] == "option 'windows': want table or file, got 'both'"
