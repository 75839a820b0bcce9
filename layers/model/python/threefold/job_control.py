"""What an operator does with a job that is there: cancel it, or take it up again where it stopped."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final

from botocore.exceptions import BotoCoreError, ClientError

from threefold.chunks import Chunk
from threefold.errors import StorageUnavailable, UnknownJob, WrongState, shown
from threefold.jobs import RESUMABLE, Files, JobState, iso
from threefold.names import WORK_DAYS, WORK_TAG
from threefold.tables import objects
from threefold.tables.pending import other_collection
from threefold.tables.progress import read_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_stepfunctions import SFNClient

    from threefold.items import Values
    from threefold.job_events import JobEvents
    from threefold.jobs import JobTable

# https://docs.aws.amazon.com/step-functions/latest/apireference/API_StopExecution.html: what says that it is over.
_OVER: Final = frozenset({"ExecutionDoesNotExist", "ValidationException"})


class JobControl:
    """Cancels and resumes jobs, with the rights of whoever holds the clients."""

    def __init__(  # noqa: PLR0913 - its collaborators, each by name
        self,
        jobs: JobTable,
        s3: S3Client,
        steps: SFNClient,
        events: JobEvents,
        *,
        results_bucket: str,
        state_machine_arn: str,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Make a control.

        Args:
            jobs: the jobs table.
            s3: an S3 client.
            steps: a Step Functions client.
            events: who is told of jobs that end here.
            results_bucket: where jobs have their files.
            state_machine_arn: what runs them.
            now_ms: milliseconds since 1970.
        """
        self._jobs = jobs
        self._s3 = s3
        self._steps = steps
        self._events = events
        self._bucket = results_bucket
        self._state_machine_arn = state_machine_arn
        self._now_ms = now_ms

    def cancel(self, job: str) -> Values:
        """Stop a job that is planned or running; what is done stays. One that is cancelled stays so.

        Returns:
            The job's item.

        Raises:
            UnknownJob: there is none.
            WrongState: it has ended.
        """
        item = self._find(job)
        if item["state"] != JobState.CANCELLED:
            values = {"code": JobState.CANCELLED.value, "reason": "cancelled", "finished_at": iso(self._now_ms())}
            if not self._jobs.move(job, JobState.CANCELLED, **values):
                state = self._find(job)["state"]
                if state != JobState.CANCELLED:
                    message = f"job {job}: want one that is planned or running, got one that is {state}"
                    raise WrongState(message)
        arn = self._state_machine_arn.replace(":stateMachine:", ":execution:")
        stopped = False
        for name in (execution(job, times) for times in range(item.get("resumes", 0) + 1)):
            try:
                self._steps.stop_execution(executionArn=f"{arn}:{name}", cause=f"job {job} was cancelled")
                stopped = True
            except ClientError as error:
                if error.response["Error"]["Code"] not in _OVER:
                    raise
        item = self._find(job)
        if not stopped:
            # Step Functions tells the batch function of what it stopped, and that tells of the job; of this nobody.
            self._events.tell(item)
        return item

    def resume(self, job: str) -> Values:
        """Take a job up again that failed, came out incomplete or was cancelled: what is done is not done again.

        Returns:
            The job's item.

        Raises:
            UnknownJob: there is none.
            WrongState: it is not one of those, it was never planned, or its working files are gone.
            StorageUnavailable: it could not be started; it can be tried again.
        """
        item = self._find(job)
        if item["state"] not in RESUMABLE:
            message = (
                f"job {job}: want one that failed, is incomplete or was cancelled, got one that is {item['state']}"
            )
            raise WrongState(message)
        if not item.get("chunks"):
            message = f"job {job}: want one that was planned, got one that was {item['state']} before; upload it again"
            raise WrongState(message)
        if (other := other_collection(self._jobs, item)) is not None:
            message = f"job {job}: want its pending records left to it, got them collected again as {other}"
            raise WrongState(message)
        files, times = Files(item["model"], job), item.get("resumes", 0) + 1
        missing = self._missing(files)
        manifest, name = files.resumed(times), execution(job, times)
        objects.write_json(
            self._s3, self._bucket, manifest, [chunk.to_json() for chunk in missing], tags=dict([WORK_TAG])
        )
        now = iso(self._now_ms())
        after = item.get("execution", job)
        if not self._jobs.resume(job, after=after, execution=name, resumes=times, resumed_at=now):
            message = f"job {job}: want it left alone while it is resumed, got it {self._find(job)['state']}"
            raise WrongState(message)
        start = {"job": job, "model": item["model"], "manifest_bucket": self._bucket, "manifest_key": manifest}
        try:
            self._steps.start_execution(stateMachineArn=self._state_machine_arn, name=name, input=json.dumps(start))
        except (BotoCoreError, ClientError) as error:
            reason = f"its execution could not be started: {error}"
            self._jobs.move(job, JobState.FAILED, execution=name, code=StorageUnavailable.code, reason=reason)
            self._events.tell(self._find(job))
            message = f"job {job}: want its execution started, got {error}"
            raise StorageUnavailable(message) from error
        return self._find(job)

    def _missing(self, files: Files) -> list[Chunk]:
        try:
            missing = read_progress(self._s3, self._bucket, self._jobs, files).missing
            # Where all is done but the finish, a chunk is done again: a map over nothing is not ours to try.
            manifest = [] if missing else objects.read_json(self._s3, self._bucket, files.manifest)
        except self._s3.exceptions.NoSuchKey as error:
            message = f"job {files.job}: want its working files, kept for {WORK_DAYS} days, got none; upload it again"
            raise WrongState(message) from error
        return missing or [Chunk.from_json(manifest[-1])]

    def _find(self, job: str) -> Values:
        item = self._jobs.find(job)
        if item is None:
            message = f"job: want one that is there, got {shown(job)}"
            raise UnknownJob(message)
        return item


def execution(job: str, times: int) -> str:
    """The name of the execution that took a job up again for the nth time; the first one's is the job's."""
    return f"{job}-{times}" if times else job
