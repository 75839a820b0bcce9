"""What a later Threefold wrote is refused with what to upgrade, or read as far as it is understood."""

from __future__ import annotations

import copy
import json
import shutil
from typing import TYPE_CHECKING, Any, Final

import pytest
from obstore.store import MemoryStore

from tests.compatibility.conftest import SCHEMAS, packages, read
from threefold.errors import InvalidManifest, InvalidPackage, NotServable, ThreefoldError
from threefold.package import MANIFEST, Manifest, digest_of, pack, unpack
from threefold.registry import Registry
from threefold.release import Release
from threefold.tables.planner import Plan
from threefold_ops.authoring.manifest import read_model_file
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from pathlib import Path

NEWER: Final = [2, 99]
NO_SCHEMA: Final = ["x", None, 0, -1, 1.5, [1]]


@pytest.mark.parametrize("schema", NEWER)
def test_a_newer_model_folder_is_refused_with_what_to_upgrade(schema: int, tmp_path: Path) -> None:
    folder = changed_folder(schema, tmp_path)
    with pytest.raises(OperatorError, match=rf"want schema 1 or older, got {schema}; upgrade Threefold"):
        read_model_file(folder / "model.yaml")


@pytest.mark.parametrize("schema", ["x", "null", "0", "-1", "1.5", "[1]"])
def test_a_model_folder_whose_schema_is_no_schema_is_refused_by_its_line(schema: str, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"model\.yaml:1: schema"):
        read_model_file(changed_folder(schema, tmp_path) / "model.yaml")


def changed_folder(schema: object, scratch: Path) -> Path:
    folder = scratch / "sums"
    shutil.copytree(SCHEMAS[0] / "folders" / "sums", folder)
    path = folder / "model.yaml"
    assert path.read_text().startswith("schema: 1\n")
    path.write_text(path.read_text().replace("schema: 1", f"schema: {schema}"))
    return folder


@pytest.mark.parametrize("schema", [3, 99, *NO_SCHEMA])
def test_a_package_with_a_newer_manifest_is_refused_with_what_to_upgrade(schema: object, tmp_path: Path) -> None:
    package = packages(SCHEMAS[0], tmp_path)["sums", "1.0.0"]
    folder = tmp_path / "newer"
    shutil.copytree(package.folder, folder)
    (folder / MANIFEST).write_text(json.dumps(read(folder / MANIFEST) | {"schema": schema}))
    content, digest = tmp_path / "newer.zip", digest_of(folder)
    content.write_bytes(pack(folder))
    with pytest.raises(InvalidPackage, match=r"want schema 2 or older, got .*; upgrade Threefold"):
        unpack(content, digest, tmp_path / "unpacked")


@pytest.mark.parametrize("schema", [*NEWER, *NO_SCHEMA])
def test_a_newer_release_document_is_refused_with_what_to_upgrade(schema: object, tmp_path: Path) -> None:
    document = read(SCHEMAS[0] / "buckets" / "models" / "releases" / "rent.json") | {"schema": schema}
    with pytest.raises(InvalidManifest, match=r"want schema 1 or older, got .*; upgrade Threefold"):
        Release.from_json(document)
    store = MemoryStore()
    registry = Registry(store, cache=tmp_path / "cache", baked=tmp_path / "baked", refresh_seconds=0.0)
    store.put("releases/rent.json", json.dumps(document).encode())
    # Neither a door nor an operator who would write over it gets past it.
    for act in (lambda: registry.release("rent"), lambda: registry.change("rent", lambda old: old)):
        with pytest.raises(NotServable, match="upgrade Threefold"):
            act()


def test_a_newer_release_document_leaves_the_last_good_one_in_force(tmp_path: Path) -> None:
    store = MemoryStore()
    registry = Registry(store, cache=tmp_path / "cache", baked=tmp_path / "baked", refresh_seconds=0.0)
    document = read(SCHEMAS[0] / "buckets" / "models" / "releases" / "rent.json")
    store.put("releases/rent.json", json.dumps(document).encode())
    assert registry.release("rent").release.champion.version == "2.1"
    store.put("releases/rent.json", json.dumps(document | {"schema": 2}).encode())
    confirmed = registry.release("rent")
    assert (confirmed.release.champion.version, confirmed.stale) == ("2.1", True)


@pytest.mark.parametrize("schema", [*NEWER, *NO_SCHEMA])
def test_a_newer_plan_is_refused_with_what_to_upgrade(schema: object) -> None:
    (path, *_) = sorted((SCHEMAS[0] / "buckets" / "results").glob("*/*/plan.json"))
    with pytest.raises(ThreefoldError, match=r"want schema 1 or older, got .*; upgrade Threefold"):
        Plan.from_json(read(path) | {"schema": schema})


@pytest.mark.parametrize("part", ["", "signature", "signature.inputs.0"])
def test_a_field_of_a_manifest_that_this_code_does_not_know_is_read_over(part: str, tmp_path: Path) -> None:
    document = read(packages(SCHEMAS[0], tmp_path)["rent", "2.0"].folder / MANIFEST)
    assert Manifest.from_json(extended(document, part)) == Manifest.from_json(document)


@pytest.mark.parametrize("part", ["gate", "output", "signature.features.0"])
def test_a_rule_of_a_manifest_that_this_code_does_not_know_is_refused(part: str, tmp_path: Path) -> None:
    # A check, a range or a meaning that is not understood cannot be held: to serve without it would be to guess.
    document = read(packages(SCHEMAS[0], tmp_path)["rent", "2.0"].folder / MANIFEST)
    with pytest.raises(InvalidManifest, match="later"):
        Manifest.from_json(extended(document, part))


@pytest.mark.parametrize("part", ["", "champion", "previous.0"])
def test_a_field_of_a_release_that_this_code_does_not_know_is_read_over(part: str) -> None:
    document = read(SCHEMAS[0] / "buckets" / "models" / "releases" / "rent.json")
    assert Release.from_json(extended(document, part)) == Release.from_json(document)


def test_a_rule_of_a_challenger_that_this_code_does_not_know_is_refused() -> None:
    # To whom it would answer, this code cannot say.
    document = read(SCHEMAS[0] / "buckets" / "models" / "releases" / "rent.json")
    with pytest.raises(InvalidManifest, match="later"):
        Release.from_json(extended(document, "challenger"))


def extended(document: Any, part: str) -> Any:
    """A document with a field of a later day in one of its parts."""
    found = whole = copy.deepcopy(document)
    for step in part.split(".") if part else ():
        found = found[int(step)] if step.isdigit() else found[step]
    found["later"] = 1
    return whole
