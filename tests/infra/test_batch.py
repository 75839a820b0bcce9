from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.infra.assembly import text
from threefold.names import RETRYABLE
from threefold.settings import Settings

if TYPE_CHECKING:
    from tests.infra.assembly import Assembly

TRANSIENT = {
    "Lambda.ServiceException",
    "Lambda.AWSLambdaException",
    "Lambda.SdkClientException",
    "Lambda.TooManyRequestsException",
    "Lambda.Unknown",
    "States.Timeout",
}


def definition(assembly: Assembly) -> dict[str, Any]:
    return json.loads(text(assembly.only("AWS::StepFunctions::StateMachine", "batch")["DefinitionString"]))


def alias(assembly: Assembly) -> str:
    (logical,) = assembly.resources("AWS::Lambda::Alias", "batch")
    return f"${{{logical}}}"


def test_an_uploaded_csv_calls_the_function_s_alias(iam: Assembly) -> None:
    inbox = iam.only("AWS::S3::Bucket", "batch", BucketName="threefold-dev-inbox-${AWS::AccountId}-${AWS::Region}")
    assert inbox["VersioningConfiguration"] == {"Status": "Enabled"}
    found = inbox["NotificationConfiguration"]["LambdaConfigurations"]
    assert {each["Event"] for each in found} == {"s3:ObjectCreated:*"}
    assert {text(each["Function"]) for each in found} == {alias(iam)}
    suffixes = [rule for each in found for rule in each["Filter"]["S3Key"]["Rules"]]
    assert suffixes == [{"Name": "suffix", "Value": ".csv"}, {"Name": "suffix", "Value": ".csv.gz"}]


def test_the_inbox_alone_may_call_it_and_is_made_when_it_may(iam: Assembly) -> None:
    (permission,) = iam.resources("AWS::Lambda::Permission", "batch")
    properties = iam.only("AWS::Lambda::Permission", "batch")
    assert text(properties["FunctionName"]) == alias(iam)
    assert properties["Principal"] == "s3.amazonaws.com"
    assert text(properties["SourceAccount"]) == "${AWS::AccountId}"
    (inbox,) = [
        bucket
        for bucket in iam.resources("AWS::S3::Bucket", "batch").values()
        if "NotificationConfiguration" in bucket["Properties"]
    ]
    assert inbox["DependsOn"] == [permission]
    name = text(inbox["Properties"]["BucketName"])
    assert text(properties["SourceArn"]) == f"arn:${{AWS::Partition}}:s3:::{name}"


def test_results_do_not_call_the_function_again(iam: Assembly) -> None:
    results = iam.only("AWS::S3::Bucket", "batch", BucketName="threefold-dev-results-${AWS::AccountId}-${AWS::Region}")
    assert "NotificationConfiguration" not in results


def test_a_job_maps_the_manifest_s_chunks_then_finishes(iam: Assembly) -> None:
    machine = definition(iam)
    chunks = machine["States"][machine["StartAt"]]
    assert chunks["Type"] == "Map"
    assert chunks["ItemProcessor"]["ProcessorConfig"] == {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}
    reader = chunks["ItemReader"]
    assert reader["Resource"] == "arn:${AWS::Partition}:states:::s3:getObject"
    assert reader["ReaderConfig"] == {"InputType": "JSON"}
    assert reader["Parameters"] == {"Bucket.$": "$.manifest_bucket", "Key.$": "$.manifest_key"}
    assert chunks["ItemSelector"] == {
        "action": "chunk",
        "job.$": "$.job",
        "model.$": "$.model",
        "chunk.$": "$$.Map.Item.Value",
    }
    assert chunks["ResultPath"] is None
    assert not {"ItemBatcher", "ResultWriter", "ToleratedFailurePercentage", "ToleratedFailureCount"} & set(chunks)
    finish = machine["States"][chunks["Next"]]
    assert finish["Parameters"] == {"action": "finish", "job.$": "$.job", "model.$": "$.model"}
    assert finish["End"] is True
    assert iam.only("AWS::StepFunctions::StateMachine", "batch")["StateMachineType"] == "STANDARD"


def test_a_job_that_fails_is_told_so_and_fails(iam: Assembly) -> None:
    states = definition(iam)["States"]
    catches = [state["Catch"] for state in states.values() if "Catch" in state]
    assert len(catches) == 2
    assert all(
        catch == [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": catch[0]["Next"]}]
        for catch in catches
    )
    (name,) = {catch[0]["Next"] for catch in catches}
    assert states[name]["Parameters"] == {
        "action": "fail",
        "job.$": "$.job",
        "model.$": "$.model",
        "error.$": "$.error",
    }
    assert states[states[name]["Next"]]["Type"] == "Fail"


def test_every_task_calls_the_alias_and_states_its_retries(iam: Assembly) -> None:
    states = definition(iam)["States"]
    (chunks,) = [state for state in states.values() if state["Type"] == "Map"]
    tasks = [
        state for state in [*states.values(), *chunks["ItemProcessor"]["States"].values()] if state["Type"] == "Task"
    ]
    assert len(tasks) == 3
    timeout = iam.only("AWS::Lambda::Function", "batch")["Timeout"]
    for task in tasks:
        assert task["Resource"] == alias(iam)
        assert task["TimeoutSeconds"] > timeout
        transient, failed = task["Retry"]
        assert set(transient["ErrorEquals"]) == TRANSIENT | set(RETRYABLE)
        assert failed["ErrorEquals"] == ["States.TaskFailed"]
        assert 0 < failed["MaxAttempts"] < transient["MaxAttempts"]
        for retry in (transient, failed):
            assert retry["JitterStrategy"] == "FULL"
            assert retry["BackoffRate"] > 1
            assert retry["MaxDelaySeconds"] >= retry["IntervalSeconds"] > 0


def test_chunks_run_as_many_at_a_time_as_the_context_says(iam: Assembly, prod: Assembly) -> None:
    def concurrency(assembly: Assembly) -> int:
        machine = definition(assembly)
        return machine["States"][machine["StartAt"]]["MaxConcurrency"]

    assert (concurrency(iam), concurrency(prod)) == (8, 5)


def test_the_function_starts_the_state_machine_that_is_there(iam: Assembly) -> None:
    variables = iam.only("AWS::Lambda::Function", "batch")["Environment"]["Variables"]
    settings = Settings.from_env({name: text(value) for name, value in variables.items()})
    name = iam.only("AWS::StepFunctions::StateMachine", "batch")["StateMachineName"]
    arn = f"arn:${{AWS::Partition}}:states:${{AWS::Region}}:${{AWS::AccountId}}:stateMachine:{name}"
    assert settings.state_machine_arn == arn
    assert ("states:StartExecution", arn) in iam.grants("batch")


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        (
            "s3:GetObject",
            "arn:${AWS::Partition}:s3:::threefold-dev-results-${AWS::AccountId}-${AWS::Region}/*/chunks.json",
        ),
        (
            "states:StartExecution",
            "arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}:stateMachine:threefold-dev-batch",
        ),
        (
            "states:DescribeExecution",
            "arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}:execution:threefold-dev-batch/Chunks:*",
        ),
        (
            "states:StopExecution",
            "arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}:execution:threefold-dev-batch/Chunks:*",
        ),
    ],
)
def test_a_distributed_map_may_do_what_it_needs(action: str, resource: str, iam: Assembly) -> None:
    assert (action, resource) in iam.grants("batch", "states.amazonaws.com")


def test_the_map_s_label_is_the_one_that_its_permissions_name(iam: Assembly) -> None:
    machine = definition(iam)
    assert machine["States"][machine["StartAt"]]["Label"] == "Chunks"


def test_errors_of_jobs_are_logged(iam: Assembly) -> None:
    logging = iam.only("AWS::StepFunctions::StateMachine", "batch")["LoggingConfiguration"]
    assert (logging["Level"], logging["IncludeExecutionData"]) == ("ERROR", False)
    assert len(logging["Destinations"]) == 1


def test_old_uploads_go_but_no_current_one(iam: Assembly) -> None:
    inbox = iam.only("AWS::S3::Bucket", "batch", BucketName="threefold-dev-inbox-${AWS::AccountId}-${AWS::Region}")
    (rule,) = inbox["LifecycleConfiguration"]["Rules"]
    assert rule["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    assert "ExpirationInDays" not in rule


def test_an_upload_that_cannot_be_planned_is_kept_as_the_event_it_came_with(iam: Assembly) -> None:
    (queue,) = iam.resources("AWS::SQS::Queue", "batch")
    assert iam.resources("AWS::SQS::Queue", "batch")[queue]["Properties"]["MessageRetentionPeriod"] == 14 * 86_400
    kept = iam.only("AWS::Lambda::EventInvokeConfig", "batch")
    assert kept["DestinationConfig"]["OnFailure"]["Destination"] == {"Fn::GetAtt": [queue.rpartition("/")[2], "Arn"]}
    # S3 calls the alias: what is set on another qualifier would not count.
    assert kept["Qualifier"] == "live"
