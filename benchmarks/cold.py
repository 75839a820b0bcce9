"""The HTTPS door, cold: processor time of a fresh process under Lambda's own runtime client, to its first answer."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.function import RunningFunction, Start
from benchmarks.measure import Goal, compare
from benchmarks.models import open_model
from benchmarks.requests import api_event
from benchmarks.store import serve_release
from benchmarks.sync import answers
from threefold.names import Door
from threefold.settings import Settings
from threefold_ops.layers import HOST, build_model_layer, build_runtime_layer, compile_folder
from threefold_ops.local.executor.content import lay_out_runtime
from threefold_ops.paths import BASE_PYTHON, BUILD, ROOT
from threefold_ops.registry.publish import champions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.measure import Row
    from benchmarks.models import BenchModel

_ROUNDS: Final = 9
_BUCKET: Final = "models"
# One module each beside this one; `empty` answers nothing and is what all others are measured above.
_REFERENCES: Final = Path(__file__).with_name("cold_handlers")
_EVERYTHING: Final = (
    "aws_xray_sdk",
    "wrapt",
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_inspection",
    "typing_extensions",
)


def measure() -> list[Row]:
    """The rows of the cold start."""
    model = open_model("tree")
    with _prepared(model) as starts:
        event = json.dumps(api_event(model.name, 1)).encode()
        said = {name: json.loads(_run(start, event)[1]) for name, start in starts.items()}
        for name in ("floor", "everything"):
            assert answers(said["ours"]) == answers(said[name]), f"want {name} to answer as we do, got {said[name]}"
        taken: dict[str, list[float]] = {name: [] for name in starts}
        for _ in range(_ROUNDS):
            for name, start in starts.items():
                taken[name].append(_run(start, event)[0] * 1000)
    above = {name: median(np.subtract(found, taken["empty"]).tolist()) for name, found in taken.items()}
    return [
        compare(
            "sync, cold: to the first answer / numpy + onnxruntime + session + json",
            above["ours"],
            "ms CPU",
            above["floor"],
            Goal(1.4),
        ),
        compare(
            "sync, cold: to the first answer / everything imported at the top",
            above["ours"],
            "ms CPU",
            above["everything"],
            Goal(0.3),
        ),
        compare("  the empty handler, taken off each of these", median(taken["empty"]), "ms CPU"),
    ]


@contextmanager
def _prepared(model: BenchModel) -> Iterator[dict[str, Start]]:
    """Lay out layers, code and a bucket, as Lambda would find them."""
    runtime_layer = build_runtime_layer(BUILD, HOST) / "python"
    with tempfile.TemporaryDirectory(prefix="threefold-cold-") as scratch:
        root = Path(scratch)
        with zipfile.ZipFile(build_model_layer(root, HOST, champions(model.registry, print)).path) as archive:
            archive.extractall(root / "layer")
        client = lay_out_runtime(root / "client")
        everything = _copy_everything(root / "packages")
        for name, source in (("ours", ROOT / "functions" / "predict.py"), *_handlers()):
            (root / name).mkdir()
            shutil.copyfile(source, root / name / source.name)
        with serve_release(_BUCKET, model) as address:
            settings = Settings(door=Door.PREDICT, model_bucket=_BUCKET)
            variables = {
                **settings.to_env(),
                "AWS_ENDPOINT_URL": address,
                "AWS_REGION": "eu-central-1",
                "AWS_DEFAULT_REGION": "eu-central-1",
                "AWS_ACCESS_KEY_ID": "bench",
                "AWS_SECRET_ACCESS_KEY": "bench",
                "AWS_LAMBDA_FUNCTION_NAME": "bench",
                "AWS_LAMBDA_FUNCTION_VERSION": "1",
                "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
                "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
                "AWS_LAMBDA_LOG_GROUP_NAME": "bench",
                "AWS_LAMBDA_LOG_STREAM_NAME": "bench",
                "POWERTOOLS_SERVICE_NAME": "bench",
                "BENCH_MODEL": str(model.folder / "model.onnx"),
                "BENCH_BUCKET": _BUCKET,
                "PATH": os.environ.get("PATH", ""),
                "LANG": "en_US.UTF-8",
                # As infra/function.py sets it, for all of them.
                "OPENBLAS_NUM_THREADS": "1",
                # A layer and a function's code are read-only on Lambda.
                "PYTHONDONTWRITEBYTECODE": "1",
                "HOME": str(root),
            }
            layers = (root / "layer" / "python", runtime_layer)
            yield {
                name: Start(f"{module}.handler", root / name, (*layers, *extra, client), variables)
                for name, module, extra in (
                    ("ours", "predict", ()),
                    ("floor", "floor", ()),
                    ("everything", "everything", (everything,)),
                    ("empty", "empty", ()),
                )
            }


def _handlers() -> list[tuple[str, Path]]:
    return [(path.stem, path) for path in sorted(_REFERENCES.glob("*.py")) if path.stem != "__init__"]


def _copy_everything(folder: Path) -> Path:
    """The packages that only the heaviest reference imports, precompiled as a layer's are."""
    folder.mkdir()
    for name in _EVERYTHING:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, name  # noqa: PT018
        origin = Path(spec.origin)
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, folder)
    compile_folder(folder, BASE_PYTHON)
    return folder


def _run(start: Start, event: bytes) -> tuple[float, bytes]:
    """Start a process, let it answer one invocation, and end it.

    Returns:
        The processor seconds that it took, user and system, and its answer.
    """
    function = RunningFunction(start)
    try:
        answer = function.invoke(event)
    finally:
        seconds = function.stop()
    return seconds, answer
