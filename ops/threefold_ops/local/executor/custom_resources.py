"""Keeps custom resources from hanging a deploy: failures are told, and one of CDK's functions is stood in for."""

from __future__ import annotations

import contextlib
import json
import logging
import urllib.error
import urllib.request
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

_log = logging.getLogger("threefold.custom_resources")
# CDK writes this one in JavaScript against an SDK that ministack's Node.js worker does not bring.
_AUTO_DELETE: Final = "Custom::S3AutoDeleteObjects"
_TIMEOUT_SECONDS: Final = 10.0


def is_request(event: object) -> bool:
    """Whether an event is CloudFormation's, which then waits for an answer at the URL inside."""
    return isinstance(event, dict) and {"ResponseURL", "RequestType", "StackId", "LogicalResourceId"} <= event.keys()


def stands_in_for(event: dict[str, Any]) -> bool:
    """Whether `stand_in` does this resource's work."""
    return event.get("ResourceType") == _AUTO_DELETE


def stand_in(event: dict[str, Any], endpoint_url: str, region: str) -> dict[str, Any]:
    """Empty the bucket when its stack is deleted, as CDK's own function does; answer as an invocation does.

    CDK's function looks for a tag on the bucket first, which ministack's CloudFormation does not set.
    """
    try:
        if event["RequestType"] == "Delete":
            _empty(str(event["ResourceProperties"]["BucketName"]), endpoint_url, region)
    except ClientError as error:
        answer(event, reason=str(error))
    else:
        answer(event)
    return {"body": None, "log": ""}


def answer(event: dict[str, Any], reason: str = "") -> None:
    """Tell CloudFormation that the resource is done or, with a reason, that it failed."""
    body = {
        "Status": "FAILED" if reason else "SUCCESS",
        "Reason": reason,
        "PhysicalResourceId": event.get("PhysicalResourceId") or event["LogicalResourceId"],
        "StackId": event["StackId"],
        "RequestId": event.get("RequestId"),
        "LogicalResourceId": event["LogicalResourceId"],
    }
    request = urllib.request.Request(event["ResponseURL"], json.dumps(body).encode(), method="PUT")  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_SECONDS):
            pass
    except urllib.error.URLError:
        # The function may have answered before it failed; the first answer is the one that counts.
        _log.warning("answer not taken, resource=%s", event["LogicalResourceId"])


def _empty(bucket: str, endpoint_url: str, region: str) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id="test",
        aws_secret_access_key="test",  # noqa: S106 -- the emulator's, which opens nothing
        config=Config(s3={"addressing_style": "path"}),
    )
    with contextlib.suppress(s3.exceptions.NoSuchBucket):
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
            objects: Any = [
                {"Key": entry["Key"], "VersionId": entry["VersionId"]}
                for entry in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            ]
            if objects:
                s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
