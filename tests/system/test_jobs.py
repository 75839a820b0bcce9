"""A job from the command line, in a process of its own: handed in, looked at, stopped, taken up again, fetched."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.test_cli import ROOT, THREEFOLD, command

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.conftest import Local

pytestmark = pytest.mark.system

HELD_OUT = ROOT / "models" / "diabetes" / "held-out.csv"
# At the pace that the predictions table sets, however fast the machine is: 500 a second and worker, by default.
ROWS = 8_000


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def job_of(local: Local, identifier: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command(local.state, "job", identifier, "--json").stdout)
    return found


def wait_for(local: Local, identifier: str, wanted: str) -> dict[str, Any]:
    for _ in range(120):
        done = command(local.state, "job", identifier, "--json")
        if done.returncode == 0 and json.loads(done.stdout)["state"] == wanted:
            found: dict[str, Any] = json.loads(done.stdout)
            return found
        time.sleep(0.5)
    raise AssertionError(done.stdout + done.stderr)


def test_a_job_that_was_waited_for_leaves_its_results_packed_if_so_named(local: Local, tmp_path: Path) -> None:
    plain, packed = tmp_path / "out.csv", tmp_path / "out.csv.gz"
    for path in (plain, packed):
        done = command(local.state, "submit", str(HELD_OUT), "--model", "diabetes", "-o", str(path))
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith(": complete")
        assert "None" not in done.stderr
    assert len(rows_of(plain)) == 100
    assert len(gzip.decompress(packed.read_bytes()).splitlines()) == 101


def test_a_job_that_was_not_waited_for_is_found_and_fetched_later(local: Local, tmp_path: Path) -> None:
    table = tmp_path / "two.csv"
    head, first, second = HELD_OUT.read_text().splitlines()[:3]
    table.write_text("\n".join([head, first.replace(",52,", ",old,"), second, ""]))
    done = command(local.state, "submit", str(table), "--model", "diabetes", "--no-wait", "--note", "für später")
    assert done.returncode == 0, done.stderr
    identifier = done.stdout.split()[1]
    wait_for(local, identifier[:10], "complete")
    listed = command(local.state, "jobs", "diabetes", "--limit", "1").stdout
    assert identifier[:12] in listed
    assert "für später, 2 rows, 1 rejected" in listed
    assert json.loads(command(local.state, "jobs", "--json").stdout)[0]["job"] == identifier
    told = command(local.state, "job", identifier[:10]).stdout
    assert "2 of 2: 1 predicted, 0 abstained, 0 held, 1 rejected" in told
    assert "None" not in told
    out, rejects = tmp_path / "out.csv", tmp_path / "rejects.csv"
    done = command(local.state, "results", identifier[:10], "-o", str(out), "--rejects", str(rejects))
    assert done.returncode == 0, done.stderr
    assert [row["threefold_status"] for row in rows_of(out)] == ["rejected", "predicted"]
    assert len(rows_of(rejects)) == 1


def test_options_reach_the_job(local: Local, tmp_path: Path) -> None:
    table, out = tmp_path / "semicolons.csv", tmp_path / "out.csv"
    lines = HELD_OUT.read_text().splitlines()[:4]
    table.write_text("\n".join(line.replace(",", ";") for line in lines) + "\n")
    words = ["--delimiter", ";", "--version", "1.0.0", "--no-store", "--json", "-o", str(out)]
    done = command(local.state, "submit", str(table), "--model", "diabetes", *words)
    assert done.returncode == 0, done.stderr + done.stdout
    job = json.loads(done.stdout)
    assert job["options"] == {"delimiter": ";", "version": "1.0.0", "store": False}
    assert (job["rows"], job["predicted"], job["written_items"]) == (3, 3, 0)
    assert len(out.read_text().splitlines()) == 4


def test_a_job_that_failed_says_why_and_is_no_success(local: Local) -> None:
    done = command(local.state, "submit", str(HELD_OUT), "--model", "diabetes", "--version", "9.9.9")
    assert done.returncode == 1
    assert "failed: " in done.stdout
    assert "9.9.9" in done.stdout
    identifier = done.stdout.split()[1].rstrip(":")
    assert "9.9.9" in job_of(local, identifier)["reason"]
    for verb, said in (("results", "want one with results"), ("resume", "upload it again"), ("cancel", "got one that")):
        refused = command(local.state, verb, identifier, *(["-o", "none.csv"] if verb == "results" else []))
        assert (refused.returncode, refused.stdout) == (1, ""), verb
        assert said in refused.stderr
    assert command(local.state, "job", "0" * 32).returncode == 1


def test_a_job_is_cancelled_midway_and_resumed_to_the_same_end(local: Local, tmp_path: Path) -> None:
    table, out = tmp_path / "large.csv", tmp_path / "out.csv"
    head, *lines = HELD_OUT.read_text().splitlines()
    with table.open("w") as file:
        file.write(head + "\n")
        for i in range(ROWS):
            _, _, rest = lines[i % len(lines)].partition(",")
            file.write(f"patient-{i},{rest}\n")
    environment = {**os.environ, "THREEFOLD_STATE": str(local.state), "COLUMNS": "200"}
    words = [THREEFOLD, "submit", table, "--model", "diabetes"]
    with subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell has what it starts in the background ignore it, and that is handed down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - this test has one thread
    ) as following:
        identifier = ""
        try:
            for _ in range(240):
                found = json.loads(command(local.state, "jobs", "diabetes", "--limit", "1", "--json").stdout)
                newest = found[0] if found else {"key": "", "state": "none"}
                if newest["key"] == "diabetes/large.csv" and newest["state"] != "planned":
                    identifier = newest["job"]
                    break
            assert newest["state"] == "running"
            following.send_signal(signal.SIGINT)
            said = following.communicate(timeout=60)[1]
        finally:
            following.kill()
    assert following.returncode == 130
    assert f"stopped following; job {identifier} goes on" in said
    done = command(local.state, "cancel", identifier[:8])
    assert done.stdout == f"job {identifier}: cancelled\n", done.stderr
    stopped = job_of(local, identifier)
    done_rows = sum(stopped[name] for name in ("predicted", "abstained", "rejected"))
    assert done_rows < ROWS
    again = command(local.state, "resume", identifier[:8], "--wait", "--json")
    assert again.returncode == 0, again.stderr + again.stdout
    job = json.loads(again.stdout)
    assert (job["state"], job["predicted"], job["resumes"]) == ("complete", ROWS, 1)
    assert command(local.state, "results", identifier, "-o", str(out)).returncode == 0
    assert [row["patient_id"] for row in rows_of(out)] == [f"patient-{i}" for i in range(ROWS)]


def test_an_upload_that_was_lost_is_told_and_planned_when_it_is_redriven(local: Local) -> None:
    # A name that S3 tells nobody of: no other event makes a job of it.
    bucket, key = local.system.inbox_bucket, "diabetes/lost one.txt"
    put = local.target.client("s3").put_object(Bucket=bucket, Key=key, Body=HELD_OUT.read_bytes())
    record = {
        "eventName": "ObjectCreated:Put",
        "eventTime": "2026-01-01T00:00:00.000Z",
        "s3": {
            "bucket": {"name": bucket},
            "object": {"key": "diabetes/lost+one.txt", "versionId": put["VersionId"], "size": 1, "sequencer": "0"},
        },
    }
    given_up = {
        "timestamp": "2026-01-01T00:05:00.000Z",
        "requestContext": {"condition": "RetriesExhausted"},
        "requestPayload": {"Records": [record]},
        "responsePayload": {"errorType": "StorageUnavailable", "errorMessage": "plan: want AWS to answer"},
    }
    queue = {"QueueUrl": local.system.lost_uploads_queue_url}
    local.target.client("sqs").send_message(**queue, MessageBody=json.dumps(given_up))
    told = command(local.state, "lost")
    assert (
        told.stdout == "2026-01-01T00:05:00.000Z  diabetes/lost one.txt: StorageUnavailable: plan: want AWS to answer\n"
    )
    assert "(sent again)" in command(local.state, "lost", "--redrive").stdout
    assert json.loads(command(local.state, "lost", "--json").stdout) == []
    for _ in range(60):
        newest = json.loads(command(local.state, "jobs", "diabetes", "--limit", "1", "--json").stdout)[0]
        if newest["key"] == key and newest["state"] == "complete":
            return
    raise AssertionError(newest)
