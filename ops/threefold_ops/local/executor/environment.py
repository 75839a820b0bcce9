"""One execution environment: a process of Lambda's Python runtime client, and an invocation's way through it."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

from .runtime_api import PREFIX, ProtocolError, Request, RuntimeApi

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html: 6 MB, and 100 bytes for the envelope.
RESPONSE_LIMIT_BYTES: Final = 6_291_556
# Lambda gives initialization 10 s; a laptop that starts six environments at a time is no Lambda.
INIT_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.05
_LOG_KEEP_BYTES: Final = 8 << 20
_MEGABYTE: Final = 1 << 20
_PEAK: Final = re.compile(rb"VmHWM:\s+(\d+) kB")


class EnvironmentGoneError(Exception):
    """The process ended while idle, before it saw the event: another environment may take the invocation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """All that makes an environment what it is: a function whose specification differs needs a new one."""

    function: str
    version: str
    handler: str
    memory_megabytes: int
    timeout_seconds: float
    code: Path
    layers: tuple[Path, ...]
    runtime: Path
    variables: Mapping[str, str]


@dataclass(slots=True)
class Outcome:
    """What became of one invocation: the raw payload, and the log with Lambda's own lines around the function's."""

    body: bytes
    failed: bool = False
    note: str = ""
    log: str = ""

    @classmethod
    def failure(cls, kind: str, message: str, note: str = "") -> Self:
        """Build the answer that Lambda itself gives when the function cannot."""
        return cls(json.dumps({"errorType": kind, "errorMessage": message}).encode(), failed=True, note=note)


class Environment:
    """A process that serves one invocation at a time, until it is closed or dies."""

    def __init__(self, specification: Specification, folder: Path) -> None:
        """Start the process; `folder` holds its log and its /tmp and goes with it."""
        self.specification = specification
        self.alive = True
        self.idle_since = time.monotonic()
        self._started = time.monotonic()
        self._init_milliseconds: float | None = None
        self._closing = threading.Lock()
        self._closed = False
        self._peak = 0
        self._folder = folder
        (folder / "tmp").mkdir(parents=True)
        # A file and not a pipe: the function never blocks on an unread log, and when its answer has come, the lines
        # printed before it are there to be read.
        self._log = os.open(folder / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._log_offset = 0
        self._api = RuntimeApi(RESPONSE_LIMIT_BYTES)
        self._process = subprocess.Popen(
            # Without `site`, only the layers and Lambda's own runtime provide third-party packages.
            [base_interpreter(), "-S", "-s", "-m", "awslambdaric", specification.handler],
            cwd=specification.code,
            env=self._variables(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def invoke(self, event: bytes, *, request_id: str, function_arn: str) -> Outcome:
        """Run one invocation.

        Args:
            event: the JSON document for the handler.
            request_id: the invocation's identity.
            function_arn: the ARN by which the caller named the function, alias and all.

        Raises:
            EnvironmentGoneError: the process had ended while it was idle.
        """
        cold = self._init_milliseconds is None
        started = time.monotonic()
        init_log = ""
        # Its request for an event may still be there to be read when the process is not.
        if not cold and self._process.poll() is not None:
            self.alive = False
            raise EnvironmentGoneError
        try:
            waiting = self._wait_until_ready(request_id)
            if isinstance(waiting, Request):
                init_log = self._new_log() if cold else ""
                started = time.monotonic()
                outcome = self._run(waiting, event, request_id, function_arn)
            elif cold:
                outcome = waiting
            else:
                raise EnvironmentGoneError  # it ended since it was looked at
        except (ProtocolError, OSError) as error:
            outcome = self._stop("Runtime.InvalidResponse", f"RequestId: {request_id} Error: {error}")
        outcome.log = init_log + self._report(outcome, request_id, (time.monotonic() - started) * 1000, cold=cold)
        self.idle_since = time.monotonic()
        return outcome

    def close(self) -> None:
        """End the process and remove its folder; twice is as good as once."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._kill()
        self._api.close()
        os.close(self._log)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_until_ready(self, request_id: str) -> Request | Outcome:
        """Wait for the client to ask for an event; an outcome means that it never will."""
        deadline = time.monotonic() + INIT_SECONDS
        while True:
            request = self._next_request(deadline, INIT_SECONDS, request_id)
            if isinstance(request, Outcome):
                return request
            if request.path == PREFIX + "invocation/next":
                if self._init_milliseconds is None:
                    self._init_milliseconds = (time.monotonic() - self._started) * 1000
                return request
            if request.path == PREFIX + "init/error":
                self._api.answer(request, "202 Accepted")
                self._kill()
                return Outcome(_with_request_id(request.body, request_id), failed=True)
            self._api.answer(request, "404 Not Found")

    def _run(self, waiting: Request, event: bytes, request_id: str, function_arn: str) -> Outcome:
        timeout_seconds = self.specification.timeout_seconds
        headers = {
            "Lambda-Runtime-Aws-Request-Id": request_id,
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + timeout_seconds) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": function_arn,
            "Lambda-Runtime-Trace-Id": _trace_id(),
        }
        deadline = time.monotonic() + timeout_seconds
        self._api.answer(waiting, "200 OK", event, headers)
        while True:
            request = self._next_request(deadline, timeout_seconds, request_id)
            if isinstance(request, Outcome):
                return request
            if request.path == f"{PREFIX}invocation/{request_id}/response":
                return self._take_response(request, request_id)
            if request.path == f"{PREFIX}invocation/{request_id}/error":
                self._api.answer(request, "202 Accepted")
                return Outcome(request.body, failed=True)
            self._api.answer(request, "404 Not Found")

    def _take_response(self, request: Request, request_id: str) -> Outcome:
        if self._over_memory():
            return self._killed(request_id)
        if request.size_bytes > RESPONSE_LIMIT_BYTES:
            self._api.answer(request, "413 Payload Too Large", b'{"errorType":"RequestEntityTooLarge"}')
            message = f"Response payload size exceeded maximum allowed payload size ({RESPONSE_LIMIT_BYTES} bytes)."
            return Outcome.failure("Function.ResponseSizeTooLarge", message)
        self._api.answer(request, "202 Accepted")
        return Outcome(request.body)

    def _next_request(self, deadline: float, limit_seconds: float, request_id: str) -> Request | Outcome:
        """Return what the client says next; an outcome when it exits, takes too much memory or too long."""
        while True:
            remaining = deadline - time.monotonic()
            request = self._api.receive(max(0.0, min(_POLL_SECONDS, remaining)))
            if request is not None:
                return request
            if (status := self._process.poll()) is not None:
                how = f"signal: {-status}" if status < 0 else f"exit status {status}"
                message = f"RequestId: {request_id} Error: Runtime exited with error: {how}"
                if status == 0:
                    message = f"RequestId: {request_id} Error: Runtime exited without providing a reason"
                return self._stop("Runtime.ExitError", message)
            if self._over_memory():
                return self._killed(request_id)
            if remaining <= 0:
                text = f"Task timed out after {limit_seconds:.2f} seconds"
                now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
                return self._stop(
                    "Sandbox.Timedout", f"RequestId: {request_id} Error: {text}", f"{now}Z {request_id} {text}\n"
                )

    def _killed(self, request_id: str) -> Outcome:
        return self._stop(
            "Runtime.ExitError", f"RequestId: {request_id} Error: Runtime exited with error: signal: killed"
        )

    def _stop(self, kind: str, message: str, note: str = "") -> Outcome:
        self._kill()
        return Outcome.failure(kind, message, note)

    def _kill(self) -> None:
        self.alive = False
        self._peak_megabytes()
        self._process.kill()
        self._process.wait()

    def _over_memory(self) -> bool:
        return self._peak_megabytes() > self.specification.memory_megabytes

    def _peak_megabytes(self) -> int:
        """Return the most memory the process ever held, in megabytes; 0 where the system does not tell (not Linux)."""
        try:
            with open(f"/proc/{self._process.pid}/status", "rb") as status:  # noqa: PTH123 -- on the invocation's path
                match = _PEAK.search(status.read())
        except OSError:
            return self._peak
        if match:
            self._peak = math.ceil(int(match[1]) * 1024 / _MEGABYTE)
        return self._peak

    def _report(self, outcome: Outcome, request_id: str, milliseconds: float, *, cold: bool) -> str:
        """Return the log of one invocation as Lambda writes it."""
        specification = self.specification
        report = (
            f"REPORT RequestId: {request_id}\tDuration: {milliseconds:.2f} ms\t"
            f"Billed Duration: {math.ceil(milliseconds)} ms\tMemory Size: {specification.memory_megabytes} MB\t"
            f"Max Memory Used: {min(self._peak_megabytes(), specification.memory_megabytes)} MB"
        )
        if cold and self._init_milliseconds is not None:
            report += f"\tInit Duration: {self._init_milliseconds:.2f} ms"
        log = self._new_log()
        if log and not log.endswith("\n"):
            log += "\n"
        return (
            f"START RequestId: {request_id} Version: {specification.version}\n"
            f"{log}{outcome.note}END RequestId: {request_id}\n{report}\n"
        )

    def _new_log(self) -> str:
        parts = []
        while part := os.pread(self._log, _MEGABYTE, self._log_offset):
            parts.append(part)
            self._log_offset += len(part)
        if self._log_offset > _LOG_KEEP_BYTES:
            os.ftruncate(self._log, 0)
            self._log_offset = 0
        return b"".join(parts).decode("utf-8", "replace")

    def _variables(self) -> dict[str, str]:
        specification = self.specification
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        # As on Lambda a later layer lies over an earlier one, and the runtime's own packages come last.
        layers = [
            folder
            for layer in reversed(specification.layers)
            for folder in (layer / "python" / "lib" / version / "site-packages", layer / "python")
            if folder.is_dir()
        ]
        libraries = [specification.code, specification.code / "lib", *(layer / "lib" for layer in specification.layers)]
        temporary = str(self._folder / "tmp")
        stream = f"{datetime.now(UTC):%Y/%m/%d}/[{specification.version}]{secrets.token_hex(16)}"
        return {
            **specification.variables,
            "AWS_LAMBDA_RUNTIME_API": self._api.address,
            "AWS_LAMBDA_LOG_STREAM_NAME": stream,
            "LAMBDA_TASK_ROOT": str(specification.code),
            "LAMBDA_RUNTIME_DIR": str(specification.runtime),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PYTHONPATH": os.pathsep.join(map(str, [specification.code, *layers, specification.runtime])),
            "TMPDIR": temporary,
            # Lambda sets no HOME; without one, the SDK would find the operator's own ~/.aws.
            "HOME": temporary,
        }


def base_interpreter() -> str:
    """Return the interpreter below the emulator's virtual environment, which sees none of its packages."""
    return getattr(sys, "_base_executable", None) or sys.executable


def _with_request_id(body: bytes, request_id: str) -> bytes:
    try:
        return json.dumps({**json.loads(body), "requestId": request_id}).encode()
    except (ValueError, TypeError):
        return body


def _trace_id() -> str:
    return f"Root=1-{int(time.time()):08x}-{secrets.token_hex(12)};Parent={secrets.token_hex(8)};Sampled=0"
