"""The events that Lambda hands to the doors, with `n` records of the bench model in them."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.models import record_list

_AT_MS = 1_700_000_000_000


class Context:
    """Lambda's context, as far as the doors look at it."""

    function_name = "threefold-bench"
    memory_limit_in_mb = 1769
    invoked_function_arn = "arn:aws:lambda:eu-central-1:000000000000:function:threefold-bench"
    aws_request_id = "00000000-0000-4000-8000-000000000000"

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        """What is left of the invocation's time."""
        return 60_000


def api_event(model: str, rows: int) -> dict[str, Any]:
    """A call of `POST /models/{model}/predictions` as API Gateway's HTTP API sends it (payload format 2.0)."""
    path = f"/models/{model}/predictions"
    body = {"records": [{"id": f"customer-{i}", **record} for i, record in enumerate(record_list(rows))]}
    return {
        "version": "2.0",
        "routeKey": "POST /models/{model}/predictions",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {
            "accept": "*/*",
            "accept-encoding": "gzip, deflate",
            "authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20231114/eu-central-1/execute-api/aws4_request",
            "content-length": "1024",
            "content-type": "application/json",
            "host": "abcdefghij.execute-api.eu-central-1.amazonaws.com",
            "user-agent": "python-httpx/0.28",
            "x-amzn-trace-id": "Root=1-6553f100-0123456789abcdef01234567",
            "x-forwarded-for": "192.0.2.1",
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
        },
        "requestContext": {
            "accountId": "000000000000",
            "apiId": "abcdefghij",
            "authorizer": {"iam": {"accessKey": "AKIDEXAMPLE", "accountId": "000000000000", "callerId": "AIDAEXAMPLE"}},
            "domainName": "abcdefghij.execute-api.eu-central-1.amazonaws.com",
            "domainPrefix": "abcdefghij",
            "http": {
                "method": "POST",
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "python-httpx/0.28",
            },
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": "POST /models/{model}/predictions",
            "stage": "$default",
            "time": "14/Nov/2023:22:13:20 +0000",
            "timeEpoch": _AT_MS,
        },
        "pathParameters": {"model": model},
        "body": json.dumps(body),
        "isBase64Encoded": False,
    }


def queue_event(model: str, rows: int) -> dict[str, Any]:
    """A batch of the requests queue as Lambda's event source mapping sends it, one record a message."""
    return {
        "Records": [
            {
                "messageId": f"00000000-0000-4000-8000-{i:012d}",
                "receiptHandle": "MessageReceiptHandle",
                "body": json.dumps({"model": model, "key": f"customer-{i}", "record": record}),
                "attributes": {
                    "ApproximateReceiveCount": "1",
                    "SentTimestamp": str(_AT_MS + i),
                    "SenderId": "123456789012",
                    "ApproximateFirstReceiveTimestamp": str(_AT_MS + i + 1),
                },
                "messageAttributes": {},
                "md5OfBody": "00000000000000000000000000000000",
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:eu-central-1:000000000000:threefold-bench-requests",
                "awsRegion": "eu-central-1",
            }
            for i, record in enumerate(record_list(rows))
        ]
    }
