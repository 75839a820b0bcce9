"""The batch door: inbox and results buckets, the batch function, what calls it, and the state machine of jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aws_cdk import Duration
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_s3 as s3

from infra.function import StageFunction
from infra.grants import Grant, accept
from infra.job import Job
from infra.stage_stack import StageStack
from infra.store_stack import private_bucket
from threefold.names import PENDING_PREFIX, UPLOAD_SUFFIXES, WORK_DAYS, WORK_TAG, Door, Output
from threefold.settings import Settings

if TYPE_CHECKING:
    from constructs import Construct

    from infra.context import DeploymentContext

# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html: the most there is.
TIMEOUT_SECONDS: Final = 900
# Longer than any job runs: a job reads one version of its file.
_INBOX_NONCURRENT_DAYS: Final = 30


class BatchStack(StageStack):
    """The buckets, the batch function and its state machine."""

    def __init__(self, scope: Construct, context: DeploymentContext) -> None:
        """Make the function first, then what calls it."""
        super().__init__(scope, Door.BATCH, context, "predictions over CSV files")
        lost_uploads = self.queue("LostUploads", "lost-uploads", retention_days=14)
        accept(lost_uploads, "it holds what was given up; nothing reads it but the operator", "AwsSolutions-SQS3")
        door = StageFunction(
            self,
            settings=Settings(
                door=Door.BATCH,
                stage=context.stage,
                auth=context.auth,
                model_bucket=self.bucket("models"),
                inbox_bucket=self.bucket("inbox"),
                results_bucket=self.bucket("results"),
                predictions_table=self.name("predictions"),
                jobs_table=self.name("jobs"),
                features_table=self.name("features"),
                state_machine_arn=self.state_machine_arn,
                refresh_seconds=context.refresh_seconds,
                ttl_days=context.ttl_days,
                chunk_bytes=context.chunk_bytes,
                chunk_rows=context.chunk_rows,
                writes_per_second=context.write_budget / context.chunk_concurrency,
            ),
            timeout_seconds=TIMEOUT_SECONDS,
            memory_megabytes=context.batch_memory,
            reserved_concurrency=context.batch_reserved_concurrency,
            grants=[
                *self.registry_read(),
                Grant(
                    ["s3:GetObject", "s3:GetObjectVersion"],
                    [self.bucket_arn("inbox", "*")],
                    wildcard="uploaders name the files",
                ),
                # What was pending is put together into an upload, and cleared when its outcomes stand.
                Grant(
                    ["s3:PutObject", "s3:AbortMultipartUpload"],
                    [self.bucket_arn("inbox", "*/pending-*.csv")],
                    wildcard="models and times name the collections",
                ),
                Grant(
                    ["s3:DeleteObjectVersion"],
                    [self.bucket_arn("inbox", f"{PENDING_PREFIX}*")],
                    wildcard="whoever leaves records names them",
                ),
                Grant(
                    ["s3:GetObject", "s3:PutObject", "s3:PutObjectTagging", "s3:AbortMultipartUpload"],
                    [self.bucket_arn("results", "*")],
                    wildcard="models and jobs name the results",
                ),
                Grant(["sqs:SendMessage"], [lost_uploads.queue_arn]),
                # Without it S3 says 403 of a key that is not there.
                Grant(["s3:ListBucket"], [self.bucket_arn("inbox"), self.bucket_arn("results")]),
                Grant(["s3:ListBucketVersions"], [self.bucket_arn("inbox")]),
                Grant(
                    [
                        *("dynamodb:PutItem", "dynamodb:BatchWriteItem", "dynamodb:UpdateItem"),
                        *("dynamodb:GetItem", "dynamodb:BatchGetItem", "dynamodb:Query"),
                    ],
                    [self.table_arn("jobs"), self.table_arn("predictions")],
                ),
                Grant(["dynamodb:BatchGetItem", "dynamodb:PutItem"], [self.table_arn("features")]),
                Grant(["states:StartExecution"], [self.state_machine_arn]),
                Grant(["events:PutEvents"], [self.arn("events", "event-bus/default")]),
            ],
        )
        inbox = private_bucket(
            *(self, "Inbox", "inbox"),
            versioned=True,
            noncurrent_days=_INBOX_NONCURRENT_DAYS,
            browsers=s3.HttpMethods.POST,
        )
        results = private_bucket(self, "Results", "results", versioned=False, browsers=s3.HttpMethods.GET)
        results.add_lifecycle_rule(tag_filters=dict([WORK_TAG]), expiration=Duration.days(WORK_DAYS))
        if context.results_days:
            results.add_lifecycle_rule(expiration=Duration.days(context.results_days))
        self._notify(inbox, door)
        # S3 tells of an upload once, and Lambda tries three times: after that, here is the event to send again.
        lambda_.CfnEventInvokeConfig(
            self,
            "LostUploadsKept",
            function_name=door.function.function_name,
            qualifier=door.alias.alias_name,
            maximum_retry_attempts=2,
            destination_config=lambda_.CfnEventInvokeConfig.DestinationConfigProperty(
                on_failure=lambda_.CfnEventInvokeConfig.OnFailureProperty(destination=lost_uploads.queue_arn)
            ),
        )
        job = Job(self, door.alias)
        self._call(door)
        self.output(Output.INBOX_BUCKET, inbox.bucket_name)
        self.output(Output.RESULTS_BUCKET, results.bucket_name)
        self.output(Output.STATE_MACHINE_ARN, job.state_machine.state_machine_arn)
        self.output(Output.LOST_UPLOADS_QUEUE_URL, lost_uploads.queue_url)

    def _call(self, door: StageFunction) -> None:
        """Tell the function of executions that did not end by their own steps, and when it is time to collect."""
        events.Rule(
            self,
            "Stopped",
            rule_name=self.name("batch-stopped"),
            description="a job's execution was stopped by hand, or failed beyond its own steps",
            event_pattern=events.EventPattern(
                source=["aws.states"],
                detail_type=["Step Functions Execution Status Change"],
                detail={"stateMachineArn": [self.state_machine_arn], "status": ["ABORTED", "FAILED", "TIMED_OUT"]},
            ),
            targets=[targets.LambdaFunction(door.alias)],
        )
        if self.context.pending_minutes:
            events.Rule(
                self,
                "Collect",
                rule_name=self.name("batch-collect"),
                description="records left pending become an upload",
                schedule=events.Schedule.rate(Duration.minutes(self.context.pending_minutes)),
                targets=[
                    targets.LambdaFunction(door.alias, event=events.RuleTargetInput.from_object({"action": "collect"}))
                ],
            )

    def _notify(self, inbox: s3.Bucket, door: StageFunction) -> None:
        # The bucket's own property, not CDK's custom resource, which would bring a function of its own.
        permission = lambda_.CfnPermission(
            self,
            "InboxMayInvoke",
            action="lambda:InvokeFunction",
            function_name=door.alias.function_arn,
            principal="s3.amazonaws.com",
            source_account=self.account,
            source_arn=self.bucket_arn("inbox"),
        )
        bucket = inbox.node.default_child
        assert isinstance(bucket, s3.CfnBucket)
        # S3 calls nobody who has not let it, and checks that when the bucket is made.
        bucket.add_resource_dependency(permission)
        bucket.notification_configuration = s3.CfnBucket.NotificationConfigurationProperty(
            lambda_configurations=[
                s3.CfnBucket.LambdaConfigurationProperty(
                    event="s3:ObjectCreated:*",
                    function=door.alias.function_arn,
                    filter=s3.CfnBucket.NotificationFilterProperty(
                        s3_key=s3.CfnBucket.S3KeyFilterProperty(
                            rules=[s3.CfnBucket.FilterRuleProperty(name="suffix", value=suffix)]
                        )
                    ),
                )
                for suffix in UPLOAD_SUFFIXES
            ]
        )
