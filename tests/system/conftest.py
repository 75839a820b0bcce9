"""One whole system on the embedded AWS, for all tests of this tier."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from threefold_ops import target as targets
from threefold_ops.local import emulator
from threefold_ops.paths import EMULATOR_PYTHON
from threefold_ops.system import System, deploy_system

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threefold_ops.target import Target

ROOT = Path(__file__).resolve().parents[2]
# By how much a function may be behind a promotion: short, so that a test need not wait for long.
REFRESH_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Local:
    """A running system, and how to reach it."""

    state: Path
    target: Target
    system: System


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """The very stacks that the synthesis produces, deployed on loopback."""
    state = tmp_path_factory.mktemp("state")
    with emulator.running(state, EMULATOR_PYTHON, port=0) as found:
        target = targets.emulator(found.endpoint_url)
        yield Local(state, target, deploy_system(target, {"refreshSeconds": str(REFRESH_SECONDS)}))


@pytest.fixture(scope="session")
def threefold(local: Local) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command against this system, as an operator would."""
    environment = {**os.environ, "THREEFOLD_STATE": str(local.state), "COLUMNS": "200"}

    def run(*words: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        line = [str(Path(sys.executable).parent / "threefold"), *map(str, words)]
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    return run
