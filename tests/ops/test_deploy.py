"""Reading a cloud assembly and deploying it, against moto."""

from __future__ import annotations

import io
import json
import os
import zipfile
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto import mock_aws

from threefold_ops import assembly, deploy
from threefold_ops.errors import OperatorError
from threefold_ops.target import Target, emulator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUCKET = "cdk-hnb659fds-assets-${AWS::AccountId}-${AWS::Region}"
TABLE = {
    "Type": "AWS::DynamoDB::Table",
    "Properties": {
        "TableName": "answers",
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": "pk", "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}],
        "TimeToLiveSpecification": {"AttributeName": "expires", "Enabled": True},
    },
}
QUEUE = {"Type": "AWS::SQS::Queue", "Properties": {"QueueName": "answers"}}


def write_assembly(folder: Path, stacks: dict[str, dict[str, Any]], after: dict[str, list[str]] | None = None) -> Path:
    """Write an assembly as the CDK does, each stack with its template and one folder among its assets."""
    folder.mkdir(exist_ok=True)
    artifacts: dict[str, Any] = {}
    for name, template in stacks.items():
        (folder / f"{name}.template.json").write_text(json.dumps(template))
        (folder / f"asset.{name}").mkdir(exist_ok=True)
        (folder / f"asset.{name}" / "handler.py").write_text("VALUE = 1\n")
        files = {
            "code": ("zip", f"asset.{name}", f"{name}.zip"),
            "template": ("file", f"{name}.template.json", f"{name}.json"),
        }
        manifest = {
            "version": "48.0.0",
            "files": {
                identity: {
                    "displayName": f"{name} {identity}",
                    "source": {"path": path, "packaging": packaging},
                    "destinations": {"current": {"bucketName": BUCKET, "objectKey": key}},
                }
                for identity, (packaging, path, key) in files.items()
            },
            "dockerImages": {},
        }
        (folder / f"{name}.assets.json").write_text(json.dumps(manifest))
        artifacts[f"{name}.assets"] = {"type": "cdk:asset-manifest", "properties": {"file": f"{name}.assets.json"}}
        artifacts[name] = {
            "type": "aws:cloudformation:stack",
            "properties": {
                "templateFile": f"{name}.template.json",
                "stackName": name,
                "stackTemplateAssetObjectUrl": f"s3://{BUCKET}/{name}.json",
                "tags": {"stage": "test"},
            },
            "dependencies": [f"{name}.assets", *(after or {}).get(name, [])],
        }
    (folder / "manifest.json").write_text(json.dumps({"version": "48.0.0", "artifacts": artifacts}))
    return folder


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with mock_aws():
        session = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="eu-central-1")
        session.client("s3").create_bucket(
            Bucket="cdk-hnb659fds-assets-123456789012-eu-central-1",
            CreateBucketConfiguration={"LocationConstraint": "eu-central-1"},
        )
        yield Target(session)


def test_stacks_come_after_those_they_depend_on(tmp_path: Path) -> None:
    stacks = {"serving": {"Resources": {"Queue": QUEUE}}, "store": {"Resources": {"Table": TABLE}}}
    folder = write_assembly(tmp_path, stacks, after={"serving": ["store"]})
    assert assembly.plan(folder) == [
        ("store", "AWS::DynamoDB::Table", "Table"),
        ("serving", "AWS::SQS::Queue", "Queue"),
    ]


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="run the synthesis first"):
        assembly.read(tmp_path)


def test_an_unknown_stack_is_refused_by_name(tmp_path: Path, account: Target) -> None:
    folder = write_assembly(tmp_path, {"store": {"Resources": {"Table": TABLE}}})
    with pytest.raises(OperatorError, match="want one of store, got shop"):
        deploy.deploy(folder, account, stacks=["shop"])


def test_the_same_files_give_the_same_zip_whatever_their_times(tmp_path: Path) -> None:
    archives: list[bytes] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "package" / "__pycache__").mkdir(parents=True)
        for file in ("b.py", "a.py") if name == "one" else ("a.py", "b.py"):
            (folder / "package" / file).write_text(file)
        (folder / "package" / "__pycache__" / "a.pyc").write_text("bytecode")
        os.utime(folder / "package" / "a.py", (len(archives), 1_000_000_000))
        content = io.BytesIO()
        deploy.write_zip(folder, content)
        archives.append(content.getvalue())
    assert archives[0] == archives[1]
    # The runtime layer's bytecode must reach Lambda: without it each cold start compiles the wheels.
    assert "package/__pycache__/a.pyc" in zipfile.ZipFile(io.BytesIO(archives[0])).namelist()


def test_a_deploy_returns_outputs_and_a_second_one_changes_nothing(tmp_path: Path, account: Target) -> None:
    template = {"Resources": {"Queue": QUEUE}, "Outputs": {"Url": {"Value": {"Ref": "Queue"}}}}
    folder = write_assembly(tmp_path, {"serving": template})
    outputs = deploy.deploy(folder, account)
    assert outputs["serving"]["Url"].endswith("/answers")
    assert deploy.describe(account, ["serving", "absent"]) == outputs
    asset = assembly.read(folder)[0].assets[0]
    assert deploy.publish(asset, account) is False


def test_a_large_template_goes_through_the_bucket(tmp_path: Path, account: Target) -> None:
    template = {"Description": "x" * 1000, "Metadata": {"filling": "x" * 60_000}, "Resources": {"Queue": QUEUE}}
    folder = write_assembly(tmp_path, {"serving": template})
    deploy.deploy(folder, account)
    assert account.client("sqs").get_queue_url(QueueName="answers")


def test_a_destroyed_stack_is_gone(tmp_path: Path, account: Target) -> None:
    folder = write_assembly(tmp_path, {"serving": {"Resources": {"Queue": QUEUE}}})
    deploy.deploy(folder, account)
    deploy.destroy(folder, account)
    assert deploy.describe(account, ["serving"]) == {}


def test_a_bucket_that_is_not_there_is_named(tmp_path: Path, account: Target) -> None:
    account.client("s3").delete_bucket(Bucket="cdk-hnb659fds-assets-123456789012-eu-central-1")
    folder = write_assembly(tmp_path, {"serving": {"Resources": {"Queue": QUEUE}}})
    with pytest.raises(OperatorError, match="cdk-hnb659fds-assets-123456789012-eu-central-1"):
        deploy.deploy(folder, account)


def test_an_emulator_is_never_reached_with_the_operators_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "config"
    settings.write_text("[default]\nregion = ap-south-1\nendpoint_url = https://example.com\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(settings))
    monkeypatch.setenv("AWS_PROFILE", "not-there")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "real")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "real")
    target = emulator("http://127.0.0.1:1")
    client = target.client("s3")
    assert client.meta.endpoint_url == "http://127.0.0.1:1"
    assert target.region == "us-east-1"
    credentials = target.session.get_credentials()
    assert credentials is not None
    assert (credentials.access_key, credentials.token) == ("test", None)
