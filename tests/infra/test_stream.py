from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.infra.assembly import text

if TYPE_CHECKING:
    from collections.abc import Callable

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


@pytest.fixture(scope="session")
def ordered(synthesize: Callable[..., Assembly]) -> Assembly:
    """FIFO queues, and a topic of all outcomes."""
    return synthesize(streamFifo="true", streamFanOut="true")


def test_in_order_every_queue_is_fifo_and_each_group_has_its_own_pace(ordered: Assembly) -> None:
    for part in ("requests", "predictions", "dead-letters"):
        found = queue(ordered, f"{part}.fifo")
        assert (found["FifoQueue"], found["ContentBasedDeduplication"]) == (True, True)
        assert found["DeduplicationScope"] == "messageGroup"
        assert found["FifoThroughputLimit"] == "perMessageGroupId"
    source = ordered.only("AWS::Lambda::EventSourceMapping", "stream")
    # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html: at most 10, and no window.
    assert source["BatchSize"] == 10
    assert "MaximumBatchingWindowInSeconds" not in source
    # The function counts tries there: waiting for others is none.
    assert queue(ordered, "requests.fifo")["RedrivePolicy"]["maxReceiveCount"] == 1000


def test_what_watches_and_fills_the_queues_knows_them_by_their_names(ordered: Assembly) -> None:
    found = ordered.resources("AWS::CloudWatch::Alarm", "observability").values()
    named = {
        each["Value"] for alarm in found for each in alarm["Properties"]["Dimensions"] if each["Name"] == "QueueName"
    }
    assert named == {
        *("threefold-dev-requests.fifo", "threefold-dev-dead-letters.fifo", "threefold-dev-lost-uploads"),
    }
    variables = ordered.only("AWS::Lambda::Function", "predict", Handler="predict.handler")["Environment"]["Variables"]
    assert variables["THREEFOLD_REQUESTS_QUEUE"] == "threefold-dev-requests.fifo"


def test_outcomes_go_to_the_topic_and_from_there_to_the_predictions_queue_as_they_are(ordered: Assembly) -> None:
    ((topic, found),) = ordered.resources("AWS::SNS::Topic", "stream").items()
    assert (found["Properties"]["TopicName"], found["Properties"]["FifoTopic"]) == (
        *("threefold-dev-predictions.fifo", True),
    )
    subscription = ordered.only("AWS::SNS::Subscription", "stream")
    assert (subscription["Protocol"], subscription["RawMessageDelivery"]) == ("sqs", True)
    variables = ordered.only("AWS::Lambda::Function", "stream")["Environment"]["Variables"]
    assert variables["THREEFOLD_PREDICTIONS_TOPIC_ARN"] == {"Ref": topic}
    assert "THREEFOLD_PREDICTIONS_QUEUE_URL" not in variables
    grants = ordered.grants("stream")
    assert ("sns:Publish", f"${{{topic}}}") in grants
    sends = {resource for action, resource in grants if action == "sqs:SendMessage"}
    assert len(sends) == 1


def test_more_than_ten_messages_at_a_time_need_a_window(synthesize: Callable[..., Assembly]) -> None:
    with pytest.raises(ValueError, match="streamWindowSeconds"):
        synthesize(streamWindowSeconds="0")
    source = synthesize(streamWindowSeconds="0", streamBatchSize="10").only("AWS::Lambda::EventSourceMapping", "stream")
    assert "MaximumBatchingWindowInSeconds" not in source
    wide = synthesize(streamWindowSeconds="20")
    assert wide.only("AWS::Lambda::EventSourceMapping", "stream")["MaximumBatchingWindowInSeconds"] == 20
    assert queue(wide, "requests")["VisibilityTimeout"] == 6 * 60 + 20
