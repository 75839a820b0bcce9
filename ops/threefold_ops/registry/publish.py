"""From a model folder to a package in the registry, and to a model's first release."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from threefold.errors import RegistryUnreachable, ReleaseConflict, ThreefoldError
from threefold.release import Release, Version
from threefold_ops.authoring.folder import build_package, model_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threefold.package import Package
    from threefold.registry import Registry


@dataclass(frozen=True, slots=True)
class Published:
    """What a publish did.

    Attributes:
        new: whether the registry did not have this content yet.
        champion: whether this package is what the model's release serves.
        configured: whether the release operates the model as model.yaml says.
    """

    name: str
    version: str
    digest: str
    new: bool
    champion: bool
    configured: bool

    @property
    def state(self) -> str:
        """What the package is now, and what is left to do."""
        if not self.champion:
            return f"waits for: threefold promote {self.name} {self.version}"
        return "champion" if self.configured else "champion, operated otherwise than model.yaml says"


def publish(registry: Registry, folder: Path, *, by: str = "", why: str = "first publish") -> Published:
    """Publish a model folder. A model's first package becomes its champion; later ones wait for a promotion.

    Args:
        registry: where to.
        folder: the model folder.
        by: who publishes, for the first release.
        why: the reason, for the first release.

    Raises:
        OperatorError: what is wrong with the folder.
        RegistryUnreachable: the registry cannot be read or written.
    """
    with tempfile.TemporaryDirectory(prefix="threefold-package-") as scratch:
        package, serving = build_package(folder, Path(scratch))
        manifest = package.manifest
        stored = registry.packages.publish(package)
    version = Version(stored.digest, manifest.version)
    release = Release(
        model=manifest.name,
        champion=version,
        serving=serving,
        at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        by=by,
        why=why,
    )
    try:
        registry.write_release(release, replaces=None)
    except ReleaseConflict:
        if (current := registry.current(manifest.name)) is not None:
            release = current[0]
    champion, configured = release.champion.digest == stored.digest, dict(release.serving) == serving
    return Published(manifest.name, manifest.version, stored.digest, stored.new, champion, configured)


def publish_all(registry: Registry, models: Path, by: str, progress: Callable[[str], None]) -> None:
    """Publish every model folder; what stands in the registry already is left alone."""
    for folder in model_folders(models):
        done = publish(registry, folder, by=by)
        if done.new or not done.champion:
            progress(f"{done.name} {done.version} ({done.digest[:12]}): {done.state}")


def champions(registry: Registry, progress: Callable[[str], None]) -> Iterator[tuple[Release, Package]]:
    """Every model's release with its champion's package; one that cannot be had does not keep the others out.

    Raises:
        RegistryUnreachable: the registry does not answer.
    """
    for model in registry.models():
        try:
            release = registry.release(model).release
            package = registry.packages.open(model, release.champion.digest)
        except RegistryUnreachable:
            raise
        except ThreefoldError as error:
            progress(f"{model}: not in the model layer: {error}")
        else:
            yield release, package
