"""The account that the kept files come from and go back to: its buckets, tables, queue and state machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import boto3
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from threefold.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REGION: Final = "eu-central-1"
CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
}
# Whether a bucket keeps versions; the names stand in the kept events, jobs and chunks.
BUCKETS: Final = {"models": True, "inbox": True, "results": False}
TABLES: Final = ("predictions", "jobs")
STATE_MACHINE: Final = f"arn:aws:states:{REGION}:{DEFAULT_ACCOUNT_ID}:stateMachine:batch"
# A kept outcome must not expire while the test that reads it lives.
TTL_DAYS: Final = 36_500
# Three records or so: small files make several chunks.
CHUNK_BYTES: Final = 100


def environment(queue_url: str) -> dict[str, str]:
    """What the stacks would write into the functions' environment."""
    return Settings(
        model_bucket="models",
        results_bucket="results",
        predictions_table="predictions",
        jobs_table="jobs",
        predictions_queue_url=queue_url,
        state_machine_arn=STATE_MACHINE,
        refresh_seconds=0.0,
        ttl_days=TTL_DAYS,
        chunk_bytes=CHUNK_BYTES,
    ).to_env()


class Account:
    """The account of the credentials in the environment, with everything made and nothing in it."""

    def __init__(self) -> None:
        self.s3, self.dynamodb, self.sqs = boto3.client("s3"), boto3.client("dynamodb"), boto3.client("sqs")
        self.steps = boto3.client("stepfunctions")
        for bucket, versioned in BUCKETS.items():
            self.s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
            if versioned:
                self.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        for table in TABLES:
            self.dynamodb.create_table(
                TableName=table,
                BillingMode="PAY_PER_REQUEST",
                KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
                AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
            )
        self.queue_url: str = self.sqs.create_queue(QueueName="predictions")["QueueUrl"]

    def create_state_machine(self) -> None:
        """Make the state machine: jobs can start from now on; who runs them is up to the caller."""
        definition = json.dumps({"StartAt": "Done", "States": {"Done": {"Type": "Succeed"}}})
        role = f"arn:aws:iam::{DEFAULT_ACCOUNT_ID}:role/states"
        self.steps.create_state_machine(name="batch", definition=definition, roleArn=role)

    def started(self, job: str) -> Any:
        """The input that a job's execution was started with."""
        execution = STATE_MACHINE.replace("stateMachine", "execution") + f":{job}"
        return json.loads(self.steps.describe_execution(executionArn=execution)["input"])

    def objects(self, bucket: str) -> dict[str, tuple[bytes, str | None]]:
        """The newest content of every key, with its version if the bucket keeps versions."""
        found: dict[str, tuple[bytes, str | None]] = {}
        for entry in self.s3.list_objects_v2(Bucket=bucket).get("Contents", []):
            answer = self.s3.get_object(Bucket=bucket, Key=entry["Key"])
            found[entry["Key"]] = (answer["Body"].read(), answer.get("VersionId"))
        return found

    def put(self, bucket: str, key: str, content: bytes, version: str | None) -> None:
        """Put an object under the very version that something kept names."""
        self.s3.put_object(Bucket=bucket, Key=key, Body=content)
        if version is not None:
            # S3 numbers versions itself, and so does moto: there is no call that names one.
            s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket].keys.getlist(key)[-1]._version_id = version

    def items(self, table: str) -> list[dict[str, Any]]:
        """A table's items as DynamoDB types them, by their keys."""
        pages = self.dynamodb.get_paginator("scan").paginate(TableName=table)
        return sorted(
            (item for page in pages for item in page["Items"]), key=lambda item: (item["pk"]["S"], item["sk"]["S"])
        )

    def sent(self) -> list[Any]:
        """What arrived on the predictions queue since the last look, by prediction id."""
        found: list[Any] = []
        while messages := self.sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                self.sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
                found.append(json.loads(message["Body"]))
        return sorted(found, key=lambda outcome: str(outcome["id"]))


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The files under a folder: their paths within it, which are keys, and what is in them."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()
