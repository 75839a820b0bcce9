"""The monitor: the function that runs the gates of what is served, and the schedule that calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aws_cdk import Duration
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets

from infra.function import StageFunction
from infra.grants import Grant
from threefold.names import MONITOR, Prefix
from threefold.settings import Settings

if TYPE_CHECKING:
    from infra.stage_stack import StageStack

# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html: the most there is.
TIMEOUT_SECONDS: Final = 900


def add_monitor(stack: StageStack) -> None:
    """Make the function and its schedule in a stack."""
    context = stack.context
    monitor = StageFunction(
        stack,
        settings=Settings(
            door=MONITOR,
            stage=context.stage,
            auth=context.auth,
            model_bucket=stack.bucket("models"),
        ),
        timeout_seconds=TIMEOUT_SECONDS,
        memory_megabytes=context.monitor_memory,
        reserved_concurrency=0,
        grants=[
            *stack.registry_read(),
            # To roll back; packages are beyond it.
            Grant(
                ["s3:PutObject"],
                [stack.bucket_arn("models", f"{Prefix.RELEASES}*")],
                wildcard="models come without a deploy",
            ),
        ],
    )
    events.Rule(
        stack,
        "Schedule",
        rule_name=stack.name(MONITOR),
        description="runs the gates of all models",
        schedule=events.Schedule.rate(Duration.minutes(context.monitor_minutes)),
        targets=[targets.LambdaFunction(monitor.alias)],
    )
