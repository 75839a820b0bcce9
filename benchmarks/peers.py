"""The same prediction through another server, in process: no sockets, the same record, the same answer."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel, create_model
from rich.console import Console

from benchmarks.__main__ import table
from benchmarks.measure import Goal, compare
from benchmarks.models import NAMES, open_model
from benchmarks.requests import Context, api_event
from benchmarks.sync import answers, open_door

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.measure import Row
    from benchmarks.models import BenchModel

    Call = Callable[[bytes], Awaitable[dict[str, Any]]]

_ROUNDS: Final = 200
_CALLS: Final = 20


def main() -> int:
    """Measure and print; a missed goal is no failure."""
    with Path("/dev/null").open("w", buffering=1) as nothing, redirect_stdout(nothing):
        rows = measure()
    Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    return 0


def measure() -> list[Row]:
    """The rows of the peers; more is faster, as in docs/performance.md's goals."""
    model = open_model("tree")
    return [asyncio.run(_measure_fastapi(model))]


def with_fastapi(model: BenchModel) -> Call:
    """FastAPI as its documentation shows it: an async route, pydantic in and out."""
    session = model.session
    tensor = session.get_inputs()[0].name
    fields: dict[str, Any] = dict.fromkeys(NAMES, (float, ...))
    record = create_model("Record", id=(str, ...), **fields)
    records = create_model("Records", records=(list[record], ...))  # type: ignore[valid-type]
    app = FastAPI()

    class Prediction(BaseModel):
        """What one record gets."""

        label: int
        score: float

    class Predictions(BaseModel):
        """The body of an answer."""

        predictions: list[Prediction]

    async def predict(body: Any) -> Any:  # noqa: ANN401 - annotated below, by the fields
        x = np.array([[getattr(one, name) for name in NAMES] for one in body.records], np.float32)
        labels, scores = session.run(None, {tensor: x})
        rows = zip(labels.tolist(), scores.tolist(), strict=True)
        return Predictions(predictions=[Prediction(label=label, score=row[label]) for label, row in rows])

    predict.__annotations__ = {"body": records, "return": Predictions}
    app.post("/predictions")(predict)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/predictions",
        "raw_path": b"/predictions",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }

    async def call(body: bytes) -> dict[str, Any]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:  # noqa: ANN401 - ASGI's messages
            sent.append(message)

        await app(dict(scope), receive, send)
        return {"statusCode": sent[0]["status"], "body": sent[1]["body"]}

    return call


async def _measure_fastapi(model: BenchModel) -> Row:
    handler, call = open_door(model), with_fastapi(model)
    event, context = api_event(model.name, 1), Context()
    body = event["body"].encode()
    assert answers(handler(event, context)) == answers(await call(body)), "want the peer's answers"
    ours, theirs = [], []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for _ in range(_CALLS):
            json.dumps(handler(event, context))
        ours.append((time.perf_counter() - started) / _CALLS)
        started = time.perf_counter()
        for _ in range(_CALLS):
            await call(body)
        theirs.append((time.perf_counter() - started) / _CALLS)
    goal = Goal(2.5, at_most=False)
    return compare("in process, calls: ours / FastAPI", 1 / median(ours), "calls/s", 1 / median(theirs), goal)


if __name__ == "__main__":
    sys.exit(main())
