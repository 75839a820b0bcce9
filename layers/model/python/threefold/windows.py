"""Windows over an entity's events: what is kept of them, what a feature makes of it, and events walked in order.

The same walk does the stream, a CSV's replay and a model's training, so that a feature is the same number in all three.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from threefold.sources import BUCKETS, Series, WindowSource, entity_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

# Events of an entity that are known to be counted: a redelivery of one of them counts nothing.
REMEMBERED: Final = 1_000
_IDENTITY_BYTES: Final = 8
_HEAD: Final = struct.Struct("<q")
_CELL: Final = struct.Struct("<bqdddq")

# Whose states: the entity's field and its value.
Entity = tuple[str, str]


@dataclass(slots=True)
class _Cell:
    """One bucket: what its events come to."""

    count: int
    total: float
    most: float
    last: float
    last_at: int


@dataclass(slots=True)
class Ring:
    """The newest BUCKETS buckets of one series.

    Attributes:
        newest: the number of the bucket of the newest event; buckets are numbered from 1970.
        cells: buckets by number, those without an event left out.
    """

    newest: int | None = None
    cells: dict[int, _Cell] = field(default_factory=dict)

    def add(self, bucket: int, at_ms: int, value: float) -> bool:
        """Count an event.

        Returns:
            Whether it is counted: one that is older than the window of the newest is not.
        """
        if not self._move(bucket):
            return False
        cell = self.cells.get(bucket)
        if cell is None:
            self.cells[bucket] = _Cell(1, value, value, value, at_ms)
            return True
        cell.count += 1
        cell.total += value
        cell.most = max(cell.most, value)
        if at_ms >= cell.last_at:
            cell.last, cell.last_at = value, at_ms
        return True

    def merge(self, other: Ring) -> None:
        """Count the events of another ring; its buckets that are too old are left out."""
        for bucket, more in sorted(other.cells.items()):
            if not self._move(bucket):
                continue
            cell = self.cells.get(bucket)
            if cell is None:
                self.cells[bucket] = _Cell(more.count, more.total, more.most, more.last, more.last_at)
                continue
            cell.count += more.count
            cell.total += more.total
            cell.most = max(cell.most, more.most)
            if more.last_at >= cell.last_at:
                cell.last, cell.last_at = more.last, more.last_at

    def read(self, agg: str, bucket: int) -> float:
        """What a feature says of the window that ends with a bucket; NaN for nothing to say."""
        cells = self.cells
        found = [cells[i] for i in range(bucket - BUCKETS + 1, bucket + 1) if i in cells] if cells else []
        if agg == "count":
            return float(sum(cell.count for cell in found))
        if agg == "sum":
            # Exact, whatever the version of Python: its sum() is another one since 3.12.
            return _total(found)
        if not found:
            return math.nan
        if agg == "mean":
            return _total(found) / sum(cell.count for cell in found)
        return max(cell.most for cell in found) if agg == "max" else found[-1].last

    def to_bytes(self) -> bytes:
        """The ring as the table keeps it: 41 bytes a bucket that has events."""
        if self.newest is None:
            return b""
        cells = (
            _CELL.pack(self.newest - bucket, cell.count, cell.total, cell.most, cell.last, cell.last_at)
            for bucket, cell in sorted(self.cells.items())
        )
        return _HEAD.pack(self.newest) + b"".join(cells)

    @classmethod
    def from_bytes(cls, content: bytes) -> Ring:
        """Read what `to_bytes` wrote."""
        if not content:
            return cls()
        (newest,) = _HEAD.unpack_from(content)
        cells = {newest - behind: _Cell(*values) for behind, *values in _CELL.iter_unpack(content[_HEAD.size :])}
        return cls(newest, cells)

    def _move(self, bucket: int) -> bool:
        """See that a bucket has its place, and let go of what is older than the window of the newest."""
        if self.newest is None or bucket > self.newest:
            self.newest = bucket
            oldest = bucket - BUCKETS + 1
            if self.cells and min(self.cells) < oldest:
                self.cells = {number: cell for number, cell in self.cells.items() if number >= oldest}
            return True
        return bucket > self.newest - BUCKETS


@dataclass(slots=True)
class EntityState:
    """What is known of one entity's events.

    Attributes:
        rings: by series.
        counted: the hashes of the events counted last, oldest first, each _IDENTITY_BYTES long.
        version: of the stored item; 0 for none.
    """

    rings: dict[Series, Ring] = field(default_factory=dict)
    counted: bytes = b""
    version: int = 0

    def knows(self, identity: str) -> bool:
        """Whether an event is one of those that were counted last."""
        mark, counted = _mark(identity), self.counted
        place = counted.find(mark)
        while place % _IDENTITY_BYTES and place >= 0:
            place = counted.find(mark, place + 1)
        return place >= 0

    def remember(self, identity: str) -> None:
        """Note an event as counted."""
        self.counted = (self.counted + _mark(identity))[-REMEMBERED * _IDENTITY_BYTES :]

    def read(self, source: WindowSource, at_ms: int) -> float:
        """A feature's value for an event at a time, of the events counted so far; NaN for none."""
        series = source.series
        return self.rings.get(series, _EMPTY).read(source.agg, at_ms // series.width_ms)

    def add(self, series: Iterable[Series], at_ms: int, value_of: Callable[[str], float | None]) -> bool:
        """Count an event.

        Args:
            series: what is kept.
            at_ms: its time.
            value_of: a field's value; None where there is no finite one, which leaves its series as they are.

        Returns:
            Whether no series found it too late.
        """
        in_time = True
        for each in series:
            value = value_of(each.of) if each.of else 0.0
            if value is not None:
                ring = self.rings.setdefault(each, Ring())
                in_time &= ring.add(at_ms // each.width_ms, at_ms, value)
        return in_time

    def keep(self, series: Iterable[Series]) -> None:
        """Let go of what no package asks for any more."""
        wanted = set(series)
        self.rings = {each: ring for each, ring in self.rings.items() if each in wanted}


_EMPTY: Final = Ring()


@dataclass(frozen=True, slots=True)
class Windows:
    """The window features of one package or of several.

    Attributes:
        features: names and sources.
    """

    features: tuple[tuple[str, WindowSource], ...]

    @property
    def series(self) -> dict[str, tuple[Series, ...]]:
        """What is kept, by the entity's field, each series once."""
        found: dict[str, set[Series]] = {}
        for _, source in self.features:
            found.setdefault(source.entity, set()).add(source.series)
        return {entity: tuple(sorted(series)) for entity, series in found.items()}

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields whose values are aggregated."""
        return tuple(sorted({source.of for _, source in self.features} - {""}))

    def __or__(self, other: Windows) -> Windows:
        """Those of both."""
        return Windows(tuple(dict.fromkeys((*self.features, *other.features))))


@dataclass(frozen=True, slots=True)
class Events:
    """n events as columns.

    Attributes:
        at_ms: their times, milliseconds since 1970.
        entities: by field, whose each event is; None where a record does not say.
        values: by field, what is aggregated; None or NaN where a record has no finite number.
        ids: what tells them apart; None where nothing is delivered twice.
    """

    at_ms: Sequence[int]
    entities: Mapping[str, Sequence[str | None]]
    values: Mapping[str, Sequence[float | None] | npt.NDArray[np.float64]]
    ids: Sequence[str] | None = None

    def __len__(self) -> int:
        """How many events."""
        return len(self.at_ms)

    def in_order(self) -> list[int]:
        """Their positions by time, and by position where the time is the same."""
        return sorted(range(len(self.at_ms)), key=self.at_ms.__getitem__)

    def value(self, field: str, position: int) -> float | None:
        """A field's value, if it is a finite number."""
        value = self.values[field][position]
        return float(value) if value is not None and math.isfinite(value) else None

    @classmethod
    def of(
        cls, windows: Windows, records: Sequence[Mapping[str, object]], at_ms: Sequence[int], ids: Sequence[str] | None
    ) -> Events:
        """The events that records are, for a set of windows.

        Args:
            windows: whose fields are taken.
            records: n mappings from a field to its value.
            at_ms: shape [n].
            ids: shape [n], or None.
        """
        return cls(
            at_ms,
            {name: [entity_of(record.get(name)) for record in records] for name in windows.series},
            {name: [number_of(record.get(name)) for record in records] for name in windows.fields},
            ids,
        )


def replay(
    windows: Windows,
    events: Events,
    states: dict[Entity, EntityState],
    *,
    counts: Callable[[int, Mapping[str, float]], bool] | None = lambda _position, _values: True,
) -> dict[str, npt.NDArray[np.float64]]:
    """Walk events in the order of (time, position): each gets its values, and counts for those after it.

    Args:
        windows: the features, and what is kept for them.
        events: n of them.
        states: by entity, as they were before; those without one get one, and all are brought up to date.
        counts: told an event's position and values, whether it counts; None counts none.

    Returns:
        By feature, the values, float64, shape [n], in the order that the events were given in; NaN for none.
    """
    kept = windows.series
    found = {name: np.full(len(events), np.nan) for name, _ in windows.features}
    readers = [
        (name, source.entity, source.series, source.agg, source.agg in {"count", "sum"})
        for name, source in windows.features
    ]
    first: dict[tuple[str | None, ...], int] = {}
    for i in events.in_order():
        event = () if events.ids is None else (events.ids[i], *(events.entities[entity][i] for entity in kept))
        if event and (known := first.setdefault(event, i)) != i:
            for column in found.values():
                column[i] = column[known]
            continue
        at_ms = events.at_ms[i]
        mine = _states(kept, events, states, i)
        for name, entity, series, agg, zero in readers:
            if (state := mine.get(entity)) is not None:
                found[name][i] = state.rings.get(series, _EMPTY).read(agg, at_ms // series.width_ms)
            elif zero:
                found[name][i] = 0.0
        if counts is not None and counts(i, {name: float(column[i]) for name, column in found.items()}):
            _add(events, i, mine, kept)
    return found


def _add(
    events: Events, position: int, mine: Mapping[str, EntityState], kept: Mapping[str, tuple[Series, ...]]
) -> None:
    """Count an event for its entities, each of which may know it already."""
    identity = None if events.ids is None else events.ids[position]
    for entity, state in mine.items():
        if identity is None or not state.knows(identity):
            state.add(kept[entity], events.at_ms[position], partial(events.value, position=position))
            if identity is not None:
                state.remember(identity)


def _states(
    kept: Mapping[str, object], events: Events, states: dict[Entity, EntityState], position: int
) -> dict[str, EntityState]:
    """The states of the entities that an event is of."""
    mine: dict[str, EntityState] = {}
    for entity in kept:
        if (value := events.entities[entity][position]) is not None:
            mine[entity] = states.setdefault((entity, value), EntityState())
    return mine


def number_of(value: object) -> float | None:
    """A value as a finite float64; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _total(cells: Sequence[_Cell]) -> float:
    totals = [cell.total for cell in cells]
    try:
        return math.fsum(totals)
    except (OverflowError, ValueError):  # beyond what a float holds: an infinity, or no number, and no feature
        return sum(totals)


def _mark(identity: str) -> bytes:
    return hashlib.blake2b(identity.encode(), digest_size=_IDENTITY_BYTES).digest()
