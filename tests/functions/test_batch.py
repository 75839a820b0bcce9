"""The batch door from an upload to its results, against S3, DynamoDB and Step Functions as moto serves them."""

from __future__ import annotations

import gzip
import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import boto3
import pytest
from botocore.exceptions import ReadTimeoutError
from botocore.response import StreamingBody

from functions import batch
from tests.functions.batch_world import (
    FEATURES,
    SETTINGS,
    TEN,
    chunks_of,
    open_world,  # noqa: F401 - a fixture
    small_package,  # noqa: F401 - a fixture
)
from threefold.chunks import Counts
from threefold.errors import Malformed, NotServable, StorageUnavailable
from threefold.jobs import JobState, Upload
from threefold.outcomes import OutcomeTable
from threefold.package import Output
from threefold.release import Challenger, Version
from threefold.signature import Feature
from threefold.tables import objects
from threefold.tables.worker import ChunkWorker
from threefold_ops.registry.publish import publish

if TYPE_CHECKING:
    from tests.functions.batch_world import World
    from threefold.package import Package


def test_a_job_from_upload_to_results(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(monkeypatch, 60)
    job = world.plan(TEN, "small/in march/rows + more.csv")
    planned = world.job(job)
    assert (planned["state"], planned["rows"], planned["chunks"]) == ("running", 10, 3)
    assert planned["key"] == "small/in march/rows + more.csv"
    item = world.run(job)
    assert item["state"] == "complete"
    assert [item[name] for name in ("rows", "predicted", "abstained", "rejected")] == [10, 10, 0, 0]
    assert item["rows_per_second"] > 0
    assert item["planned_at"] <= item["started_at"] <= item["finished_at"]
    rows = world.rows(item)
    assert [row["id"] for row in rows] == [f"k{i}" for i in range(10)]
    assert [row["note"] for row in rows] == [f"note, {i}" for i in range(10)]
    assert [row["threefold_value"] for row in rows] == [f"{i + 10.0}" for i in range(10)]
    assert [row["threefold_prediction_id"] for row in rows] == [f"{job}-{i + 1}" for i in range(10)]
    assert {row["threefold_digest"] for row in rows} == {planned["digest"]}
    assert world.rows(item, "rejects") == []
    at_ms = 1767323045678
    assert set(world.items()) == {(f"small#k{i}", f"{at_ms:014d}#{job}#{i + 1:010d}") for i in range(10)}
    stored = world.items()[f"small#k{3}", f"{at_ms:014d}#{job}#{4:010d}"]
    assert (stored["id"], stored["value"], stored["status"]) == (f"{job}-4", 13, "predicted")


def test_rows_without_a_key_stand_under_their_prediction_id(world: World) -> None:
    item = world.score("a,b\n1,1\n2,1\n")
    assert {pk for pk, _ in world.items()} == {f"small#{item['job']}-1", f"small#{item['job']}-2"}


def test_a_bad_row_is_rejected_alone(world: World) -> None:
    body = 'id,a,b\r\nk1,1,1\r\nk2,=x,1\r\nk3,3\r\n"two\r\nlines",4,\r\n,2000,1\r\nk6,6,"1\r\nk7,7,1'
    item = world.score(body)
    assert item["state"] == "complete"
    assert [item[name] for name in ("rows", "predicted", "abstained", "rejected")] == [7, 3, 0, 4]
    rows = world.rows(item)
    assert [row["threefold_status"] for row in rows] == [
        *("predicted", "rejected", "rejected", "predicted", "rejected", "rejected", "predicted"),
    ]
    assert rows[3]["id"] == "two\r\nlines"
    assert json.loads(rows[3]["threefold_reasons"]) == ["input 'b': missing, 0.5 stands in"]
    assert rows[6]["threefold_value"] == "17.0"
    rejects = world.rows(item, "rejects")
    assert [(row["row"], row["line"], row["column"], row["text"]) for row in rejects] == [
        ("2", "3", "a", "k2,=x,1"),
        ("3", "4", "", "k3,3"),
        ("5", "7", "a", ",2000,1"),
        ("6", "8", "", 'k6,6,"1'),
    ]
    assert rejects[0]["reason"] == "input 'a': want FP32 in [-inf, 1000], got '=x'"
    assert rejects[1]["reason"] == "record: want 3 cells, got 2"
    stored = {item["id"]: item for item in world.items().values()}
    assert len(stored) == 7
    rejected = stored[f"{item['job']}-3"]
    assert (rejected["status"], rejected["code"]) == ("rejected", "invalid_table")
    assert stored[f"{item['job']}-2"]["code"] == "outside_signature"
    assert rejected["digest"] == stored[f"{item['job']}-1"]["digest"]


def test_rejected_text_cannot_be_run_by_a_spreadsheet(world: World) -> None:
    item = world.score("a,b\n=1+1,1\n")
    (reject,) = world.rows(item, "rejects")
    assert reject["text"] == "'=1+1,1"


def test_a_record_the_model_is_unsure_of_is_abstained_from(world: World, make_package: Any, graphs: Any) -> None:
    package = make_package(
        graphs.scorer(["red", "blue"]),
        name="colors",
        features=(Feature(name="r", type="float32"), Feature(name="g", type="float32")),
        output=Output(kind="classification", label="label", scores="scores", classes=("red", "blue")),
    )
    world.release(package, serving={"abstain_below": 0.6, "options": 2})
    item = world.score("r,g\n0.9,0.1\n0.5,0.4\n", "colors/a.csv")
    assert [item[name] for name in ("rows", "predicted", "abstained", "rejected")] == [2, 1, 1, 0]
    first, second = world.rows(item)
    assert (first["threefold_label"], first["threefold_score"]) == ("red", "0.9")
    assert (second["threefold_status"], second["threefold_label"]) == ("abstained", "")
    assert json.loads(second["threefold_options"]) == [{"label": "red", "score": 0.5}, {"label": "blue", "score": 0.4}]


@pytest.mark.parametrize(
    ("body", "key", "code", "reason"),
    [
        (b"", "small/a.csv", "invalid_table", "want a header row, got nothing"),
        (b"b,c\n1,2\n", "small/a.csv", "invalid_table", "want columns ['a']"),
        (b"a,b,a\n1,2,3\n", "small/a.csv", "invalid_table", "got ['a'] more than once"),
        (b"a,b\n1,2\n\xff,1\n", "small/a.csv", "invalid_table", "line 3: want UTF-8"),
        (gzip.compress(b"a,b\n1,2\n" * 99)[:-9], "small/a.csv.gz", "invalid_table", "ends too early"),
        (b"a,b\n1,2\n", "nobody/a.csv", "unknown_model", "got 'nobody'"),
        (b"a,b\n1,2\n", "No Such Model/a.csv", "unknown_model", "got 'No Such Model'"),
        (b"a,b\n1,2\n", "rows.csv", "unknown_model", "got 'rows.csv'"),
        (b"a,b\n1,2\n", "sums/a.csv", "invalid_table", "got a model of tensors only"),
    ],
)
def test_an_upload_that_is_no_job_fails_with_the_reason(  # noqa: PLR0917
    world: World, make_package: Any, graphs: Any, body: bytes, key: str, code: str, reason: str
) -> None:
    world.release(make_package(graphs.addition(), name="sums"))
    item = world.job(world.plan(body, key))
    assert (item["state"], item["code"]) == ("failed", code)
    assert reason in item["reason"]
    assert world.s3.get_object(Bucket="inbox", Key=key)["Body"].read() == body
    assert world.steps.list_executions(stateMachineArn=SETTINGS.state_machine_arn)["executions"] == []


def test_an_inbox_without_versions_is_refused(world: World) -> None:
    event = world.upload("a,b\n1,2\n")
    del event["Records"][0]["s3"]["object"]["versionId"]
    world.send(event)
    item = world.job(Upload.from_event(event["Records"][0]).job)
    assert (item["state"], item["reason"]) == (
        "failed",
        "bucket inbox: want one that keeps versions, got an upload without one",
    )


def test_an_upload_deleted_meanwhile_fails(world: World) -> None:
    event = world.upload("a,b\n1,2\n")
    upload = Upload.from_event(event["Records"][0])
    world.s3.delete_object(Bucket="inbox", Key=upload.key, VersionId=upload.version)
    world.send(event)
    assert "it was deleted" in world.job(upload.job)["reason"]


@pytest.mark.parametrize("body", ["id,a,b", "\ufeffid,a,b\r\n", "id,a,b\n\n\n"])
def test_a_header_alone_is_a_complete_job_of_no_rows(world: World, body: str) -> None:
    item = world.job(world.plan(body))
    assert item["state"] == "complete"
    assert [item[name] for name in ("rows", "predicted", "abstained", "rejected")] == [0, 0, 0, 0]
    header = body.strip("\ufeff\r\n").encode()
    assert world.text(item).startswith(header + b",threefold_prediction_id,")
    assert world.text(item).count(b"\n") == world.text(item, "rejects").count(b"\n") == 1


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_delimiter_and_byte_order_mark_are_understood(world: World, delimiter: str, mark: str) -> None:
    body = mark + delimiter.join(["b", "a"]) + "\n" + delimiter.join(["1", "2"]) + "\n"
    (row,) = world.rows(world.score(body), delimiter=delimiter)
    assert (row["a"], row["b"], row["threefold_value"]) == ("2", "1", "12.0")


def test_gzip_is_recut_into_plain_chunks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(monkeypatch, 60)
    plain = world.score(TEN, "small/plain.csv")
    packed = world.score(gzip.compress(TEN[:50].encode()) + gzip.compress(TEN[50:].encode()), "small/packed.csv.gz")
    assert (packed["state"], packed["rows"], packed["chunks"]) == ("complete", 10, 3)
    text = world.text(packed).replace(packed["job"].encode(), plain["job"].encode())
    assert text == world.text(plain)
    first = f"small/{packed['job']}/chunks/00000.csv"
    assert TEN.encode().find(world.s3.get_object(Bucket="results", Key=first)["Body"].read()) == len("id,note,a,b\n")


def test_a_duplicate_event_is_the_same_job(world: World) -> None:
    event = world.upload(TEN)
    world.send(event)
    job = Upload.from_event(event["Records"][0]).job
    running = world.job(job)
    world.send(event)
    assert world.job(job) == running
    complete = world.run(job)
    world.send(event)
    assert world.job(job) == complete
    assert len(world.steps.list_executions(stateMachineArn=SETTINGS.state_machine_arn)["executions"]) == 1


def test_a_duplicate_event_of_a_refused_upload_changes_nothing(world: World) -> None:
    event = world.upload(TEN, "nobody/rows.csv")
    world.send(event)
    job = Upload.from_event(event["Records"][0]).job
    refused = world.job(job)
    assert world.send(event) == {}
    assert world.job(job) == refused


def test_a_job_that_was_started_already_is_not_started_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    event = world.upload(TEN)
    job = Upload.from_event(event["Records"][0]).job
    with monkeypatch.context() as broken:
        broken.setattr(batch.JobTable, "move", lambda *_, **__: (_ for _ in ()).throw(StorageUnavailable("not now")))
        with pytest.raises(StorageUnavailable):
            world.send(event)
    assert world.job(job)["state"] == "planned"
    executions = world.steps.list_executions(stateMachineArn=SETTINGS.state_machine_arn)["executions"]
    # Step Functions knows a name for 90 days after its execution has ended.
    world.steps.stop_execution(executionArn=executions[0]["executionArn"])
    assert world.send(event) == {}
    assert world.job(job)["state"] == "running"
    assert len(world.steps.list_executions(stateMachineArn=SETTINGS.state_machine_arn)["executions"]) == 1


def test_a_plan_that_was_cut_short_is_made_again_the_same(
    world: World, small: Package, monkeypatch: pytest.MonkeyPatch, make_package: Any, graphs: Any
) -> None:
    event = world.upload(TEN)
    chunks_of(monkeypatch, 60)
    with monkeypatch.context() as broken:
        broken.setattr(batch, "_steps", lambda: (_ for _ in ()).throw(NotServable("Step Functions is away")))
        with pytest.raises(NotServable):
            world.send(event)
    # What was promoted and configured meanwhile is for later uploads.
    chunks_of(monkeypatch, 1000)
    output = Output(kind="regression", value="value")
    world.release(make_package(graphs.linear([5.0, 5.0]), features=FEATURES, output=output, version="2.0.0"))
    world.send(event)
    item = world.run(Upload.from_event(event["Records"][0]).job)
    assert (item["state"], item["chunks"], item["digest"]) == ("complete", 3, small.digest)
    assert {row["threefold_digest"] for row in world.rows(item)} == {small.digest}


def test_a_second_version_of_a_file_is_a_job_of_its_own_and_each_reads_its_own_version(world: World) -> None:
    first, second = world.upload("a,b\n1,1\n"), world.upload("a,b\n2,1\n3,1\n")
    world.send(second)
    world.send(first)
    jobs = [Upload.from_event(event["Records"][0]).job for event in (first, second)]
    values = [[row["threefold_value"] for row in world.rows(world.run(job))] for job in jobs]
    assert values == [["11.0"], ["12.0", "13.0"]]


def test_a_promotion_in_the_middle_of_a_job_changes_nothing(
    world: World, small: Package, monkeypatch: pytest.MonkeyPatch, make_package: Any, graphs: Any
) -> None:
    chunks_of(monkeypatch, 60)
    job = world.plan(TEN)
    first, *others = world.chunk_events(job)
    world.send(first)
    promoted = make_package(
        graphs.linear([5.0, 5.0]),
        version="2.0.0",
        features=FEATURES,
        output=Output(kind="regression", value="value"),
        key="id",
    )
    world.release(promoted, previous=(Version(small.digest, "1.0.0"),))
    # Another job is scored by the new champion in the same process, which then has it as its last good one.
    assert {row["threefold_digest"] for row in world.rows(world.score("a,b\n1,1\n", "small/b.csv"))} == {
        promoted.digest
    }
    for event in others:
        world.send(event)
    world.send({"action": "finish", "job": job, "model": "small"})
    assert {row["threefold_digest"] for row in world.rows(world.job(job))} == {small.digest}


def test_a_canary_answers_its_share_of_a_job_by_key(
    world: World, small: Package, make_package: Any, graphs: Any
) -> None:
    features = (FEATURES[1], Feature(name="c", type="float32"))
    canary = make_package(
        graphs.linear([0.0, 100.0]), version="2.0.0", features=features, output=Output(kind="regression", value="value")
    )
    world.registry.packages.publish(canary)
    world.release(small, challenger=Challenger(canary.digest, "2.0.0", "canary", 50.0, "salt"))
    rows = world.rows(world.score("id,a,b,c\n" + "".join(f"k{i},1,1,7\n" for i in range(40))))
    by_role = {
        role: {row["threefold_value"] for row in rows if row["threefold_role"] == role}
        for role in ("champion", "canary")
    }
    assert by_role == {"champion": {"11.0"}, "canary": {"700.0"}}


def test_a_job_never_takes_another_package_for_the_one_it_is_pinned_to(
    world: World, make_package: Any, graphs: Any, tmp_path: Path
) -> None:
    world.score("a,b\n1,1\n")
    wrong = {"record": {"a": 1, "b": 1}, "expect": {"value": 99}}
    broken = make_package(
        graphs.linear([5.0, 5.0]),
        version="2.0.0",
        features=FEATURES,
        output=Output(kind="regression", value="value"),
        examples=[wrong],
    )
    world.release(broken)
    job = world.plan("a,b\n2,1\n", "small/b.csv")
    (event,) = world.chunk_events(job)
    with pytest.raises(NotServable, match=r"want 2\.0\.0, which the job is pinned to"):
        world.send(event)
    caught = {"Error": "States.ExceedToleratedFailureThreshold", "Cause": "a chunk failed"}
    world.send({"action": "fail", "job": job, "model": "small", "error": caught})
    item = world.job(job)
    assert item["state"] == "failed"
    assert "which the job is pinned to" in item["reason"]


def test_a_chunk_done_again_lands_on_the_same_items_files_and_counts(world: World) -> None:
    job = world.plan("id,a,b\nk1,1,1\nk2,bad,1\nk3,3\n")
    (event,) = world.chunk_events(job)

    def state() -> tuple[Any, Any, Any]:
        stored = {
            key: {k: v for k, v in item.items() if k not in {"at", "expires"}} for key, item in world.items().items()
        }
        parts = [
            world.s3.get_object(Bucket="results", Key=f"small/{job}/{folder}/00000-0000.csv")["Body"].read()
            for folder in ("parts", "rejects")
        ]
        return stored, parts, batch._jobs().chunks.of(job)[0, 0]

    world.send(event)
    once = state()
    world.send(event)
    twice = state()
    assert twice[:2] == once[:2]
    assert [once[2][name] for name in ("attempt", "rows", "predicted", "rejected")] == [1, 3, 1, 2]
    assert [twice[2][name] for name in ("attempt", "rows", "predicted", "rejected")] == [2, 3, 1, 2]


def test_outcomes_that_cannot_be_written_in_time_are_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.plan("a,b\n1,1\n2,1\n")
    (event,) = world.chunk_events(job)
    with monkeypatch.context() as throttled:
        throttled.setattr(
            OutcomeTable, "write", lambda _self, items, deadline: [(item["pk"]["S"], item["sk"]["S"]) for item in items]
        )
        with pytest.raises(StorageUnavailable, match="want 2 outcomes written, got no time for 2"):
            world.send(event)
    assert "attempt" not in batch._jobs().chunks.of(job)[0, 0]
    with pytest.raises(world.s3.exceptions.NoSuchKey):
        world.s3.get_object(Bucket="results", Key=f"small/{job}/parts/00000-0000.csv")
    assert world.run(job)["state"] == "complete"


def test_a_job_says_of_a_fault_of_ours_only_its_kind(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.plan("a,b\n1,1\n")
    (event,) = world.chunk_events(job)
    monkeypatch.setattr(ChunkWorker, "store", lambda *_: {}["secret"])
    with pytest.raises(KeyError):
        world.send(event)
    world.send({"action": "fail", "job": job, "model": "small", "error": {"Error": "KeyError", "Cause": "'secret'"}})
    assert world.job(job)["reason"] == "KeyError; the log says more"


def test_a_chunk_without_time_left_is_tried_again(world: World) -> None:
    (event,) = world.chunk_events(world.plan("a,b\n1,1\n"))
    with pytest.raises(StorageUnavailable, match="want 1 rows scored, got no time after 0"):
        batch.handler(event, SimpleNamespace(get_remaining_time_in_millis=lambda: 4_000))


def test_a_job_with_a_chunk_missing_is_incomplete_until_it_comes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(monkeypatch, 60)
    job = world.plan(TEN)
    events = world.chunk_events(job)
    for event in (events[0], *events[2:]):
        world.send(event)
    finish = {"action": "finish", "job": job, "model": "small"}
    world.send(finish)
    item = world.job(job)
    assert (item["state"], item["missing"], item["rows"], item["predicted"]) == ("incomplete", [1], 10, 6)
    assert len(world.rows(item)) == 6
    world.send(events[1])
    world.send(finish)
    item = world.job(job)
    assert (item["state"], item["missing"], item["predicted"]) == ("complete", [], 10)
    assert [row["id"] for row in world.rows(item)] == [f"k{i}" for i in range(10)]


def test_a_job_whose_counts_do_not_add_up_is_incomplete(world: World) -> None:
    job = world.plan(TEN)
    (event,) = world.chunk_events(job)
    world.send(event)
    batch._jobs().chunks.put(job, (0, 0), 9, {"predicted": 9, "attempt": 9}, spent={})
    world.finish(job)
    assert (world.job(job)["state"], world.job(job)["missing"]) == ("incomplete", [0])


def test_a_job_whose_part_is_gone_is_incomplete(world: World) -> None:
    job = world.plan(TEN)
    (event,) = world.chunk_events(job)
    world.send(event)
    world.s3.delete_object(Bucket="results", Key=f"small/{job}/parts/00000-0000.csv")
    world.send({"action": "finish", "job": job, "model": "small"})
    item = world.job(job)
    assert (item["state"], item["missing"]) == ("incomplete", [0])
    assert world.text(item).startswith(b"id,note,a,b,threefold_prediction_id,")


def test_finishing_again_changes_nothing(world: World) -> None:
    item = world.score(TEN)
    text = world.text(item)
    # Parts may be cleared away when a job is done.
    world.s3.delete_object(Bucket="results", Key=f"small/{item['job']}/parts/00000-0000.csv")
    world.send({"action": "finish", "job": item["job"], "model": "small"})
    assert world.job(item["job"]) == item
    assert world.text(item) == text


def test_a_failure_keeps_what_is_there_and_says_why_without_a_traceback(world: World) -> None:
    job = world.plan(TEN)
    cause = json.dumps(
        {"errorMessage": "finish: want AWS to answer", "errorType": "StorageUnavailable", "stackTrace": ["secret"]}
    )
    world.send(
        {"action": "fail", "job": job, "model": "small", "error": {"Error": "StorageUnavailable", "Cause": cause}}
    )
    item = world.job(job)
    assert (item["state"], item["code"], item["reason"]) == (
        "failed",
        "StorageUnavailable",
        "finish: want AWS to answer",
    )
    assert item["rows"] == 10
    complete = world.run(job)
    assert (complete["state"], complete["code"], complete["reason"]) == ("complete", "", "")
    world.send({"action": "fail", "job": job, "model": "small", "error": {}})
    assert world.job(job) == complete


def test_large_parts_are_copied_by_s3_and_small_ones_are_joined(world: World) -> None:
    sizes = [3, 5 * 1024**2, 0, 7 * 1024**2, 100, 11 * 1024**2, 12 * 1024**2, 1]
    whole = b"head\n"
    for number, size in enumerate(sizes):
        content = bytes([65 + number]) * size
        whole += content
        world.s3.put_object(Bucket="results", Key=f"m/j/parts/{number:05d}.csv", Body=content)
    calls: list[tuple[str, int]] = []
    client = boto3.client("s3")
    client.meta.events.register(
        "provide-client-params.s3", lambda params, model, **_: calls.append((model.name, len(params.get("Body", b""))))
    )
    found = objects.sizes(client, "results", "m/j/parts/")
    assert list(found.values()) == sizes
    objects.merge(client, "results", list(found.items()), "m/j/predictions.csv", b"head\n")
    assert client.get_object(Bucket="results", Key="m/j/predictions.csv")["Body"].read() == whole
    assert sum(name == "UploadPartCopy" for name, _ in calls) == 3
    assert max(size for name, size in calls if name == "UploadPart") <= objects.PART_BYTES
    client.close()


def test_a_part_that_became_shorter_since_it_was_listed_is_never_taken_for_a_whole_one(world: World) -> None:
    world.s3.put_object(Bucket="results", Key="m/j/parts/00000.csv", Body=b"head\n1\n2\n")
    found = objects.sizes(world.s3, "results", "m/j/parts/")
    world.s3.put_object(Bucket="results", Key="m/j/parts/00000.csv", Body=b"head\n1\n")
    with pytest.raises(StorageUnavailable, match="want bytes to 9, got one that ends at 7"):
        objects.merge(world.s3, "results", list(found.items()), "m/j/predictions.csv", b"head\n")
    assert "m/j/predictions.csv" not in objects.sizes(world.s3, "results", "m/j/")


def test_an_object_writer_that_fails_leaves_nothing(world: World) -> None:
    def fail() -> None:
        with objects.ObjectWriter(world.s3, "results", "x") as writer:
            writer.write(b"0" * objects.PART_BYTES)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "Uploads" not in world.s3.list_multipart_uploads(Bucket="results")
    assert "Contents" not in world.s3.list_objects_v2(Bucket="results")


def test_other_events_are_left_alone_or_refused(world: World) -> None:
    assert world.send({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "inbox"}) == {}
    with pytest.raises(Malformed, match="got 'cook'"):
        world.send({"action": "cook"})
    for change in (
        {"eventName": "ObjectRemoved:Delete"},
        {"s3": {"bucket": {"name": "results"}, "object": {"key": "small/a.csv"}}},
    ):
        event = world.upload(TEN)
        event["Records"][0] |= change
        assert world.send(event) == {}
    assert world.send(world.upload("", "small/folder/")) == {}
    assert world.dynamodb.scan(TableName="jobs")["Count"] == 0


def test_one_upload_that_must_be_tried_again_does_not_keep_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [world.upload("a,b\n1,1\n", f"small/{name}.csv")["Records"][0] for name in "xyz"]
    plan = batch._plan

    def flaky(upload: Any, deadline: float) -> None:
        if upload.key == "small/x.csv":
            raise NotServable("not now")
        plan(upload, deadline)

    monkeypatch.setattr(batch, "_plan", flaky)
    with pytest.raises(NotServable):
        world.send({"Records": events})
    states = [(found := batch._jobs().find(Upload.from_event(event).job)) and found["state"] for event in events]
    assert states == [None, JobState.RUNNING, JobState.RUNNING]


@pytest.mark.parametrize("name", ["breast-cancer", "diabetes", "digits"])
def test_the_example_models_answer_as_their_training_library(world: World, models: Path, name: str) -> None:
    publish(world.registry, models / name)
    item = world.score((models / name / "held-out.csv").read_bytes(), f"{name}/held-out.csv")
    expected = [json.loads(line) for line in (models / name / "held-out.expected.jsonl").read_text().splitlines()]
    rows = world.rows(item)
    assert item["rejected"] == 0
    assert len(rows) == len(expected)
    for row, want in zip(rows, expected, strict=True):
        assert next(iter(row.values())) == want["key"]
        if "value" in want:
            assert float(row["threefold_value"]) == pytest.approx(want["value"], rel=1e-4)
        elif row["threefold_status"] == "predicted":
            assert row["threefold_label"] == str(want["label"])
            assert float(row["threefold_score"]) == pytest.approx(want["scores"][str(want["label"])], abs=1e-4)


def test_an_earlier_attempt_that_ends_later_does_not_take_the_place_of_a_later_one(world: World) -> None:
    jobs = batch._jobs().chunks
    first, second = jobs.claim("job", (7, 0), 0), jobs.claim("job", (7, 0), 0)
    assert first < second
    assert jobs.put("job", (7, 0), second, {**asdict(Counts(2, 2)), "attempt": second}, spent={"worker_ms": 5})
    assert not jobs.put("job", (7, 0), first, {**asdict(Counts(1, 1)), "attempt": first}, spent={"worker_ms": 7})
    assert not jobs.put("job", (7, 0), first, {"reason": "late"}, spent={})
    found = jobs.of("job")[7, 0]
    assert Counts.of(found) == Counts(2, 2)
    assert "reason" not in found
    assert found["worker_ms"] == 5


def test_a_job_is_pinned_by_whoever_is_first(world: World) -> None:
    upload = Upload("inbox", "small/a.csv", "v", 1, 2, "")
    first = batch._jobs().begin(upload, 1000, digest="one")
    assert batch._jobs().begin(upload, 2000, digest="two")["digest"] == first["digest"] == "one"
    assert world.job(upload.job)["planned_at"] == "1970-01-01T00:00:01.000Z"


def test_a_state_never_follows_one_that_it_may_not_follow(world: World) -> None:
    allowed = {
        ("planned", "running"),
        *((before, after) for before in ("planned", "running", "incomplete") for after in ("complete", "incomplete")),
        *((before, "failed") for before in ("planned", "running")),
        *(("failed", after) for after in ("complete", "incomplete")),
        *((before, "cancelled") for before in ("planned", "running")),
    }
    jobs = batch._jobs()
    for before in JobState:
        for after in JobState:
            if after is JobState.PLANNED:
                continue
            upload = Upload("inbox", f"small/{before}-{after}", "v", 0, 0, "")
            jobs.begin(upload, 0, state=before.value)
            assert jobs.move(upload.job, after) == ((before, after) in allowed)
            moved = jobs.find(upload.job) or {}
            assert moved["state"] == (after if (before, after) in allowed else before)


def test_a_body_that_breaks_off_is_taken_up_where_it_broke(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 8192
    world.s3.put_object(Bucket="results", Key="x", Body=content)
    breaks = iter([True, False] * 5 + [True] * 3)
    read = StreamingBody.read

    def flaky(body: StreamingBody, amount: int | None = None) -> bytes:
        if next(breaks, False):
            raise ReadTimeoutError(endpoint_url="s3")
        return read(body, 1000 if amount is None else min(amount, 300_000))

    monkeypatch.setattr(StreamingBody, "read", flaky)
    assert b"".join(objects.read(world.s3, "results", "x", start=5, end=2_000_005)) == content[5:2_000_005]
    breaks = itertools.repeat(True)
    with pytest.raises(StorageUnavailable, match="object x: want bytes 0 to 9"):
        list(objects.read(world.s3, "results", "x", end=9))


def test_a_server_that_leaves_ranges_aside_is_read_all_the_same(world: World) -> None:
    version = world.s3.put_object(Bucket="inbox", Key="x", Body=b"0123456789")["VersionId"]

    def drop(params: dict[str, Any], **_: Any) -> None:
        params["headers"].pop("Range", None)

    client = boto3.client("s3")
    client.meta.events.register("before-call.s3.GetObject", drop)
    for start, end in ((0, None), (3, None), (3, 7), (0, 4), (3, 10)):
        assert (
            b"".join(objects.read(client, "inbox", "x", version=version, start=start, end=end))
            == b"0123456789"[start:end]
        )
    client.close()


EVENTS: Final = Path(__file__).resolve().parents[2] / "events" / "batch"
# What stands in the recorded events for what S3 makes up anew with each upload.
RECORDED: Final = json.loads((EVENTS / "plan.json").read_text())["Records"][0]


@pytest.mark.parametrize("case", sorted(path.stem for path in EVENTS.glob("*.json") if ".expected" not in path.name))
def test_a_recorded_event_is_answered_as_expected(world: World, models: Path, case: str) -> None:
    publish(world.registry, models / "diabetes")
    recorded = Upload.from_event(RECORDED)
    body = (models / "diabetes" / "held-out.csv").read_bytes()
    version = world.s3.put_object(Bucket="inbox", Key=recorded.key, Body=body)["VersionId"]
    actual = replace(recorded, bucket="inbox", version=version)
    names = {
        recorded.bucket: "inbox",
        recorded.bucket.replace("inbox", "results"): "results",
        recorded.version: version,
    }
    names |= {recorded.job: actual.job}

    def load(name: str) -> Any:
        text = (EVENTS / name).read_text()
        for theirs, ours in names.items():
            text = text.replace(theirs, ours)
        return json.loads(text)

    before = {"chunk": ["plan"], "finish": ["plan", "chunk"], "fail": ["plan"], "stopped": ["plan"]}
    for step in before.get(case, []):
        world.send(load(f"{step}.json"))
    want = load(f"{case}.expected.json")
    assert world.send(load(f"{case}.json")) == want["response"]
    job = batch._jobs().find(actual.job)
    assert (job and {name: job[name] for name in want["job"]}) == want["job"]
    if "execution" in want:
        assert world.start(actual.job) == want["execution"]
        assert [event["chunk"] for event in world.chunk_events(actual.job)] == want["manifest"]
    if "counts" in want:
        counts = batch._jobs().chunks.of(actual.job)[0, 0]
        assert {name: counts[name] for name in want["counts"]} == want["counts"]
