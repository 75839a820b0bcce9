"""What is counted for windows: the events of a model, for the packages of its release that may be asked about them."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Final, NamedTuple

from threefold.errors import NotServable, OutsideSignature, UnknownModel
from threefold.prediction import Status
from threefold.sources import event_time
from threefold.windows import Events, Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from threefold.feature_table import FeatureTable
    from threefold.package import Manifest
    from threefold.predictor import Predictor

# Outcomes of records that did not happen as far as a model is concerned.
UNCOUNTED: Final = frozenset({Status.REJECTED.value, "expired"})
_FAR: Final = 2**62


class Counted(NamedTuple):
    """What became of events that were to be counted.

    Attributes:
        undone: why some could not be counted in time, by position.
        late: how many were too old for a window.
    """

    undone: dict[int, str]
    late: int


class EventCounter:
    """Counts the records of a model for its windows; a model without windows costs nothing."""

    def __init__(self, predictor: Predictor, open_table: Callable[[], FeatureTable]) -> None:
        """Make a counter.

        Args:
            predictor: knows the releases and their packages.
            open_table: gives the features table; called when something is counted first.
        """
        self._predictor = predictor
        self._open_table = open_table
        self._table: FeatureTable | None = None
        self._declared: dict[str, tuple[str, Windows, str | None]] = {}

    def count(
        self,
        model: str,
        records: Sequence[Mapping[str, object]],
        at_ms: Sequence[int],
        ids: Sequence[str],
        *,
        deadline: float,
    ) -> Counted:
        """Count records, each once however often it comes.

        Args:
            model: whose windows.
            records: n of them, each with an outcome that counts.
            at_ms: when each happened, unless it says so itself, shape [n].
            ids: what tells them apart, the same at every delivery, shape [n].
            deadline: on the monotonic clock.
        """
        try:
            windows, time = self.declared(model)
            if not windows.features:
                return Counted({}, 0)
            if self._table is None:
                self._table = self._open_table()
            times = [_time(record, time, at) for record, at in zip(records, at_ms, strict=True)]
            events = Events.of(windows, records, times, ids)
            undone, late = self._table.count(model, windows, events, deadline=deadline)
        except UnknownModel:  # It was taken away since these were scored.
            return Counted({}, 0)
        except NotServable as error:
            return Counted(dict.fromkeys(range(len(records)), str(error)), 0)
        reason = "features table: want the event counted, got no time for it"
        return Counted(dict.fromkeys(undone, reason), late)

    def needed(self, model: str) -> bool:
        """Whether a model has windows, as far as it is known: `count` says why it is not."""
        try:
            return bool(self.declared(model)[0].features)
        except UnknownModel:
            return False
        except NotServable:
            return True

    def declared(self, model: str) -> tuple[Windows, str | None]:
        """The windows that a model's events are counted for, and the field that holds their time.

        They are those of the champion, of the challenger, and of the champion before, so that a challenger has a past
        when it is promoted, and so has who is rolled back to. What cannot be had now, or takes long to come, is left
        out until it is there: the last good champion answers meanwhile, and is counted for.

        Raises:
            UnknownModel: it has no release.
            NotServable: no package can be had that could answer.
        """
        confirmed = self._predictor.registry.release(model)
        known = self._declared.get(model)
        if known is not None and known[0] == confirmed.id:
            return known[1], known[2]
        release = confirmed.release
        champion = self._manifest(model, release.champion.digest)
        manifests = [champion or self._predictor.standing(model).manifest]
        wanted = [] if release.challenger is None else [release.challenger.digest]
        found = [self._manifest(model, digest) for digest in wanted]
        if any(manifest.online for manifest in (*manifests, *found) if manifest is not None):
            # Of no use to a model without windows, and it may have to be downloaded.
            found += [self._manifest(model, version.digest) for version in release.previous[:1]]
        manifests += [manifest for manifest in found if manifest is not None]
        windows = reduce(Windows.__or__, (Windows(manifest.signature.windows) for manifest in manifests))
        time = next((manifest.time for manifest in manifests if manifest.time is not None), None)
        if champion is not None and None not in found:
            self._declared[model] = (confirmed.id, windows, time)
        return windows, time

    def _manifest(self, model: str, digest: str) -> Manifest | None:
        """The manifest of a package, if that can be had now."""
        try:
            package = self._predictor.package(model, digest)
        except NotServable:
            return None
        return None if package is None else package.manifest


def _time(record: Mapping[str, object], field: str | None, at_ms: int) -> int:
    """When a record happened, which was checked when it was scored."""
    value = None if field is None else record.get(field)
    if value is None or value == "":
        return at_ms
    try:
        return event_time(str(field), value, _FAR)
    except OutsideSignature:  # It was scored by another package, which has another field for it.
        return at_ms
