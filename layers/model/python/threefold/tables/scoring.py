"""Scores the records of a chunk by what its job is pinned to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from threefold.errors import InvalidTable, NotServable
from threefold.model import RUNTIME
from threefold.prediction import Status
from threefold.release import Route
from threefold.request import Request
from threefold.tables.fields import read_fields
from threefold.tables.reader import ROWS_PER_BATCH, RowReader
from threefold.tables.records import read_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threefold.chunks import Chunk
    from threefold.model import Model
    from threefold.prediction import Outcomes
    from threefold.predictor import Predictor
    from threefold.registry import Confirmed
    from threefold.release import Release
    from threefold.tables.file_windows import RowWindows
    from threefold.tables.planner import Plan
    from threefold.tables.reader import Batch


@dataclass(frozen=True, slots=True)
class RowIds(Sequence[str]):
    """Prediction ids, made when they are asked for: job and row, the same at every try."""

    job: str
    numbers: Sequence[int]

    def __len__(self) -> int:
        """How many rows."""
        return len(self.numbers)

    def __getitem__(self, position: Any) -> Any:  # noqa: ANN401 - a slice of ids is nobody's need
        """The id of a row."""
        return f"{self.job}-{self.numbers[position]}"

    def select(self, positions: Sequence[int]) -> RowIds:
        """The ids of the rows at some positions."""
        return RowIds(self.job, [self.numbers[position] for position in positions])


@dataclass(frozen=True, slots=True)
class Scored:
    """A batch and what became of it.

    Attributes:
        batch: the records.
        outcomes: of those that have the header's form; None if none has.
        ids: the prediction ids of all of them.
        rejection: what the rejections of the others have in common.
    """

    batch: Batch
    outcomes: Outcomes | None
    ids: RowIds
    rejection: dict[str, Any]

    def predictions(self) -> list[dict[str, Any]]:
        """One outcome for each record of the batch, in order."""
        predictions = self.outcomes.predictions() if self.outcomes is not None else []
        bad = self.batch.bad
        if not bad:
            return predictions
        scored = iter(predictions)
        return [
            {"id": identity, **self.rejection, "message": f"record: {bad[i]}"} if i in bad else next(scored)
            for i, identity in enumerate(self.ids)
        ]


class ChunkScorer:
    """Scores chunks of one job, whatever is promoted meanwhile."""

    def __init__(
        self, predictor: Predictor, plan: Plan, now: Callable[[], str], windows: RowWindows | None = None
    ) -> None:
        """Load what the job is pinned to.

        Args:
            predictor: the way to score.
            plan: the job's.
            now: the time of day, ISO 8601.
            windows: those of the rows, if the model has any.

        Raises:
            NotServable: another package would answer in the place of one that the release names.
        """
        self._predictor = predictor
        self._plan = plan
        self._now = now
        self._windows = windows
        confirmed = predictor.registry.pinned(plan.model, plan.release)
        self._routes = _routes(confirmed.release, plan.version)
        champion, *others = _load(predictor, confirmed, self._routes, exact=plan.version is not None)
        known = read_fields(champion.manifest)
        features = {feature.name: feature for feature in known}
        for model in others:
            for feature in read_fields(model.manifest):
                features.setdefault(feature.name, feature)
        assert champion.encoder is not None, "a model without features is refused when the job is planned"
        # What a canary reads beside the champion's features need not be numbers.
        self._online = any(model.manifest.online for model in (champion, *others))
        numeric = champion.encoder.matrix_ready and len(features) == len(known) and not self._online
        self._reader = RowReader(plan.header, tuple(features.values()), key=champion.manifest.key, numeric=numeric)

    def score(
        self, stream: Iterator[bytes], chunk: Chunk, most: Callable[[], int] = lambda: ROWS_PER_BATCH
    ) -> Iterator[Scored]:
        """Score the records of a chunk, a bounded number at a time.

        Args:
            stream: the chunk's bytes.
            chunk: where they stand in the file.
            most: how many at a time, asked before each batch.
        """
        delimiter = self._plan.header.delimiter
        for block in read_blocks(stream, delimiter, offset=chunk.start, row=chunk.row, line=chunk.line):
            for batch in self._reader.read(block, most):
                yield self._score(batch)

    def _score(self, batch: Batch) -> Scored:
        plan, route = self._plan, self._routes[0]
        ids = RowIds(plan.job, batch.numbers)
        outcomes = None
        if len(batch.rows):
            request = Request(
                model=plan.model,
                rows=batch.rows,
                version=plan.version,
                release_id=plan.release,
                ids=ids.select(batch.good) if batch.bad else ids,
                keys=batch.keys,
                at_ms=[plan.at_ms] * len(batch.rows) if self._online else None,
                now_ms=plan.at_ms,
                windows=self._windows.of([batch.numbers[i] for i in batch.good]) if self._windows else None,
            )
            outcomes = self._predictor.predict(request)
        rejection = {
            "model": plan.model,
            "version": route.version,
            "digest": route.digest,
            "role": route.role,
            "release": plan.release,
            "runtime": RUNTIME,
            "status": Status.REJECTED.value,
            "code": InvalidTable.code,
            "at": self._now(),
        }
        return Scored(batch, outcomes, ids, rejection)


def _routes(release: Release, version: str | None) -> list[Route]:
    """The packages that records go to: the one that is asked for alone, else the champion first."""
    if version is not None:
        return [release.find(version)]
    routes = [Route(release.champion.digest, release.champion.version, "champion")]
    if (challenger := release.challenger) is not None and challenger.mode == "canary":
        routes.append(Route(challenger.digest, challenger.version, "canary"))
    return routes


def _load(predictor: Predictor, confirmed: Confirmed, routes: Sequence[Route], *, exact: bool) -> list[Model]:
    name, models = confirmed.release.model, []
    for route in routes:
        served, model = predictor.load(confirmed, route, exact=exact)
        if served.digest != route.digest:
            reason = predictor.refusals.get(name, "it is not loaded yet")
            message = f"model '{name}': want {route.version}, which the job is pinned to, got none: {reason}"
            raise NotServable(message)
        models.append(model)
    return models
