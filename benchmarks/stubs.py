"""AWS clients that answer at once, below everything that a real call does but the network."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import boto3
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Raw(io.BytesIO):
    """A body as urllib3 hands it over."""

    def stream(self, **_options: object) -> Iterator[bytes]:
        yield self.read()


def client(service: str, answer: bytes, *, validate: bool = True) -> Any:  # noqa: ANN401 - a client of any service
    """A client whose calls are serialized, signed and parsed, and answered with `answer` where the network would be."""
    made = boto3.client(
        service,  # type: ignore[call-overload]
        region_name="eu-central-1",
        aws_access_key_id="bench",
        aws_secret_access_key="bench",
        config=Config(max_pool_connections=16, parameter_validation=validate),
    )
    return answered(made, answer)


def answered(made: Any, answer: bytes) -> Any:  # noqa: ANN401 - a client, or one of a resource's things
    """The same client or resource, answered where the network would be."""
    below = getattr(made.meta, "client", made)
    below.meta.events.register("before-send", lambda request, **_: _response(request.url, answer))
    return made


def _response(url: str, answer: bytes) -> AWSResponse:
    headers = HTTPHeaders.from_dict({"content-type": "application/x-amz-json-1.0"})
    return AWSResponse(url, 200, headers, _Raw(answer))
