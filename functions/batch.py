"""The batch door: an S3 event becomes a planned job, its chunks are scored, and the job is finished."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from threefold.chunks import Chunk
from threefold.counting import EventCounter
from threefold.errors import (
    InvalidTable,
    Malformed,
    RegistryUnreachable,
    StorageUnavailable,
    ThreefoldError,
)
from threefold.feature_table import FeatureTable, open_feature_table
from threefold.job_endings import JobEndings, superseded
from threefold.job_events import JobEvents
from threefold.jobs import Files, JobState, JobTable, Upload, iso
from threefold.names import PENDING_PREFIX, WORK_TAG, Metric
from threefold.outcomes import OutcomeTable
from threefold.pacing import Pacer
from threefold.predictor import Predictor, open_predictor, warm
from threefold.settings import Settings
from threefold.tables import objects
from threefold.tables.fields import read_fields
from threefold.tables.file_windows import FileWindows
from threefold.tables.history import columns_of
from threefold.tables.options import Options
from threefold.tables.pending import PendingRecords, other_collection
from threefold.tables.planner import Plan
from threefold.tables.upload import Cutting, Source, cut_upload, read_options
from threefold.tables.worker import ChunkWorker
from threefold.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_stepfunctions import SFNClient

    from threefold.package import Manifest

Event = dict[str, Any]

# Left before the function's deadline to close the files, and to say what was not done.
RESERVE_SECONDS: Final = 10.0
# A job answers with what it is pinned to, so it waits for its package where an HTTPS call would take the last good one.
LOAD_SECONDS: Final = 300.0
_STATUS_CHANGE: Final = "Step Functions Execution Status Change"
_WORK: Final = dict([WORK_TAG])


def handler(event: Event, context: Any) -> dict[str, Any]:  # noqa: ANN401 - Lambda's context
    """Do what the event asks for: plan, score a chunk, finish, fail, note that it was stopped, or collect.

    Returns:
        Of a chunk `{"rest": …}` if it was not done to its end, of a finish `{"state": …}`, else nothing.

    Raises:
        StorageUnavailable: AWS did not take or give something in time; Step Functions or Lambda tries again.
        ThreefoldError: why the step cannot be done.
    """
    started = time.perf_counter()
    deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - RESERVE_SECONDS
    action = _action(event)
    answer: dict[str, Any] = {}
    try:
        if action == "plan":
            _plan_all(event, deadline)
        elif action == "chunk":
            answer = _score(event, deadline, started)
        elif action == "finish":
            answer = {"state": _endings().finish(event["job"], event.get("execution"), deadline=deadline)}
        elif action == "fail":
            _endings().fail(event["job"], event.get("error"), event.get("execution"))
        elif action == "stopped":
            _endings().stop(event["detail"])
        elif action == "collect":
            _collect(deadline)
        elif event.get("Event") != "s3:TestEvent":
            message = f"event: want an S3 event or an action out of chunk, finish, fail and collect, got {action!r:.60}"
            raise Malformed(message)
    except (BotoCoreError, ClientError) as error:
        _telemetry().logger.exception("AWS call failed", action=action)
        _telemetry().add(Metric.ERRORS, 1)
        message = f"{action}: want AWS to answer, got {error}"
        raise StorageUnavailable(message) from error
    except ThreefoldError as error:
        _telemetry().logger.warning("step failed", action=action, code=error.code, reason=str(error))
        _telemetry().add(Metric.ERRORS, 1)
        raise
    finally:
        _telemetry().flush(started, action=action, job=event.get("job"))
    return answer


def _action(event: Event) -> str:
    if "Records" in event:
        return "plan"
    return "stopped" if event.get("detail-type") == _STATUS_CHANGE else str(event.get("action"))


def _plan_all(event: Event, deadline: float) -> None:
    """Plan a job for each upload; one that must be tried again does not keep the others from theirs."""
    failures: list[Exception] = []
    for record in event["Records"]:
        if not str(record.get("eventName", "")).startswith("ObjectCreated:"):
            continue
        upload = Upload.from_event(record)
        # A folder's marker is no upload, nor is what is only left to be collected, nor what this function wrote itself.
        if upload.key.endswith("/") or upload.key.startswith(PENDING_PREFIX):
            continue
        if upload.bucket == _settings().results_bucket:
            continue
        try:
            _plan(upload, deadline)
        except (ThreefoldError, BotoCoreError, ClientError) as error:
            if not isinstance(error, ThreefoldError) or error.retryable:
                failures.append(error)
                continue
            _refuse(upload, error)
    if failures:
        raise failures[0]


def _plan(upload: Upload, deadline: float) -> None:
    """Plan a job and start it. Whoever was first has pinned it: done again, all of this comes out the same."""
    jobs, bucket = _jobs(), _settings().results_bucket
    item = jobs.find(upload.job) or jobs.begin(upload, _now_ms(), **_pin(upload))
    if item["state"] != JobState.PLANNED:
        _telemetry().logger.info("upload known already", job=upload.job, state=item["state"])
        _endings().tell(upload.job)
        return
    manifest = _predictor().registry.packages.open(upload.model, item["digest"]).manifest
    if not manifest.signature.features:
        message = f"model '{upload.model}': want named features for the columns of a CSV, got a model of tensors only"
        raise InvalidTable(message)
    files, options = Files(upload.model, upload.job), Options(**item.get("options", {}))
    answering = _answering(item, options, manifest)
    windowed = any(each.signature.windows for _, each in answering)
    history = _windows().history(files, answering, item["at_ms"]) if windowed else None
    header, chunks = cut_upload(
        _s3(),
        Source(upload.bucket, upload.key, upload.version),
        read_fields(manifest),
        cutting=Cutting(item["chunk_bytes"], item.get("chunk_rows", _settings().chunk_rows), options.delimiter),
        bucket=bucket,
        name=lambda number: files.chunk("chunks", number),
        tags=_WORK,
        history=history,
    )
    if history is not None:
        _windows().replay(files, history, alone=options.windows == "file")
    plan = Plan(
        *(upload.job, upload.model, item["release"], item["digest"], manifest.output.kind, item["at_ms"], header),
        version=item["digest"] if options.version else None,
        store=options.store,
        windows=columns_of(answering) if windowed else None,
        counts=windowed and options.windows == "table",
    )
    objects.write_json(_s3(), bucket, files.plan, plan.to_json(), tags=_WORK)
    objects.write_json(_s3(), bucket, files.manifest, [chunk.to_json() for chunk in chunks], tags=_WORK)
    rows = sum(chunk.rows for chunk in chunks)
    if not jobs.note(upload.job, rows=rows, chunks=len(chunks), delimiter=header.delimiter, counts=plan.counts or None):
        _endings().tell(upload.job)
        return
    _telemetry().logger.info("job planned", job=upload.job, model=upload.model, rows=rows, chunks=len(chunks))
    if not chunks:
        _endings().finish(upload.job, None, deadline=deadline)
        return
    start = {"job": upload.job, "model": upload.model, "manifest_bucket": bucket, "manifest_key": files.manifest}
    try:
        _steps().start_execution(
            stateMachineArn=_settings().state_machine_arn, name=upload.job, input=json.dumps(start)
        )
    except _steps().exceptions.ExecutionAlreadyExists:
        _telemetry().logger.info("job started already", job=upload.job)
    # One that was cancelled meanwhile stays so: its workers see that, and do nothing.
    if not jobs.move(upload.job, JobState.RUNNING, started_at=iso(_now_ms())):
        _endings().tell(upload.job)


def _answering(item: Mapping[str, Any], options: Options, manifest: Manifest) -> list[tuple[str, Manifest]]:
    """The packages that answer a job's rows, by digest; the one that it is pinned to first."""
    found = [(str(item["digest"]), manifest)]
    if options.version is None:
        registry = _predictor().registry
        challenger = registry.pinned(item["model"], item["release"]).release.challenger
        if challenger is not None and challenger.mode == "canary":
            found.append((challenger.digest, registry.packages.open(item["model"], challenger.digest).manifest))
    return found


def _pin(upload: Upload) -> dict[str, object]:
    """What the job will go by from its first moment on, whatever is promoted or configured meanwhile."""
    if not upload.version:
        message = f"bucket {upload.bucket}: want one that keeps versions, got an upload without one"
        raise InvalidTable(message)
    confirmed = _predictor().registry.release(upload.model)
    if confirmed.stale:
        message = f"model '{upload.model}': want its release confirmed before a job is pinned to it, got no answer"
        raise RegistryUnreachable(message)
    options = read_options(_s3(), Source(upload.bucket, upload.key, upload.version))
    about = {"model": upload.model, "key": upload.key, "options": options.to_json()}
    if (other := other_collection(_jobs(), about)) is not None:
        message = f"pending records: want them scored by the collection that has them, which is {other}"
        raise InvalidTable(message)
    release = confirmed.release
    chosen = release.find(options.version) if options.version else release.champion
    return {
        "release": confirmed.id,
        "digest": chosen.digest,
        "model_version": chosen.version,
        "chunk_bytes": _settings().chunk_bytes,
        "chunk_rows": _settings().chunk_rows,
        "options": about["options"],
    }


def _refuse(upload: Upload, error: ThreefoldError) -> None:
    """Say on the job why there is nothing to run."""
    values = {"code": error.code, "reason": str(error), "finished_at": iso(_now_ms())}
    item = _jobs().begin(upload, _now_ms(), state=JobState.FAILED.value, **values)
    if item["state"] != JobState.FAILED:
        _jobs().move(upload.job, JobState.FAILED, **values)
    _telemetry().logger.warning("job refused", job=upload.job, code=error.code, reason=str(error))
    _endings().tell(upload.job)


def _score(event: Event, deadline: float, started: float) -> dict[str, Any]:
    """Score a chunk, and hand on what there was no time for. Done again, it lands on the same items and files."""
    job, model, chunk = event["job"], event["model"], Chunk.from_json(event["chunk"])
    chunks, telemetry = _jobs().chunks, _telemetry()

    def goes_on() -> bool:
        item = _jobs().find(job)
        return item is None or (item["state"] != JobState.CANCELLED and not superseded(item, event.get("execution")))

    def spent(written: int = 0) -> dict[str, int]:
        return {"worker_ms": round((time.perf_counter() - started) * 1000), "written_items": written}

    if not goes_on():
        telemetry.logger.info("chunk not begun, for its job does not go on", job=job, chunk=chunk.number)
        return {}
    attempt = chunks.claim(job, chunk.id, _now_ms())
    try:
        plan = Plan.from_json(_read(Files(model, job).plan))
        work = _worker().work(plan, chunk, deadline=deadline, goes_on=goes_on)
    except Exception as error:
        # Whatever it is: Step Functions tells the job only that some chunk failed.
        reason = str(error) if isinstance(error, ThreefoldError) else f"{type(error).__name__}; the log says more"
        chunks.put(job, chunk.id, attempt, {"reason": reason}, spent=spent())
        raise
    if work.left:
        chunks.put(job, chunk.id, attempt, {}, spent=spent(work.written_items))
        telemetry.logger.info("chunk left, for its job does not go on", job=job, chunk=chunk.number)
        return {}
    chunks.put(job, chunk.id, attempt, {**work.values(), "attempt": attempt}, spent=spent(work.written_items))
    telemetry.add(Metric.BATCH_ROWS, work.counts.rows, model)
    telemetry.add(Metric.PREDICTIONS, work.counts.predicted, model)
    telemetry.add(Metric.ABSTAINED, work.counts.abstained, model)
    telemetry.add(Metric.REJECTED, work.counts.rejected, model)
    return {"rest": work.rest.to_json()} if work.rest else {}


def _collect(deadline: float) -> None:
    """Collect what was left pending; one model that must be tried again does not keep the others from theirs."""
    failures: list[Exception] = []
    registry, inbox = _predictor().registry, _settings().inbox_bucket
    for model in _pending().models(inbox):
        try:
            manifest = registry.packages.open(model, registry.release(model).release.champion.digest).manifest
            if not manifest.signature.features:
                message = f"model '{model}': want named features for pending records, got a model of tensors only"
                raise InvalidTable(message)
            _pending().collect(inbox, model, manifest, now_ms=_now_ms(), deadline=deadline)
        except (ThreefoldError, BotoCoreError, ClientError) as error:
            if not isinstance(error, ThreefoldError) or error.retryable:
                failures.append(error)
            else:
                _telemetry().logger.warning("pending left alone", model=model, code=error.code, reason=str(error))
    if failures:
        raise failures[0]


def _read(key: str) -> Any:  # noqa: ANN401 - JSON
    return objects.read_json(_s3(), _settings().results_bucket, key)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@cache
def _settings() -> Settings:
    return Settings.from_env()


@cache
def _telemetry() -> Telemetry:
    return Telemetry(_settings())


@cache
def _predictor() -> Predictor:
    return open_predictor(replace(_settings(), load_budget_seconds=LOAD_SECONDS), _telemetry().add)


@cache
def _s3() -> S3Client:
    return boto3.client("s3", config=Config(max_pool_connections=16, retries={"mode": "standard", "max_attempts": 5}))


@cache
def _steps() -> SFNClient:
    return boto3.client("stepfunctions")


@cache
def _tables() -> tuple[JobTable, OutcomeTable]:
    client = boto3.client("dynamodb", config=Config(max_pool_connections=16, parameter_validation=False))
    settings = _settings()
    pacer = Pacer(settings.writes_per_second)
    return (
        JobTable(client, settings.jobs_table, ttl_days=settings.ttl_days),
        OutcomeTable(client, settings.predictions_table, ttl_days=settings.ttl_days, pacer=pacer),
    )


def _jobs() -> JobTable:
    return _tables()[0]


@cache
def _worker() -> ChunkWorker:
    return ChunkWorker(
        _predictor(),
        _tables()[1],
        _s3(),
        results_bucket=_settings().results_bucket,
        writes_per_second=_settings().writes_per_second,
    )


@cache
def _endings() -> JobEndings:
    settings = _settings()
    events = JobEvents(_jobs(), boto3.client("events"), stage=settings.stage, results_bucket=settings.results_bucket)
    return JobEndings(
        _jobs(),
        _s3(),
        events,
        _pending(),
        _telemetry(),
        windows=_windows(),
        results_bucket=settings.results_bucket,
        memory_megabytes=settings.memory_megabytes,
    )


@cache
def _windows() -> FileWindows:
    def open_table() -> FeatureTable:
        return open_feature_table(_settings().features_table)

    return FileWindows(_s3(), _settings().results_bucket, EventCounter(_predictor(), open_table), open_table)


@cache
def _pending() -> PendingRecords:
    return PendingRecords(_jobs(), _s3(), _telemetry().logger, results_bucket=_settings().results_bucket)


if _settings().initialization:
    # Lambda's initialization is the time to pay for clients and champions.
    _worker()
    warm(_predictor(), _telemetry().logger)
