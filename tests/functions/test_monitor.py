"""The monitor against a registry: what it notices, what it goes back to, and what it leaves alone."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import boto3
import pytest

from threefold import gate
from threefold.errors import Malformed, RegistryUnreachable
from threefold.package import MANIFEST, Output, digest_of, open_package
from threefold.package_store import PackageStore
from threefold.registry import Registry
from threefold.release import Challenger, Release, Version
from threefold.signature import Feature

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import ModuleType

    from tests.conftest import Graphs, PackageMaker
    from tests.functions.conftest import Shelf
    from threefold.model import Model
    from threefold.package import Package

FEATURES: Final = (Feature(name="a", type="float32"),)
VALUE: Final = Output(kind="regression", value="value")
ROLLBACK: Final = {"rollback_on_failure": True}


class World:
    """Published versions of models `line`, value = a + bias, and the monitor of their registry."""

    def __init__(self, shelf: Shelf, make: Callable[..., Package], load: Callable[..., ModuleType]) -> None:
        self.shelf, self.make = shelf, make
        self.s3 = boto3.client("s3")
        self.monitor = load("monitor", THREEFOLD_MODEL_BUCKET=shelf.bucket)

    def publish(self, version: str, **fields: Any) -> Package:
        package = self.make(version, **fields)
        self.shelf.registry.packages.publish(package)
        return package

    def release(
        self, champion: Package, *previous: Package, challenger: Package | None = None, serving: Any = ROLLBACK
    ) -> None:
        trial = challenger and Challenger(
            challenger.digest, challenger.manifest.version, mode="shadow", percent=0, salt=""
        )
        before = tuple(Version(package.digest, package.manifest.version) for package in previous)
        self.shelf.release(champion, previous=before, challenger=trial, serving=serving)

    def damage(self, package: Package, content: bytes = b"no zip") -> None:
        key = f"packages/{package.manifest.name}/{package.digest}.zip"
        self.s3.put_object(Bucket=self.shelf.bucket, Key=key, Body=content)

    def run(self, event: Any = None, milliseconds: int = 600_000) -> dict[str, Any]:
        context = SimpleNamespace(get_remaining_time_in_millis=lambda: milliseconds)
        found: dict[str, Any] = json.loads(json.dumps(self.monitor.handler(event, context), allow_nan=False))
        return found

    def only(self, event: Any = None) -> dict[str, Any]:
        found = self.run(event)
        assert found["left"] == []
        (model,) = found["models"]
        return dict(model)

    def serves(self, model: str = "line") -> Release:
        found = self.shelf.registry.current(model)
        assert found is not None
        return found[0]


@pytest.fixture
def make(graphs: Graphs, make_package: PackageMaker) -> Callable[..., Package]:
    def make(version: str, *, name: str = "line", says: float = 3, rows: Sequence[str] = (), **fields: Any) -> Package:
        """A package; with `rows`, a confidence set whose mean absolute error may be 1."""
        bias = float(version.replace(".", "")) / 1000
        package = make_package(
            graphs.linear([1], bias),
            name=name,
            version=version,
            features=FEATURES,
            output=VALUE,
            examples=[{"record": {"a": a}, "expect": {"value": a + bias + says - 3}} for a in (1, 2, 3)],
        )
        folder, manifest = package.folder, package.manifest
        found = replace(manifest.gate, **fields)
        if rows:
            (folder / "confidence.csv").write_text("a,value\n" + "".join(f"{row}\n" for row in rows))
            found = replace(found, confidence="confidence.csv", metric="mae", acceptable=(0.0, 1.0))
        (folder / MANIFEST).write_text(json.dumps(replace(manifest, gate=found).to_json()))
        return open_package(folder, digest_of(folder))

    return make


@pytest.fixture
def world(shelf: Shelf, make: Callable[..., Package], load: Callable[..., ModuleType]) -> World:
    return World(shelf, make, load)


def metrics(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]


def test_a_model_that_passes_is_told_with_its_figures_and_left_as_it_is(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    champion, challenger, before = (
        world.publish("1.2.0", rows=["1,1", "2,3"]),
        world.publish("1.3.0"),
        world.publish("1.1.0"),
    )
    world.release(champion, before, challenger=challenger)
    was = world.serves()
    found = world.only()
    assert (found["model"], found["champion"], found["passed"], found["rolled_back_to"]) == (
        "line",
        "1.2.0",
        True,
        None,
    )
    assert [(one["role"], one["version"], one["passed"]) for one in found["packages"]] == [
        ("champion", "1.2.0", True),
        ("challenger", "1.3.0", True),
        ("previous", "1.1.0", True),
    ]
    first = found["packages"][0]
    assert first["value"] == pytest.approx((0.12 + 0.88) / 2, abs=1e-5)
    assert (first["findings"], first["digest"], first["slow"]) == ([], champion.digest, False)
    assert first["latency_ms"] > 0
    assert world.serves() == was
    assert not [line for line in metrics(capsys) if {"GateFailed", "RolledBack", "Errors"} & line.keys()]


def test_a_package_that_was_damaged_in_the_bucket_is_noticed_by_the_next_run(world: World) -> None:
    champion = world.publish("1.0.0")
    world.release(champion, serving={})
    assert world.only()["passed"] is True
    world.damage(champion)
    found = world.only()
    assert found["passed"] is False
    assert "want a whole zip file" in found["packages"][0]["findings"][0]


def test_what_the_layer_holds_hides_nothing(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    champion = world.publish("1.0.0")
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / champion.digest).symlink_to(champion.folder)
    (tmp_path / "releases").mkdir()
    stale = Release(model="line", champion=Version(champion.digest, "0.9.0"))
    (tmp_path / "releases" / "line.json").write_text(json.dumps(stale.to_json()))
    for kind in (PackageStore, Registry):
        monkeypatch.setitem(kind.__init__.__kwdefaults__, "baked", tmp_path)  # type: ignore[misc]
    world.release(champion, serving={})
    world.damage(champion)
    found = world.only()
    assert (found["champion"], found["passed"]) == ("1.0.0", False)


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({"says": 4}, "examples.jsonl:1: want value 2.02, got 1.02"),
        ({"rows": ["1,9", "2,9"]}, "confidence.csv: mae: want within [0, 1], got 7.48"),
    ],
)
def test_a_champion_that_fails_its_gate_is_rolled_back_and_the_release_says_why(
    world: World, fields: dict[str, Any], finding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = world.publish("0.1.0"), world.publish("0.2.0", **fields)
    world.release(bad, good)
    found = world.only()
    assert (found["passed"], found["rolled_back_to"]) == (False, "0.1.0")
    assert finding in found["packages"][0]["findings"][0]
    now = world.serves()
    assert (now.champion.version, now.by, now.previous) == ("0.1.0", "monitor", ())
    assert now.why.startswith("0.2.0 did not pass its gate: ")
    assert found["packages"][0]["findings"][0] in now.why
    assert dict(now.serving) == ROLLBACK
    lines = metrics(capsys)
    assert {(line["model"], line["door"]) for line in lines} == {("line", "monitor")}
    assert [line[name] for line in lines for name in ("GateFailed", "RolledBack")] == [[1], [1]]
    assert world.only()["passed"] is True


def test_a_package_that_is_gone_is_rolled_back_from(world: World) -> None:
    good, gone = world.publish("1.0.0"), world.publish("1.1.0")
    world.release(gone, good)
    world.s3.delete_object(Bucket=world.shelf.bucket, Key=f"packages/line/{gone.digest}.zip")
    assert world.only()["rolled_back_to"] == "1.0.0"


def test_the_first_of_the_earlier_champions_that_passes_is_taken(world: World) -> None:
    oldest, older, bad, champion = (world.publish(f"1.{i}.0") for i in range(4))
    world.release(champion, bad, older, oldest)
    for package in (champion, bad):
        world.damage(package)
    assert world.only()["rolled_back_to"] == "1.1.0"
    assert [former.version for former in world.serves().previous] == ["1.0.0"]


def test_without_an_earlier_champion_that_passes_nothing_is_changed(
    world: World, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    champion, before = world.publish("1.1.0"), world.publish("1.0.0")
    world.release(champion, before)
    world.damage(champion)
    world.damage(before)
    was = world.serves()
    assert world.only()["rolled_back_to"] is None
    assert world.serves() == was
    assert "release not rolled back" in caplog.text
    (line,) = [line for line in metrics(capsys) if "GateFailed" in line]
    assert line["GateFailed"] == [1]  # The champion: what it would go back to serves nobody.


@pytest.mark.parametrize("serving", [{}, {"rollback_on_failure": False}])
def test_a_release_that_does_not_ask_for_it_is_never_changed(
    world: World, serving: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    champion, before = world.publish("1.1.0"), world.publish("1.0.0")
    world.release(champion, before, serving=serving)
    world.damage(champion)
    was = world.serves()
    found = world.only()
    assert (found["passed"], found["rolled_back_to"]) == (False, None)
    assert world.serves() == was
    assert "rolled back" not in caplog.text


def test_a_challenger_that_fails_is_told_and_the_champion_stays(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    champion, challenger = world.publish("1.0.0"), world.publish("1.1.0", says=9)
    world.release(champion, challenger=challenger)
    was = world.serves()
    found = world.only()
    assert [one["passed"] for one in found["packages"]] == [True, False]
    assert world.serves() == was
    (line,) = [line for line in metrics(capsys) if "GateFailed" in line]
    assert (line["model"], line["GateFailed"]) == ("line", [1])


def test_a_champion_that_is_only_slow_is_told_and_stays(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    slow, before = world.publish("1.1.0", latency_ms=1e-6), world.publish("1.0.0", latency_ms=1e6)
    world.release(slow, before)
    found = world.only()
    assert (found["passed"], found["rolled_back_to"]) == (True, None)
    assert [one["slow"] for one in found["packages"]] == [True, False]
    assert not [line for line in metrics(capsys) if "GateFailed" in line]


def test_a_slow_champion_that_fails_otherwise_is_rolled_back(world: World) -> None:
    bad, before = world.publish("1.1.0", latency_ms=1e-6, says=9), world.publish("1.0.0")
    world.release(bad, before)
    assert world.only()["rolled_back_to"] == "1.0.0"


def after_gate(world: World, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Something happens after the first package was inspected."""
    inspect, done = gate.inspect, []

    def then(*arguments: Any, **options: Any) -> gate.Report:
        found = inspect(*arguments, **options)
        if not done:
            done.append(act())
        return found

    monkeypatch.setattr(world.monitor.gate, "inspect", then)


def test_an_operator_who_was_faster_is_not_overruled(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, before, fixed = world.publish("1.1.0", says=9), world.publish("1.0.0"), world.publish("1.2.0")
    world.release(bad, before)
    after_gate(world, monkeypatch, lambda: world.release(fixed, bad, before))
    assert world.only()["rolled_back_to"] is None
    assert world.serves().champion.version == "1.2.0"
    assert not [line for line in metrics(capsys) if "RolledBack" in line]


def test_an_operator_who_forbids_it_meanwhile_is_heard(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, before = world.publish("1.1.0", says=9), world.publish("1.0.0")
    world.release(bad, before)
    after_gate(world, monkeypatch, lambda: world.release(bad, before, serving={}))
    assert world.only()["rolled_back_to"] is None
    assert world.serves().champion.version == "1.1.0"


def test_a_long_list_of_findings_is_cut_for_the_release(world: World) -> None:
    bad, before = world.publish("1.1.0", rows=[f"{i},x" for i in range(300)]), world.publish("1.0.0")
    world.release(bad, before)
    found = world.only()
    assert found["rolled_back_to"] == "1.0.0"
    assert len(found["packages"][0]["findings"]) == 20
    assert len(world.serves().why) == 500


def test_a_registry_that_does_not_answer_fails_the_run(
    world: World, load: Callable[..., ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    world.monitor = load("monitor", THREEFOLD_MODEL_BUCKET="models", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    for event in ({}, {"model": "line"}):
        with pytest.raises(RegistryUnreachable):
            world.run(event)
    assert not [line for line in metrics(capsys) if "GateFailed" in line]


def test_a_registry_that_is_away_for_one_model_is_no_fault_of_its_champion_and_the_others_have_their_turn(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("curve", "line", "plane"):
        world.release(world.publish("1.1.0", name=name), world.publish("1.0.0", name=name))
    was, read = world.serves("line"), PackageStore.open

    def away(self: PackageStore, model: str, digest: str) -> Package:
        if model == "line":
            raise RegistryUnreachable("registry: want the model bucket to answer, got nothing")
        return read(self, model, digest)

    monkeypatch.setattr(PackageStore, "open", away)
    with pytest.raises(RegistryUnreachable, match=r"got none of \['line'\]"):
        world.run()
    assert world.serves("line") == was
    inspected = {getattr(record, "model", "") for record in caplog.records if record.message == "package inspected"}
    assert inspected == {"curve", "plane"}


def test_a_model_that_cannot_be_inspected_is_told_and_keeps_no_other_from_its_turn(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("curve", "plane"):
        world.release(world.publish("1.0.0", name=name))
    world.s3.put_object(Bucket=world.shelf.bucket, Key="releases/line.json", Body=b'{"schema": 99}')
    found = {one["model"]: one for one in world.run()["models"]}
    assert (found["curve"]["passed"], found["plane"]["passed"]) == (True, True)
    assert (found["line"]["code"], "want schema 1 or older" in found["line"]["error"]) == ("not_servable", True)
    (line,) = [line for line in metrics(capsys) if "Errors" in line]
    assert (line["model"], line["Errors"]) == ("line", [1])


def test_a_model_can_be_asked_for_alone(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("curve", "line"):
        world.release(world.publish("1.0.0", name=name))
    assert world.only({"model": "line"})["model"] == "line"
    assert len(world.run({"source": "aws.events"})["models"]) == 2
    capsys.readouterr()
    assert world.only({"model": "nobody"})["code"] == "unknown_model"
    # Whoever makes up names makes up no metrics.
    assert not [line for line in metrics(capsys) if "model" in line]
    with pytest.raises(Malformed, match="want a name"):
        world.run({"model": ["line"]})


def test_what_there_is_no_time_for_is_said_and_gets_its_turn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"curve", "line", "plane"}
    for name in names:
        world.release(world.publish("1.0.0", name=name))
    found = world.run(milliseconds=29_000)
    assert (found["models"], found["left"]) == ([], sorted(names))
    seen: set[str] = set()
    ahead = 0.0
    clock = SimpleNamespace(
        monotonic=lambda: time.monotonic() + ahead, perf_counter=time.perf_counter, time_ns=time.time_ns
    )
    monkeypatch.setattr(world.monitor, "time", clock)
    inspect = gate.inspect

    def slow(*arguments: Any, **options: Any) -> gate.Report:
        nonlocal ahead
        ahead += 1000
        return inspect(*arguments, **options)

    monkeypatch.setattr(world.monitor.gate, "inspect", slow)
    for _ in range(60):
        found = world.run()
        (one,) = found["models"]
        assert (one["passed"], set(found["left"])) == (True, names - {one["model"]})
        seen.add(one["model"])
        if seen == names:
            break
    assert seen == names


def test_a_gate_that_was_not_run_in_whole_neither_passes_nor_rolls_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion, older, before = (
        world.publish("1.2.0", says=9),
        world.publish("1.0.0"),
        world.publish("1.1.0", rows=["1,1", "2,2"]),
    )
    world.release(champion, before, older)
    inspect = gate.inspect

    def hurried(model: Model, *, seconds: float) -> gate.Report:
        return inspect(model, seconds=0.0 if model.manifest.version == "1.1.0" else seconds)

    monkeypatch.setattr(world.monitor.gate, "inspect", hurried)
    found = world.run()
    assert found["left"] == ["line"]
    assert [one["passed"] for one in found["models"][0]["packages"]] == [False, None]
    assert found["models"][0]["rolled_back_to"] is None
    assert world.serves().champion.version == "1.2.0"
