"""From a model folder to a package in the registry, and to a model's first release."""

from __future__ import annotations

import getpass
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threefold.errors import ReleaseConflict, ThreefoldError
from threefold.model import Model, open_session, read_signature
from threefold.package import MANIFEST, MODEL, Manifest, Package, digest_of, open_package
from threefold.release import Release, Version
from threefold_ops.errors import OperatorError
from threefold_ops.manifest import read_model_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threefold.registry import Registry

MODEL_FILE = "model.yaml"


@dataclass(frozen=True, slots=True)
class Published:
    """What a publish did.

    Attributes:
        new: whether the registry did not have this content yet.
        champion: whether this package is what the model's release serves.
    """

    name: str
    version: str
    digest: str
    new: bool
    champion: bool


def model_folders(root: Path) -> list[Path]:
    """The folders under `models/` that hold a model."""
    return sorted(path.parent for path in root.glob(f"*/{MODEL_FILE}"))


def build_package(folder: Path, target: Path) -> tuple[Package, dict[str, Any]]:
    """Make the package of a model folder: data only, its signature read from the graph.

    Args:
        folder: holds model.yaml, model.onnx and the assets that it names.
        target: an empty folder for the package.

    Returns:
        The package, and how the model is to be operated.

    Raises:
        OperatorError: what is wrong with the folder.
    """
    written = read_model_file(folder / MODEL_FILE)
    for name in (MODEL, *written.assets()):
        if not (folder / name).is_file():
            message = f"{folder}: want the file {name}, got none"
            raise OperatorError(message)
        shutil.copyfile(folder / name, target / name)
    try:
        found = read_signature(open_session(target / MODEL))
        layout = (written.layout or "packed") if written.features else None
        features = tuple(part.feature() for part in written.features)
        signature = replace(found, features=features, layout=layout)
        signature.check()
        output = written.output.output()
        names = {spec.name for spec in signature.outputs}
        if missing := {output.label, output.scores, output.value} - names - {None}:
            message = f"{folder}: output: want some of the graph's outputs {sorted(names)}, got {missing}"
            raise OperatorError(message)
        manifest = Manifest(
            name=written.name,
            version=written.version,
            signature=signature,
            output=output,
            description=written.description,
            key=written.key,
            gate=written.gate.gate(),
            reference=written.drift.reference if written.drift else None,
            training=written.training,
            bake=written.bake,
        )
        text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False, default=str)
        (target / MANIFEST).write_text(text, encoding="utf-8")
        package = open_package(target, digest_of(target))
        # The gate: what the training library said must come out, or nothing is published.
        Model(package).check()
    except ThreefoldError as error:
        message = f"{folder}: {error}"
        raise OperatorError(message) from error
    return package, written.serving.model_dump(exclude_none=True)


def publish(registry: Registry, folder: Path, *, by: str | None = None, why: str = "first publish") -> Published:
    """Publish a model folder. A model's first package becomes its champion; later ones wait for a promotion.

    Raises:
        OperatorError: what is wrong with the folder.
        RegistryUnreachable: the registry cannot be read or written.
    """
    with tempfile.TemporaryDirectory(prefix="threefold-package-") as scratch:
        package, serving = build_package(folder, Path(scratch))
        manifest = package.manifest
        new = registry.packages.publish(package)
    version = Version(package.digest, manifest.version)
    release = Release(
        model=manifest.name,
        champion=version,
        serving=serving,
        at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        by=by or getpass.getuser(),
        why=why,
    )
    try:
        registry.write_release(release, replaces=None)
        champion = True
    except ReleaseConflict:
        current = registry.current(manifest.name)
        champion = current is not None and current[0].champion.digest == package.digest
    return Published(manifest.name, manifest.version, package.digest, new, champion)


def publish_all(registry: Registry, models: Path, progress: Callable[[str], None]) -> None:
    """Publish every model folder; what stands in the registry already is left alone."""
    for folder in model_folders(models):
        done = publish(registry, folder)
        if done.new or not done.champion:
            state = "champion" if done.champion else "published, not serving: another version is champion"
            progress(f"{done.name} {done.version} ({done.digest[:12]}): {state}")


def champions(registry: Registry) -> Iterator[tuple[Release, Package]]:
    """Every model's release with its champion's package."""
    for model in registry.models():
        release = registry.release(model).release
        yield release, registry.packages.open(model, release.champion.digest)
