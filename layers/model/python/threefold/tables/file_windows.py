"""A job's windows: replayed once when it is planned, read by its workers, and counted when it is complete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from threefold.errors import StorageUnavailable
from threefold.jobs import Files
from threefold.names import WORK_TAG
from threefold.tables import objects
from threefold.tables.history import History, decode_added, encode_added
from threefold.windows import EntityState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from mypy_boto3_s3 import S3Client

    from threefold.chunks import Chunk
    from threefold.counting import EventCounter
    from threefold.feature_table import FeatureTable
    from threefold.package import Manifest
    from threefold.tables.planner import Plan

_WORK: Final = dict([WORK_TAG])
_NUMBER_BYTES: Final = 8


class FileWindows:
    """Replays, and counts, the rows of jobs of models that have windows."""

    def __init__(
        self, s3: S3Client, bucket: str, counter: EventCounter, open_table: Callable[[], FeatureTable]
    ) -> None:
        """Make it.

        Args:
            s3: an S3 client.
            bucket: where jobs have their files.
            counter: knows what a model's events are counted for.
            open_table: gives the features table; called when it is needed first.
        """
        self._s3 = s3
        self._bucket = bucket
        self._counter = counter
        self._open_table = open_table

    def history(self, files: Files, manifests: Sequence[tuple[str, Manifest]], at_ms: int) -> History | None:
        """What takes in a file's rows, unless they were replayed by an earlier try, whose values stay.

        Args:
            files: the job's.
            manifests: of the packages that answer its rows, by digest; the champion's first.
            at_ms: when it was uploaded.
        """
        return None if objects.exists(self._s3, self._bucket, files.windows) else History(manifests, at_ms=at_ms)

    def replay(self, files: Files, history: History, *, alone: bool) -> None:
        """Replay a file and keep what came of it; done again, or by two at a time, the first one's stays.

        Args:
            files: the job's.
            history: with all rows.
            alone: the file is all there is, and not a part of the stream.
        """
        entities = history.entities()
        if alone:
            states = {entity: EntityState() for entity in entities}
        else:
            states, _ = self._open_table().read(files.model, entities, ())
        values, added = history.replay(states)
        objects.create(self._s3, self._bucket, files.added, b"".join(encode_added(added)), tags=_WORK)
        # Last, for it says that there is nothing more to do.
        objects.create(self._s3, self._bucket, files.windows, values.astype("<f8").tobytes(), tags=_WORK)

    def count(self, files: Files, *, deadline: float) -> None:
        """Count a complete job's rows, each entity's once.

        Raises:
            StorageUnavailable: there was no time for all of them; those that were counted stay so.
        """
        added = decode_added(b"".join(objects.read(self._s3, self._bucket, files.added)))
        windows, _ = self._counter.declared(files.model)
        source = f"job#{files.job}"
        if undone := self._open_table().merge(files.model, windows, added, source, deadline=deadline):
            message = f"features table: want the events of {len(added)} entities counted, got no time for {len(undone)}"
            raise StorageUnavailable(message)


class RowWindows:
    """The windows of a chunk's rows."""

    def __init__(self, s3: S3Client, bucket: str, plan: Plan, chunk: Chunk) -> None:
        """Read them.

        Args:
            s3: an S3 client.
            bucket: where jobs have their files.
            plan: the job's.
            chunk: whose rows.
        """
        self._columns = plan.windows or ()
        self._first = chunk.row
        width = len(self._columns) * _NUMBER_BYTES
        start = (chunk.row - 1) * width
        key = Files(plan.model, plan.job).windows
        content = b"".join(objects.read(s3, bucket, key, start=start, end=start + chunk.rows * width))
        self._values = np.frombuffer(content, "<f8").reshape(chunk.rows, len(self._columns))

    def of(self, numbers: Sequence[int]) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
        """The windows of some rows, by a package's digest and the feature."""
        part = self._values[np.array(numbers, np.intp) - self._first]
        found: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
        for column, (digest, name) in enumerate(self._columns):
            found.setdefault(digest, {})[name] = part[:, column]
        return found
