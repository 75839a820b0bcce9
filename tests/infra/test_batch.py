from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.infra.assembly import text
from threefold.jobs import JobState
from threefold.names import RETRYABLE
from threefold.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.infra.assembly import Assembly

TRANSIENT = {
    "Lambda.ServiceException",
    "Lambda.AWSLambdaException",
    "Lambda.SdkClientException",
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


def permissions(assembly: Assembly, principal: str) -> dict[str, dict[str, Any]]:
    found = assembly.resources("AWS::Lambda::Permission", "batch").items()
    return {name: each["Properties"] for name, each in found if each["Properties"]["Principal"] == principal}


def test_the_inbox_and_its_own_rules_alone_may_call_it(iam: Assembly) -> None:
    rules = iam.resources("AWS::Events::Rule", "batch")
    called = [*permissions(iam, "s3.amazonaws.com").values(), *permissions(iam, "events.amazonaws.com").values()]
    assert len(iam.resources("AWS::Lambda::Permission", "batch")) == len(called) == 3
    assert {text(each["FunctionName"]) for each in called} == {alias(iam)}
    sources = {text(each["SourceArn"]) for each in permissions(iam, "events.amazonaws.com").values()}
    assert sources == {f"${{{rule}.Arn}}" for rule in rules}


def rule(assembly: Assembly, name: str) -> dict[str, Any]:
    return assembly.only("AWS::Events::Rule", "batch", Name=f"threefold-dev-{name}")


def test_an_execution_that_did_not_end_by_its_own_steps_is_told_to_the_function(iam: Assembly) -> None:
    found = rule(iam, "batch-stopped")
    pattern = found["EventPattern"]
    machine = "arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}:stateMachine:threefold-dev-batch"
    assert pattern["source"] == ["aws.states"]
    assert pattern["detail-type"] == ["Step Functions Execution Status Change"]
    # To the letter: a map's own executions are those of another, `…/Chunks`.
    assert [text(arn) for arn in pattern["detail"]["stateMachineArn"]] == [machine]
    assert set(pattern["detail"]["status"]) == {"ABORTED", "FAILED", "TIMED_OUT"}
    (target,) = found["Targets"]
    assert text(target["Arn"]) == alias(iam)
    assert "Input" not in target


def test_pending_records_are_collected_as_often_as_the_context_says(
    iam: Assembly, prod: Assembly, synthesize: Callable[..., Assembly]
) -> None:
    found = rule(iam, "batch-collect")
    assert found["ScheduleExpression"] == "rate(1 hour)"
    (target,) = found["Targets"]
    assert (text(target["Arn"]), target["Input"]) == (alias(iam), '{"action":"collect"}')
    often = prod.only("AWS::Events::Rule", "batch", Name="threefold-prod-batch-collect")
    assert often["ScheduleExpression"] == "rate(5 minutes)"
    never = synthesize(pendingMinutes="0").resources("AWS::Events::Rule", "batch").values()
    assert [each["Properties"]["Name"] for each in never] == ["threefold-dev-batch-stopped"]


def test_the_inbox_is_made_when_it_may_call(iam: Assembly) -> None:
    ((permission, properties),) = permissions(iam, "s3.amazonaws.com").items()
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
        "execution.$": "$$.Execution.Name",
        "chunk.$": "$$.Map.Item.Value",
    }
    assert chunks["ResultPath"] is None
    assert not {"ItemBatcher", "ResultWriter", "ToleratedFailurePercentage", "ToleratedFailureCount"} & set(chunks)
    finish = machine["States"][chunks["Next"]]
    assert finish["Parameters"] == {
        "action": "finish",
        "job.$": "$.job",
        "model.$": "$.model",
        "execution.$": "$$.Execution.Name",
    }
    assert iam.only("AWS::StepFunctions::StateMachine", "batch")["StateMachineType"] == "STANDARD"


def test_a_job_that_is_not_whole_ends_as_a_failed_execution_and_keeps_its_own_state(iam: Assembly) -> None:
    states = definition(iam)["States"]
    whole = states[states["Finish"]["Next"]]
    (choice,) = whole["Choices"]
    assert {name: choice[name] for name in ("Variable", "StringEquals")} == {
        "Variable": "$.state",
        "StringEquals": JobState.INCOMPLETE.value,
    }
    assert states[choice["Next"]]["Type"] == "Fail"
    assert states[whole["Default"]]["Type"] == "Succeed"


def test_a_rest_goes_to_the_next_invocation_until_there_is_none(iam: Assembly) -> None:
    machine = definition(iam)
    loop = machine["States"][machine["StartAt"]]["ItemProcessor"]
    score = loop["States"][loop["StartAt"]]
    assert (score["Type"], score["ResultPath"]) == ("Task", "$.answer")
    assert "Parameters" not in score
    left = loop["States"][score["Next"]]
    (choice,) = left["Choices"]
    assert {name: choice[name] for name in ("Variable", "IsPresent")} == {
        "Variable": "$.answer.rest",
        "IsPresent": True,
    }
    rest = loop["States"][choice["Next"]]
    assert rest["Next"] == loop["StartAt"]
    item = machine["States"][machine["StartAt"]]["ItemSelector"]
    assert {name.removesuffix(".$") for name in rest["Parameters"]} == {name.removesuffix(".$") for name in item}
    assert rest["Parameters"]["chunk.$"] == "$.answer.rest"
    assert rest["Parameters"]["execution.$"] == "$.execution"
    done = loop["States"][left["Default"]]
    assert (done["Type"], done["Result"], done["End"]) == ("Pass", {}, True)


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
        "execution.$": "$$.Execution.Name",
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
        throttled, transient, failed = task["Retry"]
        # Whoever waits for concurrency waits as long as others take it.
        assert throttled["ErrorEquals"] == ["Lambda.TooManyRequestsException"]
        assert throttled["MaxAttempts"] * throttled["MaxDelaySeconds"] / 2 > 12 * 3600
        assert set(transient["ErrorEquals"]) == TRANSIENT | set(RETRYABLE)
        assert failed["ErrorEquals"] == ["States.TaskFailed"]
        assert 0 < failed["MaxAttempts"] < transient["MaxAttempts"]
        for retry in (throttled, transient, failed):
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
            "arn:${AWS::Partition}:s3:::threefold-dev-results-${AWS::AccountId}-${AWS::Region}/*/chunks*.json",
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


def test_the_workers_of_a_job_share_its_write_budget(iam: Assembly, prod: Assembly) -> None:
    def settings(assembly: Assembly) -> Settings:
        variables = assembly.only("AWS::Lambda::Function", "batch")["Environment"]["Variables"]
        return Settings.from_env({name: text(value) for name, value in variables.items()})

    assert settings(iam).writes_per_second == 4000 / 8
    assert settings(prod).writes_per_second == 2000 / 5
    assert (settings(prod).chunk_bytes, settings(prod).chunk_rows) == (1_000_000, 20_000)


def test_working_files_go_after_a_week_and_results_stay_for_as_long_as_the_context_says(
    iam: Assembly, prod: Assembly
) -> None:
    def rules(assembly: Assembly, stage: str) -> list[dict[str, Any]]:
        name = f"threefold-{stage}-results-${{AWS::AccountId}}-${{AWS::Region}}"
        found = assembly.only("AWS::S3::Bucket", "batch", BucketName=name)["LifecycleConfiguration"]["Rules"]
        return [rule for rule in found if "ExpirationInDays" in rule]

    work = {"ExpirationInDays": 7, "Status": "Enabled", "TagFilters": [{"Key": "threefold", "Value": "work"}]}
    assert rules(iam, "dev") == [work]
    assert rules(prod, "prod") == [work, {"ExpirationInDays": 400, "Status": "Enabled"}]


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
