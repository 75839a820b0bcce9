"""One invocation's work on a chunk: rows scored, stored and written out for as long as there is time."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from threefold.chunks import Counts
from threefold.errors import StorageUnavailable
from threefold.jobs import Files, iso
from threefold.names import WORK_TAG
from threefold.outcomes import MAXIMUM_ITEM_BYTES, UNIT_BYTES, Place, item_bytes, lighten
from threefold.prediction import Status
from threefold.tables.file_windows import RowWindows
from threefold.tables.objects import ObjectWriter, read, write_json
from threefold.tables.progress import PARTS, REJECTS
from threefold.tables.reader import ROWS_PER_BATCH
from threefold.tables.results import ResultRows
from threefold.tables.scoring import ChunkScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_s3 import S3Client

    from threefold.chunks import Chunk
    from threefold.outcomes import OutcomeTable
    from threefold.predictor import Predictor
    from threefold.tables.planner import Plan
    from threefold.tables.reader import Batch
    from threefold.tables.scoring import Scored

# A batch that takes longer is made smaller: what is lost when a worker is killed, or told too late to stop, is a batch.
BATCH_SECONDS: Final = 30.0
# How long a row takes is seen on so many.
FIRST_ROWS: Final = 16
# How often a worker looks whether its job goes on.
LOOK_SECONDS: Final = 5.0
# The next rows may take so many times as long as the last.
_SLOWER: Final = 1.5
# A batch is so many bytes of items or of results: measured, as Python's objects they take 20 to 30 times as much.
BATCH_BYTES: Final = 4 * 1024**2
# And it grows so many times at the most: the next rows may be heavier than the last.
_GROWTH: Final = 8


@dataclass(frozen=True, slots=True)
class Work:
    """What became of a chunk in one invocation.

    Attributes:
        counts: of the rows that are done.
        rest: what there was no time for.
        sizes: of the files that were written, in bytes, as `<folder>_bytes`.
        written_items: how many outcomes went to the predictions table.
        left: whether it was left because the job does not go on.
    """

    counts: Counts
    rest: Chunk | None
    sizes: dict[str, int]
    written_items: int
    left: bool = False

    def values(self) -> dict[str, Any]:
        """What the chunk's item says of it."""
        return {**asdict(self.counts), **self.sizes, "rest": self.rest.to_json() if self.rest else {}}


@dataclass(frozen=True, slots=True)
class Weight:
    """What a batch of outcomes weighs.

    Attributes:
        rows: how many they are.
        size_bytes: of their items, or of their lines in the result file.
        units: of DynamoDB, to write them.
    """

    rows: int
    size_bytes: int = 0
    units: int = 0


class ChunkWorker:
    """Scores chunks of any job."""

    def __init__(  # noqa: PLR0913 - its collaborators, each by name
        self,
        predictor: Predictor,
        outcomes: OutcomeTable,
        s3: S3Client,
        *,
        results_bucket: str,
        writes_per_second: float,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Make a worker.

        Args:
            predictor: the way to score.
            outcomes: the predictions table.
            s3: an S3 client.
            results_bucket: where files go.
            writes_per_second: the pace of the table.
            clock: seconds that never go back.
            now_ms: the time of day, milliseconds since 1970.
        """
        self._predictor = predictor
        self._outcomes = outcomes
        self._s3 = s3
        self._bucket = results_bucket
        self._writes_per_second = writes_per_second
        self._clock = clock
        self._now_ms = now_ms

    def work(self, plan: Plan, chunk: Chunk, *, deadline: float, goes_on: Callable[[], bool]) -> Work:
        """Score a chunk, or as much of it as there is time for. Done again, it lands on the same items and files.

        Args:
            plan: the job's.
            chunk: whose rows.
            deadline: on the clock.
            goes_on: whether the job does, asked now and then.

        Returns:
            What became of it; nothing but what was written if the job does not go on.

        Raises:
            StorageUnavailable: there was no time for a single batch.
        """
        try:
            return self._work(plan, chunk, deadline, goes_on)
        except _Stopped as stopped:
            return Work(Counts(), chunk, {}, stopped.written, left=True)

    def _work(self, plan: Plan, chunk: Chunk, deadline: float, goes_on: Callable[[], bool]) -> Work:
        windows = RowWindows(self._s3, self._bucket, plan, chunk) if plan.windows else None
        scorer = ChunkScorer(self._predictor, plan, lambda: iso(self._now_ms()), windows)
        rows, files = ResultRows(plan.header, plan.kind), Files(plan.model, plan.job)
        stream = read(self._s3, chunk.bucket, chunk.key, version=chunk.version, start=chunk.start, end=chunk.end)
        watch = _Watch(self._clock, deadline, self._writes_per_second if plan.store else None)
        counts, rest, written = Counts(), chunk, 0
        with self._writer(files, PARTS, chunk) as results, self._writer(files, REJECTS, chunk) as rejects:
            if chunk.id == (0, 0):
                results.write(rows.head())
                rejects.write(rows.rejects_head())
            for scored in watch.over(scorer.score(stream, chunk, watch.most)):
                batch, predictions = scored.batch, scored.predictions()
                weight = Weight(len(predictions))
                try:
                    watch.check(chunk, counts)
                    if plan.store:
                        weight = self.store(plan, batch, predictions, deadline)
                        written += weight.rows
                except StorageUnavailable:
                    if not counts.rows:
                        raise
                    break
                joined = rows.joined(batch, predictions)
                results.write(joined)
                watch.weigh(replace(weight, size_bytes=max(weight.size_bytes, len(joined))))
                rejects.write(rows.rejected(batch, predictions))
                ends = [prediction["status"] for prediction in predictions]
                counts += Counts(len(ends), **{status.value: ends.count(status.value) for status in Status})
                rest = _after(chunk, batch, counts.rows)
                if rest.rows and not watch.leaves(len(ends), rest.rows):
                    break
                if watch.looks() and not goes_on():
                    # An error to the writers: of a job that does not go on, no files are wanted.
                    raise _Stopped(written)
        sizes = {f"{PARTS}_bytes": results.size_bytes, f"{REJECTS}_bytes": rejects.size_bytes}
        return Work(counts, rest if rest.rows else None, sizes, written)

    def store(self, plan: Plan, batch: Batch, predictions: list[dict[str, Any]], deadline: float) -> Weight:
        """Write outcomes to the predictions table; what is too large for it goes to the results bucket.

        Args:
            plan: the job's.
            batch: the records.
            predictions: one each; of a large one, the pointer stands in the place of what is large.
            deadline: on the clock.

        Returns:
            What was written.

        Raises:
            StorageUnavailable: not all of them could be.
        """
        now_ms, table = self._now_ms(), self._outcomes
        items, sizes = [], []
        for number, prediction in zip(batch.numbers, predictions, strict=True):
            place = Place(
                plan.model, prediction.get("key") or prediction["id"], plan.at_ms, f"{plan.job}#{number:010d}"
            )
            item = table.item(place, prediction, now_ms=now_ms)
            size = item_bytes(item)
            if size > MAXIMUM_ITEM_BYTES:
                if self._clock() > deadline:
                    message = (
                        f"predictions table: want {len(predictions)} outcomes, got no time for that of row {number}"
                    )
                    raise StorageUnavailable(message)
                key = Files(plan.model, plan.job).large(number)
                write_json(self._s3, self._bucket, key, prediction)
                prediction.update(dict.fromkeys(lighten(item, key), key))
            items.append(item)
            # With what was large: it is in memory with the others.
            sizes.append(size)
        if unwritten := table.write(items, deadline=deadline):
            message = f"predictions table: want {len(items)} outcomes written, got no time for {len(unwritten)} of them"
            raise StorageUnavailable(message)
        units = sum(-(-min(size, MAXIMUM_ITEM_BYTES) // UNIT_BYTES) for size in sizes)
        return Weight(len(items), sum(sizes), units)

    def _writer(self, files: Files, folder: str, chunk: Chunk) -> ObjectWriter:
        return ObjectWriter(self._s3, self._bucket, files.part(folder, *chunk.id), tags=dict([WORK_TAG]))


class _Stopped(Exception):
    """The job does not go on."""

    def __init__(self, written: int) -> None:
        super().__init__()
        self.written = written


class _Watch:
    """How much time there is, and how many rows fit into it."""

    def __init__(self, clock: Callable[[], float], deadline: float, units_per_second: float | None) -> None:
        self._clock = clock
        self._deadline = deadline
        # Of the table; it has none if nothing goes there.
        self._units_per_second = units_per_second
        self._limit = self._paced(1.0)
        self._most = min(FIRST_ROWS, self._limit)
        self._began = self._looked = clock()

    def most(self) -> int:
        """How many rows the next batch may have."""
        return self._most

    def over(self, batches: Iterator[Scored]) -> Iterator[Scored]:
        """The batches, each timed while it is scored."""
        while (scored := self._next(batches)) is not None:
            yield scored

    def _next(self, batches: Iterator[Scored]) -> Scored | None:
        began = self._clock()
        scored = next(batches, None)
        seconds = self._clock() - began
        if scored is not None and seconds > 0:
            fit = int(BATCH_SECONDS * scored.batch.count / seconds)
            self._most = max(1, min(self._limit, _GROWTH * scored.batch.count, fit))
        return scored

    def weigh(self, weight: Weight) -> None:
        """See how many such rows fit into memory, and into a batch's time at the table's pace."""
        by_bytes = BATCH_BYTES * weight.rows // max(1, weight.size_bytes)
        self._limit = max(1, min(self._paced(max(1.0, weight.units / weight.rows)), by_bytes))
        self._most = min(self._most, self._limit)

    def _paced(self, units_per_row: float) -> int:
        """As many rows as a batch may have at the table's pace."""
        if self._units_per_second is None:
            return ROWS_PER_BATCH
        return max(1, min(ROWS_PER_BATCH, int(self._units_per_second * BATCH_SECONDS / units_per_row)))

    def check(self, chunk: Chunk, counts: Counts) -> None:
        """See that there is any time left.

        Raises:
            StorageUnavailable: there is none.
        """
        if self._clock() > self._deadline:
            message = f"chunk {chunk.number}: want {chunk.rows} rows scored, got no time after {counts.rows}"
            raise StorageUnavailable(message)

    def leaves(self, done: int, left: int) -> bool:
        """Whether there is time for another batch, as long as the last one took a row.

        Args:
            done: the rows of the last batch.
            left: the rows that are left.
        """
        now = self._clock()
        seconds, self._began = now - self._began, now
        if seconds > 0:
            fit = int((self._deadline - now) * done / (seconds * _SLOWER))
            self._most = max(1, min(self._most, fit))
            return fit >= min(FIRST_ROWS, self._limit, left)
        return now < self._deadline

    def looks(self) -> bool:
        """Whether it is time to look up."""
        now = self._clock()
        if now < self._looked + LOOK_SECONDS:
            return False
        self._looked = now
        return True


def _after(chunk: Chunk, batch: Batch, rows: int) -> Chunk:
    """What is left of a chunk after a batch, when so many of its rows are done."""
    start, row, line = batch.end
    return replace(chunk, start=start, row=row, line=line, rows=chunk.rows - rows, part=chunk.part + 1)
