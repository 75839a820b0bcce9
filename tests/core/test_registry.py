"""Releases and packages from the bucket: when it is asked, and what holds while it cannot be."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import obstore
import pytest

from threefold.errors import InvalidPackage, NotServable, RegistryUnreachable, ReleaseConflict, UnknownModel
from threefold.package import Output, Package
from threefold.registry import Registry
from threefold.release import Release, Version

if TYPE_CHECKING:
    from pathlib import Path

    from obstore.store import MemoryStore, S3Store

    from tests.conftest import Graphs, PackageMaker
    from tests.core.conftest import Clock, Shelf

NEW = Version("f" * 64, "2.0.0")


@pytest.fixture(scope="module")
def small(graphs: Graphs, make_package: PackageMaker) -> Package:
    return make_package(graphs.linear([1.0, 2.0]), output=Output(kind="regression", value="value"), name="wine")


def overwrite(store: MemoryStore, release: Release) -> None:
    """As another process would."""
    obstore.put(store, f"releases/{release.model}.json", json.dumps(release.to_json()).encode())


def bake(registry: Registry, folder: Path, package: Package) -> None:
    """As the model layer holds a champion."""
    shutil.copytree(package.folder, folder / "packages" / package.digest)
    (folder / "releases").mkdir()
    name = package.manifest.name
    document = registry.release(name).release.to_json()
    (folder / "releases" / f"{name}.json").write_text(json.dumps(document))


def test_a_release_is_confirmed_at_most_every_refresh_seconds(
    registry: Registry, store: MemoryStore, clock: Clock, shelf: Shelf, small: Package
) -> None:
    release = shelf.release(registry, small)
    assert registry.release("wine").release == release
    overwrite(store, replace(release, champion=NEW))
    clock.seconds += 29.9
    assert registry.release("wine").release == release
    clock.seconds += 0.1
    confirmed = registry.release("wine")
    assert confirmed.release.champion == NEW
    assert not confirmed.stale


def test_an_unchanged_release_is_not_read_again(registry: Registry, clock: Clock, shelf: Shelf, small: Package) -> None:
    shelf.release(registry, small)
    first = registry.release("wine")
    clock.seconds += 31
    second = registry.release("wine")
    # The bucket said "not modified", and sent nothing to make another one of.
    assert second.release is first.release
    assert second.id == first.id
    assert second is not first


def test_what_is_known_holds_while_the_bucket_is_unreachable(
    registry: Registry, clock: Clock, shelf: Shelf, small: Package, dead_store: S3Store
) -> None:
    release = shelf.release(registry, small)
    known = registry.release("wine")
    alive, registry._store = registry._store, dead_store
    assert not registry.release("wine").stale
    clock.seconds += 31
    stale = registry.release("wine")
    assert (stale.release, stale.id, stale.stale) == (release, known.id, True)
    registry._store = alive
    clock.seconds += 31
    assert not registry.release("wine").stale


def test_an_unreachable_bucket_is_asked_no_more_often_than_another(
    *, registry: Registry, store: MemoryStore, clock: Clock, shelf: Shelf, small: Package, dead_store: S3Store
) -> None:
    shelf.release(registry, small)
    registry.release("wine")
    registry._store = dead_store
    clock.seconds += 31
    assert registry.release("wine").stale
    registry._store = store
    clock.seconds += 29
    assert registry.release("wine").stale


def test_a_cold_start_without_the_bucket_serves_the_baked_champion(
    *, registry: Registry, clock: Clock, shelf: Shelf, small: Package, dead_store: S3Store, tmp_path: Path
) -> None:
    release = shelf.release(registry, small)
    bake(registry, tmp_path / "baked", small)
    cold = Registry(dead_store, cache=tmp_path / "other", baked=tmp_path / "baked", clock=clock)
    confirmed = cold.release("wine")
    assert (confirmed.release, confirmed.id, confirmed.stale) == (release, "baked", True)
    assert cold.packages.open("wine", small.digest).folder == tmp_path / "baked" / "packages" / small.digest
    assert cold.models() == ["wine"]
    assert not (tmp_path / "other").exists()


def test_a_cold_start_with_nothing_at_hand_says_what_is_unreachable(
    dead_store: S3Store, clock: Clock, tmp_path: Path
) -> None:
    cold = Registry(dead_store, cache=tmp_path, baked=tmp_path / "baked", clock=clock)
    for act in (lambda: cold.release("wine"), cold.models, lambda: cold.packages.open("wine", "0" * 64)):
        with pytest.raises(RegistryUnreachable, match="want the model bucket to answer") as caught:
            act()
        assert "\n" not in str(caught.value)
    with pytest.raises(RegistryUnreachable):
        cold.pinned("wine", "version")


def test_the_list_of_models_outlives_the_bucket(
    registry: Registry, clock: Clock, shelf: Shelf, small: Package, dead_store: S3Store
) -> None:
    shelf.release(registry, small)
    assert registry.models() == ["wine"]
    registry._store = dead_store
    clock.seconds += 31
    assert registry.models() == ["wine"]


def test_what_lies_beside_the_releases_is_no_model(
    registry: Registry, store: MemoryStore, shelf: Shelf, small: Package
) -> None:
    shelf.release(registry, small)
    for path in ("releases/wine.json.bak", "releases/README", "releases/Not A Name.json", "releases/a/b.json"):
        obstore.put(store, path, b"{}")
    assert registry.models() == ["wine"]


def test_an_unknown_model_is_remembered_as_long_as_a_release(
    registry: Registry, store: MemoryStore, clock: Clock, small: Package
) -> None:
    with pytest.raises(UnknownModel):
        registry.release("wine")
    overwrite(store, Release(model="wine", champion=Version(small.digest, "1.0.0")))
    clock.seconds += 29
    with pytest.raises(UnknownModel):
        registry.release("wine")
    clock.seconds += 1
    assert registry.release("wine").release.champion.digest == small.digest


def test_a_guesser_of_names_pushes_no_release_out(
    registry: Registry, clock: Clock, shelf: Shelf, small: Package, dead_store: S3Store
) -> None:
    shelf.release(registry, small)
    registry.release("wine")
    for i in range(3000):
        with pytest.raises(UnknownModel):
            registry.release(f"guess-{i}")
    assert len(registry._misses) == 1000
    clock.seconds += 31
    registry._store = dead_store
    assert registry.release("wine").stale


@pytest.mark.parametrize(
    "name", ["", "Wine", "../wine", "wine/other", "wi ne", "a" * 64, "-wine", "w\u0131ne", "wine\n", "\ud800", "%77ine"]
)
def test_a_name_that_no_model_can_have_asks_nobody(name: str, registry: Registry, dead_store: S3Store) -> None:
    registry._store = dead_store
    with pytest.raises(UnknownModel) as caught:
        registry.release(name)
    str(caught.value).encode()


def test_a_release_that_is_gone_is_unknown(
    registry: Registry, store: MemoryStore, clock: Clock, shelf: Shelf, small: Package
) -> None:
    shelf.release(registry, small)
    registry.release("wine")
    obstore.delete(store, "releases/wine.json")
    clock.seconds += 31
    with pytest.raises(UnknownModel):
        registry.release("wine")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"schema": 99}'])
def test_an_unreadable_release_leaves_the_last_good_one(
    *,
    content: bytes,
    registry: Registry,
    store: MemoryStore,
    clock: Clock,
    shelf: Shelf,
    small: Package,
    tmp_path: Path,
) -> None:
    release = shelf.release(registry, small)
    registry.release("wine")
    obstore.put(store, "releases/wine.json", content)
    clock.seconds += 31
    confirmed = registry.release("wine")
    assert (confirmed.release, confirmed.stale) == (release, True)
    cold = Registry(store, cache=tmp_path, baked=tmp_path / "none", clock=clock)
    with pytest.raises(NotServable, match="release of 'wine': want a readable document") as caught:
        cold.release("wine")
    assert not isinstance(caught.value, RegistryUnreachable)


def test_a_release_is_written_only_over_the_one_that_was_read(
    registry: Registry, store: MemoryStore, shelf: Shelf, small: Package
) -> None:
    first = shelf.release(registry, small)
    with pytest.raises(ReleaseConflict):
        registry.write_release(first, replaces=None)
    found = registry.current("wine")
    assert found is not None
    release, e_tag = found
    assert release == first
    overwrite(store, replace(first, by="another"))
    with pytest.raises(ReleaseConflict):
        registry.write_release(replace(first, champion=NEW), replaces=e_tag)
    assert registry.current("wine") is not None
    found = registry.current("wine")
    assert found is not None
    assert found[0].by == "another"
    registry.write_release(replace(first, champion=NEW), replaces=found[1])
    assert registry.release("wine").release.champion == NEW


def test_a_change_follows_from_the_release_as_it_stands(
    registry: Registry, store: MemoryStore, shelf: Shelf, small: Package
) -> None:
    first = shelf.release(registry, small)
    overwrite(store, replace(first, by="another"))
    before, after = registry.change("wine", lambda release: replace(release, champion=NEW))
    assert (before.by, after.by, after.champion) == ("another", "another", NEW)
    assert registry.release("wine").release == after


def test_of_two_changes_at_once_the_second_is_told_what_the_first_did(
    registry: Registry, store: MemoryStore, shelf: Shelf, small: Package
) -> None:
    first = shelf.release(registry, small)

    def interrupted(release: Release) -> Release:
        overwrite(store, replace(first, champion=NEW, by="ben", why="urgent", at="noon"))
        return replace(release, by="ana")

    with pytest.raises(ReleaseConflict, match=r"champion 2\.0\.0 by ben at noon \(urgent\)"):
        registry.change("wine", interrupted)
    assert registry.release("wine").release.by == "ben"

    def reconfigured(release: Release) -> Release:
        overwrite(store, replace(release, serving={"options": 9}, by="ben"))
        return replace(release, by="ana")

    with pytest.raises(ReleaseConflict, match="another serving by ben"):
        registry.change("wine", reconfigured)


def test_a_change_needs_a_release_and_what_refuses_it_changes_nothing(
    registry: Registry, shelf: Shelf, small: Package
) -> None:
    with pytest.raises(UnknownModel):
        registry.change("wine", lambda release: release)
    first = shelf.release(registry, small)

    def refused(_: Release) -> Release:
        raise InvalidPackage("no")

    with pytest.raises(InvalidPackage):
        registry.change("wine", refused)
    assert registry.release("wine").release == first


def test_a_writer_sees_its_own_release_at_once(registry: Registry, shelf: Shelf, small: Package) -> None:
    assert registry.current("wine") is None
    with pytest.raises(UnknownModel):
        registry.release("wine")
    assert registry.models() == []
    shelf.release(registry, small)
    assert registry.release("wine").release.champion.digest == small.digest
    assert registry.models() == ["wine"]


def test_no_release_is_changed_by_somebody_who_cannot_see_it(
    registry: Registry, shelf: Shelf, small: Package, dead_store: S3Store, tmp_path: Path
) -> None:
    shelf.release(registry, small)
    bake(registry, tmp_path / "baked", small)
    registry._store = registry.packages._store = dead_store
    with pytest.raises(RegistryUnreachable):
        registry.current("wine")
    with pytest.raises(RegistryUnreachable):
        registry.write_release(Release(model="wine", champion=NEW), replaces=None)
    with pytest.raises(RegistryUnreachable):
        registry.packages.publish(small)


def test_a_pinned_release_holds_whatever_is_promoted_since(
    registry: Registry, store: MemoryStore, clock: Clock, shelf: Shelf, small: Package
) -> None:
    release = shelf.release(registry, small)
    pinned = registry.pinned("wine", "version-1")
    overwrite(store, replace(release, champion=NEW))
    clock.seconds += 10**6
    assert registry.pinned("wine", "version-1") == pinned
    assert pinned.release == release
    assert registry.release("wine").release.champion == NEW
    with pytest.raises(UnknownModel):
        registry.pinned("beer", "version-1")
