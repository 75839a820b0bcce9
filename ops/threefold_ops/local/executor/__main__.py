"""Starts the emulator with the executor plugged in, and cleans up when it, or the process it belongs to, ends."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from .plug import Executor

_KEEP_ALIVE_SECONDS = 75


def main() -> None:
    """Run the emulator until it is told to stop, or until its parent's end of the pipe closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--root", type=Path, required=True, help="a folder of its own, removed at the end")
    parser.add_argument("--token", required=True, help="tells this process from others; only ever read by `ps`")
    parser.add_argument("--parent", type=int, help="file descriptor that closes when the parent ends")
    arguments = parser.parse_args()
    executor: Executor | None = None

    def leave(code: int) -> None:
        if executor is not None:
            executor.close()
        shutil.rmtree(arguments.root, ignore_errors=True)
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads of ministack may wait for an hour, as for a custom resource; nothing is left to wait for.
        os._exit(code)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        leave(0)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    if arguments.parent is not None:
        threading.Thread(target=_end_with, args=(arguments.parent,), daemon=True).start()
    try:
        # Imported here: ministack reads its settings from the environment when it is imported.
        from .plug import Executor, check  # noqa: PLC0415

        check()
        executor = Executor(arguments.root / "executor", arguments.port)
        executor.install()
        _serve(arguments.port)
    except Exception:
        logging.getLogger("threefold").exception("the emulator could not run")
    leave(1)


def _serve(port: int) -> None:
    """Serve as ministack's own `main` does, but leave the signals to us: it waits for all its threads."""
    from hypercorn.asyncio import serve  # type: ignore[import-not-found]  # noqa: PLC0415
    from hypercorn.config import Config  # type: ignore[import-not-found]  # noqa: PLC0415
    from ministack import app  # noqa: PLC0415

    config = Config()
    config.bind = [f"{os.environ['BIND_HOST']}:{port}"]
    config.keep_alive_timeout = _KEEP_ALIVE_SECONDS

    async def run() -> None:
        await serve(app.app, config, shutdown_trigger=asyncio.Event().wait)

    asyncio.run(run())


def _end_with(parent: int) -> None:
    while os.read(parent, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
