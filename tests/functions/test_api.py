"""The api function: uploads, jobs, stored answers, pending records, and the document that describes it all."""

from __future__ import annotations

import base64
import gzip
import json
import time
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import requests
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from threefold.jobs import Files, JobState, JobTable, Upload, iso
from threefold.names import API_ROUTES, OPEN_ROUTES, PREDICT_ROUTES
from threefold.outcomes import OutcomeTable, Place, milliseconds
from threefold.package import Output
from threefold.release import Challenger, Version
from threefold.signature import Feature
from threefold.sources import WindowSource
from threefold.tables.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Graphs, PackageMaker
    from tests.functions.conftest import Api, Held, Shelf

UPLOADS = "POST /models/{model}/uploads"
JOBS = "GET /models/{model}/jobs"
JOB = "GET /models/{model}/jobs/{job}"
CANCEL = "POST /models/{model}/jobs/{job}/cancel"
RESUME = "POST /models/{model}/jobs/{job}/resume"
RESULTS = "GET /models/{model}/jobs/{job}/results"
RECORDS = "GET /models/{model}/records"
PENDING = "POST /models/{model}/pending"
OPENAPI = "GET /openapi.json"
PREDICT = "POST /models/{model}/predictions"
EVERY = [f"{method} {path}" for method, path in API_ROUTES]
FEATURES = (Feature(name="a", type="float32", max=100), Feature(name="b", type="int32", missing=3))
VALUE = Output(kind="regression", value="value")
NOW_MS = time.time_ns() // 1_000_000
DAY_MS = 86_400_000


@pytest.fixture
def api(make_api: Callable[..., Api], example_bucket: str) -> Api:
    """The example models, with the default settings."""
    return make_api(example_bucket)


def table_of(api: Api) -> JobTable:
    return JobTable(api.dynamodb, api.jobs_table, ttl_days=1)


def begin(api: Api, model: str, number: int = 0, **values: object) -> str:
    """A job as the batch function begins it."""
    upload = Upload(api.inbox, f"{model}/{number}.csv", "v1", NOW_MS, 10, "")
    table_of(api).begin(upload, NOW_MS - 60_000 + number, **values)
    return upload.job


def store(api: Api, prediction: dict[str, Any], key: str, *, ttl_days: int = 1, at_ms: int = NOW_MS) -> None:
    """An outcome as the batch and stream doors store it."""
    table = OutcomeTable(api.dynamodb, api.table, ttl_days=ttl_days)
    item = table.item(Place(prediction["model"], key, at_ms, prediction["id"]), prediction, now_ms=NOW_MS)
    assert table.write([item], deadline=time.monotonic() + 5) == []


def answer(release: Any, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"p-{time.monotonic_ns()}",
        "model": release.model,
        "version": release.champion.version,
        "digest": release.champion.digest,
        "role": "champion",
        "release": "r1",
        "status": "predicted",
        "value": 1.5,
        "key": "k",
        "at": iso(NOW_MS),
        "runtime": "onnxruntime",
    } | fields


def policy(form: dict[str, Any]) -> list[Any]:
    found: list[Any] = json.loads(base64.b64decode(form["fields"]["policy"]))["conditions"]
    return found


def test_the_function_answers_the_routes_that_api_gateway_sends_it(api: Api) -> None:
    paths = api.module._own_document()["paths"]
    assert {(method.upper(), path) for path, item in paths.items() for method in item} == set(API_ROUTES)


# Uploads


def test_a_form_uploads_a_file_with_its_options_under_a_key_of_our_choice(api: Api) -> None:
    options = {"delimiter": ";", "version": "1.0.0", "store": False, "note": "the night's rows"}
    body = {"name": "Readings (May).CSV", "options": options, "size_bytes": 100}
    status, form = api(UPLOADS, body, model="diabetes")
    assert status == 200
    assert form["key"].startswith("diabetes/")
    assert form["key"].endswith("/Readings-May.csv")
    assert form["fields"]["key"] == form["key"]
    done = requests.post(form["url"], data=form["fields"], files={"file": b"a;b\n1;2\n"}, timeout=5)
    assert done.status_code in {200, 201, 204}
    found = api.s3.get_object(Bucket=api.inbox, Key=form["key"])
    assert found["Body"].read() == b"a;b\n1;2\n"
    assert found["Metadata"] == {"delimiter": ";", "version": "1.0.0", "store": "false", "note": "the night's rows"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"delimiter": "\t"},
        {"delimiter": "|", "store": True},
        {"store": False, "version": "1.0.0"},
        {"note": "schön 日本 🙂"},
        {"note": "ü" * 300},
    ],
    ids=str,
)
def test_the_batch_function_reads_the_options_that_the_form_carries(options: dict[str, Any], api: Api) -> None:
    form = api(UPLOADS, {"options": options}, model="diabetes")[1]
    requests.post(form["url"], data=form["fields"], files={"file": b"a"}, timeout=5)
    metadata = api.s3.head_object(Bucket=api.inbox, Key=form["key"])["Metadata"]
    assert sum(len(name) + len(value) for name, value in metadata.items()) < 2048
    assert Options.read(metadata, None) == Options(**options)


def test_nothing_about_a_form_can_be_changed_by_who_uploads(api: Api) -> None:
    form = api(UPLOADS, {"options": {"delimiter": "\t", "store": True}}, model="diabetes")[1]
    conditions = policy(form)
    assert {"key": form["key"]} in conditions
    assert {"bucket": api.inbox} in conditions
    assert ["content-length-range", 1, 5 * 1024**3] in conditions
    assert {"x-amz-meta-delimiter": form["fields"]["x-amz-meta-delimiter"]} in conditions
    assert {"x-amz-meta-store": "true"} in conditions
    assert not [each for each in conditions if isinstance(each, list) and each[0] != "content-length-range"]
    assert ["content-length-range", 1, 7] in policy(api(UPLOADS, {"size_bytes": 7}, model="diabetes")[1])


def test_a_form_is_good_for_a_quarter_of_an_hour_unless_it_is_set_otherwise(
    make_api: Callable[..., Api], example_bucket: str
) -> None:
    for seconds, environment in ((900, {}), (60, {"THREEFOLD_LINK_SECONDS": "60"})):
        form = make_api(example_bucket, **environment)(UPLOADS, {}, model="diabetes")[1]
        left = milliseconds(form["expires_at"]) / 1000 - time.time()
        assert seconds - 15 < left <= seconds


def test_two_forms_for_one_name_have_two_keys(api: Api) -> None:
    first, second = (api(UPLOADS, {"name": "a.csv"}, model="diabetes")[1]["key"] for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a.csv", "a.csv"),
        ("a.csv.gz", "a.csv.gz"),
        ("A.CSV.GZ", "A.csv.gz"),
        ("a.gz", "a.csv.gz"),
        ("a.txt", "a.txt.csv"),
        ("../../etc/passwd", "passwd.csv"),
        ("C:\\rows\\may.csv", "may.csv"),
        ("größe 1.csv", "gr-e-1.csv"),
        ("x.csv.job.json", "x.csv.job.json.csv"),
        ("...", "upload.csv"),
        ("日本.csv", "upload.csv"),
        ("x" * 200, "x" * 100 + ".csv"),
    ],
)
def test_a_key_keeps_what_is_plain_in_a_name(name: str, kept: str, api: Api) -> None:
    assert api(UPLOADS, {"name": name}, model="diabetes")[1]["key"].rpartition("/")[2] == kept


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"size_bytes": 5 * 1024**3 + 1}, 413, "too_large"),
        ({"size_bytes": 0}, 400, "malformed"),
        ({"size_bytes": "9"}, 400, "malformed"),
        ({"name": ""}, 400, "malformed"),
        ({"name": 1}, 400, "malformed"),
        ({"options": {"delimiter": "::"}}, 400, "malformed"),
        ({"options": {"store": "yes"}}, 400, "malformed"),
        ({"options": {"note": "n" * 301}}, 400, "malformed"),
        ({"options": {"note": "two\r\nlines"}}, 400, "malformed"),
        ({"options": {"owner": "me"}}, 400, "malformed"),
        ({"file": "a.csv"}, 400, "malformed"),
        ({"options": {"version": "9.9.9"}}, 404, "unknown_model"),
        ([], 400, "malformed"),
        ([{}], 400, "malformed"),
        ("", 400, "malformed"),
        ("{", 400, "malformed"),
        ("null", 400, "malformed"),
    ],
    ids=repr,
)
def test_an_upload_that_cannot_be_is_refused_before_it_begins(body: object, status: int, code: str, api: Api) -> None:
    found, error = api(UPLOADS, body, model="diabetes")
    assert (found, error["code"]) == (status, code)
    assert "want" in error["error"]


def test_every_mistake_in_a_body_is_named(api: Api) -> None:
    body = {"options": {"delimiter": "::", "owner": "me"}, "size_bytes": "9"}
    error = api(UPLOADS, body, model="diabetes")[1]["error"]
    assert [part.partition(":")[0] for part in error.split("; ")] == [
        "options.delimiter",
        "options.owner",
        "size_bytes",
    ]
    assert error.endswith("got '9'")


def test_a_body_that_is_no_json_by_its_header_is_415(api: Api) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert api(UPLOADS, "--x", model="diabetes", headers=headers)[0] == 415
    encoded = base64.b64encode(b'{"name": "a.csv"}').decode()
    assert api(UPLOADS, encoded, model="diabetes", encoded=True)[0] == 200
    assert api(UPLOADS, "not base64", model="diabetes", encoded=True)[1]["code"] == "malformed"


@pytest.mark.parametrize("media_type", ["Application/JSON", "APPLICATION/json; charset=UTF-8"])
def test_a_content_type_is_read_as_http_reads_it(api: Api, media_type: str) -> None:
    status, found = api(UPLOADS, {"name": "may.csv"}, model="diabetes", headers={"content-type": media_type})
    assert (status, found["key"].endswith("/may.csv")) == (200, True)


@pytest.mark.parametrize("media_type", ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded"])
def test_a_call_without_a_body_is_400_whatever_it_says_of_it(api: Api, media_type: str) -> None:
    status, found = api(UPLOADS, model="diabetes", headers={"content-type": media_type})
    assert (status, found["code"]) == (400, "malformed")


def test_only_a_model_that_takes_records_takes_uploads(api: Api) -> None:
    assert api(UPLOADS, {}, model="nobody")[1]["code"] == "unknown_model"
    status, error = api(UPLOADS, {}, model="digit-pairs")
    assert (status, error["code"]) == (422, "outside_signature")
    assert api(PENDING, {"records": [{}]}, model="digit-pairs")[0] == 422


# Jobs


def test_jobs_are_listed_newest_first_page_by_page(api: Api) -> None:
    jobs = [begin(api, "diabetes", number) for number in range(5)]
    other = begin(api, "digits", 9)
    seen, query = [], {"limit": "2"}
    while True:
        status, page = api(JOBS, model="diabetes", query=query)
        assert status == 200
        seen += [job["job"] for job in page["jobs"]]
        if page["next"] is None:
            break
        address, _, text = page["next"].partition("?")
        assert address == "/models/diabetes/jobs"
        query = dict(part.split("=") for part in text.split("&"))
    assert seen == jobs[::-1]
    assert [job["job"] for job in api(JOBS, model="digits")[1]["jobs"]] == [other]
    assert api(JOBS, model="nobody") == (200, {"jobs": [], "next": None})


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}])
def test_a_page_has_from_1_to_100_jobs(query: dict[str, str], api: Api) -> None:
    assert api(JOBS, model="diabetes", query=query)[1]["code"] == "malformed"


def test_the_job_of_an_upload_is_found_by_its_key(api: Api) -> None:
    form = api(UPLOADS, {"name": "a.csv"}, model="diabetes")[1]
    query = {"upload": form["key"]}
    assert form["jobs"].startswith("/models/diabetes/jobs?upload=diabetes%2F")
    assert api(JOBS, model="diabetes", query=query)[1]["jobs"] == []
    versions = [api.s3.put_object(Bucket=api.inbox, Key=form["key"], Body=b"x")["VersionId"] for _ in range(2)]
    api.s3.put_object(Bucket=api.inbox, Key=form["key"] + ".gz", Body=b"x")
    assert api.module._inbox().versions(form["key"]) == versions[::-1]
    uploads = [Upload(api.inbox, form["key"], version, NOW_MS, 1, "") for version in versions]
    for upload in uploads:
        table_of(api).begin(upload, NOW_MS)
    found = api(JOBS, model="diabetes", query=query)[1]["jobs"]
    assert {job["job"] for job in found} == {upload.job for upload in uploads}
    # Another model's callers do not find it.
    assert api(JOBS, model="digits", query=query)[1]["jobs"] == []


def test_a_job_says_what_is_known_of_it(api: Api) -> None:
    job = begin(api, "diabetes", chunk_bytes=7, note="n")
    status, found = api(JOB, model="diabetes", job=job)
    assert (status, found["job"], found["state"], found["rows"]) == (200, job, "planned", None)
    assert (found["chunk_bytes"], found["note"], found["key"]) == (7, "n", "diabetes/0.csv")
    assert not {"pk", "sk", "expires"} & found.keys()


@pytest.mark.parametrize("route", [JOB, CANCEL, RESUME, RESULTS])
def test_another_model_s_job_is_unknown(route: str, api: Api) -> None:
    job = begin(api, "digits")
    answers = [api(route, model="diabetes", job=each) for each in (job, "f" * 32)]
    assert [(status, body["code"]) for status, body in answers] == [(404, "unknown_job")] * 2
    assert table_of(api).find(job)["state"] == "planned"  # type: ignore[index]


def test_a_running_job_is_cancelled_and_its_execution_stopped(api: Api) -> None:
    job = begin(api, "diabetes")
    api.steps.start_execution(stateMachineArn=api.machine, name=job, input="{}")
    table_of(api).move(job, JobState.RUNNING)
    status, found = api(CANCEL, model="diabetes", job=job)
    assert (status, found["state"]) == (200, "cancelled")
    executions = api.steps.list_executions(stateMachineArn=api.machine)["executions"]
    assert [each["status"] for each in executions] == ["ABORTED"]


def test_only_a_job_that_ended_without_being_complete_is_resumed(api: Api) -> None:
    running, complete = begin(api, "diabetes", 1), begin(api, "diabetes", 2)
    for job in (running, complete):
        table_of(api).move(job, JobState.RUNNING)
    table_of(api).move(complete, JobState.COMPLETE)
    for job in (running, complete):
        status, error = api(RESUME, model="diabetes", job=job)
        assert (status, error["code"]) == (409, "wrong_state")
    assert api(CANCEL, model="diabetes", job=complete)[1]["code"] == "wrong_state"


def test_results_are_readable_by_their_addresses_once_they_are_there(api: Api) -> None:
    job = begin(api, "diabetes")
    table_of(api).move(job, JobState.RUNNING)
    status, error = api(RESULTS, model="diabetes", job=job)
    assert (status, error["code"], error["state"]) == (409, "wrong_state", "running")
    files = Files("diabetes", job)
    for key, content in ((files.predictions, b"p\n"), (files.rejects, b"r\n")):
        api.s3.put_object(Bucket=api.results, Key=key, Body=content)
    table_of(api).move(
        job, JobState.COMPLETE, predictions_key=files.predictions, rejects_key=files.rejects, finished_at=iso(NOW_MS)
    )
    status, found = api(RESULTS, model="diabetes", job=job)
    assert status == 200
    assert [requests.get(found[part], timeout=5).content for part in ("predictions", "rejects")] == [b"p\n", b"r\n"]
    assert "X-Amz-Expires=900" in found["predictions"]


def test_a_job_that_was_taken_up_again_says_nothing_of_its_former_end(api: Api) -> None:
    job = begin(api, "diabetes")
    files, table = Files("diabetes", job), table_of(api)
    ended = {"predictions_key": files.predictions, "rejects_key": files.rejects, "finished_at": iso(NOW_MS)}
    table.move(job, JobState.INCOMPLETE, reason="rows: want 2", code="incomplete", **ended)
    assert api(JOB, model="diabetes", job=job)[1]["reason"] == "rows: want 2"
    table.resume(job, after=job, execution=f"{job}-1")
    found = api(JOB, model="diabetes", job=job)[1]
    assert [found[name] for name in ("state", "finished_at", "reason", "code")] == ["running", None, None, None]
    assert api(RESULTS, model="diabetes", job=job)[0] == 409


# Stored answers


@pytest.mark.parametrize("model", ["diabetes", "digits"])
def test_a_stored_answer_is_the_live_one(
    model: str, api: Api, example_bucket: str, held_out: Callable[[str], Held], *, load: Any, http: Any
) -> None:
    predict = load("predict", THREEFOLD_MODEL_BUCKET=example_bucket)
    body = predict.handler(http(PREDICT, {"records": held_out(model).records}, model=model), None)["body"]
    predictions = json.loads(body)["predictions"]
    for prediction in predictions:
        store(api, prediction, prediction["key"])
    for prediction in predictions:
        response = api.raw(RECORDS, model=model, query={"key": prediction["key"]})
        found = json.loads(response["body"])
        assert found["predictions"] == [prediction]
        assert 0 <= found["age_seconds"] < 120
        headers = response["headers"]
        assert (headers["x-precomputed"], headers["x-prediction-id"]) == ("true", prediction["id"])
        assert (headers["x-model-version"], headers["x-model-digest"]) == ("1.0.0", prediction["digest"])


def test_the_newest_answer_is_served_past_any_number_of_expired_ones(
    make_api: Callable[..., Api], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    release = shelf.release(make_package(graphs.linear([1, 1]), name="line", features=FEATURES, output=VALUE))
    api = make_api(shelf.bucket)
    store(api, answer(release, value=1), "k", at_ms=NOW_MS - 2000)
    store(api, answer(release, value=2), "k", at_ms=NOW_MS - 1000)
    for i in range(60):
        store(api, answer(release, value=3), "k", at_ms=NOW_MS + i, ttl_days=-1)
    store(api, answer(release, value=4), "other")
    assert api(RECORDS, model="line", query={"key": "k"})[1]["predictions"][0]["value"] == 2


@pytest.mark.parametrize("key", ["a,b", "a b", "a#b", "a%2Fb", "größe", "x" * 600, "a&b=c", "+"])
def test_any_key_finds_its_record(key: str, api: Api) -> None:
    release = api.module._registry().release("diabetes").release
    store(api, answer(release, key=key), key)
    status, found = api(RECORDS, model="diabetes", query={"key": key})
    assert (status, found["predictions"][0]["key"]) == (200, key)


def test_an_answer_is_served_only_if_the_release_stands_by_it(
    make_api: Callable[..., Api], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    package = make_package(graphs.linear([1, 1]), name="line", features=FEATURES, output=VALUE)
    shadow = Challenger("s" * 64, "3.0.0", "shadow", 10, "x")
    canary = Challenger("c" * 64, "2.0.0", "canary", 10, "x")
    before = Version("b" * 64, "0.9.0")
    release = shelf.release(package, challenger=canary, previous=(before,))
    api = make_api(shelf.bucket, THREEFOLD_REFRESH_SECONDS="0")
    store(api, answer(release), "champion")
    store(api, answer(release, digest=canary.digest, version="2.0.0"), "canary")
    store(api, answer(release, digest=before.digest, version="0.9.0"), "previous")
    store(api, answer(release, status="abstained", value=None, score=0.4, options=[]), "abstained")
    store(api, answer(release, status="rejected", value=None, code="outside_signature", message="m"), "rejected")
    store(api, answer(release, status="held"), "held")
    wanted = {"champion": 200, "canary": 200, "abstained": 200, "previous": 404, "rejected": 404, "held": 404}
    wanted["nobody"] = 404
    found = {key: api(RECORDS, model="line", query={"key": key}) for key in wanted}
    assert {key: status for key, (status, _) in found.items()} == wanted
    assert {body["code"] for status, body in found.values() if status == 404} == {"no_answer"}
    reasons = {key: found[key][1]["error"] for key in ("nobody", "previous", "rejected")}
    assert reasons["nobody"] == "record 'nobody': want a stored answer, got none"
    assert reasons["previous"].endswith("want an answer of ['1.0.0', '2.0.0'], got one of 0.9.0")
    assert reasons["rejected"].endswith("want a prediction as its newest answer, got 'rejected'")
    shelf.release(package, challenger=shadow)
    store(api, answer(release, digest=shadow.digest, version="3.0.0"), "shadow")
    assert [api(RECORDS, model="line", query={"key": key})[0] for key in ("shadow", "canary")] == [404, 404]


def test_an_answer_is_served_only_while_it_is_young_enough(
    make_api: Callable[..., Api], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    package = make_package(graphs.linear([1, 1]), name="line", features=FEATURES, output=VALUE)
    release = shelf.release(package)
    api = make_api(shelf.bucket, THREEFOLD_REFRESH_SECONDS="0")
    for days in (0.25, 0.75, 100):
        store(api, answer(release, at=iso(NOW_MS - int(days * DAY_MS))), str(days))
    keys = ("0.25", "0.75", "100")
    assert [api(RECORDS, model="line", query={"key": key})[0] for key in keys] == [200, 200, 200]
    shelf.release(package, serving={"precomputed_max_age_days": 0.5})
    found = [api(RECORDS, model="line", query={"key": key}) for key in keys]
    assert [status for status, _ in found] == [200, 404, 404]
    assert found[1][1]["error"].endswith("want an answer of at most 0.5 days, got one of 0.75 days")


def test_an_answer_that_is_too_large_for_an_item_is_read_from_where_it_stands(
    make_api: Callable[..., Api], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    release = shelf.release(make_package(graphs.linear([1, 1]), name="line", features=FEATURES, output=VALUE))
    api = make_api(shelf.bucket)
    whole = answer(release, value="Infinity", reasons=["r" * 1000])
    api.s3.put_object(Bucket=api.results, Key="line/job/large/7.json", Body=json.dumps(whole).encode())
    light = {name: value for name, value in whole.items() if name != "reasons"}
    store(api, light | {"pointer": "line/job/large/7.json"}, "k")
    status, found = api(RECORDS, model="line", query={"key": "k"})
    assert (status, found["predictions"]) == (200, [whole])
    # The table may keep an item for longer than the bucket keeps what is large of it.
    api.s3.delete_object(Bucket=api.results, Key="line/job/large/7.json")
    status, found = api(RECORDS, model="line", query={"key": "k"})
    assert (status, found["code"]) == (404, "no_answer")


def test_a_look_up_needs_a_key_and_a_model(api: Api) -> None:
    assert api(RECORDS, model="diabetes")[1]["code"] == "malformed"
    assert api(RECORDS, model="diabetes", query={"key": ""})[1]["code"] == "malformed"
    assert api(RECORDS, model="nobody", query={"key": "k"})[1]["code"] == "unknown_model"


# Pending records


def pending(api: Api) -> list[str]:
    return [each["Key"] for each in api.s3.list_objects_v2(Bucket=api.inbox).get("Contents", [])]


def test_pending_records_lie_in_the_inbox_a_line_each(api: Api, held_out: Callable[[str], Held]) -> None:
    records = held_out("diabetes").records[:5]
    records[0] |= {"note": "line\nbreak", "big": 2**63, "site": None}
    status, body = api(PENDING, {"records": records}, model="diabetes")
    assert (status, body["accepted"]) == (202, 5)
    assert pending(api) == [body["key"]]
    prefix, model, name = body["key"].split("/")
    assert (prefix, model, name.endswith(".jsonl")) == ("pending", "diabetes", True)
    assert abs(int(name.partition("-")[0]) - time.time() * 1000) < 60_000
    lines = api.s3.get_object(Bucket=api.inbox, Key=body["key"])["Body"].read().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == records


@pytest.mark.parametrize("minutes", [0, 5])
def test_the_answer_says_when_pending_records_are_collected(
    minutes: int, make_api: Callable[..., Api], example_bucket: str, held_out: Callable[[str], Held]
) -> None:
    api = make_api(example_bucket, THREEFOLD_PENDING_MINUTES=str(minutes))
    found = api(PENDING, {"records": held_out("diabetes").records[:1]}, model="diabetes")[1]["next_collection"]
    if not minutes:
        assert found is None
    else:
        assert 285_000 < milliseconds(found) - time.time() * 1000 <= 300_000


def test_what_is_wrong_is_listed_as_far_as_an_answer_carries_it(api: Api) -> None:
    status, error = api(PENDING, {"records": [{}] * 1_000}, model="breast-cancer")
    assert (status, len(error["records"]), error["wrong"]) == (422, 100, 1_000)


def test_one_bad_record_refuses_the_call_and_nothing_is_left(api: Api, held_out: Callable[[str], Held]) -> None:
    good = held_out("diabetes").records[:2]
    records = [good[0], {**good[1], "age": "old"}, {}, good[1]]
    status, error = api(PENDING, {"records": records}, model="diabetes")
    assert (status, error["code"]) == (422, "outside_signature")
    assert [each["record"] for each in error["records"]] == [1, 2]
    assert error["records"][0]["message"] == "input 'age': want FP32 in [10, 100], got 'old'"
    assert error["error"].startswith("record 1: input 'age'")
    assert pending(api) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"records": []}, 400),
        ({"records": {}}, 400),
        ({"records": [1]}, 400),
        ({"instances": [{}]}, 400),
        ({"records": [{}] * 1001}, 413),
        ('{"records": [{"x": ' + "9" * 400 + ', "y": NaN}]}', 422),
        ("[" * 5000, 400),
    ],
    ids=lambda value: str(value)[:30],
)
def test_pending_records_that_cannot_be_taken_are_refused(body: object, status: int, api: Api) -> None:
    assert api(PENDING, body, model="diabetes")[0] == status
    assert pending(api) == []


def test_numbers_that_readers_would_not_agree_on_are_not_left(api: Api, held_out: Callable[[str], Held]) -> None:
    record = held_out("diabetes").records[0] | {"big": 2**70, "gap": float("nan")}
    status, error = api(PENDING, {"records": [record]}, model="diabetes")
    assert (status, error["code"]) == (400, "malformed")
    assert "64 bits" in error["error"]


def test_pending_records_have_at_most_a_megabyte(api: Api, held_out: Callable[[str], Held]) -> None:
    record = held_out("diabetes").records[0]
    assert api(PENDING, {"records": [record | {"note": "x" * 990_000}]}, model="diabetes")[0] == 202
    status, error = api(PENDING, {"records": [record | {"note": "x" * 1_000_000}]}, model="diabetes")
    assert (status, error["code"]) == (413, "too_large")


# The document


def test_the_document_is_valid_openapi_3_1_and_names_every_route(api: Api) -> None:
    status, document = api(OPENAPI)
    assert status == 200
    validate(document)
    assert document["openapi"].startswith("3.1")
    named = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert named >= {*PREDICT_ROUTES, *API_ROUTES}
    own = {path for _, path in named - {*PREDICT_ROUTES, *API_ROUTES}}
    models = ("breast-cancer", "card-fraud", "diabetes", "digits")
    assert own == {f"/models/{model}/{act}" for model in models for act in ("predictions", "pending")}
    assert document["security"] == [{"iam": []}]
    assert all(document["paths"][path]["get"]["security"] == [] for path in OPEN_ROUTES)
    text = json.dumps(document)
    assert "ValidationError" not in text


def test_a_model_s_records_have_its_own_schema(api: Api, held_out: Callable[[str], Held]) -> None:
    document = api(OPENAPI)[1]
    for model in ("breast-cancer", "diabetes", "digits"):
        body = document["paths"][f"/models/{model}/predictions"]["post"]["requestBody"]["content"]["application/json"]
        validator = OAS31Validator(body["schema"] | {"components": document["components"]})
        assert list(validator.iter_errors({"records": held_out(model).records})) == []
        assert list(validator.iter_errors({"records": [{}]}))
    record = document["components"]["schemas"]["diabetes.record"]
    assert record["properties"]["age"]["type"] == "number"
    assert (record["properties"]["age"]["minimum"], record["properties"]["age"]["maximum"]) == (10, 100)
    assert "blood_pressure" not in record["required"]
    assert record["properties"]["blood_pressure"]["default"] == 92.5
    assert "patient_id" in record["properties"]


def test_every_kind_of_feature_has_its_schema(
    make_api: Callable[..., Api], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    features = (
        Feature(name="f", type="float32", min=0, unit="m", description="height"),
        Feature(name="i", type="int64", missing=1, allowed=(1, 2)),
        Feature(name="s", type="string", allowed=("x", "y")),
        Feature(name="b", type="bool", missing=False),
        Feature(name="o", type="float64", max=5, outside="flag"),
        Feature(name="n", type="float32", missing=float("nan")),
    )
    kinds = {"f": "FP32", "i": "INT64", "s": "BYTES", "b": "BOOL", "o": "FP64", "n": "FP32"}
    graph = graphs.columns(*((name, kind, ["n", 1]) for name, kind in kinds.items()))
    shelf.release(make_package(graph, name="wide", features=features, layout="columns", key="id"))
    document = make_api(shelf.bucket)(OPENAPI)[1]
    validate(document)
    schema = document["components"]["schemas"]["wide.record"]
    assert schema["required"] == ["f", "s", "o"]
    assert schema["properties"] == {
        "f": {"type": "number", "minimum": 0, "description": "height; in m"},
        "i": {"type": ["integer", "null"], "enum": [1, 2, None], "default": 1},
        "s": {"type": "string", "enum": ["x", "y"]},
        "b": {"type": ["boolean", "null"], "default": False},
        "o": {"type": "number", "description": "outside of [None, 5] it is flagged"},
        "n": {"type": ["number", "null"]},
        "id": {"type": ["string", "number", "null"], "description": "the record's own id"},
    }


def test_the_scoring_routes_answer_as_the_document_says(
    api: Api, example_bucket: str, held_out: Callable[[str], Held], *, load: Any, http: Any
) -> None:
    predict = load("predict", THREEFOLD_MODEL_BUCKET=example_bucket)
    records = {"records": [*held_out("digits").records[:50], {}]}
    tensors = [{"name": name, "datatype": "FP32", "shape": [1, 8, 8], "data": [0.0] * 64} for name in ("left", "right")]
    for method, path in PREDICT_ROUTES:
        route = f"{method} {path}"
        model = "digit-pairs" if path.endswith("infer") else "digits"
        body = None if method == "GET" else {"inputs": tensors} if path.endswith("infer") else records
        response = predict.handler(http(route, body, model=model, version="1.0.0"), None)
        assert response["statusCode"] == 200, route
        assert api._misfits(route, 200, json.loads(response["body"])) == []
    error = predict.handler(http(PREDICT, {"records": [{}]}, model="digits"), None)
    assert api._misfits(PREDICT, error["statusCode"], json.loads(error["body"])) == []


def test_a_model_that_cannot_be_had_leaves_the_document_of_the_others(
    make_api: Callable[..., Api], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    for name in ("a", "b"):
        shelf.release(make_package(graphs.linear([1, 1]), name=name, features=FEATURES, output=VALUE))
    boto3.client("s3").put_object(Bucket=shelf.bucket, Key="releases/b.json", Body=b"{")
    schemas = make_api(shelf.bucket)(OPENAPI)[1]["components"]["schemas"]
    assert "a.record" in schemas
    assert "b.record" not in schemas


# Who may ask


@pytest.mark.parametrize(
    ("scopes", "asks", "operates"),
    [
        ("predict:diabetes", True, False),
        ("operate:diabetes", False, True),
        ("predict:diabetes operate:diabetes", True, True),
        ("predict:digits operate:digits", False, False),
        ("operate:*", False, False),
        ("", False, False),
    ],
)
def test_operating_a_model_takes_another_scope_than_asking_it(
    scopes: str, asks: bool, operates: bool, make_api: Callable[..., Api], example_bucket: str
) -> None:
    api = make_api(example_bucket, THREEFOLD_AUTH="jwt")
    for route in EVERY:
        if "{model}" in route:
            opened = operates if route in {CANCEL, RESUME} else asks
            status, body = api(route, "{", model="diabetes", job="f" * 32, claims={"scope": scopes})
            assert (body.get("code") == "forbidden") != opened, route
            assert (status == 403) != opened, route
    listed = api(OPENAPI, claims={"scope": scopes})[1]["components"]["schemas"]
    assert [model for model in ("diabetes", "digits") if f"{model}.record" in listed] == [
        model for model in ("diabetes", "digits") if f"predict:{model}" in scopes.split()
    ]


def test_the_scopes_are_the_stack_s_to_name(make_api: Callable[..., Api], example_bucket: str) -> None:
    environment = {"THREEFOLD_SCOPE_TEMPLATE": "ask/{model}", "THREEFOLD_OPERATE_SCOPE_TEMPLATE": "run/{model}"}
    api = make_api(example_bucket, THREEFOLD_AUTH="jwt", **environment)
    assert api(JOBS, model="diabetes", claims={"scope": "ask/diabetes"})[0] == 200
    assert api(CANCEL, model="diabetes", job="j", claims={"scope": "ask/diabetes"})[0] == 403
    assert api(CANCEL, model="diabetes", job="j", claims={"scope": "run/diabetes"})[0] == 404


@pytest.mark.parametrize("route", [route for route in EVERY if "{model}" in route])
def test_a_forbidden_model_looks_the_same_whether_it_exists_or_not(
    route: str, make_api: Callable[..., Api], example_bucket: str
) -> None:
    api = make_api(example_bucket, THREEFOLD_AUTH="jwt")
    claims = {"scope": "predict:digits operate:digits"}
    answers = [api.raw(route, "{", model=model, job="j", claims=claims) for model in ("diabetes", "no-such-model")]
    assert answers[0] == answers[1]
    assert (answers[0]["statusCode"], json.loads(answers[0]["body"])["code"]) == (403, "forbidden")


def test_auth_none_is_refused_on_amazons_aws(make_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch) -> None:
    api = make_api("models", THREEFOLD_AUTH="none")
    assert api(JOBS, model="diabetes")[0] == 200
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    api.module._settings.cache_clear()
    for route in EVERY:
        assert api(route, model="diabetes", job="j")[1]["code"] == "forbidden"
    assert "security" not in api.document()


@pytest.mark.parametrize(
    ("raw_path", "model", "job"),
    [
        ("/models/diab%65tes/jobs/j", "diabetes", "j"),
        ("/models/digits/jobs/j", "digits/jobs/j", "j"),
        ("/models/diabetes/jobs/a/b", "diabetes", "a/b"),
        ("/models/diabetes/jobs/a%2fb", "diabetes", "a%2fb"),
        ("/models/diabetes/jobs/", "diabetes", ""),
    ],
)
def test_a_path_has_one_reading(raw_path: str, model: str, job: str, api: Api) -> None:
    event = api.raw(JOB, raw_path=raw_path, model=model, job=job)
    assert (event["statusCode"], json.loads(event["body"])["code"]) == (404, "unknown_model")


def test_api_gateway_s_choice_of_route_is_followed_whatever_stands_before_the_path(api: Api) -> None:
    job = begin(api, "diabetes")
    assert api(JOB, raw_path=f"/ml/models/diabetes/jobs/{job}", model="diabetes", job=job)[1]["job"] == job


@pytest.mark.parametrize("route", ["GET /models/{model}", "DELETE /models/{model}/jobs", "$default", ""])
def test_a_route_that_is_not_ours_is_unknown(route: str, api: Api) -> None:
    assert api(route, model="diabetes")[1]["code"] == "unknown_route"


# When something is away


def test_storage_that_does_not_answer_is_503(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.dynamodb.delete_table(TableName=api.jobs_table)
    status, error = api(JOBS, model="diabetes")
    assert (status, error["code"]) == (503, "storage_unavailable")
    assert api.jobs_table not in json.dumps(error)


def test_a_registry_that_does_not_answer_is_503(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.module._settings.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert api(UPLOADS, {}, model="diabetes")[1]["code"] == "registry_unreachable"


@pytest.mark.parametrize("wrong", ["fails", "answers in another form"])
def test_what_is_unforeseen_is_500_with_the_traceback_in_the_log_only(
    wrong: str,
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def find(_job: str) -> dict[str, Any]:
        if wrong == "fails":
            raise ZeroDivisionError("a secret of the inside")
        return {"model": "diabetes", "job": "j", "state": "a secret of the inside"}

    monkeypatch.setattr(api.module._jobs(), "find", find)
    status, error = api(JOB, model="diabetes", job="j")
    assert (status, error["code"]) == (500, "internal")
    assert "secret" not in json.dumps(error)
    assert "a secret of the inside" in caplog.text
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    assert [line["Errors"] for line in lines] == [[1]]
    assert (lines[0]["door"], lines[0]["route"], lines[0]["status"]) == ("api", JOB, 500)


def test_a_compressed_body_is_no_json(api: Api) -> None:
    packed = base64.b64encode(gzip.compress(b'{"name": "a.csv"}')).decode()
    assert api(UPLOADS, packed, model="diabetes", encoded=True)[1]["code"] == "malformed"


def test_records_left_for_a_model_with_windows_bring_what_they_are_looked_up_by(
    make_api: Callable[..., Api], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    window = WindowSource(entity="card", agg="sum", of="amount", over="7d")
    features = (Feature(name="a", type="float32"), Feature(name="spend", type="float32", source=window))
    value = Output(kind="regression", value="value")
    shelf.release(make_package(graphs.linear([1, 1]), name="fraud", features=features, output=value))
    api = make_api(shelf.bucket)
    assert (
        api("POST /models/{model}/pending", {"records": [{"card": "c", "amount": 5, "a": 1}]}, model="fraud")[0] == 202
    )
    status, body = api("POST /models/{model}/pending", {"records": [{"card": "c"}]}, model="fraud")
    assert (status, "input 'a'" in body["error"]) == (422, True)
    schema = api("GET /openapi.json")[1]["components"]["schemas"]["fraud.record"]
    assert list(schema["properties"]) == ["a", "card", "amount"]
    assert schema["required"] == ["a"]
