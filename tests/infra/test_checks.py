from __future__ import annotations

from typing import TYPE_CHECKING

from aws_cdk import App, Stack
from aws_cdk import aws_sqs as sqs
from cdk_nag import AwsSolutionsChecks
from cfnlint.api import ManualArgs, lint

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.infra.assembly import Assembly


def findings(app: App) -> list[str]:
    report = AwsSolutionsChecks(app).validate_scope(app)
    found = [
        f"{violation.rule_name} at {resource.construct_path}"
        for violation in report.violations
        for resource in violation.violating_resources
    ]
    assert report.success is not bool(found)
    return found


def test_cdk_nag_finds_nothing_that_is_not_accepted_with_a_reason(each: Assembly) -> None:
    assert findings(each.app) == []


def test_cdk_nag_finds_nothing_where_the_stream_keeps_order_and_fans_out(synthesize: Callable[..., Assembly]) -> None:
    assert findings(synthesize(streamFifo="true", streamFanOut="true").app) == []


def test_cdk_nag_finds_what_is_wrong() -> None:
    app = App()
    sqs.Queue(Stack(app, "Wrong"), "Open")
    assert {each.split()[0] for each in findings(app)} == {"AwsSolutions-SQS3", "AwsSolutions-SQS4"}


def problems(template: str) -> list[str]:
    # W3005: the CDK itself writes a DependsOn of a function on its role beside the reference.
    matches = lint(template, config=ManualArgs(ignore_checks=["W3005"], regions=["us-east-1", "eu-central-1"]))
    return [f"{match.rule.id} {match.message}" for match in matches]


def test_cfn_lint_finds_nothing(each: Assembly) -> None:
    files = sorted(each.folder.glob("*.template.json"))
    assert len(files) == 5
    assert {file.name: problems(file.read_text()) for file in files} == {file.name: [] for file in files}


def test_cfn_lint_finds_what_is_wrong() -> None:
    wrong = '{"Resources": {"Queue": {"Type": "AWS::SQS::Queue", "Properties": {"VisibilityTimeout": "long"}}}}'
    assert [problem.split()[0] for problem in problems(wrong)] == ["E3012"]
