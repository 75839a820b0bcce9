"""ONNX Runtime's own telemetry stays off."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def test_loading_a_model_leaves_no_trace_of_a_telemetry_client(models: Path, tmp_path: Path) -> None:
    """Unless it is off, onnxruntime writes a device id and an upload queue as soon as a session is made."""
    model = str(models / "digits" / "model.onnx")
    code = f"from pathlib import Path; from threefold.model import open_session; open_session(Path({model!r}))"
    environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []
