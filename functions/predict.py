"""The HTTPS door: scoring, metadata and health, behind API Gateway's routes."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, Final

from threefold.authorization import admit, visible
from threefold.errors import NotServable, OutsideSignature, ThreefoldError, UnknownModel, UnknownRoute
from threefold.gateway import Event, Response, fail, read_body, refuse, respond
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


def handler(event: Event, _context: object) -> Response:
    """Answer one request of API Gateway's HTTP API (payload format 2.0)."""
    started = time.perf_counter()
    telemetry = _telemetry()
    try:
        response = _answer(event, started)
    except ThreefoldError as error:
        response = refuse(error)
    except Exception:  # the last line of defence: a caller never sees a traceback
        telemetry.logger.exception("request failed", route=event.get("routeKey"))
        telemetry.add(Metric.ERRORS, 1)
        response = fail()
    telemetry.flush(started, status=response["statusCode"], route=event.get("routeKey"))
    return response


def _answer(event: Event, started: float) -> Response:
    admit(event, _settings(), _settings().scope_template)
    key = event.get("routeKey", "")
    act = ROUTES.get(key)
    if act is None:
        message = f"route: want one of {sorted(ROUTES)}, got {key!r}"
        raise UnknownRoute(message)
    parameters = event.get("pathParameters") or {}
    return act(event, parameters.get("model"), parameters.get("version"), started)


def _predict(event: Event, model: str | None, _version: str | None, started: float) -> Response:
    found = records.decode(read_body(event))
    decoded = time.perf_counter()
    predictor, name = _predictor(), str(model)
    keys = record_keys(found, predictor.key_field(name))
    outcomes = predictor.predict(Request(model=name, rows=Records(found), keys=keys))
    scored = time.perf_counter()
    _telemetry().outcomes(outcomes)
    if len(outcomes.problems) == len(outcomes):
        first = "; ".join(next(iter(outcomes.problems.values())))
        error = {"error": first, "code": OutsideSignature.code, "predictions": outcomes.predictions()}
        return respond(422, error, _headers(outcomes, started, decoded, scored))
    body = records.encode(outcomes)
    return respond(200, body, _headers(outcomes, started, decoded, scored))


def _infer(event: Event, model: str | None, version: str | None, started: float) -> Response:
    tensors, identity, names = open_inference.decode(read_body(event))
    decoded = time.perf_counter()
    request = Request(model=str(model), rows=Tensors([tensors]), version=version)
    outcomes = _predictor().predict(request)
    scored = time.perf_counter()
    _telemetry().outcomes(outcomes)
    if outcomes.problems:
        raise OutsideSignature("; ".join(outcomes.problems[0]))
    body = open_inference.encode(outcomes, outcomes.parts[0], identity, names)
    return respond(200, body, _headers(outcomes, started, decoded, scored))


def _metadata(_event: Event, model: str | None, version: str | None, _started: float) -> Response:
    confirmed, chosen = _find(str(model), version)
    package = _predictor().sessions.fetch(str(model), chosen.digest)
    return respond(200, open_inference.model_metadata(package.manifest, confirmed.release))


def _model_ready(_event: Event, model: str | None, version: str | None, _started: float) -> Response:
    name = str(model)
    if version is None:
        confirmed = _predictor().ready(name)
    else:
        confirmed, chosen = _find(name, version)
        _predictor().load(confirmed, chosen, exact=True)
    return respond(200, {"name": name, "ready": True, "stale": confirmed.stale})


def _server(_event: Event, _model: str | None, _version: str | None, _started: float) -> Response:
    return respond(200, open_inference.server_metadata(VERSION))


def _live(_event: Event, _model: str | None, _version: str | None, _started: float) -> Response:
    return respond(200, {"live": True})


def _ready(_event: Event, _model: str | None, _version: str | None, _started: float) -> Response:
    _predictor().registry.models()
    return respond(200, {"ready": True})


def _list_models(event: Event, _model: str | None, _version: str | None, _started: float) -> Response:
    registry = _predictor().registry
    models = []
    for name in visible(event, registry.models(), _settings()):
        try:
            champion = registry.release(name).release.champion
        except UnknownModel:
            continue  # The list is a little older than the release, which is gone.
        except NotServable as error:
            models.append({"name": name, "error": str(error), "code": error.code})
        else:
            models.append({"name": name, "version": champion.version, "digest": champion.digest})
    return respond(200, {"models": models})


def _about(_event: Event, model: str | None, _version: str | None, _started: float) -> Response:
    confirmed, chosen = _find(str(model), None)
    manifest = _predictor().sessions.fetch(str(model), chosen.digest).manifest
    document = manifest.to_json()
    about = {name: document[name] for name in ("name", "version", "description", "key", "signature", "output")}
    about["notes"] = manifest.notes
    quality = {"gate": document["gate"], "training": document["training"]}
    release = confirmed.release.to_json() | {"id": confirmed.id, "stale": confirmed.stale}
    return respond(200, about | {"digest": chosen.digest, "quality": quality, "release": release})


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


if _settings().initialization:
    warm(_predictor(), _telemetry().logger)
