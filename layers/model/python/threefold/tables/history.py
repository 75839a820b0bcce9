"""A file as a part of the stream: its rows put in the order of time, replayed, and what they come to."""

from __future__ import annotations

import math
from array import array
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from threefold import strict_json
from threefold.errors import InvalidTable, OutsideSignature
from threefold.lookup import Judge
from threefold.request import Records
from threefold.sources import Series, entity_of, event_time
from threefold.tables.fields import read_fields
from threefold.tables.reader import RowReader
from threefold.windows import Entity, EntityState, Events, Ring, Windows, number_of, replay

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from threefold.package import Manifest
    from threefold.tables.header import Header
    from threefold.tables.records import Block

# Measured with three windows over two entities: 0.25 KB a row, and of an entity 2 KB, or 14 when its windows are full.
MAXIMUM_ROWS: Final = 500_000
MAXIMUM_ENTITIES: Final = 50_000


class History:
    """Collects what a file's rows are as events, in memory that its number of rows bounds, and replays them."""

    def __init__(self, manifests: Sequence[tuple[str, Manifest]], *, at_ms: int, limit: int = MAXIMUM_ROWS) -> None:
        """Make an empty one.

        Args:
            manifests: of the packages that answer rows of the file, by digest; the first says which rows are accepted.
            at_ms: when the file was uploaded, milliseconds since 1970: the time of rows without one.
            limit: the most rows.
        """
        self._manifest = manifests[0][1]
        self._judge = Judge(self._manifest.signature)
        self._columns = columns_of(manifests)
        self._windows = Windows(
            tuple(
                (f"{digest} {name}", source)
                for digest, manifest in manifests
                for name, source in manifest.signature.windows
            )
        )
        self._names = {f"{manifests[0][0]} {name}": name for name, _ in self._manifest.signature.windows}
        self._fields = {field.name: field for _, manifest in manifests for field in read_fields(manifest)}
        self._at_ms = at_ms
        self._limit = limit
        self._reader: RowReader | None = None
        self._rows = 0
        # Of the rows that are events: their positions, times, and which of them can be no accepted record.
        self._positions, self._times, self._refused = array("q"), array("q"), set[int]()
        self._entities: dict[str, list[str | None]] = {name: [] for name in self._windows.series}
        self._values = {name: array("d") for name in self._windows.fields}
        self._texts: dict[str, dict[str, str]] = {name: {} for name in self._entities}

    def __len__(self) -> int:
        """How many rows the file has."""
        return self._rows

    def begin(self, header: Header) -> None:
        """Say how the rows are written."""
        self._reader = RowReader(header, tuple(self._fields.values()), numeric=False)

    def see(self, block: Block) -> None:
        """Take in some rows.

        Raises:
            InvalidTable: there are more than can be replayed.
        """
        assert self._reader is not None, "a header comes before rows"
        if self._rows + len(block) > self._limit:
            message = f"file: want at most {self._limit} rows for a model with windows, got more; cut it by time"
            raise InvalidTable(message)
        self._rows += len(block)
        for batch in self._reader.read(block):
            assert isinstance(batch.rows, Records), "its reader makes no matrix"
            first = batch.numbers.start - 1
            refused = self._judge.refused(batch.rows.records, own=True)
            for i, (position, record) in enumerate(zip(batch.good, batch.rows.records, strict=True)):
                self._add(first + position, record, refused=i in refused)
        if (known := sum(map(len, self._texts.values()))) > MAXIMUM_ENTITIES:
            message = f"file: want at most {MAXIMUM_ENTITIES} entities for a model with windows, got {known} and more"
            raise InvalidTable(message)

    def _add(self, position: int, record: Mapping[str, object], *, refused: bool) -> None:
        field = self._manifest.time
        value = None if field is None else record.get(field)
        try:
            at_ms = self._at_ms if value is None or value == "" else event_time(str(field), value, self._at_ms)
        except OutsideSignature:
            return
        if refused:
            self._refused.add(len(self._positions))
        self._positions.append(position)
        self._times.append(at_ms)
        for name, column in self._entities.items():
            value = entity_of(record.get(name))
            column.append(None if value is None else self._texts[name].setdefault(value, value))
        for name, numbers in self._values.items():
            number = number_of(record.get(name))
            numbers.append(math.nan if number is None else number)

    def entities(self) -> list[Entity]:
        """The entities that the rows are of."""
        return [(name, value) for name, found in self._texts.items() for value in sorted(found)]

    def replay(
        self, states: dict[Entity, EntityState]
    ) -> tuple[npt.NDArray[np.float64], dict[Entity, dict[Series, Ring]]]:
        """Give each row its windows' values.

        Args:
            states: by entity, as they were before the file; they are brought up to date.

        Returns:
            The values, shape [rows, columns], NaN for none; and by entity, what the file's events alone come to.
        """
        events = Events(self._times, self._entities, {name: np.array(found) for name, found in self._values.items()})
        kept, accepted = self._windows.series, np.zeros(len(events), np.bool_)
        added: dict[Entity, EntityState] = {}

        def counts(i: int, values: Mapping[str, float]) -> bool:
            if i in self._refused or not self._judge.accepts({own: values[name] for name, own in self._names.items()}):
                return False
            accepted[i] = True
            return True

        found = replay(self._windows, events, states, counts=counts)
        matrix = np.full((self._rows, len(self._columns)), np.nan)
        positions = np.array(self._positions, np.intp)
        for column, name in enumerate(found):
            matrix[positions, column] = found[name]
        for i in events.in_order():
            if accepted[i]:
                for name, series in kept.items():
                    if (value := self._entities[name][i]) is not None:
                        state = added.setdefault((name, value), EntityState())
                        state.add(series, self._times[i], partial(events.value, position=i))
        return matrix, {entity: state.rings for entity, state in added.items()}


def columns_of(manifests: Sequence[tuple[str, Manifest]]) -> tuple[tuple[str, str], ...]:
    """The columns of a file's windows: each a package's digest and the name of a feature."""
    return tuple((digest, name) for digest, manifest in manifests for name, _ in manifest.signature.windows)


def encode_added(added: Mapping[Entity, Mapping[Series, Ring]]) -> Iterator[bytes]:
    """What a file's events come to, a line of JSON an entity."""
    for (field, value), rings in added.items():
        each = [[series.of, series.over_ms, ring.to_bytes().hex()] for series, ring in rings.items()]
        yield strict_json.dumps([field, value, each]) + b"\n"


def decode_added(lines: bytes) -> dict[Entity, dict[Series, Ring]]:
    """Read what `encode_added` wrote."""
    added: dict[Entity, dict[Series, Ring]] = {}
    for line in lines.splitlines():
        field, value, each = strict_json.loads(line)
        added[field, value] = {Series(of, over_ms): Ring.from_bytes(bytes.fromhex(ring)) for of, over_ms, ring in each}
    return added
