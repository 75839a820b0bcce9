"""The bundle that AWS gets: built for its interpreter and platform, and answering on that interpreter."""

from __future__ import annotations

import json
import platform
import subprocess
import zipfile
from typing import TYPE_CHECKING

import pytest
from obstore.store import MemoryStore

from threefold.registry import Registry
from threefold_ops.layers import (
    LAMBDA_PYTHON,
    build_model_layer,
    build_runtime_layer,
    find_interpreter,
    lambda_runtime,
    read_layer_digest,
)
from threefold_ops.paths import BUILD, ROOT
from threefold_ops.registry.publish import champions, publish_all

if TYPE_CHECKING:
    from pathlib import Path

# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html: 250 MB; ours is much tighter.
MOST_BYTES = 115 * 1024**2
ANSWER = """
import json, sys
import predict, stream, batch
event = {"routeKey": "GET /v2/models/{model}/ready", "rawPath": "/v2/models/diabetes/ready",
         "pathParameters": {"model": "diabetes"}, "headers": {}}
print(json.dumps([predict.handler(event, None)["statusCode"], sys.version_info[:2]]))
"""


@pytest.fixture(scope="module", params=["x86_64", "arm64"])
def bundle(request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both layers of an architecture, unpacked into one folder as Lambda does."""
    runtime = lambda_runtime(request.param)
    scratch = tmp_path_factory.mktemp(f"bundle-{request.param}")
    registry = Registry(MemoryStore(), cache=scratch / "cache", baked=scratch / "none", refresh_seconds=0)
    publish_all(registry, models, "test", lambda _line: None)
    layer = build_model_layer(BUILD, runtime, champions(registry, print))
    assert read_layer_digest(layer.path) == layer.digest
    opt = scratch / "opt"
    with zipfile.ZipFile(layer.path) as archive:
        archive.extractall(opt)
    (scratch / "runtime").symlink_to(build_runtime_layer(BUILD, runtime))
    return scratch


def test_both_layers_are_small_enough_to_start_fast(bundle: Path) -> None:
    size = sum(path.stat().st_size for part in ("opt", "runtime") for path in (bundle / part).resolve().rglob("*"))
    assert size <= MOST_BYTES


def test_the_runtime_layer_is_built_for_the_target(bundle: Path) -> None:
    wanted = "aarch64" if "arm64" in bundle.name else "x86_64"
    libraries = [path.name for path in (bundle / "runtime").resolve().rglob("*.cpython-*.so")]
    assert any("cpython-313" in name for name in libraries)
    assert all(wanted in name for name in libraries)


def test_the_layers_carry_bytecode_of_the_target_or_none(bundle: Path) -> None:
    found = {path.name.split(".")[-2] for path in (bundle / "opt").rglob("*.pyc")}
    assert found == ({"cpython-313"} if find_interpreter(LAMBDA_PYTHON) else set())


def test_the_bundle_answers_on_the_interpreter_that_lambda_has(bundle: Path) -> None:
    interpreter = find_interpreter(LAMBDA_PYTHON)
    foreign = ("arm64" in bundle.name) != (platform.machine() in {"aarch64", "arm64"})
    if interpreter is None or foreign or platform.system() != "Linux":
        # What cannot be run here can be compiled here: syntax and imports of the sources are the host's own tests.
        assert (bundle / "opt" / "python" / "threefold" / "predictor.py").is_file()
        return
    environment = {
        "PYTHONPATH": f"{ROOT / 'functions'}:{bundle / 'opt' / 'python'}:{(bundle / 'runtime').resolve() / 'python'}",
        "THREEFOLD_AUTH": "none",
        "THREEFOLD_MODEL_BUCKET": "nowhere",
        # Nobody listens: the champion that the layer carries answers, and says that it could not be confirmed.
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    command = [interpreter, "-s", "-S", "-c", ANSWER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [200, [3, 13]]
