"""The batch door on an embedded AWS of its own, and what a long test needs to see and do there."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from threefold.chunks import ChunkTable
from threefold.job_control import JobControl
from threefold.job_events import JobEvents
from threefold.jobs import ENDED, JobState, JobTable, Upload
from threefold.outcomes import from_attribute
from threefold_ops import target as targets
from threefold_ops.local import emulator
from threefold_ops.paths import EMULATOR_PYTHON
from threefold_ops.system import System, deploy_system

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from threefold_ops.local.emulator import Emulator
    from threefold_ops.target import Target

MODEL: Final = "breast-cancer"
FUNCTION: Final = "threefold-dev-batch"
# What says when a row was scored, and not how.
TIMES: Final = ("at", "expires")
# docs/decisions/0009-agreement-up-to-rounding.md
ROUNDING: Final = 1e-5
_POLL_SECONDS: Final = 0.2
# A prediction's id, status and label, and then its score.
_SCORE: Final = re.compile(rb"(JOB-\d+,predicted,\w+,)([^,]+),")


@dataclass(frozen=True, slots=True)
class Results:
    """All that a job left, with the same word wherever its id stands.

    Attributes:
        predictions: the joined results, but for the scores.
        rejects: the rows that could not be scored.
        table: the predictions table's items by row, but for the scores.
        scores: those of both, by row; a graph that is called with other neighbors may round the last digit otherwise.
    """

    predictions: bytes
    rejects: bytes
    table: dict[int, dict[str, Any]]
    scores: tuple[list[float], list[float]]

    def check_same(self, other: Results) -> None:
        """See that there is no difference."""
        for part in ("predictions", "rejects", "table"):
            assert getattr(self, part) == getattr(other, part)
        for ours, theirs in zip(self.scores, other.scores, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=ROUNDING)


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory that one process ever held."""

    pid: int
    megabytes: float


@dataclass(frozen=True, slots=True)
class Door:
    """A running system's batch door."""

    emulator: Emulator
    target: Target
    system: System
    s3: Any = field(init=False)
    dynamodb: Any = field(init=False)
    steps: Any = field(init=False)
    jobs: JobTable = field(init=False)
    chunks: ChunkTable = field(init=False)

    def __post_init__(self) -> None:
        for name, service in (("s3", "s3"), ("dynamodb", "dynamodb"), ("steps", "stepfunctions")):
            object.__setattr__(self, name, self.target.client(service))
        for name, kind in (("jobs", JobTable), ("chunks", ChunkTable)):
            object.__setattr__(self, name, kind(self.dynamodb, self.system.jobs_table, ttl_days=1))

    @property
    def control(self) -> JobControl:
        return JobControl(
            self.jobs,
            self.s3,
            self.steps,
            JobEvents(self.jobs, self.target.client("events"), stage="dev", results_bucket=self.system.results_bucket),
            results_bucket=self.system.results_bucket,
            state_machine_arn=self.system.state_machine_arn,
        )

    def put(self, name: str, body: bytes | IO[bytes], **options: str) -> Upload:
        """Upload a file for the model."""
        key = f"{MODEL}/{name}"
        done = self.s3.put_object(Bucket=self.system.inbox_bucket, Key=key, Body=body, Metadata=options)
        return Upload(self.system.inbox_bucket, key, done["VersionId"], time.time_ns() // 1_000_000, 0, "")

    def score(self, name: str, body: bytes | IO[bytes], *, timeout_seconds: float = 120, **options: str) -> Any:
        """Upload a file, and wait for its job."""
        return self.follow(self.put(name, body, **options).job, timeout_seconds=timeout_seconds)

    def follow(self, job: str, *, timeout_seconds: float = 120) -> dict[str, Any]:
        """Wait until a job has ended and was told of; its item."""
        return self.wait(job, lambda item: item["state"] in ENDED and "announced" in item, timeout_seconds)

    def wait(self, job: str, holds: Callable[[dict[str, Any]], bool], timeout_seconds: float = 60) -> dict[str, Any]:
        """Wait until something holds of a job."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            item = self.jobs.find(job)
            if item is not None and holds(item):
                return item
            time.sleep(_POLL_SECONDS)
        raise AssertionError(f"job {job}: {self.jobs.find(job)}")

    def begun(self, job: str, *, done: int = 3) -> dict[str, Any]:
        """Wait until some chunks of a job are done, and others are not."""
        item = self.wait(job, lambda _: self._done(job) >= done)
        assert item["state"] == JobState.RUNNING, "it was too fast for this test"
        assert self._done(job) < item["chunks"]
        return item

    def _done(self, job: str) -> int:
        return sum("attempt" in item for item in self.chunks.of(job).values())

    def text(self, item: Mapping[str, Any], which: str = "predictions") -> bytes:
        """A job's result file."""
        found = self.s3.get_object(Bucket=self.system.results_bucket, Key=item[f"{which}_key"])
        return bytes(found["Body"].read())

    def results(self, item: Mapping[str, Any]) -> Results:
        """All that a job left."""
        texts = [self.text(item, which).replace(item["job"].encode(), b"JOB") for which in ("predictions", "rejects")]
        written = [float(score) for _, score in _SCORE.findall(texts[0])]
        table = self.table(item)
        stored = [float(table[row].pop("score")) for row in sorted(table) if "score" in table[row]]
        return Results(_SCORE.sub(rb"\1,", texts[0]), texts[1], table, (written, stored))

    def table(self, item: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """A job's items in the predictions table, by row, but for when they were written."""
        found: dict[int, dict[str, Any]] = {}
        pages = self.dynamodb.get_paginator("scan").paginate(
            TableName=self.system.predictions_table,
            FilterExpression="contains(sk, :job)",
            ExpressionAttributeValues={":job": {"S": item["job"]}},
        )
        for raw in (raw for page in pages for raw in page["Items"]):
            values = {name: from_attribute(value) for name, value in raw.items() if name not in TIMES}
            at_ms, job, row = values.pop("sk").split("#")
            assert (int(at_ms), job) == (item["at_ms"], item["job"])
            # Another job may be pinned to another document that says the same.
            assert values.pop("release") == item["release"]
            values |= {name: text.replace(job, "JOB") for name, text in values.items() if isinstance(text, str)}
            assert int(row) not in found, "one item a row"
            found[int(row)] = values
        return found

    def clear(self) -> None:
        """Take all items out of the predictions table: the embedded one reads the slower the more there are."""
        name = self.system.predictions_table
        found = self.dynamodb.describe_table(TableName=name)["Table"]
        self.dynamodb.delete_table(TableName=name)
        same = {part: found[part] for part in ("KeySchema", "AttributeDefinitions")}
        same["GlobalSecondaryIndexes"] = [
            {part: index[part] for part in ("IndexName", "KeySchema", "Projection")}
            for index in found["GlobalSecondaryIndexes"]
        ]
        self.dynamodb.create_table(TableName=name, BillingMode="PAY_PER_REQUEST", **same)

    def event(self, upload: Upload) -> dict[str, Any]:
        """What S3 says of an upload."""
        entry = {"key": upload.key, "size": 1, "versionId": upload.version, "sequencer": "0055"}
        record = {
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "eventTime": np.datetime64(upload.at_ms, "ms").item().isoformat(timespec="milliseconds") + "Z",
            "s3": {"bucket": {"name": upload.bucket}, "object": entry},
        }
        return {"Records": [record]}

    def executions(self, job: str) -> list[str]:
        """The names of a job's executions."""
        pages = self.steps.get_paginator("list_executions").paginate(stateMachineArn=self.system.state_machine_arn)
        names = [execution["name"] for page in pages for execution in page["executions"]]
        return [name for name in names if name.partition("-")[0] == job]

    def environments(self, handler: bytes = b"batch.handler") -> list[int]:
        """The processes that a function runs in: the batch function, if no other is said."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended
            if parent == self.emulator.pid and handler in command:
                found.append(int(folder.name))
        return sorted(found)

    def kill(self, pid: int) -> bool:
        """End one of them as the kernel would; whether it was still there."""
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def peak(self) -> Peak:
        """The one that held the most memory."""
        found = [Peak(0, 0.0)]
        for pid in self.environments():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            match = re.search(r"VmHWM:\s+(\d+) kB", status)
            found += [Peak(pid, int(match[1]) / 1024)] if match else []
        return max(found, key=lambda peak: peak.megabytes)


@contextmanager
def open_door(folder: Path, models: Path, context: Mapping[str, str]) -> Iterator[Door]:
    """Deploy a system with one model."""
    shutil.copytree(models / MODEL, folder / "models" / MODEL)
    with emulator.running(folder / "state", EMULATOR_PYTHON, port=0) as found:
        target = targets.emulator(found.endpoint_url)
        yield Door(found, target, deploy_system(target, context, models=folder / "models"))


@dataclass(frozen=True, slots=True)
class Rows:
    """Seeded records of the model, without their keys, of which a file of any length is made.

    Attributes:
        names: the columns' names, the key's among them.
        texts: the records' other cells.
    """

    names: list[str]
    texts: list[bytes]

    @property
    def head(self) -> bytes:
        return ",".join(self.names).encode() + b"\n"

    def lines(self, count: int) -> Iterator[bytes]:
        """So many records, each with a key of its own."""
        for i, text in zip(range(count), itertools.cycle(self.texts), strict=False):
            yield b"row-%d,%s\n" % (i, text)

    def file(self, count: int) -> bytes:
        return self.head + b"".join(self.lines(count))
