"""Asynchronous predictions: asked for over HTTPS, scored by the stream door, and picked up by their ids."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.functions.test_stream import FEATURES, VALUE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tests.conftest import Graphs, PackageMaker
    from tests.functions.conftest import Api, Shelf, Stream

PREDICT = "POST /models/{model}/predictions"
OUTCOME = "GET /models/{model}/predictions/{prediction}"
DAYS = 86_400


class Doors:
    """The three functions that take part, over one table and one queue."""

    def __init__(
        self, stream: Stream, load: Callable[..., ModuleType], make_api: Callable[..., Api], shelf: Shelf, http: Any
    ) -> None:
        self.stream, self._http = stream, http
        queue = stream._environment["THREEFOLD_REQUESTS_QUEUE"]
        self.predict = load("predict", THREEFOLD_MODEL_BUCKET=shelf.bucket, THREEFOLD_REQUESTS_QUEUE=queue)
        self.api = make_api(
            shelf.bucket, THREEFOLD_PREDICTIONS_TABLE=stream.table, THREEFOLD_RESULTS_BUCKET=stream.results
        )

    def ask(self, *records: Any, mode: str = "async", model: str = "line") -> tuple[dict[str, Any], dict[str, Any]]:
        event = self._http(PREDICT, {"records": list(records)}, model=model)
        event["queryStringParameters"] = {"mode": mode}
        response = self.predict.handler(event, None)
        return response, json.loads(response["body"])

    def score(self, sqs: Callable[..., dict[str, Any]], **options: int) -> list[str]:
        """Lambda's part: what is in the queue, to the stream function."""
        found = []
        while messages := self.stream.sqs.receive_message(
            QueueUrl=self.stream.requests_url, MaxNumberOfMessages=10
        ).get("Messages"):
            found += [sqs(each["Body"], each["MessageId"], **options) for each in messages]
        return self.stream.handle(*found)

    def pick_up(self, identity: str, model: str = "line") -> tuple[int, dict[str, Any]]:
        return self.api(OUTCOME, model=model, prediction=identity)


@pytest.fixture
def doors(
    *,
    make_stream: Callable[..., Stream],
    make_api: Callable[..., Api],
    load: Callable[..., ModuleType],
    shelf: Shelf,
    graphs: Graphs,
    make_package: PackageMaker,
    http: Any,
) -> Doors:
    shelf.release(make_package(graphs.linear([1, 1]), name="line", features=FEATURES, output=VALUE, key="customer"))
    return Doors(make_stream(shelf.bucket), load, make_api, shelf, http)


def test_what_is_asked_for_now_is_scored_by_the_stream_door_and_picked_up_by_its_id(
    doors: Doors, sqs: Callable[..., dict[str, Any]]
) -> None:
    response, body = doors.ask({"customer": "c-1", "a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": "no", "b": 1})
    assert (response["statusCode"], response["headers"]["retry-after"]) == (202, "1")
    pending = body["predictions"]
    assert [(each["status"], each.get("key")) for each in pending] == [
        *(("pending", "c-1"), ("pending", None), ("pending", None)),
    ]
    assert [doors.pick_up(each["id"])[0] for each in pending] == [202] * 3
    assert doors.pick_up(pending[0]["id"])[1]["predictions"][0]["status"] == "pending"
    assert doors.score(sqs) == []
    answers = [doors.pick_up(each["id"]) for each in pending]
    assert [status for status, _ in answers] == [200] * 3
    found = [answer["predictions"][0] for _, answer in answers]
    assert [(each["status"], each.get("value")) for each in found] == [
        *(("predicted", 3), ("predicted", 7), ("rejected", None)),
    ]
    assert [each["id"] for each in found] == [each["id"] for each in pending]
    assert found[2]["code"] == "outside_signature"
    # Consumers of the predictions queue get them too.
    assert {each["id"] for each in doors.stream.sent()} == {each["id"] for each in pending}


def test_one_record_has_its_id_and_place_in_the_headers(doors: Doors) -> None:
    response, body = doors.ask({"a": 1, "b": 2})
    identity = body["predictions"][0]["id"]
    assert response["headers"]["x-prediction-id"] == identity
    assert response["headers"]["location"] == f"/models/line/predictions/{identity}"


def test_what_the_synchronous_way_refuses_at_once_is_refused_here_too(doors: Doors) -> None:
    assert doors.ask({"a": 1}, model="nobody")[0]["statusCode"] == 404
    response, body = doors.ask({"a": 1}, mode="later")
    assert (response["statusCode"], body["error"]) == (400, "mode: want one of ['sync', 'async'], got 'later'")
    assert doors.ask(7)[0]["statusCode"] == 400
    assert doors.ask({"a": 1, "b": 1}, mode="sync")[0]["statusCode"] == 200


def test_a_queue_that_does_not_answer_is_503(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    deferral = doors.predict._deferral()
    monkeypatch.setattr(deferral._sender, "_address", doors.stream.requests_url + "-gone")
    monkeypatch.setattr("threefold.queues._FIRST_WAIT_SECONDS", 3600)
    response, body = doors.ask({"a": 1, "b": 1})
    assert (response["statusCode"], body["code"]) == (503, "storage_unavailable")


def test_ids_that_nothing_stands_under_are_unknown(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doors.pick_up("order-1")[1]["code"] == "unknown_prediction"
    assert doors.pick_up("x" * 200)[0] == 404
    _, body = doors.ask({"a": 1, "b": 1})
    identity = body["predictions"][0]["id"]
    assert doors.pick_up(identity, model="nobody")[0] == 404
    now = time.time_ns()
    monkeypatch.setattr(doors.api.module.time, "time_ns", lambda: now + 5 * DAYS * 10**9)
    assert doors.pick_up(identity)[0] == 404


def test_a_producers_own_id_is_found_as_well_as_a_records_without_a_key(
    doors: Doors, sqs: Callable[..., dict[str, Any]]
) -> None:
    bodies = [
        {"model": "line", "id": "order-1", "record": {"customer": "c-1", "a": 1, "b": 1}},
        {"model": "line", "id": "order-2", "record": {"a": 2, "b": 2}},
        # Somebody's key is another one's id.
        {"model": "line", "id": "order-3", "key": "order-2", "record": {"a": 3, "b": 3}},
    ]
    assert doors.stream.handle(*[sqs(body, f"m-{i}") for i, body in enumerate(bodies)]) == []
    values = [doors.pick_up(f"order-{i}")[1]["predictions"][0]["value"] for i in (1, 2, 3)]
    assert values == [2, 4, 6]


def test_an_outcome_that_has_expired_is_none_although_it_is_still_there(
    doors: Doors, sqs: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": "line", "id": "order-1", "record": {"customer": "c-1", "a": 1, "b": 1}}
    assert doors.stream.handle(sqs(body, "m-1")) == []
    assert doors.pick_up("order-1")[0] == 200
    now = time.time()
    monkeypatch.setattr(doors.api.module._stored(), "_now", lambda: now + 91 * DAYS)
    assert doors.pick_up("order-1")[0] == 404


def test_the_scoring_function_loads_no_boto3_until_somebody_asks_for_later(doors: Doors) -> None:
    assert "boto3" not in vars(doors.predict)
    assert doors.predict._deferral.cache_info().currsize == 0
    doors.ask({"a": 1, "b": 1})
    assert doors.predict._deferral.cache_info().currsize == 1
