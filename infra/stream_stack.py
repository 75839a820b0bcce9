"""The stream door: requests queue, function, predictions queue, and the dead-letter queue of what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aws_cdk import Duration
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sqs as sqs

from infra.function import StageFunction
from infra.grants import Grant, accept
from infra.stage_stack import StageStack
from threefold.names import Door, Output
from threefold.settings import Settings

if TYPE_CHECKING:
    from constructs import Construct

    from infra.context import DeploymentContext

TIMEOUT_SECONDS: Final = 60
# https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html: a batch above 10 needs a window of 1 s.
WINDOW_SECONDS: Final = 1
# The same page: at least six times the function's timeout, plus the window.
VISIBILITY_SECONDS: Final = 6 * TIMEOUT_SECONDS + WINDOW_SECONDS
RECEIVES: Final = 10


class StreamStack(StageStack):
    """The queues and the stream function between them."""

    def __init__(self, scope: Construct, context: DeploymentContext) -> None:
        """Make the queues, the function and the event source."""
        super().__init__(scope, Door.STREAM, context, "predictions over SQS")
        dead_letters = self.queue("DeadLetters", "dead-letters", retention_days=14)
        requests = self.queue(
            "Requests",
            "requests",
            visibility_seconds=VISIBILITY_SECONDS,
            dead_letter_queue=sqs.DeadLetterQueue(queue=dead_letters, max_receive_count=RECEIVES),
        )
        predictions = self.queue("Predictions", "predictions")
        accept(
            predictions,
            "its consumers are the customer's: when to give a prediction up is theirs to say",
            "AwsSolutions-SQS3",
        )
        door = StageFunction(
            self,
            settings=Settings(
                door=Door.STREAM,
                stage=context.stage,
                auth=context.auth,
                model_bucket=self.bucket("models"),
                predictions_table=self.name("predictions"),
                features_table=self.name("features"),
                predictions_queue_url=predictions.queue_url,
                refresh_seconds=context.refresh_seconds,
                ttl_days=context.ttl_days,
            ),
            timeout_seconds=TIMEOUT_SECONDS,
            memory_megabytes=context.stream_memory,
            reserved_concurrency=context.stream_reserved_concurrency,
            grants=[
                *self.registry_read(),
                Grant(
                    [
                        "sqs:ReceiveMessage",
                        "sqs:DeleteMessage",
                        "sqs:GetQueueAttributes",
                        "sqs:ChangeMessageVisibility",
                    ],
                    [requests.queue_arn],
                ),
                Grant(["sqs:SendMessage"], [predictions.queue_arn]),
                Grant(
                    ["dynamodb:PutItem", "dynamodb:BatchWriteItem", "dynamodb:GetItem", "dynamodb:BatchGetItem"],
                    [self.table_arn("predictions")],
                ),
                Grant(["dynamodb:BatchGetItem", "dynamodb:PutItem"], [self.table_arn("features")]),
            ],
        )
        lambda_.EventSourceMapping(
            self,
            "Source",
            target=door.alias,
            event_source_arn=requests.queue_arn,
            batch_size=context.stream_batch_size,
            max_batching_window=Duration.seconds(WINDOW_SECONDS),
            max_concurrency=context.stream_max_concurrency,
            report_batch_item_failures=True,
        )
        self.output(Output.REQUESTS_QUEUE_URL, requests.queue_url)
        self.output(Output.PREDICTIONS_QUEUE_URL, predictions.queue_url)
        self.output(Output.DEAD_LETTER_QUEUE_URL, dead_letters.queue_url)
