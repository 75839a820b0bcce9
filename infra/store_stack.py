"""The store: the versioned model bucket, which is the registry, and the tables of predictions, jobs and features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aws_cdk import Duration
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3

from infra.grants import accept
from infra.stage_stack import StageStack
from threefold.names import LOOKUP_INDEX, Output, Prefix

if TYPE_CHECKING:
    from constructs import Construct

    from infra.context import DeploymentContext


# How long a deleted package can be had back.
COLLECTED_DAYS: Final = 30


class StoreStack(StageStack):
    """What outlives every deploy of the doors."""

    def __init__(self, scope: Construct, context: DeploymentContext) -> None:
        """Make the bucket and the tables."""
        super().__init__(scope, "store", context, "models, predictions, jobs and features")
        # Nothing under layers/ and releases/ expires: deployed layers, rollback, history and jobs need old versions.
        models = private_bucket(self, "Models", "models", versioned=True)
        # A package is never overwritten: an old version of one is there only where `threefold gc` deleted it.
        models.add_lifecycle_rule(
            prefix=Prefix.PACKAGES,
            noncurrent_version_expiration=Duration.days(COLLECTED_DAYS),
            expired_object_delete_marker=True,
        )
        models.add_to_resource_policy(
            iam.PolicyStatement(
                sid="PackagesAreImmutable",
                effect=iam.Effect.DENY,
                principals=[iam.AnyPrincipal()],
                actions=["s3:PutObject"],
                resources=[self.bucket_arn("models", f"{Prefix.PACKAGES}*")],
                # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes-enforce.html
                conditions={"Null": {"s3:if-none-match": "true"}},
            )
        )
        predictions = self._table("Predictions")
        # Of outcomes that stand under a key of the record's own: which key that is, by the prediction's id.
        predictions.add_global_secondary_index(
            index_name=LOOKUP_INDEX,
            partition_key=dynamodb.Attribute(name=LOOKUP_INDEX, type=dynamodb.AttributeType.STRING),
            projection_type=dynamodb.ProjectionType.KEYS_ONLY,
        )
        jobs = self._table("Jobs")
        features = self._table("Features", sorted_items=False)
        self.output(Output.MODEL_BUCKET, models.bucket_name)
        self.output(Output.PREDICTIONS_TABLE, predictions.table_name)
        self.output(Output.JOBS_TABLE, jobs.table_name)
        self.output(Output.FEATURES_TABLE, features.table_name)

    def _table(self, construct_id: str, *, sorted_items: bool = True) -> dynamodb.Table:
        return dynamodb.Table(
            self,
            construct_id,
            table_name=self.name(construct_id.lower()),
            partition_key=dynamodb.Attribute(name="pk", type=dynamodb.AttributeType.STRING),
            sort_key=dynamodb.Attribute(name="sk", type=dynamodb.AttributeType.STRING) if sorted_items else None,
            billing_mode=dynamodb.BillingMode.PAY_PER_REQUEST,
            encryption=dynamodb.TableEncryption.AWS_MANAGED,
            point_in_time_recovery_specification=dynamodb.PointInTimeRecoverySpecification(
                point_in_time_recovery_enabled=True
            ),
            time_to_live_attribute="expires",
            deletion_protection=self.context.retains,
            removal_policy=self.removal_policy,
        )


def private_bucket(  # noqa: PLR0913 - what buckets differ by
    stack: StageStack,
    construct_id: str,
    part: str,
    *,
    versioned: bool,
    noncurrent_days: int = 0,
    browsers: s3.HttpMethods | None = None,
) -> s3.Bucket:
    """A bucket as all of ours are: encrypted, closed to the public, over TLS only.

    Args:
        stack: where it stands.
        construct_id: its logical name.
        part: its part of the name: models, inbox or results.
        versioned: whether objects keep their old versions.
        noncurrent_days: after how many days an old version goes; 0 means never.
        browsers: what scripts of the origins that may call over HTTPS may do here, with an address that is signed.
    """
    origins = stack.context.origins
    cors = (
        [s3.CorsRule(allowed_methods=[browsers], allowed_origins=origins, allowed_headers=["*"])] if browsers else None
    )
    bucket = s3.Bucket(
        stack,
        construct_id,
        bucket_name=stack.bucket(part),
        versioned=versioned,
        encryption=s3.BucketEncryption.S3_MANAGED,
        block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
        object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
        enforce_ssl=True,
        cors=cors,
        lifecycle_rules=[
            s3.LifecycleRule(
                abort_incomplete_multipart_upload_after=Duration.days(7),
                noncurrent_version_expiration=Duration.days(noncurrent_days) if noncurrent_days else None,
            )
        ],
        removal_policy=stack.removal_policy,
    )
    accept(
        bucket,
        "who read what is a matter of the account's CloudTrail data events; what was written is in the object versions",
        "AwsSolutions-S1",
    )
    return bucket
