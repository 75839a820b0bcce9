"""The three doors from outside, as their users come to them: HTTPS calls, uploads, messages."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import time
import uuid
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError
from botocore.httpsession import URLLib3Session

from threefold.chunks import Counts
from threefold.deferral import fifo_group
from threefold.jobs import ENDED, JobState, JobTable, Upload
from threefold.names import PENDING_PREFIX, UPLOAD_SUFFIXES
from threefold.protocols.message import is_identifier
from threefold.tables.options import Options, encode
from threefold_ops import transfer
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from threefold.items import Values
    from threefold_ops.system import System
    from threefold_ops.target import Target

# Planning starts at once, and a large file's takes minutes; the job is there before it.
BEGIN_SECONDS: Final = 120.0
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html: names and values together.
METADATA_BYTES: Final = 2048
NO_OPTIONS: Final[Mapping[str, str]] = MappingProxyType({})
_MESSAGES_PER_CALL: Final = 10
_POLL_SECONDS: Final = 0.3
_SLOW_POLL_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 - JSON
        """The body as JSON.

        Raises:
            OperatorError: it is none.
        """
        try:
            return json.loads(self.body)
        except ValueError as error:
            message = f"HTTP {self.status}: want JSON, got {self.body[:200]!r}"
            raise OperatorError(message) from error


class Https:
    """The HTTPS door; on AWS every call is signed with the caller's own credentials."""

    def __init__(self, system: System, target: Target) -> None:
        """Make a client of a system's API."""
        self._url = system.api_url
        options: Any = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
        # Headers and body leave as two packets: without this each call waits 40 ms for an acknowledgement.
        self._session = URLLib3Session(timeout=60, socket_options=options)
        credentials = None if target.emulated else target.session.get_credentials()
        self._auth = SigV4Auth(credentials, "execute-api", system.region) if credentials else None

    def get(self, path: str) -> Answer:
        """GET a path."""
        return self._send("GET", path, None)

    def post(self, path: str, document: Any) -> Answer:  # noqa: ANN401 - JSON
        """POST JSON to a path."""
        return self._send("POST", path, json.dumps(document).encode())

    def _send(self, method: str, path: str, body: bytes | None) -> Answer:
        headers = {"content-type": "application/json"} if body is not None else {}
        request = AWSRequest(method, self._url + path, headers=headers, data=body)
        if self._auth is not None:
            self._auth.add_auth(request)
        response = self._session.send(request.prepare())
        return Answer(response.status_code, {k.lower(): v for k, v in response.headers.items()}, response.content)


class Inbox:
    """The batch door: a CSV in, a job to follow, result files out."""

    def __init__(self, system: System, target: Target) -> None:
        """Make a client of a system's inbox, results and jobs."""
        self._system = system
        self._target = target
        self._s3 = target.client("s3")
        self._jobs = JobTable(target.client("dynamodb"), system.jobs_table, ttl_days=0)

    def upload(
        self,
        model: str,
        path: Path,
        options: Mapping[str, str] = NO_OPTIONS,
        *,
        moved: Callable[[int], None] = lambda _count: None,
    ) -> str:
        """Put a CSV into the inbox; its job's id.

        Args:
            model: whose job it becomes.
            path: the file, of any size.
            options: how it is to be read and scored, as `Options` has them.
            moved: told of bytes as they are sent, from several threads.

        Raises:
            OperatorError: a name that S3 tells the batch door nothing of, or an upload that failed.
            InvalidTable: wrong options.
        """
        if not path.name.isprintable():
            raise OperatorError(f"{path.name!r}: want a name that is plain text, for the object is called so")
        if not path.name.endswith(UPLOAD_SUFFIXES):
            raise OperatorError(
                f"{path.name}: want a name that ends in one of {', '.join(UPLOAD_SUFFIXES)}; the inbox notices no other"
            )
        if not model or "/" in model or f"{model}/" == PENDING_PREFIX:
            raise OperatorError(f"model: want the name of one, got {model!r}")
        for name, value in options.items():
            if not value.isprintable() and value != "\t":
                raise OperatorError(f"option '{name}': want one line of text, got {value!r:.60}")
        metadata = {name: encode(value) for name, value in options.items()}
        Options.read(metadata, None)
        size_bytes = sum(len(name) + len(value) for name, value in metadata.items())
        if size_bytes > METADATA_BYTES:
            raise OperatorError(f"options: want at most {METADATA_BYTES} bytes, which S3 keeps, got {size_bytes}")
        bucket, key = self._system.inbox_bucket, f"{model}/{path.name}"
        version = transfer.upload(self._target.client("s3"), path, bucket, key, metadata=metadata, moved=moved)
        return Upload(bucket, key, version, 0, 0, "").job

    def job(self, identifier: str) -> Values | None:
        """A job as it stands; None while the upload was not noticed yet."""
        return self._jobs.find(identifier)

    def counts(self, job: Values) -> Counts:
        """How many rows of a job ended how, up to now.

        Args:
            job: its item, as `job` gives it.
        """
        if job["state"] in {JobState.COMPLETE, JobState.INCOMPLETE}:
            counts = Counts.of({"attempt": 1, **job})
            assert counts is not None
            return replace(counts, rows=counts.predicted + counts.abstained + counts.held + counts.rejected)
        if "chunks" not in job:
            return Counts()
        tried = self._jobs.chunks.of(job["job"]).values()
        return sum((counts for item in tried if (counts := Counts.of(item)) is not None), start=Counts())

    def follow(self, identifier: str, *, timeout_seconds: float | None, beat: Callable[[Values], None]) -> Values:
        """Wait until a job has ended.

        Args:
            identifier: the job's id.
            timeout_seconds: how long; None waits as long as it takes.
            beat: told of the job whenever it was looked at.

        Raises:
            OperatorError: it has not, in that time.
        """
        started = time.monotonic()
        deadline = math.inf if timeout_seconds is None else started + timeout_seconds
        found: Values | None = None
        while (now := time.monotonic()) < (deadline if found else min(deadline, started + BEGIN_SECONDS)):
            found = self.job(identifier)
            if found is not None:
                beat(found)
                if found["state"] in ENDED:
                    return found
            # Whoever waits for hours does not mind seconds.
            time.sleep(min(_SLOW_POLL_SECONDS, _POLL_SECONDS + (now - started) / 100))
        waited = time.monotonic() - started
        wanted = "noticed" if found is None else "ended"
        state = "nothing of it" if found is None else f"it {found['state']}"
        raise OperatorError(f"job {identifier}: want it {wanted} by now, got {state} after {waited:.0f} s")

    def result(self, model: str, identifier: str, name: str = "predictions.csv") -> bytes:
        """One of a job's result files, which must be small: all of it."""
        response = self._s3.get_object(Bucket=self._system.results_bucket, Key=f"{model}/{identifier}/{name}")
        content: bytes = response["Body"].read()
        return content

    def download(self, key: str, path: Path, *, moved: Callable[[int], None] = lambda _count: None) -> None:
        """Write one of a job's result files, of any size, to disk; packed, if the name ends in `.gz`.

        Args:
            key: as the job's item says it.
            path: where to.
            moved: told of bytes as they come, from several threads.

        Raises:
            OperatorError: there is no such file any more, or it cannot be written.
        """
        transfer.download(self._s3, self._system.results_bucket, key, path, moved=moved)


class Queues:
    """The stream door: messages in, outcomes out."""

    def __init__(self, system: System, target: Target) -> None:
        """Make a client of a system's queues."""
        self._system = system
        self._sqs = target.client("sqs")

    def send(self, messages: Sequence[Mapping[str, Any]]) -> list[str]:
        """Push messages; those without an id get one. Their ids, in order.

        Raises:
            OperatorError: the queue refused some.
        """
        named = [{"id": uuid.uuid4().hex, **message} for message in messages]
        ids: list[str] = []
        for start in range(0, len(named), _MESSAGES_PER_CALL):
            entries = [
                {"Id": str(i), "MessageBody": json.dumps(message), **self._order(message)}
                for i, message in enumerate(named[start : start + _MESSAGES_PER_CALL])
            ]
            response = self._sqs.send_message_batch(QueueUrl=self._system.requests_queue_url, Entries=entries)
            if failed := response.get("Failed"):
                message = f"requests queue: want all messages taken, got {failed[0]['Message']}"
                raise OperatorError(message)
            known = {int(sent["Id"]): sent["MessageId"] for sent in response["Successful"]}
            ids += [
                # What is no id is answered under the queue's own.
                identity if is_identifier(identity := named[start + i]["id"]) else known[i]
                for i in range(len(entries))
            ]
        return ids

    def _order(self, message: Mapping[str, Any]) -> dict[str, str]:
        """What a FIFO queue asks of a message: messages of one key are a group."""
        if not self._system.requests_queue_url.endswith(".fifo"):
            return {}
        identity, key = str(message["id"]), str(message.get("key") or message["id"])
        return {"MessageGroupId": fifo_group(key), "MessageDeduplicationId": fifo_group(identity)}

    def receive(self, ids: Sequence[str], *, timeout_seconds: float) -> Iterator[dict[str, Any]]:
        """The outcomes of some messages as they come; other consumers' outcomes are put back.

        Raises:
            OperatorError: some did not come in that time.
        """
        waiting, others = set(ids), []
        deadline = time.monotonic() + timeout_seconds
        url = self._system.predictions_queue_url
        try:
            while waiting and time.monotonic() < deadline:
                response = self._sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=1)
                for message in response.get("Messages", []):
                    outcome = json.loads(message["Body"])
                    if outcome["id"] not in waiting:
                        # Put back only at the end: the queue would give it to us again, before our own.
                        others.append(message["ReceiptHandle"])
                        continue
                    self._sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                    waiting.discard(outcome["id"])
                    yield outcome
        finally:
            for handle in others:
                with contextlib.suppress(ClientError):  # somebody else may have it by now
                    self._sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=0)
        if waiting:
            message = (
                f"predictions queue: want {len(ids)} outcomes in {timeout_seconds:.0f} s, got {len(ids) - len(waiting)}"
            )
            raise OperatorError(message)
