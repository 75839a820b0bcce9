"""Synthesized assemblies, one a context and session, and how to read them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

# jsii's banner about Node 20 is for whoever installs Node, not for whoever reads test output.
os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "18,20")

from aws_cdk import App

from infra.app import build
from tests.infra.assembly import Assembly

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AUTHS = ("iam", "jwt", "none")


@pytest.fixture(scope="session")
def runtime_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runtime layer's folder."""
    folder = tmp_path_factory.mktemp("runtime")
    (folder / "python" / "__pycache__").mkdir(parents=True)
    (folder / "python" / "wheel.py").write_text("VALUE = 1\n")
    (folder / "python" / "__pycache__" / "wheel.cpython-313.pyc").write_bytes(b"\0")
    return folder


@pytest.fixture(scope="session")
def synthesize(tmp_path_factory: pytest.TempPathFactory, runtime_layer: Path) -> Callable[..., Assembly]:
    """Synthesize a context; what was synthesized before is not synthesized again."""
    known: dict[str, Assembly] = {}

    def synthesize(**context: Any) -> Assembly:
        context = {
            "modelLayerKey": "layers/model/0123.zip",
            "modelLayerVersion": "version-1",
            "runtimeLayer": str(runtime_layer),
            **context,
        }
        key = json.dumps(context, sort_keys=True)
        if key not in known:
            folder = tmp_path_factory.mktemp("assembly")
            app = App(context=context, outdir=str(folder), analytics_reporting=False)
            build(app)
            app.synth()
            known[key] = Assembly(app, folder)
        return known[key]

    return synthesize


@pytest.fixture(scope="session")
def iam(synthesize: Callable[..., Assembly]) -> Assembly:
    """Stage dev as the defaults make it."""
    return synthesize()


@pytest.fixture(scope="session")
def jwt(synthesize: Callable[..., Assembly]) -> Assembly:
    return synthesize(auth="jwt", jwtIssuer="https://issuer.example", jwtAudience="one, two")


@pytest.fixture(scope="session")
def none(synthesize: Callable[..., Assembly]) -> Assembly:
    return synthesize(auth="none")


@pytest.fixture(scope="session")
def prod(synthesize: Callable[..., Assembly]) -> Assembly:
    """Another stage, with as much as possible set to something else than its default, as the command line does."""
    return synthesize(
        stage="prod",
        modelLayerVersion="version-2",
        refreshSeconds="5",
        ttlDays="7",
        logRetentionDays="90",
        throttleRate="20",
        throttleBurst="40",
        corsOrigins="https://one.example, https://two.example",
        alarmEmail="operator@example.org",
        architecture="arm64",
        scopeTemplate="score:{model}",
        operateScopeTemplate="run:{model}",
        apiMemory="2048",
        streamBatchSize="10",
        streamMaxConcurrency="3",
        chunkConcurrency="5",
        chunkBytes="1000000",
        chunkRows="20000",
        writeBudget="2000",
        pendingMinutes="5",
        resultsDays="400",
        predictMemory="512",
        batchMemory="3538",
        streamMemory="1024",
        monitorMemory="2048",
        monitorMinutes="90",
        ephemeralStorage="2048",
        predictReservedConcurrency="50",
        batchReservedConcurrency="20",
        streamReservedConcurrency="30",
    )


@pytest.fixture(scope="session", params=AUTHS)
def each(request: pytest.FixtureRequest) -> Assembly:
    """An assembly of each way to authorize."""
    return request.getfixturevalue(request.param)
