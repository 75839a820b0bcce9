"""The `threefold` command as an operator runs it: in processes of its own, against a local system of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.conftest import Local

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
THREEFOLD = Path(sys.executable).parent / "threefold"
STATUS = {
    *("api_url", "endpoint_url", "region", "model_bucket", "inbox_bucket", "results_bucket", "requests_queue_url"),
    *("predictions_queue_url", "dead_letter_queue_url", "lost_uploads_queue_url", "state_machine_arn"),
    *("predictions_table", "jobs_table", "features_table", "models"),
}


def command(state: Path, *words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a verb."""
    environment = {**os.environ, "THREEFOLD_STATE": str(state), "COLUMNS": "200"}
    return subprocess.run(
        [THREEFOLD, *words],
        cwd=ROOT,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def detached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A system that `threefold up --detach` started, and what that printed."""
    state = tmp_path_factory.mktemp("detached")
    done = command(state, "up", "--detach", "--port", "0")
    try:
        assert done.returncode == 0, done.stderr
        yield state, done.stdout
    finally:
        command(state, "down")


def test_up_prints_commands_that_work_as_pasted(detached: tuple[Path, str]) -> None:
    state, said = detached
    lines = [line.strip() for line in said.splitlines() if line.startswith("  ")]
    curl = next(line for line in lines if line.startswith("curl"))
    answer = subprocess.run(shlex.split(curl), capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(answer.stdout)["predictions"][0]["status"] == "predicted"
    ours = [shlex.split(line)[1:] for line in lines if "threefold " in line.partition("'")[0]]
    assert [words[0] for words in ours] == ["predict", "submit", "send"]
    for words in ours:
        placed = [str(state / "out.csv") if word == "predictions.csv" else word for word in words]
        done = command(state, *placed)
        assert done.returncode == 0, done.stderr
    assert len((state / "out.csv").read_text().splitlines()) == 101


def test_status_tells_programs_where_everything_is(detached: tuple[Path, str]) -> None:
    state, _ = detached
    found = json.loads(command(state, "status", "--json").stdout)
    assert set(found) == STATUS
    assert {model["name"] for model in found["models"]} == {
        *("breast-cancer", "card-fraud", "diabetes", "digit-pairs", "digits")
    }
    assert command(state, "status", "api_url").stdout.strip() == found["api_url"]


def test_a_second_up_says_that_one_is_running(detached: tuple[Path, str]) -> None:
    state, _ = detached
    done = command(state, "up", "--detach", "--port", "0")
    assert done.returncode == 1
    assert re.fullmatch(r"threefold: .*already running.*threefold down.*\n", done.stderr)


def test_a_port_that_is_taken_gives_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command(tmp_path, "up", "--detach", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(port) in done.stderr
    assert "--port" in done.stderr
    assert not (tmp_path / "local.json").exists()


def test_commands_without_a_local_system_say_how_to_get_one(tmp_path: Path) -> None:
    done = command(tmp_path, "status")
    assert done.returncode == 1
    assert "threefold up" in done.stderr
    assert "--aws" in done.stderr


def test_down_stops_all_that_up_started(tmp_path: Path) -> None:
    assert command(tmp_path, "up", "--detach", "--port", "0").returncode == 0
    url = command(tmp_path, "status", "endpoint_url").stdout.strip()
    assert command(tmp_path, "down").returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5)
    again = command(tmp_path, "down")
    assert again.returncode == 1
    assert "no local system" in again.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_all_that_up_started_and_leaves_no_folder_behind(number: signal.Signals, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "THREEFOLD_STATE": str(tmp_path / "state"), "TMPDIR": str(scratch), "COLUMNS": "200"}
    with subprocess.Popen(
        [THREEFOLD, "up", "--port", "0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            said = ""
            for line in process.stdout:
                said += line
                if "Ctrl-C" in line:
                    break
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", said).group(1))  # type: ignore[union-attr]
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            process.send_signal(number)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert list(scratch.iterdir()) == []


def test_predict_reads_records_from_a_file_from_stdin_and_from_its_argument(local: Local, tmp_path: Path) -> None:
    record = json.loads((ROOT / "models" / "diabetes" / "examples.jsonl").read_text().splitlines()[0])["record"]
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record))
    answers = [
        command(local.state, "predict", "diabetes", json.dumps(record)),
        command(local.state, "predict", "diabetes", f"@{file}"),
        command(local.state, "predict", "diabetes", "-", text=json.dumps([record])),
    ]
    values = {json.loads(answer.stdout)["predictions"][0]["value"] for answer in answers}
    assert len(values) == 1


def test_predict_fails_with_what_the_door_says(local: Local) -> None:
    done = command(local.state, "predict", "nobody", "{}")
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == "unknown_model"


def test_publish_says_all_that_is_wrong_with_a_folder_by_line(local: Local, tmp_path: Path) -> None:
    folder = tmp_path / "wine"
    folder.mkdir()
    (folder / "model.yaml").write_text("schema: 1\nname: Wine!\nversion: 1.0.0\noutput: {kind: guess}\nfoo: 1\n")
    done = command(local.state, "publish", str(folder))
    assert done.returncode == 1
    for line, word in ((2, "name"), (4, "kind"), (5, "foo")):
        assert re.search(rf"model\.yaml:{line}: .*{word}", done.stderr)


def test_a_changed_model_is_published_beside_the_champion(local: Local, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "diabetes"
    shutil.copytree(ROOT / "models" / "diabetes", folder)
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(text.replace("version: 1.0.0", "version: 1.0.1"))
    (one,) = json.loads(command(local.state, "publish", str(folder), "--json").stdout)
    assert (one["new"], one["champion"]) == (True, False)
    (again,) = json.loads(command(local.state, "publish", str(folder), "--json").stdout)
    assert (again["new"], again["digest"]) == (False, one["digest"])


def test_deploy_plans_without_an_account(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    done = subprocess.run(
        [THREEFOLD, "deploy", "--plan", "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    resources = json.loads(done.stdout)
    kinds = [resource["type"] for resource in resources]
    assert kinds.count("AWS::Lambda::Function") == 5
    assert {"AWS::ApiGatewayV2::Api", "AWS::StepFunctions::StateMachine", "AWS::SQS::Queue"} <= set(kinds)


def test_every_event_can_be_replayed_against_the_functions(local: Local) -> None:
    cases = [path for path in sorted((ROOT / "events").glob("*/*.json")) if not path.stem.endswith(".expected")]
    assert {path.parent.name for path in cases} == {"predict", "batch", "stream", "monitor", "api"}
    try:
        for path in cases:
            if path.parent.name == "batch":
                continue  # A chunk's event names a job of its own making; the functions' tests replay these.
            done = command(local.state, "invoke", f"{path.parent.name}/{path.stem}")
            assert done.returncode == 0, f"{path}: {done.stdout}{done.stderr}"
    finally:
        # Nobody waits for these outcomes.
        local.target.client("sqs").purge_queue(QueueUrl=local.system.predictions_queue_url)


def test_a_file_that_the_inbox_would_not_notice_is_refused(local: Local, tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("a\n1\n")
    done = command(local.state, "submit", str(file), "--model", "diabetes")
    assert done.returncode == 1
    assert ".csv.gz" in done.stderr
