"""The life of a model: made, checked, published, served, bettered, promoted, and rolled back, with nobody deploying."""

from __future__ import annotations

import csv
import json
import shutil
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from skl2onnx import to_onnx
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from tests.system.conftest import REFRESH_SECONDS
from threefold_ops.doors import Https, Queues

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from subprocess import CompletedProcess

    from tests.system.conftest import Local

    Threefold = Callable[..., CompletedProcess[str]]

pytestmark = pytest.mark.system

NAMES = [name.replace("/", "_") for name in load_wine().feature_names]
# A release is seen within the refresh time and the time to load it; and a second for this machine.
SEEN_SECONDS = REFRESH_SECONDS + 2 + 1


@dataclass(frozen=True, slots=True)
class Cellar:
    """A data scientist's work: three models of the same wines, labelled bottles, and what each model says of them."""

    folder: Path
    records: list[dict[str, Any]]
    said: dict[str, list[int]]

    @property
    def labelled(self) -> Path:
        return self.folder / "labelled.csv"

    @property
    def unlabelled(self) -> Path:
        return self.folder / "unlabelled.csv"


@pytest.fixture(scope="module")
def cellar(tmp_path_factory: pytest.TempPathFactory) -> Cellar:
    folder = tmp_path_factory.mktemp("cellar")
    data = load_wine()
    x, y = data.data.astype(np.float32), data.target
    train, held = train_test_split(np.arange(len(x)), test_size=0.6, random_state=1, stratify=y)
    said = {}
    for name, model, labels in (
        ("middling", DecisionTreeClassifier(max_depth=2, random_state=0), y[train]),
        ("good", make_pipeline(StandardScaler(), LogisticRegression()), y[train]),
        ("useless", DecisionTreeClassifier(max_depth=2, random_state=0), np.roll(np.sort(y[train]), 9)),
    ):
        model.fit(x[train], labels)
        graph = to_onnx(model, x[:1], options={"zipmap": False}, target_opset=18)
        (folder / f"{name}.onnx").write_bytes(graph.SerializeToString())
        said[name] = model.predict(x[held]).tolist()
    rows = [[f"b{i}", *map(str, x[i])] for i in held]
    for name, extra, cells in (("labelled", ["cultivar"], y[held]), ("unlabelled", [], None)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["bottle", *NAMES, *extra])
            writer.writerows([*row, *([] if cells is None else [cells[i]])] for i, row in enumerate(rows))
    records = [{"bottle": f"b{i}", **dict(zip(NAMES, map(float, map(str, x[i])), strict=True))} for i in held]
    return Cellar(folder, records, said)


def make(threefold: Threefold, cellar: Cellar, into: Path, *, name: str, graph: str, label: str) -> Path:
    """A model folder, as `threefold new` makes it."""
    made = threefold(
        *("new", name, "--from", cellar.folder / f"{graph}.onnx", "--version", label, "--into", into),
        *("--data", cellar.labelled, "--target", "cultivar", "--key", "bottle"),
    )
    assert "model.yaml" in made.stdout
    return into / name


def ask(https: Https, name: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answer = https.post(f"/models/{name}/predictions", {"records": records})
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


def wait_for(version: str, look: Callable[[], str], since: float) -> None:
    """See a door answer with a version in time after its promotion."""
    while (got := look()) != version:
        assert time.monotonic() - since < SEEN_SECONDS, f"want {version} after {SEEN_SECONDS} s, got {got}"
        time.sleep(0.2)


def test_the_life_of_a_model(threefold: Threefold, local: Local, cellar: Cellar, tmp_path: Path) -> None:
    https = Https(local.system, local.target)
    first = make(threefold, cellar, tmp_path / "first", name="cellar", graph="middling", label="1.0.0")
    threefold("check", first)
    assert "cellar 1.0.0" in threefold("publish", first).stdout

    # The same record gets the same answer at every door, and it is the training library's.
    https_labels = [found["label"] for found in ask(https, "cellar", cellar.records)]
    assert https_labels == cellar.said["middling"]
    threefold("submit", cellar.unlabelled, "--model", "cellar", "-o", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        assert [int(row["threefold_label"]) for row in csv.DictReader(file)] == https_labels
    sent = [json.loads(text) for text in _documents(threefold("send", "cellar", cellar.unlabelled).stdout)]
    assert {found["key"]: found["prediction"]["label"] for found in sent} == {
        record["bottle"]: label for record, label in zip(cellar.records, https_labels, strict=True)
    }

    # A better one waits until it is promoted.
    second = make(threefold, cellar, tmp_path / "second", name="cellar", graph="good", label="1.1.0")
    assert "promote cellar 1.1.0" in threefold("publish", second).stdout
    assert {found["version"] for found in ask(https, "cellar", cellar.records[:3])} == {"1.0.0"}
    compared = json.loads(threefold("compare", "cellar", "cellar@1.1.0", "--data", cellar.unlabelled, "--json").stdout)
    flips = sum(a != b for a, b in zip(cellar.said["middling"], cellar.said["good"], strict=True))
    assert flips > 0
    assert f'"flips": {flips}' in json.dumps(compared)
    refused = threefold("compare", "cellar", "cellar@1.1.0", "--data", cellar.unlabelled, "--max-flips", "0", code=3)
    assert "flips" in refused.stderr
    threefold("promote", "cellar", "1.1.0", "--why", "fewer errors", "--by", "ana")
    since = time.monotonic()
    wait_for("1.1.0", lambda: ask(https, "cellar", cellar.records[:1])[0]["version"], since)
    wait_for("1.1.0", lambda: _stream_version(local, cellar), since)
    assert [found["label"] for found in ask(https, "cellar", cellar.records)] == cellar.said["good"]
    job = json.loads(threefold("submit", cellar.unlabelled, "--model", "cellar", "--json").stdout)
    assert job["model_version"] == "1.1.0"

    # A worse one is refused by the gate that the folder carries, before anybody is asked.
    third = tmp_path / "third" / "cellar"
    worse = make(threefold, cellar, tmp_path / "worse", name="cellar", graph="useless", label="1.2.0")
    shutil.copytree(second, third)
    shutil.copy(worse / "model.onnx", third)
    shutil.copy(worse / "examples.jsonl", third)
    (third / "model.yaml").write_text((second / "model.yaml").read_text().replace("version: 1.1.0", "version: 1.2.0"))
    for verb in ("check", "publish"):
        said = threefold(verb, third, code=1)
        assert "accuracy: want within" in said.stdout + said.stderr
    unknown = threefold("promote", "cellar", "1.2.0", code=1)
    assert "1.2.0" in unknown.stderr

    threefold("rollback", "cellar", "--why", "the merchants complain", "--by", "ben")
    since = time.monotonic()
    wait_for("1.0.0", lambda: ask(https, "cellar", cellar.records[:1])[0]["version"], since)
    wait_for("1.0.0", lambda: _stream_version(local, cellar), since)
    assert [found["label"] for found in ask(https, "cellar", cellar.records)] == cellar.said["middling"]
    told = json.loads(threefold("history", "cellar", "--json").stdout)
    assert [(entry["release"]["by"], entry["release"]["why"]) for entry in told[:2]] == [
        ("ben", "the merchants complain"),
        ("ana", "fewer errors"),
    ]
    assert len(told) == 3
    about = https.get("/models/cellar").json()
    assert (about["version"], about["release"]["why"]) == ("1.0.0", "the merchants complain")


def test_a_promotion_under_load_fails_no_request_and_mixes_no_answers(
    threefold: Threefold, local: Local, cellar: Cellar, tmp_path: Path
) -> None:
    for graph, label in (("middling", "1.0.0"), ("good", "1.1.0")):
        threefold("publish", make(threefold, cellar, tmp_path / graph, name="busy", graph=graph, label=label))
    expected = {"1.0.0": cellar.said["middling"], "1.1.0": cellar.said["good"]}
    https, stop, seen, wrong = Https(local.system, local.target), threading.Event(), [], []
    ask(https, "busy", cellar.records[:1])

    def load() -> None:
        caller = Https(local.system, local.target)
        while not stop.is_set():
            answer = caller.post("/models/busy/predictions", {"records": cellar.records})
            if answer.status != 200:
                wrong.append(answer.body)
                continue
            found = answer.json()["predictions"]
            versions = {one["version"] for one in found}
            seen.append(versions.pop())
            if versions or [one["label"] for one in found] != expected[seen[-1]]:
                wrong.append(found[0])

    callers = [threading.Thread(target=load) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        for act in (("promote", "busy", "1.1.0"), ("rollback", "busy")):
            threefold(*act)
            time.sleep(SEEN_SECONDS)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert not wrong
    assert set(seen) == {"1.0.0", "1.1.0"}
    assert seen[-1] == "1.0.0"


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(
    threefold: Threefold, local: Local, cellar: Cellar, tmp_path: Path
) -> None:
    for graph, label in (("middling", "1.0.0"), ("good", "1.1.0"), ("good", "1.1.1")):
        threefold("publish", make(threefold, cellar, tmp_path / label, name="contested", graph=graph, label=label))
    done = {}

    def act(label: str) -> None:
        done[label] = threefold("promote", "contested", label, "--why", f"mine {label}", code=None)

    acts = [threading.Thread(target=act, args=(label,)) for label in ("1.1.0", "1.1.1")]
    for one in acts:
        one.start()
    for one in acts:
        one.join()
    champion = json.loads(threefold("show", "contested", "--json").stdout)["release"]["champion"]["version"]
    # At the same time, or one after the other: whoever was told of success is the champion or was it.
    won = {label for label, one in done.items() if one.returncode == 0}
    assert champion in won
    for label, one in done.items():
        if label not in won:
            assert f"champion {champion} by" in one.stderr
            assert f"mine {champion}" in one.stderr


def _stream_version(local: Local, cellar: Cellar) -> str:
    queues = Queues(local.system, local.target)
    ids = queues.send([{"model": "cellar", "record": cellar.records[0]}])
    found = next(iter(queues.receive(ids, timeout_seconds=20)))
    version: str = found["prediction"]["version"]
    return version


def _documents(text: str) -> list[str]:
    """JSON documents one after the other."""
    found, decoder, rest = [], json.JSONDecoder(), text.strip()
    while rest:
        _, end = decoder.raw_decode(rest)
        found.append(rest[:end])
        rest = rest[end:].strip()
    return found


def test_what_people_write_is_told_as_they_wrote_it(threefold: Threefold) -> None:
    why = "door [/ready] said 503 [urgent], see [n, 1] :warning:"
    threefold("configure", "digits", "options=4", "--why", why, "--by", "renovate[bot]")
    try:
        for told in (threefold("history", "digits").stdout, threefold("show", "digits").stdout):
            assert why in told
            assert "renovate[bot]" in told
        assert "renovate[bot]" in threefold("models").stdout
    finally:
        threefold("configure", "digits", "options=3")


def test_one_release_that_cannot_be_read_leaves_the_other_models_alone(threefold: Threefold, local: Local) -> None:
    s3, bucket = local.target.client("s3"), local.system.model_bucket
    s3.put_object(Bucket=bucket, Key="releases/odd.json", Body=b'{"schema": 2}')
    try:
        for verb in (("models",), ("models", "--json"), ("status",)):
            said = threefold(*verb).stdout
            assert "upgrade Threefold" in said
            assert "diabetes" in said
        threefold("gc")
    finally:
        s3.delete_object(Bucket=bucket, Key="releases/odd.json")
