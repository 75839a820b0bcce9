"""The demonstration: the same records through all three doors, and every answer compared."""

from __future__ import annotations

import csv
import json
import math
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from threefold.outcomes import from_attribute
from threefold.tables.results import PREFIX
from threefold_ops.doors import Https, Inbox, Queues
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from threefold_ops.system import System
    from threefold_ops.target import Target

# What the three doors must say alike: all but ids and times.
COMPARED: Final = (
    "model",
    "version",
    "digest",
    "role",
    "status",
    "key",
    "label",
    "value",
    "score",
    "options",
    "features",
    "tensors",
)
# A V2 response has the model's tensors, and the version in its headers.
COMPARED_TENSORS: Final = ("version", "digest", "key", "tensors")
RECORDS: Final = "held-out.csv"
TENSORS: Final = "held-out.jsonl"
# Events before the held-out records, of a model with windows.
HISTORY: Final = "history.csv"
EXPECTED: Final = "held-out.expected.jsonl"
# The scores are FP32: what builds of a runtime may differ by from the training library.
TOLERANCE: Final = 1e-4
# What the doors may differ by: a record's FP32 sums depend in their last digits on how many records share its call.
ROUNDING: Final = 1e-5
RECORDS_PER_CALL: Final = 100
TIMEOUT_SECONDS: Final = 180.0


@dataclass(slots=True)
class Sample:
    """One model's held-out records, as each door takes them, and what the training library predicted for them."""

    model: str
    key: str | None
    messages: list[dict[str, Any]]
    expected: list[dict[str, Any]]
    table: Path | None = None
    history: Path | None = None
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def read_sample(folder: Path, key: str | None) -> Sample:
    """Read a model folder's held-out records.

    Args:
        folder: a model folder.
        key: the column that is a record's own id.
    """
    expected = [json.loads(line) for line in (folder / EXPECTED).read_text(encoding="utf-8").splitlines()]
    if (folder / RECORDS).is_file():
        with (folder / RECORDS).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        messages = [
            {"model": folder.name, "record": {name: _value(text, name == key) for name, text in row.items() if text}}
            for row in rows
        ]
        history = folder / HISTORY
        return Sample(folder.name, key, messages, expected, folder / RECORDS, history if history.is_file() else None)
    lines = [json.loads(line) for line in (folder / TENSORS).read_text(encoding="utf-8").splitlines()]
    messages = [
        {
            "model": folder.name,
            "key": line["key"],
            "inputs": [_tensor(name, values) for name, values in line["inputs"].items()],
        }
        for line in lines
    ]
    return Sample(folder.name, key, messages, expected)


def run(system: System, target: Target, models: list[Path], say: Callable[[str], None]) -> int:
    """Send every model's held-out records through the doors and compare.

    Returns:
        How many records were sent.

    Raises:
        OperatorError: answers that differ, the first few by record and field.
    """
    https = Https(system, target)
    samples = [
        read_sample(folder, https.get(f"/models/{folder.name}").json().get("key"))
        for folder in models
        if (folder / EXPECTED).is_file()
    ]
    inbox = Inbox(system, target)
    _count_history(samples, inbox, say)
    _through_https(samples, https, say)
    _through_csv(samples, inbox, system, target, say)
    _through_queues(samples, Queues(system, target), say)
    problems = [problem for sample in samples for problem in compare(sample)]
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:10])
        message = f"{len(problems)} answers differ:\n{shown}"
        raise OperatorError(message)
    return sum(len(sample.messages) for sample in samples)


def compare(sample: Sample) -> list[str]:
    """What is wrong with a model's answers: a door against the first, and each record against the training library."""
    doors = list(sample.answers)
    wanted = len(sample.expected)
    problems = [
        f"{sample.model}, {door}: want {wanted} answers, got {len(sample.answers[door])}"
        for door in doors
        if len(sample.answers[door]) != wanted
    ]
    if problems:
        return problems
    first = sample.answers[doors[0]]
    for i, expected in enumerate(sample.expected):
        for door in doors:
            if not _matches(sample.answers[door][i], expected):
                got_one = _short(sample.answers[door][i])
                problems.append(f"{sample.model}, {door}, record {i + 1}: want {_short(expected)}, got {got_one}")
            for name in COMPARED if sample.table is not None else COMPARED_TENSORS:
                want, got = first[i].get(name), sample.answers[door][i].get(name)
                if not _same(want, got):
                    problems.append(f"{sample.model}, {door}, record {i + 1}, {name}: want {want}, got {got}")
    return problems


def _count_history(samples: list[Sample], inbox: Inbox, say: Callable[[str], None]) -> None:
    """Have the events before the held-out records counted."""
    for sample in samples:
        if sample.history is not None:
            job = _ended(sample.model, inbox, inbox.upload(sample.model, sample.history))
            say(f"before {sample.model}: {job['rows']} earlier events counted for its windows")


def _ended(model: str, inbox: Inbox, identifier: str) -> dict[str, Any]:
    job = inbox.follow(identifier, timeout_seconds=TIMEOUT_SECONDS, beat=lambda _job: None)
    if job["state"] != "complete":
        message = f"{model}: want its job complete, got {job['state']}: {job.get('reason')}"
        raise OperatorError(message)
    return job


def _upload(sample: Sample, inbox: Inbox) -> str:
    """Upload the held-out records, behind their history where they have one: then the file is all there is."""
    assert sample.table is not None, "tensors are no rows"
    if sample.history is None:
        return inbox.upload(sample.model, sample.table)
    with tempfile.TemporaryDirectory(prefix="threefold-") as folder:
        whole = Path(folder) / RECORDS
        with sample.table.open(encoding="utf-8", newline="") as last, whole.open("w", newline="") as out:
            rows = csv.DictReader(last)
            writer = csv.DictWriter(out, rows.fieldnames or (), restval="")
            writer.writeheader()
            with sample.history.open(encoding="utf-8", newline="") as first:
                writer.writerows(csv.DictReader(first))
            writer.writerows(rows)
        return inbox.upload(sample.model, whole, {"windows": "file"})


def _through_https(samples: list[Sample], https: Https, say: Callable[[str], None]) -> None:
    for sample in samples:
        started = time.monotonic()
        answers: list[dict[str, Any]] = []
        if sample.table is None:
            for message in sample.messages:
                response = https.post(f"/v2/models/{sample.model}/infer", {"inputs": message["inputs"]})
                body = _checked(response.status, response.json())
                answers.append({**_source(response.headers), "key": message["key"], "tensors": body["outputs"]})
        else:
            records = [message["record"] for message in sample.messages]
            for start in range(0, len(records), RECORDS_PER_CALL):
                body = {"records": records[start : start + RECORDS_PER_CALL]}
                response = https.post(f"/models/{sample.model}/predictions", body)
                answers += _checked(response.status, response.json())["predictions"]
        sample.answers["https"] = answers
        say(f"HTTPS  {sample.model}: {len(answers)} records in {time.monotonic() - started:.1f} s, the first:")
        say(f"       {_short(answers[0])}")


def _through_csv(
    samples: list[Sample], inbox: Inbox, system: System, target: Target, say: Callable[[str], None]
) -> None:
    tables = [sample for sample in samples if sample.table is not None]
    jobs = [_upload(sample, inbox) for sample in tables]
    for sample, identifier in zip(tables, jobs, strict=True):
        job = _ended(sample.model, inbox, identifier)
        text = inbox.result(sample.model, identifier).decode("utf-8-sig")
        rows = list(csv.DictReader(text.splitlines()))[-len(sample.expected) :]
        items = Items(system, target).of_job(sample.model, identifier, [row[str(sample.key)] for row in rows])
        sample.answers["csv"] = items
        say(f"CSV    {sample.model}: job {identifier} {job['state']}, {len(rows)} rows, the first in file and table:")
        added = {name.removeprefix(PREFIX): cell for name, cell in rows[0].items() if name.startswith(PREFIX) and cell}
        say(f"       {_short(added)}")
        say(f"       {_short(items[0])}")
        for i, (row, item) in enumerate(zip(rows, items, strict=True)):
            written = row.get(f"{PREFIX}label") or row.get(f"{PREFIX}value") or ""
            said = item.get("label", item.get("value", ""))
            if row[f"{PREFIX}status"] != item["status"] or written != str(said):
                message = f"{sample.model}, row {i + 1}: want the file and the table to agree, got {row} and {item}"
                raise OperatorError(message)


class Items:
    """The predictions table as a reader sees it."""

    def __init__(self, system: System, target: Target) -> None:
        """Make a reader of a system's table."""
        self._dynamodb = target.client("dynamodb")
        self._table = system.predictions_table

    def of_job(self, model: str, job: str, keys: list[str]) -> list[dict[str, Any]]:
        """The items that a job wrote for some record keys, in their order."""
        return [self._newest(f"{model}#{key}", job) for key in keys]

    def _newest(self, partition: str, job: str) -> dict[str, Any]:
        response = self._dynamodb.query(
            TableName=self._table,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": partition}},
            ScanIndexForward=False,
        )
        for item in response["Items"]:
            if f"#{job}#" in item["sk"]["S"]:
                return {name: from_attribute(value) for name, value in item.items()}
        message = f"predictions table: want an item of job {job} under {partition}, got none"
        raise OperatorError(message)


def _through_queues(samples: list[Sample], queues: Queues, say: Callable[[str], None]) -> None:
    sent: dict[str, tuple[Sample, int]] = {}
    for sample in samples:
        for i, identifier in enumerate(queues.send(sample.messages)):
            sent[identifier] = (sample, i)
        sample.answers["sqs"] = [{}] * len(sample.messages)
    for outcome in queues.receive(list(sent), timeout_seconds=TIMEOUT_SECONDS):
        sample, i = sent[outcome["id"]]
        sample.answers["sqs"][i] = outcome.get("prediction") or {"status": "rejected", **outcome["error"]}
    for sample in samples:
        say(f"SQS    {sample.model}: {len(sample.messages)} messages answered, the first:")
        say(f"       {_short(sample.answers['sqs'][0])}")


def _matches(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether an answer is what the training library predicted."""
    if str(answer.get("key")) != str(expected["key"]):
        return False
    if "tensors" in answer:
        outputs = {tensor["name"]: tensor["data"] for tensor in answer["tensors"]}
        return all(
            len(outputs.get(name, [])) == 1
            and math.isclose(outputs[name][0], want, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
            for name, want in expected.items()
            if name != "key"
        )
    if "value" in expected:
        return math.isclose(answer.get("value", math.nan), expected["value"], rel_tol=TOLERANCE)
    # Where the model abstains, the likeliest option is what the library chose.
    said = answer if answer.get("status") == "predicted" else (answer.get("options") or [{}])[0]
    want = expected["scores"][str(expected["label"])]
    return said.get("label") == expected["label"] and math.isclose(said["score"], want, abs_tol=TOLERANCE)


def _same(want: Any, got: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether two doors said the same: floats up to their rounding, all else to the letter."""
    if isinstance(want, float) and isinstance(got, float):
        return math.isclose(want, got, rel_tol=ROUNDING, abs_tol=ROUNDING)
    if isinstance(want, dict) and isinstance(got, dict):
        return want.keys() == got.keys() and all(_same(want[name], got[name]) for name in want)
    if isinstance(want, list) and isinstance(got, list):
        return len(want) == len(got) and all(map(_same, want, got))
    return bool(want == got)


def _checked(status: int, body: dict[str, Any]) -> dict[str, Any]:
    if status != 200:  # noqa: PLR2004 - HTTP
        message = f"HTTPS: want 200, got {status}: {body}"
        raise OperatorError(message)
    return body


def _source(headers: Mapping[str, str]) -> dict[str, Any]:
    return {"version": headers["x-model-version"], "digest": headers["x-model-digest"]}


def _tensor(name: str, values: Any) -> dict[str, Any]:  # noqa: ANN401 - nested lists
    """One row of a tensor as the Open Inference Protocol sends it."""
    shape = [1]
    inner = values
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0]
    return {"name": name, "datatype": "FP32", "shape": shape, "data": [values]}


def _value(text: str, is_key: bool) -> Any:  # noqa: ANN401 - JSON
    """A cell as a JSON client would send it; this is not the CSV door's own reading, which is what is on trial."""
    if is_key:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _short(answer: dict[str, Any]) -> str:
    """An answer as a person wants to see it: without the provenance that is the same for all."""
    hidden = {"digest", "runtime", "release", "pk", "sk", "expires", "scores", "model", "model_version", "version"}
    return json.dumps({name: value for name, value in answer.items() if name not in hidden})
