from __future__ import annotations

import json

import pytest

from threefold.errors import (
    Forbidden,
    InvalidManifest,
    InvalidPackage,
    Malformed,
    NoAnswer,
    NotServable,
    OutsideSignature,
    RegistryUnreachable,
    StorageUnavailable,
    ThreefoldError,
    TooLarge,
    UnknownJob,
    UnknownModel,
    UnknownRoute,
    UnsupportedMediaType,
    WrongState,
)
from threefold.gateway import MAXIMUM_RESPONSE_BYTES, read_body, refuse, respond, status_of


def test_an_error_that_has_no_status_of_its_own_has_its_class_s() -> None:
    class Other(NotServable):
        code = "other"

    answer = refuse(Other("want, got"))
    assert answer["statusCode"] == 503
    assert json.loads(answer["body"]) == {"error": "want, got", "code": "other"}


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (Malformed, 400),
        (Forbidden, 403),
        (UnknownModel, 404),
        (UnknownJob, 404),
        (UnknownRoute, 404),
        (NoAnswer, 404),
        (WrongState, 409),
        (TooLarge, 413),
        (UnsupportedMediaType, 415),
        (OutsideSignature, 422),
        (InvalidPackage, 503),
        (RegistryUnreachable, 503),
        (StorageUnavailable, 503),
        (InvalidManifest, 500),
    ],
)
def test_each_kind_of_error_has_its_status(kind: type[ThreefoldError], status: int) -> None:
    assert status_of(kind("want, got")) == status


def test_an_answer_that_lambda_would_not_carry_is_too_large() -> None:
    fits = b'"' * ((MAXIMUM_RESPONSE_BYTES - 2000) // 2)
    assert respond(200, fits)["statusCode"] == 200
    with pytest.raises(TooLarge):
        respond(200, fits + b'"' * 1000)


@pytest.mark.parametrize(
    ("event", "wanted"),
    [
        ({"body": "[1]"}, b"[1]"),
        ({"body": "WzFd", "isBase64Encoded": True}, b"[1]"),
        ({"headers": {"content-type": "Application/JSON; charset=utf-8"}, "body": "1"}, b"1"),
        ({}, b""),
        ({"body": "not base64", "isBase64Encoded": True}, Malformed),
        ({"body": "\ud800"}, Malformed),
        ({"headers": {"content-type": "text/csv"}, "body": "a"}, UnsupportedMediaType),
    ],
)
def test_a_body_is_what_the_event_says(event: dict[str, object], wanted: bytes | type[Exception]) -> None:
    if isinstance(wanted, bytes):
        assert read_body(event) == wanted
    else:
        with pytest.raises(wanted):
            read_body(event)
