"""Windows over events: what a brute-force reading of the definition says, in any batching, and after any storing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.errors import InvalidManifest, OutsideSignature
from threefold.sources import AGGREGATES, AHEAD_MS, BUCKETS, WindowSource, entity_of, event_time, parse_over
from threefold.windows import REMEMBERED, EntityState, Events, Ring, Windows, replay

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HOUR = 3_600_000
START = 1_773_342_238_123
ALL = Windows(
    tuple(
        (f"{agg}_{over}", WindowSource(entity="card", agg=agg, over=over, of="" if agg == "count" else "amount"))
        for agg in AGGREGATES
        for over in ("1h", "24m", "2d")
    )
)
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
RECORDS = st.fixed_dictionaries(
    {
        "card": st.sampled_from(["a", "b", "c", None]),
        "amount": NUMBERS | st.sampled_from([None, math.nan, math.inf, "12", True]),
    }
)
TIMES = st.integers(START, START + 3 * HOUR)
STREAMS = st.lists(st.tuples(TIMES, RECORDS), max_size=40)


def walk(
    records: Sequence[Mapping[str, Any]], times: Sequence[int], states: dict[Any, EntityState], **fields: Any
) -> list[dict[str, float]]:
    events = Events.of(ALL, records, times, fields.pop("ids", None))
    found = replay(ALL, events, states, **fields)
    return [{name: float(column[i]) for name, column in found.items()} for i in range(len(records))]


def said(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def by_definition(source: WindowSource, event: tuple[int, Any], earlier: Sequence[tuple[int, Any]]) -> float:
    at_ms, record = event
    width = parse_over(source.over) // BUCKETS
    since = (at_ms // width - BUCKETS + 1) * width
    mine = [e for e in earlier if e[0] >= since and record["card"] is not None and e[1]["card"] == record["card"]]
    if source.agg == "count":
        return float(len(mine))
    values = [float(e[1]["amount"]) for e in mine if type(e[1]["amount"]) is float and math.isfinite(e[1]["amount"])]
    if source.agg == "sum":
        return math.fsum(values)
    if not values:
        return math.nan
    return {"mean": math.fsum(values) / len(values), "max": max(values), "last": values[-1]}[source.agg]


@given(STREAMS)
def test_a_value_is_what_the_definition_says_of_the_earlier_events(events: list[tuple[int, Any]]) -> None:
    found = walk([record for _, record in events], [at for at, _ in events], {})
    order = sorted(range(len(events)), key=lambda i: events[i][0])
    for rank, i in enumerate(order):
        earlier = [events[j] for j in order[:rank]]
        for name, source in ALL.features:
            wanted = by_definition(source, events[i], earlier)
            assert found[i][name] == pytest.approx(wanted, rel=1e-9, abs=1e-6, nan_ok=True), name


@given(STREAMS, st.lists(st.integers(1, 7), min_size=1, max_size=40))
def test_values_do_not_depend_on_how_events_fall_into_batches(events: list[tuple[int, Any]], sizes: list[int]) -> None:
    ordered = sorted(events, key=lambda event: event[0])
    whole = walk([record for _, record in ordered], [at for at, _ in ordered], {})
    parts: list[dict[str, float]] = []
    states: dict[Any, EntityState] = {}
    start = 0
    while start < len(ordered):
        size = sizes[len(parts) % len(sizes)]
        batch = ordered[start : start + size]
        parts += walk([record for _, record in batch], [at for at, _ in batch], states)
        # As the table keeps them between two batches.
        states = {
            entity: EntityState({series: Ring.from_bytes(ring.to_bytes()) for series, ring in state.rings.items()})
            for entity, state in states.items()
        }
        start += size
    assert list(map(said, parts)) == list(map(said, whole))


@given(STREAMS, STREAMS)
def test_merged_rings_are_those_of_all_events_in_the_order_of_time(
    events: list[tuple[int, Any]], more: list[tuple[int, Any]]
) -> None:
    times = {at for at, _ in events}
    more = [event for event in more if event[0] not in times]
    states: list[dict[Any, EntityState]] = [{}, {}, {}]
    for part, into in ((events, states[0]), (more, states[1]), ([*events, *more], states[2])):
        walk([record for _, record in part], [at for at, _ in part], into)
    for entity, state in states[2].items():
        merged = states[0].get(entity, EntityState())
        for series, ring in states[1].get(entity, EntityState()).rings.items():
            merged.rings.setdefault(series, Ring()).merge(ring)
        for _, source in ALL.features:
            wanted = state.read(source, START + 3 * HOUR)
            assert merged.read(source, START + 3 * HOUR) == pytest.approx(wanted, rel=1e-9, abs=1e-6, nan_ok=True)


def test_the_event_itself_is_not_in_its_window_and_the_first_of_two_at_one_time_is() -> None:
    records = [{"card": "a", "amount": 5.0}, {"card": "a", "amount": 7.0}]
    first, second = walk(records, [START, START], {})
    assert (first["count_1h"], first["sum_1h"], said(first)["mean_1h"]) == (0, 0, None)
    assert (second["count_1h"], second["sum_1h"], second["last_1h"]) == (1, 5, 5)


@pytest.mark.parametrize(
    ("behind_ms", "count"), [(0, 1), (23 * HOUR // 24, 1), (HOUR - 1, 1), (HOUR, 0), (HOUR + 1, 0)]
)
def test_a_window_covers_up_to_all_of_its_length(behind_ms: int, count: int) -> None:
    # The end of a bucket: the most that a window covers.
    at_ms = START // 150_000 * 150_000 + 149_999
    earlier, now = walk([{"card": "a"}] * 2, [at_ms - behind_ms, at_ms], {})
    assert (earlier["count_1h"], now["count_1h"]) == (0, count)


@pytest.mark.parametrize(("behind_ms", "count"), [(23 * HOUR // 24, 1), (23 * HOUR // 24 + 1, 0)])
def test_a_window_covers_at_least_23_of_24_parts_of_its_length(behind_ms: int, count: int) -> None:
    at_ms = START // 150_000 * 150_000
    _, now = walk([{"card": "a"}] * 2, [at_ms - behind_ms, at_ms], {})
    assert now["count_1h"] == count


def test_a_late_event_counts_in_its_own_bucket_while_the_window_of_the_newest_holds_it() -> None:
    states: dict[Any, EntityState] = {}
    walk([{"card": "a"}], [START], states)
    (late,) = walk([{"card": "a"}], [START - HOUR // 2], states)
    assert late["count_1h"] == 0
    (now,) = walk([{"card": "a"}], [START + 1], states)
    assert now["count_1h"] == 2
    walk([{"card": "a"}], [START - 2 * HOUR], states)
    (now,) = walk([{"card": "a"}], [START + 2], states)
    assert (now["count_1h"], now["count_2d"]) == (3, 4)


def test_add_says_whether_an_event_came_in_time() -> None:
    series = ALL.series["card"]
    state = EntityState()
    assert state.add(series, START, lambda _name: 1.0)
    assert state.add(series, START - HOUR // 2 - 1, lambda _name: 1.0) is False  # too late for 24 minutes
    assert state.add(series, START + 1, lambda _name: None)


def test_an_event_delivered_again_counts_nothing_and_sees_what_it_saw() -> None:
    states: dict[Any, EntityState] = {}
    both = walk([{"card": "a", "amount": 1.0}] * 2, [START] * 2, states, ids=["m-1", "m-1"])
    assert both[0]["count_1h"] == both[1]["count_1h"] == 0
    walk([{"card": "a", "amount": 1.0}], [START], states, ids=["m-1"])
    assert states["card", "a"].read(ALL.features[3][1], START) == 1
    assert states["card", "a"].knows("m-1")


def test_the_last_thousand_events_are_remembered() -> None:
    state = EntityState()
    for number in range(REMEMBERED + 1):
        state.remember(f"m-{number}")
    assert not state.knows("m-0")
    assert all(state.knows(f"m-{number}") for number in range(1, REMEMBERED + 1))
    assert len(state.counted) == 8 * REMEMBERED


def test_what_does_not_count_is_not_seen() -> None:
    states: dict[Any, EntityState] = {}
    found = walk([{"card": "a", "amount": 1.0}] * 3, [START] * 3, states, counts=lambda i, _values: i != 1)
    assert [values["count_1h"] for values in found] == [0, 1, 1]
    assert [values["count_1h"] for values in walk([{"card": "a"}] * 2, [START] * 2, states, counts=None)] == [2, 2]


def test_a_full_ring_takes_a_kilobyte() -> None:
    ring = Ring()
    for bucket in range(100):
        ring.add(bucket, bucket, 1.5)
    assert len(ring.to_bytes()) == 8 + 41 * BUCKETS
    assert Ring.from_bytes(ring.to_bytes()) == ring
    assert Ring.from_bytes(Ring().to_bytes()) == Ring()


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("2026-03-12T19:03:58.123Z", START),
        ("2026-03-12T19:03:58.123", START),
        ("2026-03-12 20:03:58.123+01:00", START),
        (START, START),
        (float(START), START),
        (str(START), START),
        ("2026-03-12", 1_773_273_600_000),
        (-1000, -1000),
    ],
)
def test_a_time_is_iso_8601_or_milliseconds(value: object, wanted: int) -> None:
    assert event_time("at", value, START) == wanted


@pytest.mark.parametrize("value", ["yesterday", True, [1], {}, 1e300, math.nan, math.inf, "2026-13-01", 10**18])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(OutsideSignature, match=r"time 'at': want ISO 8601 or milliseconds since 1970, got "):
        event_time("at", value, START)


def test_a_time_may_be_five_minutes_ahead_and_no_more() -> None:
    assert event_time("at", START + AHEAD_MS, START) == START + AHEAD_MS
    with pytest.raises(OutsideSignature, match=r"want at most 300 s ahead of the clock, got 1773342538124, 300 s"):
        event_time("at", START + AHEAD_MS + 1, START)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("42", "42"), (42, "42"), (42.0, "42"), (1.5, "1.5"), ("", None), (None, None), (True, None), ([], None)],
)
def test_an_entity_is_a_text_or_a_number(value: object, wanted: str | None) -> None:
    assert entity_of(value) == wanted


@pytest.mark.parametrize("over", ["7", "7w", "0d", "-1h", "1.5h", "10000d", 7, None, "7d "])
def test_a_length_that_is_none_is_refused(over: object) -> None:
    with pytest.raises(InvalidManifest, match=r"over: want <n>m, <n>h or <n>d"):
        parse_over(over)


def test_a_million_buckets_are_not_walked_to_skip_a_gap() -> None:
    ring = Ring()
    ring.add(0, 0, 1.0)
    ring.add(2**40, 1, 1.0)
    assert list(ring.cells) == [2**40]
    assert np.isnan(ring.read("mean", 2**41))
