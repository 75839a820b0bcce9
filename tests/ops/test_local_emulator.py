"""The embedded AWS as a process: it starts, it is found, and nothing of it stays behind."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from threefold_ops.errors import OperatorError
from threefold_ops.local import emulator
from threefold_ops.target import emulator as emulator_target

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("THREEFOLD_EMULATOR_PYTHON", REPOSITORY / ".threefold" / "emulator" / "bin" / "python"))

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no emulator environment at {PYTHON}"),
]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def zipped(code: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as bundle:
        bundle.writestr("index.py", code)
    return content.getvalue()


def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(OperatorError, match=f"port {port}: want it free"),
            emulator.running(tmp_path, PYTHON, port=port),
        ):
            pass


def members(group: int) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == group:
                found.append(int(process.name))
        except ProcessLookupError:
            continue
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("how", ["leaves", "interrupted", "killed"])
def test_nothing_is_left_however_the_parent_ends(tmp_path: Path, how: str) -> None:
    parent = textwrap.dedent(f"""
        import pathlib, sys, time
        from threefold_ops.local import emulator
        with emulator.running(pathlib.Path({str(tmp_path)!r}), pathlib.Path({str(PYTHON)!r}), port=0) as started:
            print("ready", flush=True)
            sys.stdin.readline()
    """)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "ops")}
    with subprocess.Popen(
        [sys.executable, "-c", parent],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        started = emulator.find(tmp_path)
        assert started is not None
        target = emulator_target(started.endpoint_url)
        client = target.client("lambda")
        client.create_function(
            FunctionName="sleepy",
            Runtime="python3.13",
            Handler="index.handle",
            Role="arn:aws:iam::000000000000:role/any",
            Code={"ZipFile": zipped("import time\ndef handle(event, context):\n    time.sleep(60)\n")},
            Timeout=60,
        )
        # A handler that is still at work is the hard case.
        client.invoke(FunctionName="sleepy", InvocationType="Event", Payload=b"{}")
        assert until(lambda: len(members(started.pid)) >= 2)
        if how == "leaves":
            process.stdin.write(b"\n")
            process.stdin.flush()
        else:
            process.send_signal(signal.SIGINT if how == "interrupted" else signal.SIGKILL)
    assert until(lambda: not members(started.pid) and not Path(started.folder).exists())
    assert emulator.find(tmp_path) is None


def test_a_detached_emulator_is_found_and_stopped_by_its_state_folder(tmp_path: Path) -> None:
    started = emulator.start(tmp_path, PYTHON, port=0)
    try:
        assert emulator.find(tmp_path) == started
        with pytest.raises(OperatorError, match="already running"):
            emulator.start(tmp_path, PYTHON, port=0)
    finally:
        assert emulator.stop(tmp_path) is True
    assert not Path(started.folder).exists()
    assert emulator.stop(tmp_path) is False


def test_a_number_that_now_belongs_to_another_process_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]) as other:
        record = {"port": 1, "pid": other.pid, "token": "0123456789abcdef", "folder": str(tmp_path / "x"), "log": ""}
        (tmp_path / "local.json").write_text(json.dumps(record))
        assert emulator.stop(tmp_path) is False
        assert other.poll() is None
        other.kill()
