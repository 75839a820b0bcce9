"""Model packages where they lie: in the layer, in /tmp, and in the versioned bucket."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from threefold.errors import InvalidPackage, RegistryUnreachable
from threefold.names import Prefix
from threefold.package import MAXIMUM_BYTES, Package, open_package, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from obstore.store import ObjectStore

# The model layer holds the champions beside the code: <layer>/python/threefold/package_store.py, <layer>/packages/...
BAKED: Final = Path(__file__).resolve().parents[2]
_PART_BYTES: Final = 8 * 1024**2


class PackageStore:
    """Finds packages by their digest, and puts them where they are not yet."""

    def __init__(self, store: ObjectStore, *, cache: Path, baked: Path = BAKED) -> None:
        """Make a store of packages.

        Args:
            store: the bucket.
            cache: a folder for downloaded packages; it is made when it is needed.
            baked: a folder that may hold `packages/<digest>/`.
        """
        self._store = store
        self._cache = cache
        self._baked = baked

    def open(self, model: str, digest: str) -> Package:
        """A package by its identity: from the layer, else from /tmp, else from the bucket, verified.

        Raises:
            InvalidPackage: the bucket's content is not what the digest says, or there is none.
            RegistryUnreachable: it is not here, and the bucket cannot be asked.
        """
        for folder in (self._baked / "packages" / digest, self._cache / digest):
            if folder.is_dir():
                return open_package(folder, digest)
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._cache, suffix=".zip") as file:
            self._download(_package_key(model, digest), file.write)
            file.flush()
            return unpack(Path(file.name), digest, self._cache / digest)

    def publish(self, package: Package) -> bool:
        """Put a package where it is not yet; the same content is one package.

        A version's label is taken by the first package that comes with it, before that package itself: whoever is
        interrupted between the two can publish again.

        Returns:
            Whether it is new.

        Raises:
            InvalidPackage: another package of the model has this label.
            RegistryUnreachable: the bucket cannot be read or written.
        """
        manifest = package.manifest
        label = f"{Prefix.PACKAGES}{manifest.name}/versions/{manifest.version}"
        if not self._create(label, package.digest.encode()) and (owner := self._text(label)) != package.digest:
            message = (
                f"model '{manifest.name}': want a version that is not taken, got {manifest.version}, "
                f"which is package {owner[:12]}; this one is {package.digest[:12]}"
            )
            raise InvalidPackage(message)
        return self._create(_package_key(manifest.name, package.digest), pack(package.folder))

    def _create(self, key: str, content: bytes) -> bool:
        try:
            obstore.put(self._store, key, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise unreachable(error) from error
        return True

    def _text(self, key: str) -> str:
        try:
            return bytes(obstore.get(self._store, key).bytes()).decode()
        except (BaseError, OSError) as error:
            raise unreachable(error) from error

    def _download(self, key: str, write: Callable[[bytes], object]) -> None:
        try:
            size = obstore.head(self._store, key)["size"]
            if size > MAXIMUM_BYTES:
                message = f"package: want at most {MAXIMUM_BYTES} bytes, got {size} in {key}"
                raise InvalidPackage(message)
            # By parts, so that the client's timeout holds for a part and not for a package of any size.
            for start in range(0, size, _PART_BYTES):
                write(obstore.get_range(self._store, key, start=start, end=min(size, start + _PART_BYTES)).to_bytes())
        except FileNotFoundError as error:
            message = f"package: want it in the registry, got no {key}"
            raise InvalidPackage(message) from error
        except (BaseError, OSError) as error:
            raise unreachable(error) from error


def _package_key(model: str, digest: str) -> str:
    return f"{Prefix.PACKAGES}{model}/{digest}.zip"


def unreachable(error: Exception) -> RegistryUnreachable:
    """What a client's error means: the bucket does not answer."""
    return RegistryUnreachable(f"registry: want the model bucket to answer, got {first_line(error)}")


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error) or repr(error)).splitlines()[0]
