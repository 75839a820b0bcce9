"""How jobs end: finished, failed or stopped, with what there is to say of them, and told of once."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from threefold.jobs import Files, JobState, iso
from threefold.names import Metric
from threefold.outcomes import milliseconds
from threefold.tables import objects
from threefold.tables.planner import Plan
from threefold.tables.progress import PARTS, REJECTS, Progress, read_progress
from threefold.tables.results import ResultRows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mypy_boto3_s3 import S3Client

    from threefold.items import Values
    from threefold.job_events import JobEvents
    from threefold.jobs import JobTable
    from threefold.tables.file_windows import FileWindows
    from threefold.tables.pending import PendingRecords
    from threefold.telemetry import Telemetry

# A list of more chunks than this tells a reader nothing that their number does not.
_MAXIMUM_MISSING: Final = 100
SUPERSEDED: Final = "superseded"


class JobEndings:
    """Ends jobs; each act can come twice, and an execution that another one took the place of ends nothing."""

    def __init__(  # noqa: PLR0913 - its collaborators, each by name
        self,
        jobs: JobTable,
        s3: S3Client,
        events: JobEvents,
        pending: PendingRecords,
        telemetry: Telemetry,
        *,
        windows: FileWindows,
        results_bucket: str,
        memory_megabytes: int,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Make it.

        Args:
            jobs: the jobs table.
            s3: an S3 client.
            events: who is told.
            pending: what a complete job's upload may have been collected from.
            telemetry: logs and metrics.
            windows: counts what a complete job's rows were as events.
            results_bucket: where jobs have their files.
            memory_megabytes: of the workers; with their time it makes the cost.
            now_ms: milliseconds since 1970.
        """
        self._jobs = jobs
        self._s3 = s3
        self._events = events
        self._pending = pending
        self._telemetry = telemetry
        self._windows = windows
        self._bucket = results_bucket
        self._memory_megabytes = memory_megabytes
        self._now_ms = now_ms

    def finish(self, job: str, execution: str | None, *, deadline: float) -> str:
        """Put the parts together and see that every row that was read has its outcome; count those of a complete job.

        Args:
            job: its id.
            execution: the one that comes to its end.
            deadline: on the monotonic clock.

        Returns:
            The job's state, or SUPERSEDED.

        Raises:
            StorageUnavailable: there was no time for all of it.
        """
        item = self._jobs.find(job)
        if item is None or superseded(item, execution):
            return SUPERSEDED
        if item["state"] not in {JobState.COMPLETE, JobState.CANCELLED}:
            self._conclude(item, Files(item["model"], job), execution)
        self._count(job, deadline)
        ended = self.tell(job)
        if ended["state"] == JobState.COMPLETE:
            self._pending.clear(ended, self._now_ms())
        return str(ended["state"])

    def fail(self, job: str, error: Any, execution: str | None) -> None:  # noqa: ANN401 - what Step Functions caught
        """Say on the job that it failed, and why; what is there stays."""
        tried = self._jobs.chunks.of(job).values()
        failed = [item["reason"] for item in tried if "attempt" not in item and "reason" in item]
        caught = error if isinstance(error, dict) else {}
        reason = failed[0] if failed else _cause(caught.get("Cause"))
        self._move(job, JobState.FAILED, execution, str(caught.get("Error") or "error"), reason)

    def stop(self, detail: Mapping[str, Any]) -> None:
        """Note that an execution did not end by its own steps: it was stopped by hand, or failed beyond them.

        https://docs.aws.amazon.com/step-functions/latest/dg/eventbridge-integration.html
        """
        execution, status = str(detail["name"]), str(detail["status"])
        state = JobState.CANCELLED if status == "ABORTED" else JobState.FAILED
        reason = str(detail.get("cause") or f"its execution ended: {status}")
        self._move(execution.partition("-")[0], state, execution, str(detail.get("error") or status.lower()), reason)

    def tell(self, job: str) -> Values:
        """Tell of a job's end, if it has ended and was not told of; what was done of one cut short goes with it.

        Returns:
            The job's item.
        """
        item = self._jobs.find(job)
        if item is None:
            return {"job": job, "state": ""}
        if item["state"] in {JobState.FAILED, JobState.CANCELLED} and "chunks" in item and not item.get("announced"):
            files = Files(item["model"], job)
            values = self._account(item, read_progress(self._s3, self._bucket, self._jobs, files))
            self._jobs.add(job, JobState(item["state"]), **values)
            item |= values
        self._events.tell(item)
        return item

    def _conclude(self, item: Values, files: Files, execution: str | None) -> None:
        plan = Plan.from_json(objects.read_json(self._s3, self._bucket, files.plan))
        progress, rows = read_progress(self._s3, self._bucket, self._jobs, files), ResultRows(plan.header, plan.kind)
        objects.merge(self._s3, self._bucket, progress.files[PARTS], files.predictions, rows.head())
        objects.merge(self._s3, self._bucket, progress.files[REJECTS], files.rejects, rows.rejects_head())
        missing = sorted({chunk.number for chunk in progress.missing})
        state, code, reason = JobState.COMPLETE, "", ""
        if missing:
            state, lost = JobState.INCOMPLETE, sum(chunk.rows for chunk in progress.missing)
            code = state.value
            reason = f"rows: want {item['rows']} with an outcome each, got none of {lost} in {len(missing)} chunks"
        moved = self._jobs.move(
            files.job,
            state,
            execution=execution,
            **self._account(item, progress),
            missing=missing[:_MAXIMUM_MISSING],
            # A job that failed or was incomplete before may have become complete.
            code=code,
            reason=reason,
            predictions_key=files.predictions,
            rejects_key=files.rejects,
        )
        log = self._telemetry.logger
        log.info("job finished", job=files.job, model=files.model, missing=len(missing), moved=moved)

    def _count(self, job: str, deadline: float) -> None:
        """Count the rows of a complete job, if they are a part of the stream and were not counted before."""
        item = self._jobs.find(job)
        if item is None or item["state"] != JobState.COMPLETE or not item.get("counts") or "counted_at" in item:
            return
        self._windows.count(Files(item["model"], job), deadline=deadline)
        self._jobs.add(job, JobState.COMPLETE, counted_at=iso(self._now_ms()))

    def _account(self, item: Values, progress: Progress) -> Values:
        """What a job that ended says of its rows, its time and what it took."""
        now_ms = self._now_ms()
        seconds = max(0.001, (now_ms - milliseconds(item.get("started_at") or item["planned_at"])) / 1000)
        return {
            **asdict(progress.counts),
            **progress.spent,
            "rows": item["rows"],
            "finished_at": iso(now_ms),
            "seconds": round(seconds, 3),
            "rows_per_second": round(progress.counts.rows / seconds, 1),
            "memory_megabytes": self._memory_megabytes,
            # As AWS calls it.
            "architecture": "arm64" if platform.machine() in {"aarch64", "arm64"} else "x86_64",
        }

    def _move(self, job: str, state: JobState, execution: str | None, code: str, reason: str) -> None:
        if self._jobs.move(job, state, execution=execution, code=code, reason=reason, finished_at=iso(self._now_ms())):
            self._telemetry.logger.error("job stopped", job=job, state=state.value, code=code, reason=reason)
            self._telemetry.add(Metric.ERRORS, 1)
        self.tell(job)


def superseded(item: Mapping[str, Any], execution: str | None) -> bool:
    """Whether another execution took a job up since; those of an earlier release do not say their name."""
    return execution is not None and execution != item.get("execution", item["job"])


def _cause(cause: object) -> str:
    """The message in what Step Functions tells of a failed Lambda, without its traceback."""
    try:
        return str(json.loads(str(cause))["errorMessage"])
    except (ValueError, TypeError, KeyError):
        return str(cause or "a step failed")
