"""Model packages where they lie: in the layer, in /tmp, and in the versioned bucket."""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from threefold.errors import InvalidPackage, MissingPackage, UnknownModel, shown
from threefold.names import Prefix
from threefold.package import MANIFEST, Package, open_package, pack
from threefold.package_cache import PackageCache, free_bytes
from threefold.package_download import download, unreachable
from threefold.release import MODEL_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from obstore.store import ObjectStore

# The model layer holds the champions beside the code: <layer>/python/threefold/package_store.py, <layer>/packages/...
BAKED: Final = Path(__file__).resolve().parents[2]
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_BEGINNING: Final = re.compile(r"[0-9a-f]{6,64}")
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")


@dataclass(frozen=True, slots=True)
class Published:
    """What a publish came to.

    Attributes:
        digest: the package that stands under the version: another one than was given where both say the same.
        new: whether the registry did not have it yet.
    """

    digest: str
    new: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """A package as the bucket lists it.

    Attributes:
        size_bytes: of its zip.
        modified: when it was published.
    """

    digest: str
    size_bytes: int
    modified: datetime


class PackageStore:
    """Finds packages by their digest, and puts them where they are not yet."""

    def __init__(
        self, store: ObjectStore, *, cache: Path, baked: Path = BAKED, free: Callable[[Path], int] = free_bytes
    ) -> None:
        """Make a store of packages.

        Args:
            store: the bucket.
            cache: a folder for downloaded packages; it is made when it is needed.
            baked: a folder that may hold `packages/<digest>/`.
            free: the bytes that a folder's disk has room for.
        """
        self._store = store
        self._cache = PackageCache(cache, free=free)
        self._baked = baked

    def open(self, model: str, digest: str) -> Package:
        """A package by its identity: from the layer, else from /tmp, else from the bucket, verified.

        Raises:
            InvalidPackage: the bucket's content is not what the digest says, or there is none.
            RegistryUnreachable: it is not here, and the bucket cannot be asked.
            NotServable: there is no room for it on the disk.
        """
        with self.held(model, digest) as package:
            return package

    def at_hand(self, digest: str) -> bool:
        """Whether a package can be opened without the bucket."""
        return (self._baked / "packages" / digest).is_dir() or self._cache.has(digest)

    @contextmanager
    def held(self, model: str, digest: str) -> Iterator[Package]:
        """As `open`; and no other package takes its room on the disk while it is used.

        Raises:
            InvalidPackage: as `open`.
            RegistryUnreachable: as `open`. What has arrived of it is kept, and the next call goes on from there.
            NotServable: as `open`.
        """
        baked = self._baked / "packages" / digest
        if baked.is_dir():
            yield open_package(baked, digest)
            return
        while True:
            with self._cache.using(digest) as folder:
                if folder is not None:
                    yield open_package(folder, digest)
                    return
            with self._cache.filling(digest) as slot:
                if not slot.package.is_dir():
                    download(self._store, _package_key(model, digest), digest, slot, self._cache)

    def publish(self, package: Package) -> Published:
        """Put a package where it is not yet; the same content is one package.

        A version's label is taken by the first package that comes with it, before that package itself: whoever is
        interrupted between the two can publish again. A package that differs from it only in how its manifest is
        written is the same version, as another release of Threefold makes it: the first one stands.

        Raises:
            InvalidPackage: another package of the model has this label.
            RegistryUnreachable: the bucket cannot be read or written.
        """
        manifest = package.manifest
        key = _label_key(manifest.name, manifest.version)
        if not self._create(key, package.digest.encode()):
            owner = self._text(key) or package.digest
            if owner != package.digest:
                if not self._says_the_same(package, owner):
                    message = (
                        f"model '{manifest.name}': want a version that is not taken, got {manifest.version}, "
                        f"which is package {owner[:12]}; this one is {package.digest[:12]}"
                    )
                    raise InvalidPackage(message)
                return Published(owner, new=False)
        return Published(
            package.digest, self._create(_package_key(manifest.name, package.digest), pack(package.folder))
        )

    def digest(self, model: str, reference: str) -> str:
        """The package that a person means.

        Args:
            model: a model that has packages.
            reference: a version label, a digest, or six or more characters of its beginning.

        Raises:
            UnknownModel: there is no such package, or there are several; the message says which there are.
            RegistryUnreachable: the bucket cannot be asked.
        """
        stored = {one.digest for one in self.list(model)}
        if not stored:
            message = f"model: want one with packages, got {shown(model)}"
            raise UnknownModel(message)
        if _LABEL.fullmatch(reference) and (labelled := self._text(_label_key(model, reference))) in stored:
            return str(labelled)
        found = [
            digest for digest in sorted(stored) if _BEGINNING.fullmatch(reference) and digest.startswith(reference)
        ]
        if len(found) != 1 and reference in self._labels(model):
            message = (
                f"model '{model}': want a package that is in the registry, got {reference}, which was removed: publish "
                "its folder again"
            )
            raise UnknownModel(message)
        if len(found) != 1:
            known = [digest[:12] for digest in found] or self._labels(model)
            message = f"model '{model}': want one out of {known}, got {shown(reference)}"
            raise UnknownModel(message)
        return found[0]

    def models(self) -> Sequence[str]:
        """The names of all models that have packages, sorted.

        Raises:
            RegistryUnreachable: the bucket cannot be asked.
        """
        try:
            found = obstore.list_with_delimiter(self._store, Prefix.PACKAGES)["common_prefixes"]
        except (BaseError, OSError) as error:
            raise unreachable(error) from error
        return sorted(name for path in found if MODEL_NAME.fullmatch(name := path.strip("/").rpartition("/")[2]))

    def list(self, model: str) -> Sequence[Stored]:
        """A model's packages, those published last first.

        Raises:
            RegistryUnreachable: the bucket cannot be asked.
        """
        if not MODEL_NAME.fullmatch(model):
            return []
        try:
            found = obstore.list_with_delimiter(self._store, f"{Prefix.PACKAGES}{model}/")["objects"]
        except (BaseError, OSError) as error:
            raise unreachable(error) from error
        stored = [
            Stored(name.removesuffix(".zip"), entry["size"], entry["last_modified"])
            for entry in found
            if (name := entry["path"].rpartition("/")[2]).endswith(".zip")
            and _DIGEST.fullmatch(name.removesuffix(".zip"))
        ]
        return sorted(stored, key=lambda one: one.modified, reverse=True)

    def _labels(self, model: str) -> Sequence[str]:
        try:
            found = obstore.list_with_delimiter(self._store, _label_key(model, ""))["objects"]
        except (BaseError, OSError) as error:
            raise unreachable(error) from error
        return sorted(entry["path"].rpartition("/")[2] for entry in found)

    def _says_the_same(self, package: Package, digest: str) -> bool:
        """Whether another package of the model has the same files, and a manifest that reads the same."""
        try:
            with self.held(package.manifest.name, digest) as other:
                return package.manifest == other.manifest and _contents(package.folder) == _contents(other.folder)
        except (InvalidPackage, MissingPackage):
            return False  # Nobody can say what it was.

    def _create(self, key: str, content: bytes) -> bool:
        try:
            obstore.put(self._store, key, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise unreachable(error) from error
        return True

    def _text(self, key: str) -> str | None:
        try:
            return bytes(obstore.get(self._store, key).bytes()).decode(errors="replace")
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise unreachable(error) from error


def _package_key(model: str, digest: str) -> str:
    return f"{Prefix.PACKAGES}{model}/{digest}.zip"


def _label_key(model: str, version: str) -> str:
    return f"{Prefix.PACKAGES}{model}/versions/{version}"


def _contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file but the manifest."""
    found = {}
    for path in folder.iterdir():
        if path.name != MANIFEST:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
