"""What an earlier Threefold wrote is read, served and finished by this one."""

from __future__ import annotations

import copy
import csv
import io
import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.compatibility import generate
from tests.compatibility.conftest import SCHEMAS, contains, labels, memory, packages, read
from threefold import gate
from threefold.chunks import Chunk, Counts
from threefold.errors import InvalidPackage
from threefold.jobs import Files
from threefold.model import Model
from threefold.outcomes import Place, from_attribute, milliseconds
from threefold.package import MANIFEST, Manifest, open_package, pack, unpack
from threefold.registry import Registry, open_store
from threefold.release import Release, route
from threefold.settings import Settings
from threefold.tables.planner import Plan
from threefold_ops.registry.publish import publish

if TYPE_CHECKING:
    from pathlib import Path
    from types import SimpleNamespace

    from tests.compatibility.conftest import Restored

CONTEXT: Final[SimpleNamespace] = generate.CONTEXT
# What differs from one run to the next, whatever the code.
OF_THE_RUN: Final = {"at", "runtime", "release", "expires"}


# Model folders and packages


def test_an_unchanged_folder_is_published_under_the_digest_that_it_always_had(kept: Path, tmp_path: Path) -> None:
    registry, recorded = memory(tmp_path), labels(kept)
    folders = sorted((kept / "folders").iterdir())
    assert [folder.name for folder in folders] == ["claims", "half", "rent", "sums"]
    for folder in folders:
        done = publish(registry, folder, by="operator")
        assert done.digest == recorded[done.name, done.version], folder.name


def test_a_folders_first_release_operates_it_as_it_always_did(kept: Path, tmp_path: Path) -> None:
    registry = memory(tmp_path)
    publish(registry, kept / "folders" / "claims", by="operator")
    recorded = read(kept / "buckets" / "models" / "releases" / "claims.json")
    document = registry.release("claims").release.to_json()
    assert contains(document, {**recorded, "at": document["at"]})


def test_a_kept_package_unpacks_under_its_digest_and_passes_its_gate(kept: Path, tmp_path: Path) -> None:
    found = packages(kept, tmp_path)
    assert len(found) == 7
    for (name, version), package in found.items():
        assert (package.manifest.name, package.manifest.version) == (name, version)
        model = Model(package)
        assert (model.encoder is None) == (name == "sums")
        report = gate.inspect(model)
        assert report.findings == []
        # The numbers of what stands in the folder: a gate that runs nothing finds nothing.
        expected = {"claims": (5, 5), "half": (0, 0), "rent": (2, 0), "sums": (0, 0)}
        assert (report.examples, report.rows) == expected[name]


def test_a_kept_package_with_another_expectation_is_refused(kept: Path, tmp_path: Path) -> None:
    package = packages(kept, tmp_path)["claims", "1.0.0"]
    path = package.folder / "examples.jsonl"
    path.write_text(path.read_text().replace("0.7140961", "0.7240961"))
    with pytest.raises(InvalidPackage, match=r"0\.72409.*got 0\.71409"):
        gate.admit(Model(open_package(package.folder, package.digest)))


def test_a_kept_package_is_packed_into_one_that_earlier_code_can_unpack(kept: Path, tmp_path: Path) -> None:
    for (name, version), package in packages(kept, tmp_path).items():
        content = tmp_path / f"{name}-{version}.zip"
        content.write_bytes(pack(package.folder))
        again = unpack(content, package.digest, tmp_path / "again" / package.digest)
        assert again.manifest == package.manifest or name == "claims"  # Its NaN is like nothing, itself included.


def test_a_kept_manifest_is_written_again_with_all_its_fields(kept: Path, tmp_path: Path) -> None:
    for label, package in packages(kept, tmp_path).items():
        document = read(package.folder / MANIFEST)
        assert contains(Manifest.from_json(document).to_json(), document), label


def test_a_package_whose_gate_was_never_evaluated_is_still_served(restored: Restored) -> None:
    record = copy.deepcopy(restored.event("stream.json")["Records"][0])
    record["body"] = json.dumps({"model": "half", "id": "half-1", "record": {"area": 50.0, "rooms": 2}})
    assert restored.stream.handler({"Records": [record]}, CONTEXT) == {"batchItemFailures": []}
    assert restored.account.sent()[0]["prediction"]["value"] == 885.0


# Release documents


def test_a_kept_release_is_read_and_written_again_with_all_its_fields(kept: Path) -> None:
    paths = sorted((kept / "buckets" / "models" / "releases").iterdir())
    documents = {path.stem: read(path) for path in paths}
    assert [bool(document["challenger"]) for document in documents.values()] == [False, False, True, True]
    assert documents["rent"]["previous"]
    for name, document in documents.items():
        release = Release.from_json(document)
        assert contains(release.to_json(), document), name
        assert release.find(release.champion.digest).role == "champion"
    rent = Release.from_json(documents["rent"])
    assert rent.find("2.0").role == "previous"
    assert rent.find("2.2").role == "canary"


def test_every_key_goes_where_it_went(kept: Path) -> None:
    release = Release.from_json(read(kept / "buckets" / "models" / "releases" / "rent.json"))
    recorded = read(kept / "routes.json")
    assert set(recorded.values()) == {"2.1", "2.2"}
    assert {key: route(release, key).version for key in recorded} == recorded


def test_a_kept_release_can_be_promoted_and_rolled_back(restored: Restored, tmp_path: Path) -> None:
    registry = Registry(open_store("models", Settings.from_env()), cache=tmp_path / "cache", refresh_seconds=0.0)
    act = {"at": "2027-01-01T00:00:00.000Z", "by": "operator", "why": "a later day"}
    before, after = registry.change("rent", lambda old: old.promoted(old.challenger or old.champion, **act))
    assert [version.version for version in after.previous] == ["2.1", "2.0"]
    _, back = registry.change("rent", lambda old: old.promoted(before.previous[0], **act))
    assert (back.champion.version, back.serving) == ("2.0", before.serving)


# The stream


def test_queued_messages_are_answered_as_they_always_were(restored: Restored) -> None:
    event = restored.event("stream.json")
    # Nothing was answered yet: the messages waited while the functions were deployed anew.
    for item in restored.account.items("predictions"):
        restored.account.dynamodb.delete_item(TableName="predictions", Key={name: item[name] for name in ("pk", "sk")})
    assert restored.stream.handler(event, CONTEXT) == {"batchItemFailures": []}
    recorded = restored.event("stream.outcomes.json")
    sent = restored.account.sent()
    assert [outcome["id"] for outcome in sent] == [outcome["id"] for outcome in recorded]
    for got, was in zip(sent, recorded, strict=True):
        assert contains(got, without(was)), f"{was['id']}: {got}"


def test_queued_messages_are_answered_to_the_places_where_they_were_answered_before(restored: Restored) -> None:
    recorded = {place(item) for item in restored.account.items("predictions")}
    assert len(recorded) > 20
    assert restored.stream.handler(restored.event("stream.json"), CONTEXT) == {"batchItemFailures": []}
    assert {place(item) for item in restored.account.items("predictions")} == recorded


def test_a_redelivered_message_gets_the_answer_that_is_stored(restored: Restored) -> None:
    event = restored.event("stream.json")
    for record in event["Records"]:
        record["attributes"]["ApproximateReceiveCount"] = "2"
    recorded = {outcome["id"]: outcome for outcome in restored.event("stream.outcomes.json")}
    assert restored.stream.handler(event, CONTEXT) == {"batchItemFailures": []}
    sent = restored.account.sent()
    stored = [outcome for outcome in sent if outcome.get("prediction")]
    assert len(stored) == 11
    for outcome in stored:
        # Down to the time and the release of that day: what was answered first is the answer.
        assert contains(outcome, {name: value for name, value in recorded[outcome["id"]].items() if value is not None})


def test_a_message_with_fields_that_this_code_does_not_know_is_answered(restored: Restored) -> None:
    record = copy.deepcopy(restored.event("stream.json")["Records"][0])
    record["messageId"] = "later"
    body = json.loads(record["body"])
    record["body"] = json.dumps({**body, "id": "later", "schema": 1, "trace": {"a": [1]}})
    assert restored.stream.handler({"Records": [record]}, CONTEXT) == {"batchItemFailures": []}
    assert restored.account.sent()[0]["prediction"]["status"] == "predicted"


# Outcomes


def test_kept_outcomes_are_found_by_the_code_of_today(restored: Restored) -> None:
    items = restored.account.items("predictions")
    places = []
    for item in items:
        at, _, source = item["sk"]["S"].partition("#")
        model, _, key = item["pk"]["S"].partition("#")
        places.append(Place(model, key, int(at), source))
    found = restored.stream._table().find(places)
    assert len(found) == len(items) > 20
    statuses = set()
    for item in items:
        outcome = found[place(item)]
        statuses.add((outcome["status"], "label" in outcome, "value" in outcome, "tensors" in outcome))
        wanted = {name: from_attribute(item[name]) for name in item if name not in {"pk", "sk", "expires"}}
        assert contains(outcome, wanted)
    assert {status for status, *_ in statuses} == {"predicted", "abstained", "rejected"}
    assert {
        ("predicted", True, False, False),
        ("predicted", False, True, False),
        ("predicted", False, False, True),
    } <= (statuses)


def without(outcome: dict[str, Any]) -> dict[str, Any]:
    """An outcome without what differs from run to run."""
    kept = {name: value for name, value in outcome.items() if name not in OF_THE_RUN}
    if "prediction" in kept:
        kept["prediction"] = without(kept["prediction"])
    return kept


def place(item: dict[str, Any]) -> tuple[str, str]:
    return item["pk"]["S"], item["sk"]["S"]


# Jobs


def test_kept_jobs_are_read_in_the_state_that_they_are_in(restored: Restored) -> None:
    names = ["planned.csv", "running.csv", "complete.csv.gz", "refused.csv", "stopped.csv"]
    jobs = {name: restored.job(name) for name in names}
    assert [job["state"] for job in jobs.values()] == ["planned", "running", "complete", "failed", "running"]
    done = jobs["complete.csv.gz"]
    assert [done[name] for name in ("rows", "predicted", "abstained", "rejected")] == [9, 6, 1, 2]
    assert milliseconds(done["finished_at"]) >= milliseconds(done["started_at"])
    chunks = restored.batch._jobs().chunks.of(done["job"])
    assert sorted(chunks) == [(number, 0) for number in range(5)]
    assert sum(Counts.of(chunk).rows for chunk in chunks.values()) == 9
    assert list(restored.batch._jobs().chunks.of(jobs["running.csv"]["job"])) == [(0, 0)]


def test_kept_plans_and_chunks_are_read(restored: Restored) -> None:
    for name in ("planned.csv", "running.csv", "complete.csv.gz", "stopped.csv"):
        job = restored.job(name)
        names = Files("claims", job["job"])
        documents = restored.account.objects("results")
        plan = Plan.from_json(json.loads(documents[names.plan][0]))
        assert contains(plan.to_json(), json.loads(documents[names.plan][0]))
        assert (plan.job, plan.release, plan.digest) == (job["job"], job["release"], job["digest"])
        assert plan.header.columns[0] == "claim_id"
        listed = json.loads(documents[names.manifest][0])
        chunks = [Chunk.from_json(chunk) for chunk in listed]
        assert [chunk.rows for chunk in chunks] == [2, 2, 2, 2, 1]
        assert contains([chunk.to_json() for chunk in chunks], listed)


@pytest.mark.parametrize("name", ["running.csv", "stopped.csv"])
def test_a_job_that_earlier_code_began_is_finished_by_the_code_of_today(restored: Restored, name: str) -> None:
    steps = restored.event(f"steps/{name}.json")
    done = len(restored.batch._jobs().chunks.of(steps["start"]["job"]))
    assert done == (1 if name == "running.csv" else 0)
    for event in steps["chunks"][done:]:
        assert restored.batch.handler(event, CONTEXT) == {}
    assert restored.batch.handler(steps["finish"], CONTEXT) == {"state": "complete"}
    assert_complete(restored, name)


def test_a_chunk_that_earlier_code_scored_lands_on_the_same_items_when_it_is_scored_again(restored: Restored) -> None:
    before = {place(item): item for item in restored.account.items("predictions")}
    counted = {place(item) for item in restored.account.items("jobs")}
    steps = restored.event("steps/running.csv.json")
    assert restored.batch.handler(steps["chunks"][0], CONTEXT) == {}
    assert {place(item) for item in restored.account.items("jobs")} == counted
    assert restored.batch._jobs().chunks.of(steps["start"]["job"])[0, 0]["attempt"] == 2
    after = {place(item): item for item in restored.account.items("predictions")}
    assert after.keys() == before.keys()
    for key, item in before.items():
        assert contains(after[key], {name: value for name, value in item.items() if name not in OF_THE_RUN})


def test_a_job_that_earlier_code_planned_goes_on_when_its_event_comes_again(restored: Restored) -> None:
    event = restored.event("uploads/planned.csv.json")
    assert restored.batch.handler(event, CONTEXT) == {}
    job = restored.job("planned.csv")
    assert job["state"] == "running"
    start = restored.account.started(job["job"])
    assert contains(start, {**restored.event("steps/running.csv.json")["start"], **paths(job["job"])})
    chunks = json.loads(restored.account.objects("results")[start["manifest_key"]][0])
    for chunk in chunks:
        assert (
            restored.batch.handler({"action": "chunk", "job": job["job"], "model": "claims", "chunk": chunk}, CONTEXT)
            == {}
        )
    finish = {"action": "finish", "job": job["job"], "model": "claims"}
    assert restored.batch.handler(finish, CONTEXT) == {"state": "complete"}
    assert_complete(restored, "planned.csv")


def paths(job: str) -> dict[str, str]:
    return {"job": job, "manifest_key": Files("claims", job).manifest}


@pytest.mark.parametrize("name", ["running.csv", "complete.csv.gz", "refused.csv"])
def test_an_upload_that_earlier_code_knew_is_known(restored: Restored, name: str) -> None:
    def jobs() -> list[dict[str, Any]]:
        # What lists a model's jobs may come beside them.
        return [item for item in restored.account.items("jobs") if item["pk"]["S"].startswith("job#")]

    before = jobs()
    assert restored.batch.handler(restored.event(f"uploads/{name}.json"), CONTEXT) == {}
    after = jobs()
    assert len(after) == len(before)
    # That somebody was told of its end may be noted beside what was there.
    assert all(contains(now, was) for now, was in zip(after, before, strict=True))


def test_a_job_that_earlier_code_began_can_fail(restored: Restored) -> None:
    assert restored.batch.handler(restored.event("steps/stopped.csv.json")["fail"], CONTEXT) == {}
    job = restored.job("stopped.csv")
    assert (job["state"], job["code"]) == ("failed", "States.Timeout")


def assert_complete(restored: Restored, name: str) -> None:
    """The job's counts and results are those of the one that earlier code saw through."""
    job, model = restored.job(name), restored.job("complete.csv.gz")
    counts = ("state", "rows", "predicted", "abstained", "rejected", "missing")
    assert {field: job[field] for field in counts} == {field: model[field] for field in counts}
    documents = restored.account.objects("results")
    assert contains(_rows(documents[job["predictions_key"]][0]), _rows(documents[model["predictions_key"]][0]))
    assert contains(_rows(documents[job["rejects_key"]][0]), _rows(documents[model["rejects_key"]][0]))


def _rows(content: bytes) -> list[dict[str, Any]]:
    """The rows of a result file, without what differs from job to job."""
    dropped = {"threefold_prediction_id", "threefold_at"}
    found = csv.DictReader(io.StringIO(content.decode(), newline=""))
    return [{name: cell for name, cell in row.items() if name not in dropped} for row in found]


# The kept files themselves


def test_what_is_kept_is_never_written_again(capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in SCHEMAS[0].rglob("*") if path.is_file()}
    assert generate.main(SCHEMAS[0].name) == 1
    assert "never written again" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in SCHEMAS[0].rglob("*") if path.is_file()} == before
