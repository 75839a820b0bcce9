"""Cancel and resume, by what they do to the jobs table, the results bucket and Step Functions."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import boto3
import pytest
from moto import mock_aws

from threefold.chunks import Chunk, Counts
from threefold.errors import StorageUnavailable, UnknownJob, WrongState
from threefold.job_control import JobControl, execution
from threefold.job_events import JobEvents
from threefold.jobs import Files, JobState, JobTable, Upload

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCOUNT: Final = "123456789012"
NOW_MS: Final = time.time_ns() // 1_000_000
UPLOAD: Final = Upload("inbox", "wine/a.csv", "v1", NOW_MS, 1, "")
FILES: Final = Files("wine", UPLOAD.job)
CHUNKS: Final = [Chunk(i, "inbox", "wine/a.csv", "v1", 9 * i, 9 * i + 9, 3 * i + 1, 3 * i + 2, 3) for i in range(3)]


class Account:
    """A jobs table, a results bucket and a state machine."""

    def __init__(self) -> None:
        self.s3 = boto3.client("s3")
        self.steps = boto3.client("stepfunctions")
        dynamodb = boto3.client("dynamodb")
        self.s3.create_bucket(Bucket="results", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        dynamodb.create_table(
            TableName="jobs",
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        )
        definition = json.dumps({"StartAt": "Wait", "States": {"Wait": {"Type": "Wait", "Seconds": 9, "End": True}}})
        self.machine = self.steps.create_state_machine(
            name="batch", definition=definition, roleArn=f"arn:aws:iam::{ACCOUNT}:role/states"
        )["stateMachineArn"]
        self.jobs = JobTable(dynamodb, "jobs", ttl_days=1)
        self.told: list[dict[str, Any]] = []
        self.events = JobEvents(self.jobs, self, stage="dev", results_bucket="results")
        self.control = JobControl(
            self.jobs, self.s3, self.steps, self.events, results_bucket="results", state_machine_arn=self.machine
        )

    def put_events(self, *, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803 - as boto3 has it
        self.told += [json.loads(entry["Detail"]) for entry in Entries]
        return {"FailedEntryCount": 0}

    def plan(self) -> str:
        """A job that is running."""
        job = str(self.jobs.begin(UPLOAD, NOW_MS)["job"])
        manifest = json.dumps([chunk.to_json() for chunk in CHUNKS])
        self.s3.put_object(Bucket="results", Key=FILES.manifest, Body=manifest.encode())
        self.jobs.note(job, rows=9, chunks=3)
        self.steps.start_execution(stateMachineArn=self.machine, name=job)
        self.jobs.move(job, JobState.RUNNING)
        return job

    def do(self, chunk: Chunk) -> None:
        for folder in ("parts", "rejects"):
            self.s3.put_object(Bucket="results", Key=FILES.part(folder, *chunk.id), Body=b"x")
        counts = {**asdict(Counts(3, 3)), "attempt": 1, "rest": {}, "parts_bytes": 1, "rejects_bytes": 1}
        self.jobs.chunks.put(UPLOAD.job, chunk.id, 1, counts, spent={})

    def executions(self) -> dict[str, str]:
        found = self.steps.list_executions(stateMachineArn=self.machine)["executions"]
        return {each["name"]: each["status"] for each in found}

    def read(self, key: str) -> Any:
        return json.loads(self.s3.get_object(Bucket="results", Key=key)["Body"].read())


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        yield Account()


def test_a_running_job_is_cancelled_and_its_execution_stopped(account: Account) -> None:
    job = account.plan()
    for _ in range(2):
        assert account.control.cancel(job)["state"] == "cancelled"
        assert account.executions() == {job: "ABORTED"}


def test_a_job_whose_execution_is_not_there_is_cancelled_all_the_same(account: Account) -> None:
    job = account.jobs.begin(UPLOAD, NOW_MS)["job"]
    assert account.control.cancel(job)["state"] == "cancelled"
    assert account.executions() == {}


@pytest.mark.parametrize("state", [JobState.COMPLETE, JobState.FAILED, JobState.INCOMPLETE])
def test_a_job_that_has_ended_cannot_be_cancelled(account: Account, state: JobState) -> None:
    job = account.plan()
    account.jobs.move(job, state)
    with pytest.raises(WrongState, match=f"want one that is planned or running, got one that is {state}"):
        account.control.cancel(job)
    assert account.executions() == {job: "RUNNING"}


def test_a_job_is_resumed_with_what_is_missing_alone(account: Account) -> None:
    job = account.plan()
    account.do(CHUNKS[1])
    account.control.cancel(job)
    item = account.control.resume(job)
    assert [item[name] for name in ("state", "execution", "resumes")] == ["running", execution(job, 1), 1]
    assert account.read(FILES.resumed(1)) == [CHUNKS[0].to_json(), CHUNKS[2].to_json()]
    assert account.executions() == {job: "ABORTED", f"{job}-1": "RUNNING"}
    arn = account.machine.replace("stateMachine", "execution") + f":{job}-1"
    assert json.loads(account.steps.describe_execution(executionArn=arn)["input"]) == {
        "job": job,
        "model": "wine",
        "manifest_bucket": "results",
        "manifest_key": FILES.resumed(1),
    }
    account.do(CHUNKS[0])
    account.control.cancel(job)
    assert set(account.executions().values()) == {"ABORTED"}
    assert account.control.resume(job)["resumes"] == 2
    assert account.read(FILES.resumed(2)) == [CHUNKS[2].to_json()]


@pytest.mark.parametrize("state", [JobState.PLANNED, JobState.RUNNING, JobState.COMPLETE])
def test_a_job_that_goes_on_or_is_complete_cannot_be_resumed(account: Account, state: JobState) -> None:
    job = account.plan() if state != JobState.PLANNED else account.jobs.begin(UPLOAD, NOW_MS)["job"]
    if state == JobState.COMPLETE:
        account.jobs.move(job, state)
    with pytest.raises(
        WrongState, match=f"want one that failed, is incomplete or was cancelled, got one that is {state}"
    ):
        account.control.resume(job)


def test_a_refused_upload_cannot_be_resumed(account: Account) -> None:
    account.jobs.begin(UPLOAD, NOW_MS, state="failed", reason="no header")
    with pytest.raises(WrongState, match="want one that was planned, got one that was failed before"):
        account.control.resume(UPLOAD.job)


def test_a_job_whose_working_files_are_gone_cannot_be_resumed(account: Account) -> None:
    job = account.plan()
    account.jobs.move(job, JobState.FAILED)
    account.s3.delete_object(Bucket="results", Key=FILES.manifest)
    with pytest.raises(WrongState, match="want its working files, kept for 7 days, got none; upload it again"):
        account.control.resume(job)
    assert (account.jobs.find(job) or {})["state"] == "failed"


def test_a_job_that_cannot_be_started_is_failed_and_can_be_resumed_again(account: Account) -> None:
    job = account.plan()
    account.jobs.move(job, JobState.INCOMPLETE)
    gone = account.machine.replace("batch", "gone")
    broken = JobControl(
        account.jobs, account.s3, account.steps, account.events, results_bucket="results", state_machine_arn=gone
    )
    with pytest.raises(StorageUnavailable, match="want its execution started"):
        broken.resume(job)
    item = account.jobs.find(job) or {}
    assert (item["state"], item["reason"].partition(":")[0]) == ("failed", "its execution could not be started")
    assert [told["state"] for told in account.told] == ["failed"]
    assert account.control.resume(job)["execution"] == f"{job}-2"


def test_a_planned_job_that_nothing_runs_is_told_of_when_it_is_cancelled(account: Account) -> None:
    job = str(account.jobs.begin(UPLOAD, NOW_MS)["job"])
    account.control.cancel(job)
    account.control.cancel(job)
    assert [(told["job"], told["state"]) for told in account.told] == [(job, "cancelled")]


def test_a_job_of_no_chunks_is_not_resumed(account: Account) -> None:
    job = str(account.jobs.begin(UPLOAD, NOW_MS)["job"])
    account.jobs.note(job, rows=0, chunks=0)
    account.jobs.move(job, JobState.CANCELLED)
    with pytest.raises(WrongState, match="upload it again"):
        account.control.resume(job)


def test_nobody_knows_a_job_that_is_not_there(account: Account) -> None:
    for act in (account.control.cancel, account.control.resume):
        with pytest.raises(UnknownJob, match="got 'nothing'"):
            act("nothing")


def test_executions_of_a_job_have_names_that_step_functions_takes() -> None:
    names = [execution(UPLOAD.job, times) for times in (0, 1, 999)]
    assert names[0] == UPLOAD.job
    assert len(set(names)) == 3
    assert max(map(len, names)) <= 80
