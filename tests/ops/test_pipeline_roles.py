"""The roles that docs/pipeline.md tells people to make allow what the workflow's verbs call, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import boto3
import pytest
from botocore.client import BaseClient
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from typer.testing import CliRunner

from tests.functions.conftest import REGION, aws, aws_url
from threefold.names import STACKS, Output, stack_name
from threefold_ops import target as targets
from threefold_ops.cli import load

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["aws", "aws_url"]

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "pipeline.md"
STAGE: Final = "prod"
BUCKET: Final = f"threefold-{STAGE}-models-{DEFAULT_ACCOUNT_ID}-{REGION}"
TARGET: Final = ("--aws", "--stage", STAGE, "--region", REGION)
NAMES: Final = {"account": DEFAULT_ACCOUNT_ID, "region": REGION, "stage": STAGE}


@dataclass(frozen=True)
class Call:
    """One call as IAM sees it."""

    action: str
    resource: str
    keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rule:
    """One action on one resource that a policy allows."""

    action: str
    resource: str
    required: frozenset[str]

    def allows(self, call: Call) -> bool:
        return call.action == self.action and fnmatchcase(call.resource, self.resource) and self.required <= call.keys


def own_rules(role: str) -> list[Rule]:
    """What the page lets a role do, beside what all may."""
    page = PAGE.read_text(encoding="utf-8")
    text = re.search(rf"^### The {role} role\n.*?```json\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    assert text is not None, role
    found = []
    for statement in json.loads(re.sub(r"<(\w+)>", lambda name: NAMES[name[1]], text[1]))["Statement"]:
        assert set(statement) <= {"Effect", "Action", "Resource", "Condition"}
        assert statement["Effect"] == "Allow"
        condition = statement.get("Condition", {"Null": {}})
        assert set(condition) == {"Null"}
        assert set(condition["Null"].values()) <= {"false"}
        resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        found += [Rule(statement["Action"], resource, frozenset(condition["Null"])) for resource in resources]
    return found


def rules(role: str) -> list[Rule]:
    """All that the page lets a role do."""
    return own_rules(role) if role == "read" else [*own_rules("read"), *own_rules(role)]


class Account:
    """An account with the stacks' outputs and the model bucket, which notes every call."""

    def __init__(self, patch: pytest.MonkeyPatch, url: str) -> None:
        boto3.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        boto3.client("s3").put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        values = {name: f"https://{name}.example" for key, name in vars(Output).items() if key.isupper()}
        template = {
            "Resources": {"Unused": {"Type": "AWS::SQS::Queue"}},
            "Outputs": {name: {"Value": value} for name, value in {**values, Output.MODEL_BUCKET: BUCKET}.items()},
        }
        for stack in STACKS:
            name = stack_name(STAGE, stack)
            boto3.client("cloudformation").create_stack(StackName=name, TemplateBody=json.dumps(template))
        self.calls: set[Call] = set()
        self._note_calls(patch)
        # The account's own address has TLS, which moto has not.
        patch.setattr(targets, "aws", lambda region, profile: targets.Target(boto3.Session(region_name=region), url))

    def _note_calls(self, patch: pytest.MonkeyPatch) -> None:
        serve, call = DomainDispatcherApplication.__call__, BaseClient._make_api_call  # type: ignore[attr-defined]

        def served(app: Any, environ: dict[str, Any], start: Any) -> Any:
            if "/s3/aws4_request" in environ.get("HTTP_AUTHORIZATION", ""):
                self._note_s3(environ)
            return serve(app, environ, start)

        def called(client: Any, operation: str, values: dict[str, Any]) -> Any:
            service = client.meta.service_model.service_name
            if service == "cloudformation":
                stack = f"arn:aws:cloudformation:{REGION}:{DEFAULT_ACCOUNT_ID}:stack/{values['StackName']}/id"
                self.calls.add(Call(f"cloudformation:{operation}", stack))
            elif service not in {"s3", "sts"}:  # Who somebody is may always be asked.
                self.calls.add(Call(f"{service}:{operation}", "*"))
            return call(client, operation, values)

        patch.setattr(DomainDispatcherApplication, "__call__", served)
        patch.setattr(BaseClient, "_make_api_call", called)

    def _note_s3(self, environ: dict[str, Any]) -> None:
        bucket, _, key = environ["PATH_INFO"].strip("/").partition("/")
        versioned = "Version" if "versionId=" in environ["QUERY_STRING"] else ""
        reads = (
            f"s3:GetObject{versioned}"
            if key
            else "s3:ListBucketVersions"
            if "versions" in parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
            else "s3:ListBucket"
        )
        action = {"GET": reads, "HEAD": reads, "PUT": "s3:PutObject"}.get(environ["REQUEST_METHOD"], "s3:other")
        headers = {"HTTP_IF_NONE_MATCH": "s3:if-none-match", "HTTP_IF_MATCH": "s3:if-match"}
        keys = frozenset(name for header, name in headers.items() if header in environ)
        self.calls.add(Call(action, f"arn:aws:s3:::{bucket}" + (f"/{key}" if key else ""), keys))

    def threefold(self, *words: str | Path, code: int = 0) -> str:
        """Run a verb as the workflow does; returns what it printed."""
        verb, *rest = map(str, words)
        done = CliRunner().invoke(load(), [verb, *TARGET, *rest], catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done.output

    def take(self) -> set[Call]:
        """The calls since the last time."""
        found, self.calls = self.calls, set()
        return found


@pytest.fixture
def account(aws: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    from urllib.request import Request, urlopen

    yield Account(monkeypatch, aws)
    monkeypatch.undo()
    with urlopen(Request(f"{aws}/moto-api/reset", method="POST")):
        pass


def changed(folder: Path, version: str, scratch: Path) -> Path:
    """A later version of a model folder."""
    later = scratch / version / folder.name
    shutil.copytree(folder, later)
    path = later / "model.yaml"
    path.write_text(path.read_text().replace("version: 1.0.0", f"version: {version}"))
    return later


def assert_just(calls: set[Call], role: str) -> None:
    """Each call is allowed, and each rule of the role's own is needed."""
    assert calls
    assert [call for call in calls if not any(rule.allows(call) for rule in rules(role))] == []
    assert [rule for rule in own_rules(role) if not any(rule.allows(call) for call in calls)] == []


def test_each_role_allows_what_its_job_calls_and_nothing_else(account: Account, models: Path, tmp_path: Path) -> None:
    folder = models / "diabetes"
    later = changed(folder, "1.1.0", tmp_path)

    account.threefold("publish", folder)
    account.threefold("publish", folder)
    account.threefold("publish", later)
    assert_just(account.take(), "publish")

    account.threefold("models", "--json")
    account.threefold("compare", "--max-rejections", "0.01", "--", "diabetes", later)
    assert_just(account.take(), "read")

    account.threefold("promote", "--by", "reviewer", "--why", "it errs by less", "--", "diabetes", "1.1.0")
    account.threefold("rollback", "--by", "reviewer", "--why", "it does not", "--", "diabetes")
    account.threefold("show", "--", "diabetes")
    assert_just(account.take(), "release")


def test_the_publish_role_cannot_promote() -> None:
    release = f"arn:aws:s3:::{BUCKET}/releases/diabetes.json"
    package = f"arn:aws:s3:::{BUCKET}/packages/diabetes/abc.zip"
    change = Call("s3:PutObject", release, frozenset({"s3:if-match"}))
    create = Call("s3:PutObject", package, frozenset({"s3:if-none-match"}))
    assert not any(rule.allows(change) for rule in rules("publish"))
    assert any(rule.allows(change) for rule in rules("release"))
    assert any(rule.allows(create) for rule in rules("publish"))
    assert not any(rule.allows(create) for rule in rules("release"))
    assert not any(rule.action == "s3:PutObject" for rule in rules("read"))
