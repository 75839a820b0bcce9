"""The release document: which package of a model serves, and which one a record goes to."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from threefold.errors import InvalidManifest, UnknownModel

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA: Final = 1
# How many former champions a release names: what a rollback can go back to, and `/versions/{v}` can reach.
PREVIOUS: Final = 10
MODEL_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

Role = Literal["champion", "canary", "previous", "fallback"]


@dataclass(frozen=True, slots=True)
class Version:
    """One package by its identity and its label."""

    digest: str
    version: str


@dataclass(frozen=True, slots=True)
class Challenger(Version):
    """A package on trial: a canary answers its share of the records, a shadow answers nobody."""

    mode: Literal["canary", "shadow"]
    percent: float
    salt: str


@dataclass(frozen=True, slots=True)
class Route:
    """Where a record goes."""

    digest: str
    version: str
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Per model: a pointer to one champion and at most one challenger, and how they are operated."""

    model: str
    champion: Version
    challenger: Challenger | None = None
    serving: Mapping[str, Any] = field(default_factory=dict)
    previous: tuple[Version, ...] = ()
    at: str = ""
    by: str = ""
    why: str = ""

    def named(self) -> tuple[Version, ...]:
        """Every package that this release names, the champion first."""
        return (self.champion, *((self.challenger,) if self.challenger else ()), *self.previous)

    def find(self, version: str) -> Route:
        """Where a caller goes who asks for a version label or a digest.

        Raises:
            UnknownModel: this release does not name it.
        """
        for candidate in self.named():
            if version in {candidate.version, candidate.digest}:
                role: Role = "previous"
                if candidate is self.champion:
                    role = "champion"
                elif candidate is self.challenger:
                    role = "canary"
                return Route(candidate.digest, candidate.version, role)
        wanted = [candidate.version for candidate in self.named()]
        message = f"model '{self.model}': want a version out of {wanted}, got {version!r}"
        raise UnknownModel(message)

    def promoted(self, version: Version, *, at: str, by: str, why: str) -> Release:
        """The release that makes a package champion; a challenger is through with its trial.

        The former champion comes first among the previous. To promote one of those is to go back to it: what came
        after it is named no more, so that the next rollback goes further back, and not to what was just left.
        """
        digests = [former.digest for former in self.previous]
        if version.digest in digests:
            previous = self.previous[digests.index(version.digest) + 1 :]
        elif version.digest == self.champion.digest:
            previous = self.previous
        else:
            previous = (self.champion, *self.previous)[:PREVIOUS]
        champion = Version(version.digest, version.version)
        return replace(self, champion=champion, challenger=None, previous=previous, at=at, by=by, why=why)

    def configured(self, serving: Mapping[str, Any], *, at: str, by: str, why: str) -> Release:
        """The release that operates the same packages in another way."""
        return replace(self, serving=dict(serving), at=at, by=by, why=why)

    def to_json(self) -> dict[str, Any]:
        """The document as the registry keeps it."""
        challenger = self.challenger
        return {
            "schema": SCHEMA,
            "model": self.model,
            "champion": _version_to_json(self.champion),
            "challenger": challenger
            and {
                **_version_to_json(challenger),
                "mode": challenger.mode,
                "percent": challenger.percent,
                "salt": challenger.salt,
            },
            "serving": dict(self.serving),
            "previous": [_version_to_json(version) for version in self.previous],
            "at": self.at,
            "by": self.by,
            "why": self.why,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Release:
        """Read a release document.

        Raises:
            InvalidManifest: it has a newer schema, or it is no release document.
        """
        try:
            check_schema("release document", document["schema"], SCHEMA)
            challenger = document["challenger"]
            return cls(
                model=document["model"],
                champion=_version(document["champion"]),
                challenger=challenger and Challenger(**challenger),
                serving=document["serving"],
                previous=tuple(map(_version, document["previous"])),
                at=document["at"],
                by=document["by"],
                why=document["why"],
            )
        except (KeyError, TypeError) as error:
            message = f"release document: want the fields of schema {SCHEMA}, got {error!r}"
            raise InvalidManifest(message) from error


def route(release: Release, key: str) -> Route:
    """Say which package answers for a routing key: pure, sticky, and salted by the challenger.

    Args:
        release: the release in force.
        key: the record's own key, else its prediction id.
    """
    challenger = release.challenger
    if challenger is not None and challenger.mode == "canary":
        # The digest and the salt are in the hash, so that it is not the same customers who go first every time.
        text = f"{release.model}\n{challenger.digest}\n{challenger.salt}\n{key}"
        if zlib.crc32(text.encode()) % 10_000 < challenger.percent * 100:
            return Route(challenger.digest, challenger.version, "canary")
    return Route(release.champion.digest, release.champion.version, "champion")


def check_schema(what: str, got: object, newest: int) -> None:
    """Refuse a schema from the future.

    Raises:
        InvalidManifest: `got` is not a schema number up to `newest`.
    """
    if not isinstance(got, int) or isinstance(got, bool) or not 1 <= got <= newest:
        message = f"{what}: want schema {newest} or older, got {got!r}; upgrade Threefold to read a newer one"
        raise InvalidManifest(message)


def _version(document: Mapping[str, Any]) -> Version:
    """A version by what makes it one; what a later Threefold may say beside it changes nothing."""
    return Version(document["digest"], document["version"])


def _version_to_json(version: Version) -> dict[str, str]:
    return {"digest": version.digest, "version": version.version}
