"""The one step before a record is encoded: what we look up for it, in the place of whatever it says itself."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from threefold.errors import OutsideSignature
from threefold.features import FeatureEncoder, parse_cell
from threefold.request import Records
from threefold.signature import DTYPES
from threefold.sources import entity_of, event_time
from threefold.windows import Entity, Events, Windows, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from threefold.feature_table import FeatureTable
    from threefold.package import Package
    from threefold.request import Request
    from threefold.settings import Settings
    from threefold.signature import Feature, Signature
    from threefold.windows import EntityState

# What is derived from a package is kept for so many of them.
_PACKAGES: Final = 32


@dataclass(slots=True)
class Found:
    """What was looked up for the records of a request.

    Attributes:
        records: with the values in their places.
        values: by position, what was looked up, in the order of the features; None for nothing known.
        problems: by position, why a record has no time that it could have happened at.
    """

    records: Records
    values: dict[int, dict[str, object]] = field(default_factory=dict)
    problems: dict[int, list[str]] = field(default_factory=dict)

    def take(self, rows: npt.NDArray[np.intp] | None) -> Taken:
        """What concerns the records at some positions; None means all."""
        positions = list(range(len(self.records))) if rows is None else rows.tolist()
        problems = {i: self.problems[i] for i in positions if i in self.problems}
        values = {i: self.values[i] for i in positions if i in self.values and i not in problems}
        if problems:
            rows = np.array([i for i in positions if i not in problems], np.intp)
        return Taken(rows, problems, values)


class Taken(NamedTuple):
    """What was looked up for some of the records.

    Attributes:
        rows: the positions of those that can be scored; None means all.
        problems: what is wrong with the others.
        values: what was looked up, by position.
    """

    rows: npt.NDArray[np.intp] | None
    problems: dict[int, list[str]]
    values: dict[int, dict[str, object]]


class Judge:
    """Says whether a record will be accepted, before its windows are known and when they are."""

    def __init__(self, signature: Signature) -> None:
        """Make a judge.

        Args:
            signature: of the package that is asked.
        """
        looked_up = {name for name, _ in signature.windows}
        self._others = encoder_of(signature, [each for each in signature.features if each.name not in looked_up])
        self._own = encoder_of(signature, signature.own)
        windows = [each for each in signature.features if each.name in looked_up]
        datatypes = {spec.name: spec.datatype for spec in signature.inputs}
        whole = signature.inputs[0].datatype if signature.inputs else "FP32"
        # Measured: to encode one record takes half as long as all else that is done for it.
        self._plain = [
            (each.name, each.missing is None, float(np.finfo(DTYPES[datatype]).max))
            for each in windows
            if (datatype := datatypes.get(each.name, whole)).startswith("FP")
            and each.type.startswith("float")
            and (each.min, each.max, each.allowed) == (None, None, None)
        ]
        plain = {name for name, _, _ in self._plain}
        others = [each for each in windows if each.name not in plain]
        self._windows = encoder_of(signature, others) if others else None

    def refused(self, records: Sequence[Mapping[str, object]], *, own: bool = False) -> set[int]:
        """The positions of records that are refused whatever their windows say.

        Args:
            records: n of them.
            own: go by what records bring themselves alone, and not by loaded fields.
        """
        return set((self._own if own else self._others).encode(records).problems)

    def accepts(self, values: Mapping[str, float]) -> bool:
        """Whether the windows' values are accepted, NaN for none."""
        for name, needed, limit in self._plain:
            value = values[name]
            if value != value:  # noqa: PLR0124 - only NaN differs from itself
                if needed:
                    return False
            elif not -limit <= value <= limit:
                return False
        return self._windows is None or not self._windows.encode([values]).problems


class _Plan(NamedTuple):
    """What a package wants looked up."""

    digest: str
    windows: Windows
    tables: tuple[tuple[Feature, Any], ...]
    time: str | None
    names: tuple[str, ...]
    judge: Judge


class FeatureLookup:
    """Looks features up for records, with one read of the table for all of them."""

    def __init__(
        self, open_table: Callable[[], FeatureTable], *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        """Make a lookup.

        Args:
            open_table: gives the features table; called when a record needs it first.
            now_ms: the time of day, milliseconds since 1970.
        """
        self._open_table = open_table
        self._now_ms = now_ms
        self._plans: OrderedDict[str, _Plan] = OrderedDict()
        self._table: FeatureTable | None = None

    def look_up(self, request: Request, packages: Sequence[tuple[Package, npt.NDArray[np.intp] | None]]) -> Found:
        """Look up what the records of a request need.

        Args:
            request: records, n of them.
            packages: what answers them, each with the positions of its records; None means all.

        Raises:
            OutsideSignature: raw tensors, which no feature can be looked up for.
            FeaturesUnavailable: the table did not give what was asked.
        """
        if not isinstance(request.rows, Records):
            name = packages[0][0].manifest.name
            message = f"model '{name}': want records, for it has features that are looked up; got something else"
            raise OutsideSignature(message)
        work = _Work(request, self._now_ms() if request.now_ms is None else request.now_ms)
        plans = [(self._plan(package), work.positions(rows)) for package, rows in packages]
        for plan, positions in plans:
            work.place_in_time(plan, positions)
        states, fields = self._read(request.model, plans, work)
        for plan, positions in plans:
            work.fill_tables(plan, positions, fields)
        work.fill_windows(plans, states)
        return work.found()

    def _plan(self, package: Package) -> _Plan:
        plan = self._plans.get(package.digest)
        if plan is None:
            signature = package.manifest.signature
            names = tuple(feature.name for feature in signature.features if feature.source is not None)
            windows = Windows(signature.windows)
            judge = Judge(signature)
            plan = _Plan(package.digest, windows, signature.tables, package.manifest.time, names, judge)
            self._plans[package.digest] = plan
            if len(self._plans) > _PACKAGES:
                self._plans.popitem(last=False)
        return plan

    def _read(
        self, model: str, plans: Sequence[tuple[_Plan, list[int]]], work: _Work
    ) -> tuple[dict[Entity, EntityState], dict[Entity, dict[str, str]]]:
        windows = {
            entity
            for plan, positions in plans
            if plan.digest not in (work.request.windows or {})
            for name in plan.windows.series
            for entity in work.entities(name, positions)
        }
        tables = {
            entity
            for plan, positions in plans
            for name in {source.entity for _, source in plan.tables}
            for entity in work.entities(name, positions)
        }
        if not windows and not tables:
            return {}, {}
        if self._table is None:
            self._table = self._open_table()
        return self._table.read(model, sorted(windows), sorted(tables))


class _Work:
    """One request on its way through the lookup."""

    def __init__(self, request: Request, now_ms: int) -> None:
        assert isinstance(request.rows, Records), "nothing else is looked up for"
        self.request = request
        self._now_ms = now_ms
        given = request.rows.records
        # What is no object is left as it is, for the encoder to refuse.
        self._records: list[Any] = [dict(record) if hasattr(record, "get") else record for record in given]
        self._usable = [i for i, record in enumerate(self._records) if isinstance(record, dict)]
        self._at_ms = list(request.at_ms) if request.at_ms is not None else [now_ms] * len(given)
        self._values: dict[int, dict[str, object]] = {}
        self._problems: dict[int, list[str]] = {}

    def positions(self, rows: npt.NDArray[np.intp] | None) -> list[int]:
        """Those of some positions that records stand at."""
        if rows is None:
            return self._usable
        wanted = set(rows.tolist())
        return [i for i in self._usable if i in wanted]

    def entities(self, name: str, positions: Sequence[int]) -> set[Entity]:
        """The entities that some of the records are of."""
        found = (entity_of(self._records[i].get(name)) for i in positions if i not in self._problems)
        return {(name, value) for value in found if value is not None}

    def place_in_time(self, plan: _Plan, positions: Sequence[int]) -> None:
        """Say when each record happened."""
        for i in positions:
            value = None if plan.time is None else self._records[i].get(plan.time)
            name, value = ("at", self._at_ms[i]) if value is None or value == "" else (str(plan.time), value)
            try:
                self._at_ms[i] = event_time(name, value, self._now_ms)
            except OutsideSignature as error:
                self._problems[i] = [str(error)]

    def fill_tables(self, plan: _Plan, positions: Sequence[int], fields: Mapping[Entity, Mapping[str, str]]) -> None:
        """Put loaded fields into records."""
        for i in positions:
            record = self._records[i]
            # First, for a looked-up name may be an entity too.
            owners = {name: entity_of(record.get(name)) for name in {source.entity for _, source in plan.tables}}
            looked_up: dict[str, object] = dict.fromkeys(plan.names)
            for feature, source in plan.tables:
                value = owners[source.entity]
                text = fields.get((source.entity, value), {}).get(source.field) if value is not None else None
                looked_up[feature.name] = None if text is None else _echoed(parse_cell(feature, text))
            self._values[i] = looked_up

    def fill_windows(self, plans: Sequence[tuple[_Plan, list[int]]], states: dict[Entity, EntityState]) -> None:
        """Put windows into records: as they were replayed already, or by a walk over all records together."""
        known = self.request.windows or {}
        for plan, positions in plans:
            for name, column in known.get(plan.digest, {}).items():
                for i in positions:
                    self._values[i][name] = _plain(column[i])
        self._place()
        walked = [(plan, positions) for plan, positions in plans if plan.windows.features and plan.digest not in known]
        if not walked:
            return
        chosen: dict[int, int] = {i: number for number, (_, positions) in enumerate(walked) for i in positions}
        order = [i for i in sorted(chosen) if i not in self._problems]
        # One walk for all packages: an event that a canary answers is an earlier one to the champion's next.
        windows = Windows(
            tuple(
                (f"{number} {name}", source)
                for number, (plan, _) in enumerate(walked)
                for name, source in plan.windows.features
            )
        )
        ids = self.request.ids
        events = Events.of(
            windows,
            [self._records[i] for i in order],
            [self._at_ms[i] for i in order],
            None if ids is None else [ids[i] for i in order],
        )
        refused = {
            order_position
            for number, (plan, _) in enumerate(walked)
            for order_position in self._refused(plan.judge, number, chosen, order)
        }

        def counts(position: int, values: Mapping[str, float]) -> bool:
            if position in refused:
                return False
            number = chosen[order[position]]
            plan = walked[number][0]
            return plan.judge.accepts({name: values[f"{number} {name}"] for name, _ in plan.windows.features})

        found = replay(windows, events, states, counts=counts if self.request.counted else None)
        for position, i in enumerate(order):
            number = chosen[i]
            for name, _ in walked[number][0].windows.features:
                self._values[i][name] = _plain(found[f"{number} {name}"][position])
        self._place()

    def found(self) -> Found:
        """What became of it."""
        return Found(Records(self._records), self._values, self._problems)

    def _refused(self, judge: Judge, number: int, chosen: Mapping[int, int], order: Sequence[int]) -> list[int]:
        if not self.request.counted:
            return []
        mine = [position for position, i in enumerate(order) if chosen[i] == number]
        wrong = judge.refused([self._records[order[position]] for position in mine])
        return [position for row, position in enumerate(mine) if row in wrong]

    def _place(self) -> None:
        for i, values in self._values.items():
            self._records[i] |= values


def open_lookup(settings: Settings) -> FeatureLookup:
    """The lookup of a function; AWS's own client is loaded with the first record that needs it."""

    def open_table() -> FeatureTable:
        from threefold.feature_table import open_feature_table  # noqa: PLC0415 - other models start without it

        return open_feature_table(settings.features_table)

    return FeatureLookup(open_table)


def encoder_of(signature: Signature, features: Sequence[Feature]) -> FeatureEncoder:
    """An encoder for some of a signature's features.

    Args:
        signature: a package's.
        features: some of its.
    """
    names = {feature.name for feature in features}
    inputs = signature.inputs
    if signature.layout == "columns":
        inputs = tuple(spec for spec in inputs if spec.name in names)
    return FeatureEncoder(replace(signature, features=tuple(features), inputs=inputs))


def _echoed(value: object) -> object:
    """A loaded value as an answer can say it: an integer that JSON's writers refuse is a text, and no feature."""
    wide = isinstance(value, int) and not -(2**63) <= value < 2**64
    return str(value) if wide else value


def _plain(value: float) -> float | None:
    return None if value != value else float(value)  # noqa: PLR0124 - only NaN differs from itself
