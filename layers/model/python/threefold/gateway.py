"""What API Gateway's events carry in and out: a body, an answer, and the one status that each error has over HTTPS."""

from __future__ import annotations

import base64
from typing import Any, Final

from threefold import strict_json
from threefold.errors import (
    Forbidden,
    Malformed,
    NoAnswer,
    NotServable,
    OutsideSignature,
    StorageUnavailable,
    ThreefoldError,
    TooLarge,
    UnknownJob,
    UnknownModel,
    UnknownPrediction,
    UnknownRoute,
    UnsupportedMediaType,
    WrongState,
)

Event = dict[str, Any]
Response = dict[str, Any]

STATUS: Final[dict[type[ThreefoldError], int]] = {
    Malformed: 400,
    Forbidden: 403,
    UnknownModel: 404,
    UnknownJob: 404,
    UnknownPrediction: 404,
    UnknownRoute: 404,
    NoAnswer: 404,
    WrongState: 409,
    TooLarge: 413,
    UnsupportedMediaType: 415,
    OutsideSignature: 422,
    NotServable: 503,
    StorageUnavailable: 503,
}
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html: 6 MB for a response, its JSON included.
MAXIMUM_RESPONSE_BYTES: Final = 6_291_556
# For status and headers around the body.
ENVELOPE_BYTES: Final = 1024


def read_body(event: Event) -> bytes:
    """The body of a call.

    Raises:
        UnsupportedMediaType: it is not JSON by its header.
        Malformed: it is not what the event says of it.
    """
    media_type = (event.get("headers") or {}).get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        message = f"content-type: want application/json, got {media_type!r}"
        raise UnsupportedMediaType(message)
    text: str = event.get("body") or ""
    try:
        return base64.b64decode(text, validate=True) if event.get("isBase64Encoded") else text.encode()
    except ValueError as error:
        message = f"body: want base64 or text, got {error}"
        raise Malformed(message) from error


def respond(status: int, body: bytes | dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """An answer in API Gateway's form.

    Raises:
        TooLarge: Lambda carries no answer of this size.
    """
    content = body if isinstance(body, bytes) else strict_json.dumps(body)
    size = 2 * len(content) + ENVELOPE_BYTES
    if size > MAXIMUM_RESPONSE_BYTES:
        # In Lambda's own JSON the body is a text: each quote and each backslash takes a backslash more.
        size = len(content) + content.count(b'"') + content.count(b"\\") + ENVELOPE_BYTES
    if size > MAXIMUM_RESPONSE_BYTES:
        message = f"answer: want at most {MAXIMUM_RESPONSE_BYTES} bytes, got {size}; ask for less in a call"
        raise TooLarge(message)
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json", **(headers or {})},
        "body": content.decode(),
        "isBase64Encoded": False,
    }


def status_of(error: ThreefoldError) -> int:
    """The status that says what kind of error it is."""
    return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)


def refuse(error: ThreefoldError, **details: object) -> Response:
    """The answer that an error is to its caller."""
    return respond(status_of(error), {"error": str(error), "code": error.code, **details})


def fail() -> Response:
    """The answer where nobody foresaw what happened."""
    return respond(500, {"error": "the server failed to answer; its log says why", "code": "internal"})
