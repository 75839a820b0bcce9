"""How a person names a package: by its model's champion, by a version in the registry, or by a model folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threefold.errors import UnknownModel
from threefold.release import MODEL_NAME
from threefold_ops.authoring.folder import build_package
from threefold_ops.authoring.manifest import MODEL_FILE
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from threefold.package import Package
    from threefold.registry import Registry


@dataclass(frozen=True, slots=True)
class Found:
    """A package that somebody named.

    Attributes:
        package: in a folder of this machine.
        label: what to call it beside another one.
        serving: how it is operated, or would be: as its folder says, or as its model's release does; None where there
            is neither.
    """

    package: Package
    label: str
    serving: Mapping[str, Any] | None


def resolve(text: str, registry: Callable[[], Registry], scratch: Path) -> Found:
    """Find the package that a text names.

    Args:
        text: `<model>`, its champion; `<model>@<version>`, a version label, a digest, or a digest's beginning; or the
            path of a model folder, which is built: what has a slash in it, and what is a folder with a model.yaml.
        registry: opens the registry; it is asked only for what is no folder.
        scratch: a folder for the package of a model folder; it is made if need be.

    Raises:
        OperatorError: the text is none of these, or the folder makes no package.
        UnknownModel: the registry has no such model or version.
        NotServable: the package cannot be had.
    """
    if _is_path(text):
        scratch.mkdir(parents=True, exist_ok=True)
        package, serving = build_package(Path(text), scratch)
        return Found(package, text, serving)
    model, at, version = text.partition("@")
    if not MODEL_NAME.fullmatch(model) or (at and not version):
        message = f"want <model>, <model>@<version or digest>, or the path of a model folder, got {text!r}"
        raise OperatorError(message)
    store = registry()
    if not at:
        try:
            release = store.release(model).release
        except UnknownModel as error:
            if not Path(text).is_dir():
                raise
            message = f"{error}; and the folder of this name has no {MODEL_FILE}"
            raise OperatorError(message) from error
        champion = release.champion
        return Found(store.packages.open(model, champion.digest), f"{model}@{champion.version}", release.serving)
    package = store.packages.open(model, store.packages.digest(model, version))
    return Found(package, f"{model}@{package.manifest.version}", _serving(store, model))


def _is_path(text: str) -> bool:
    separators = {"/", os.sep, os.altsep or "/"}
    return any(mark in text for mark in separators) or (text != "" and (Path(text) / MODEL_FILE).is_file())


def _serving(registry: Registry, model: str) -> Mapping[str, Any] | None:
    """What holds for whichever of a model's packages is champion: a promotion keeps it."""
    try:
        return registry.release(model).release.serving
    except UnknownModel:
        return None
