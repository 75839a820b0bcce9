"""The features table: what is known of entities, read for many at a time and counted under optimistic locks."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from threefold.errors import FeaturesUnavailable
from threefold.outcomes import READS_PER_CALL, capped
from threefold.sources import Series
from threefold.windows import Entity, EntityState, Events, Ring, Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mypy_boto3_dynamodb import DynamoDBClient

    Item = Mapping[str, Any]

# SQS keeps a message for 14 days, the dead-letter queue included: as long can an event come again.
REMEMBERED_SECONDS: Final = 15 * 86_400
# Codes that say: later.
_BUSY: Final = frozenset(
    {
        *("ProvisionedThroughputExceededException", "RequestLimitExceeded", "ThrottlingException"),
        *("InternalServerError", "TransactionConflictException"),
    }
)
_FIRST_WAIT_SECONDS: Final = 0.05
_LONGEST_WAIT_SECONDS: Final = 2.0
_READ_TRIES: Final = 8


class FeatureTable:
    """Reads and writes the items of entities: their windows, a model's own, and their loaded fields, for all models."""

    def __init__(
        self,
        client: DynamoDBClient,
        table: str,
        *,
        threads: int = 8,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a table.

        Args:
            client: a DynamoDB client; parameter validation may be off, for items are typed here.
            table: the table's name.
            threads: calls in flight at a time.
            sleep: waits between tries.
            clock: seconds that never go back.
        """
        self._client = client
        self._table = table
        self._threads = threads
        self._sleep = sleep
        self._clock = clock

    def read(
        self, model: str, windows: Iterable[Entity], tables: Iterable[Entity]
    ) -> tuple[dict[Entity, EntityState], dict[Entity, dict[str, str]]]:
        """What is known of some entities.

        Args:
            model: whose windows.
            windows: the entities whose states are wanted.
            tables: the entities whose loaded fields are wanted.

        Returns:
            The states, a new one for an entity that nothing is known of; and the fields of those that were loaded.

        Raises:
            FeaturesUnavailable: the table did not give all of it.
        """
        state_keys = {window_key(model, entity): entity for entity in windows}
        field_keys = {entity_key(entity): entity for entity in tables}
        items = self._items([*state_keys, *field_keys])
        now = time.time()
        states = {entity: _state(items.get(key)) for key, entity in state_keys.items()}
        fields = {
            entity: _fields(items[key])
            for key, entity in field_keys.items()
            # DynamoDB deletes expired items within days, not at once.
            if key in items and float(items[key].get("expires", {}).get("N", "inf")) > now
        }
        return states, fields

    def count(self, model: str, windows: Windows, events: Events, *, deadline: float) -> tuple[set[int], int]:
        """Count events, each once however often it comes, as long as it is among an entity's last thousand.

        Args:
            model: whose windows.
            windows: what is kept.
            events: with their ids.
            deadline: on the clock.

        Returns:
            The positions of events that could not be counted in time, and how many came too late to be.
        """
        by_entity: dict[Entity, list[int]] = {}
        for i in events.in_order():
            for field in windows.series:
                if (value := events.entities[field][i]) is not None:
                    by_entity.setdefault((field, value), []).append(i)
        if not by_entity:
            return set(), 0
        states, _ = self.read(model, by_entity, ())
        late: set[int] = set()

        def change(entity: Entity, state: EntityState) -> bool:
            return _count(windows.series[entity[0]], events, by_entity[entity], state, late)

        undone = self._change_all(model, by_entity, states, change, deadline)
        return {i for entity in undone for i in by_entity[entity]}, len(late)

    def merge(
        self,
        model: str,
        windows: Windows,
        added: Mapping[Entity, Mapping[Series, Ring]],
        source: str,
        *,
        deadline: float,
    ) -> list[Entity]:
        """Count what a file brought, each entity once however often it is tried.

        Args:
            model: whose windows.
            windows: what is kept.
            added: by entity, what its events come to.
            source: what tells the file from all others, and from events.
            deadline: on the clock.

        Returns:
            The entities whose events could not be counted in time.
        """

        def change(entity: Entity, state: EntityState) -> bool:
            if state.knows(source):
                return False
            state.keep(windows.series.get(entity[0], ()))
            for series, ring in added[entity].items():
                state.rings.setdefault(series, Ring()).merge(ring)
            state.remember(source)
            return True

        states, _ = self.read(model, added, ())
        return self._change_all(model, added, states, change, deadline)

    def _change_all(
        self,
        model: str,
        entities: Iterable[Entity],
        states: Mapping[Entity, EntityState],
        change: Callable[[Entity, EntityState], bool],
        deadline: float,
    ) -> list[Entity]:
        """Change the states of entities; returns those that there was no time for."""
        wanted = list(entities)

        def one(entity: Entity) -> bool:
            return self._change(window_key(model, entity), states[entity], partial(change, entity), deadline)

        if len(wanted) == 1:
            done = [one(wanted[0])]
        else:
            with ThreadPoolExecutor(min(self._threads, len(wanted))) as pool:
                done = list(pool.map(one, wanted))
        return [entity for entity, success in zip(wanted, done, strict=True) if not success]

    def _change(self, key: str, state: EntityState, change: Callable[[EntityState], bool], deadline: float) -> bool:
        """Change one entity's state, again and again while others change it first; whether there was time for it."""
        wait, current = _FIRST_WAIT_SECONDS, state
        while True:
            try:
                if not change(current) or self._put(key, current):
                    return True
            except ClientError as error:
                if error.response["Error"]["Code"] not in _BUSY:
                    raise
            except BotoCoreError:  # It may have been written all the same: then it is known when it is read again.
                pass
            pause = wait * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
            if self._clock() + pause > deadline:
                return False
            self._sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            try:
                current = _state(self._items([key]).get(key))
            except FeaturesUnavailable:
                return False

    def _put(self, key: str, state: EntityState) -> bool:
        """Write a state over the one that it was made of; whether that one still stood."""
        newest = max((ring.newest * series.width_ms for series, ring in state.rings.items() if ring.newest), default=0)
        longest = max((series.over_ms for series in state.rings), default=0)
        expires = (max(newest, time.time_ns() // 1_000_000) + longest) // 1000 + REMEMBERED_SECONDS
        item: Any = {
            "pk": {"S": key},
            "rings": {"M": {_name(series): {"B": ring.to_bytes()} for series, ring in state.rings.items()}},
            "counted": {"B": state.counted},
            "version": {"N": str(state.version + 1)},
            "expires": {"N": str(expires)},
        }
        about: Any = {"ConditionExpression": "attribute_not_exists(pk)"}
        if state.version:
            about = {
                "ConditionExpression": "#version = :read",
                "ExpressionAttributeNames": {"#version": "version"},
                "ExpressionAttributeValues": {":read": {"N": str(state.version)}},
            }
        try:
            self._client.put_item(TableName=self._table, Item=item, **about)
        except self._client.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def _items(self, keys: list[str]) -> dict[str, Item]:
        """Items by their keys; what DynamoDB leaves unprocessed is asked for again.

        Raises:
            FeaturesUnavailable: not all of them were given.
        """
        batches = [keys[start : start + READS_PER_CALL] for start in range(0, len(keys), READS_PER_CALL)]
        if len(batches) <= 1:
            return self._batch(batches[0]) if batches else {}
        found: dict[str, Item] = {}
        with ThreadPoolExecutor(min(self._threads, len(batches))) as pool:
            for part in pool.map(self._batch, batches):
                found |= part
        return found

    def _batch(self, keys: list[str]) -> dict[str, Item]:
        request: Any = {self._table: {"Keys": [{"pk": {"S": key}} for key in keys], "ConsistentRead": True}}
        found: dict[str, Item] = {}
        wait, reason = _FIRST_WAIT_SECONDS, "some unprocessed"
        for _ in range(_READ_TRIES):
            try:
                response = self._client.batch_get_item(RequestItems=request)
            except ClientError as error:
                reason = error.response["Error"]["Code"]
                if reason not in _BUSY:
                    message = f"features table: want {len(keys)} items read, got {error}"
                    raise FeaturesUnavailable(message) from error
            except BotoCoreError as error:
                message = f"features table: want {len(keys)} items read, got {error}"
                raise FeaturesUnavailable(message) from error
            else:
                found |= {item["pk"]["S"]: item for item in response.get("Responses", {}).get(self._table, [])}
                request = response.get("UnprocessedKeys")
                if not request:
                    return found
            self._sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
        message = f"features table: want {len(keys)} items read, got {reason}"
        raise FeaturesUnavailable(message)


def open_feature_table(name: str) -> FeatureTable:
    """The table of a function, with a client that gives up before a caller does.

    Raises:
        FeaturesUnavailable: the function has none.
    """
    if not name:
        message = "features table: want its name in the settings, got none; deploy the stacks of this release"
        raise FeaturesUnavailable(message)
    config = Config(
        max_pool_connections=16,
        parameter_validation=False,
        connect_timeout=2,
        read_timeout=5,
        retries={"mode": "standard", "max_attempts": 3},
    )
    return FeatureTable(boto3.client("dynamodb", config=config), name)


def window_key(model: str, entity: Entity) -> str:
    """The key of an entity's windows for one model."""
    return f"window#{model}#{_key(entity)}"


def entity_key(entity: Entity) -> str:
    """The key of an entity's loaded fields, which all models share."""
    return f"entity#{_key(entity)}"


def _key(entity: Entity) -> str:
    field, value = entity
    # A field's name may hold what separates it from the value.
    return f"{capped(field.replace('%', '%25').replace('#', '%23'))}#{capped(value)}"


def _count(
    series: tuple[Series, ...], events: Events, positions: Iterable[int], state: EntityState, late: set[int]
) -> bool:
    """Count an entity's events in its state; whether there was any that was not counted before."""
    assert events.ids is not None, "what is counted can come again"
    changed = False
    state.keep(series)
    for i in positions:
        if state.knows(events.ids[i]):
            continue
        changed = True
        if not state.add(series, events.at_ms[i], partial(events.value, position=i)):
            late.add(i)
        state.remember(events.ids[i])
    return changed


def _name(series: Series) -> str:
    return f"{series.over_ms}#{series.of}"


def _state(item: Item | None) -> EntityState:
    if item is None:
        return EntityState()
    rings = {}
    for name, ring in item["rings"]["M"].items():
        over, _, of = name.partition("#")
        rings[Series(of, int(over))] = Ring.from_bytes(bytes(ring["B"]))
    return EntityState(rings, bytes(item["counted"]["B"]), int(item["version"]["N"]))


def _fields(item: Item) -> dict[str, str]:
    return {name: value["S"] for name, value in item.get("fields", {}).get("M", {}).items()}
