"""Releases in the versioned bucket: when it is asked, and what holds while it cannot be."""

from __future__ import annotations

import json
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotModifiedError,
    PreconditionError,
)
from obstore.store import S3Store

from threefold.errors import (
    InvalidManifest,
    NotServable,
    RegistryUnreachable,
    ReleaseConflict,
    UnknownModel,
    shown,
)
from threefold.names import Prefix
from threefold.package_download import first_line, unreachable
from threefold.package_store import BAKED, PackageStore
from threefold.release import MODEL_NAME, Release

if TYPE_CHECKING:
    from collections.abc import Callable

    from obstore.store import ObjectStore

    from threefold.settings import Settings

# Names that no release has are remembered too, so that a guesser costs one read a name; and no more than these.
_MAXIMUM_MISSES: Final = 1000
# What a read of a document may fail with: the bucket, or the text in it.
_UNREADABLE: Final = (BaseError, OSError, ValueError, InvalidManifest)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A release document as this process knows it.

    Attributes:
        id: the document's object version in the bucket, or its e-tag where the store has no versions.
        stale: the registry could not be reached when this should have been confirmed.
    """

    release: Release
    id: str
    stale: bool = False


@dataclass(frozen=True, slots=True)
class _Known:
    confirmed: Confirmed
    e_tag: str | None
    until: float


def open_store(bucket: str, settings: Settings) -> S3Store:
    """The bucket through a light client that imports in a fraction of boto3's time."""
    return S3Store(
        bucket,
        region=settings.region or None,
        client_options={"connect_timeout": timedelta(seconds=1), "timeout": timedelta(seconds=5), "allow_http": True},
        # A release is asked for while a caller waits: two quick tries more, then the last good one holds.
        retry_config={
            "max_retries": 2,
            "retry_timeout": timedelta(seconds=2),
            "backoff": {
                "init_backoff": timedelta(milliseconds=50),
                "max_backoff": timedelta(milliseconds=200),
                "base": 2,
            },
        },
    )


class Registry:
    """Reads releases and packages, and writes them conditionally.

    A release is confirmed with the bucket at most every `refresh_seconds`; between, and while the bucket cannot be
    reached, the last good one holds.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        cache: Path,
        baked: Path = BAKED,
        refresh_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a registry over a store.

        Args:
            store: the bucket.
            cache: a folder for downloaded packages; it is made when it is needed.
            baked: a folder that may hold `packages/<digest>/` and `releases/<model>.json`.
            refresh_seconds: how long a confirmed release is good for.
            clock: seconds that never go back.
        """
        self._store = store
        self.packages = PackageStore(store, cache=cache, baked=baked)
        self._baked = baked
        self._refresh_seconds = refresh_seconds
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._pinned: dict[tuple[str, str], Confirmed] = {}
        # Apart from what is known, so that a guesser of names pushes no release out.
        self._misses: OrderedDict[str, float] = OrderedDict()
        self._models: tuple[float, list[str]] | None = None

    def release(self, model: str) -> Confirmed:
        """The release in force.

        Raises:
            UnknownModel: the registry has none for this name.
            RegistryUnreachable: it cannot be asked, and nothing is known from before or from the layer.
            NotServable: the document cannot be read, and nothing is known from before or from the layer.
        """
        known = self._known.get(model)
        now = self._clock()
        if known is None or now >= known.until:
            known = self._confirm(model, known, now)
        if known is None:
            raise _without_release(model)
        return known.confirmed

    def pinned(self, model: str, release_id: str) -> Confirmed:
        """The release as it was in one object version, whatever was promoted since.

        Raises:
            UnknownModel: there is no such version.
            RegistryUnreachable: the bucket cannot be asked.
            NotServable: the document cannot be read.
        """
        if (known := self._pinned.get((model, release_id))) is not None:
            return known
        try:
            result = obstore.get(self._store, _release_key(model), options={"version": release_id})
            release = Release.from_json(json.loads(bytes(result.bytes())))
        except FileNotFoundError as error:
            message = f"model '{model}': want its release {release_id}, got none"
            raise UnknownModel(message) from error
        except _UNREADABLE as error:
            raise _without_document(model, error) from error
        confirmed = self._pinned[model, release_id] = Confirmed(release, release_id)
        return confirmed

    def models(self) -> list[str]:
        """The names of all models that have a release, sorted.

        Raises:
            RegistryUnreachable: the bucket cannot be asked, and the layer holds none.
        """
        now = self._clock()
        if self._models is None or now >= self._models[0]:
            try:
                paths = [entry["path"] for page in obstore.list(self._store, Prefix.RELEASES) for entry in page]
                found = [name for path in paths if (name := _model_of(path)) is not None]
            except (BaseError, OSError) as error:
                found = self._models[1] if self._models else self.baked()
                if not found:
                    raise unreachable(error) from error
            self._models = (now + self._refresh_seconds, sorted(found))
        return self._models[1]

    def baked(self) -> list[str]:
        """The models whose champions the layer carries."""
        return sorted(path.stem for path in (self._baked / Prefix.RELEASES).glob("*.json"))

    def write_release(self, release: Release, *, replaces: str | None) -> str:
        """Write a release document if nobody changed it meanwhile.

        Args:
            release: the new document.
            replaces: the e-tag of the document that this one follows; None for a model's first.

        Returns:
            The new document's e-tag.

        Raises:
            ReleaseConflict: the document in the bucket is another one by now.
            RegistryUnreachable: the bucket cannot be written.
        """
        content = json.dumps(release.to_json(), indent=2).encode()
        try:
            result = obstore.put(
                self._store,
                _release_key(release.model),
                content,
                mode="create" if replaces is None else {"e_tag": replaces},
                use_multipart=False,
            )
        except (AlreadyExistsError, PreconditionError) as error:
            wanted = "the one that this change began with" if replaces else "none there yet"
            message = f"release of '{release.model}': want {wanted}, got another written meanwhile"
            raise ReleaseConflict(message) from error
        except (BaseError, OSError) as error:
            raise unreachable(error) from error
        self._forget(release.model)
        return result["e_tag"] or ""

    def current(self, model: str) -> tuple[Release, str] | None:
        """The release as it stands in the bucket now and its e-tag, for a change to it; None if there is none."""
        self._forget(model)
        try:
            self.release(model)
        except UnknownModel:
            return None
        known = self._known[model]
        if known.confirmed.stale:
            message = "registry: want it to answer before a release is changed, got no answer"
            raise RegistryUnreachable(message)
        return known.confirmed.release, known.e_tag or ""

    def change(self, model: str, act: Callable[[Release], Release]) -> tuple[Release, Release]:
        """Write what follows from the release as it stands, unless somebody else is first.

        Args:
            model: a model that has a release.
            act: the new document for the current one; what it raises stops the change.

        Returns:
            The release before, and the one after.

        Raises:
            UnknownModel: the model has no release.
            ReleaseConflict: another release was written meanwhile; the message says which, by whom and why.
            RegistryUnreachable: the bucket cannot be read or written.
        """
        found = self.current(model)
        if found is None:
            raise _without_release(model)
        before, e_tag = found
        after = act(before)
        try:
            self.write_release(after, replaces=e_tag)
        except ReleaseConflict as error:
            now = self.current(model)
            message = f"{error}: {_changes(before, now[0])}" if now else str(error)
            raise ReleaseConflict(message) from error
        return before, after

    def _forget(self, model: str) -> None:
        self._known.pop(model, None)
        self._misses.pop(model, None)
        self._models = None

    def _confirm(self, model: str, known: _Known | None, now: float) -> _Known | None:
        if not MODEL_NAME.fullmatch(model) or now < self._misses.get(model, now):
            return None
        until = now + self._refresh_seconds
        try:
            found = self._read(model, known, until)
        except _UNREADABLE as error:
            found = self._without_registry(model, known, until, error)
        if found is None:
            self._known.pop(model, None)
            self._misses[model] = until
            self._misses.move_to_end(model)
            while len(self._misses) > _MAXIMUM_MISSES:
                self._misses.popitem(last=False)
            return None
        self._misses.pop(model, None)
        self._known[model] = found
        return found

    def _read(self, model: str, known: _Known | None, until: float) -> _Known | None:
        condition = {"if_none_match": known.e_tag} if known is not None and known.e_tag else {}
        try:
            result = obstore.get(self._store, _release_key(model), options=condition)  # type: ignore[arg-type]
        except NotModifiedError:
            assert known is not None, "the e-tag came with it"
            return _Known(Confirmed(known.confirmed.release, known.confirmed.id), known.e_tag, until)
        except FileNotFoundError:
            return None
        release = Release.from_json(json.loads(bytes(result.bytes())))
        e_tag = result.meta["e_tag"]
        return _Known(Confirmed(release, result.meta["version"] or e_tag or ""), e_tag, until)

    def _without_registry(self, model: str, known: _Known | None, until: float, error: Exception) -> _Known:
        if known is not None:
            return _Known(Confirmed(known.confirmed.release, known.confirmed.id, stale=True), known.e_tag, until)
        baked = self._baked / Prefix.RELEASES / f"{model}.json"
        if not baked.is_file():
            raise _without_document(model, error) from error
        release = Release.from_json(json.loads(baked.read_bytes()))
        return _Known(Confirmed(release, "baked", stale=True), None, until)


def open_registry(settings: Settings) -> Registry:
    """The registry of a function, as its settings say."""
    return Registry(
        open_store(settings.model_bucket, settings),
        cache=Path(tempfile.gettempdir()) / "threefold-packages",
        refresh_seconds=settings.refresh_seconds,
    )


def _without_release(model: str) -> UnknownModel:
    return UnknownModel(f"model: want one with a release, got {shown(model)}")


def _changes(before: Release, now: Release) -> str:
    """What somebody else has made of a release, in one line."""
    was, document = before.to_json(), now.to_json()
    changed = [name for name in ("champion", "challenger", "serving") if was[name] != document[name]]
    what = f"champion {now.champion.version}" if "champion" in changed else f"another {' and '.join(changed)}"
    return f"{what} by {now.by or 'somebody'} at {now.at}" + (f" ({now.why})" if now.why else "")


def _release_key(model: str) -> str:
    return f"{Prefix.RELEASES}{model}.json"


def _model_of(path: str) -> str | None:
    """The model whose release stands at a path; None for what else may lie beside."""
    name = path.removeprefix(Prefix.RELEASES).removesuffix(".json")
    return name if path.endswith(".json") and MODEL_NAME.fullmatch(name) else None


def _without_document(model: str, error: Exception) -> NotServable:
    """Why there is no release: the bucket does not answer, or what it holds cannot be read."""
    if isinstance(error, BaseError | OSError):
        return unreachable(error)
    return NotServable(f"release of '{model}': want a readable document, got {first_line(error)}")
