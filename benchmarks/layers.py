"""The size of both layers, unzipped, as Lambda counts it."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.measure import MEGABYTE, Goal, compare
from benchmarks.models import open_model
from threefold_ops.layers import build_model_layer, build_runtime_layer, find_interpreter, lambda_runtime
from threefold_ops.paths import BUILD
from threefold_ops.registry.publish import champions

if TYPE_CHECKING:
    from benchmarks.measure import Row

_ARCHITECTURES: Final = ("x86_64", "arm64")


def measure() -> list[Row]:
    """The rows of the layers: the runtime layer and the model layer with the tree model in it."""
    rows = []
    model = open_model("tree")
    for architecture in _ARCHITECTURES:
        runtime = lambda_runtime(architecture)
        wheels = folder_bytes(build_runtime_layer(BUILD, runtime))
        with tempfile.TemporaryDirectory() as scratch:
            layer = build_model_layer(Path(scratch), runtime, champions(model.registry, print))
            with zipfile.ZipFile(layer.path) as archive:
                ours = sum(entry.file_size for entry in archive.infolist())
        bytecode = "" if find_interpreter(runtime.python) else ", without bytecode"
        name = f"layers, {architecture}, python{runtime.python}{bytecode}: both, unzipped"
        rows.append(compare(name, (wheels + ours) / MEGABYTE, "MB", goal=Goal(115)))
    return rows


def folder_bytes(folder: Path) -> int:
    """The size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
