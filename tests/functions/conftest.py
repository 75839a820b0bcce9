"""An AWS of moto's that speaks HTTP, the events that AWS sends, and the functions as Lambda would load them."""

from __future__ import annotations

import csv
import importlib
import json
import sys
import tempfile
import uuid
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import boto3
import pytest
from moto.server import ThreadedMotoServer
from openapi_schema_validator import OAS31Validator, oas31_format_checker

from threefold import openapi
from threefold.names import LOOKUP_INDEX
from threefold.outcomes import from_attribute
from threefold.registry import Registry, open_store
from threefold.release import Release, Version
from threefold.settings import Settings
from threefold_ops.authoring.folder import model_folders
from threefold_ops.registry.publish import publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from threefold.package import Package

REGION: Final = "eu-central-1"
ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
}
CONTEXT: Final = SimpleNamespace(get_remaining_time_in_millis=lambda: 30_000)


@pytest.fixture(scope="session")
def aws_url() -> Iterator[str]:
    """The address of an AWS."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(aws_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a function within that AWS; no setting of ours yet."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_LAMBDA_INITIALIZATION_TYPE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_url)
    return aws_url


def create_bucket() -> str:
    name = f"models-{uuid.uuid4().hex}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


def create_features_table() -> str:
    name = f"features-{uuid.uuid4().hex}"
    boto3.client("dynamodb").create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
    )
    return name


def open_registry(bucket: str, cache: Path) -> Registry:
    return Registry(open_store(bucket, Settings.from_env()), cache=cache, refresh_seconds=0.0)


@pytest.fixture(scope="module")
def example_bucket(aws_url: str, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with the example models, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", aws_url)
        bucket = create_bucket()
        registry = open_registry(bucket, tmp_path_factory.mktemp("cache"))
        for folder in model_folders(models):
            published = publish(registry, folder)
            assert published.new
            assert published.champion
        yield bucket


class Shelf:
    """A registry of a test's own."""

    def __init__(self, bucket: str, cache: Path) -> None:
        self.bucket = bucket
        self.registry = open_registry(bucket, cache)

    def release(self, champion: Package, **fields: Any) -> Release:
        """Publish a package and make it champion, whatever was before."""
        self.registry.packages.publish(champion)
        name = champion.manifest.name
        release = Release(model=name, champion=Version(champion.digest, champion.manifest.version), **fields)
        current = self.registry.current(name)
        self.registry.write_release(release, replaces=current and current[1])
        return release


@pytest.fixture
def shelf(aws: str, tmp_path: Path) -> Shelf:
    return Shelf(create_bucket(), tmp_path / "operator")


@pytest.fixture
def load(aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Import a function's module as a new execution environment does: nothing cached, /tmp empty."""

    def load(name: str, **environment: str) -> ModuleType:
        monkeypatch.setenv("THREEFOLD_DOOR", name)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        monkeypatch.delitem(sys.modules, f"functions.{name}", raising=False)
        module = importlib.import_module(f"functions.{name}")
        # Not for others: they would find this test's clients.
        monkeypatch.delitem(sys.modules, f"functions.{name}")
        return module

    return load


@dataclass
class Held:
    """Records that no training saw, and what the training library said of them."""

    records: list[dict[str, Any]]
    expected: list[dict[str, Any]]


def number(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text or None


@pytest.fixture(scope="session")
def held_out(models: Path) -> Callable[[str], Held]:
    def read(name: str) -> Held:
        with (models / name / "held-out.csv").open(newline="") as file:
            records = [{field: number(cell) for field, cell in row.items()} for row in csv.DictReader(file)]
        lines = (models / name / "held-out.expected.jsonl").read_text().splitlines()
        return Held(records, [json.loads(line) for line in lines])

    return read


def http_event(
    route: str,
    body: object = None,
    *,
    headers: dict[str, str] | None = None,
    claims: dict[str, Any] | None = None,
    raw_path: str | None = None,
    encoded: bool = False,
    **parameters: str,
) -> dict[str, Any]:
    """An event of API Gateway's HTTP API, payload format 2.0, as its documentation shows it."""
    method, _, path = route.partition(" ")
    for name, value in parameters.items():
        path = path.replace(f"{{{name}}}", value)
    path = path if raw_path is None else raw_path
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": route,
        "rawPath": path,
        "rawQueryString": "",
        "headers": {
            "accept": "*/*",
            "content-type": "application/json",
            "host": "abcdef1234.execute-api.eu-central-1.amazonaws.com",
            "user-agent": "curl/8.5.0",
            "x-amzn-trace-id": "Root=1-65f0a1b2-0123456789abcdef01234567",
            "x-forwarded-for": "203.0.113.7",
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
        }
        | (headers or {}),
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abcdef1234",
            "domainName": "abcdef1234.execute-api.eu-central-1.amazonaws.com",
            "domainPrefix": "abcdef1234",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "203.0.113.7",
                "userAgent": "curl/8.5.0",
            },
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": route,
            "stage": "$default",
            "time": "12/Mar/2026:19:03:58 +0000",
            "timeEpoch": 1773342238000,
        },
        "pathParameters": parameters,
        "isBase64Encoded": encoded,
    }
    if not parameters:
        del event["pathParameters"]
    if claims is not None:
        event["requestContext"]["authorizer"] = {"jwt": {"claims": claims, "scopes": None}}
    if body is not None:
        event["body"] = body if isinstance(body, str) else json.dumps(body)
    return event


@pytest.fixture(scope="session")
def http() -> Callable[..., dict[str, Any]]:
    return http_event


def create_table(name: str) -> None:
    """A table as the store stack has it, its index included."""
    boto3.client("dynamodb").create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk", LOOKUP_INDEX)],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        GlobalSecondaryIndexes=[
            {
                "IndexName": LOOKUP_INDEX,
                "KeySchema": [{"AttributeName": LOOKUP_INDEX, "KeyType": "HASH"}],
                "Projection": {"ProjectionType": "KEYS_ONLY"},
            }
        ],
    )


def sqs_record(
    body: object, message_id: str, *, receives: int = 1, group: str | None = None, **attributes: str
) -> dict[str, Any]:
    """One of the records of an SQS event, as AWS documents it."""
    return {
        "messageId": message_id,
        "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a...",
        "body": body if isinstance(body, str) else json.dumps(body),
        "attributes": {
            "ApproximateReceiveCount": str(receives),
            "SentTimestamp": "1773342238123",
            "SenderId": "AIDAIENQZJOLO23YVJ4VO",
            "ApproximateFirstReceiveTimestamp": "1773342238130",
            **({"MessageGroupId": group} if group else {}),
        },
        "messageAttributes": {
            name.replace("_", "-"): {
                "stringValue": value,
                "stringListValues": [],
                "binaryListValues": [],
                "dataType": "String",
            }
            for name, value in attributes.items()
        },
        "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:{REGION}:123456789012:threefold-dev-requests{'.fifo' if group else ''}",
        "awsRegion": REGION,
    }


@pytest.fixture(scope="session")
def sqs() -> Callable[..., dict[str, Any]]:
    return sqs_record


class Stream:
    """The stream function with its own table, queues and bucket."""

    def __init__(self, load: Callable[..., ModuleType], bucket: str, *, fifo: bool = False, **environment: str) -> None:
        self.sqs = boto3.client("sqs")
        self.s3 = boto3.client("s3")
        self.dynamodb = boto3.client("dynamodb")
        suffix, attributes = (".fifo", {"FifoQueue": "true"}) if fifo else ("", {})
        names = [f"{part}-{uuid.uuid4().hex}{suffix}" for part in ("predictions", "requests", "dead-letters")]
        self.queue_url, self.requests_url, self.dead_letters_url = (
            self.sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"] for name in names
        )
        self.results = create_bucket()
        self.table = name = f"predictions-{uuid.uuid4().hex}"
        create_table(name)
        self.features_table = create_features_table()
        self._load = load
        self._environment = {
            "THREEFOLD_MODEL_BUCKET": bucket,
            "THREEFOLD_FEATURES_TABLE": self.features_table,
            "THREEFOLD_PREDICTIONS_TABLE": name,
            "THREEFOLD_PREDICTIONS_QUEUE_URL": self.queue_url,
            "THREEFOLD_REQUESTS_QUEUE": names[1],
            "THREEFOLD_DEAD_LETTER_QUEUE_URL": self.dead_letters_url,
            "THREEFOLD_RESULTS_BUCKET": self.results,
            **environment,
        }
        self.module = self.restart()

    def restart(self, **environment: str) -> ModuleType:
        """A new execution environment."""
        self.module = self._load("stream", **(self._environment | environment))
        return self.module

    def handle(self, *records: dict[str, Any], milliseconds: int = 30_000) -> list[str]:
        """Deliver one batch; returns the ids of the messages that go back to the queue."""
        context = SimpleNamespace(get_remaining_time_in_millis=lambda: milliseconds)
        response = self.module.handler({"Records": list(records)}, context)
        assert list(response) == ["batchItemFailures"]
        return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]

    def sent(self) -> list[dict[str, Any]]:
        """What arrived on the predictions queue since the last look."""
        found: list[dict[str, Any]] = []
        while messages := self.sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                self.sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
            found += [json.loads(message["Body"]) for message in messages]
        return found

    def given_up(self) -> list[dict[str, Any]]:
        """What is in the dead-letter queue, as the function would get it if it were sent again."""
        found: list[dict[str, Any]] = []
        wanted = {"MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"], "AttributeNames": ["All"]}
        while messages := self.sqs.receive_message(QueueUrl=self.dead_letters_url, **wanted).get("Messages"):
            found += messages
        return found

    def stored(self) -> dict[str, dict[str, Any]]:
        """The items of the predictions table, by prediction id."""
        pages = self.dynamodb.get_paginator("scan").paginate(TableName=self.table)
        items = [
            {name: from_attribute(value) for name, value in item.items()} for page in pages for item in page["Items"]
        ]
        return {item["id"]: item for item in items if "id" in item}


@pytest.fixture
def make_stream(load: Callable[..., ModuleType]) -> Callable[..., Stream]:
    return lambda bucket, **options: Stream(load, bucket, **options)


class Api:
    """The api function with buckets and tables of its own, and each of its answers held against its own document."""

    def __init__(self, load: Callable[..., ModuleType], bucket: str, **environment: str) -> None:
        self.s3, self.dynamodb = boto3.client("s3"), boto3.client("dynamodb")
        self.inbox, self.results = create_bucket(), create_bucket()
        self.jobs_table, self.table = (f"{part}-{uuid.uuid4().hex}" for part in ("jobs", "predictions"))
        for name in (self.jobs_table, self.table):
            create_table(name)
        steps = boto3.client("stepfunctions")
        definition = json.dumps({"StartAt": "Wait", "States": {"Wait": {"Type": "Wait", "Seconds": 60, "End": True}}})
        role = "arn:aws:iam::123456789012:role/batch"
        made = steps.create_state_machine(name=f"batch-{uuid.uuid4().hex}", definition=definition, roleArn=role)
        self.steps, self.machine = steps, made["stateMachineArn"]
        self.module = load(
            "api",
            **{
                "THREEFOLD_MODEL_BUCKET": bucket,
                "THREEFOLD_INBOX_BUCKET": self.inbox,
                "THREEFOLD_RESULTS_BUCKET": self.results,
                "THREEFOLD_JOBS_TABLE": self.jobs_table,
                "THREEFOLD_PREDICTIONS_TABLE": self.table,
                "THREEFOLD_STATE_MACHINE_ARN": self.machine,
                **environment,
            },
        )

    def raw(self, route: str, body: object = None, *, query: dict[str, str] | None = None, **fields: Any) -> Any:
        """One call; its body is strict JSON and has no traceback in it, and is of the form that is documented."""
        event = http_event(route, body, **fields)
        if query:
            event["queryStringParameters"] = query
            event["rawQueryString"] = urlencode(query)
        response: dict[str, Any] = self.module.handler(event, CONTEXT)
        assert response["isBase64Encoded"] is False
        assert response["headers"]["content-type"] == "application/json"
        document = json.loads(response["body"], parse_constant=pytest.fail)
        assert "Traceback" not in response["body"]
        problems = self._misfits(route, response["statusCode"], document)
        assert not problems, f"{route}: {problems}"
        return response

    def __call__(self, route: str, body: object = None, **fields: Any) -> tuple[int, dict[str, Any]]:
        response = self.raw(route, body, **fields)
        return response["statusCode"], json.loads(response["body"])

    def document(self) -> dict[str, Any]:
        """What the function says of all its routes, with no model in it."""
        return json.loads(json.dumps(openapi.complete(self.module._own_document(), [], "none")))

    def _misfits(self, route: str, status: int, body: object) -> list[str]:
        document = self.document()
        method, _, path = route.partition(" ")
        answers = document["paths"].get(path, {}).get(method.lower(), {}).get("responses", {})
        answer = answers.get(str(status), document["paths"]["/openapi.json"]["get"]["responses"]["default"])
        schema = answer["content"]["application/json"]["schema"] | {"components": document["components"]}
        validator = OAS31Validator(schema, format_checker=oas31_format_checker)
        return [error.message for error in validator.iter_errors(body)]


@pytest.fixture
def make_api(load: Callable[..., ModuleType]) -> Callable[..., Api]:
    return lambda bucket, **environment: Api(load, bucket, **environment)
