"""The embedded AWS as a whole: a real emulator, real runtime processes, a hand-written stack."""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from threefold_ops import deploy
from threefold_ops.errors import OperatorError
from threefold_ops.local import emulator
from threefold_ops.target import Target
from threefold_ops.target import emulator as emulator_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("THREEFOLD_EMULATOR_PYTHON", REPOSITORY / ".threefold" / "emulator" / "bin" / "python"))

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no emulator environment at {PYTHON}"),
]

HANDLER = """
import json, os, sys, threading, time
import boto3, shade

STARTED = time.time_ns()

class SourGrapesError(Exception):
    pass

def handle(event, context):
    match event.get("do"):
        case "raise": raise SourGrapesError("too sour")
        case "exit": sys.exit(3)
        case "die later": threading.Timer(0.1, os._exit, [0]).start()
        case "sleep": time.sleep(event["seconds"])
        case "eat":
            eaten = b"x" * (event["megabytes"] << 20)
            del eaten
        case "fill": return "x" * event["size_bytes"]
        case "environment": return {"variables": dict(os.environ), "path": sys.path, "modules": sorted(sys.modules)}
        case "import":
            try:
                __import__(event["module"])
            except ImportError:
                return False
            return True
        case "metric":
            print(json.dumps({
                "_aws": {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [{
                    "Namespace": "Threefold", "Dimensions": [["door"], ["door", "model"]],
                    "Metrics": [{"Name": "Predictions", "Unit": "Count"},
                                {"Name": "Latency", "Unit": "Milliseconds"}]}]},
                "door": "predict", "model": "wine", "Predictions": 7, "Latency": [1.5, 2.5]}))
        case "say": print(event["text"])
    return {"started": STARTED, "arn": context.invoked_function_arn, "shade": shade.NAME,
            "buckets": len(boto3.client("s3").list_buckets()["Buckets"]) if event.get("do") == "list" else None}
"""


def write_assembly(folder: Path) -> Path:
    """Write an assembly with one function, one layer and one table."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "wine.py").write_text(HANDLER)
    (folder / "layer" / "python").mkdir(parents=True)
    (folder / "layer" / "python" / "shade.py").write_text('NAME = "red"\n')
    bucket = "cdk-hnb659fds-assets-${AWS::AccountId}-${AWS::Region}"
    real = {"Fn::Sub": bucket}
    function = {
        "Code": {"S3Bucket": real, "S3Key": "code.zip"},
        "Runtime": "python3.13",
        "Handler": "wine.handle",
        "Role": {"Fn::GetAtt": ["Role", "Arn"]},
        "Layers": [{"Ref": "Layer"}],
        "MemorySize": 256,
        "Timeout": 3,
        "Environment": {"Variables": {"COLOR": "white"}},
    }
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "lambda.amazonaws.com"}}
        ],
    }
    broken = {**function, "Handler": "absent.handle"}
    template = {
        "Parameters": {
            "BootstrapVersion": {
                "Type": "AWS::SSM::Parameter::Value<String>",
                "Default": "/cdk-bootstrap/hnb659fds/version",
            }
        },
        "Resources": {
            "Role": {"Type": "AWS::IAM::Role", "Properties": {"AssumeRolePolicyDocument": trust}},
            "Layer": {
                "Type": "AWS::Lambda::LayerVersion",
                "Properties": {"Content": {"S3Bucket": real, "S3Key": "layer.zip"}},
            },
            "Wine": {"Type": "AWS::Lambda::Function", "Properties": {**function, "FunctionName": "wine"}},
            "Version": {"Type": "AWS::Lambda::Version", "Properties": {"FunctionName": {"Ref": "Wine"}}},
            "Live": {
                "Type": "AWS::Lambda::Alias",
                "Properties": {
                    "FunctionName": {"Ref": "Wine"},
                    "FunctionVersion": {"Fn::GetAtt": ["Version", "Version"]},
                    "Name": "live",
                },
            },
            "Broken": {"Type": "AWS::Lambda::Function", "Properties": {**broken, "FunctionName": "broken"}},
            "Table": {
                "Type": "AWS::DynamoDB::Table",
                "Properties": {
                    "TableName": "answers",
                    "BillingMode": "PAY_PER_REQUEST",
                    "AttributeDefinitions": [{"AttributeName": "pk", "AttributeType": "S"}],
                    "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}],
                    "TimeToLiveSpecification": {"AttributeName": "expires", "Enabled": True},
                },
            },
        },
        "Outputs": {"Name": {"Value": {"Ref": "Wine"}}},
    }
    (folder / "store.template.json").write_text(json.dumps(template))
    files = {
        name: {
            "source": {"path": name, "packaging": "zip"},
            "destinations": {"current": {"bucketName": bucket, "objectKey": f"{name}.zip"}},
        }
        for name in ("code", "layer")
    }
    (folder / "store.assets.json").write_text(json.dumps({"files": files}))
    artifacts = {
        "store.assets": {"type": "cdk:asset-manifest", "properties": {"file": "store.assets.json"}},
        "store": {
            "type": "aws:cloudformation:stack",
            "properties": {"templateFile": "store.template.json", "stackName": "store"},
            "dependencies": ["store.assets"],
        },
    }
    (folder / "manifest.json").write_text(json.dumps({"artifacts": artifacts}))
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[emulator.Emulator]:
    with emulator.running(tmp_path_factory.mktemp("state"), PYTHON, port=0) as started:
        yield started


@pytest.fixture(scope="module")
def target(running: emulator.Emulator, tmp_path_factory: pytest.TempPathFactory) -> Target:
    aws = emulator_target(running.endpoint_url)
    outputs = deploy.deploy(write_assembly(tmp_path_factory.mktemp("assembly")), aws)
    assert outputs == {"store": {"Name": "wine"}}
    return aws


Answer = tuple[str | None, Any]


@pytest.fixture(scope="module")
def invoke(target: Target) -> Callable[..., Answer]:
    client = target.client("lambda")

    def call(name: str = "wine", **event: object) -> Answer:
        response = client.invoke(FunctionName=name, Payload=json.dumps(event))
        return response.get("FunctionError"), json.loads(response["Payload"].read())

    return call


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_an_environment_answers_and_is_used_again(invoke: Callable[..., Answer]) -> None:
    error, first = invoke()
    assert error is None
    assert first["shade"] == "red"
    assert invoke()[1]["started"] == first["started"]


def test_an_alias_reaches_its_version_under_its_own_arn(invoke: Callable[..., Answer]) -> None:
    error, answer = invoke("wine:live")
    assert error is None
    assert answer["arn"].endswith(":function:wine:live")


def test_an_error_keeps_its_type_and_the_environment_lives_on(invoke: Callable[..., Answer]) -> None:
    before = invoke()[1]["started"]
    error, answer = invoke(do="raise")
    assert error == "Unhandled"
    assert (answer["errorType"], answer["errorMessage"]) == ("SourGrapesError", "too sour")
    assert "wine.py" in answer["stackTrace"][0]
    assert invoke()[1]["started"] == before


def test_a_function_that_cannot_be_imported_says_so(invoke: Callable[..., Answer]) -> None:
    error, answer = invoke("broken")
    assert error == "Unhandled"
    assert answer["errorType"] == "Runtime.ImportModuleError"
    assert "absent" in answer["errorMessage"]


def test_a_function_that_exits_is_an_exit_error(invoke: Callable[..., Answer]) -> None:
    _, answer = invoke(do="exit")
    assert answer["errorType"] == "Runtime.ExitError"
    assert answer["errorMessage"].endswith("exit status 3")
    assert invoke()[0] is None


def test_an_environment_that_died_while_idle_is_replaced_unnoticed(invoke: Callable[..., Answer]) -> None:
    error, before = invoke(do="die later")
    assert error is None
    time.sleep(0.5)
    error, after = invoke()
    assert error is None
    assert after["started"] != before["started"]


def test_a_function_over_its_timeout_is_stopped_at_it(invoke: Callable[..., Answer]) -> None:
    started = time.monotonic()
    _, answer = invoke(do="sleep", seconds=30)
    assert 3 <= time.monotonic() - started < 6
    assert answer["errorType"] == "Sandbox.Timedout"
    assert answer["errorMessage"].endswith("Task timed out after 3.00 seconds")
    assert invoke()[0] is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process's memory")
def test_a_function_over_its_memory_is_killed_even_if_it_gave_it_back(invoke: Callable[..., Answer]) -> None:
    assert invoke(do="eat", megabytes=100)[0] is None
    _, answer = invoke(do="eat", megabytes=300)
    assert answer["errorType"] == "Runtime.ExitError"
    assert answer["errorMessage"].endswith("signal: killed")
    assert invoke()[0] is None


def test_a_response_over_the_limit_is_refused_and_one_under_it_is_not(invoke: Callable[..., Answer]) -> None:
    _, answer = invoke(do="fill", size_bytes=6_291_556)
    assert answer["errorType"] == "Function.ResponseSizeTooLarge"
    error, text = invoke(do="fill", size_bytes=6_291_554)
    assert error is None
    assert len(text) == 6_291_554


def test_a_request_over_the_limit_is_refused(invoke: Callable[..., Answer]) -> None:
    error, answer = invoke(text="x" * 6_291_456)
    assert error == "Unhandled"
    assert answer["errorType"] == "RequestTooLargeException"


def test_concurrent_invocations_get_environments_of_their_own(invoke: Callable[..., Answer]) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: invoke(do="sleep", seconds=1), range(4)))
    assert len({answer["started"] for _, answer in answers}) == 4


def test_invocations_beyond_the_most_wait_and_are_served(invoke: Callable[..., Answer]) -> None:
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: invoke(do="sleep", seconds=0.5), range(12)))
    assert all(error is None for error, _ in answers)
    assert len({answer["started"] for _, answer in answers}) <= 8


def test_only_lambdas_own_variables_and_packages_are_there(invoke: Callable[..., Answer]) -> None:
    _, answer = invoke(do="environment")
    variables = answer["variables"]
    assert variables["COLOR"] == "white"
    assert variables["AWS_LAMBDA_FUNCTION_NAME"] == "wine"
    assert variables["AWS_EXECUTION_ENV"] == "AWS_Lambda_python3.13"
    # What the interpreter itself adds, and what the runtime client sets for an invocation.
    allowed = {
        "COLOR",
        "LC_CTYPE",
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
        "PATH",
        "LANG",
        "TZ",
        "HOME",
        "TMPDIR",
        "PYTHONPATH",
    }
    allowed |= {"LD_LIBRARY_PATH", "__CF_USER_TEXT_ENCODING"}
    assert {name for name in variables if not name.startswith(("AWS_", "LAMBDA_"))} <= allowed
    assert not [folder for folder in answer["path"] if "site-packages" in folder or "dist-packages" in folder]
    for module in ("ministack", "hypercorn", "cryptography", "pytest", "pip"):
        assert invoke(do="import", module=module)[1] is False, module


def test_a_function_reaches_the_emulator_with_the_sdk_that_lambda_brings(invoke: Callable[..., Answer]) -> None:
    error, answer = invoke(do="list")
    assert error is None
    assert answer["buckets"] >= 1


def test_a_changed_configuration_replaces_the_environments(invoke: Callable[..., Answer], target: Target) -> None:
    assert invoke(do="environment")[1]["variables"]["COLOR"] == "white"
    client = target.client("lambda")
    try:
        client.update_function_configuration(FunctionName="wine", Environment={"Variables": {"COLOR": "rose"}})
        assert invoke(do="environment")[1]["variables"]["COLOR"] == "rose"
    finally:
        client.update_function_configuration(FunctionName="wine", Environment={"Variables": {"COLOR": "white"}})


def test_metric_lines_become_metrics_of_every_dimension_set(invoke: Callable[..., Answer], target: Target) -> None:
    assert invoke(do="metric")[0] is None
    cloudwatch = target.client("cloudwatch")
    now = datetime.now(UTC)

    def total(metric: str, **dimensions: str) -> float:
        points = cloudwatch.get_metric_statistics(
            Namespace="Threefold",
            MetricName=metric,
            Dimensions=[{"Name": name, "Value": value} for name, value in dimensions.items()],
            StartTime=now - timedelta(hours=1),
            EndTime=now + timedelta(hours=1),
            Period=3600,
            Statistics=["Sum"],
        )["Datapoints"]
        return float(sum(point["Sum"] for point in points))

    assert until(lambda: total("Predictions", door="predict") == 7)
    assert until(lambda: total("Predictions", door="predict", model="wine") == 7)
    assert until(lambda: total("Latency", door="predict") == 4)


def test_what_a_function_prints_is_in_its_log_between_lambdas_own_lines(
    invoke: Callable[..., Answer], target: Target
) -> None:
    assert invoke(do="say", text="a glass of red")[0] is None
    logs = target.client("logs")
    streams = logs.describe_log_streams(logGroupName="/aws/lambda/wine")["logStreams"]
    messages = [
        [
            event["message"]
            for event in logs.get_log_events(logGroupName="/aws/lambda/wine", logStreamName=name)["events"]
        ]
        for name in (stream["logStreamName"] for stream in streams)
    ]
    (lines,) = [lines for lines in messages if "a glass of red" in lines]
    start, said, end, report = [line for line in lines if not line.startswith("INIT")][-4:]
    assert start.startswith("START RequestId")
    assert said == "a glass of red"
    assert end.startswith("END RequestId")
    assert "Max Memory Used" in report


def test_a_table_keeps_its_time_to_live(target: Target) -> None:
    answer = target.client("dynamodb").describe_time_to_live(TableName="answers")["TimeToLiveDescription"]
    assert answer == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expires"}


def test_a_second_deploy_finds_nothing_to_do(target: Target, tmp_path: Path) -> None:
    told: list[str] = []
    deploy.deploy(write_assembly(tmp_path / "again"), target, progress=told.append)
    assert told == ["store: updating", "store: unchanged"]


def write_one_stack(folder: Path, name: str, resources: dict[str, Any]) -> Path:
    """Write an assembly of one stack without assets."""
    folder.mkdir()
    (folder / "stack.template.json").write_text(json.dumps({"Resources": resources}))
    properties = {"templateFile": "stack.template.json", "stackName": name}
    artifacts = {name: {"type": "aws:cloudformation:stack", "properties": properties}}
    (folder / "manifest.json").write_text(json.dumps({"artifacts": artifacts}))
    return folder


def test_a_failed_stack_tells_which_resource_and_why(target: Target, tmp_path: Path) -> None:
    group = {"Type": "AWS::CodeDeploy::DeploymentGroup", "Properties": {"ApplicationName": "none"}}
    folder = write_one_stack(tmp_path / "failing", "failing", {"Group": group})
    with pytest.raises(OperatorError, match=r"(?s)stack failing: .*AWS::CodeDeploy"):
        deploy.deploy(folder, target)


def custom(runtime: str, code: str, kind: str, **properties: object) -> dict[str, Any]:
    """Resources for a custom resource with an inline function."""
    function = {
        "Runtime": runtime,
        "Handler": "index.handle",
        "Role": "arn:aws:iam::000000000000:role/any",
        "Code": {"ZipFile": code},
    }
    token = {"Fn::GetAtt": ["Function", "Arn"]}
    return {
        "Function": {"Type": "AWS::Lambda::Function", "Properties": function},
        "Custom": {"Type": kind, "Properties": {"ServiceToken": token, **properties}},
    }


def test_a_custom_resource_that_fails_fails_its_stack_at_once(target: Target, tmp_path: Path) -> None:
    resources = custom("python3.13", "def handle(event, context):\n    raise ValueError('corked')\n", "Custom::Cork")
    folder = write_one_stack(tmp_path / "corked", "corked", resources)
    with pytest.raises(OperatorError, match="corked"):
        deploy.deploy(folder, target)


def test_a_bucket_that_deletes_its_objects_is_emptied_when_its_stack_goes(target: Target, tmp_path: Path) -> None:
    resources = custom(
        "nodejs22.x", "require('@aws-sdk/client-s3')", "Custom::S3AutoDeleteObjects", BucketName="cellar"
    )
    bucket = {"BucketName": "cellar", "VersioningConfiguration": {"Status": "Enabled"}}
    resources["Bucket"] = {"Type": "AWS::S3::Bucket", "Properties": bucket}
    resources["Custom"]["DependsOn"] = ["Bucket"]
    folder = write_one_stack(tmp_path / "cellar", "cellar", resources)
    deploy.deploy(folder, target)
    s3 = target.client("s3")
    for _ in range(2):
        s3.put_object(Bucket="cellar", Key="bottle", Body=b"red")
    deploy.destroy(folder, target)
    assert "cellar" not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_nothing_listens_beyond_loopback(running: emulator.Emulator, invoke: Callable[..., Answer]) -> None:
    invoke()
    inodes = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) != running.pid:
                continue
            links = {str(entry.readlink()) for entry in (process / "fd").iterdir()}
            inodes |= {link[8:-1] for link in links if link.startswith("socket:")}
        except (FileNotFoundError, ProcessLookupError):
            continue
    listening = [
        fields[1]
        for table in ("tcp", "tcp6")
        for fields in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        if fields[3] == "0A" and fields[9] in inodes
    ]
    assert len(listening) >= 2
    assert {address.split(":")[0] for address in listening} == {"0100007F"}
