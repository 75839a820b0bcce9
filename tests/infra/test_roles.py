from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.infra.assembly import Assembly

DOORS = ("predict", "batch", "stream", "api")
LAMBDA = "lambda.amazonaws.com"
STATES = "states.amazonaws.com"
BUCKET = "arn:${AWS::Partition}:s3:::threefold-dev-%s-${AWS::AccountId}-${AWS::Region}"
TABLE = "arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/threefold-dev-%s"
READS = ("Get", "List", "BatchGet", "Query", "Describe", "Receive")
LOGS = {"logs:CreateLogStream", "logs:PutLogEvents"}
# https://docs.aws.amazon.com/step-functions/latest/dg/cw-logs.html: none of these takes a resource.
LOG_DELIVERY = {
    "logs:CreateLogDelivery",
    "logs:GetLogDelivery",
    "logs:UpdateLogDelivery",
    "logs:DeleteLogDelivery",
    "logs:ListLogDeliveries",
    "logs:PutResourcePolicy",
    "logs:DescribeResourcePolicies",
    "logs:DescribeLogGroups",
}


@pytest.mark.parametrize(
    ("stack", "service"), [*((door, LAMBDA) for door in DOORS), ("batch", STATES), ("monitor", LAMBDA)]
)
def test_no_role_holds_a_wildcard_action_or_every_resource(stack: str, service: str, each: Assembly) -> None:
    found = list(each.statements(stack, service))
    assert found
    for actions, resources, statement in found:
        assert statement["Effect"] == "Allow"
        assert not [action for action in actions if "*" in action]
        assert set(actions) <= LOG_DELIVERY or "*" not in resources


def test_no_role_has_a_managed_policy(each: Assembly) -> None:
    roles = each.resources("AWS::IAM::Role")
    assert len(roles) == 6
    assert not [name for name, role in roles.items() if "ManagedPolicyArns" in role["Properties"]]


def writes(assembly: Assembly, door: str) -> set[tuple[str, str]]:
    return {
        (action, resource)
        for action, resource in assembly.grants(door)
        if not action.partition(":")[2].startswith(READS) and action not in LOGS
    }


def test_predict_reads_the_registry_and_writes_nothing_but_requests(each: Assembly, iam: Assembly) -> None:
    assert {action for action, _ in writes(each, "predict")} == {"sqs:SendMessage"}
    models = BUCKET % "models"
    requests = "arn:${AWS::Partition}:sqs:${AWS::Region}:${AWS::AccountId}:threefold-dev-requests"
    assert {grant for grant in iam.grants("predict") if grant[0] not in LOGS} == {
        ("s3:GetObject", f"{models}/packages/*"),
        ("s3:GetObject", f"{models}/releases/*"),
        ("s3:GetObjectVersion", f"{models}/packages/*"),
        ("s3:GetObjectVersion", f"{models}/releases/*"),
        ("s3:ListBucket", models),
        ("sqs:SendMessage", requests),
        ("sqs:GetQueueUrl", requests),
        ("dynamodb:BatchGetItem", TABLE % "features"),
    }


@pytest.mark.parametrize("door", [*DOORS, "monitor"])
def test_a_missing_release_is_told_from_one_that_may_not_be_read(door: str, iam: Assembly) -> None:
    listing = [
        statement
        for actions, resources, statement in iam.statements(door, LAMBDA)
        if "s3:ListBucket" in actions and BUCKET % "models" in resources
    ]
    assert len(listing) == 1
    # A condition on the prefix would hold for listing alone: GetObject's 404 needs the action without it.
    assert "Condition" not in listing[0]


def test_the_monitor_reads_the_registry_as_predict_does_and_writes_releases_alone(
    each: Assembly, iam: Assembly
) -> None:
    write = ("s3:PutObject", f"{BUCKET % 'models'}/releases/*")
    assert writes(iam, "monitor") == {write}
    grants = {door: {grant for grant in each.grants(door) if grant[0] not in LOGS} for door in ("predict", "monitor")}
    assert {action for action, _ in grants["monitor"] - grants["predict"]} == {"s3:PutObject"}
    # What is looked up for records, or left for later, is none of its business: the gate's files bring all it needs.
    assert {action for action, _ in grants["predict"] - grants["monitor"]} == {
        *("dynamodb:BatchGetItem", "sqs:SendMessage", "sqs:GetQueueUrl"),
    }


@pytest.mark.parametrize("door", DOORS)
def test_no_door_writes_the_registry(door: str, iam: Assembly) -> None:
    assert not [grant for grant in writes(iam, door) if "threefold-dev-models" in grant[1]]


def test_api_fills_the_inbox_and_handles_jobs_and_reads_predictions(iam: Assembly) -> None:
    states = "arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}"
    models = BUCKET % "models"
    found = {grant for grant in iam.grants("api") if grant[0] not in LOGS and models not in grant[1]}
    assert found == {
        *(("s3:PutObject", f"{BUCKET % 'inbox'}/{keys}") for keys in ("*/*.csv", "*/*.csv.gz", "pending/*.jsonl")),
        ("s3:ListBucketVersions", BUCKET % "inbox"),
        ("s3:GetObject", f"{BUCKET % 'results'}/*"),
        ("s3:PutObject", f"{BUCKET % 'results'}/*/chunks-*.json"),
        ("s3:PutObjectTagging", f"{BUCKET % 'results'}/*/chunks-*.json"),
        ("s3:ListBucket", BUCKET % "results"),
        *((f"dynamodb:{act}", TABLE % "jobs") for act in ("GetItem", "BatchGetItem", "Query", "UpdateItem")),
        *((f"dynamodb:{act}", TABLE % "predictions") for act in ("Query", "GetItem")),
        *((f"dynamodb:{act}", f"{TABLE % 'predictions'}/index/lookup") for act in ("Query", "GetItem")),
        ("states:StartExecution", f"{states}:stateMachine:threefold-dev-batch"),
        ("states:StopExecution", f"{states}:execution:threefold-dev-batch:*"),
        ("events:PutEvents", "arn:${AWS::Partition}:events:${AWS::Region}:${AWS::AccountId}:event-bus/default"),
    }


def test_stream_writes_predictions_and_takes_requests(iam: Assembly) -> None:
    table = TABLE % "predictions"
    found = writes(iam, "stream")
    assert {action for action, resource in found if resource == table} == {
        "dynamodb:PutItem",
        "dynamodb:BatchWriteItem",
        "dynamodb:UpdateItem",
    }
    large = f"{BUCKET % 'results'}/*/stream/*"
    assert {action for action, resource in found if resource == large} == {"s3:PutObject"}
    queues = {
        name: resource["Properties"]["QueueName"].removeprefix("threefold-dev-")
        for name, resource in iam.resources("AWS::SQS::Queue", "stream").items()
    }
    assert {action for action, resource in found if resource == TABLE % "features"} == {"dynamodb:PutItem"}
    assert ("dynamodb:BatchGetItem", TABLE % "features") in iam.grants("stream")
    others = {
        (action, queues[resource[2:].removesuffix(".Arn}")])
        for action, resource in found
        if resource not in {table, large, TABLE % "features"}
    }
    assert others == {
        ("sqs:DeleteMessage", "requests"),
        ("sqs:ChangeMessageVisibility", "requests"),
        ("sqs:SendMessage", "predictions"),
        ("sqs:SendMessage", "dead-letters"),
    }
    assert ("dynamodb:BatchGetItem", table) in iam.grants("stream")


def test_batch_writes_results_jobs_and_predictions_and_starts_its_own_state_machine(iam: Assembly) -> None:
    (queue,) = iam.resources("AWS::SQS::Queue", "batch")
    lost = f"${{{queue.rpartition('/')[2]}.Arn}}"
    found = writes(iam, "batch")
    assert {action for action, resource in found if resource == lost} == {"sqs:SendMessage"}
    collections, pending = f"{BUCKET % 'inbox'}/*/pending-*.csv", f"{BUCKET % 'inbox'}/pending/*"
    assert {action for action, resource in found if resource == collections} == {
        *("s3:PutObject", "s3:AbortMultipartUpload"),
    }
    assert {action for action, resource in found if resource == pending} == {"s3:DeleteObjectVersion"}
    bus = "arn:${AWS::Partition}:events:${AWS::Region}:${AWS::AccountId}:event-bus/default"
    assert {action for action, resource in found if resource == bus} == {"events:PutEvents"}
    assert {resource for _, resource in found} - {lost, collections, pending, bus} == {
        f"{BUCKET % 'results'}/*",
        TABLE % "jobs",
        TABLE % "predictions",
        TABLE % "features",
        "arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}:stateMachine:threefold-dev-batch",
    }
    for part in ("jobs", "predictions"):
        assert {action for action, resource in iam.grants("batch") if resource == TABLE % part} == {
            *("dynamodb:PutItem", "dynamodb:BatchWriteItem", "dynamodb:UpdateItem"),
            *("dynamodb:GetItem", "dynamodb:BatchGetItem", "dynamodb:Query"),
        }
    assert {action for action, resource in iam.grants("batch") if resource == TABLE % "features"} == {
        *("dynamodb:BatchGetItem", "dynamodb:PutItem"),
    }
    inbox = {(action, resource) for action, resource in iam.grants("batch") if "inbox" in resource}
    assert inbox - found == {
        ("s3:GetObject", f"{BUCKET % 'inbox'}/*"),
        ("s3:GetObjectVersion", f"{BUCKET % 'inbox'}/*"),
        ("s3:ListBucket", BUCKET % "inbox"),
        ("s3:ListBucketVersions", BUCKET % "inbox"),
    }


@pytest.mark.parametrize("door", [*DOORS, "monitor"])
def test_a_function_logs_to_its_own_group_alone(door: str, iam: Assembly) -> None:
    function = iam.function(door)
    group = function["LoggingConfig"]["LogGroup"]["Ref"]
    assert {grant for grant in iam.grants(door) if grant[0].startswith("logs:")} == {
        (action, f"${{{group}.Arn}}") for action in LOGS
    }


def test_the_state_machine_calls_the_batch_function_s_alias_alone(iam: Assembly) -> None:
    (alias,) = iam.resources("AWS::Lambda::Alias", "batch")
    calls = {grant for grant in iam.grants("batch", STATES) if grant[0].startswith("lambda:")}
    assert calls == {("lambda:InvokeFunction", f"${{{alias}}}")}
