"""The stream door: requests queue, function, predictions queue, and the dead-letter queue of what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aws_cdk import Duration
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from aws_cdk import aws_sqs as sqs

from infra.context import MOST_WITHOUT_WINDOW
from infra.function import StageFunction
from infra.grants import Grant, accept
from infra.stage_stack import StageStack
from threefold.names import Door, Output
from threefold.settings import Settings

if TYPE_CHECKING:
    from constructs import Construct

    from infra.context import DeploymentContext

TIMEOUT_SECONDS: Final = 60
# The function gives a message up at its tenth receive, and says why (threefold/dead_letters.py). SQS does so without
# a word for one that ended the function each time.
RECEIVES: Final = 10
# In a FIFO queue a message is also received while it waits for one before it; there the function alone counts tries,
# and this, the most there is, is for the case that it never runs at all.
FIFO_RECEIVES: Final = 1_000


class StreamStack(StageStack):
    """The queues and the stream function between them."""

    def __init__(self, scope: Construct, context: DeploymentContext) -> None:
        """Make the queues, the function and the event source."""
        super().__init__(scope, Door.STREAM, context, "predictions over SQS")
        fifo = context.stream_fifo
        # A FIFO queue's source takes no window.
        window = 0 if fifo else context.stream_window_seconds
        dead_letters = self.queue("DeadLetters", "dead-letters", retention_days=14, fifo=fifo)
        requests = self.queue(
            "Requests",
            "requests",
            # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html: at least six times the
            # function's timeout, plus the window.
            visibility_seconds=6 * TIMEOUT_SECONDS + window,
            dead_letter_queue=sqs.DeadLetterQueue(
                queue=dead_letters, max_receive_count=FIFO_RECEIVES if fifo else RECEIVES
            ),
            fifo=fifo,
        )
        predictions = self.queue("Predictions", "predictions", fifo=fifo)
        accept(
            predictions,
            "its consumers are the customer's: when to give a prediction up is theirs to say",
            "AwsSolutions-SQS3",
        )
        topic = self._topic(predictions) if context.stream_fan_out else None
        sends = Grant(["sqs:SendMessage"], [dead_letters.queue_arn, *([] if topic else [predictions.queue_arn])])
        door = StageFunction(
            self,
            settings=Settings(
                door=Door.STREAM,
                stage=context.stage,
                auth=context.auth,
                model_bucket=self.bucket("models"),
                results_bucket=self.bucket("results"),
                predictions_table=self.name("predictions"),
                requests_queue=self.queue_name("requests"),
                predictions_queue_url="" if topic else predictions.queue_url,
                predictions_topic_arn=topic.topic_arn if topic else "",
                dead_letter_queue_url=dead_letters.queue_url,
                features_table=self.name("features"),
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
                        "sqs:GetQueueUrl",
                        "sqs:ChangeMessageVisibility",
                    ],
                    [requests.queue_arn],
                ),
                sends,
                *([Grant(["sns:Publish"], [topic.topic_arn])] if topic else []),
                Grant(
                    [
                        *("dynamodb:PutItem", "dynamodb:BatchWriteItem", "dynamodb:UpdateItem"),
                        *("dynamodb:GetItem", "dynamodb:BatchGetItem"),
                    ],
                    [self.table_arn("predictions")],
                ),
                # Outcomes that are too large for a message.
                Grant(
                    ["s3:PutObject"],
                    [self.bucket_arn("results", "*/stream/*")],
                    wildcard="models and messages name the outcomes",
                ),
                Grant(["dynamodb:BatchGetItem", "dynamodb:PutItem"], [self.table_arn("features")]),
            ],
        )
        lambda_.EventSourceMapping(
            self,
            "Source",
            target=door.alias,
            event_source_arn=requests.queue_arn,
            batch_size=min(context.stream_batch_size, MOST_WITHOUT_WINDOW) if fifo else context.stream_batch_size,
            max_batching_window=Duration.seconds(window) if window else None,
            max_concurrency=context.stream_max_concurrency,
            report_batch_item_failures=True,
        )
        self.output(Output.REQUESTS_QUEUE_URL, requests.queue_url)
        self.output(Output.PREDICTIONS_QUEUE_URL, predictions.queue_url)
        self.output(Output.DEAD_LETTER_QUEUE_URL, dead_letters.queue_url)
        if topic is not None:
            self.output(Output.PREDICTIONS_TOPIC_ARN, topic.topic_arn)

    def _topic(self, predictions: sqs.Queue) -> sns.Topic:
        """The topic of all outcomes, and the predictions queue as its first subscriber."""
        fifo = self.context.stream_fifo
        topic = sns.Topic(
            self,
            "Outcomes",
            topic_name=self.queue_name("predictions"),
            fifo=fifo or None,
            enforce_ssl=True,
        )
        accept(
            topic,
            "outcomes are encrypted in the queues that they are read from; a key of the topic's own would have to be "
            "shared with each subscriber of each account",
            "AwsSolutions-SNS2",
        )
        topic.add_subscription(subscriptions.SqsSubscription(predictions, raw_message_delivery=True))
        topic.add_to_resource_policy(
            iam.PolicyStatement(
                sid="AccountPublishesAndSubscribes",
                principals=[iam.AccountRootPrincipal()],
                actions=["sns:Publish", "sns:Subscribe", "sns:GetTopicAttributes"],
                resources=[topic.topic_arn],
            )
        )
        return topic
