"""The three doors of a deployed system: the same record, the same answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from threefold_ops import demo
from threefold_ops import target as targets
from threefold_ops.authoring.folder import model_folders
from threefold_ops.doors import Https, Inbox, Queues
from threefold_ops.errors import OperatorError
from threefold_ops.layers import CODE
from threefold_ops.local import emulator
from threefold_ops.paths import EMULATOR_PYTHON
from threefold_ops.system import deploy_system

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.conftest import Local

pytestmark = pytest.mark.system


def test_the_same_records_get_the_same_answers_at_all_three_doors(local: Local, models: Path) -> None:
    said: list[str] = []
    records = demo.run(local.system, local.target, model_folders(models), said.append)
    assert records >= 400
    assert {line.split()[0] for line in said if line[0] != " "} == {"before", "HTTPS", "CSV", "SQS"}


def test_a_broken_csv_decoder_is_noticed(tmp_path: Path, models: Path) -> None:
    """The demonstration must be able to fail: here every second feature is read as its neighbor."""
    import shutil

    code = tmp_path / "threefold"
    shutil.copytree(CODE, code, ignore=shutil.ignore_patterns("__pycache__"))
    features = code / "features.py"
    text = features.read_text()
    broken = text.replace('return _whole(text) if feature.type.startswith("int") else float(text)', "return 1.0")
    broken = broken.replace(
        "        return self._finish_matrix(matrix, lambda i",
        "        matrix[:, 1] = matrix[:, 0]\n        return self._finish_matrix(matrix, lambda i",
    )
    assert broken.count("return 1.0") == 1
    assert broken.count("matrix[:, 1] = matrix[:, 0]") == 1
    features.write_text(broken)
    with emulator.running(tmp_path / "state", EMULATOR_PYTHON, port=0) as found:
        target = targets.emulator(found.endpoint_url)
        system = deploy_system(target, {}, models=models, code=code)
        with pytest.raises(OperatorError, match="csv"):
            demo.run(system, target, [models / "diabetes"], lambda _line: None)


def test_bad_records_at_every_door_end_as_outcomes_and_nothing_is_lost(
    local: Local, models: Path, tmp_path: Path
) -> None:
    good = json.loads((models / "diabetes" / "examples.jsonl").read_text().splitlines()[0])["record"]
    bad: dict[str, Any] = {**good, "age": "old"}
    https = Https(local.system, local.target)
    answer = https.post("/models/diabetes/predictions", {"records": [good, bad]})
    assert answer.status == 200
    assert [prediction["status"] for prediction in answer.json()["predictions"]] == ["predicted", "rejected"]

    queues = Queues(local.system, local.target)
    ids = queues.send([{"model": "diabetes", "record": record} for record in (good, bad)])
    ids += queues.send([{"model": "nobody", "record": good}])
    outcomes = {outcome["id"]: outcome for outcome in queues.receive(ids, timeout_seconds=60)}
    assert outcomes[ids[0]]["prediction"]["status"] == "predicted"
    assert outcomes[ids[1]]["error"]["code"] == "outside_signature"
    assert outcomes[ids[2]]["error"]["code"] == "unknown_model"

    names = [*good]
    table = tmp_path / "two.csv"
    lines = [",".join(names), *(",".join(str(record[name]) for name in names) for record in (good, bad))]
    table.write_text("\n".join(lines) + "\n")
    inbox = Inbox(local.system, local.target)
    identifier = inbox.upload("diabetes", table)
    job = inbox.follow(identifier, timeout_seconds=60, beat=lambda _job: None)
    assert job["state"] == "complete"
    assert (job["predicted"], job["rejected"]) == (1, 1)
    assert b"old" in inbox.result("diabetes", identifier, "rejects.csv")


def test_a_body_that_lambda_does_not_take_is_answered_by_the_gateway(local: Local) -> None:
    answer = Https(local.system, local.target).post("/models/diabetes/predictions", {"records": [" " * 7_000_000]})
    assert answer.status == 413
    assert answer.json() == {"message": "Request Entity Too Large"}


def test_an_upload_for_an_unknown_model_is_a_failed_job_with_its_reason(local: Local, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("a,b\n1,2\n")
    inbox = Inbox(local.system, local.target)
    job = inbox.follow(inbox.upload("nobody", table), timeout_seconds=60, beat=lambda _job: None)
    assert job["state"] == "failed"
    assert "nobody" in job["reason"]
