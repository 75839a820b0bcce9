"""Downloaded packages on a disk of limited size: each in a slot with a lock, the least recently used first out."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from threefold.errors import NotServable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Left to whoever else writes there, and for what files take beside their content.
SPARE_BYTES: Final = 16 * 1024**2
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_GONE: Final = ".gone-"

T = TypeVar("T")


def free_bytes(folder: Path) -> int:
    """What a folder's disk has room for."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one package lies: its folder, and before that what has arrived of its zip."""

    folder: Path

    @property
    def package(self) -> Path:
        """The unpacked package; it is there as a whole or not at all."""
        return self.folder / "package"

    def archive(self, content: str) -> Path:
        """The zip, as far as it has arrived; whatever came of another content goes.

        Args:
            content: names what the bucket holds now, so that no two contents are ever joined.
        """
        archive = self.folder / f"{content}.zip"
        for path in self.folder.iterdir():
            if path not in {archive, self.package}:
                _remove(path)
        return archive


class PackageCache:
    """A folder of slots, which processes and threads may share.

    Whoever uses a package holds its slot's lock with others; whoever fills or drops it holds the lock alone. The lock
    is the operating system's own, on the slot's folder, so that it ends with the process.
    """

    def __init__(self, folder: Path, *, free: Callable[[Path], int] = free_bytes) -> None:
        """Make a cache.

        Args:
            folder: it is made when it is needed.
            free: the bytes that a folder's disk has room for.
        """
        self._folder = folder
        self._free = free

    def has(self, digest: str) -> bool:
        """Whether a package is there."""
        return Slot(self._folder / digest).package.is_dir()

    @contextmanager
    def using(self, digest: str) -> Iterator[Path | None]:
        """A package's folder, which stays while it is used; None if it is not there."""
        # Asked first, because a slot is made by asking for its lock.
        if not self.has(digest):
            yield None
            return
        slot = Slot(self._folder / digest)
        lock = _lock(slot.folder, fcntl.LOCK_SH)
        try:
            now_ns = time.time_ns()  # the file system's own clock may tick some milliseconds apart
            os.utime(slot.folder, ns=(now_ns, now_ns))
            yield slot.package if slot.package.is_dir() else None
        finally:
            os.close(lock)

    @contextmanager
    def filling(self, digest: str) -> Iterator[Slot]:
        """A package's slot, which is the caller's alone; the package may be there by now."""
        slot = Slot(self._folder / digest)
        lock = _lock(slot.folder, fcntl.LOCK_EX)
        try:
            yield slot
        finally:
            with suppress(OSError):
                slot.folder.rmdir()  # if nothing is in it
            os.close(lock)

    def with_room(self, size_bytes: int, digest: str, act: Callable[[], T]) -> T:
        """Do what takes so much room on the disk, when there is as much.

        Packages that nobody uses make room. If the disk is full all the same, all of them go and `act` has one more
        try.

        Raises:
            NotServable: there is not enough room for the package now.
        """
        self._make_room(size_bytes, digest)
        try:
            return act()
        except (OSError, NotServable) as error:
            if not _is_full(error):
                raise
        for slot in self._others(digest):
            _drop(slot)
        try:
            return act()
        except (OSError, NotServable) as error:
            if not _is_full(error):
                raise
            raise _no_room(size_bytes, digest, self._free(self._folder), 0) from error

    def _make_room(self, size_bytes: int, digest: str) -> None:
        wanted = size_bytes + SPARE_BYTES
        if self._free(self._folder) >= wanted:
            return
        idle = self._others(digest)
        droppable = sum(map(_size, idle))
        free = self._free(self._folder)
        if free + droppable >= wanted:
            for slot in idle:
                if free >= wanted:
                    break
                _drop(slot)
                free = self._free(self._folder)
        if free < wanted:
            raise _no_room(size_bytes, digest, free, droppable)

    def _others(self, digest: str) -> list[Path]:
        """All other slots, the least recently used first."""
        slots = []
        for path in self._folder.iterdir():
            if path.name.startswith(_GONE):
                _remove(path)
            elif path.name != digest:
                slots.append((_used_ns(path), path))
        return [path for _, path in sorted(slots)]


def _lock(folder: Path, how: int) -> int:
    """Wait for a slot's lock, and make the slot if it is not there; the lock ends when what this returns is closed."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, how)
            if _is(descriptor, folder):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # It was dropped while we waited, and may be another one by now.
        os.close(descriptor)


def _drop(slot: Path) -> None:
    """Remove a slot, unless somebody uses or fills it."""
    try:
        descriptor = os.open(slot, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is(descriptor, slot):
            # Renamed first: a removal that is cut short must not leave half a package.
            gone = slot.with_name(f"{_GONE}{os.urandom(8).hex()}")
            slot.rename(gone)
            _remove(gone)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)


def _is(descriptor: int, folder: Path) -> bool:
    """Whether a locked folder still stands where it stood when it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _used_ns(slot: Path) -> int:
    try:
        return slot.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue
    return total


def _is_full(error: Exception) -> bool:
    """Whether a full disk is at the bottom of an error."""
    cause = error.__cause__ if isinstance(error, NotServable) else error
    return isinstance(cause, OSError) and cause.errno in _FULL


def _no_room(size_bytes: int, digest: str, free: int, droppable: int) -> NotServable:
    return NotServable(
        f"package {digest[:12]}: want {size_bytes} bytes of room on the disk and {SPARE_BYTES} to spare, "
        f"got {free} that are free and {droppable} in other packages"
    )
