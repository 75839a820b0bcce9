"""Where this clone keeps what the operator's room works with."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
REQUIREMENTS: Final = ROOT / "requirements"
MODELS: Final = ROOT / "models"
EVENTS: Final = ROOT / "events"
# What is made once and used again: layers, environments.
BUILD: Final = ROOT / ".threefold"
EMULATOR_PYTHON: Final = BUILD / "emulator" / "bin" / "python"
# Which local system a command means: a second one has a folder of its own.
STATE: Final = Path(os.environ.get("THREEFOLD_STATE") or BUILD)
UV: Final = ROOT / ".venv" / "bin" / "uv"
# The interpreter below the virtual environment: functions run on it with their layers only.
BASE_PYTHON: Final = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
