"""An account with a batch function in it, and what S3 and Step Functions would do there; moto serves it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_plus
from urllib.request import Request, urlopen

import boto3
import pytest
from botocore.client import BaseClient

from functions import batch
from threefold.job_control import JobControl
from threefold.job_events import JobEvents
from threefold.jobs import Upload
from threefold.outcomes import from_attribute
from threefold.package import Output
from threefold.registry import Registry, open_store
from threefold.release import Release, Version
from threefold.settings import Settings
from threefold.signature import Feature

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from threefold.package import Package

SETTINGS: Final = Settings(
    door="batch",
    model_bucket="models",
    results_bucket="results",
    inbox_bucket="inbox",
    predictions_table="predictions",
    jobs_table="jobs",
    features_table="features",
    state_machine_arn="arn:aws:states:eu-central-1:123456789012:stateMachine:batch",
    refresh_seconds=0.0,
)
FEATURES: Final = (
    Feature(name="a", type="float32", max=1000),
    Feature(name="b", type="float32", missing=0.5),
)
CONTEXT: Final = SimpleNamespace(get_remaining_time_in_millis=lambda: 600_000)


@dataclass
class World:
    """The account, and what Step Functions would do in it."""

    registry: Registry
    s3: Any
    dynamodb: Any
    steps: Any
    events: Any
    sqs: Any
    queue: str

    def upload(
        self, body: bytes | str, key: str = "small/rows.csv", options: dict[str, str] | None = None, **changes: Any
    ) -> dict[str, Any]:
        """Put an object and return the event that S3 sends of it."""
        content = body.encode() if isinstance(body, str) else body
        version = self.s3.put_object(Bucket="inbox", Key=key, Body=content, Metadata=options or {})["VersionId"]
        return self.event(key, version, len(content), **changes)

    def event(self, key: str, version: str, size: int = 1, **changes: Any) -> dict[str, Any]:
        entry = {"key": quote_plus(key, safe="/"), "size": size, "versionId": version, "sequencer": "0055"}
        record = {
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "eventTime": "2026-01-02T03:04:05.678Z",
            "s3": {"bucket": {"name": "inbox"}, "object": {**entry, **changes}},
        }
        return {"Records": [record]}

    def plan(self, body: bytes | str, key: str = "small/rows.csv", **options: str) -> str:
        event = self.upload(body, key, options)
        assert self.send(event) == {}
        return Upload.from_event(event["Records"][0]).job

    def send(self, event: dict[str, Any]) -> Any:
        return batch.handler(event, CONTEXT)

    def start(self, execution: str) -> dict[str, Any]:
        """The input of an execution."""
        arn = SETTINGS.state_machine_arn.replace("stateMachine", "execution") + f":{execution}"
        return json.loads(self.steps.describe_execution(executionArn=arn)["input"])

    def chunk_events(self, job: str, execution: str | None = None) -> list[dict[str, Any]]:
        start = self.start(execution or job)
        manifest = self.s3.get_object(Bucket=start["manifest_bucket"], Key=start["manifest_key"])
        common = {"action": "chunk", "job": start["job"], "model": start["model"], "execution": execution or job}
        return [{**common, "chunk": chunk} for chunk in json.loads(manifest["Body"].read())]

    def run(self, job: str, execution: str | None = None) -> dict[str, Any]:
        """What the state machine does; returns the job's item."""
        for event in self.chunk_events(job, execution):
            self.chunk(event)
        self.finish(job, execution)
        return self.job(job)

    def chunk(self, event: dict[str, Any], context: Any = CONTEXT) -> int:
        """What the state machine does for one item of the manifest; returns how many invocations it took."""
        for count in itertools.count(1):
            answer = batch.handler(json.loads(json.dumps(event)), context)
            if "rest" not in answer:
                assert answer == {}
                return count
            event |= {"chunk": answer["rest"]}
        raise AssertionError

    def finish(self, job: str, execution: str | None = None) -> str:
        name = execution or job
        event = {"action": "finish", "job": job, "model": self.start(name)["model"], "execution": name}
        return str(self.send(event)["state"])

    def told(self) -> list[dict[str, Any]]:
        """What was told on the bus since the last look."""
        found = []
        while messages := self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
                found.append(json.loads(message["Body"])["detail"])
        return found

    def control(self) -> JobControl:
        arn = SETTINGS.state_machine_arn
        events = JobEvents(batch._jobs(), self.events, stage="dev", results_bucket="results")
        return JobControl(batch._jobs(), self.s3, self.steps, events, results_bucket="results", state_machine_arn=arn)

    def score(self, body: bytes | str, key: str = "small/rows.csv", **options: str) -> dict[str, Any]:
        return self.run(self.plan(body, key, **options))

    def job(self, job: str) -> dict[str, Any]:
        key = {"pk": {"S": f"job#{job}"}, "sk": {"S": "job"}}
        item = self.dynamodb.get_item(TableName="jobs", Key=key)["Item"]
        return {name: from_attribute(value) for name, value in item.items()}

    def text(self, item: dict[str, Any], which: str = "predictions") -> bytes:
        return bytes(self.s3.get_object(Bucket="results", Key=item[f"{which}_key"])["Body"].read())

    def rows(self, item: dict[str, Any], which: str = "predictions", delimiter: str = ",") -> list[dict[str, str]]:
        text = self.text(item, which).decode()
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))

    def items(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The predictions table."""
        found = self.dynamodb.get_paginator("scan").paginate(TableName="predictions")
        items = [{k: from_attribute(v) for k, v in item.items()} for page in found for item in page["Items"]]
        return {(item["pk"], item["sk"]): item for item in items}

    def release(self, package: Package, **changes: Any) -> str:
        self.registry.packages.publish(package)
        name = package.manifest.name
        current = self.registry.current(name)
        release = Release(model=name, champion=Version(package.digest, package.manifest.version), **changes)
        self.registry.write_release(release, replaces=current and current[1])
        return self.registry.release(name).id


def restart() -> None:
    """What a new execution environment has cached: nothing."""
    for cached in vars(batch).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


@pytest.fixture(name="world")
def open_world(aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Package) -> Iterator[World]:
    for name, value in SETTINGS.to_env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    restart()
    s3, dynamodb, steps, events, sqs = (
        boto3.client(name) for name in ("s3", "dynamodb", "stepfunctions", "events", "sqs")
    )
    for bucket in ("models", "inbox", "results"):
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name})
    for bucket in ("models", "inbox"):
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for table in ("predictions", "jobs"):
        dynamodb.create_table(
            TableName=table,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
        )
    dynamodb.create_table(
        TableName="features",
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
    )
    definition = json.dumps({"StartAt": "Done", "States": {"Done": {"Type": "Succeed"}}})
    role = "arn:aws:iam::123456789012:role/states"
    steps.create_state_machine(name="batch", definition=definition, roleArn=role)
    registry = Registry(open_store("models", Settings.from_env()), cache=tmp_path / "packages", refresh_seconds=0.0)
    queue = sqs.create_queue(QueueName="told")["QueueUrl"]
    events.put_rule(Name="told", EventPattern=json.dumps({"source": ["threefold"], "detail-type": ["Job finished"]}))
    target = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_targets(Rule="told", Targets=[{"Id": "told", "Arn": target}])
    world = World(registry, s3, dynamodb, steps, events, sqs, queue)
    world.release(small)
    yield world
    for client in (s3, dynamodb, steps, events, sqs):
        client.close()
    with urlopen(Request(f"{aws}/moto-api/reset", method="POST")):
        pass


@pytest.fixture(name="small", scope="session")
def small_package(make_package: Any, graphs: Any) -> Package:
    """value = a + 10 b."""
    return make_package(
        graphs.linear([1.0, 10.0]),
        features=FEATURES,
        output=Output(kind="regression", value="value"),
        key="id",
    )


def chunks_of(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setenv("THREEFOLD_CHUNK_BYTES", str(size))
    restart()


TEN: Final = "id,note,a,b\n" + "".join(f'k{i},"note, {i}",{i},1\n' for i in range(10))


class Cut(Exception):
    """The process ended here."""


class Faults:
    """Cuts the function short at one of its calls to AWS, before AWS hears of it or after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._armed: tuple[int, bool] | None = None
        self._lock = threading.Lock()
        self.calls: list[str] = []
        make = BaseClient._make_api_call

        def call(client: Any, name: str, params: Any) -> Any:
            with self._lock:
                armed = self._armed
                if armed is not None:
                    self.calls.append(name)
                hit = armed is not None and len(self.calls) == armed[0]
            if hit and armed is not None and armed[1]:
                raise Cut(name)
            try:
                return make(client, name, params)
            finally:
                # Whatever the answer was.
                if hit:
                    raise Cut(name)

        monkeypatch.setattr(BaseClient, "_make_api_call", call)

    def cut(self, world: World, event: dict[str, Any], call: int, *, before: bool) -> str | None:
        """Send an event, and cut its function at a call; the call's name, or None if it has fewer."""
        self.calls, self._armed = [], (call, before)
        try:
            world.send(json.loads(json.dumps(event)))
        except Cut:
            return self.calls[call - 1]
        finally:
            self._armed = None
            # What was in the process's memory is gone with it.
            batch._telemetry.cache_clear()
        return None


class Clock:
    """Time that can be made to pass."""

    def __init__(self) -> None:
        self.passed = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.passed


def worker_with(clock: Clock) -> None:
    """Give the function a worker that goes by a clock."""
    batch._worker()._clock = clock


def results(world: World, item: dict[str, Any]) -> tuple[bytes, bytes, dict[str, Any]]:
    """All that a job comes to, but for its id and its times."""
    job = item["job"].encode()
    texts = [world.text(item, which).replace(job, b"JOB") for which in ("predictions", "rejects")]
    stored = {
        f"{pk}/{sk}".replace(item["job"], "JOB"): {
            name: value.replace(item["job"], "JOB") if isinstance(value, str) else value
            for name, value in found.items()
            if name not in {"at", "expires"}
        }
        for (pk, sk), found in world.items().items()
        if item["job"] in sk
    }
    return texts[0], texts[1], stored
