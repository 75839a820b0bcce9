"""The SQS door: a thousand messages an event, against Powertools record by record and against the bound."""

from __future__ import annotations

import json
from operator import itemgetter
from time import process_time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response

from benchmarks.measure import Goal, compare, interleave
from benchmarks.models import NAMES, open_model
from benchmarks.requests import Context, queue_event
from benchmarks.stubs import client
from functions import stream
from threefold.outcomes import OutcomeTable
from threefold.queues import QueueSender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

    from benchmarks.measure import Row
    from benchmarks.models import BenchModel

    Event = dict[str, Any]
    Handler = Callable[[Event, Any], Any]
    Said = list[tuple[int, np.float32]]

_MESSAGES: Final = 1000
_ROUNDS: Final = 30
_GROWTH: Final = (100, 4000)
_FEATURES: Final = itemgetter(*NAMES)


class _Nowhere:
    """Stands in for the predictions table and queue: takes everything, keeps the bodies of the last event."""

    def __init__(self) -> None:
        self.bodies: Sequence[bytes] = ()

    def item(self, *_: object, **__: object) -> dict[str, Any]:
        return {}

    def write(self, *_: object, **__: object) -> list[object]:
        return []

    def send(self, bodies: Sequence[bytes], **_: object) -> dict[int, str]:
        self.bodies = bodies
        return {}


def measure() -> list[Row]:
    """The rows of the SQS door."""
    model = open_model("tree")
    event, context = queue_event(model.name, _MESSAGES), Context()
    predictor, nowhere = model.predictor(), _Nowhere()
    stream._predictor = lambda: predictor  # type: ignore[assignment]  # noqa: SLF001 - the module's collaborators
    _put(nowhere, nowhere)
    said: Said = []
    theirs, bound = per_record(model, said.append), vectorized(model)
    check(nowhere, event, theirs, bound, said)
    scoring = interleave(
        {
            "ours": lambda: stream.handler(event, context),
            "per record": lambda: theirs(event, context),
            "bound": lambda: bound(event),
        },
        rounds=_ROUNDS,
        clock=process_time,
    )
    few, many = (queue_event(model.name, size) for size in _GROWTH)
    times = _GROWTH[1] // _GROWTH[0]
    grown = interleave(
        {"few": lambda: _repeat(few, times), "many": lambda: stream.handler(many, context)},
        rounds=_ROUNDS // 2,
        clock=process_time,
    )
    _put(*_tables())
    writing_theirs = with_writes(model)
    writing = interleave(
        {"ours": lambda: stream.handler(event, context), "per record": lambda: writing_theirs(event, context)}, rounds=5
    )
    speed = {name: _MESSAGES / seconds for name, seconds in scoring.items()}
    written = {name: _MESSAGES / seconds for name, seconds in writing.items()}
    least, most = (Goal(limit, at_most=False) for limit in (0.7, 2.5))
    return [
        compare(
            "stream, scoring: 1,000 messages / Powertools' BatchProcessor per record",
            speed["ours"],
            "messages/s",
            speed["per record"],
            most,
        ),
        compare(
            "stream, scoring: 1,000 messages / orjson + one run", speed["ours"], "messages/s", speed["bound"], least
        ),
        compare(
            "stream, with its writes / BatchProcessor + batch_writer + send_message_batch",
            written["ours"],
            "messages/s",
            written["per record"],
        ),
        compare(
            f"stream, growth: a message among {_GROWTH[1]:,} / among {_GROWTH[0]:,}",
            grown["many"] / _GROWTH[1] * 1e6,
            "µs",
            grown["few"] / _GROWTH[1] * 1e6,
            Goal(1.1),
        ),
    ]


def per_record(model: BenchModel, take: Callable[[tuple[int, np.float32]], None]) -> Handler:
    """Powertools' batch utility as its documentation shows it: one record, one prediction."""
    session, processor = model.session, BatchProcessor(event_type=EventType.SQS)
    tensor = session.get_inputs()[0].name

    def score(record: SQSRecord) -> None:
        values = json.loads(record.body)["record"]
        x = np.array([[values[name] for name in NAMES]], np.float32)
        labels, scores = session.run(None, {tensor: x})
        label = int(labels[0])
        take((label, scores[0, label]))

    return lambda event, context: process_partial_response(
        event=event, record_handler=score, processor=processor, context=context
    )


def vectorized(model: BenchModel) -> Callable[[Event], Said]:
    """The bound: parse, stack, run once; nothing is checked, nobody is told, and no message can fail alone."""
    session = model.session
    tensor = session.get_inputs()[0].name

    def score(event: Event) -> Said:
        rows = [_FEATURES(orjson.loads(record["body"])["record"]) for record in event["Records"]]
        labels, scores = session.run(None, {tensor: np.array(rows, np.float32)})
        chosen = scores[np.arange(len(labels)), labels]
        return list(zip(labels.tolist(), chosen, strict=True))

    return score


def with_writes(model: BenchModel) -> Handler:
    """Per record, then written as boto3 offers it: a batch writer, and ten messages a call."""
    said: Said = []
    score = per_record(model, said.append)
    dynamodb, queue = client("dynamodb", b"{}"), client("sqs", b'{"Successful":[],"Failed":[]}')
    # What an outcome of ours says beside its answer.
    names = ("model", "version", "digest", "role", "release", "status", "at", "runtime", "key", "expires")
    facts = {name: {"S": "as long as ours is"} for name in names}

    def handler(event: Event, context: object) -> Any:  # noqa: ANN401 - what Powertools returns
        said.clear()
        answer = score(event, context)
        items = [
            {"pk": {"S": f"{model.name}#customer-{i}"}, "sk": {"S": f"{i:014d}"}, "id": {"S": f"message-{i}"}}
            | {"label": {"N": str(label)}, "score": {"N": str(value)}, **facts}
            for i, (label, value) in enumerate(said)
        ]
        for start in range(0, len(items), 25):
            requests = [{"PutRequest": {"Item": item}} for item in items[start : start + 25]]
            dynamodb.batch_write_item(RequestItems={"predictions": requests})
        bodies = [json.dumps({"label": label, "score": float(value), **facts}) for label, value in said]
        for start in range(0, len(bodies), 10):
            entries = [{"Id": str(i), "MessageBody": body} for i, body in enumerate(bodies[start : start + 10])]
            queue.send_message_batch(QueueUrl="https://sqs.eu-central-1.amazonaws.com/0/q", Entries=entries)
        return answer

    return handler


def check(nowhere: _Nowhere, event: Event, theirs: Handler, bound: Callable[[Event], Said], said: Said) -> None:
    """See that all three say the same, before anyone times them."""
    assert stream.handler(event, Context()) == {"batchItemFailures": []}
    theirs(event, Context())
    ours = [json.loads(body)["prediction"] for body in nowhere.bodies]
    found = [(prediction["label"], np.float32(prediction["score"])) for prediction in ours]
    assert found == said == bound(event), f"want the reference's answers, got {found[:2]} where it has {said[:2]}"
    said.clear()


def _tables() -> tuple[OutcomeTable, QueueSender]:
    """The real writers, over clients that answer at once."""
    dynamodb, queue = client("dynamodb", b"{}", validate=False), client("sqs", b'{"Failed":[]}', validate=False)
    return (
        OutcomeTable(dynamodb, "predictions", ttl_days=90),
        QueueSender(queue, "https://sqs.eu-central-1.amazonaws.com/0/q", target="predictions queue"),
    )


def _put(table: Any, sender: Any) -> None:  # noqa: ANN401 - the real ones or the stand-in
    stream._table = lambda: table  # type: ignore[assignment]  # noqa: SLF001
    stream._sender = lambda: sender  # type: ignore[assignment]  # noqa: SLF001


def _repeat(event: Event, times: int) -> None:
    context = Context()
    for _ in range(times):
        stream.handler(event, context)
