"""What an operator asks of jobs: which there are, one by the beginning of its id, to stop or to go on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from threefold.errors import UnknownJob, WrongState, shown
from threefold.job_control import JobControl
from threefold.job_events import JobEvents
from threefold.jobs import ENDED, JobTable
from threefold_ops.doors import Inbox
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from threefold.items import Values
    from threefold_ops.system import System
    from threefold_ops.target import Target

# How many of each model's newest jobs the beginning of an id is looked for among.
RECENT: Final = 100
_ID: Final = re.compile(r"[0-9a-f]{6,32}")
_ID_LENGTH: Final = 32


class JobDesk:
    """A system's jobs, with the operator's own rights.

    Attributes:
        inbox: where files come in and results go out.
    """

    def __init__(self, system: System, target: Target, stage: str) -> None:
        """Make a desk for the system of a stage."""
        self.inbox = Inbox(system, target)
        self._system = system
        self._jobs = JobTable(target.client("dynamodb"), system.jobs_table, ttl_days=0)
        self._control = JobControl(
            self._jobs,
            target.client("s3"),
            target.client("stepfunctions"),
            JobEvents(self._jobs, target.client("events"), stage=stage, results_bucket=system.results_bucket),
            results_bucket=system.results_bucket,
            state_machine_arn=system.state_machine_arn,
        )

    def list(self, model: str | None, *, limit: int) -> list[Values]:
        """The newest jobs, newest first: of one model, or of all that are published."""
        models = [model] if model is not None else [one["name"] for one in self._system.models]
        found = [job for name in models for job in self._jobs.list(name, limit=limit)]
        return sorted(found, key=lambda job: str(job["planned_at"]), reverse=True)[:limit]

    def find(self, text: str) -> Values:
        """A job by its id, or by a beginning of it that no other recent job has.

        Raises:
            OperatorError: it is no id, or several jobs begin so.
            UnknownJob: there is none.
        """
        if not _ID.fullmatch(text):
            raise OperatorError(f"job: want an id, or 6 characters or more that it begins with, got {text!r}")
        if len(text) == _ID_LENGTH:
            item = self._jobs.find(text)
            if item is None:
                raise UnknownJob(f"job: want one that is there, got {shown(text)}")
            return item
        recent = [job for one in self._system.models for job in self._jobs.list(one["name"], limit=RECENT)]
        found = [job for job in recent if job["job"].startswith(text)]
        if not found:
            raise UnknownJob(
                f"job: want the beginning of one of each model's newest {RECENT}, got {shown(text)}; say its whole id"
            )
        if len(found) > 1:
            raise OperatorError(f"job: want the beginning of one id, got that of {[job['job'] for job in found]}")
        return found[0]

    def cancel(self, text: str) -> Values:
        """Stop a job; see `JobControl.cancel`."""
        return self._control.cancel(self.find(text)["job"])

    def resume(self, text: str) -> Values:
        """Take a job up again where it stopped; see `JobControl.resume`."""
        return self._control.resume(self.find(text)["job"])

    def finished(self, text: str) -> Values:
        """A job that has result files.

        Raises:
            WrongState: it has none, or is at work on them.
        """
        job = self.find(text)
        if job["state"] not in ENDED or "predictions_key" not in job:
            raise WrongState(f"job {job['job']}: want one with results, got one that is {job['state']}")
        return job
