"""Features that no caller sends: the same numbers at the doors as in training, each event counted once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from threefold.package import Output
from threefold.release import Challenger, Version
from threefold.signature import Feature
from threefold.sources import TableSource, WindowSource
from threefold.windows import Events, Windows, replay

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tests.conftest import Graphs, PackageMaker
    from tests.functions.conftest import Shelf, Stream
    from threefold.package import Package

START = time.time_ns() // 1_000_000 - 3 * 86_400_000
SPEND = WindowSource(entity="card", of="amount", agg="sum", over="2d")
COUNT = WindowSource(entity="card", agg="count", over="1h")
MOST = WindowSource(entity="shop", of="amount", agg="max", over="1d")
WINDOWS = Windows((("spend_2d", SPEND), ("count_1h", COUNT), ("most_1d", MOST)))
FEATURES = (
    Feature(name="amount", type="float32", max=1000),
    Feature(name="spend_2d", type="float32", source=SPEND),
    Feature(name="count_1h", type="float32", source=COUNT),
    Feature(name="most_1d", type="float32", missing=-1.0, source=MOST),
    Feature(name="age", type="float32", missing=0.0, source=TableSource(entity="user", field="years")),
)
NAMES = [feature.name for feature in FEATURES if feature.source is not None]
VALUE = Output(kind="regression", value="value")


@pytest.fixture
def fraud(graphs: Graphs, make_package: PackageMaker) -> Callable[..., Package]:
    """Packages of one model: value = the sum of the features."""

    def make(version: str = "1.0.0", **fields: Any) -> Package:
        wanted = {"name": "fraud", "features": FEATURES, "output": VALUE, "document": {"time": "happened_at"}} | fields
        graph = graphs.linear([1.0] * len(wanted["features"]))
        return make_package(graph, version=version, **wanted)

    return make


@pytest.fixture
def stream(make_stream: Callable[..., Stream], shelf: Shelf, fraud: Callable[..., Package]) -> Stream:
    shelf.release(fraud())
    return make_stream(shelf.bucket)


def transactions(count: int, seed: int) -> list[dict[str, Any]]:
    """Some records in the order of time; some are no good, and some of nobody."""
    chance = random.Random(seed)
    times = sorted(START + chance.randrange(3 * 3_600_000) for _ in range(count))
    return [
        {
            "happened_at": at_ms,
            "card": chance.choice(["a", "b", 3, None]),
            "shop": chance.choice(["x", "y"]),
            # Beyond 1,000 it is refused, and does not count.
            "amount": float(chance.choice([5, 20, 999, 5000])),
            "spend_2d": 1e9,
        }
        for at_ms in times
    ]


def as_trained(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a training script makes of the records, of those that counted as events."""
    events = Events.of(WINDOWS, records, [record["happened_at"] for record in records], None)
    found = replay(WINDOWS, events, {}, counts=lambda i, _values: records[i]["amount"] <= 1000)
    return [
        {name: None if column[i] != column[i] else column[i] for name, column in found.items()}
        for i in range(len(records))
    ]


def message(record: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "fraud", "record": record, **fields}


def windows_of(stream: Stream) -> dict[str, dict[str, Any]]:
    found = boto3.client("dynamodb").scan(TableName=stream.features_table)["Items"]
    return {item["pk"]["S"]: item for item in found}


@pytest.mark.parametrize("size", [1, 3, 10, 50])
def test_a_stream_in_the_order_of_time_sees_what_training_saw_in_any_batching(
    size: int, stream: Stream, sqs: Callable[..., dict[str, Any]]
) -> None:
    records = transactions(50, size)
    for start in range(0, len(records), size):
        batch = [sqs(message(record), f"m-{start + i}") for i, record in enumerate(records[start : start + size])]
        assert stream.handle(*batch) == []
        stream.module = stream.restart() if start == size else stream.module
    sent, stored = {outcome["id"]: outcome for outcome in stream.sent()}, stream.stored()
    for i, (record, wanted) in enumerate(zip(records, as_trained(records), strict=True)):
        assert stored[f"m-{i}"]["features"] == {**wanted, "age": None}, i
        outcome = sent[f"m-{i}"]
        if record["amount"] > 1000:
            assert outcome["error"]["message"].startswith("input 'amount'")
        else:
            most = -1 if wanted["most_1d"] is None else wanted["most_1d"]
            assert outcome["prediction"]["features"] == {**wanted, "age": None}
            assert outcome["prediction"]["value"] == pytest.approx(
                record["amount"] + wanted["spend_2d"] + wanted["count_1h"] + most, rel=1e-6
            )


@pytest.mark.parametrize("step", ["_recall", "_score", "_store", "_count", "_send"])
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_step_counts_each_event_once(
    step: str, after: bool, stream: Stream, sqs: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = transactions(8, 1)
    act = getattr(stream.module, step)

    def crash(*arguments: Any) -> None:
        if after:
            act(*arguments)
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(stream.module, step, crash)
        assert len(stream.handle(*[sqs(message(record), f"m-{i}") for i, record in enumerate(records)])) == 8
    stream.restart()
    again = [sqs(message(record), f"m-{i}", receives=2) for i, record in enumerate(records)]
    assert stream.handle(*again) == []
    assert stream.handle(*again) == []
    stored = stream.stored()
    for i, wanted in enumerate(as_trained(records)):
        assert stored[f"m-{i}"]["features"] == {**wanted, "age": None}
    assert stream.handle(sqs(message({**records[-1], "card": "a", "happened_at": START + 3 * 3_600_000}), "end")) == []
    counted = [record for record in records if record["card"] == "a" and record["amount"] <= 1000]
    assert stream.stored()["end"]["features"]["spend_2d"] == sum(record["amount"] for record in counted)


def test_what_cannot_be_counted_in_time_goes_back_with_its_outcome_stored(
    stream: Stream, sqs: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from threefold.feature_table import FeatureTable

    records = transactions(3, 4)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureTable, "_put", lambda _self, _key, _state: False)
        returned = stream.handle(*[sqs(message(r), f"m-{i}") for i, r in enumerate(records)], milliseconds=2_500)
    counts = [i for i, record in enumerate(records) if record["amount"] <= 1000]
    assert returned == [f"m-{i}" for i in counts]
    assert set(stream.stored()) == {"m-0", "m-1", "m-2"}
    stream.sent()
    assert stream.handle(*[sqs(message(records[i]), f"m-{i}", receives=2) for i in counts]) == []
    assert {outcome["id"] for outcome in stream.sent()} == set(returned)


def test_a_table_that_cannot_be_read_sends_messages_back_and_rejects_none(
    stream: Stream, sqs: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3.client("dynamodb").delete_table(TableName=stream.features_table)
    assert stream.handle(sqs(message(transactions(1, 1)[0]), "m-1")) == ["m-1"]
    assert stream.stored() == {}


def test_a_time_from_a_wrong_clock_is_rejected_and_not_counted(
    stream: Stream, sqs: Callable[..., dict[str, Any]]
) -> None:
    now = time.time_ns() // 1_000_000
    records = [
        {"card": "a", "amount": 1.0, "happened_at": now + 400_000},
        {"card": "a", "amount": 2.0, "happened_at": "soon"},
        {"card": "a", "amount": 4.0, "happened_at": now + 200_000},
        {"card": "a", "amount": 8.0, "happened_at": now + 200_001},
    ]
    bodies = [message(record) for record in records]
    bodies.append(message({"card": "a", "amount": 16.0}, at=now + 400_000))
    assert stream.handle(*[sqs(body, f"m-{i}") for i, body in enumerate(bodies)]) == []
    sent = {outcome["id"]: outcome for outcome in stream.sent()}
    assert "want at most 300 s ahead of the clock" in sent["m-0"]["error"]["message"]
    assert "time 'happened_at': want ISO 8601 or milliseconds since 1970, got 'soon'" in sent["m-1"]["error"]["message"]
    assert "time 'at': want at most 300 s ahead" in sent["m-4"]["error"]["message"]
    assert {sent[name]["error"]["code"] for name in ("m-0", "m-1", "m-4")} == {"outside_signature"}
    assert sent["m-3"]["prediction"]["features"]["spend_2d"] == 4


def test_a_late_event_is_told_of_in_a_metric(
    stream: Stream, sqs: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert stream.handle(sqs(message({"card": "a", "amount": 1.0, "happened_at": START}), "m-0")) == []
    assert "LateEvents" not in capsys.readouterr().out
    late = {"card": "a", "amount": 1.0, "happened_at": START - 3 * 86_400_000}
    assert stream.handle(sqs(message(late), "m-1")) == []
    (line,) = [line for line in map(json.loads, capsys.readouterr().out.splitlines()) if "LateEvents" in line]
    assert (line["model"], line["LateEvents"]) == ("fraud", [1])


def test_a_record_of_nobody_has_no_events_and_a_missing_field_stays_missing(
    stream: Stream, sqs: Callable[..., dict[str, Any]]
) -> None:
    assert stream.handle(sqs(message({"amount": 3.0, "most_1d": 77.0, "age": 50.0}), "m-1")) == []
    (outcome,) = stream.sent()
    found = outcome["prediction"]
    assert found["features"] == {"spend_2d": 0, "count_1h": 0, "most_1d": None, "age": None}
    assert found["value"] == 3 - 1
    assert "input 'age': missing, 0.0 stands in" in found["reasons"]
    assert windows_of(stream) == {}


def test_loaded_fields_come_from_the_table_and_never_from_the_caller(
    stream: Stream, sqs: Callable[..., dict[str, Any]]
) -> None:
    put = boto3.client("dynamodb").put_item
    for user, years, expires in (("7", "41.5", None), ("8", "33", "1")):
        item: Any = {"pk": {"S": f"entity#user#{user}"}, "fields": {"M": {"years": {"S": years}}}}
        put(TableName=stream.features_table, Item=item | ({"expires": {"N": expires}} if expires else {}))
    records = [{"user": user, "amount": 1.0, "age": 99.0} for user in (7, "7", 8, 9)]
    assert stream.handle(*[sqs(message(record), f"m-{i}") for i, record in enumerate(records)]) == []
    assert [stream.stored()[f"m-{i}"]["features"]["age"] for i in range(4)] == [41.5, 41.5, None, None]


def test_tensors_are_refused_for_a_model_that_looks_features_up(
    stream: Stream, sqs: Callable[..., dict[str, Any]]
) -> None:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1, 5], "data": [1, 1e9, 0, 0, 0]}]
    assert stream.handle(sqs({"model": "fraud", "inputs": inputs}, "m-1")) == []
    (outcome,) = stream.sent()
    assert "want records, for it has features that are looked up" in outcome["error"]["message"]


def test_events_that_a_canary_answers_are_earlier_ones_to_the_champion(
    stream: Stream, shelf: Shelf, fraud: Callable[..., Package], sqs: Callable[..., dict[str, Any]]
) -> None:
    longer = WindowSource(entity="card", of="amount", agg="sum", over="3d")
    features = (*FEATURES[:1], Feature(name="spend_2d", type="float32", source=longer), *FEATURES[2:])
    champion, canary = fraud("2.0.0"), fraud("3.0.0", features=features)
    shelf.registry.packages.publish(canary)
    from threefold.release import Challenger

    challenger = Challenger(digest=canary.digest, version="3.0.0", mode="canary", percent=50, salt="s")
    shelf.release(champion, challenger=challenger)
    stream.restart()
    records = [{"card": "a", "amount": 1.0, "happened_at": START + i} for i in range(20)]
    assert stream.handle(*[sqs(message(record), f"m-{i}") for i, record in enumerate(records)]) == []
    stored = stream.stored()
    assert {stored[f"m-{i}"]["role"] for i in range(20)} == {"champion", "canary"}
    assert [stored[f"m-{i}"]["features"]["spend_2d"] for i in range(20)] == list(range(20))
    (item,) = windows_of(stream).values()
    assert set(item["rings"]["M"]) == {"3600000#", f"{2 * 86_400_000}#amount", f"{3 * 86_400_000}#amount"}


def test_who_is_rolled_back_to_finds_what_happened_since(
    stream: Stream, shelf: Shelf, fraud: Callable[..., Package], sqs: Callable[..., dict[str, Any]]
) -> None:
    first = fraud()
    other = fraud("2.0.0", features=(FEATURES[0], FEATURES[2]))
    shelf.release(other, previous=(Version(first.digest, "1.0.0"),))
    stream.restart()
    assert stream.handle(sqs(message({"card": "a", "amount": 5.0, "happened_at": START}), "m-1")) == []
    assert stream.stored()["m-1"]["features"] == {"count_1h": 0}
    shelf.release(first)
    stream.restart()
    assert stream.handle(sqs(message({"card": "a", "amount": 5.0, "happened_at": START + 1}), "m-2")) == []
    assert stream.stored()["m-2"]["features"]["spend_2d"] == 5


def predicted(module: ModuleType, http: Callable[..., Any], *records: Any) -> tuple[int, dict[str, Any]]:
    response = module.handler(http("POST /models/{model}/predictions", {"records": records}, model="fraud"), None)
    return response["statusCode"], json.loads(response["body"])


def test_https_reads_and_never_counts(
    stream: Stream,
    load: Callable[..., ModuleType],
    shelf: Shelf,
    http: Callable[..., dict[str, Any]],
    sqs: Callable[..., dict[str, Any]],
) -> None:
    assert stream.handle(sqs(message({"card": "a", "shop": "x", "amount": 5.0, "happened_at": START}), "m-1")) == []
    before = windows_of(stream)
    module = load(
        "predict",
        THREEFOLD_MODEL_BUCKET=shelf.bucket,
        THREEFOLD_FEATURES_TABLE=stream.features_table,
        THREEFOLD_AUTH="none",
    )
    record = {"card": "a", "shop": "x", "amount": 7.0, "happened_at": START + 1, "spend_2d": 1e9}
    for _ in range(2):
        status, body = predicted(module, http, record, record, "no record", {**record, "happened_at": "never"})
        assert status == 200
        first, second, third, fourth = body["predictions"]
        assert first["features"] == {"spend_2d": 5, "count_1h": 1, "most_1d": 5, "age": None}
        assert second["features"] == first["features"]
        assert "want an object of features" in third["message"]
        assert "features" not in third
        assert "time 'happened_at'" in fourth["message"]
    assert windows_of(stream) == before
    # Now is the time of a call that names none: three days later nothing is left.
    _, body = predicted(module, http, {"card": "a", "amount": 7.0})
    assert body["predictions"][0]["features"]["spend_2d"] == 0


def test_a_model_that_looks_nothing_up_is_answered_without_loading_what_does(
    example_bucket: str, aws: str, http: Callable[..., dict[str, Any]], held_out: Callable[[str], Any]
) -> None:
    event = http("POST /models/{model}/predictions", {"records": held_out("diabetes").records[:2]}, model="diabetes")
    script = (
        "import json, sys, functions.predict as door\n"
        "status = door.handler(json.loads(sys.stdin.read()), None)['statusCode']\n"
        "loaded = sorted({'boto3', 'threefold.feature_table', 'threefold.outcomes'} & {*sys.modules})\n"
        "print(json.dumps([status, loaded]))"
    )
    environment = {**os.environ, "THREEFOLD_MODEL_BUCKET": example_bucket, "THREEFOLD_AUTH": "none"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(event),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [200, []], done.stderr


def test_https_says_that_features_cannot_be_had(
    stream: Stream, load: Callable[..., ModuleType], shelf: Shelf, http: Callable[..., dict[str, Any]]
) -> None:
    for table, said in (("", "want its name in the settings"), ("nowhere", "want 1 items read")):
        module = load(
            "predict", THREEFOLD_MODEL_BUCKET=shelf.bucket, THREEFOLD_FEATURES_TABLE=table, THREEFOLD_AUTH="none"
        )
        status, body = predicted(module, http, {"card": "a", "amount": 7.0})
        assert (status, body["code"]) == (503, "features_unavailable")
        assert said in body["error"]


# What was found to go wrong


def test_a_message_that_comes_twice_without_a_word_is_no_event_before_itself(
    stream: Stream, sqs: Callable[..., dict[str, Any]]
) -> None:
    record = sqs(message({"card": "a", "amount": 7.0, "happened_at": START}), "m-0")
    for _ in range(2):
        assert stream.handle(record) == []
        (sent,) = stream.sent()
        assert sent["prediction"]["features"]["spend_2d"] == 0.0
    assert stream.stored()["m-0"]["features"]["spend_2d"] == 0.0


def test_sums_that_no_float_holds_reject_their_own_records_alone(
    make_stream: Callable[..., Stream],
    shelf: Shelf,
    graphs: Graphs,
    make_package: PackageMaker,
    sqs: Callable[..., dict[str, Any]],
) -> None:
    features = (Feature(name="x", type="float64"), Feature(name="spend_2d", type="float64", source=SPEND))
    graph, document = graphs.linear([1.0, 1.0], datatype="FP64"), {"time": "happened_at"}
    shelf.release(make_package(graph, name="fraud", features=features, output=VALUE, document=document))
    stream = make_stream(shelf.bucket)

    def record(amount: float, hours: int, card: str = "a") -> dict[str, Any]:
        at = START + hours * 3_600_000
        return sqs(message({"card": card, "x": 1, "amount": amount, "happened_at": at}), f"{card}-{hours}")

    assert stream.handle(record(1e308, 0)) == []
    assert stream.handle(record(1e308, 8)) == []
    assert stream.handle(record(1.0, 9), record(1.0, 9, "b")) == []
    sent = {each["id"]: each for each in stream.sent()}
    assert "spend_2d" in sent["a-9"]["error"]["message"]
    assert sent["b-9"]["prediction"]["value"] == 1.0


def test_messages_of_one_id_and_of_two_cards_are_two_events(stream: Stream, sqs: Callable[..., dict[str, Any]]) -> None:
    def record(card: str, amount: float, name: str, **fields: Any) -> dict[str, Any]:
        at = START + (1 if fields else 0)
        return sqs(message({"card": card, "amount": amount, "happened_at": at}, **fields), name)

    assert stream.handle(record("a", 7.0, "m-0"), record("b", 50.0, "m-1")) == []
    stream.sent()
    assert stream.handle(*[record(card, 1.0, f"n-{card}", id="1", key=card) for card in "ab"]) == []
    spent = {each["key"]: each["prediction"]["features"]["spend_2d"] for each in stream.sent()}
    assert spent == {"a": 7.0, "b": 50.0}


def test_a_canary_that_cannot_be_had_keeps_no_other_record(
    make_stream: Callable[..., Stream],
    shelf: Shelf,
    fraud: Callable[..., Package],
    sqs: Callable[..., dict[str, Any]],
) -> None:
    champion, canary = fraud("2.0.0"), fraud("3.0.0", features=FEATURES[:4])
    challenger = Challenger(digest=canary.digest, version="3.0.0", mode="canary", percent=50, salt="s")
    shelf.release(champion, challenger=challenger)
    stream = make_stream(shelf.bucket)
    records = [sqs(message({"card": "a", "amount": 1.0, "happened_at": START + i}), f"m-{i}") for i in range(6)]
    assert stream.handle(*records) == []
    roles = {each["id"]: each["prediction"]["role"] for each in stream.sent()}
    assert set(roles.values()) == {"champion", "fallback"}


@pytest.mark.parametrize("door", ["stream", "predict"])
def test_a_loaded_integer_that_no_answer_can_say_is_told_of(  # noqa: PLR0917 - fixtures
    make_stream: Callable[..., Stream],
    shelf: Shelf,
    graphs: Graphs,
    make_package: PackageMaker,
    sqs: Callable[..., dict[str, Any]],
    load: Callable[..., ModuleType],
    http: Callable[..., dict[str, Any]],
    door: str,
) -> None:
    limit = Feature(name="limit", type="int64", source=TableSource(entity="card", field="limit"))
    package = make_package(
        graphs.linear([1.0, 1.0]), name="fraud", features=(Feature(name="x", type="float32"), limit), output=VALUE
    )
    shelf.release(package)
    stream = make_stream(shelf.bucket)
    wide = {"pk": {"S": "entity#card#a"}, "fields": {"M": {"limit": {"S": "9" * 30}}}}
    stream.dynamodb.put_item(TableName=stream.features_table, Item=wide)
    records: list[dict[str, Any]] = [{"card": "a", "x": 1}, {"card": "b", "x": 1, "limit": 1}]
    if door == "stream":
        assert stream.handle(sqs(message(records[0]), "m-1")) == []
        (sent,) = stream.sent()
        assert "input 'limit': want" in sent["error"]["message"]
        return
    module = load(
        "predict",
        THREEFOLD_MODEL_BUCKET=shelf.bucket,
        THREEFOLD_FEATURES_TABLE=stream.features_table,
        THREEFOLD_AUTH="none",
    )
    answer = module.handler(http("POST /models/{model}/predictions", {"records": records}, model="fraud"), None)
    assert answer["statusCode"] < 500
    assert "limit" in answer["body"]
