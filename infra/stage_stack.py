"""The stack that all others are: one stage's names, addresses and removal policy, the same in every stack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aws_cdk import CfnOutput, Duration, Environment, RemovalPolicy, Stack, Tags
from aws_cdk import aws_logs as logs
from aws_cdk import aws_sqs as sqs

from infra.grants import Grant
from threefold.names import Prefix, stack_name

if TYPE_CHECKING:
    from constructs import Construct

    from infra.context import DeploymentContext

# An embedded AWS answers to this account; a real one never does.
EMBEDDED: Final = Environment(account="000000000000", region="us-east-1")


class StageStack(Stack):
    """A stack of one stage.

    Names are computed, not exported: an export in use blocks the next deploy of the stack that exports it.
    """

    def __init__(self, scope: Construct, part: str, context: DeploymentContext, description: str) -> None:
        """Make the stack `part` of a stage; one of `names.STACKS`."""
        name = stack_name(context.stage, part)
        super().__init__(
            scope,
            name,
            stack_name=name,
            description=f"Threefold, stage {context.stage}: {description}",
            env=EMBEDDED if context.auth == "none" else None,
            termination_protection=context.retains,
        )
        self.context = context
        Tags.of(self).add("project", "threefold")
        Tags.of(self).add("stage", context.stage)

    @property
    def removal_policy(self) -> RemovalPolicy:
        """What happens to data when their stack goes."""
        # But what a first deploy made before it failed goes with it: its names would block the next one.
        return RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE if self.context.retains else RemovalPolicy.DESTROY

    def name(self, part: str) -> str:
        """The name of a function, table, queue, topic or state machine of this stage."""
        return f"threefold-{self.context.stage}-{part}"

    def queue_name(self, part: str) -> str:
        """The name of one of the stream door's queues, or of its topic: requests, predictions or dead-letters."""
        return self.name(part) + (".fifo" if self.context.stream_fifo else "")

    def bucket(self, part: str) -> str:
        """The name of a bucket of this stage: models, inbox or results. Bucket names are the world's, not ours."""
        return f"{self.name(part)}-{self.account}-{self.region}"

    def bucket_arn(self, part: str, keys: str = "") -> str:
        """The ARN of a bucket of this stage, or of some of its objects."""
        return f"arn:{self.partition}:s3:::{self.bucket(part)}" + (f"/{keys}" if keys else "")

    def arn(self, service: str, resource: str) -> str:
        """The ARN of something in this account and region."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    def table_arn(self, part: str) -> str:
        """The ARN of a table of this stage: predictions or jobs."""
        return self.arn("dynamodb", f"table/{self.name(part)}")

    @property
    def state_machine_arn(self) -> str:
        """The ARN of the state machine that runs a job's chunks."""
        return self.arn("states", f"stateMachine:{self.name('batch')}")

    def registry_read(self) -> list[Grant]:
        """What a function needs to read releases and packages, and nothing else of the model bucket."""
        prefixes = (Prefix.PACKAGES, Prefix.RELEASES)
        return [
            Grant(
                ["s3:GetObject", "s3:GetObjectVersion"],
                [self.bucket_arn("models", f"{prefix}*") for prefix in prefixes],
                wildcard="a promotion brings models and digests that no deploy knows of",
            ),
            # Without it S3 says 403 of a key that is not there, and a missing release looks like an outage.
            Grant(["s3:ListBucket"], [self.bucket_arn("models")]),
        ]

    def log_group(self, scope: Construct, construct_id: str, name: str) -> logs.LogGroup:
        """A log group that keeps its lines for the stage's time."""
        group = logs.LogGroup(scope, construct_id, log_group_name=name, removal_policy=self.removal_policy)
        child = group.node.default_child
        assert isinstance(child, logs.CfnLogGroup)
        child.retention_in_days = self.context.log_retention_days
        return group

    def queue(  # noqa: PLR0913 - what queues differ by
        self,
        construct_id: str,
        part: str,
        *,
        retention_days: int = 4,
        visibility_seconds: int = 30,
        dead_letter_queue: sqs.DeadLetterQueue | None = None,
        fifo: bool = False,
    ) -> sqs.Queue:
        """A queue that is encrypted, and that only TLS reaches."""
        return sqs.Queue(
            self,
            construct_id,
            queue_name=self.name(part) + (".fifo" if fifo else ""),
            fifo=fifo or None,
            # Each group on its own: one that waits for a retry keeps no other one from its pace.
            deduplication_scope=sqs.DeduplicationScope.MESSAGE_GROUP if fifo else None,
            fifo_throughput_limit=sqs.FifoThroughputLimit.PER_MESSAGE_GROUP_ID if fifo else None,
            content_based_deduplication=fifo or None,
            encryption=sqs.QueueEncryption.SQS_MANAGED,
            enforce_ssl=True,
            retention_period=Duration.days(retention_days),
            visibility_timeout=Duration.seconds(visibility_seconds),
            dead_letter_queue=dead_letter_queue,
            removal_policy=self.removal_policy,
        )

    def output(self, name: str, value: str) -> None:
        """An output of `names.Output`; none is exported."""
        CfnOutput(self, name, value=value)
