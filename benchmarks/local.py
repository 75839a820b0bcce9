"""The embedded AWS: how fast it is up again, and what its way to a function adds to the function's own."""

from __future__ import annotations

import http.client
import json
import shutil
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from benchmarks.function import RunningFunction, Start
from benchmarks.measure import Goal, compare, interleave
from threefold_ops import target as targets
from threefold_ops.layers import HOST, build_model_layer, build_runtime_layer
from threefold_ops.local import emulator
from threefold_ops.local.executor.content import lay_out_runtime
from threefold_ops.paths import BUILD, EMULATOR_PYTHON, MODELS, ROOT
from threefold_ops.registry.publish import champions
from threefold_ops.system import deploy_system, open_registry

if TYPE_CHECKING:
    from benchmarks.measure import Row
    from threefold_ops.system import System
    from threefold_ops.target import Target

_ROUNDS: Final = 200
_MODEL: Final = "diabetes"


def measure() -> list[Row]:
    """The rows of the local mode."""
    with tempfile.TemporaryDirectory(prefix="threefold-local-") as folder:
        root = Path(folder)
        # The first time builds what later ones find.
        with emulator.running(root / "first", EMULATOR_PYTHON, port=0) as found:
            deploy_system(targets.emulator(found.endpoint_url), {})
        started = time.monotonic()
        with emulator.running(root / "again", EMULATOR_PYTHON, port=0) as found:
            target = targets.emulator(found.endpoint_url)
            system = deploy_system(target, {})
            seconds = time.monotonic() - started
            taken = _calls(system, target, root)
    return [
        compare("local: the whole system up again", seconds, "s", goal=Goal(15)),
        compare(
            "local, warm: an HTTP call / the function under the bare runtime client",
            taken["http"] * 1000,
            "ms",
            taken["bare"] * 1000,
            Goal(2),
        ),
    ]


def _calls(system: System, target: Target, root: Path) -> dict[str, float]:
    """The same record to the same function: through the emulator's HTTP API, and straight to its process."""
    record = json.loads((MODELS / _MODEL / "examples.jsonl").read_text().splitlines()[0])["record"]
    body = json.dumps({"records": [record]})
    url = urlsplit(f"{system.api_url}/models/{_MODEL}/predictions")
    connection = http.client.HTTPConnection(str(url.hostname), url.port)

    def through_http() -> dict[str, Any]:
        connection.request("POST", url.path, body, {"content-type": "application/json"})
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found

    event = json.dumps(
        {
            "version": "2.0",
            "routeKey": "POST /models/{model}/predictions",
            "rawPath": f"/models/{_MODEL}/predictions",
            "pathParameters": {"model": _MODEL},
            "headers": {"content-type": "application/json"},
            "body": body,
            "isBase64Encoded": False,
        }
    ).encode()
    function = RunningFunction(_start(system, target, root))
    try:

        def bare() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(json.loads(function.invoke(event))["body"])
            return found

        values = [answer["predictions"][0]["value"] for answer in (through_http(), bare())]
        assert values[0] == values[1], values
        return interleave({"http": through_http, "bare": bare}, rounds=_ROUNDS)
    finally:
        function.stop()
        connection.close()


def _start(system: System, target: Target, root: Path) -> Start:
    """The deployed function as it is configured, started by us."""
    configuration = target.client("lambda").get_function_configuration(FunctionName="threefold-dev-predict")
    registry = open_registry(target, system.model_bucket, root / "packages")
    with zipfile.ZipFile(build_model_layer(root, HOST, champions(registry, print)).path) as archive:
        archive.extractall(root / "layer")
    code = root / "code"
    code.mkdir()
    shutil.copyfile(ROOT / "functions" / "predict.py", code / "predict.py")
    variables = {
        **configuration["Environment"]["Variables"],
        "AWS_ENDPOINT_URL": str(target.endpoint_url),
        "AWS_REGION": target.region,
        "AWS_DEFAULT_REGION": target.region,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_LAMBDA_FUNCTION_NAME": "threefold-dev-predict",
        "AWS_LAMBDA_FUNCTION_VERSION": "1",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(configuration["MemorySize"]),
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
    }
    layers = (root / "layer" / "python", build_runtime_layer(BUILD, HOST) / "python")
    return Start("predict.handler", code, (*layers, lay_out_runtime(root / "client")), variables)
