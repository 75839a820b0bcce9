"""What serves, and who changed it: promotions, rollbacks and settings against a bucket that keeps versions."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import obstore
import pytest
from moto.server import ThreadedMotoServer

from threefold import gate
from threefold.errors import InvalidPackage, UnknownModel
from threefold.package import Output, Package
from threefold.release import Release, Version
from threefold.signature import Feature
from threefold_ops import target as targets
from threefold_ops.errors import OperatorError
from threefold_ops.registry import releases
from threefold_ops.registry.difference import differences
from threefold_ops.registry.inventory import Inventory
from threefold_ops.registry.reference import Found
from threefold_ops.registry.releases import Act
from threefold_ops.system import open_registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Graphs, PackageMaker
    from threefold.model import Model
    from threefold.registry import Registry
    from threefold_ops.target import Target

ACT = Act("ana", "because")


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield targets.emulator(f"http://{host}:{port}")
    server.stop()


@pytest.fixture
def bucket(target: Target) -> str:
    name = f"models-{uuid.uuid4().hex}"
    client = target.client("s3")
    client.create_bucket(Bucket=name)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


@pytest.fixture
def registry(target: Target, bucket: str, tmp_path: Path) -> Registry:
    return open_registry(target, bucket, tmp_path / "packages")


class Shelf:
    """Published versions 1.0.0, 1.1.0 and 1.2.0 of one model; the first is champion."""

    def __init__(self, registry: Registry, graphs: Graphs, make_package: PackageMaker) -> None:
        self._graphs, self._make = graphs, make_package
        self.registry = registry
        self.packages = [self.put(f"1.{i}.0", weight=i) for i in range(3)]
        first = Version(self.packages[0].digest, "1.0.0")
        registry.write_release(Release(model="wine", champion=first, by="first"), replaces=None)

    def put(self, version: str, weight: float, *, says: float | None = None) -> Package:
        package = self._make(
            self._graphs.linear([weight]),
            name="wine",
            version=version,
            features=[Feature(name="a", type="float32")],
            output=Output(kind="regression", value="value"),
            examples=[{"record": {"a": 2}, "expect": {"value": 2 * weight if says is None else says}}],
        )
        self.registry.packages.publish(package)
        return package

    @property
    def champion(self) -> str:
        found = self.registry.current("wine")
        assert found is not None
        return found[0].champion.version


@pytest.fixture
def shelf(registry: Registry, graphs: Graphs, make_package: PackageMaker) -> Shelf:
    return Shelf(registry, graphs, make_package)


def test_a_promotion_names_the_package_and_who_did_it_and_why(registry: Registry, shelf: Shelf) -> None:
    before, after = releases.promote(registry, "wine", "1.1.0", ACT)
    assert (before.champion.version, after.champion.version) == ("1.0.0", "1.1.0")
    assert (after.by, after.why) == ("ana", "because")
    assert after.champion.digest == shelf.packages[1].digest
    assert releases.changed(before, after) == [f"champion 1.1.0 ({after.champion.digest[:12]}), was 1.0.0"]
    releases.promote(registry, "wine", shelf.packages[2].digest[:8], ACT)
    assert shelf.champion == "1.2.0"


def test_to_promote_the_champion_again_writes_nothing(
    registry: Registry, shelf: Shelf, target: Target, bucket: str
) -> None:
    before, after = releases.promote(registry, "wine", "1.0.0", ACT)
    assert before is after
    assert len(list(Inventory(target, bucket).releases("wine"))) == 1


def test_a_package_that_fails_its_gate_is_not_promoted(registry: Registry, shelf: Shelf) -> None:
    shelf.put("2.0.0", 3, says=7)
    with pytest.raises(InvalidPackage, match="want value 7, got 6"):
        releases.promote(registry, "wine", "2.0.0", ACT)
    assert shelf.champion == "1.0.0"


def test_a_package_that_is_removed_while_it_is_promoted_is_missed_at_once(
    registry: Registry, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = shelf.packages[1].digest
    admit = gate.admit

    def removed(model: Model) -> object:
        obstore.delete(registry.packages._store, f"packages/wine/{digest}.zip")
        return admit(model)

    monkeypatch.setattr(gate, "admit", removed)
    with pytest.raises(OperatorError, match=r"removed meanwhile; doors go on with 1\.0\.0"):
        releases.promote(registry, "wine", "1.1.0", ACT)


def test_what_was_never_published_cannot_be_promoted(registry: Registry, shelf: Shelf) -> None:
    for model, version in (("wine", "9.9.9"), ("beer", "1.0.0")):
        with pytest.raises(UnknownModel):
            releases.promote(registry, model, version, ACT)
    assert shelf.champion == "1.0.0"


def test_each_rollback_goes_one_further_back(registry: Registry, shelf: Shelf) -> None:
    for version in ("1.1.0", "1.2.0"):
        releases.promote(registry, "wine", version, ACT)
    before, after = releases.roll_back(registry, "wine", None, ACT)
    assert releases.changed(before, after)[0].startswith("back to 1.1.0")
    releases.roll_back(registry, "wine", None, ACT)
    assert shelf.champion == "1.0.0"
    with pytest.raises(OperatorError, match=r"want an earlier champion out of \[\], got none"):
        releases.roll_back(registry, "wine", None, ACT)


def test_a_rollback_may_name_an_earlier_champion(registry: Registry, shelf: Shelf) -> None:
    for version in ("1.1.0", "1.2.0"):
        releases.promote(registry, "wine", version, ACT)
    with pytest.raises(OperatorError, match=r"out of \['1.1.0', '1.0.0'\], got '1.2.0'"):
        releases.roll_back(registry, "wine", "1.2.0", ACT)
    releases.roll_back(registry, "wine", shelf.packages[0].digest[:10], ACT)
    assert shelf.champion == "1.0.0"


def test_settings_change_alone_and_wrong_ones_change_nothing(registry: Registry, shelf: Shelf) -> None:
    before, after = releases.configure(registry, "wine", {"abstain_below": 0.7, "options": 2}, [], ACT)
    assert releases.changed(before, after) == ["abstain_below 0.7, was default", "options 2, was default"]
    assert (after.champion, after.previous) == (before.champion, before.previous)
    for changes, unset in (({"abstain_below": 7}, []), ({"abstain_bellow": 0.5}, []), ({}, ["nothing"])):
        with pytest.raises(OperatorError, match="want"):
            releases.configure(registry, "wine", changes, unset, ACT)
    _, after = releases.configure(registry, "wine", {}, ["options"], ACT)
    assert dict(after.serving) == {"abstain_below": 0.7}
    same = releases.configure(registry, "wine", {"abstain_below": 0.7}, [], ACT)
    assert same[0] is same[1]


def test_the_history_is_told_newest_first_and_survives_what_it_cannot_read(
    registry: Registry, shelf: Shelf, target: Target, bucket: str
) -> None:
    releases.promote(registry, "wine", "1.1.0", ACT)
    s3 = target.client("s3")
    s3.put_object(Bucket=bucket, Key="releases/wine.json", Body=b'{"schema": 2}')
    s3.put_object(Bucket=bucket, Key="releases/wine.json.bak", Body=b"no release")
    entries = list(Inventory(target, bucket).releases("wine"))
    assert [entry.release and entry.release.by for entry in entries] == [None, "ana", "first"]
    assert "upgrade Threefold" in entries[0].problem
    assert list(Inventory(target, bucket).releases("beer")) == []


def test_packages_differ_by_their_facts_and_files(shelf: Shelf) -> None:
    first, second = (Found(package, package.manifest.version, None) for package in shelf.packages[:2])
    assert differences(first, first) == []
    found = {what: (was, now) for what, was, now in differences(first, second)}
    assert found["version"] == ("1.0.0", "1.1.0")
    assert set(found) == {"version", "file model.onnx", "file examples.jsonl"}
