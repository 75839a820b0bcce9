"""The event that says a job has ended, once for each end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Protocol

from threefold.errors import StorageUnavailable
from threefold.jobs import ENDED, JobState

if TYPE_CHECKING:
    from threefold.items import Values
    from threefold.jobs import JobTable

SOURCE: Final = "threefold"
DETAIL_TYPE: Final = "Job finished"
_COUNTS: Final = ("rows", "predicted", "abstained", "held", "rejected")


class Bus(Protocol):
    """An EventBridge client, as far as it is used here."""

    def put_events(self, *, Entries: Any) -> Any:  # noqa: ANN401, N803 - as boto3 has it
        """Send events."""


class JobEvents:
    """Tells the account's default bus of EventBridge."""

    def __init__(self, jobs: JobTable, client: Bus, *, stage: str, results_bucket: str) -> None:
        """Make a teller.

        Args:
            jobs: the jobs table.
            client: an EventBridge client.
            stage: whose jobs they are.
            results_bucket: where results are.
        """
        self._jobs = jobs
        self._client = client
        self._stage = stage
        self._results_bucket = results_bucket

    def tell(self, item: Values) -> None:
        """Tell of a job's end, unless it has been told.

        Who is cut short between the event and the note of it tells twice; nobody never tells.

        Args:
            item: the job's.

        Raises:
            StorageUnavailable: EventBridge did not take it.
        """
        job, state = item["job"], JobState(item["state"])
        if state not in ENDED or item.get("announced") == state:
            return
        entry: Any = {"Source": SOURCE, "DetailType": DETAIL_TYPE, "Detail": json.dumps(self.detail(item))}
        answer = self._client.put_events(Entries=[entry])
        if answer["FailedEntryCount"]:
            message = f"job {job}: want its end told, got {answer['Entries'][0].get('ErrorMessage')}"
            raise StorageUnavailable(message)
        self._jobs.add(job, state, announced=state.value)

    def detail(self, item: Values) -> dict[str, Any]:
        """What is told."""
        found = {"stage": self._stage, "job": item["job"], "model": item["model"], "state": item["state"]}
        found |= {name: item.get(name, 0) for name in _COUNTS}
        for name in ("predictions_key", "rejects_key", "reason"):
            if item.get(name):
                found[name] = item[name]
        return found | {"results_bucket": self._results_bucket}
