"""The SQS door: every message ends in an outcome or goes back to the queue, and none in both or neither."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.stub import ANY, Stubber
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obstore.store import S3Store

from threefold.errors import RegistryUnreachable
from threefold.outcomes import OWN_ATTRIBUTES, whole
from threefold.package import Output
from threefold.predictor import Predictor
from threefold.release import Version
from threefold.signature import Feature

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Graphs, PackageMaker
    from tests.functions.conftest import Held, Shelf, Stream
    from threefold.prediction import Outcomes
    from threefold.request import Request

FEATURES = (Feature(name="a", type="float32", max=100), Feature(name="b", type="float32"))
VALUE = Output(kind="regression", value="value")


@pytest.fixture
def stream(make_stream: Callable[..., Stream], example_bucket: str) -> Stream:
    """The example models."""
    return make_stream(example_bucket)


@pytest.fixture
def line(graphs: Graphs, make_package: PackageMaker) -> Callable[..., Any]:
    """Packages of one model: value = a + b + bias."""

    def make(bias: float, version: str = "1.0.0", **fields: Any) -> Any:
        wanted = {"name": "line", "features": FEATURES, "output": VALUE, "key": "customer"} | fields
        return make_package(graphs.linear([1, 1], bias), version=version, **wanted)

    return make


def message(a: object, **fields: Any) -> dict[str, Any]:
    return {"model": "line", "record": {"customer": f"c-{a}", "a": a, "b": 0}} | fields


def later(stream: Stream) -> None:
    """More than `refresh_seconds` pass."""
    stream.module._predictor().registry._clock = lambda: time.monotonic() + 31


def by_id(outcomes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {outcome["id"]: outcome for outcome in outcomes}
    assert len(found) == len(outcomes)
    return found


def test_a_batch_of_several_models_is_scored_in_one_call_each(
    stream: Stream,
    sqs: Callable[..., dict[str, Any]],
    held_out: Callable[[str], Held],
    models: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Request] = []
    predict = Predictor.predict

    def counted(self: Predictor, request: Request) -> Outcomes:
        calls.append(request)
        return predict(self, request)

    monkeypatch.setattr(Predictor, "predict", counted)
    bodies: list[dict[str, Any]] = []
    expected: list[dict[str, Any]] = []
    for model in ("diabetes", "breast-cancer"):
        held = held_out(model)
        bodies += [{"model": model, "record": record} for record in held.records[:20]]
        expected += held.expected[:20]
    pairs = (models / "digit-pairs" / "held-out.jsonl").read_text().splitlines()[:10]
    for pair in map(json.loads, pairs):
        inputs = [
            {"name": name, "datatype": "FP32", "shape": [1, 8, 8], "data": [value]}
            for name, value in pair["inputs"].items()
        ]
        bodies.append({"model": "digit-pairs", "inputs": inputs})
    lines = (models / "digit-pairs" / "held-out.expected.jsonl").read_text().splitlines()[:10]
    expected += [json.loads(text) for text in lines]
    # Mixed, as they arrive.
    order = sorted(range(50), key=lambda i: (i * 37) % 50)
    assert stream.handle(*[sqs(bodies[i], f"m-{i}") for i in order]) == []
    assert Counter((request.model, len(request.rows)) for request in calls) == {
        ("diabetes", 20): 1,
        ("breast-cancer", 20): 1,
        ("digit-pairs", 10): 1,
    }
    sent = by_id(stream.sent())
    for i, line in enumerate(expected):
        prediction = sent[f"m-{i}"]["prediction"]
        if "value" in line:
            assert prediction["value"] == pytest.approx(line["value"], rel=1e-4)
        elif "label" in line:
            assert prediction["label"] == line["label"]
        else:
            said = {tensor["name"]: tensor["data"][0] for tensor in prediction["tensors"]}
            assert said == {name: pytest.approx(line[name], abs=1e-5) for name in said}
        assert sent[f"m-{i}"]["key"] == (None if bodies[i]["model"] == "digit-pairs" else line["key"])


def test_an_outcome_stands_in_the_table_as_it_was_sent(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    release = shelf.release(line(0.1))
    stream = make_stream(shelf.bucket)
    at = "2026-01-02T03:04:05.678Z"
    assert stream.handle(sqs(message(1, id="order-1", at=at), "m-1"), sqs(message(2, key="k"), "m-2")) == []
    sent, stored = by_id(stream.sent()), stream.stored()
    assert stored["order-1"]["pk"] == "line#c-1"
    assert stored["order-1"]["sk"] == "01767323045678#order-1"
    assert (stored["m-2"]["pk"], stored["m-2"]["sk"]) == ("line#k", "01773342238123#m-2")
    assert stored["order-1"]["expires"] == pytest.approx(time.time() + 90 * 86400, abs=60)
    for identity, outcome in sent.items():
        item = {name: value for name, value in stored[identity].items() if name not in OWN_ATTRIBUTES}
        assert item == outcome["prediction"]
    prediction = sent["order-1"]["prediction"]
    assert (prediction["value"], prediction["status"], prediction["role"]) == (1.1, "predicted", "champion")
    assert prediction["digest"] == release.champion.digest
    assert sent["order-1"]["key"] == prediction["key"] == "c-1"


BROKEN = {
    "empty": "",
    "text": "no json",
    "list": "[]",
    "nameless": "{}",
    "model": '{"model": 7, "record": {}}',
    "surrogate": '{"model": "line", "record": {"a": "\\ud800"}}',
    "deep": "[" * 5000,
    "deeper": '{"model": "line", "record": ' + "[" * 900 + "]" * 900 + "}",
    "neither": '{"model": "line"}',
    "both": '{"model": "line", "record": {}, "inputs": []}',
    "tensors": '{"model": "line", "inputs": [{"name": "x"}]}',
    "shape": '{"model": "line", "inputs": [{"name": "x", "datatype": "FP32", "shape": [0, 4e99], "data": []}]}',
    "id": json.dumps({"model": "line", "id": "x" * 300, "record": {}}),
    "at": '{"model": "line", "at": "never", "record": {}}',
}


def test_a_message_that_is_broken_is_answered_and_never_tried_again(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    records = [sqs(body, name) for name, body in BROKEN.items()]
    assert stream.handle(*records[:7], sqs(message(1), "good"), *records[7:]) == []
    sent = by_id(stream.sent())
    assert sent.keys() == {*BROKEN, "good"}
    assert sent.pop("good")["prediction"]["value"] == 1
    assert {outcome["error"]["code"] for outcome in sent.values()} == {"malformed"}
    assert all("want" in outcome["error"]["message"] for outcome in sent.values())
    # Whose it was is told as far as the message said it.
    assert (sent["neither"]["model"], sent["nameless"]["model"]) == ("line", None)


def test_a_problem_with_the_content_is_answered_under_the_messages_own_id(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": ["a", "b"]}
    body = {"model": "line", "id": "order-7", "key": "customer", "inputs": [tensor]}
    assert stream.handle(sqs(body, "m-1")) == []
    assert stream.sent() == [
        {
            "id": "order-7",
            "model": "line",
            "key": "customer",
            "error": {"code": "outside_signature", "message": "input 'x': want FP32 values, got 'a'"},
        }
    ]
    assert stream.stored()["order-7"]["pk"] == "line#customer"


def test_a_message_that_no_model_can_answer_is_answered_with_the_reason(
    stream: Stream, sqs: Callable[..., dict[str, Any]], held_out: Callable[[str], Held]
) -> None:
    good = held_out("diabetes").records[0]
    bodies = {
        "unknown": {"model": "no-such-model", "record": good},
        "odd-name": {"model": "../diabetes", "record": good},
        "rejected": {"model": "diabetes", "record": good | {"bmi": None}},
        "tensors-only": {"model": "digit-pairs", "record": good},
        "misfit": {
            "model": "diabetes",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}],
        },
        "good": {"model": "diabetes", "record": good},
    }
    assert stream.handle(*[sqs(body, name) for name, body in bodies.items()]) == []
    sent = by_id(stream.sent())
    codes = {name: outcome["error"]["code"] for name, outcome in sent.items() if "error" in outcome}
    assert codes == {
        "unknown": "unknown_model",
        "odd-name": "unknown_model",
        "rejected": "outside_signature",
        "tensors-only": "outside_signature",
        "misfit": "outside_signature",
    }
    assert sent["rejected"]["error"]["message"] == "input 'bmi': want FP32 in [12, 60], got nothing"
    assert sent["good"]["prediction"]["status"] == "predicted"
    # What has a model's name is in the table, so that a redelivery finds it.
    assert stream.stored().keys() == bodies.keys() - {"odd-name"}


def test_a_redelivered_message_gets_its_first_answer_although_another_model_was_promoted(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    assert stream.handle(sqs(message(1), "m-1"), sqs(message(500), "m-2")) == []
    first = by_id(stream.sent())
    shelf.release(line(1000, "2.0.0"))
    later(stream)
    records = [sqs(message(i), f"m-{n}", receives=2) for n, i in ((1, 1), (2, 500), (3, 3))]
    assert stream.handle(*records, sqs(message(4), "m-4")) == []
    again = by_id(stream.sent())
    assert {name: again[name] for name in ("m-1", "m-2")} == first
    assert "error" in first["m-2"]
    assert (again["m-3"]["prediction"]["value"], again["m-4"]["prediction"]["value"]) == (1003, 1004)
    # In another environment too.
    stream.restart()
    assert stream.handle(records[0]) == []
    assert by_id(stream.sent()) == {"m-1": first["m-1"]}
    assert stream.stored()["m-1"]["value"] == 1


def test_a_message_that_its_producer_sends_again_gets_its_first_answer(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    body = message(1, id="order-1", at="2026-01-02T03:04:05Z")
    assert stream.handle(sqs(body, "m-1")) == []
    shelf.release(line(1000, "2.0.0"))
    later(stream)
    assert stream.handle(sqs(body, "m-2"), sqs(message(1, id="order-2"), "m-3")) == []
    values = [each["prediction"]["value"] for each in stream.sent()]
    assert values == [1, 1, 1001]


def test_a_message_moved_back_from_the_dead_letter_queue_lands_on_the_same_item(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    stream.handle(sqs(message(1), "m-1"))
    moved = sqs(message(1), "m-99", receives=1, threefold_id="m-1", threefold_at="1773342238123")
    moved["attributes"]["SentTimestamp"] = "1790000000000"
    assert stream.handle(moved) == []
    assert [outcome["id"] for outcome in stream.sent()] == ["m-1", "m-1"]
    assert stream.stored().keys() == {"m-1"}


def test_an_attribute_that_anybody_can_set_stops_no_batch(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    records = [
        sqs(message(1), "m-1", threefold_at="yesterday"),
        sqs(message(2), "m-2", threefold_id="x" * 5000),
        sqs(message(3), "m-3"),
    ]
    assert stream.handle(*records) == []
    sent = by_id(stream.sent())
    assert sent.keys() == {"m-1", "m-2", "m-3"}
    assert {outcome["prediction"]["status"] for outcome in sent.values()} == {"predicted"}


def test_a_record_that_the_graph_refuses_fails_alone(
    make_stream: Callable[..., Stream],
    shelf: Shelf,
    graphs: Graphs,
    make_package: PackageMaker,
    sqs: Callable[..., dict[str, Any]],
) -> None:
    features = (Feature(name="x", type="int64"),)
    output = Output(kind="regression", value="y")
    shelf.release(make_package(graphs.lookup(), name="table", features=features, output=output))
    stream = make_stream(shelf.bucket)
    records = [sqs({"model": "table", "record": {"x": x}}, f"m-{x}") for x in (0, 1, 7, 2)]
    assert stream.handle(*records) == []
    sent = by_id(stream.sent())
    assert [sent[f"m-{x}"]["prediction"]["value"] for x in (0, 1, 2)] == [10, 20, 30]
    assert "must be within the inclusive range" in sent["m-7"]["error"]["message"]


def test_messages_bring_as_many_rows_of_tensors_as_they_like(
    stream: Stream, sqs: Callable[..., dict[str, Any]], held_out: Callable[[str], Held]
) -> None:
    held = held_out("digits")
    names = [name for name in held.records[0] if name.startswith("pixel")]
    rows = [[record[name] for name in names] for record in held.records]

    def body(start: int, stop: int) -> dict[str, Any]:
        tensor = {"name": "pixels", "datatype": "FP32", "shape": [stop - start, 64], "data": rows[start:stop]}
        return {"model": "digits", "inputs": [tensor]}

    registry = stream.module._predictor().registry
    digest = registry.release("digits").release.champion.digest
    name = registry.packages.open("digits", digest).manifest.signature.inputs[0].name
    records = []
    for i, (start, stop) in enumerate([(0, 1), (1, 4), (4, 4), (4, 6)]):
        found = body(start, stop)
        found["inputs"][0]["name"] = name
        records.append(sqs(found, f"m-{i}"))
    assert stream.handle(*records) == []
    sent = by_id(stream.sent())
    labels = []
    for i in range(4):
        tensors = {tensor["name"]: tensor for tensor in sent[f"m-{i}"]["prediction"]["tensors"]}
        labels += tensors["label"]["data"]
    assert labels == [line["label"] for line in held.expected[:6]]


def test_an_outcome_that_no_message_holds_stands_in_the_results_bucket(
    *,
    make_stream: Callable[..., Stream],
    shelf: Shelf,
    graphs: Graphs,
    make_package: PackageMaker,
    sqs: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf.release(make_package(graphs.identity("INT64", ["n"]), name="echo"))
    stream = make_stream(shelf.bucket)
    assert stream.module.MAXIMUM_OUTCOME_BYTES * 1.5 < 400_000
    monkeypatch.setattr(stream.module, "MAXIMUM_OUTCOME_BYTES", 2_000)
    monkeypatch.setattr("threefold.outcomes._LARGE_FIELD_BYTES", 1_000)

    def body(count: int, value: int) -> dict[str, Any]:
        tensor = {"name": "x", "datatype": "INT64", "shape": [count], "data": [value] * count}
        return {"model": "echo", "inputs": [tensor]}

    records = [sqs(body(700, 1), "wide"), sqs(body(3, 1), "small"), sqs(body(900, 1), "large")]
    assert stream.handle(*records) == []
    sent = by_id(stream.sent())
    assert len(sent["wide"]["prediction"]["tensors"][0]["data"]) == 700
    assert sent["small"]["prediction"]["tensors"][0]["data"] == [1, 1, 1]
    light = sent["large"]["prediction"]
    assert (light["status"], light["digest"], "tensors" in light) == ("predicted", light["digest"], False)
    assert light["pointer"].startswith("echo/stream/")
    stored = stream.stored()["large"]
    assert {name: value for name, value in stored.items() if name not in OWN_ATTRIBUTES} == light
    large = whole(stored, stream.s3, stream.results)
    assert large["tensors"][0]["data"] == [1] * 900
    # Delivered again, it is the same pointer, and nothing is written anew.
    stream.s3.delete_object(Bucket=stream.results, Key=light["pointer"])
    assert stream.handle(sqs(body(900, 1), "large", receives=2)) == []
    assert stream.sent()[0]["prediction"] == light


def test_a_key_that_no_item_holds_is_refused(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    whole = message(1)["record"]
    records = [
        sqs({"model": "line", "id": "said", "key": "k" * 450_000, "record": whole}, "m-1"),
        sqs({"model": "line", "id": "own", "record": whole | {"customer": "k" * 450_000}}, "m-2"),
        sqs({"model": "line", "id": "late", "key": "k" * 450_000, "record": whole, "expires_at": 1}, "m-3"),
        sqs({"model": "nobody", "id": "unknown", "key": "k" * 450_000, "record": whole}, "m-4"),
        sqs({"model": "line", "id": "odd", "key": "k" * 450_000, "record": 3}, "m-5"),
        sqs({"model": "line", "id": "fits", "key": "k" * 65_536, "record": whole}, "m-6"),
    ]
    assert stream.handle(*records) == []
    sent = by_id(stream.sent())
    assert {name: each.get("error", {}).get("code") for name, each in sent.items()} == {
        **dict.fromkeys(("said", "own", "late", "unknown", "odd"), "malformed"),
        "fits": None,
    }
    assert "want a key of at most 65536 characters, got 450000" in sent["said"]["error"]["message"]


def test_a_record_without_any_of_many_features_is_told_of_some(
    make_stream: Callable[..., Stream],
    shelf: Shelf,
    graphs: Graphs,
    make_package: PackageMaker,
    sqs: Callable[..., dict[str, Any]],
) -> None:
    features = tuple(Feature(name=f"f{i}", type="float32") for i in range(300))
    shelf.release(make_package(graphs.linear([1.0] * 300), name="wide", features=features, output=VALUE))
    stream = make_stream(shelf.bucket)
    records = [sqs({"model": "wide", "key": key, "record": {}}, f"m-{key:.1}") for key in ("k" * 65_000, "a")]
    assert stream.handle(*records) == []
    for outcome in stream.sent():
        assert outcome["error"]["message"].endswith("; and 200 more")


@pytest.mark.parametrize("text", ["a\uffff", "\ufffe", "\\\uffff"])
def test_what_json_may_say_and_sqs_not_is_escaped(
    make_stream: Callable[..., Stream],
    shelf: Shelf,
    line: Callable[..., Any],
    sqs: Callable[..., dict[str, Any]],
    text: str,
) -> None:
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    assert stream.handle(sqs(message(1, id=text), "m-1")) == []
    (raw,) = stream.sqs.receive_message(QueueUrl=stream.queue_url)["Messages"]
    assert not {"\ufffe", "\uffff"} & set(raw["Body"])
    assert json.loads(raw["Body"])["id"] == text


def test_a_fair_queues_groups_order_nothing(
    make_stream: Callable[..., Stream],
    shelf: Shelf,
    line: Callable[..., Any],
    sqs: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    entries: list[dict[str, Any]] = []
    monkeypatch.setattr(stream.module._sender(), "_post", lambda some: entries.extend(some) or {})
    records = [sqs(message(i), f"m-{i}", group="tenant") for i in range(3)] + [sqs(message(3), "m-3")]
    for record in records:
        record["eventSourceARN"] = record["eventSourceARN"].removesuffix(".fifo")
    assert stream.handle(*records) == []
    assert [entry.keys() for entry in entries] == [{"Id", "MessageBody"}] * 4


def test_two_sendings_of_one_message_in_one_batch_have_one_outcome(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    said = {"id": "order-1", "at": 1773342238123, "key": "k"}
    records = [sqs(message(i, **said), f"m-{i}") for i in (1, 2)]
    with throttled(stream):
        assert stream.handle(*records, milliseconds=2_100) == ["m-1", "m-2"]
    assert stream.sent() == []
    assert stream.handle(*records) == []
    assert [(each["id"], each["prediction"]["value"]) for each in stream.sent()] == [("order-1", 1.0)] * 2
    assert stream.stored()["order-1"]["value"] == 1.0


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_an_earlier_champion_answers_for_one_that_cannot_be_had(
    make_stream: Callable[..., Stream],
    shelf: Shelf,
    line: Callable[..., Any],
    sqs: Callable[..., dict[str, Any]],
    damage: str,
) -> None:
    good, bad = line(0), line(5, "2.0.0")
    shelf.release(good)
    shelf.release(bad, previous=(Version(good.digest, "1.0.0"),))
    s3 = boto3.client("s3")
    (key,) = (each["Key"] for each in s3.list_objects_v2(Bucket=shelf.bucket)["Contents"] if bad.digest in each["Key"])
    if damage == "gone":
        s3.delete_object(Bucket=shelf.bucket, Key=key)
    else:
        s3.put_object(Bucket=shelf.bucket, Key=key, Body=b"damaged")
    stream = make_stream(shelf.bucket)
    assert stream.handle(sqs(message(1), "m-1"), sqs(message(2), "m-2")) == []
    assert [each["prediction"]["role"] for each in stream.sent()] == ["fallback"] * 2


def test_a_champion_that_is_long_in_coming_does_not_keep_the_batch(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    good, slow = line(0), line(5, "2.0.0")
    shelf.release(good)
    stream = make_stream(shelf.bucket)
    assert stream.handle(sqs(message(1), "m-1")) == []
    shelf.release(slow, previous=(Version(good.digest, "1.0.0"),))
    predictor, come = stream.module._predictor(), threading.Event()
    fetch = predictor.sessions._fetch

    def wait(name: str, digest: str) -> Any:
        if digest == slow.digest:
            come.wait(30)
        return fetch(name, digest)

    predictor.sessions._fetch = wait
    later(stream)
    stream.sent()
    began = time.monotonic()
    assert stream.handle(sqs(message(2), "m-2"), milliseconds=8_000) == []
    assert time.monotonic() - began < 5
    assert [each["prediction"]["role"] for each in stream.sent()] == ["fallback"]
    come.set()


def throttled(stream: Stream) -> Stubber:
    """The table is throttled for good."""
    table = stream.module._table()
    stub = Stubber(table._client)
    for _ in range(20):
        stub.add_client_error("batch_write_item", "ProvisionedThroughputExceededException")
    return stub


def test_a_throttled_table_returns_the_messages_and_sends_nothing(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    records = [sqs(message(i), f"m-{i}") for i in range(3)]
    with throttled(stream):
        assert stream.handle(*records, sqs("no json", "broken"), milliseconds=2_100) == ["m-0", "m-1", "m-2"]
    # What has no place in the table is sent all the same.
    assert [outcome["id"] for outcome in stream.sent()] == ["broken"]
    again = [sqs(message(i), f"m-{i}", receives=2) for i in range(3)]
    assert stream.handle(*again) == []
    assert by_id(stream.sent()).keys() == {"m-0", "m-1", "m-2"}


def test_items_that_were_left_unwritten_return_their_messages_only(
    *,
    make_stream: Callable[..., Stream],
    shelf: Shelf,
    line: Callable[..., Any],
    sqs: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("threefold.outcomes._FIRST_WAIT_SECONDS", 3600)
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    table = stream.module._table()
    with Stubber(table._client) as stub:
        left = [{"PutRequest": {"Item": {"pk": {"S": "line#c-1"}, "sk": {"S": "01773342238123#m-1"}}}}]
        stub.add_response("batch_write_item", {"UnprocessedItems": {stream.table: left}})
        assert stream.handle(*[sqs(message(i), f"m-{i}") for i in range(3)]) == ["m-1"]
    assert by_id(stream.sent()).keys() == {"m-0", "m-2"}


def test_a_table_that_cannot_be_read_returns_every_message(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    with Stubber(stream.module._table()._client) as stub:
        stub.add_client_error("batch_get_item", "InternalServerError")
        failed = stream.handle(sqs(message(1), "m-1", receives=2), sqs(message(2), "m-2"))
    assert failed == ["m-1", "m-2"]
    assert stream.sent() == []


def test_only_what_could_not_be_sent_goes_back(
    *,
    make_stream: Callable[..., Stream],
    shelf: Shelf,
    line: Callable[..., Any],
    sqs: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("threefold.queues._FIRST_WAIT_SECONDS", 3600)
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    with Stubber(stream.module._sender()._client) as stub:
        failed = [{"Id": "1", "Code": "InternalError", "SenderFault": False}]
        stub.add_response(
            "send_message_batch", {"Successful": [], "Failed": failed}, {"QueueUrl": stream.queue_url, "Entries": ANY}
        )
        assert stream.handle(*[sqs(message(i), f"m-{i}") for i in range(3)]) == ["m-1"]
    # Its answer stands, and is what its next delivery sends.
    shelf.release(line(1000, "2.0.0"))
    later(stream)
    assert stream.handle(sqs(message(1), "m-1", receives=2)) == []
    assert [outcome["prediction"]["value"] for outcome in stream.sent()] == [1]


def test_a_model_that_cannot_be_served_now_returns_its_messages_only(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    shelf.release(line(0))
    wrong = [{"record": {"a": 1, "b": 1}, "expect": {"value": 999}}]
    shelf.release(line(0, name="bad", examples=wrong))
    broken = line(0, name="broken")
    shelf.release(broken)
    boto3.client("s3").put_object(Bucket=shelf.bucket, Key=f"packages/broken/{broken.digest}.zip", Body=b"PK")
    stream = make_stream(shelf.bucket)
    records = [sqs(message(i, model=model), f"{model}-{i}") for i in range(2) for model in ("line", "bad", "broken")]
    assert sorted(stream.handle(*records)) == ["bad-0", "bad-1", "broken-0", "broken-1"]
    assert by_id(stream.sent()).keys() == {"line-0", "line-1"}
    assert stream.stored().keys() == {"line-0", "line-1"}


def test_without_the_registry_a_loaded_model_goes_on_and_the_rest_goes_back(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    shelf.release(line(0))
    shelf.release(line(0, name="other"))
    stream = make_stream(shelf.bucket)
    stream.handle(sqs(message(0), "m-0"))
    registry = stream.module._predictor().registry
    registry._store = registry.packages._store = S3Store(
        "models",
        endpoint="http://127.0.0.1:1",
        client_options={"allow_http": True, "connect_timeout": timedelta(seconds=1)},
        retry_config={"max_retries": 0},
    )
    later(stream)
    assert stream.handle(sqs(message(1), "m-1"), sqs(message(2, model="other"), "m-2")) == ["m-2"]
    assert by_id(stream.sent()).keys() == {"m-0", "m-1"}


def test_a_message_whose_place_cannot_be_known_is_returned_and_not_scored(
    *,
    make_stream: Callable[..., Stream],
    shelf: Shelf,
    line: Callable[..., Any],
    sqs: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_self: Predictor, _model: str) -> None:
        raise RegistryUnreachable("registry: want an answer, got none")

    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    with monkeypatch.context() as patch:
        # Only for a moment: the release itself would be found again when the message is scored.
        patch.setattr(Predictor, "key_field", fail)
        assert stream.handle(sqs(message(1), "m-1"), sqs(message(2, key="own"), "m-2")) == ["m-1"]
    assert stream.handle(sqs(message(1), "m-1", receives=2)) == []
    assert [outcome["id"] for outcome in stream.sent()] == ["m-2", "m-1"]
    assert stream.stored()["m-1"]["pk"] == "line#c-1"


def test_what_is_unforeseen_returns_every_message(
    *,
    make_stream: Callable[..., Stream],
    shelf: Shelf,
    line: Callable[..., Any],
    sqs: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_self: Predictor, _request: Request) -> None:
        raise ZeroDivisionError

    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    monkeypatch.setattr(Predictor, "predict", fail)
    assert stream.handle(sqs(message(1), "m-1"), sqs("no json", "m-2")) == ["m-1", "m-2"]
    assert stream.sent() == []
    assert "ZeroDivisionError" in caplog.text


def test_an_empty_batch_is_answered(stream: Stream) -> None:
    assert stream.handle() == []


def test_two_messages_of_one_id_are_one_item_and_two_answers(
    make_stream: Callable[..., Stream], shelf: Shelf, line: Callable[..., Any], sqs: Callable[..., dict[str, Any]]
) -> None:
    shelf.release(line(0))
    stream = make_stream(shelf.bucket)
    assert stream.handle(*[sqs(message(1, id="same", at=0), f"m-{i}") for i in range(2)]) == []
    assert [outcome["id"] for outcome in stream.sent()] == ["same", "same"]
    assert len(stream.stored()) == 1


def test_the_metrics_of_a_batch_are_by_model_and_say_how_late_it_is(
    stream: Stream,
    sqs: Callable[..., dict[str, Any]],
    held_out: Callable[[str], Held],
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = held_out("diabetes").records[0]
    records = [sqs({"model": "diabetes", "record": record}, f"m-{i}") for i in range(3)]
    records[1]["attributes"]["SentTimestamp"] = str(time.time_ns() // 1_000_000 - 60_000)
    for found in (records[0], records[2]):
        found["attributes"]["SentTimestamp"] = str(time.time_ns() // 1_000_000)
    capsys.readouterr()
    stream.handle(*records, sqs({"model": "made-up", "record": {}}, "m-9"))
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines() if "_aws" in text]
    assert {line.get("model") for line in lines} == {"diabetes", None}
    (scored,) = [line for line in lines if "Predictions" in line]
    assert (scored["Predictions"], scored["role"], scored["door"]) == ([3], "champion", "stream")
    (late,) = [line for line in lines if "StreamLagMs" in line]
    assert late["StreamLagMs"][0] > 60_000
    assert (late["messages"], late["returned"]) == (4, 0)


TEXT = st.text(max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
TENSORS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["x", "left"]) | VALUES,
            "datatype": st.sampled_from(["FP32", "BYTES"]) | VALUES,
            "shape": st.lists(st.integers(0, 2), max_size=3) | VALUES,
            "data": st.lists(st.integers(0, 3), max_size=4) | VALUES,
        }
    )
    | VALUES,
    max_size=2,
)
BODIES = st.fixed_dictionaries(
    {"model": st.sampled_from(["diabetes", "digit-pairs", "nobody", "", "\U0001f600"]) | VALUES},
    optional={
        "id": TEXT | VALUES,
        "at": st.integers(-(10**15), 10**15) | VALUES,
        "expires_at": st.integers(-(10**15), 10**15) | VALUES,
        "key": VALUES,
        "record": st.dictionaries(st.sampled_from(["patient_id", "age", "bmi"]), VALUES) | VALUES,
        "inputs": TENSORS,
    },
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(bodies=st.lists(BODIES | TEXT, max_size=6), receives=st.integers(1, 3))
def test_no_message_is_lost_whatever_is_in_it(
    bodies: list[object], receives: int, stream: Stream, sqs: Callable[..., dict[str, Any]]
) -> None:
    records = [sqs(body, f"m-{i}", receives=receives) for i, body in enumerate(bodies)]
    returned = stream.handle(*records)
    assert returned == []
    sent = stream.sent()
    own = [body.get("id") if isinstance(body, dict) else None for body in bodies]
    allowed = [{f"m-{i}", identity} if isinstance(identity, str) else {f"m-{i}"} for i, identity in enumerate(own)]
    assert len(sent) == len(records)
    for names in allowed:
        found = next(outcome for outcome in sent if outcome["id"] in names)
        sent.remove(found)
