"""Where this clone keeps what the operator's room works with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
REQUIREMENTS: Final = ROOT / "requirements"
MODELS: Final = ROOT / "models"
EVENTS: Final = ROOT / "events"
STATE: Final = ROOT / ".threefold"
EMULATOR_PYTHON: Final = STATE / "emulator" / "bin" / "python"
UV: Final = Path(sys.prefix) / "bin" / "uv"
# The interpreter below the virtual environment: functions run on it with their layers only.
BASE_PYTHON: Final = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
