"""Starts the emulator with the executor plugged in, and cleans up when it, or the process it belongs to, ends."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path


def main() -> None:
    """Run the emulator until it is told to stop, or until its parent's end of the pipe closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--root", type=Path, required=True, help="a folder of its own, removed at the end")
    parser.add_argument("--token", required=True, help="tells this process from others; only ever read by `ps`")
    parser.add_argument("--parent", type=int, help="file descriptor that closes when the parent ends")
    arguments = parser.parse_args()

    # Imported here: ministack reads its settings from the environment when it is imported.
    from ministack import app  # type: ignore[import-not-found]  # noqa: PLC0415

    from .plug import Executor, check  # noqa: PLC0415

    executor = None
    try:
        check()
        executor = Executor(arguments.root / "executor", arguments.port)
        executor.install()
        if arguments.parent is not None:
            threading.Thread(target=_end_with, args=(arguments.parent,), daemon=True).start()
        sys.argv = ["ministack"]
        app.main()
    except Exception:
        logging.getLogger("threefold").exception("the emulator could not run")
        code = 1
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 0
    except KeyboardInterrupt:
        code = 0
    else:
        code = 0
    if executor is not None:
        executor.close()
    shutil.rmtree(arguments.root, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of ministack may still be waiting for something; there is nothing left to wait for.
    os._exit(code)


def _end_with(parent: int) -> None:
    while os.read(parent, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
