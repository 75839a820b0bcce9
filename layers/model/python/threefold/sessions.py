"""Loaded models in memory: many models for one function, within a budget of bytes."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from threefold.errors import NotServable
from threefold.model import memory_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from threefold.model import Model
    from threefold.package import Package

# How long a package that could not be had is left alone while another one answers: a bucket that does not answer takes
# seconds to say so, and not of every request.
RETRY_SECONDS: Final = 5.0
# A package that was refused is tried again too, for what was damaged may have been put right; but seldom, for each try
# costs a download and a gate.
REFUSED_SECONDS: Final = 300.0
# Two, so that a slow download of one model does not keep another one waiting.
_THREADS: Final = 2
# Digests that are no longer released make room for those that are.
_MAXIMUM_FAILURES: Final = 1000


@dataclass(frozen=True, slots=True)
class _Failure:
    kind: type[NotServable]
    message: str
    until: float


class Sessions:
    """A least-recently-used cache of loaded and checked models, by digest.

    A model is brought in two steps: its package is fetched to the disk, then it is opened in memory. Models that have
    to go, go before the new one is opened. The budget may be passed by one model, so that a model larger than the
    budget can be served, alone. Threads may share this; no two of them open a model at the same time.
    """

    def __init__(
        self,
        fetch: Callable[[str, str], Package],
        load: Callable[[str, str], Model],
        *,
        budget_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an empty cache.

        Args:
            fetch: brings the package of (model name, digest) to the disk.
            load: gives a loaded and checked model for (model name, digest).
            budget_bytes: what the models kept may take together.
            clock: seconds that never go back.
        """
        self._fetch = fetch
        self._load = load
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._models: OrderedDict[str, Model] = OrderedDict()
        self._bringing: dict[str, Future[None]] = {}
        self._failures: OrderedDict[str, _Failure] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self._state = threading.RLock()
        self._opening = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """What the models kept take together."""
        with self._state:
            return sum(model.size_bytes for model in self._models.values())

    def __len__(self) -> int:
        """How many models are kept."""
        return len(self._models)

    def peek(self, digest: str) -> Model | None:
        """The model if it is loaded."""
        with self._state:
            if (model := self._models.get(digest)) is not None:
                self._models.move_to_end(digest)
            return model

    def fetch(self, name: str, digest: str) -> Package:
        """The package, downloaded now if need be.

        Raises:
            NotServable: it cannot be had; a refused package is not tried again for `REFUSED_SECONDS`.
        """
        return self._fetch_sized(name, digest)[0]

    def get(self, name: str, digest: str) -> Model:
        """The model, loaded now if need be, whatever has to go for it.

        Raises:
            NotServable: its package cannot be had or must not be served; a refused package is not tried again for
                `REFUSED_SECONDS`.
        """
        if (model := self.peek(digest)) is not None:
            return model
        with self._state:
            future = self._bringing.get(digest)
        if future is not None:
            future.result()
        _, size_bytes = self._fetch_sized(name, digest)
        with self._opening:
            if (model := self.peek(digest)) is not None:
                return model
            self._stop_refused(digest)
            self._drop_until_fit(size_bytes, None)
            return self._open(name, digest)

    def get_within(self, name: str, digest: str, seconds: float | None, *, beside: str) -> Model | None:
        """The model, or None if it is not loaded within the time; the load goes on beside.

        If there is room in memory for one of the two only, the package is fetched beside. Then the model that answers
        meanwhile goes, and the new one is opened while the caller waits: the two are never held together.

        Args:
            name: the model's name.
            digest: the package that is wanted.
            seconds: the time; None waits as long as it takes.
            beside: the digest of the model that answers meanwhile.

        Raises:
            NotServable: as `get`; and what may pass is tried again only after `RETRY_SECONDS`.
        """
        if (model := self.peek(digest)) is not None:
            return model
        future, _ = self._beside(digest, lambda: self._bring(name, digest, beside))
        if not wait([future], timeout=seconds).done:
            return None
        future.result()
        return self.get(name, digest)

    def fetch_within(self, name: str, digest: str, seconds: float) -> Package | None:
        """The package, or None if it is not on the disk within the time; the download goes on beside.

        Who asks again while it is on its way does not wait once more.

        Raises:
            NotServable: as `get_within`.
        """
        future, new = self._beside(digest, lambda: self._fetch_sized(name, digest))
        if not wait([future], timeout=seconds if new else 0).done:
            return None
        future.result()
        return self.fetch(name, digest)

    def _beside(self, digest: str, bring: Callable[[], object]) -> tuple[Future[None], bool]:
        """Bring something of a package in another thread; what that is doing, and whether it began with it now."""
        self._stop_failed(digest)

        def run() -> None:
            try:
                bring()
            finally:
                with self._state:
                    del self._bringing[digest]

        with self._state:
            if (future := self._bringing.get(digest)) is not None:
                return future, False
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="load")
            future = self._bringing[digest] = self._pool.submit(run)
            return future, True

    def _bring(self, name: str, digest: str, beside: str) -> None:
        """Fetch a package, and open it if that leaves the model that answers meanwhile where it is."""
        _, size_bytes = self._fetch_sized(name, digest)
        with self._opening:
            if self.peek(digest) is None and self._drop_until_fit(size_bytes, beside):
                self._open(name, digest)

    def _fetch_sized(self, name: str, digest: str) -> tuple[Package, int]:
        """A package, and what its model will take in memory."""
        self._stop_refused(digest)
        try:
            package = self._fetch(name, digest)
            return package, memory_bytes(package)
        except NotServable as error:
            self._remember(digest, error)
            raise
        except Exception as error:
            # Whatever it is: the last good model answers in its place, and not an error to every caller.
            failure = self._remember(digest, _unforeseen(digest, error))
            raise failure.kind(failure.message) from error

    def _drop_until_fit(self, size_bytes: int, kept: str | None) -> bool:
        """Drop the least recently used models until so many bytes fit in; none if that cannot be without `kept`."""
        with self._state:
            staying = self._models.get(kept) if kept is not None else None
            if staying is not None and staying.size_bytes + size_bytes > self._budget_bytes:
                return False
            before = len(self._models)
            for digest in list(self._models):
                if self.size_bytes + size_bytes <= self._budget_bytes:
                    break
                if digest != kept:
                    del self._models[digest]
        if len(self._models) < before:
            _give_back()
        return True

    def _open(self, name: str, digest: str) -> Model:
        try:
            model = self._load(name, digest)
        except NotServable as error:
            failure = self._remember(digest, error)
        except MemoryError:
            failure = self._remember(digest, NotServable(f"package {digest[:12]}: want memory to load it, got no more"))
        except Exception as error:  # noqa: BLE001 - as above
            failure = self._remember(digest, _unforeseen(digest, error))
        else:
            with self._state:
                self._models[digest] = model
                self._failures.pop(digest, None)
            return model
        _give_back()
        # A new error: the first one's frames hold what was loaded, and the model that stands in needs the memory.
        raise failure.kind(failure.message)

    def _stop_refused(self, digest: str) -> None:
        failure = self._failures.get(digest)
        if failure is not None and not failure.kind.retryable and self._clock() < failure.until:
            # A new one each time: an exception that is raised again keeps the frames of every time before.
            raise failure.kind(failure.message)

    def _stop_failed(self, digest: str) -> None:
        self._stop_refused(digest)
        failure = self._failures.get(digest)
        if failure is not None and self._clock() < failure.until:
            raise failure.kind(failure.message)

    def _remember(self, digest: str, error: NotServable) -> _Failure:
        rest = RETRY_SECONDS if error.retryable else REFUSED_SECONDS
        failure = _Failure(type(error), str(error), self._clock() + rest)
        with self._state:
            self._failures[digest] = failure
            self._failures.move_to_end(digest)
            while len(self._failures) > _MAXIMUM_FAILURES:
                self._failures.popitem(last=False)
        return failure


def _unforeseen(digest: str, error: Exception) -> NotServable:
    return NotServable(f"package {digest[:12]}: want it loaded, got {error!r:.200}")


def _give_back() -> None:
    """Have the allocator give back what dropped and refused models took.

    glibc keeps blocks of up to 32 MB for itself: measured with two models of 32 MB, one after the other, they came to
    203 MB without this and to 142 MB with it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # another C library has none
        trim(0)
