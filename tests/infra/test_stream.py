from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.infra.assembly import text

if TYPE_CHECKING:
    from tests.infra.assembly import Assembly


def queue(assembly: Assembly, part: str, stage: str = "dev") -> dict[str, object]:
    return assembly.only("AWS::SQS::Queue", "stream", QueueName=f"threefold-{stage}-{part}")


@pytest.mark.parametrize("stage", ["iam", "prod"])
def test_a_message_stays_hidden_for_six_timeouts_and_the_window(stage: str, request: pytest.FixtureRequest) -> None:
    assembly = request.getfixturevalue(stage)
    timeout = assembly.only("AWS::Lambda::Function", "stream")["Timeout"]
    window = assembly.only("AWS::Lambda::EventSourceMapping", "stream")["MaximumBatchingWindowInSeconds"]
    name = "dev" if stage == "iam" else "prod"
    assert queue(assembly, "requests", name)["VisibilityTimeout"] >= 6 * timeout + window


def test_the_source_returns_single_messages_and_bounds_its_concurrency(iam: Assembly, prod: Assembly) -> None:
    for assembly, size, concurrency in ((iam, 100, 10), (prod, 10, 3)):
        source = assembly.only("AWS::Lambda::EventSourceMapping", "stream")
        assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert source["BatchSize"] == size
        # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html: above 10 it needs a window.
        assert source["MaximumBatchingWindowInSeconds"] >= 1
        assert source["ScalingConfig"] == {"MaximumConcurrency": concurrency}
        assert text(source["FunctionName"]).endswith(":live")
        (logical,) = [
            name
            for name, resource in assembly.resources("AWS::SQS::Queue", "stream").items()
            if resource["Properties"]["QueueName"].endswith("-requests")
        ]
        assert source["EventSourceArn"] == {"Fn::GetAtt": [logical, "Arn"]}


def test_a_message_is_given_up_after_ten_receives_at_the_earliest(iam: Assembly) -> None:
    redrive = queue(iam, "requests")["RedrivePolicy"]
    assert redrive["maxReceiveCount"] >= 10
    (logical,) = [
        name
        for name, resource in iam.resources("AWS::SQS::Queue", "stream").items()
        if resource["Properties"]["QueueName"].endswith("-dead-letters")
    ]
    assert redrive["deadLetterTargetArn"] == {"Fn::GetAtt": [logical, "Arn"]}


def test_given_up_messages_outlast_their_queue(iam: Assembly) -> None:
    assert queue(iam, "dead-letters")["MessageRetentionPeriod"] > queue(iam, "requests")["MessageRetentionPeriod"]


def test_every_queue_is_encrypted_and_over_tls(iam: Assembly) -> None:
    queues = iam.resources("AWS::SQS::Queue", "stream")
    assert len(queues) == 3
    assert all(each["Properties"]["SqsManagedSseEnabled"] is True for each in queues.values())
    policies = iam.resources("AWS::SQS::QueuePolicy", "stream").values()
    covered = {text(name) for policy in policies for name in policy["Properties"]["Queues"]}
    assert covered == {f"${{{logical}}}" for logical in queues}
    for policy in policies:
        (statement,) = policy["Properties"]["PolicyDocument"]["Statement"]
        assert statement["Effect"] == "Deny"
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
