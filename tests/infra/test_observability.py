from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.infra.assembly import text
from threefold.names import Metric, namespace

if TYPE_CHECKING:
    from tests.infra.assembly import Assembly

DOORS = ("predict", "batch", "stream")
FUNCTIONS = (*DOORS, "api")


def alarms(assembly: Assembly) -> dict[str, dict[str, Any]]:
    found = assembly.resources("AWS::CloudWatch::Alarm", "observability").values()
    return {each["Properties"]["AlarmName"].removeprefix("threefold-dev-"): each["Properties"] for each in found}


def watched(alarm: dict[str, Any]) -> tuple[str, str, dict[str, str]]:
    dimensions = {each["Name"]: text(each["Value"]) for each in alarm["Dimensions"]}
    return alarm["Namespace"], alarm["MetricName"], dimensions


def test_each_alarm_watches_what_it_says(iam: Assembly) -> None:
    machine = "arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}:stateMachine:threefold-dev-batch"
    (parameter,) = [name for name in iam.templates["observability"]["Parameters"] if "apiid" in name.lower()]
    expected = {
        **{f"{door}-errors": ("AWS/Lambda", "Errors", {"FunctionName": f"threefold-dev-{door}"}) for door in FUNCTIONS},
        **{
            f"{door}-throttles": ("AWS/Lambda", "Throttles", {"FunctionName": f"threefold-dev-{door}"})
            for door in FUNCTIONS
        },
        "predict-5xx": ("AWS/ApiGateway", "5xx", {"ApiId": f"${{{parameter}}}"}),
        "batch-failed": ("AWS/States", "ExecutionsFailed", {"StateMachineArn": machine}),
        "dead-letters": ("AWS/SQS", "ApproximateNumberOfMessagesVisible", {"QueueName": "threefold-dev-dead-letters"}),
        "lost-uploads": ("AWS/SQS", "ApproximateNumberOfMessagesVisible", {"QueueName": "threefold-dev-lost-uploads"}),
        "requests-age": ("AWS/SQS", "ApproximateAgeOfOldestMessage", {"QueueName": "threefold-dev-requests"}),
        "stream-returned": (namespace("dev"), Metric.ERRORS, {"door": "stream"}),
        **{f"{door}-release-stale": (namespace("dev"), Metric.RELEASE_STALE, {"door": door}) for door in DOORS},
        **{f"{door}-package-refused": (namespace("dev"), Metric.PACKAGE_REFUSED, {"door": door}) for door in DOORS},
        "monitor-errors": ("AWS/Lambda", "Errors", {"FunctionName": "threefold-dev-monitor"}),
        "monitor-gate-failed": (namespace("dev"), Metric.GATE_FAILED, {"door": "monitor"}),
        "monitor-not-inspected": (namespace("dev"), Metric.ERRORS, {"door": "monitor"}),
        "monitor-rolled-back": (namespace("dev"), Metric.ROLLED_BACK, {"door": "monitor"}),
    }
    assert {name: watched(alarm) for name, alarm in alarms(iam).items()} == expected


def test_no_alarm_is_more_than_one_metric(iam: Assembly) -> None:
    assert alarms(iam)
    assert not [name for name, alarm in alarms(iam).items() if "Metrics" in alarm]
    assert not iam.resources("AWS::CloudWatch::CompositeAlarm")


def test_one_is_enough_but_for_the_age(iam: Assembly) -> None:
    found = alarms(iam)
    assert {name: alarm["Threshold"] for name, alarm in found.items() if alarm["Threshold"] != 1} == {
        "requests-age": 300,
        "stream-returned": 10,
    }
    assert {alarm["ComparisonOperator"] for alarm in found.values()} == {"GreaterThanOrEqualToThreshold"}
    assert {alarm["TreatMissingData"] for alarm in found.values()} == {"notBreaching"}


def test_all_alarms_go_to_one_encrypted_topic_that_cloudwatch_may_use(iam: Assembly) -> None:
    (topic,) = iam.resources("AWS::SNS::Topic")
    logical = topic.partition("/")[2]
    for alarm in alarms(iam).values():
        assert alarm["AlarmActions"] == alarm["OKActions"] == [{"Ref": logical}]
    (key,) = iam.resources("AWS::KMS::Key", "observability")
    assert iam.only("AWS::SNS::Topic", "observability")["KmsMasterKeyId"] == {"Fn::GetAtt": [key, "Arn"]}
    documents = [
        iam.only("AWS::KMS::Key", "observability")["KeyPolicy"],
        iam.only("AWS::SNS::TopicPolicy", "observability")["PolicyDocument"],
    ]
    for document, actions in zip(documents, ({"kms:Decrypt", "kms:GenerateDataKey*"}, {"sns:Publish"}), strict=True):
        (statement,) = [
            each for each in document["Statement"] if each["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
        ]
        action = statement["Action"]
        assert set(action if isinstance(action, list) else [action]) == actions
        assert text(statement["Condition"]["StringEquals"]["aws:SourceAccount"]) == "${AWS::AccountId}"


def test_the_operator_is_told_by_mail_if_there_is_an_address(iam: Assembly, prod: Assembly) -> None:
    assert not iam.resources("AWS::SNS::Subscription")
    subscription = prod.only("AWS::SNS::Subscription", "observability")
    assert (subscription["Protocol"], subscription["Endpoint"]) == ("email", "operator@example.org")


def test_the_api_s_id_comes_by_a_parameter_that_the_predict_stack_writes(iam: Assembly) -> None:
    written = iam.only("AWS::SSM::Parameter", "predict")
    (api,) = iam.resources("AWS::ApiGatewayV2::Api", "predict")
    assert written["Value"] == {"Ref": api}
    (read,) = [
        each for name, each in iam.templates["observability"]["Parameters"].items() if name != "BootstrapVersion"
    ]
    assert (read["Type"], read["Default"]) == ("AWS::SSM::Parameter::Value<String>", written["Name"])


def test_an_alarm_of_the_monitor_s_lasts_from_one_run_to_the_next(iam: Assembly, prod: Assembly) -> None:
    lasting = {"monitor-errors", "monitor-gate-failed", "monitor-not-inspected"}
    found = alarms(iam)
    assert {name for name, alarm in found.items() if alarm["Period"] != 60} == lasting
    for name in lasting:
        alarm = found[name]
        assert (alarm["Period"], alarm["EvaluationPeriods"], alarm["DatapointsToAlarm"]) == (3600, 2, 1)
        other = prod.only("AWS::CloudWatch::Alarm", "observability", AlarmName=f"threefold-prod-{name}")
        assert other["Period"] == 90 * 60


def test_the_monitor_is_called_by_its_alias_on_a_schedule(each: Assembly, prod: Assembly) -> None:
    (alias,) = each.resources("AWS::Lambda::Alias", "observability")
    rule = each.only("AWS::Events::Rule", "observability")
    assert (rule["ScheduleExpression"], rule["State"]) == ("rate(1 hour)", "ENABLED")
    assert [target["Arn"] for target in rule["Targets"]] == [{"Ref": alias}]
    permission = each.only("AWS::Lambda::Permission", "observability")
    (logical,) = each.resources("AWS::Events::Rule", "observability")
    assert (permission["Principal"], permission["FunctionName"]) == ("events.amazonaws.com", {"Ref": alias})
    assert permission["SourceArn"] == {"Fn::GetAtt": [logical, "Arn"]}
    assert prod.only("AWS::Events::Rule", "observability")["ScheduleExpression"] == "rate(90 minutes)"


def test_the_dashboard_has_a_row_for_each_door_and_the_monitor(iam: Assembly) -> None:
    dashboard = iam.only("AWS::CloudWatch::Dashboard", "observability")
    widgets = json.loads(text(dashboard["DashboardBody"]))["widgets"]
    rows = {(widget["y"], widget["properties"]["title"].partition(":")[0]) for widget in widgets}
    assert [door for _, door in sorted(rows)] == [*DOORS, "monitor"]
    assert "expression" not in json.dumps(widgets)
