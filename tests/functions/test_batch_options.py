"""What an uploader says of a file, pinned in the job and held to; and outcomes too large for the table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from functions import batch
from tests.functions.batch_world import (
    FEATURES,
    TEN,
    chunks_of,
    open_world,  # noqa: F401 - a fixture
    results,
    small_package,  # noqa: F401 - a fixture
)
from threefold.jobs import Upload
from threefold.outcomes import whole
from threefold.package import Output
from threefold.release import Version
from threefold.signature import Feature

if TYPE_CHECKING:
    from tests.functions.batch_world import World
    from threefold.package import Package


def beside(world: World, key: str, **options: Any) -> None:
    world.s3.put_object(Bucket="inbox", Key=f"{key}.job.json", Body=json.dumps(options).encode())


def test_a_delimiter_that_is_said_is_the_one(world: World) -> None:
    assert world.score("a,z;b\n1,2;3\n")["delimiter"] == ","
    refused = world.job(world.plan("a,z;b\n1,2;3\n", delimiter=";"))
    assert refused["reason"] == "header: want columns ['a'], got columns ['a,z', 'b']"
    beside(world, "small/rows.csv", delimiter=";")
    item = world.score("id,x;a;b\n1,5;2;3\n")
    assert (item["delimiter"], item["options"]) == (";", {"delimiter": ";"})
    (row,) = world.rows(item, delimiter=";")
    assert (row["id,x"], row["threefold_value"]) == ("1,5", "32.0")


def test_a_tab_can_be_said_in_metadata(world: World) -> None:
    item = world.score("a\tb|c\n1\t2\n", delimiter="tab")
    assert (item["delimiter"], item["state"]) == ("\t", "complete")


def test_metadata_win_over_the_file_beside_and_all_of_it_is_on_the_job(world: World) -> None:
    beside(world, "small/rows.csv", note="beside", store=False)
    item = world.score("id,a,b\nk1,1,1\n", note="=?UTF-8?Q?Gr=C3=BC=C3=9Fe?=", mtime="17")
    assert item["options"] == {"note": "Grüße", "store": False}
    assert world.items() == {}
    # The file beside belongs to the jobs that begin while it is there.
    world.s3.delete_object(Bucket="inbox", Key="small/rows.csv.job.json")
    assert world.score("id,a,b\nk1,1,1\n")["options"] == {}
    assert len(world.items()) == 1


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        ({"delimiter": "x"}, "invalid_table", "option 'delimiter': want one of"),
        (
            {"stor": "true"},
            "invalid_table",
            "options: want some of ['delimiter', 'version', 'store', 'note', 'windows'], got 'stor'",
        ),
        ({"version": "9.9.9"}, "unknown_model", "want a version out of ['1.0.0'], got '9.9.9'"),
    ],
)
def test_a_wrong_option_fails_the_job_with_the_reason(
    world: World, options: dict[str, str], code: str, reason: str
) -> None:
    item = world.job(world.plan(TEN, **options))
    assert (item["state"], item["code"]) == ("failed", code)
    assert reason in item["reason"]


def test_what_stands_beside_and_is_no_json_fails_the_job(world: World) -> None:
    for body in (b"{", b"", b"[1]"):
        world.s3.put_object(Bucket="inbox", Key="small/rows.csv.job.json", Body=body)
        item = world.job(world.plan(TEN))
        assert (item["state"], item["reason"][:8]) == ("failed", "options:")


@pytest.mark.parametrize("by", ["label", "digest"])
def test_a_version_that_the_release_names_scores_the_job_alone(
    world: World, small: Package, make_package: Any, graphs: Any, by: str
) -> None:
    newer = make_package(
        graphs.linear([5.0, 5.0]),
        version="2.0.0",
        features=FEATURES,
        output=Output(kind="regression", value="value"),
        key="id",
    )
    world.release(newer, previous=(Version(small.digest, "1.0.0"),))
    job = world.plan("id,a,b\nk1,1,1\nk2,no,1\nshort\n", version="1.0.0" if by == "label" else small.digest)
    # Promoted away in the middle: the job's release named it.
    world.release(newer)
    item = world.run(job)
    assert (item["digest"], item["model_version"], item["state"]) == (small.digest, "1.0.0", "complete")
    rows = world.rows(item)
    assert rows[0]["threefold_value"] == "11.0"
    assert {row["threefold_digest"] for row in rows} == {small.digest}
    assert {row["threefold_role"] for row in rows} == {"previous"}
    refused = world.job(world.plan("id,a,b\nk1,1,1\n", "small/later.csv", version="1.0.0"))
    assert (refused["state"], refused["code"]) == ("failed", "unknown_model")


def test_outcomes_that_are_not_to_be_stored_stand_in_the_result_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks_of(monkeypatch, 60)
    stored = world.score(TEN, "small/stored.csv")
    item = world.score(TEN, "small/not.csv", store="false")
    assert results(world, item)[:2] == results(world, stored)[:2]
    assert results(world, item)[2] == {}
    assert [item[name] for name in ("predicted", "written_items", "state")] == [10, 0, "complete"]


def test_options_hold_from_a_jobs_first_moment_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    event = world.upload("a;b\n1;1\n")
    beside(world, "small/rows.csv", delimiter=";", note="first")
    with monkeypatch.context() as broken:
        broken.setattr(batch, "cut_upload", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.send(event)
    beside(world, "small/rows.csv", delimiter="|", note="second")
    world.send(event)
    item = world.job(Upload.from_event(event["Records"][0]).job)
    assert (item["delimiter"], item["options"]["note"]) == (";", "first")


def test_a_chunk_has_no_more_rows_than_the_settings_say(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREEFOLD_CHUNK_ROWS", "3")
    chunks_of(monkeypatch, 10_000)
    job = world.plan(TEN)
    assert [event["chunk"]["rows"] for event in world.chunk_events(job)] == [3, 3, 3, 1]


def test_an_outcome_too_large_for_the_table_stands_in_the_results_bucket(
    world: World, make_package: Any, graphs: Any
) -> None:
    long = "l" * 400_000
    package = make_package(
        graphs.scorer([long, "blue"]),
        name="colors",
        features=(Feature(name="r", type="float32"), Feature(name="g", type="float32")),
        output=Output(kind="classification", label="label", scores="scores", classes=(long, "blue")),
        key="id",
    )
    world.release(package)
    item = world.score("id,r,g\nk1,0.9,0.1\nk2,0.1,0.9\n", "colors/a.csv")
    assert (item["state"], item["predicted"], item["written_items"]) == ("complete", 2, 2)
    pointer = f"colors/{item['job']}/large/1.json"
    rows = world.rows(item)
    assert [row["threefold_label"] for row in rows] == [pointer, "blue"]
    (large,) = [found for (pk, _), found in world.items().items() if pk == "colors#k1"]
    assert (large["pointer"], large["status"], large["digest"]) == (pointer, "predicted", package.digest)
    assert "label" not in large
    resolved = whole(large, boto3.client("s3"), "results")
    assert (resolved["label"], resolved["id"], resolved["key"]) == (long, f"{item['job']}-1", "k1")
    assert "pointer" not in resolved
    # It is a result, and stays for as long as results do.
    assert world.s3.get_object_tagging(Bucket="results", Key=pointer)["TagSet"] == []
