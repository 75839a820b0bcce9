"""The batch door: an S3 event becomes a planned job, its chunks are scored, and the job is finished."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from threefold.errors import (
    InvalidTable,
    Malformed,
    RegistryUnreachable,
    StorageUnavailable,
    ThreefoldError,
)
from threefold.jobs import Counts, Files, JobState, JobTable, Upload, iso
from threefold.names import Metric
from threefold.outcomes import OutcomeTable, Place, milliseconds
from threefold.prediction import Status
from threefold.predictor import Predictor, open_predictor, warm
from threefold.settings import Settings
from threefold.tables import objects
from threefold.tables.planner import Chunk, Plan
from threefold.tables.results import ResultRows
from threefold.tables.scoring import ChunkScorer
from threefold.tables.upload import Source, cut_upload
from threefold.telemetry import Telemetry

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_stepfunctions import SFNClient

    from threefold.tables.reader import Batch

Event = dict[str, Any]

# Left before the function's deadline to say what was not done.
RESERVE_SECONDS: Final = 5.0
# A job answers with what it is pinned to, so it waits for its package where an HTTPS call would take the last good one.
LOAD_SECONDS: Final = 300.0
# A list of more chunks than this tells a reader nothing that their number does not.
_MAXIMUM_MISSING: Final = 100


def handler(event: Event, context: Any) -> dict[str, Any]:  # noqa: ANN401 - Lambda's context
    """Do what the event asks for: plan, score a chunk, finish, or fail.

    Raises:
        StorageUnavailable: AWS did not take or give something in time; Step Functions or Lambda tries again.
        ThreefoldError: why the step cannot be done.
    """
    started = time.perf_counter()
    deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - RESERVE_SECONDS
    action = "plan" if "Records" in event else str(event.get("action"))
    try:
        if action == "plan":
            _plan_all(event)
        elif action == "chunk":
            _score(event["job"], event["model"], Chunk.from_json(event["chunk"]), deadline)
        elif action == "finish":
            _finish(event["job"], event["model"])
        elif action == "fail":
            _fail(event["job"], event.get("error"))
        elif event.get("Event") != "s3:TestEvent":
            message = f"event: want an S3 event or an action out of chunk, finish and fail, got {action!r:.60}"
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
    return {}


def _plan_all(event: Event) -> None:
    """Plan a job for each upload; one that must be tried again does not keep the others from theirs."""
    failures: list[Exception] = []
    for record in event["Records"]:
        if not str(record.get("eventName", "")).startswith("ObjectCreated:"):
            continue
        upload = Upload.from_event(record)
        # A folder's marker is no upload, and neither is what this function wrote itself.
        if upload.key.endswith("/") or upload.bucket == _settings().results_bucket:
            continue
        try:
            _plan(upload)
        except (ThreefoldError, BotoCoreError, ClientError) as error:
            if not isinstance(error, ThreefoldError) or error.retryable:
                failures.append(error)
                continue
            _refuse(upload, error)
    if failures:
        raise failures[0]


def _plan(upload: Upload) -> None:
    """Plan a job and start it. Whoever was first has pinned it: done again, all of this comes out the same."""
    jobs, bucket = _jobs(), _settings().results_bucket
    item = jobs.find(upload.job) or jobs.begin(upload, _now_ms(), **_pin(upload))
    if item["state"] != JobState.PLANNED:
        _telemetry().logger.info("upload known already", job=upload.job, state=item["state"])
        return
    manifest = _predictor().registry.packages.open(upload.model, item["digest"]).manifest
    if not manifest.signature.features:
        message = f"model '{upload.model}': want named features for the columns of a CSV, got a model of tensors only"
        raise InvalidTable(message)
    files = Files(upload.model, upload.job)
    header, chunks = cut_upload(
        _s3(),
        Source(upload.bucket, upload.key, upload.version),
        manifest.signature.features,
        chunk_bytes=item["chunk_bytes"],
        bucket=bucket,
        name=lambda number: files.numbered("chunks", number),
    )
    plan = Plan(upload.job, upload.model, item["release"], item["digest"], manifest.output.kind, item["at_ms"], header)
    objects.write_json(_s3(), bucket, files.plan, plan.to_json())
    objects.write_json(_s3(), bucket, files.manifest, [chunk.to_json() for chunk in chunks])
    rows = sum(chunk.rows for chunk in chunks)
    jobs.note(upload.job, rows=rows, chunks=len(chunks), delimiter=header.delimiter)
    _telemetry().logger.info("job planned", job=upload.job, model=upload.model, rows=rows, chunks=len(chunks))
    if not chunks:
        _finish(upload.job, upload.model)
        return
    start = {"job": upload.job, "model": upload.model, "manifest_bucket": bucket, "manifest_key": files.manifest}
    try:
        _steps().start_execution(
            stateMachineArn=_settings().state_machine_arn, name=upload.job, input=json.dumps(start)
        )
    except _steps().exceptions.ExecutionAlreadyExists:
        _telemetry().logger.info("job started already", job=upload.job)
    jobs.move(upload.job, JobState.RUNNING, started_at=iso(_now_ms()))


def _pin(upload: Upload) -> dict[str, object]:
    """What the job will go by from its first moment on, whatever is promoted or configured meanwhile."""
    if not upload.version:
        message = f"bucket {upload.bucket}: want one that keeps versions, got an upload without one"
        raise InvalidTable(message)
    confirmed = _predictor().registry.release(upload.model)
    if confirmed.stale:
        message = f"model '{upload.model}': want its release confirmed before a job is pinned to it, got no answer"
        raise RegistryUnreachable(message)
    champion = confirmed.release.champion
    return {
        "release": confirmed.id,
        "digest": champion.digest,
        "model_version": champion.version,
        "chunk_bytes": _settings().chunk_bytes,
    }


def _refuse(upload: Upload, error: ThreefoldError) -> None:
    """Say on the job why there is nothing to run."""
    values = {"code": error.code, "reason": str(error), "finished_at": iso(_now_ms())}
    item = _jobs().begin(upload, _now_ms(), state=JobState.FAILED.value, **values)
    if item["state"] != JobState.FAILED:
        _jobs().move(upload.job, JobState.FAILED, **values)
    _telemetry().logger.warning("job refused", job=upload.job, code=error.code, reason=str(error))


def _score(job: str, model: str, chunk: Chunk, deadline: float) -> None:
    """Score a chunk. Done again, it lands on the same items, files and counts."""
    attempt = _jobs().claim(job, chunk.number, _now_ms())
    try:
        counts = _score_rows(Plan.from_json(_read(Files(model, job).plan)), chunk, deadline)
    except Exception as error:
        # Whatever it is: Step Functions tells the job only that some chunk failed.
        reason = str(error) if isinstance(error, ThreefoldError) else f"{type(error).__name__}; the log says more"
        _jobs().blame(job, chunk.number, attempt, reason)
        raise
    _jobs().count(job, chunk.number, attempt, counts)
    telemetry = _telemetry()
    telemetry.add(Metric.BATCH_ROWS, counts.rows, model)
    telemetry.add(Metric.PREDICTIONS, counts.predicted, model)
    telemetry.add(Metric.ABSTAINED, counts.abstained, model)
    telemetry.add(Metric.REJECTED, counts.rejected, model)


def _score_rows(plan: Plan, chunk: Chunk, deadline: float) -> Counts:
    scorer = ChunkScorer(_predictor(), plan, lambda: iso(_now_ms()))
    rows = ResultRows(plan.header, plan.kind)
    files, bucket, s3 = Files(plan.model, plan.job), _settings().results_bucket, _s3()
    stream = objects.read(s3, chunk.bucket, chunk.key, version=chunk.version, start=chunk.start, end=chunk.end)
    counts = Counts()
    with (
        objects.ObjectWriter(s3, bucket, files.numbered("parts", chunk.number)) as results,
        objects.ObjectWriter(s3, bucket, files.numbered("rejects", chunk.number)) as rejects,
    ):
        if chunk.number == 0:
            results.write(rows.head())
            rejects.write(rows.rejects_head())
        for scored in scorer.score(stream, chunk):
            if time.monotonic() > deadline:
                message = f"chunk {chunk.number}: want {chunk.rows} rows scored, got no time after {counts.rows}"
                raise StorageUnavailable(message)
            batch, predictions = scored.batch, scored.predictions()
            _store(plan, batch, predictions, deadline)
            results.write(rows.joined(batch, predictions))
            rejects.write(rows.rejected(batch, predictions))
            ends = [prediction["status"] for prediction in predictions]
            counts += Counts(len(ends), *(ends.count(status.value) for status in Status))
    return counts


def _store(plan: Plan, batch: Batch, predictions: list[dict[str, Any]], deadline: float) -> None:
    table, now_ms = _outcomes(), _now_ms()
    items = [
        table.item(
            Place(plan.model, prediction.get("key") or prediction["id"], plan.at_ms, f"{plan.job}#{number:010d}"),
            prediction,
            now_ms=now_ms,
        )
        for number, prediction in zip(batch.numbers, predictions, strict=True)
    ]
    if unwritten := table.write(items, deadline=deadline):
        message = f"predictions table: want {len(items)} outcomes written, got no time for {len(unwritten)} of them"
        raise StorageUnavailable(message)


def _finish(job: str, model: str) -> None:
    """Put the parts together and see that every row that was read has its outcome."""
    jobs, files = _jobs(), Files(model, job)
    item = jobs.find(job)
    if item is None or item["state"] in {JobState.COMPLETE, JobState.CANCELLED}:
        return
    plan, chunks = Plan.from_json(_read(files.plan)), [Chunk.from_json(chunk) for chunk in _read(files.manifest)]
    rows, bucket = ResultRows(plan.header, plan.kind), _settings().results_bucket
    parts = objects.merge(_s3(), bucket, files.folder("parts"), files.predictions, rows.head())
    objects.merge(_s3(), bucket, files.folder("rejects"), files.rejects, rows.rejects_head())
    tried, counts, missing = jobs.chunks(job), Counts(), []
    for chunk in chunks:
        found = Counts.of(tried.get(chunk.number))
        counts += found or Counts()
        whole = found is not None and found.reconciled and found.rows == chunk.rows
        if not whole or files.numbered("parts", chunk.number) not in parts:
            missing.append(chunk.number)
    now_ms = _now_ms()
    seconds = max(0.001, (now_ms - milliseconds(item.get("started_at") or item["planned_at"])) / 1000)
    planned, state = sum(chunk.rows for chunk in chunks), JobState.INCOMPLETE if missing else JobState.COMPLETE
    moved = jobs.move(
        job,
        state,
        **{**asdict(counts), "rows": planned},
        missing=missing[:_MAXIMUM_MISSING],
        # A job that failed or was incomplete before may have become complete.
        code=state.value if missing else "",
        reason=f"rows: want {planned} with an outcome each, got {len(missing)} chunks without" if missing else "",
        finished_at=iso(now_ms),
        rows_per_second=round(counts.rows / seconds, 1),
        predictions_key=files.predictions,
        rejects_key=files.rejects,
    )
    _telemetry().logger.info("job finished", job=job, model=model, missing=len(missing), moved=moved, **asdict(counts))


def _fail(job: str, error: Any) -> None:  # noqa: ANN401 - what Step Functions caught
    """Say on the job that it failed, and why; what is there stays."""
    failed = [item["reason"] for item in _jobs().chunks(job).values() if "attempt" not in item and "reason" in item]
    caught = error if isinstance(error, dict) else {}
    reason = failed[0] if failed else _cause(caught.get("Cause"))
    code = str(caught.get("Error") or "error")
    if _jobs().move(job, JobState.FAILED, code=code, reason=reason, finished_at=iso(_now_ms())):
        _telemetry().logger.error("job failed", job=job, code=code, reason=reason)
        _telemetry().add(Metric.ERRORS, 1)


def _cause(cause: object) -> str:
    """The message in what Step Functions tells of a failed Lambda, without its traceback."""
    try:
        return str(json.loads(str(cause))["errorMessage"])
    except (ValueError, TypeError, KeyError):
        return str(cause or "a step failed")


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
    return (
        JobTable(client, settings.jobs_table, ttl_days=settings.ttl_days),
        OutcomeTable(client, settings.predictions_table, ttl_days=settings.ttl_days),
    )


def _jobs() -> JobTable:
    return _tables()[0]


def _outcomes() -> OutcomeTable:
    return _tables()[1]


if _settings().initialization:
    # Lambda's initialization is the time to pay for clients and champions.
    _tables()
    _s3()
    warm(_predictor(), _telemetry().logger)
