from __future__ import annotations

from typing import TYPE_CHECKING

from tests.infra.assembly import text
from threefold.names import Output

if TYPE_CHECKING:
    from tests.infra.assembly import Assembly


def test_the_registry_keeps_every_version_but_of_deleted_packages(each: Assembly) -> None:
    bucket = each.only("AWS::S3::Bucket", "store")
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    whole, packages = bucket["LifecycleConfiguration"]["Rules"]
    assert whole == {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}, "Status": "Enabled"}
    assert packages == {
        "Prefix": "packages/",
        "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
        "ExpiredObjectDeleteMarker": True,
        "Status": "Enabled",
    }


def test_a_package_cannot_be_overwritten(iam: Assembly) -> None:
    bucket = text(iam.only("AWS::S3::Bucket", "store")["BucketName"])
    document = iam.only("AWS::S3::BucketPolicy", "store")["PolicyDocument"]
    (statement,) = [each for each in document["Statement"] if each.get("Sid") == "PackagesAreImmutable"]
    assert statement["Effect"] == "Deny"
    assert statement["Principal"] == {"AWS": "*"}
    assert statement["Action"] == "s3:PutObject"
    assert text(statement["Resource"]) == f"arn:${{AWS::Partition}}:s3:::{bucket}/packages/*"
    assert statement["Condition"] == {"Null": {"s3:if-none-match": "true"}}


def test_every_bucket_is_closed_encrypted_and_over_tls(iam: Assembly) -> None:
    buckets, policies = iam.resources("AWS::S3::Bucket"), iam.resources("AWS::S3::BucketPolicy")
    assert len(buckets) == len(policies) == 3
    for bucket in buckets.values():
        assert set(bucket["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
        assert "BucketEncryption" in bucket["Properties"]
    for policy in policies.values():
        (first, *_) = policy["Properties"]["PolicyDocument"]["Statement"]
        assert (first["Effect"], first["Action"]) == ("Deny", "s3:*")
        assert first["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_both_tables_are_keyed_on_demand_recoverable_and_forgetful(iam: Assembly) -> None:
    for part in ("predictions", "jobs"):
        table = iam.only("AWS::DynamoDB::Table", "store", TableName=f"threefold-dev-{part}")
        assert table["KeySchema"] == [
            {"AttributeName": "pk", "KeyType": "HASH"},
            {"AttributeName": "sk", "KeyType": "RANGE"},
        ]
        assert {each["AttributeType"] for each in table["AttributeDefinitions"]} == {"S"}
        assert table["BillingMode"] == "PAY_PER_REQUEST"
        assert table["TimeToLiveSpecification"] == {"AttributeName": "expires", "Enabled": True}
        assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert table["SSESpecification"] == {"SSEEnabled": True}


def test_the_features_table_is_as_the_others_with_one_item_an_entity(iam: Assembly) -> None:
    features = iam.only("AWS::DynamoDB::Table", "store", TableName="threefold-dev-features")
    jobs = iam.only("AWS::DynamoDB::Table", "store", TableName="threefold-dev-jobs")
    assert features["KeySchema"] == [{"AttributeName": "pk", "KeyType": "HASH"}]
    own = {"KeySchema", "AttributeDefinitions", "TableName"}
    assert {name: value for name, value in features.items() if name not in own} == {
        name: value for name, value in jobs.items() if name not in own
    }


def test_every_address_is_an_output_of_its_stack(iam: Assembly) -> None:
    found = {name: set(template["Outputs"]) for name, template in iam.templates.items()}
    assert found == {
        "store": {Output.MODEL_BUCKET, Output.PREDICTIONS_TABLE, Output.JOBS_TABLE, Output.FEATURES_TABLE},
        "predict": {Output.API_URL},
        "batch": {
            *(Output.INBOX_BUCKET, Output.RESULTS_BUCKET, Output.STATE_MACHINE_ARN, Output.LOST_UPLOADS_QUEUE_URL)
        },
        "stream": {Output.REQUESTS_QUEUE_URL, Output.PREDICTIONS_QUEUE_URL, Output.DEAD_LETTER_QUEUE_URL},
        "observability": {Output.ALARM_TOPIC_ARN},
    }
    known = {value for name, value in vars(Output).items() if name.isupper()}
    # The topic is there with `streamFanOut` alone.
    assert known - {Output.PREDICTIONS_TOPIC_ARN} == set().union(*found.values())
