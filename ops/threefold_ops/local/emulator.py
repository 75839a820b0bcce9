"""Starts and stops the embedded AWS: one process on loopback, in an environment and a folder of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 4566
ACCOUNT_ID: Final = "000000000000"
REGION: Final = "us-east-1"
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
_LOG_TAIL_LINES: Final = 15
# The package is given by its folder and not installed: the emulator's environment must hold nothing of ours.
_BOOT: Final = "import sys; sys.path.insert(0, sys.argv.pop(1)); from executor.__main__ import main; main()"
# Kept for a `stop` in this same process, which then has to collect its own child.
_detached: Final[dict[int, subprocess.Popen[bytes]]] = {}


@dataclass(frozen=True, slots=True)
class Emulator:
    """A running emulator, as `local.json` in the state folder describes it."""

    port: int
    pid: int
    token: str
    folder: str
    log: str

    @property
    def endpoint_url(self) -> str:
        """The one URL of all its services."""
        return f"http://{HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether its process, and no other one with its number, is alive."""
        return self.token in _command_line(self.pid)


@contextmanager
def running(state: Path, python: Path, *, port: int = DEFAULT_PORT) -> Iterator[Emulator]:
    """Run an emulator for as long as the block lasts; it also ends when this process does, however it ends.

    Args:
        state: the folder for `local.json` and the log; made when absent.
        python: the interpreter of the environment made from requirements/emulator.txt.
        port: the loopback port; 0 takes a free one.

    Raises:
        OperatorError: it could not start; the message says why.
    """
    reading, writing = os.pipe()
    try:
        emulator, process = _launch(state, python, port, parent=reading)
        try:
            yield emulator
        finally:
            _end(emulator, process)
            _forget(state, emulator)
    finally:
        os.close(reading)
        os.close(writing)


def start(state: Path, python: Path, *, port: int = DEFAULT_PORT) -> Emulator:
    """Start an emulator that outlives this process, until `stop`.

    Raises:
        OperatorError: it could not start, or one is running for this state folder.
    """
    emulator, process = _launch(state, python, port, parent=None)
    _detached[emulator.pid] = process
    return emulator


def find(state: Path) -> Emulator | None:
    """Find the running emulator of this state folder, if there is one."""
    try:
        emulator = Emulator(**json.loads(_state_file(state).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return emulator if emulator.running else None


def stop(state: Path) -> bool:
    """Stop the emulator of this state folder with all its functions; False when none was running."""
    emulator = find(state)
    if emulator is not None:
        _end(emulator, _detached.pop(emulator.pid, None))
        _forget(state, emulator)
    return emulator is not None


def _launch(state: Path, python: Path, port: int, *, parent: int | None) -> tuple[Emulator, subprocess.Popen[bytes]]:
    if (other := find(state)) is not None:
        message = (
            f"the embedded AWS of {state} is already running at {other.endpoint_url}: stop it with 'threefold down'"
        )
        raise OperatorError(message)
    if not python.exists():
        message = f"the embedded AWS: want its interpreter at {python}, got nothing there"
        raise OperatorError(message)
    port = _free_port(port)
    state.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    # Resolved, because on macOS the temporary folder's own path is a link.
    folder = Path(tempfile.mkdtemp(prefix="threefold-emulator-")).resolve()
    log = state / "emulator.log"
    command = [str(python), "-I", "-c", _BOOT, str(Path(__file__).resolve().parent), "--port", str(port)]
    command += ["--root", str(folder), "--token", token]
    if parent is not None:
        command += ["--parent", str(parent)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_variables(folder, port),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=() if parent is None else (parent,),
            # Ctrl-C goes to the terminal's whole group; the emulator is stopped by its parent, in order.
            start_new_session=True,
        )
    emulator = Emulator(port=port, pid=process.pid, token=token, folder=str(folder), log=str(log))
    try:
        _wait_until_healthy(emulator, process)
        _state_file(state).write_text(json.dumps(asdict(emulator), indent=2) + "\n")
    except BaseException:
        _end(emulator, process)
        raise
    return emulator, process


def _variables(folder: Path, port: int) -> dict[str, str]:
    """Make the emulator's whole environment: nothing of the operator's own AWS settings reaches it."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "GATEWAY_PORT": str(port),
        "BIND_HOST": HOST,
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "MINISTACK_REGION": REGION,
        "MINISTACK_ACCOUNT_ID": ACCOUNT_ID,
        "STATE_DIR": str(folder / "state"),
        "S3_DATA_DIR": str(folder / "s3"),
    }


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        # As servers do: a port that is only waiting out its last connections counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            message = f"port {port}: want it free on {HOST}, got '{error.strerror}': choose another one with --port"
            raise OperatorError(message) from error
        return int(probe.getsockname()[1])


def _wait_until_healthy(emulator: Emulator, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    # The operator's proxy has no business with a loopback address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if process.poll() is not None:
            message = f"the embedded AWS ended at its start (status {process.returncode}):\n{_tail(emulator.log)}"
            raise OperatorError(message)
        try:
            with opener.open(f"{emulator.endpoint_url}/_ministack/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_SECONDS)
    message = f"the embedded AWS did not answer within {START_SECONDS:.0f} s:\n{_tail(emulator.log)}"
    raise OperatorError(message)


def _end(emulator: Emulator, process: subprocess.Popen[bytes] | None) -> None:
    """Ask it to end, then end its whole group: its functions run in it."""
    if _alive(emulator, process):
        os.kill(emulator.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while _alive(emulator, process) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if _alive(emulator, process):
            os.killpg(emulator.pid, signal.SIGKILL)
            if process is not None:
                process.wait()
    shutil.rmtree(emulator.folder, ignore_errors=True)


def _alive(emulator: Emulator, process: subprocess.Popen[bytes] | None) -> bool:
    return process.poll() is None if process is not None else emulator.running


def _forget(state: Path, emulator: Emulator) -> None:
    file = _state_file(state)
    # Another emulator may have been started in the meantime.
    if file.exists() and emulator.token in file.read_text():
        file.unlink()


def _state_file(state: Path) -> Path:
    return state / "local.json"


def _tail(log: str) -> str:
    lines = Path(log).read_text(errors="replace").splitlines()
    return "\n".join(lines[-_LOG_TAIL_LINES:])


def _command_line(pid: int) -> str:
    """Read the command line of a process, '' when there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        # Also where there is no /proc, as on macOS.
        answer = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return answer.stdout
