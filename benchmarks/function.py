"""A function's process under Lambda's own runtime client, and Lambda's side of its invocations."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from threefold_ops.local.executor.runtime_api import PREFIX, RuntimeApi
from threefold_ops.paths import BASE_PYTHON

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from threefold_ops.local.executor.runtime_api import Request

_WAIT_SECONDS: Final = 60.0
_REQUEST: Final = "bench"
_HEADERS: Final = {
    "Lambda-Runtime-Aws-Request-Id": _REQUEST,
    "Lambda-Runtime-Deadline-Ms": "4102444800000",
    "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-central-1:000000000000:function:bench",
    "Lambda-Runtime-Trace-Id": "Root=1-00000000-000000000000000000000000;Parent=0000000000000000;Sampled=0",
}


@dataclass(frozen=True, slots=True)
class Start:
    """How a process is started.

    Attributes:
        code: the folder of the handler's module; without bytecode, as in a function's zip.
        folders: where else it imports from: the layers, first come first.
    """

    handler: str
    code: Path
    folders: tuple[Path, ...]
    variables: Mapping[str, str]


class RunningFunction:
    """A started process; the first invocation waits for its initialization."""

    def __init__(self, start: Start) -> None:
        """Start it."""
        self._api = RuntimeApi(8 << 20)
        self._process = subprocess.Popen(
            [str(BASE_PYTHON), "-S", "-s", "-m", "awslambdaric", start.handler],
            cwd=start.code,
            env={
                **start.variables,
                "AWS_LAMBDA_RUNTIME_API": self._api.address,
                "LAMBDA_TASK_ROOT": str(start.code),
                "PYTHONPATH": os.pathsep.join(map(str, (start.code, *start.folders))),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self._waiting: Request | None = None

    def invoke(self, event: bytes) -> bytes:
        """One invocation, until the client asks for the next one."""
        waiting = self._waiting or self._receive("invocation/next")
        self._api.answer(waiting, "200 OK", event, _HEADERS)
        response = self._receive(f"invocation/{_REQUEST}/response")
        self._api.answer(response, "202 Accepted")
        self._waiting = self._receive("invocation/next")
        return response.body

    def stop(self) -> float:
        """End it; the processor seconds that it took, user and system."""
        self._process.kill()
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._api.close()
        return usage.ru_utime + usage.ru_stime

    def _receive(self, wanted: str) -> Request:
        deadline = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < deadline:
            if (request := self._api.receive(0.5)) is not None:
                assert request.path == PREFIX + wanted, f"want {wanted}, got {request.path}: {request.body!r:.2000}"
                return request
        message = f"want the runtime client to say {wanted} within {_WAIT_SECONDS} s, got nothing"
        raise TimeoutError(message)
