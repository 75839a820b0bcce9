"""A door's work on one package, rehearsed without a network: what it takes, and how large what it moves is."""

from __future__ import annotations

import csv
import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import boto3
import numpy as np
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config

from threefold import strict_json
from threefold.outcomes import OutcomeTable, Place
from threefold.prediction import tensor_to_json
from threefold.protocols import message, open_inference, records
from threefold.queues import QueueSender
from threefold.request import Records, Request, Tensors, record_keys
from threefold.tables.header import read_header
from threefold.tables.reader import ROWS_PER_BATCH, RowReader
from threefold.tables.records import read_blocks
from threefold.tables.results import ResultRows
from threefold_ops.evaluation.costs import STREAM_MESSAGES
from threefold_ops.evaluation.timing import measure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from threefold.prediction import Outcomes
    from threefold_ops.evaluation.trial import Trial

    Item = dict[str, Any]

_REGION: Final = "us-east-1"
_QUEUE: Final = "https://sqs.us-east-1.amazonaws.com/000000000000/predictions"
_AT_MS: Final = 1_700_000_000_000
_PATIENCE_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchWork:
    """What the S3 door does for a row.

    Attributes:
        row_us: while its chunk is scored: read, predicted, written to the table and to the result file.
        plan_row_us: while the job is planned.
        row_bytes: of the upload.
        result_bytes: of the result file.
    """

    row_us: float
    plan_row_us: float
    row_bytes: int
    result_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the doors do for a package: processor time on this machine, and sizes.

    Attributes:
        https_ms: one call with one record: read, predicted, written.
        stream_ms: a batch of 100 messages: read, predicted, written to the table and to the queue.
        request_bytes: of a call.
        response_bytes: of its answer.
        message_bytes: of a message on the requests queue.
        outcome_bytes: of a message on the predictions queue.
        item_bytes: of an outcome, as DynamoDB counts it.
        batch: None for a model that takes tensors only, which no CSV is for.
    """

    https_ms: float
    stream_ms: float
    request_bytes: int
    response_bytes: int
    message_bytes: int
    outcome_bytes: int
    item_bytes: int
    batch: BatchWork | None


def rehearse(trial: Trial, rows: Records | Tensors, seconds: float) -> Work:
    """Take a package through the doors' work.

    Args:
        trial: the package.
        rows: what it is asked; at least one.
        seconds: how long each of the works is measured.
    """
    writers = _Writers()
    bodies = [_body(trial, rows, i) for i in range(min(len(rows), STREAM_MESSAGES))]
    answers = [_call(trial, body) for body in bodies]
    https = measure(lambda i: _call(trial, bodies[i % len(bodies)]), batch=1, seconds=seconds)
    messages = [_message(trial, rows, i % len(rows)) for i in range(STREAM_MESSAGES)]
    outcomes, items = _stream(trial, messages, writers)
    stream = measure(lambda _: _stream(trial, messages, writers), batch=STREAM_MESSAGES, seconds=seconds, least=3)
    return Work(
        https_ms=https.p50_us / 1000,
        stream_ms=stream.p50_us / 1000,
        request_bytes=_average(bodies),
        response_bytes=_average(answers),
        message_bytes=_average([text.encode() for text in messages]),
        outcome_bytes=_average(outcomes),
        item_bytes=round(sum(map(item_bytes, items)) / len(items)),
        batch=_rehearse_batch(trial, rows, writers, seconds) if isinstance(rows, Records) else None,
    )


def _rehearse_batch(trial: Trial, rows: Records, writers: _Writers, seconds: float) -> BatchWork:
    upload = _table(trial, rows)
    results = _batch(trial, upload, writers)
    batch = measure(lambda _: _batch(trial, upload, writers), batch=ROWS_PER_BATCH, seconds=seconds, least=3)
    plan = measure(lambda _: sum(map(len, _blocks(trial, upload))), batch=ROWS_PER_BATCH, seconds=seconds, least=3)
    return BatchWork(
        row_us=batch.p50_us / ROWS_PER_BATCH,
        plan_row_us=plan.p50_us / ROWS_PER_BATCH,
        row_bytes=round(len(upload) / ROWS_PER_BATCH),
        result_bytes=round(len(results) / ROWS_PER_BATCH),
    )


def item_bytes(item: Item) -> int:
    """An item's size as DynamoDB counts it: names and values; a number by its digits.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
    """
    return sum(len(name.encode()) + _value_bytes(value) for name, value in item.items())


def _value_bytes(attribute: Mapping[str, Any]) -> int:
    ((kind, value),) = attribute.items()
    if kind == "S":
        return len(value.encode())
    if kind == "N":
        return 1 + (len(value.lstrip("-")) + 1) // 2
    if kind == "M":
        return 3 + sum(1 + len(name.encode()) + _value_bytes(part) for name, part in value.items())
    if kind == "L":
        return 3 + sum(1 + _value_bytes(part) for part in value)
    return 1


class _Writers:
    """The doors' own writers, over clients whose calls are serialized and signed, and answered at once."""

    def __init__(self) -> None:
        self.table = OutcomeTable(_client("dynamodb", b"{}"), "predictions", ttl_days=90)
        self.sender = QueueSender(_client("sqs", b'{"Failed":[]}'), _QUEUE, target="predictions queue")

    def items(self, places: Sequence[Place], predictions: Sequence[Mapping[str, Any]]) -> list[Item]:
        """Write outcomes to the table."""
        found = [self.table.item(place, one, now_ms=_AT_MS) for place, one in zip(places, predictions, strict=True)]
        self.table.write(found, deadline=time.monotonic() + _PATIENCE_SECONDS)
        return found


class _Raw(io.BytesIO):
    """A body as urllib3 hands it over."""

    def stream(self, **_options: object) -> Iterator[bytes]:
        yield self.read()


def _client(service: str, answer: bytes) -> Any:  # noqa: ANN401 - a client of any service
    made = boto3.client(
        service,  # type: ignore[call-overload]
        region_name=_REGION,
        aws_access_key_id="rehearsal",
        aws_secret_access_key="rehearsal",  # noqa: S106 - opens nothing: no call leaves the process
        config=Config(max_pool_connections=16, parameter_validation=False),
    )
    headers = HTTPHeaders.from_dict({"content-type": "application/x-amz-json-1.0"})
    made.meta.events.register("before-send", lambda request, **_: AWSResponse(request.url, 200, headers, _Raw(answer)))
    return made


def _body(trial: Trial, rows: Records | Tensors, position: int) -> bytes:
    if isinstance(rows, Records):
        return strict_json.dumps({"records": [rows.records[position]]})
    return strict_json.dumps({"inputs": _inputs(trial, rows, position)})


def _inputs(trial: Trial, rows: Tensors, position: int) -> list[dict[str, Any]]:
    specs, tensors = trial.manifest.signature.inputs, rows.records[position]
    return [tensor_to_json(spec, np.asarray(tensors[spec.name], spec.dtype)) for spec in specs]


def _call(trial: Trial, body: bytes) -> bytes:
    """What functions/predict.py does with a body, up to the body of its answer."""
    if trial.manifest.signature.features:
        found = records.decode(body)
        keys = record_keys(found, trial.predictor.key_field(trial.name))
        return records.encode(trial.predictor.predict(Request(model=trial.name, rows=Records(found), keys=keys)))
    tensors, identity, names = open_inference.decode(body)
    outcomes = trial.predict(Tensors([tensors]))
    return open_inference.encode(outcomes, outcomes.parts[0], identity, names)


def _message(trial: Trial, rows: Records | Tensors, position: int) -> str:
    content: dict[str, Any] = (
        {"record": rows.records[position]} if isinstance(rows, Records) else {"inputs": _inputs(trial, rows, position)}
    )
    return strict_json.dumps({"model": trial.name, "id": f"{position:032d}", **content}).decode()


def _stream(trial: Trial, bodies: Sequence[str], writers: _Writers) -> tuple[list[bytes], list[Item]]:
    """What functions/stream.py does with the messages of one batch."""
    found = [message.decode(body, (f"{i:032d}", _AT_MS)) for i, body in enumerate(bodies)]
    rows: Records | Tensors
    if trial.manifest.signature.features:
        rows = Records([one.record or {} for one in found])
        keys = record_keys(rows.records, trial.predictor.key_field(trial.name))
    else:
        rows, keys = Tensors([one.tensors or {} for one in found]), None
    ids = [one.id for one in found]
    outcomes = trial.predictor.predict(Request(model=trial.name, rows=rows, ids=ids, keys=keys))
    predictions = outcomes.predictions()
    encoded = [message.encode(prediction) for prediction in predictions]
    items = writers.items(_places(trial, outcomes), predictions)
    writers.sender.send(encoded, deadline=time.monotonic() + _PATIENCE_SECONDS)
    return encoded, items


def _places(trial: Trial, outcomes: Outcomes) -> list[Place]:
    keys = outcomes.keys or [None] * len(outcomes)
    return [
        Place(trial.name, key or identity, _AT_MS, f"{i}-{identity}")
        for i, (key, identity) in enumerate(zip(keys, outcomes.ids, strict=True))
    ]


def _table(trial: Trial, rows: Records) -> bytes:
    """An upload of as many rows as the door reads at a time."""
    names = [feature.name for feature in trial.manifest.signature.features]
    columns = names if trial.manifest.key in {None, *names} else [str(trial.manifest.key), *names]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for i in range(ROWS_PER_BATCH):
        record = rows.records[i % len(rows)]
        writer.writerow([f"row-{i}" if name not in names else _cell(record.get(name)) for name in columns])
    return file.getvalue().encode()


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None or value != value else value  # noqa: PLR0124 - only NaN differs from itself


def _blocks(trial: Trial, upload: bytes) -> Any:  # noqa: ANN401 - an iterator of blocks
    top = read_header(upload, {feature.name for feature in trial.manifest.signature.features})
    return read_blocks(iter([upload[top.size_bytes :]]), top.header.delimiter, line=top.line)


def _batch(trial: Trial, upload: bytes, writers: _Writers) -> bytes:
    """What functions/batch.py does with the rows of a chunk."""
    manifest, encoder = trial.manifest, trial.model.encoder
    assert encoder is not None, "a CSV is for named features"
    header = read_header(upload, {feature.name for feature in manifest.signature.features}).header
    reader = RowReader(header, manifest.signature.features, key=manifest.key, numeric=encoder.matrix_ready)
    lines = ResultRows(header, manifest.output.kind)
    written = []
    for block in _blocks(trial, upload):
        for batch in reader.read(block):
            ids = [f"{number:032d}" for number in batch.numbers]
            request = Request(model=trial.name, rows=batch.rows, ids=ids, keys=batch.keys)
            outcomes = trial.predictor.predict(request)
            predictions = outcomes.predictions()
            writers.items(_places(trial, outcomes), predictions)
            written += [lines.joined(batch, predictions), lines.rejected(batch, predictions)]
    return b"".join(written)


def _average(texts: Sequence[bytes]) -> int:
    return round(sum(map(len, texts)) / len(texts))
