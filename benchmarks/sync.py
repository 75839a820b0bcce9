"""The HTTPS door, warm: a whole invocation against the least that could give the same answer."""

from __future__ import annotations

import json
from time import process_time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.measure import Goal, compare, interleave
from benchmarks.models import NAMES, matrix, open_model
from benchmarks.requests import Context, api_event
from functions import predict

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Row
    from benchmarks.models import BenchModel

    Event = dict[str, Any]
    Handler = Callable[[Event, Any], dict[str, Any]]

_ROUNDS: Final = 400
_CALLS: Final = 20


def measure() -> list[Row]:
    """The rows of the warm HTTPS door."""
    model = open_model("tree")
    ours, bare = open_door(model), reference(model)
    event, one, context = api_event(model.name, 1), matrix(1), Context()
    check(ours, bare, model.name)
    session = model.session
    name = session.get_inputs()[0].name
    taken = interleave(
        {
            "ours": lambda: ours(event, context),
            "bare": lambda: bare(event, context),
            "raw": lambda: session.run(None, {name: one}),
        },
        rounds=_ROUNDS,
        calls=_CALLS,
        clock=process_time,
    )
    us = {what: seconds * 1e6 for what, seconds in taken.items()}
    few, many = api_event(model.name, 100), api_event(model.name, 4000)
    grown = interleave(
        {"few": lambda: _repeat(ours, few, 40), "many": lambda: ours(many, context)}, rounds=20, clock=process_time
    )
    return [
        compare(
            "sync, warm, one record: the whole handler / json + numpy + run + json",
            us["ours"],
            "µs",
            us["bare"],
            Goal(1.5),
        ),
        compare("  the reference / raw session.run", us["bare"], "µs", us["raw"]),
        compare(
            "sync, growth: a record among 4,000 / among 100",
            grown["many"] / 4000 * 1e6,
            "µs",
            grown["few"] / 4000 * 1e6,
            Goal(1.1),
        ),
    ]


def open_door(model: BenchModel) -> Handler:
    """The handler as it is deployed, over a registry that is not behind a network."""
    predictor = model.predictor()
    predict._predictor = lambda: predictor  # type: ignore[assignment]  # noqa: SLF001 - the module's only collaborator
    return predict.handler


def reference(model: BenchModel) -> Handler:
    """The least that gives the same answer: nothing is checked, and nothing is told to anyone."""
    session = model.session
    tensor = session.get_inputs()[0].name

    def handler(event: Event, _context: object) -> dict[str, Any]:
        records = json.loads(event["body"])["records"]
        x = np.array([[record[name] for name in NAMES] for record in records], np.float32)
        labels, scores = session.run(None, {tensor: x})
        predictions = [
            {"label": label, "score": row[label]} for label, row in zip(labels.tolist(), scores.tolist(), strict=True)
        ]
        return {"statusCode": 200, "body": json.dumps({"predictions": predictions})}

    return handler


def check(ours: Handler, theirs: Handler, model: str) -> None:
    """See that two handlers give the same answers, before anyone times them."""
    for rows in (1, 64):
        event = api_event(model, rows)
        mine, other = (answers(handler(event, Context())) for handler in (ours, theirs))
        assert mine == other, f"want the reference's answers, got {mine[:2]} where it has {other[:2]}"


def answers(response: dict[str, Any]) -> list[tuple[int, np.float32]]:
    """What a response says of each record: the label, and its score as float32."""
    assert response["statusCode"] == 200, response
    predictions = json.loads(response["body"])["predictions"]
    return [(prediction["label"], np.float32(prediction["score"])) for prediction in predictions]


def _repeat(handler: Handler, event: Event, times: int) -> None:
    context = Context()
    for _ in range(times):
        handler(event, context)
