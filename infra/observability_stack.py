"""What the operator watches: alarms to one topic, a dashboard with a row for each door, and the monitor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from aws_cdk import aws_ssm as ssm

from infra.monitor import add_monitor
from infra.predict_stack import api_id_parameter
from infra.stage_stack import StageStack
from threefold.names import MONITOR, Dimension, Door, Metric, Output, namespace

if TYPE_CHECKING:
    from constructs import Construct

    from infra.context import DeploymentContext

DOORS: Final = (Door.PREDICT, Door.BATCH, Door.STREAM)
# A backlog this old is no burst any more.
OLDEST_REQUEST_SECONDS: Final = 300
# A throttled table or a cold start returns some; three minutes of this is no such thing.
RETURNED_A_MINUTE: Final = 10
_MAXIMUM: Final = "Maximum"
_SUM: Final = "Sum"


class ObservabilityStack(StageStack):
    """The monitor, the topic, the alarms and the dashboard; all metrics are named, none is imported."""

    def __init__(self, scope: Construct, context: DeploymentContext) -> None:
        """Make the monitor and the topic, then the alarms, then the dashboard."""
        super().__init__(scope, "observability", context, "alarms, a dashboard and the monitor of what is served")
        add_monitor(self)
        self._topic = self._make_topic()
        self._api_id = ssm.StringParameter.value_for_string_parameter(self, api_id_parameter(context))
        self._alarm_on_doors()
        self._alarm_on_queues()
        self._alarm_on_packages()
        self._dashboard()
        self.output(Output.ALARM_TOPIC_ARN, self._topic.topic_arn)

    def _make_topic(self) -> sns.Topic:
        key = kms.Key(
            self,
            "AlarmKey",
            description=f"encrypts {self.name('alarms')}",
            enable_key_rotation=True,
            pending_window=Duration.days(7),
            removal_policy=self.removal_policy,
        )
        topic = sns.Topic(self, "Alarms", topic_name=self.name("alarms"), master_key=key, enforce_ssl=True)
        cloudwatch_alone = iam.ServicePrincipal(
            "cloudwatch.amazonaws.com", conditions={"StringEquals": {"aws:SourceAccount": self.account}}
        )
        # SNS's own key cannot be used by CloudWatch, and a topic with a policy admits only who stands in it.
        key.grant(cloudwatch_alone, "kms:Decrypt", "kms:GenerateDataKey*")
        topic.grant_publish(cloudwatch_alone)
        if self.context.alarm_email:
            topic.add_subscription(subscriptions.EmailSubscription(self.context.alarm_email))
        return topic

    def _alarm_on_doors(self) -> None:
        for function in (*DOORS, Door.API):
            self._alarm(f"{function}-errors", self._function_metric(function, "Errors"), "an invocation failed")
            self._alarm(
                f"{function}-throttles", self._function_metric(function, "Throttles"), "no concurrency was left"
            )
        for door in DOORS:
            self._alarm(
                f"{door}-release-stale",
                self._own_metric(door, Metric.RELEASE_STALE),
                "the registry could not be reached, and a release older than refreshSeconds answered",
                periods=3,
            )
            self._alarm(
                f"{door}-package-refused",
                self._own_metric(door, Metric.PACKAGE_REFUSED),
                "a released package failed its checks, and the last good one answers, if there is one",
            )
        self._alarm("predict-5xx", self._api_metric("5xx"), "callers got a server error")
        self._alarm("batch-failed", self._job_metric("ExecutionsFailed"), "a job failed")

    def _alarm_on_queues(self) -> None:
        self._alarm(
            "dead-letters",
            self._queue_metric("dead-letters", "ApproximateNumberOfMessagesVisible"),
            "messages were given up; look, then redrive",
        )
        self._alarm(
            "lost-uploads",
            _metric(*("AWS/SQS", "ApproximateNumberOfMessagesVisible", _MAXIMUM), QueueName=self.name("lost-uploads")),
            "uploads that could not even be planned; send their events again",
        )
        self._alarm(
            "stream-returned",
            self._own_metric(Door.STREAM, Metric.ERRORS),
            "messages go back to their queue, to be tried again",
            threshold=RETURNED_A_MINUTE,
            periods=3,
        )
        self._alarm(
            "requests-age",
            self._queue_metric("requests", "ApproximateAgeOfOldestMessage"),
            "requests wait too long",
            threshold=OLDEST_REQUEST_SECONDS,
            periods=3,
        )

    def _alarm_on_packages(self) -> None:
        lasting = (
            ("gate-failed", self._own_metric(MONITOR, Metric.GATE_FAILED), "a served package does not pass its gate"),
            ("not-inspected", self._own_metric(MONITOR, Metric.ERRORS), "the monitor could not run a model's gate"),
            ("errors", self._function_metric(MONITOR, "Errors"), "a run of the monitor failed"),
        )
        for part, metric, meaning in lasting:
            # Either of two runs is enough: they come a little early or late, and an alarm must not be over between two
            # that say the same.
            by_run = metric.with_(period=Duration.minutes(self.context.monitor_minutes))
            self._alarm(f"monitor-{part}", by_run, meaning, periods=2, datapoints=1)
        self._alarm(
            "monitor-rolled-back",
            self._own_metric(MONITOR, Metric.ROLLED_BACK),
            "a champion did not pass its gate, and an earlier one serves again",
        )

    def _dashboard(self) -> None:
        dashboard = cloudwatch.Dashboard(self, "Dashboard", dashboard_name=self.name("doors"))
        dashboard.add_widgets(
            _graph("predict: calls", self._api_metric("Count"), self._api_metric("4xx"), self._api_metric("5xx")),
            _graph("predict: latency", *self._latencies(Door.PREDICT)),
            _graph("predict: outcomes", *self._outcomes(Door.PREDICT)),
            _graph("predict: function", *self._function(Door.PREDICT)),
        )
        dashboard.add_widgets(
            _graph(
                "batch: jobs",
                *(self._job_metric(f"Executions{state}") for state in ("Started", "Succeeded", "Failed")),
            ),
            _graph("batch: rows", self._own_metric(Door.BATCH, Metric.BATCH_ROWS)),
            _graph("batch: outcomes", *self._outcomes(Door.BATCH)),
            _graph("batch: function", *self._function(Door.BATCH)),
        )
        dashboard.add_widgets(
            _graph(
                "stream: queues",
                *(
                    self._queue_metric(queue, "ApproximateNumberOfMessagesVisible", label=queue)
                    for queue in ("requests", "predictions", "dead-letters")
                ),
            ),
            _graph(
                "stream: lag",
                self._queue_metric("requests", "ApproximateAgeOfOldestMessage"),
                self._own_metric(Door.STREAM, Metric.STREAM_LAG, "p99"),
            ),
            _graph("stream: outcomes", *self._outcomes(Door.STREAM)),
            _graph("stream: function", *self._function(Door.STREAM)),
        )
        dashboard.add_widgets(
            _graph("monitor: gates", self._own_metric(MONITOR, Metric.GATE_FAILED)),
            _graph("monitor: releases", self._own_metric(MONITOR, Metric.ROLLED_BACK)),
            _graph("monitor: errors", self._own_metric(MONITOR, Metric.ERRORS)),
            _graph("monitor: function", *self._function(MONITOR)),
        )

    def _latencies(self, door: str) -> list[cloudwatch.Metric]:
        return [self._own_metric(door, Metric.LATENCY, statistic) for statistic in ("p50", "p99")]

    def _outcomes(self, door: str) -> list[cloudwatch.Metric]:
        metrics = (Metric.PREDICTIONS, Metric.ABSTAINED, Metric.REJECTED, Metric.RELEASE_STALE)
        return [self._own_metric(door, metric) for metric in metrics]

    def _function(self, door: str) -> list[cloudwatch.Metric]:
        return [
            self._function_metric(door, "Invocations"),
            self._function_metric(door, "Errors"),
            self._function_metric(door, "Throttles"),
            self._own_metric(door, Metric.COLD_START),
        ]

    def _function_metric(self, door: str, metric: str) -> cloudwatch.Metric:
        return _metric("AWS/Lambda", metric, _SUM, FunctionName=self.name(door))

    def _api_metric(self, metric: str) -> cloudwatch.Metric:
        return _metric("AWS/ApiGateway", metric, _SUM, ApiId=self._api_id)

    def _job_metric(self, metric: str) -> cloudwatch.Metric:
        return _metric("AWS/States", metric, _SUM, StateMachineArn=self.state_machine_arn)

    def _queue_metric(self, queue: str, metric: str, label: str | None = None) -> cloudwatch.Metric:
        return _metric("AWS/SQS", metric, _MAXIMUM, label=label, QueueName=self.queue_name(queue))

    def _own_metric(self, door: str, metric: str, statistic: str = _SUM) -> cloudwatch.Metric:
        label = f"{metric} {statistic}" if statistic.startswith("p") else None
        return _metric(namespace(self.context.stage), metric, statistic, label=label, **{Dimension.DOOR: door})

    def _alarm(  # noqa: PLR0913 - what alarms differ by
        self,
        part: str,
        metric: cloudwatch.Metric,
        meaning: str,
        *,
        threshold: float = 1,
        periods: int = 1,
        datapoints: int | None = None,
    ) -> None:
        alarm = cloudwatch.Alarm(
            self,
            "".join(word.capitalize() for word in part.split("-")),
            alarm_name=self.name(part),
            alarm_description=meaning,
            metric=metric,
            threshold=threshold,
            evaluation_periods=periods,
            datapoints_to_alarm=datapoints,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )
        alarm.add_alarm_action(actions.SnsAction(self._topic))
        alarm.add_ok_action(actions.SnsAction(self._topic))


def _metric(
    namespace: str, name: str, statistic: str, *, label: str | None = None, **dimensions: str
) -> cloudwatch.Metric:
    return cloudwatch.Metric(
        namespace=namespace,
        metric_name=name,
        statistic=statistic,
        label=label,
        dimensions_map=dimensions,
        period=Duration.minutes(1),
    )


def _graph(title: str, *metrics: cloudwatch.Metric) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(title=title, left=list(metrics), width=6, height=6)
