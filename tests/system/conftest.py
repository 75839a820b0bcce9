"""One whole system on the embedded AWS, for all tests of this tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from threefold_ops import target as targets
from threefold_ops.local import emulator
from threefold_ops.paths import EMULATOR_PYTHON
from threefold_ops.system import System, deploy_system

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from threefold_ops.target import Target


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
        yield Local(state, target, deploy_system(target, {}))
