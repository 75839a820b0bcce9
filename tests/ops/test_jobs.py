"""Jobs from the command line: what an upload carries, how a job is found, followed and told, and what was lost."""

from __future__ import annotations

import gzip
import io
import json
import time
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import typer
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from moto import mock_aws
from rich.console import Console

from threefold.chunks import ChunkTable, Counts
from threefold.errors import InvalidTable, UnknownJob, WrongState
from threefold.jobs import JobState, JobTable, Upload
from threefold.tables.options import Options
from threefold_ops import doors, transfer
from threefold_ops.cli.following import Board, Pace, follow, words
from threefold_ops.cli.telling import lines, public
from threefold_ops.doors import Inbox
from threefold_ops.errors import OperatorError
from threefold_ops.evaluation.costs import job_cost, read_prices
from threefold_ops.job_desk import JobDesk
from threefold_ops.lost_uploads import LostUploads
from threefold_ops.system import System
from threefold_ops.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLE = "jobs"


class World:
    """Buckets, a jobs table and the clients of a system."""

    def __init__(self) -> None:
        session = boto3.Session(region_name="us-east-1")
        self.target = Target(session)
        self.s3 = session.client("s3")
        for name in ("inbox", "results"):
            self.s3.create_bucket(Bucket=name)
        self.s3.put_bucket_versioning(Bucket="inbox", VersioningConfiguration={"Status": "Enabled"})
        self.dynamodb = session.client("dynamodb")
        self.dynamodb.create_table(
            TableName=TABLE,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
        )
        fields: dict[str, Any] = dict.fromkeys(System.__dataclass_fields__, "")
        fields |= {"inbox_bucket": "inbox", "results_bucket": "results", "jobs_table": TABLE, "region": "us-east-1"}
        fields["models"] = [{"name": "wine"}, {"name": "diabetes"}]
        fields["state_machine_arn"] = "arn:aws:states:us-east-1:123456789012:stateMachine:jobs"
        self.system = System(**fields)
        self.inbox = Inbox(self.system, self.target)
        self.jobs = JobTable(self.dynamodb, TABLE, ttl_days=1)

    def begin(self, model: str, number: int, **values: object) -> str:
        """A job that was planned at some time."""
        upload = Upload("inbox", f"{model}/{number}.csv", f"v{number}", 0, 2_000, "")
        self.jobs.begin(upload, 4_000_000_000_000 + number, **values)
        return upload.job

    def twin(self, job: str, other: str) -> None:
        """The same job under another id."""
        item = self.dynamodb.get_item(TableName=TABLE, Key={"pk": {"S": f"job#{job}"}, "sk": {"S": "job"}})["Item"]
        self.dynamodb.put_item(TableName=TABLE, Item={**item, "pk": {"S": f"job#{other}"}, "job": {"S": other}})
        place = {"pk": {"S": f"model#{item['model']['S']}"}, "sk": {"S": f"{0:014d}#{other}"}, "job": {"S": other}}
        self.dynamodb.put_item(TableName=TABLE, Item={**place, "expires": item["expires"]})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield World()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    return path


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ({"delimiter": "\t"}, Options(delimiter="\t")),
        ({"delimiter": "tab", "store": "false"}, Options(delimiter="\t", store=False)),
        (
            {"version": "1.2.0", "note": "Größe der Läufe, " * 20},
            Options(version="1.2.0", note="Größe der Läufe, " * 20),
        ),
        ({}, Options()),
    ],
)
def test_options_arrive_as_they_were_said(options: dict[str, str], read: Options, world: World, table: Path) -> None:
    world.inbox.upload("wine", table, options)
    metadata = world.s3.head_object(Bucket="inbox", Key="wine/rows.csv")["Metadata"]
    assert Options.read(metadata, None) == read


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"delimiter": ":"}, "option 'delimiter': want one of , ; | or tab"),
        ({"note": "two\nlines"}, "option 'note': want one line of text"),
        ({"note": "Ж" * 900}, "options: want at most 2048 bytes, which S3 keeps, got"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(
    options: dict[str, str], said: str, world: World, table: Path
) -> None:
    with pytest.raises((OperatorError, InvalidTable), match=said):
        world.inbox.upload("wine", table, options)
    assert "Contents" not in world.s3.list_objects_v2(Bucket="inbox")


@pytest.mark.parametrize("model", ["", "wine/red", "pending"])
def test_a_model_whose_uploads_nobody_would_score_is_refused(model: str, world: World, table: Path) -> None:
    with pytest.raises(OperatorError, match="model: want the name of one"):
        world.inbox.upload(model, table)


@pytest.mark.parametrize(("operation", "size_bytes"), [("PutObject", 100), ("CompleteMultipartUpload", 20 * 2**20)])
def test_the_job_is_that_of_the_upload_itself_though_another_one_follows_at_once(
    operation: str, size_bytes: int, world: World, tmp_path: Path
) -> None:
    path = tmp_path / "large.csv"
    path.write_bytes(b"x" * size_bytes)
    client = world.target.client("s3")
    client.meta.events.register_first(
        f"after-call.s3.{operation}",
        lambda **_: world.s3.put_object(Bucket="inbox", Key="wine/large.csv", Body=b"another"),
    )
    told: list[int] = []
    version = transfer.upload(
        client, path, "inbox", "wine/large.csv", metadata={"note": "a"}, moved=told.append, parts_above_bytes=2**20
    )
    found = world.s3.head_object(Bucket="inbox", Key="wine/large.csv", VersionId=version)
    assert (found["ContentLength"], found["Metadata"], sum(told)) == (size_bytes, {"note": "a"}, size_bytes)
    assert world.s3.head_object(Bucket="inbox", Key="wine/large.csv")["VersionId"] != version


def test_an_upload_to_a_bucket_that_keeps_no_versions_says_so(world: World, table: Path) -> None:
    with pytest.raises(OperatorError, match="want one that keeps versions"):
        transfer.upload(world.target.client("s3"), table, "results", "wine/rows.csv", metadata={})


def test_an_upload_that_s3_refuses_says_why(world: World, table: Path) -> None:
    with pytest.raises(OperatorError, match="NoSuchBucket"):
        transfer.upload(world.target.client("s3"), table, "nowhere", "wine/rows.csv", metadata={})


@pytest.mark.parametrize("size_bytes", [0, 30, 20 * 2**20])
def test_results_are_written_whole_and_packed_by_their_name(size_bytes: int, world: World, tmp_path: Path) -> None:
    content = bytes(range(256)) * (size_bytes // 256 + 1)
    world.s3.put_object(Bucket="results", Key="wine/job/predictions.csv", Body=content)

    def delay(params: dict[str, Any], **_: object) -> None:
        # The first part comes last.
        if params["headers"].get("Range", "").startswith("bytes=0-"):
            time.sleep(0.5)

    world.inbox._s3.meta.events.register("before-call.s3.GetObject", delay)
    for path in (tmp_path / "out.csv", tmp_path / "out.csv.gz"):
        path.write_text("what stood there before")
        world.inbox.download("wine/job/predictions.csv", path)
    assert (tmp_path / "out.csv").read_bytes() == content
    assert gzip.decompress((tmp_path / "out.csv.gz").read_bytes()) == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.csv.gz"]


def test_results_that_cannot_be_had_leave_the_old_file_alone(world: World, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(OperatorError, match=r"want wine/gone\.csv, got none"):
        world.inbox.download("wine/gone.csv", path)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("out.csv", "old")]


def test_a_folder_that_cannot_be_written_gives_one_clear_line(world: World, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="want to write it, got: No such file"):
        world.inbox.download("wine/gone.csv", tmp_path / "nowhere" / "out.csv")


def test_jobs_of_all_models_are_listed_newest_first(world: World) -> None:
    ids = [world.begin(model, i) for i, model in enumerate(["wine", "diabetes", "wine", "nobody", "diabetes"])]
    desk = JobDesk(world.system, world.target, "dev")
    assert [job["job"] for job in desk.list(None, limit=3)] == [ids[4], ids[2], ids[1]]
    assert [job["job"] for job in desk.list("wine", limit=10)] == [ids[2], ids[0]]
    assert [job["job"] for job in desk.list("nobody", limit=10)] == [ids[3]]


def test_a_job_is_found_by_a_beginning_that_no_other_has(world: World) -> None:
    job, unpublished = world.begin("wine", 1), world.begin("nobody", 2)
    desk = JobDesk(world.system, world.target, "dev")
    assert desk.find(job)["job"] == desk.find(job[:6])["job"] == job
    assert desk.find(unpublished)["job"] == unpublished
    for text in (job[:5], "not an id", ""):
        with pytest.raises(OperatorError, match="want an id, or 6 characters or more"):
            desk.find(text)
    with pytest.raises(UnknownJob, match="say its whole id"):
        desk.find(unpublished[:8])
    with pytest.raises(UnknownJob, match="want one that is there"):
        desk.find("0" * 32)
    world.twin(job, job[:8] + "f" * 24)
    with pytest.raises(OperatorError, match="want the beginning of one id, got that of"):
        desk.find(job[:8])


def test_a_job_without_results_says_in_which_state_it_is(world: World) -> None:
    job = world.begin("wine", 1)
    with pytest.raises(WrongState, match="want one with results, got one that is planned"):
        JobDesk(world.system, world.target, "dev").finished(job)


def test_a_running_jobs_rows_are_those_of_its_chunks_and_not_of_an_end_before(world: World) -> None:
    job = world.begin("wine", 1, rows=30, chunks=2, predicted=99, state="running")
    chunks = ChunkTable(world.dynamodb, TABLE, ttl_days=1)
    for part, rejected in (((0, 0), 1), ((0, 1), 2)):
        attempt = chunks.claim(job, part, 0)
        values = {"rows": 10, "predicted": 10 - rejected, "rejected": rejected, "abstained": 0, "attempt": attempt}
        chunks.put(job, part, attempt, values, spent={})
    chunks.claim(job, (1, 0), 0)
    item = world.inbox.job(job)
    assert item is not None
    assert world.inbox.counts(item) == Counts(20, 17, 0, 3)
    ended = {**item, "state": "complete", "predicted": 25, "abstained": 2, "held": 1, "rejected": 2}
    assert world.inbox.counts(ended) == Counts(30, 25, 2, 2, 1)
    del ended["held"]
    assert world.inbox.counts(ended) == Counts(29, 25, 2, 2, 0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pace_counts_from_what_was_there_at_first() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.look(500, 1000) is None
    clock.now += 10
    assert pace.look(500, 1000) is None
    assert pace.look(600, 1000) == (10, 40)


def test_a_jobs_words_say_what_is_known_and_no_more() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert words({"state": "planned"}, Counts(), pace) == "cutting the file into chunks"
    assert words({"state": "failed"}, Counts(), pace) == ""
    running = {"state": "running", "rows": 12_000}
    assert words(running, Counts(), pace) == "0 of 12,000 rows"
    clock.now += 2
    said = words(running, Counts(3_000, 2_990, 0, 10), pace)
    assert said == "3,000 of 12,000 rows, 1,500 rows/s, 10 rejected, 0:00:06 left"
    assert words({**running, "state": "complete"}, Counts(12_000, 11_990, 0, 10), pace) == (
        "12,000 of 12,000 rows, 10 rejected"
    )


def test_without_a_terminal_progress_is_a_line_every_few_seconds() -> None:
    clock, file = Clock(), io.StringIO()
    with Board(Console(file=file, width=200), quiet=False, clock=clock).open() as show:
        for i in range(12):
            show("running", i, 12, f"{i} of 12 rows")
            clock.now += 1
        show("running", 12, 12, "10 of 12 rows")
    assert file.getvalue().splitlines() == [f"running: {i} of 12 rows" for i in (0, 5, 10)]


def test_a_terminal_gets_a_bar_with_the_same_words() -> None:
    file = io.StringIO()
    with Board(Console(file=file, width=200, force_terminal=True), quiet=False).open() as show:
        show("running", 6, 12, "6 of 12 rows")
    assert "━" in file.getvalue()
    assert "6 of 12 rows" in file.getvalue()
    assert "None" not in file.getvalue()


def test_programs_get_no_progress() -> None:
    file = io.StringIO()
    with Board(Console(file=file, force_terminal=True), quiet=True).open() as show:
        show("running", 6, 12, "6 of 12 rows")
    assert file.getvalue() == ""


def watch(world: World, job: str, file: io.StringIO, timeout_seconds: float | None = None) -> dict[str, Any]:
    console = Console(file=file, width=400)
    board = Board(console, quiet=False)
    where = " --aws --stage prod"
    return follow(world.inbox, job, board, timeout_seconds=timeout_seconds, console=console, where=where)


def test_following_ends_with_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.begin("wine", 1)
    monkeypatch.setattr(doors.time, "sleep", lambda _: world.jobs.move(job, JobState.FAILED, reason="broken"))
    file = io.StringIO()
    assert watch(world, job, file)["reason"] == "broken"
    assert file.getvalue() == "planned: cutting the file into chunks\n"


def test_ctrl_c_stops_following_and_says_how_to_look_and_to_cancel(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.begin("wine", 1)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doors.time, "sleep", interrupt)
    file = io.StringIO()
    with pytest.raises(typer.Exit) as stopped:
        watch(world, job, file)
    assert stopped.value.exit_code == 130
    assert file.getvalue().splitlines()[-1] == (
        f"stopped following; job {job} goes on: 'threefold job {job} --aws --stage prod' says how it stands, "
        f"'threefold cancel {job} --aws --stage prod' stops it"
    )


def test_a_job_that_does_not_end_in_time_is_said_to_go_on(world: World) -> None:
    job = world.begin("wine", 1)
    with pytest.raises(OperatorError, match=f"job {job}: want it ended by now, got it planned .*threefold job {job}"):
        watch(world, job, io.StringIO(), timeout_seconds=0.5)
    with pytest.raises(OperatorError, match="want it noticed by now, got nothing of it"):
        watch(world, "0" * 32, io.StringIO(), timeout_seconds=0.5)


def test_a_job_cost_what_a_calculator_says() -> None:
    job = {"worker_ms": 10_000, "memory_megabytes": 2048, "written_items": 1_000, "rows": 1_000, "chunks": 3}
    cost = job_cost(read_prices(), job)
    assert cost is not None
    assert cost.services == pytest.approx(
        {
            "lambda_duration": 10 * 2 * 0.0000166667,
            # Three chunks, the plan and the finish.
            "lambda_requests": 5 * 0.2 / 1e6,
            "dynamodb": (1_000 + 8 + 3 * 2) * 0.625 / 1e6,
            "s3": (8 + 3 * 4) * 0.005 / 1e3 + (4 + 3 * 3) * 0.0004 / 1e3,
            "step_functions": (4 + 3 * 4) * 0.025 / 1e3,
        }
    )
    assert cost.total == pytest.approx(sum(cost.services.values()))
    arm = job_cost(read_prices(), {**job, "architecture": "arm64"})
    assert arm is not None
    assert arm.services["lambda_duration"] == pytest.approx(10 * 2 * 0.0000133334)
    assert job_cost(read_prices(), {"state": "failed", "chunks": 3}) is None


def test_all_that_is_known_of_a_job_is_told_and_nothing_else(world: World) -> None:
    planned = world.inbox.job(world.begin("wine", 1))
    assert planned is not None
    told = dict(lines(planned, Counts(), None, "results"))
    assert list(told) == ["job", "model", "state", "file", "uploaded", "planned"]
    job = {
        **planned,
        "state": "incomplete",
        "rows": 1_500,
        "chunks": 4,
        "missing": [1, 3],
        "resumes": 2,
        "resumed_at": "then",
        "options": {"note": "mine", "store": False, "delimiter": "\t"},
        "predictions_key": "wine/1/predictions.csv",
        "finished_at": "now",
        "seconds": 2.5,
        "rows_per_second": 400.0,
    }
    told = dict(lines(job, Counts(1_000, 990, 0, 10), "about 0.0123 USD", "results"))
    assert told["rows"] == "1,000 of 1,500: 990 predicted, 0 abstained, 0 held, 10 rejected"
    assert told["chunks"] == "4; without all their outcomes: 1, 3"
    assert (told["options"], told["note"]) == ("store=false, delimiter=tab", "mine")
    assert told["finished"] == "now (2.5 s, 400.0 rows/s)"
    assert told["cost"] == "about 0.0123 USD"
    assert told["predictions"] == "s3://results/wine/1/predictions.csv"
    assert "finished" not in dict(lines({**job, "state": "running"}, Counts(), None, "results"))
    assert not {"pk", "sk", "expires"} & public(job).keys()
    assert "None" not in json.dumps(told)


def given_up(event: dict[str, Any]) -> str:
    """What Lambda puts into the queue."""
    record = {
        "version": "1.0",
        "timestamp": "2026-01-01T00:00:00.000Z",
        "requestContext": {"condition": "RetriesExhausted", "approximateInvokeCount": 3},
        "requestPayload": event,
        "responsePayload": {"errorMessage": "plan: want AWS to answer, got none", "errorType": "StorageUnavailable"},
    }
    return json.dumps(record)


def upload_event(key: str) -> dict[str, Any]:
    return {"Records": [{"s3": {"bucket": {"name": "inbox"}, "object": {"key": key, "versionId": "v"}}}]}


def test_lost_uploads_are_told_and_left_where_they_are(world: World) -> None:
    sqs = world.target.client("sqs")
    url = sqs.create_queue(QueueName="lost")["QueueUrl"]
    for i in range(12):
        sqs.send_message(QueueUrl=url, MessageBody=given_up(upload_event(f"wine/a+b%2C{i}.csv")))
    sqs.send_message(QueueUrl=url, MessageBody=given_up({"action": "collect"}))
    sqs.send_message(QueueUrl=url, MessageBody="what somebody else wrote")
    for _ in range(2):
        queue = LostUploads(sqs, url)
        found = queue.read()
        queue.put_back()
        assert len(found) == 14
        assert {one.what[0] for one in found} == {*(f"wine/a b,{i}.csv" for i in range(12)), "collect", "unknown"}
        assert {one.reason for one in found if one.event} == {"StorageUnavailable: plan: want AWS to answer, got none"}


def test_a_redriven_upload_leaves_the_queue_only_when_lambda_took_it(world: World) -> None:
    sqs = world.target.client("sqs")
    functions = world.target.client("lambda")
    url = sqs.create_queue(QueueName="lost")["QueueUrl"]
    event = upload_event("wine/1.csv")
    sqs.send_message(QueueUrl=url, MessageBody=given_up(event))
    queue = LostUploads(sqs, url)
    call = {"FunctionName": "threefold-dev-batch", "Qualifier": "live", "InvocationType": "Event"}
    with Stubber(functions) as stub:
        stub.add_client_error("invoke", "TooManyRequestsException", http_status_code=429)
        stub.add_response("invoke", {"StatusCode": 202}, {**call, "Payload": json.dumps(event).encode()})
        (lost,) = queue.read()
        with pytest.raises(ClientError):
            queue.redrive(lost, functions, "threefold-dev-batch", "live")
        queue.put_back()
        (lost,) = queue.read()
        queue.redrive(lost, functions, "threefold-dev-batch", "live")
        stub.assert_no_pending_responses()
    queue.put_back()
    assert queue.read() == []
