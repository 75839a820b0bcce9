"""What people and operators ask over HTTPS beside predictions: uploads, jobs, stored answers, pending records."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import boto3
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver
from aws_lambda_powertools.event_handler import Response as Answer
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestValidationError
from aws_lambda_powertools.event_handler.openapi.params import Body, Path, Query
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from threefold import deferral, openapi, strict_json
from threefold.authorization import admit, visible
from threefold.errors import (
    Malformed,
    NotServable,
    OutsideSignature,
    StorageUnavailable,
    ThreefoldError,
    TooLarge,
    UnknownJob,
    UnknownModel,
    UnknownPrediction,
    UnknownRoute,
    WrongState,
    shown,
)
from threefold.gateway import Event, Response, fail, read_body, refuse, respond
from threefold.inbox import Inbox
from threefold.job_control import JobControl
from threefold.job_events import JobEvents
from threefold.jobs import ENDED, Files, JobTable, Upload
from threefold.lookup import encoder_of
from threefold.names import API_ROUTES, VERSION, Metric
from threefold.precomputed import StoredAnswers
from threefold.protocols.forms import (
    Job,
    JobPage,
    PendingAnswer,
    PendingRequest,
    Results,
    StoredAnswer,
    UploadForm,
    UploadRequest,
    WaitingAnswer,
    explain,
)
from threefold.registry import Registry, open_registry
from threefold.settings import Settings
from threefold.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client

    from threefold.package import Manifest
    from threefold.release import Release

ROUTES: Final = frozenset(f"{method} {path}" for method, path in API_ROUTES)
# What only an operator may do: another scope than the one for asking.
OPERATE: Final = frozenset(
    {"POST /models/{model}/jobs/{job}/cancel", "POST /models/{model}/jobs/{job}/resume"},
)
PENDING_BYTES: Final = 1_000_000
PENDING_RECORDS: Final = 1_000
# As much of what is wrong as a person reads, and an answer carries.
PROBLEMS_LISTED: Final = 100
PROBLEM_CHARACTERS: Final = 2_000
# What a policy on paths, API Gateway and the resolver read in the same way.
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]{1,200}")


class Refusal(Exception):
    """An error that has more to say than its message."""

    def __init__(self, error: ThreefoldError, **details: object) -> None:
        super().__init__(str(error))
        self.error = error
        self.details = details


ModelName = Annotated[str, Path(description="the model's name")]
PredictionId = Annotated[str, Path(description="the prediction's id")]
JobId = Annotated[str, Path(description="the job's id")]


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        message = f"body: want UTF-8, got {error}"
        raise Malformed(message) from error


def _read_document(text: str) -> dict[str, Any]:
    document = strict_json.loads(text)
    if not isinstance(document, dict):
        message = f"body: want an object, got {shown(document)}"
        raise Malformed(message)
    return document


app: Final = APIGatewayHttpResolver(
    debug=False,
    enable_validation=True,
    serializer=lambda document: strict_json.dumps(document).decode(),
    json_body_deserializer=_read_document,
    response_validation_error_http_code=500,
)


def handler(event: Event, context: Any) -> Response:  # noqa: ANN401 - Lambda's context
    """Answer one request of API Gateway's HTTP API (payload format 2.0)."""
    started = time.perf_counter()
    telemetry = _telemetry()
    try:
        response = _answer(event, context)
    except ThreefoldError as error:
        response = refuse(error)
    except Refusal as refusal:
        response = refuse(refusal.error, **refusal.details)
    except (BotoCoreError, ClientError) as error:
        telemetry.logger.exception("AWS call failed", route=event.get("routeKey"))
        telemetry.add(Metric.ERRORS, 1)
        response = refuse(StorageUnavailable(f"storage: want AWS to answer, got {type(error).__name__}"))
    except Exception:  # the last line of defence: a caller never sees a traceback
        telemetry.logger.exception("request failed", route=event.get("routeKey"))
        telemetry.add(Metric.ERRORS, 1)
        response = fail()
    telemetry.flush(started, status=response["statusCode"], route=event.get("routeKey"))
    return response


def _answer(event: Event, context: Any) -> Response:  # noqa: ANN401 - Lambda's context
    settings, route = _settings(), event.get("routeKey", "")
    admit(event, settings, settings.operate_scope_template if route in OPERATE else settings.scope_template)
    if route not in ROUTES:
        message = f"route: want one of {sorted(ROUTES)}, got {route!r}"
        raise UnknownRoute(message)
    method, _, path = route.partition(" ")
    for name, value in (event.get("pathParameters") or {}).items():
        if not _PLAIN.fullmatch(value):
            message = f"path: want a plain {name}, got {shown(value)}"
            raise UnknownModel(message)
        path = path.replace(f"{{{name}}}", value)
    body = _text(read_body(event)) if method == "POST" and event.get("body") else None
    # The way that API Gateway chose, and no second reading of the path or of what kind of body it is.
    headers = {**(event.get("headers") or {}), "content-type": "application/json"}
    read = {"rawPath": path, "headers": headers, "body": body, "isBase64Encoded": False}
    answer = app.resolve(event | read, context)
    said = {name.lower(): str(value) for name, value in answer["headers"].items()}
    return respond(answer["statusCode"], answer["body"].encode(), said)


def _refuse_form(error: RequestValidationError) -> Answer[Any]:
    """Say in the house's form what pydantic found."""
    raise Malformed(explain(error.errors())) from error


def _pass_on(error: Exception) -> Answer[Any]:
    """Leave every error to `handler`; the resolver has a form and a log line of its own for it."""
    raise error


app.exception_handler(RequestValidationError)(_refuse_form)
app.exception_handler(Exception)(_pass_on)


@app.post("/models/<model>/uploads", operation_id="upload", summary="A form that uploads a CSV")
def _upload(model: ModelName, request: Annotated[UploadRequest, Body()]) -> UploadForm:
    settings = _settings()
    release, _ = _records_model(model)
    limit = settings.upload_limit_bytes
    if request.size_bytes is not None and request.size_bytes > limit:
        message = f"size_bytes: want at most {limit}, which is what S3 takes of a form, got {request.size_bytes}"
        raise TooLarge(message)
    if request.options.version is not None:
        release.find(request.options.version)
    form = _inbox().upload_form(
        model,
        request.name,
        request.options.model_dump(exclude_none=True),
        limit_bytes=request.size_bytes or limit,
        seconds=settings.link_seconds,
    )
    jobs = f"/models/{model}/jobs?upload={quote(form['key'], safe='')}"
    return UploadForm(**form, expires_at=_later(settings.link_seconds), jobs=jobs)


@app.get("/models/<model>/jobs", operation_id="jobs", summary="A model's jobs, newest first")
def _list_jobs(
    model: ModelName,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=200, description="the job that the page before ended with")] = None,
    upload: Annotated[str | None, Query(max_length=1024, description="the key of an upload: its jobs alone")] = None,
) -> JobPage:
    if upload is not None:
        found = (_jobs().find(_job_of(upload, version)) for version in _inbox().versions(upload))
        items = [item for item in found if item is not None and item["model"] == model]
        return JobPage(jobs=[_shown_job(item) for item in items[:limit]], next=None)
    items = _jobs().list(model, limit=limit, after=after)
    following = f"/models/{model}/jobs?limit={limit}&after={items[-1]['job']}" if len(items) == limit else None
    return JobPage(jobs=[_shown_job(item) for item in items], next=following)


@app.get("/models/<model>/jobs/<job>", operation_id="job", summary="A job")
def _get_job(model: ModelName, job: JobId) -> Job:
    return _shown_job(_find_job(model, job))


@app.post("/models/<model>/jobs/<job>/cancel", operation_id="cancel", summary="Stop a job")
def _cancel(model: ModelName, job: JobId) -> Job:
    _find_job(model, job)
    _control().cancel(job)
    return _shown_job(_find_job(model, job))


@app.post("/models/<model>/jobs/<job>/resume", operation_id="resume", summary="Score what a job left unscored")
def _resume(model: ModelName, job: JobId) -> Job:
    _find_job(model, job)
    _control().resume(job)
    return _shown_job(_find_job(model, job))


@app.get("/models/<model>/jobs/<job>/results", operation_id="results", summary="Where a job's files can be read")
def _results(model: ModelName, job: JobId) -> Results:
    item, settings = _find_job(model, job), _settings()
    if item["state"] not in ENDED or "predictions_key" not in item:
        message = f"job {job}: want one with results, got one that is {item['state']}"
        raise Refusal(WrongState(message), state=item["state"])
    files = Files(model, job)
    predictions, rejects = (
        _s3().generate_presigned_url(
            "get_object", Params={"Bucket": settings.results_bucket, "Key": key}, ExpiresIn=settings.link_seconds
        )
        for key in (files.predictions, files.rejects)
    )
    return Results(predictions=predictions, rejects=rejects, expires_at=_later(settings.link_seconds))


@app.get("/models/<model>/records", operation_id="record", summary="The newest stored answer of a record")
def _record(model: ModelName, key: Annotated[str, Query(min_length=1, max_length=2048)]) -> Answer[StoredAnswer]:
    confirmed = _registry().release(model)
    stored = _stored().newest(confirmed.release, key)
    prediction = stored.prediction
    headers: dict[str, str | list[str]] = {
        "x-precomputed": "true",
        "x-model-version": prediction["version"],
        "x-model-digest": prediction["digest"],
    }
    # A producer's own id may be any text.
    if _PLAIN.fullmatch(prediction["id"]):
        headers["x-prediction-id"] = prediction["id"]
    if confirmed.stale:
        headers["x-release-stale"] = "true"
    body = StoredAnswer(predictions=[prediction], age_seconds=stored.age_seconds)
    return Answer(200, "application/json", body, headers)


@app.get(
    "/models/<model>/predictions/<prediction>",
    operation_id="prediction",
    summary="The outcome of a prediction, by its id",
    responses={
        200: {"description": "it has its outcome", "content": {"application/json": {"model": StoredAnswer}}},
        202: {"description": "it waits to be scored", "content": {"application/json": {"model": WaitingAnswer}}},
    },
)
def _outcome(model: ModelName, prediction: PredictionId) -> Answer[Any]:
    _registry().release(model)
    try:
        stored = _stored().of(model, prediction)
    except UnknownPrediction:
        if not deferral.waits(prediction, time.time_ns() // 1_000_000):
            raise
        waiting = {"id": prediction, "model": model, "status": deferral.PENDING}
        return Answer(202, "application/json", WaitingAnswer(predictions=[waiting]), {"retry-after": "1"})
    body = StoredAnswer(predictions=[stored.prediction], age_seconds=stored.age_seconds)
    return Answer(200, "application/json", body, {"x-prediction-id": prediction})


@app.post("/models/<model>/pending", operation_id="pend", summary="Records for the next collection", status_code=202)
def _pend(model: ModelName, request: Annotated[PendingRequest, Body()]) -> PendingAnswer:
    settings, records = _settings(), request.records
    if len(records) > PENDING_RECORDS:
        message = f"records: want at most {PENDING_RECORDS}, got {len(records)}"
        raise TooLarge(message)
    _, manifest = _records_model(model)
    problems = encoder_of(manifest.signature, manifest.signature.own).encode(records).problems
    if problems:
        listed = [
            {"record": i, "message": "; ".join(found)[:PROBLEM_CHARACTERS]}
            for i, found in sorted(problems.items())[:PROBLEMS_LISTED]
        ]
        first = listed[0]
        error = OutsideSignature(f"record {first['record']}: {first['message']}; nothing was accepted")
        raise Refusal(error, records=listed, wrong=len(problems))
    key = _inbox().leave(model, records, limit_bytes=PENDING_BYTES)
    collected = _later(60 * settings.pending_minutes) if settings.pending_minutes else None
    return PendingAnswer(accepted=len(records), key=key, next_collection=collected)


@app.get("/openapi.json", operation_id="openapi", summary="This document")
def _document() -> dict[str, Any]:
    return openapi.complete(_own_document(), _manifests(app.current_event.raw_event), _settings().auth)


def _manifests(event: Event) -> Iterator[Manifest]:
    """Of the models that the caller may know of, those that can be had now."""
    registry = _registry()
    for model in visible(event, registry.models(), _settings()):
        try:
            yield registry.packages.open(model, registry.release(model).release.champion.digest).manifest
        except (UnknownModel, NotServable):
            _telemetry().logger.warning("model left out of the document", model=model)


def _records_model(model: str) -> tuple[Release, Manifest]:
    """A model that takes records: its release and its champion's manifest."""
    release = _registry().release(model).release
    manifest = _registry().packages.open(model, release.champion.digest).manifest
    if not manifest.signature.features:
        message = f"model '{model}': want one with named features, got one that takes tensors only"
        raise OutsideSignature(message)
    return release, manifest


def _find_job(model: str, job: str) -> dict[str, Any]:
    item = _jobs().find(job)
    if item is None or item["model"] != model:
        message = f"job: want one of model '{model}', got {shown(job)}"
        raise UnknownJob(message)
    return item


def _shown_job(item: dict[str, Any]) -> Job:
    hidden = {"pk", "sk", "expires"}
    if item["state"] not in ENDED:
        # Of a job that was taken up again: what it said when it ended before.
        hidden |= {"finished_at", "predictions_key", "rejects_key"}
    # An item that is written anew says nothing by an empty text.
    return Job(**{name: value for name, value in item.items() if name not in hidden and value != ""})


def _job_of(key: str, version: str) -> str:
    return Upload(_settings().inbox_bucket, key, version, 0, 0, "").job


def _later(seconds: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)


@cache
def _settings() -> Settings:
    return Settings.from_env()


@cache
def _telemetry() -> Telemetry:
    return Telemetry(_settings())


@cache
def _registry() -> Registry:
    return open_registry(_settings())


@cache
def _own_document() -> dict[str, Any]:
    """What the resolver knows of its own routes."""
    described = app.get_openapi_schema(title="Threefold", version=VERSION, openapi_version="3.1.0")
    return described.model_dump(mode="json", by_alias=True, exclude_none=True)


@cache
def _s3() -> S3Client:
    # The bucket's own host: under the global one, a form is sent elsewhere while a bucket is new.
    return boto3.client("s3", config=Config(signature_version="s3v4", s3={"addressing_style": "virtual"}))


@cache
def _tables() -> tuple[JobTable, StoredAnswers]:
    client, settings = boto3.client("dynamodb"), _settings()
    return (
        JobTable(client, settings.jobs_table, ttl_days=settings.ttl_days),
        StoredAnswers(client, settings.predictions_table, _s3(), settings.results_bucket),
    )


def _jobs() -> JobTable:
    return _tables()[0]


def _stored() -> StoredAnswers:
    return _tables()[1]


@cache
def _inbox() -> Inbox:
    return Inbox(_s3(), _settings().inbox_bucket)


@cache
def _control() -> JobControl:
    settings = _settings()
    return JobControl(
        _jobs(),
        _s3(),
        boto3.client("stepfunctions"),
        JobEvents(_jobs(), boto3.client("events"), stage=settings.stage, results_bucket=settings.results_bucket),
        results_bucket=settings.results_bucket,
        state_machine_arn=settings.state_machine_arn,
    )


if _settings().initialization:
    # Lambda's initialization is the time to pay for clients and for the schemas.
    _tables()
    _own_document()
