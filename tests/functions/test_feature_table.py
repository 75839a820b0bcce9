"""The features table: nothing is lost to other writers, and what DynamoDB leaves is asked for again."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from tests.functions.conftest import create_features_table
from threefold.errors import FeaturesUnavailable
from threefold.feature_table import FeatureTable, entity_key, open_feature_table, window_key
from threefold.sources import Series, WindowSource
from threefold.windows import EntityState, Events, Ring, Windows, replay

if TYPE_CHECKING:
    from collections.abc import Sequence

AT_MS = 1_773_342_238_123
SPEND = WindowSource(entity="card", agg="sum", of="amount", over="7d")
COUNT = WindowSource(entity="card", agg="count", over="1h")
BY_USER = WindowSource(entity="user", agg="max", of="amount", over="1h")
WINDOWS = Windows((("spend", SPEND), ("count", COUNT), ("most", BY_USER)))


@pytest.fixture
def name(aws: str) -> str:
    return create_features_table()


def events(records: Sequence[dict[str, Any]], ids: Sequence[str] | None = None) -> Events:
    ids = ids or [f"m-{i}" for i in range(len(records))]
    return Events.of(WINDOWS, records, [AT_MS + i for i in range(len(records))], ids)


def table(name: str, **fields: Any) -> FeatureTable:
    return FeatureTable(boto3.client("dynamodb"), name, **fields)


def later() -> float:
    return time.monotonic() + 30


def test_counted_events_are_the_states_that_a_walk_leaves(name: str) -> None:
    records = [{"card": f"c{i % 3}", "user": f"u{i % 2}", "amount": float(i)} for i in range(20)]
    found = table(name)
    assert found.count("fraud", WINDOWS, events(records), deadline=later()) == (set(), 0)
    walked: dict[Any, EntityState] = {}
    replay(WINDOWS, events(records), walked)
    states, _ = found.read("fraud", walked, ())
    assert {entity: state.rings for entity, state in states.items()} == {
        entity: state.rings for entity, state in walked.items()
    }
    assert {state.version for state in states.values()} == {1}
    others, _ = found.read("other", walked, ())
    assert not any(state.rings for state in others.values())


def test_an_event_that_comes_again_counts_once_for_each_of_its_entities(name: str) -> None:
    one = events([{"card": "c", "user": "u", "amount": 5.0}])
    found = table(name)
    # The first try ended between its two writes.
    table(name).count("fraud", Windows(WINDOWS.features[:2]), one, deadline=later())
    for _ in range(3):
        found.count("fraud", WINDOWS, one, deadline=later())
    states, _ = found.read("fraud", [("card", "c"), ("user", "u")], ())
    assert states["card", "c"].read(SPEND, AT_MS) == 5
    assert states["user", "u"].read(BY_USER, AT_MS) == 5
    assert states["card", "c"].version == 1


def test_concurrent_writers_of_one_hot_entity_lose_nothing(name: str) -> None:
    tables = [table(name) for _ in range(8)]

    def write(number: int) -> tuple[set[int], int]:
        records = [{"card": "hot", "amount": 1.0}] * 5
        ids = [f"{number}-{i}" for i in range(5)]
        return tables[number % 8].count("fraud", WINDOWS, events(records, ids), deadline=later())

    with ThreadPoolExecutor(8) as pool:
        assert set(map(str, pool.map(write, range(40)))) == {"(set(), 0)"}
    states, _ = tables[0].read("fraud", [("card", "hot")], ())
    assert states["card", "hot"].read(SPEND, AT_MS) == 200
    assert states["card", "hot"].read(COUNT, AT_MS) == 200


def test_what_there_is_no_time_for_is_said_and_not_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = table(name)
    monkeypatch.setattr(FeatureTable, "_put", lambda _self, _key, _state: False)
    records = [{"card": "a"}, {"card": None}, {"card": "b"}]
    assert found.count("fraud", WINDOWS, events(records), deadline=time.monotonic() + 0.2) == ({0, 2}, 0)


def test_late_events_are_told(name: str) -> None:
    found = table(name)
    late = Events.of(
        WINDOWS, [{"card": "a"}] * 3, [AT_MS, AT_MS - 2 * 3_600_000, AT_MS - 8 * 86_400_000], ["1", "2", "3"]
    )
    # In the order of their time they are not late; the newest was counted before.
    found.count("fraud", WINDOWS, events([{"card": "a"}]), deadline=later())
    assert found.count("fraud", WINDOWS, late, deadline=later()) == (set(), 2)


def test_a_file_counts_once_an_entity(name: str) -> None:
    found = table(name)
    found.count("fraud", WINDOWS, events([{"card": "a", "amount": 1.0}]), deadline=later())
    states: dict[Any, EntityState] = {}
    replay(WINDOWS, events([{"card": "a", "amount": 10.0}, {"card": "b", "amount": 20.0}]), states)
    added = {entity: state.rings for entity, state in states.items()}
    for _ in range(2):
        assert found.merge("fraud", WINDOWS, added, "job#1", deadline=later()) == []
    assert found.merge("fraud", WINDOWS, added, "job#2", deadline=later()) == []
    states, _ = found.read("fraud", [("card", "a"), ("card", "b")], ())
    assert states["card", "a"].read(SPEND, AT_MS) == 21
    assert states["card", "b"].read(SPEND, AT_MS) == 40


def test_series_that_nobody_asks_for_any_more_are_let_go(name: str) -> None:
    found = table(name)
    found.count("fraud", WINDOWS, events([{"card": "a", "amount": 1.0}]), deadline=later())
    only = Windows((("count", COUNT),))
    found.count("fraud", only, events([{"card": "a"}], ["other"]), deadline=later())
    states, _ = found.read("fraud", [("card", "a")], ())
    assert list(states["card", "a"].rings) == [Series("", 3_600_000)]


def test_more_entities_than_a_call_takes_are_read(name: str) -> None:
    records = [{"card": f"c{i}"} for i in range(250)]
    found = table(name)
    found.count("fraud", WINDOWS, events(records), deadline=later())
    states, _ = found.read("fraud", [("card", f"c{i}") for i in range(250)], ())
    assert all(state.read(COUNT, AT_MS) == 1 for state in states.values())


def test_an_item_expires_after_its_windows_and_after_the_last_redelivery(name: str) -> None:
    table(name).count("fraud", WINDOWS, events([{"card": "a"}]), deadline=later())
    item = boto3.client("dynamodb").get_item(TableName=name, Key={"pk": {"S": "window#fraud#card#a"}})["Item"]
    assert float(item["expires"]["N"]) >= time.time() + 15 * 86_400


def item(key: str) -> dict[str, Any]:
    ring = Ring()
    ring.add(AT_MS // Series("", 3_600_000).width_ms, AT_MS, 0.0)
    return {
        "pk": {"S": key},
        "rings": {"M": {"3600000#": {"B": ring.to_bytes()}}},
        "counted": {"B": b""},
        "version": {"N": "1"},
        "expires": {"N": "1"},
    }


def test_keys_that_are_left_unprocessed_or_throttled_are_asked_for_again(aws: str) -> None:
    client, slept = boto3.client("dynamodb"), []
    a, b = (window_key("fraud", ("card", card)) for card in "ab")
    left = {"features": {"Keys": [{"pk": {"S": b}}], "ConsistentRead": True}}
    with Stubber(client) as stub:
        stub.add_client_error("batch_get_item", "ThrottlingException")
        stub.add_response("batch_get_item", {"Responses": {"features": [item(a)]}, "UnprocessedKeys": left})
        stub.add_response("batch_get_item", {"Responses": {"features": [item(b)]}}, {"RequestItems": left})
        found = FeatureTable(client, "features", sleep=slept.append)
        states, _ = found.read("fraud", [("card", "a"), ("card", "b")], ())
    assert [state.read(COUNT, AT_MS) for state in states.values()] == [1, 1]
    assert len(slept) == 2


@pytest.mark.parametrize("code", ["ProvisionedThroughputExceededException", "AccessDeniedException"])
def test_a_table_that_does_not_answer_is_said_as_what_may_come_back(code: str, aws: str) -> None:
    client = boto3.client("dynamodb")
    with Stubber(client) as stub:
        for _ in range(8):
            stub.add_client_error("batch_get_item", code)
        found = FeatureTable(client, "features", sleep=lambda _seconds: None)
        with pytest.raises(FeaturesUnavailable, match=rf"features table: want 1 items read, got .*{code}") as raised:
            found.read("fraud", [("card", "a")], ())
    assert raised.value.retryable


def test_a_throttled_write_is_tried_again_and_a_refused_one_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = table(name, sleep=lambda _seconds: None)
    put, codes = found._put, ["ThrottlingException", "TransactionConflictException"]

    def sometimes(key: str, state: EntityState) -> bool:
        if codes:
            raise ClientError({"Error": {"Code": codes.pop()}}, "PutItem")
        return put(key, state)

    monkeypatch.setattr(found, "_put", sometimes)
    assert found.count("fraud", WINDOWS, events([{"card": "a"}]), deadline=later()) == (set(), 0)
    codes.append("ValidationException")
    with pytest.raises(ClientError):
        found.count("fraud", WINDOWS, events([{"card": "a"}], ["other"]), deadline=later())


def test_a_write_whose_answer_was_lost_counts_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = table(name, sleep=lambda _seconds: None)
    put, lost = found._put, [True]

    def lossy(key: str, state: EntityState) -> bool:
        done = put(key, state)
        if lost and lost.pop():
            raise ClientError({"Error": {"Code": "InternalServerError"}}, "PutItem")
        return done

    monkeypatch.setattr(found, "_put", lossy)
    assert found.count("fraud", WINDOWS, events([{"card": "a"}]), deadline=later()) == (set(), 0)
    states, _ = found.read("fraud", [("card", "a")], ())
    assert (states["card", "a"].read(COUNT, AT_MS), states["card", "a"].version) == (1, 1)


def test_keys_of_different_entities_never_meet() -> None:
    found = [("a#b", "c"), ("a", "b#c"), ("a%23b", "c"), ("a", "x" * 600), ("a", "x" * 601), ("é" * 200, "v")]
    keys = [key for entity in found for key in (window_key("m", entity), entity_key(entity))]
    assert len(set(keys)) == len(keys)
    assert max(len(key.encode()) for key in keys) < 2048


def test_a_function_without_a_table_says_so() -> None:
    with pytest.raises(FeaturesUnavailable, match=r"want its name in the settings, got none; deploy"):
        open_feature_table("")
