"""Keeps what the present code writes as files, for the tests of all later code.

    python tests/compatibility/generate.py schema-1

writes `tests/compatibility/schema-1/` with the code of this tree; a folder that is there already is never written over.
"""

from __future__ import annotations

import gzip
import importlib
import json
import logging
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import yaml
from moto.server import ThreadedMotoServer

from tests.compatibility import graphs
from tests.compatibility.account import BUCKETS, CREDENTIALS, TABLES, Account, environment
from threefold.errors import StorageUnavailable
from threefold.jobs import Upload
from threefold.registry import Registry, open_store
from threefold.release import Challenger, Version, route
from threefold.settings import Settings
from threefold_ops.registry.publish import publish

if TYPE_CHECKING:
    from types import ModuleType

    import onnx

HERE: Final = Path(__file__).resolve().parent
CONTEXT: Final = SimpleNamespace(get_remaining_time_in_millis=lambda: 600_000)
AT: Final = "2026-11-21T10:00:00.000Z"
SENT_MS: Final = 1_795_255_200_123
ROUTED: Final = 40

CLAIMS: Final[list[dict[str, Any]]] = [
    {"claim_id": "c-1", "age": 44.5, "amount": 120.5, "visits": 1, "points": 0, "insured": True, "region": "north"},
    {"claim_id": "c-2", "age": 31.0, "amount": 2400.0, "visits": 4, "points": 2, "insured": False, "region": "south"},
    {"claim_id": "c-3", "age": 67.0, "visits": 0, "points": 1, "insured": True, "region": "south"},
    {"claim_id": "c-4", "age": 25.0, "amount": 300.25, "points": 0},
    {"claim_id": "c-5", "age": 19.0, "amount": 990.0, "visits": 2, "points": 1, "insured": False, "region": "north"},
]
# Its best score is near a third.
UNSURE: Final = {"claim_id": "c-6", "age": 20.0, "amount": 0.0, "visits": 1, "points": 1, "insured": False}
OUTSIDE: Final = {**CLAIMS[0], "claim_id": "c-7", "age": 104.0}
BROKEN: Final = {**CLAIMS[0], "claim_id": "c-8", "visits": 51}
MODELS: Final[dict[str, dict[str, Any]]] = {
    "claims": {
        "schema": 1,
        "name": "claims",
        "version": "1.0.0",
        "description": "Every optional key of a model.yaml, and all six types of features.",
        "key": "claim_id",
        "features": [
            {
                "name": "age",
                "type": "float32",
                "unit": "years",
                "description": "at the day of the claim",
                "min": 18,
                "max": 100,
                "outside": "flag",
            },
            {"name": "amount", "type": "float64", "unit": "EUR", "min": 0, "missing": float("nan")},
            {"name": "visits", "type": "int32", "max": 50, "missing": 0},
            {"name": "points", "type": "int64", "allowed": [0, 1, 2]},
            {"name": "insured", "type": "bool", "missing": True},
            {"name": "region", "type": "string", "allowed": ["north", "south"], "missing": "north"},
        ],
        "layout": "columns",
        "output": {
            "kind": "classification",
            "label": "label",
            "scores": "scores",
            "classes": list(graphs.CLASSES),
        },
        "gate": {
            "examples": "examples.jsonl",
            "confidence": "confidence.csv",
            "metric": "accuracy",
            "acceptable": [0.9, 1.0],
        },
        "drift": {"reference": "reference.csv"},
        "training": {"script_sha256": "0" * 64, "libraries": {"onnx": "1.23.2"}, "at": "2026-11-21"},
        "bake": True,
        "serving": {"abstain_below": 0.5, "options": 2},
    },
    "rent": {
        "schema": 1,
        "name": "rent",
        "version": "2.0",
        "features": [
            {"name": "area", "type": "float32", "min": 5, "max": 1000, "outside": "error"},
            {"name": "rooms", "type": "int64", "allowed": [1, 2, 3, 4, 5]},
        ],
        "output": {"kind": "regression", "value": "value"},
        "gate": {"examples": "examples.jsonl"},
        "bake": False,
    },
    # What was allowed while confidence sets were carried and not evaluated: half a gate.
    "half": {
        "schema": 1,
        "name": "half",
        "version": "1.0.0",
        "features": [{"name": "area", "type": "float32"}, {"name": "rooms", "type": "int64"}],
        "output": {"kind": "regression", "value": "value"},
        "gate": {"confidence": "confidence.csv", "metric": "accuracy"},
    },
    "sums": {"schema": 1, "name": "sums", "version": "1.0.0", "output": {"kind": "tensors"}},
}
# What follows the first version of a model: label, and the graph that makes it another package.
LATER: Final[dict[str, dict[str, Any]]] = {"rent": {"2.1": 101.0, "2.2": 102.0}, "sums": {"1.1.0": "Sub"}}


def write_folder(folder: Path, version: str | None = None) -> Path:
    """Write the model folder of its name, or a later version of it."""
    name = folder.name
    folder.mkdir(parents=True)
    document = MODELS[name] | ({"version": version} if version else {})
    graph = _graph(name, version)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    (folder / "model.yaml").write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    if name == "claims":
        examples: list[dict[str, Any]] = []
        for record in CLAIMS:
            found = graphs.scores(record)
            examples.append({"record": record, "expect": {"label": max(found, key=found.__getitem__), "scores": found}})
        _write_lines(folder / "examples.jsonl", examples)
        _write_table(folder / "reference.csv", CLAIMS)
        labelled = [{**example["record"], "label": example["expect"]["label"]} for example in examples]
        _write_table(folder / "confidence.csv", labelled)
    elif name == "rent":
        base = LATER["rent"].get(version or "", 100.0)
        records = [{"area": 50.0, "rooms": 2}, {"area": 82.5, "rooms": 3}]
        values = [sum(a * b for a, b in zip(record.values(), graphs.SLOPES, strict=True)) for record in records]
        expected = [{"record": r, "expect": {"value": v + base}} for r, v in zip(records, values, strict=True)]
        _write_lines(folder / "examples.jsonl", expected)
    elif name == "half":
        _write_table(folder / "confidence.csv", [{"area": 50.0, "rooms": 2}])
    return folder


def main(name: str) -> int:
    """Write the folder `name` beside this file."""
    target = HERE / name
    if target.exists():
        sys.stderr.write(f"{target}: want no such folder yet, got one; what is kept is never written again\n")
        return 1
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update({**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"})
    try:
        with tempfile.TemporaryDirectory() as scratch:
            tempfile.tempdir = scratch
            whole = Path(scratch) / name
            _generate(whole, Path(scratch) / "later")
            shutil.copytree(whole, target)
    finally:
        server.stop()
    return 0


def _generate(target: Path, later: Path) -> None:
    account = Account()
    os.environ.update(environment(account.queue_url))
    registry = Registry(open_store("models", Settings.from_env()), cache=later / "cache", refresh_seconds=0.0)
    for name in MODELS:
        publish(registry, write_folder(target / "folders" / name), by="operator")
    _release(registry, later)
    release, _ = registry.current("rent") or _none()
    keys = [f"key-{i}" for i in range(ROUTED)]
    _write_json(target / "routes.json", {key: route(release, key).version for key in keys})
    _stream(account, importlib.import_module("functions.stream"), target)
    _batch(account, importlib.import_module("functions.batch"), target)
    versions: dict[str, dict[str, str | None]] = {}
    for bucket, versioned in BUCKETS.items():
        for key, (content, version) in account.objects(bucket).items():
            path = target / "buckets" / bucket / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if versioned:
                versions.setdefault(bucket, {})[key] = version
    _write_json(target / "versions.json", versions)
    for table in TABLES:
        _write_json(target / "tables" / f"{table}.json", account.items(table))


def _release(registry: Registry, later: Path) -> None:
    """A model promoted once, with a canary beside it; one with a shadow; the third stays as it was published first."""
    found = {
        label: Version(publish(registry, write_folder(later / label / name, label), by="operator").digest, label)
        for name, labels in LATER.items()
        for label in labels
    }
    registry.change("rent", lambda old: old.promoted(found["2.1"], at=AT, by="operator", why="it errs by less"))
    canary = Challenger(found["2.2"].digest, "2.2", "canary", 25.0, "2026-11")
    shadow = Challenger(found["1.1.0"].digest, "1.1.0", "shadow", 100.0, "2026-11")
    registry.change("rent", lambda old: replace(old, challenger=canary, at=AT, by="operator", why="a trial"))
    registry.change("sums", lambda old: replace(old, challenger=shadow, at=AT, by="operator", why="a trial"))


def _stream(account: Account, stream: ModuleType, target: Path) -> None:
    """Messages in every form that a producer may send, and what they were answered."""
    tensors = [
        {"name": "left", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.0]},
        {"name": "right", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 40.0]},
    ]
    bodies: dict[str, object] = {
        "m-predicted": {"model": "claims", "id": "ours-1", "at": AT, "key": "policy-9", "record": CLAIMS[0]},
        "m-abstained": {"model": "claims", "record": UNSURE},
        "m-reasons": {"model": "claims", "at": 1_795_255_200_000, "record": OUTSIDE},
        "m-rejected": {"model": "claims", "id": "ours-2", "record": BROKEN},
        "m-no-such-model": {"model": "nobody", "key": 17, "record": {"a": 1}},
        "m-malformed": '{"model": "claims", "record": ',
        "m-neither": {"model": "claims", "id": "ours-3"},
        "m-tensors": {"model": "sums", "id": "ours-4", "key": "pair-1", "inputs": tensors},
        **{
            f"m-rent-{i}": {"model": "rent", "key": f"key-{i}", "record": {"area": 40 + i, "rooms": 2}}
            for i in range(6)
        },
        "m-moved-back": {"model": "rent", "record": {"area": 61.5, "rooms": 3}},
    }
    records = [_sqs_record(name, body) for name, body in bodies.items()]
    moved = {"threefold-id": "first-id", "threefold-at": str(SENT_MS - 86_400_000)}
    records[-1]["messageAttributes"] = {
        name: {"stringValue": value, "stringListValues": [], "binaryListValues": [], "dataType": "String"}
        for name, value in moved.items()
    }
    event = {"Records": records}
    returned = stream.handler(event, CONTEXT)
    if returned != {"batchItemFailures": []}:
        message = f"stream: want every message answered, got {returned}"
        raise RuntimeError(message)
    _write_json(target / "events" / "stream.json", event)
    _write_json(target / "events" / "stream.outcomes.json", account.sent())


def _batch(account: Account, batch: ModuleType, target: Path) -> None:
    """Five uploads: one job in each state that a change of the code may meet it in."""
    header = "claim_id,age,amount,visits,points,insured,region,note\n"
    rows = "".join(
        f"{one['claim_id']},{one['age']},{one.get('amount', '')},{one.get('visits', '')},{one['points']},"
        f'{str(one.get("insured", "")).lower()},{one.get("region", "")},"as ""written"", with a comma"\n'
        for one in (*CLAIMS, UNSURE, OUTSIDE, BROKEN)
    )
    rows += "c-9,only two cells\n"
    uploads = {
        "planned.csv": header + rows,
        "running.csv": header + rows,
        "complete.csv.gz": header + rows,
        "refused.csv": "claim_id,amount\nc-1,3\n",
        "stopped.csv": header + rows,
    }
    events = {name: _upload(account, f"claims/{name}", text, i) for i, (name, text) in enumerate(uploads.items())}
    for name, event in events.items():
        _write_json(target / "events" / "uploads" / f"{name}.json", event)
    jobs = {name: Upload.from_event(event["Records"][0]).job for name, event in events.items()}
    try:
        # Step Functions does not answer: the job stays planned until the event comes again.
        batch.handler(events["planned.csv"], CONTEXT)
    except StorageUnavailable:
        account.create_state_machine()
    for name in ("running.csv", "complete.csv.gz", "refused.csv", "stopped.csv"):
        batch.handler(events[name], CONTEXT)
    steps = {name: _steps(account, jobs[name]) for name in ("running.csv", "complete.csv.gz", "stopped.csv")}
    for event in (*steps["complete.csv.gz"]["chunks"], steps["complete.csv.gz"]["finish"]):
        batch.handler(event, CONTEXT)
    # The first chunk only: the rest is for later code.
    batch.handler(steps["running.csv"]["chunks"][0], CONTEXT)
    for name, inputs in steps.items():
        _write_json(target / "events" / "steps" / f"{name}.json", inputs)


def _steps(account: Account, job: str) -> dict[str, Any]:
    """What the state machine is started with, and what it gives the function at each step."""
    start = account.started(job)
    manifest = account.s3.get_object(Bucket=start["manifest_bucket"], Key=start["manifest_key"])["Body"].read()
    common = {"job": start["job"], "model": start["model"]}
    error = {"Error": "States.Timeout", "Cause": ""}
    return {
        "start": start,
        "chunks": [{"action": "chunk", **common, "chunk": chunk} for chunk in json.loads(manifest)],
        "finish": {"action": "finish", **common},
        "fail": {"action": "fail", **common, "error": error},
    }


def _upload(account: Account, key: str, text: str, order: int) -> dict[str, Any]:
    """Put a file into the inbox; returns the event that S3 sends of it."""
    content = text.encode()
    if key.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    version = account.s3.put_object(Bucket="inbox", Key=key, Body=content)["VersionId"]
    record = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": CREDENTIALS["AWS_REGION"],
        "eventTime": AT,
        "eventName": "ObjectCreated:Put",
        "s3": {
            "s3SchemaVersion": "1.0",
            "bucket": {"name": "inbox", "arn": "arn:aws:s3:::inbox"},
            "object": {
                "key": key,
                "size": len(content),
                "versionId": version,
                "sequencer": f"0065F0A1B2C3D4E5F{order}",
            },
        },
    }
    return {"Records": [record]}


def _sqs_record(name: str, body: object) -> dict[str, Any]:
    """One of the records of an SQS event, as AWS documents it."""
    return {
        "messageId": name,
        "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a",
        "body": body if isinstance(body, str) else json.dumps(body),
        "attributes": {
            "ApproximateReceiveCount": "1",
            "SentTimestamp": str(SENT_MS),
            "SenderId": "AIDAIENQZJOLO23YVJ4VO",
            "ApproximateFirstReceiveTimestamp": str(SENT_MS + 7),
        },
        "messageAttributes": {},
        "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:threefold-dev-requests",
        "awsRegion": CREDENTIALS["AWS_REGION"],
    }


def _graph(name: str, version: str | None) -> onnx.ModelProto:
    if name == "claims":
        return graphs.claims()
    if name in {"rent", "half"}:
        return graphs.rent(LATER["rent"].get(version or "", 100.0))
    return graphs.sums(LATER["sums"].get(version or "", "Add"))


def _write_json(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_lines(path: Path, documents: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")


def _write_table(path: Path, records: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for record in records for name in record))
    cells = [[str(record.get(name, "")) for name in names] for record in records]
    lines = [",".join(row) for row in (names, *cells)]
    # Booleans as a CSV has them.
    text = "\n".join(lines).replace(",True", ",true").replace(",False", ",false")
    path.write_text(text + "\n", encoding="utf-8")


def _none() -> Any:
    message = "registry: want the release that was just written, got none"
    raise RuntimeError(message)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
