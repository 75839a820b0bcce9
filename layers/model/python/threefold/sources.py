"""Where features come from that no caller sends: windows over earlier events, tables by entity; and an event's time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from threefold.errors import InvalidManifest, OutsideSignature, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

Aggregate = Literal["sum", "count", "mean", "max", "last"]

AGGREGATES: Final = ("sum", "count", "mean", "max", "last")
OVER: Final = re.compile(r"([1-9][0-9]{0,3})([mhd])")
# A window is made of so many buckets.
BUCKETS: Final = 24
# A clock that goes wrong by more would push the window of an entity past all that is true.
AHEAD_MS: Final = 300_000
_UNITS_MS: Final = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
# Years 1 to 9999, which is what ISO 8601 can say of them.
_LEAST_MS, _MOST_MS = -62_135_596_800_000, 253_402_300_799_999
# Fewer digits are a date in ISO 8601's basic form.
_MILLISECONDS: Final = re.compile(r"-?[0-9]{9,15}")


@dataclass(frozen=True, slots=True, order=True)
class Series:
    """What is kept of an entity's events.

    Attributes:
        of: the field whose values are aggregated; empty where events are counted alone.
        over_ms: the length of the window, a multiple of BUCKETS.
    """

    of: str
    over_ms: int

    @property
    def width_ms(self) -> int:
        """The length of a bucket."""
        return self.over_ms // BUCKETS


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSource:
    """A feature that is an aggregate over the earlier events of the same entity.

    Attributes:
        entity: the field of a record that says whose event it is.
        agg: what is said of the events.
        over: how far back, as `<n>m`, `<n>h` or `<n>d`.
        of: the field whose values are aggregated; empty for a count of all events.
    """

    entity: str
    agg: Aggregate
    over: str
    of: str = ""

    @property
    def series(self) -> Series:
        """What must be kept for it."""
        return Series(self.of, parse_over(self.over))

    def to_json(self) -> dict[str, Any]:
        """The source as a feature's document has it."""
        document = {"from": "window", "entity": self.entity, "agg": self.agg, "over": self.over}
        return {**document, "of": self.of} if self.of else document


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSource:
    """A feature that was loaded for an entity beforehand.

    Attributes:
        entity: the field of a record that says which one.
        field: the column that was loaded.
    """

    entity: str
    field: str

    def to_json(self) -> dict[str, Any]:
        """The source as a feature's document has it."""
        return {"from": "table", "entity": self.entity, "field": self.field}


FeatureSource = WindowSource | TableSource
SOURCE_FIELDS: Final = ("from", "entity", "of", "agg", "over", "field")


def source_from_json(document: Mapping[str, Any]) -> FeatureSource | None:
    """The source in a feature's document, if it has one.

    Raises:
        InvalidManifest: it is none that this release knows.
    """
    given = {name: document[name] for name in SOURCE_FIELDS if name in document}
    if not given:
        return None
    kind = given.pop("from", None)
    try:
        if kind == "table":
            return TableSource(**given)
        if kind == "window" and given.get("agg") in AGGREGATES:
            source = WindowSource(**given)
            parse_over(source.over)
            return source
    except TypeError as error:
        message = f"feature '{document.get('name')}': want the fields of from: {kind}, got {error}"
        raise InvalidManifest(message) from error
    message = (
        f"feature '{document.get('name')}': want from: window or table with their fields, got {shown(dict(document))}"
    )
    raise InvalidManifest(message)


def parse_over(over: object) -> int:
    """The length of a window in milliseconds.

    Raises:
        InvalidManifest: it is no length.
    """
    found = OVER.fullmatch(over) if isinstance(over, str) else None
    if found is None:
        message = f"over: want <n>m, <n>h or <n>d with n from 1 to 9999, got {shown(over)}"
        raise InvalidManifest(message)
    return int(found[1]) * _UNITS_MS[found[2]]


def event_time(field: str, value: object, now_ms: int) -> int:
    """The time that a record says of itself, in milliseconds since 1970.

    Args:
        field: its name, for the message.
        value: ISO 8601 (UTC where no zone is named), or milliseconds since 1970.
        now_ms: the time of processing.

    Raises:
        OutsideSignature: it is no time, or more than AHEAD_MS ahead of the time of processing.
    """
    at_ms = _milliseconds(value)
    if at_ms is None or not _LEAST_MS <= at_ms <= _MOST_MS:
        message = f"time '{field}': want ISO 8601 or milliseconds since 1970, got {shown(value)}"
        raise OutsideSignature(message)
    if at_ms > now_ms + AHEAD_MS:
        ahead = (at_ms - now_ms) // 1000
        message = f"time '{field}': want at most {AHEAD_MS // 1000} s ahead of the clock, got {shown(value)}, {ahead} s"
        raise OutsideSignature(message)
    return at_ms


def entity_of(value: object) -> str | None:
    """Whose event it is, as text; None where a record does not say."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        return None
    if isinstance(value, float):
        # JSON of some writers has no other form for a whole number.
        return str(int(value)) if value.is_integer() else str(value) if math.isfinite(value) else None
    return str(value)


def _milliseconds(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        if isinstance(value, int | float):
            return round(value)
        if not isinstance(value, str):
            return None
        text = value.strip()
        if _MILLISECONDS.fullmatch(text):
            return int(text)
        moment = datetime.fromisoformat(text)
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None
