"""The HTTPS door: scoring, metadata and health, behind API Gateway's routes."""

from __future__ import annotations

import base64
import time
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from threefold import strict_json
from threefold.errors import (
    Forbidden,
    Malformed,
    NotServable,
    OutsideSignature,
    ThreefoldError,
    TooLarge,
    UnknownModel,
    UnknownRoute,
    UnsupportedMediaType,
)
from threefold.names import VERSION, Metric
from threefold.predictor import Predictor, open_predictor, warm
from threefold.protocols import open_inference, records
from threefold.release import Route
from threefold.request import Records, Request, Tensors, record_keys
from threefold.settings import Settings
from threefold.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable

    from threefold.prediction import Outcomes
    from threefold.registry import Confirmed

Event = dict[str, Any]
Response = dict[str, Any]

STATUS: Final[dict[type[ThreefoldError], int]] = {
    Malformed: 400,
    Forbidden: 403,
    UnknownModel: 404,
    UnknownRoute: 404,
    TooLarge: 413,
    UnsupportedMediaType: 415,
    OutsideSignature: 422,
    NotServable: 503,
}
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html: 6 MB for a response, its JSON included.
MAXIMUM_RESPONSE_BYTES: Final = 6_291_556
# For status and headers around the body.
ENVELOPE_BYTES: Final = 1024


def handler(event: Event, _context: object) -> Response:
    """Answer one request of API Gateway's HTTP API (payload format 2.0)."""
    started = time.perf_counter()
    telemetry = _telemetry()
    try:
        response = _answer(event, started)
    except ThreefoldError as error:
        response = _error(error)
    except Exception:  # the last line of defence: a caller never sees a traceback
        telemetry.logger.exception("request failed", route=event.get("routeKey"))
        telemetry.add(Metric.ERRORS, 1)
        response = _respond(500, {"error": "the server failed to answer; its log says why", "code": "internal"})
    telemetry.flush(started, status=response["statusCode"], route=event.get("routeKey"))
    return response


def _answer(event: Event, started: float) -> Response:
    settings = _settings()
    if settings.auth == "none" and not settings.endpoint_url:
        message = "auth: want iam or jwt on AWS, got none; only an embedded AWS may be open"
        raise Forbidden(message)
    key = event.get("routeKey", "")
    act = ROUTES.get(key)
    if act is None:
        message = f"route: want one of {sorted(ROUTES)}, got {key!r}"
        raise UnknownRoute(message)
    parameters = event.get("pathParameters") or {}
    model = parameters.get("model")
    if model is not None:
        if "%" in event.get("rawPath", "").partition("/models/")[2].partition("/")[0]:
            # A policy on paths sees the text, the route sees what it decodes to: one spelling, or they differ.
            message = "path: want a model's plain name, got one with %"
            raise UnknownModel(message)
        if settings.auth == "jwt" and settings.scope_template.format(model=model) not in _scopes(event):
            message = "scope: want one that opens this model, got none"
            raise Forbidden(message)
    return act(event, model, parameters.get("version"), started)


def _predict(event: Event, model: str | None, _version: str | None, started: float) -> Response:
    found = records.decode(_body(event))
    decoded = time.perf_counter()
    predictor, name = _predictor(), str(model)
    keys = record_keys(found, predictor.key_field(name))
    outcomes = predictor.predict(Request(model=name, rows=Records(found), keys=keys))
    scored = time.perf_counter()
    _telemetry().outcomes(outcomes)
    if len(outcomes.problems) == len(outcomes):
        first = "; ".join(next(iter(outcomes.problems.values())))
        error = {"error": first, "code": OutsideSignature.code, "predictions": outcomes.predictions()}
        return _respond(422, error, _headers(outcomes, started, decoded, scored))
    body = records.encode(outcomes)
    return _respond(200, body, _headers(outcomes, started, decoded, scored))


def _infer(event: Event, model: str | None, version: str | None, started: float) -> Response:
    tensors, identity, names = open_inference.decode(_body(event))
    decoded = time.perf_counter()
    request = Request(model=str(model), rows=Tensors([tensors]), version=version)
    outcomes = _predictor().predict(request)
    scored = time.perf_counter()
    _telemetry().outcomes(outcomes)
    if outcomes.problems:
        raise OutsideSignature("; ".join(outcomes.problems[0]))
    body = open_inference.encode(outcomes, outcomes.parts[0], identity, names)
    return _respond(200, body, _headers(outcomes, started, decoded, scored))


def _metadata(_event: Event, model: str | None, version: str | None, _started: float) -> Response:
    confirmed, chosen = _find(str(model), version)
    package = _predictor().sessions.fetch(str(model), chosen.digest)
    return _respond(200, open_inference.model_metadata(package.manifest, confirmed.release))


def _model_ready(_event: Event, model: str | None, version: str | None, _started: float) -> Response:
    name = str(model)
    if version is None:
        confirmed = _predictor().ready(name)
    else:
        confirmed, chosen = _find(name, version)
        _predictor().load(confirmed, chosen, exact=True)
    return _respond(200, {"name": name, "ready": True, "stale": confirmed.stale})


def _server(_event: Event, _model: str | None, _version: str | None, _started: float) -> Response:
    return _respond(200, open_inference.server_metadata(VERSION))


def _live(_event: Event, _model: str | None, _version: str | None, _started: float) -> Response:
    return _respond(200, {"live": True})


def _ready(_event: Event, _model: str | None, _version: str | None, _started: float) -> Response:
    _predictor().registry.models()
    return _respond(200, {"ready": True})


def _list_models(event: Event, _model: str | None, _version: str | None, _started: float) -> Response:
    settings, registry = _settings(), _predictor().registry
    names = registry.models()
    if settings.auth == "jwt":
        scopes = _scopes(event)
        names = [name for name in names if settings.scope_template.format(model=name) in scopes]
    models = []
    for name in names:
        try:
            champion = registry.release(name).release.champion
        except UnknownModel:
            continue  # The list is a little older than the release, which is gone.
        except NotServable as error:
            models.append({"name": name, "error": str(error), "code": error.code})
        else:
            models.append({"name": name, "version": champion.version, "digest": champion.digest})
    return _respond(200, {"models": models})


def _about(_event: Event, model: str | None, _version: str | None, _started: float) -> Response:
    confirmed, chosen = _find(str(model), None)
    manifest = _predictor().sessions.fetch(str(model), chosen.digest).manifest
    document = manifest.to_json()
    about = {name: document[name] for name in ("name", "version", "description", "key", "signature", "output")}
    about["notes"] = manifest.notes
    quality = {"gate": document["gate"], "training": document["training"]}
    release = confirmed.release.to_json() | {"id": confirmed.id, "stale": confirmed.stale}
    return _respond(200, about | {"digest": chosen.digest, "quality": quality, "release": release})


ROUTES: Final[dict[str, Callable[[Event, str | None, str | None, float], Response]]] = {
    "GET /v2": _server,
    "GET /v2/health/live": _live,
    "GET /v2/health/ready": _ready,
    "GET /v2/models/{model}": _metadata,
    "GET /v2/models/{model}/ready": _model_ready,
    "POST /v2/models/{model}/infer": _infer,
    "GET /v2/models/{model}/versions/{version}": _metadata,
    "GET /v2/models/{model}/versions/{version}/ready": _model_ready,
    "POST /v2/models/{model}/versions/{version}/infer": _infer,
    "POST /models/{model}/predictions": _predict,
    "GET /models": _list_models,
    "GET /models/{model}": _about,
}


@cache
def _settings() -> Settings:
    return Settings.from_env()


@cache
def _telemetry() -> Telemetry:
    return Telemetry(_settings())


@cache
def _predictor() -> Predictor:
    return open_predictor(_settings(), _telemetry().add)


def _find(model: str, version: str | None) -> tuple[Confirmed, Route]:
    confirmed = _predictor().registry.release(model)
    champion = confirmed.release.champion
    if version is None:
        return confirmed, Route(champion.digest, champion.version, "champion")
    return confirmed, confirmed.release.find(version)


def _body(event: Event) -> bytes:
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


def _scopes(event: Event) -> frozenset[str]:
    """The scopes of the verified token: `scope` is a text with spaces, `scp` the same or a list."""
    claims = event.get("requestContext", {}).get("authorizer", {}).get("jwt", {}).get("claims", {})
    found: set[str] = set()
    for claim in ("scope", "scp"):
        value = claims.get(claim, "")
        # API Gateway writes a claim that is a list as "[a b]".
        found.update(value if isinstance(value, list) else str(value).strip("[]").replace(",", " ").split())
    return frozenset(found)


def _headers(outcomes: Outcomes, started: float, decoded: float, scored: float) -> dict[str, str]:
    headers = {
        "server-timing": f"decode;dur={(decoded - started) * 1000:.2f}, predict;dur={(scored - decoded) * 1000:.2f}"
    }
    if outcomes.parts:
        source = outcomes.parts[0].provenance
        headers["x-model-version"] = source.version
        headers["x-model-digest"] = source.digest
        if source.stale:
            headers["x-release-stale"] = "true"
    if len(outcomes) == 1:
        headers["x-prediction-id"] = outcomes.ids[0]
    return headers


def _respond(status: int, body: bytes | dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    content = body if isinstance(body, bytes) else strict_json.dumps(body)
    # In Lambda's own JSON the body is a text: each quote and each backslash takes a backslash more.
    size = len(content) + content.count(b'"') + content.count(b"\\") + ENVELOPE_BYTES
    if size > MAXIMUM_RESPONSE_BYTES:
        message = f"answer: want at most {MAXIMUM_RESPONSE_BYTES} bytes, got {size}; send fewer records a call"
        raise TooLarge(message)
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json", **(headers or {})},
        "body": content.decode(),
        "isBase64Encoded": False,
    }


def _error(error: ThreefoldError) -> Response:
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
    return _respond(status, {"error": str(error), "code": error.code})


if _settings().initialization:
    warm(_predictor(), _telemetry().logger)
