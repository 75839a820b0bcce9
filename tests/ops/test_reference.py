"""How a package is named: by a folder, by its model, or by a version of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Never

import pytest
from obstore.store import MemoryStore

from threefold.errors import UnknownModel
from threefold.package import Output
from threefold.registry import Registry
from threefold.release import Release, Version
from threefold.signature import Feature
from threefold_ops.errors import OperatorError
from threefold_ops.registry.reference import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Graphs, PackageMaker
    from threefold.package import Package

ROOT = Path(__file__).resolve().parents[2]


def nobody() -> Never:
    pytest.fail("the registry was opened, and a folder needs none")


@pytest.fixture
def packages(graphs: Graphs, make_package: PackageMaker) -> list[Package]:
    """Versions 1.0.0 and 1.1.0 of one model."""
    return [
        make_package(
            graphs.linear([weight]),
            name="wine",
            version=f"1.{i}.0",
            features=[Feature(name="a", type="float32")],
            output=Output(kind="regression", value="value"),
        )
        for i, weight in enumerate((1.0, 2.0))
    ]


@pytest.fixture
def registry(packages: list[Package], tmp_path: Path) -> Callable[[], Registry]:
    """A registry with both; the first is champion."""
    found = Registry(MemoryStore(), cache=tmp_path / "cache", baked=tmp_path / "none")
    for package in packages:
        found.packages.publish(package)
    champion = Version(packages[0].digest, "1.0.0")
    found.write_release(Release(model="wine", champion=champion, serving={"abstain_below": 0.5}), replaces=None)
    return lambda: found


def test_a_path_is_built_without_any_registry(tmp_path: Path) -> None:
    found = resolve(str(ROOT / "models" / "digits"), nobody, tmp_path / "built")
    assert found.package.folder == tmp_path / "built"
    assert found.package.manifest.name == "digits"
    assert found.serving == {"abstain_below": 0.5, "options": 3}
    assert found.label.endswith("models/digits")


def test_a_folder_with_a_model_file_needs_no_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "models")
    assert resolve("digits", nobody, tmp_path / "a").package.manifest.name == "digits"
    monkeypatch.chdir(ROOT / "models" / "digits")
    assert resolve(".", nobody, tmp_path / "b").package.manifest.name == "digits"


def test_a_model_is_its_champion_as_it_is_operated(
    registry: Callable[[], Registry], packages: list[Package], tmp_path: Path
) -> None:
    found = resolve("wine", registry, tmp_path / "scratch")
    assert (found.package.digest, found.label) == (packages[0].digest, "wine@1.0.0")
    assert found.serving == {"abstain_below": 0.5}


@pytest.mark.parametrize("characters", [None, 64, 6])
def test_a_version_goes_by_its_label_or_by_its_digests_beginning(
    registry: Callable[[], Registry], packages: list[Package], characters: int | None, tmp_path: Path
) -> None:
    name = "1.1.0" if characters is None else packages[1].digest[:characters]
    found = resolve(f"wine@{name}", registry, tmp_path / "scratch")
    assert (found.package.digest, found.label) == (packages[1].digest, "wine@1.1.0")
    # A promotion keeps the settings: it would be operated as the champion is.
    assert found.serving == {"abstain_below": 0.5}


def test_a_version_of_a_model_without_a_release_is_operated_nobody_knows_how(
    packages: list[Package], tmp_path: Path
) -> None:
    bare = Registry(MemoryStore(), cache=tmp_path / "cache", baked=tmp_path / "none")
    bare.packages.publish(packages[0])
    assert resolve("wine@1.0.0", lambda: bare, tmp_path / "scratch").serving is None


@pytest.mark.parametrize("text", ["", "Wine", "wine@", "@1.0.0", "wine 1.0.0"])
def test_what_is_no_reference_says_what_one_is(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "models" / "digits")
    with pytest.raises(OperatorError, match=r"want <model>, <model>@<version or digest>, or the path of a model"):
        resolve(text, nobody, tmp_path / "scratch")


@pytest.mark.parametrize("text", ["beer", "beer@1.0.0", "wine@2.0.0", "wine@abcde"])
def test_what_the_registry_does_not_have_is_an_unknown_model(
    text: str, registry: Callable[[], Registry], tmp_path: Path
) -> None:
    with pytest.raises(UnknownModel):
        resolve(text, registry, tmp_path / "scratch")


def test_a_folder_that_is_no_model_folder_is_told_from_a_model(
    registry: Callable[[], Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beer").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OperatorError, match=r"the folder of this name has no model\.yaml"):
        resolve("beer", registry, tmp_path / "scratch")
    with pytest.raises(OperatorError, match=r"model\.yaml"):
        resolve("./nowhere", nobody, tmp_path / "other")
