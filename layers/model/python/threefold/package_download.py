"""A package's way from the bucket to the disk: what arrives stays, and goes if it turns out to be wrong."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import BaseError, PreconditionError

from threefold.errors import InvalidPackage, MissingPackage, NotServable, RegistryUnreachable
from threefold.package import MAXIMUM_BYTES, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

    from obstore import GetOptions
    from obstore.store import ObjectStore

    from threefold.package_cache import PackageCache, Slot

# One request each, so that the client's timeout holds for a part and not for a package of any size.
PART_BYTES: Final = 8 * 1024**2
# The most that a connection which breaks can lose.
_PIECE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Object:
    """One content of one key, to be read in ranges."""

    store: ObjectStore
    key: str
    size: int
    e_tag: str | None

    @property
    def name(self) -> str:
        """Another name for each content that the key ever has."""
        return hashlib.sha256(f"{self.e_tag} {self.size}".encode()).hexdigest()[:16]

    def pieces(self, start: int) -> Iterator[bytes]:
        """What follows in the next part, as it arrives."""
        options: GetOptions = {"range": (start, min(self.size, start + PART_BYTES))}
        if self.e_tag is not None:
            options["if_match"] = self.e_tag
        try:
            yield from obstore.get(self.store, self.key, options=options).stream(min_chunk_size=_PIECE_BYTES)
        except FileNotFoundError as error:
            raise _absent(self.key) from error
        except PreconditionError as error:
            message = f"registry: want one content of {self.key} while it is read, got another"
            raise RegistryUnreachable(message) from error
        except (BaseError, OSError) as error:
            raise unreachable(error) from error


def download(store: ObjectStore, key: str, digest: str, slot: Slot, cache: PackageCache) -> None:
    """Fill a package's slot.

    What has arrived when this is interrupted is kept in the slot, and the next download goes on from there: a function
    is frozen between two invocations, and no connection lives through that.

    Args:
        store: the bucket.
        key: where the zip is.
        digest: the identity that its files must have.
        slot: the package's own, locked for the caller alone.
        cache: what makes room on the disk.

    Raises:
        InvalidPackage: the bucket's content is not what the digest says, or there is none; nothing of it stays.
        RegistryUnreachable: the bucket does not answer, or nothing more came of it.
        NotServable: there is no room for it on the disk.
    """
    found = _find(store, key)
    archive = slot.archive(found.name)
    try:
        while True:
            arrived = _size(archive)
            # The files take about as much as their zip, at least; its directory says how much once it is here.
            cache.with_room(2 * found.size - arrived, digest, partial(_complete, found, archive))
            try:
                cache.with_room(_unpacked_bytes(archive), digest, partial(unpack, archive, digest, slot.package))
            except InvalidPackage:
                archive.unlink()
                # It may be the part that was here before that is wrong.
                if not arrived:
                    raise
            else:
                archive.unlink()
                return
    except OSError as error:
        message = f"package {digest[:12]}: want it written to the disk, got {error}"
        raise NotServable(message) from error


def _find(store: ObjectStore, key: str) -> _Object:
    try:
        found = obstore.head(store, key)
    except FileNotFoundError as error:
        raise _absent(key) from error
    except (BaseError, OSError) as error:
        raise unreachable(error) from error
    if found["size"] > MAXIMUM_BYTES:
        message = f"package: want at most {MAXIMUM_BYTES} bytes, got {found['size']} in {key}"
        raise InvalidPackage(message)
    return _Object(store, key, found["size"], found["e_tag"])


def _complete(found: _Object, archive: Path) -> None:
    """Add to a zip what is missing at its end."""
    with archive.open("ab", buffering=0) as file:
        while (start := file.tell()) < found.size:
            try:
                for piece in found.pieces(start):
                    _write(file, piece)
            except RegistryUnreachable:
                # A connection that brought something was one: the next goes on where it broke.
                if file.tell() == start:
                    raise
            if file.tell() == start:
                message = f"registry: want {found.size} bytes of {found.key}, got {start} and no more"
                raise RegistryUnreachable(message)


def _write(file: FileIO, piece: bytes) -> None:
    # An unbuffered file takes what there is room for, and says how much that was.
    rest = memoryview(piece)
    while rest:
        rest = rest[file.write(rest) :]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unpacked_bytes(archive: Path) -> int:
    """What the files take, as the zip's directory says; 0 for a zip that will be refused for what it is."""
    try:
        with zipfile.ZipFile(archive) as file:
            total = sum(entry.file_size for entry in file.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return 0
    return total if total <= MAXIMUM_BYTES else 0


def _absent(key: str) -> MissingPackage:
    return MissingPackage(f"package: want it in the registry, got no {key}")


def unreachable(error: Exception) -> RegistryUnreachable:
    """What a client's error means: the bucket does not answer."""
    return RegistryUnreachable(f"registry: want the model bucket to answer, got {first_line(error)}")


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error) or repr(error)).splitlines()[0]
