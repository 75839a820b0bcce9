"""The batch door disturbed while real processes work: whatever happens, each row comes to what it comes to."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.long.batch_door import FUNCTION, MODEL, Door, Results, Rows, open_door
from threefold.errors import WrongState
from threefold.jobs import JobState
from threefold.release import Version
from threefold_ops.registry.publish import publish
from threefold_ops.system import open_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COUNT: Final = 30_000
KILLS: Final = 10
# Several dozen chunks, each of which takes about a second at the table's pace.
CONTEXT: Final = {"chunkBytes": "102400", "chunkRows": "1000", "writeBudget": "2000", "refreshSeconds": "1"}
# A process that is younger may not have begun with a chunk.
YOUNG_SECONDS: Final = 3.0


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("faults"), models, CONTEXT) as found:
        yield found


@pytest.fixture(autouse=True)
def _emptied(door: Door) -> Iterator[None]:
    yield
    door.clear()


@pytest.fixture(scope="module")
def rows(make_rows: Callable[[int, int], Rows]) -> Rows:
    """Records of every kind: plain, with a default, out of range, no number, of another form, quoted."""
    made = make_rows(4, 997)
    for i, text in enumerate(made.texts):
        cells = text.split(b",")
        if i % 41 == 7:
            cells[4] = b""
        if i % 53 == 8:
            cells[0] = b"-1000"
        if i % 59 == 9:
            cells[1] = b'"two\nlines"'
        if i % 61 == 10:
            cells = cells[:-1]
        if i % 67 == 11:
            cells[2] = b'"%s"' % cells[2]
        made.texts[i] = b",".join(cells)
    return made


@pytest.fixture(scope="module")
def undisturbed(door: Door, rows: Rows) -> Results:
    item = door.score("undisturbed.csv", rows.file(COUNT))
    assert item["state"] == JobState.COMPLETE
    assert item["chunks"] >= 36
    assert item["rejected"] > COUNT // 50
    results = door.results(item)
    assert sorted(results.table) == list(range(1, COUNT + 1))
    assert [len(scores) for scores in results.scores] == [item["predicted"]] * 2
    return results


def lost(door: Door, job: str) -> int:
    """How many attempts at a job's chunks had to be made again."""
    items = door.chunks.of(job)
    return sum(int(item["attempts"]) for item in items.values()) - len(items)


def test_workers_killed_ten_times_over_leave_the_table_and_files_of_an_undisturbed_run(
    door: Door, rows: Rows, undisturbed: Results, tell: Callable[[str], None]
) -> None:
    dice = random.Random(20261121)
    job = door.put("killed.csv", rows.file(COUNT)).job
    door.wait(job, lambda item: item["state"] == JobState.RUNNING)
    kills, born = 0, dict.fromkeys(door.environments(), 0.0)
    while lost(door, job) < KILLS:
        assert door.jobs.find(job)["state"] == JobState.RUNNING, f"it ended after {kills} kills"  # type: ignore[index]
        time.sleep(dice.uniform(0.05, 0.8))
        now = time.monotonic()
        born = {pid: born.get(pid, now) for pid in door.environments()}
        grown = [pid for pid, since in born.items() if now > since + YOUNG_SECONDS]
        # A chunk is given up after its third failure: no dice may bring that about.
        spared = any("attempt" not in item and item["attempts"] > 1 for item in door.chunks.of(job).values())
        if grown and not spared:
            kills += door.kill(dice.choice(grown))
    item = door.follow(job)
    assert item["state"] == JobState.COMPLETE, item["reason"]
    door.results(item).check_same(undisturbed)
    tell(f"{kills} workers killed, {lost(door, job)} attempts lost, {item['chunks']} chunks, {item['seconds']:.0f} s")


def test_a_job_cancelled_and_resumed_leaves_what_an_undisturbed_run_leaves(
    door: Door, rows: Rows, undisturbed: Results
) -> None:
    job = door.put("resumed.csv", rows.file(COUNT)).job
    door.begun(job)
    with pytest.raises(WrongState, match="running"):
        door.control.resume(job)
    assert door.control.cancel(job)["state"] == JobState.CANCELLED
    stopped = door.follow(job)
    assert 0 < stopped["predicted"] + stopped["rejected"] < COUNT
    done = {part: item["attempts"] for part, item in door.chunks.of(job).items() if "attempt" in item}
    assert door.control.resume(job)["state"] == JobState.RUNNING
    item = door.wait(job, lambda item: item["state"] == JobState.COMPLETE)
    assert sorted(door.executions(job)) == [job, f"{job}-1"]
    door.results(item).check_same(undisturbed)
    # What was done was not done again.
    after = door.chunks.of(job)
    assert done == {part: after[part]["attempts"] for part in done}
    with pytest.raises(WrongState, match="complete"):
        door.control.resume(job)


def test_events_that_come_again_and_out_of_order_are_one_job_each(door: Door, rows: Rows, undisturbed: Results) -> None:
    # A name that S3 tells nothing of: here all events come from us.
    older, newer = (door.put("events.data", rows.file(count)) for count in (700, COUNT))
    client = door.target.client("lambda")

    def send(upload: Any) -> None:
        answer = client.invoke(FunctionName=FUNCTION, Qualifier="live", Payload=json.dumps(door.event(upload)).encode())
        assert "FunctionError" not in answer, answer["Payload"].read()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(send, [newer, newer, older, newer, older, older]))
    door.begun(newer.job)
    send(newer)
    items = [door.follow(upload.job) for upload in (newer, older)]
    for upload in (older, newer, newer):
        send(upload)
    assert [item["state"] for item in items] == [JobState.COMPLETE] * 2
    assert [item["rows"] for item in items] == [COUNT, 700]
    assert [door.executions(item["job"]) for item in items] == [[item["job"]] for item in items]
    assert [door.jobs.find(item["job"]) for item in items] == items
    door.results(items[0]).check_same(undisturbed)
    assert items[0]["written_items"] == COUNT
    known = [item["job"] for item in door.jobs.list(MODEL, limit=100)]
    assert [known.count(item["job"]) for item in items] == [1, 1]


def test_a_promotion_and_a_new_version_of_the_file_change_nothing_in_a_job_that_runs(
    door: Door, rows: Rows, undisturbed: Results, models: Path, tmp_path: Path
) -> None:
    upload = door.put("overwritten.csv", rows.file(COUNT))
    job, folder = upload.job, tmp_path / MODEL
    shutil.copytree(models / MODEL, folder)
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(text.replace("version: 1.0.0", "version: 1.0.1"))
    registry = open_registry(door.target, door.system.model_bucket, tmp_path / "packages")
    before = registry.release(MODEL).release.champion
    door.begun(job)
    published = publish(registry, folder)
    promoted = Version(published.digest, published.version)
    registry.change(MODEL, lambda release: release.promoted(promoted, at="", by="test", why="test"))
    try:
        time.sleep(float(CONTEXT["refreshSeconds"]))
        other = door.put("overwritten.csv", rows.file(500))
        assert door.jobs.find(job)["state"] == JobState.RUNNING  # type: ignore[index]
        items = [door.follow(job), door.follow(other.job)]
    finally:
        registry.change(MODEL, lambda release: release.promoted(before, at="", by="test", why="test"))
    assert [item["rows"] for item in items] == [COUNT, 500]
    assert [item["model_version"] for item in items] == ["1.0.0", "1.0.1"]
    door.results(items[0]).check_same(undisturbed)
    answers = csv.DictReader(io.StringIO(door.text(items[1]).decode(), newline=""))
    assert {row["threefold_model_version"] for row in answers} == {"1.0.1"}


def test_gzip_comes_to_what_plain_text_comes_to(door: Door, rows: Rows, undisturbed: Results) -> None:
    item = door.score("packed.csv.gz", gzip.compress(rows.file(COUNT), 1))
    door.results(item).check_same(undisturbed)


def test_a_file_of_bad_rows_alone_is_a_complete_job(door: Door, rows: Rows) -> None:
    bad = replace(rows, texts=[b"x" + text for text in rows.texts])
    item = door.score("bad.csv", bad.file(2_000))
    assert (item["state"], item["rows"], item["predicted"], item["rejected"]) == (JobState.COMPLETE, 2_000, 0, 2_000)
    rejects = list(csv.DictReader(io.StringIO(door.text(item, "rejects").decode(), newline="")))
    assert [int(row["row"]) for row in rejects] == list(range(1, 2_001))
    assert {stored["status"] for stored in door.table(item).values()} == {"rejected"}


def test_each_row_of_one_key_has_its_own_outcome(door: Door, rows: Rows) -> None:
    texts = [text for text in rows.texts if b'"' not in text][:500]
    body = rows.head + b"".join(b"same,%s\n" % text for text in texts)
    item = door.score("same.csv", body)
    assert item["state"] == JobState.COMPLETE
    stored = door.table(item)
    assert sorted(stored) == list(range(1, 501))
    assert {values["pk"] for row, values in stored.items() if values["status"] == "predicted"} == {f"{MODEL}#same"}
    found = list(csv.DictReader(io.StringIO(door.text(item).decode(), newline="")))
    assert [row["threefold_label"] or None for row in found] == [stored[row].get("label") for row in range(1, 501)]
