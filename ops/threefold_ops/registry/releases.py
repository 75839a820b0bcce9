"""What serves: promotions, rollbacks and settings, and who did them when and why."""

from __future__ import annotations

import getpass
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from threefold import gate
from threefold.errors import UnknownModel
from threefold.model import Model
from threefold.release import Release, Version
from threefold_ops.authoring.manifest import check_serving
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from threefold.registry import Registry
    from threefold_ops.target import Target

# The prefix of a digest that tells packages apart for people.
_SHORT: Final = 6


@dataclass(frozen=True, slots=True)
class Act:
    """Who changes a release, and why; the time is that of the change.

    Attributes:
        by: the person or role, as the release document keeps it.
        why: the reason, for those who read the history.
    """

    by: str
    why: str

    def note(self) -> dict[str, str]:
        """The fields of a release document that say so."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"at": at, "by": self.by, "why": self.why}


def operator_name(target: Target) -> str:
    """Who is at work: on AWS the caller's own identity, on this machine its user."""
    if not target.emulated:
        arn: str = target.client("sts").get_caller_identity()["Arn"]
        return arn.split(":", 5)[-1]
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as containers have them
        return "unknown"


def promote(registry: Registry, model: str, reference: str, act: Act) -> tuple[Release, Release]:
    """Make a published package the champion, if it passes its gate here and now.

    Args:
        registry: where the package and the release are.
        model: a model that has a release.
        reference: the package's version label, digest, or the digest's beginning.
        act: who and why.

    Returns:
        The release before, and the one after; the same one twice if the package is champion already.

    Raises:
        UnknownModel: no such model or package.
        InvalidPackage: the package does not pass its gate.
        ReleaseConflict: somebody else changed the release meanwhile.
        OperatorError: the package was removed from the registry meanwhile.
    """
    digest = registry.packages.digest(model, reference)
    current = registry.current(model)
    if current is not None and current[0].champion.digest == digest:
        return current[0], current[0]
    before, after = registry.change(model, lambda release: _admitted(registry, release, digest, act))
    try:
        # `gc` cannot see a promotion that has read its package and has not written its release yet.
        registry.packages.digest(model, digest)
    except UnknownModel as error:
        message = (
            f"package {digest[:12]}: want it in the registry, got it removed meanwhile; doors go on with "
            f"{before.champion.version}: publish its folder again"
        )
        raise OperatorError(message) from error
    return before, after


def roll_back(registry: Registry, model: str, reference: str | None, act: Act) -> tuple[Release, Release]:
    """Make an earlier champion the champion again, if it passes its gate here and now.

    Args:
        registry: where the packages and the release are.
        model: a model that has a release.
        reference: which of the previous champions; None means the one before.
        act: who and why.

    Returns:
        The release before, and the one after.

    Raises:
        OperatorError: there is no such earlier champion.
        UnknownModel: no such model.
        InvalidPackage: the package does not pass its gate.
        ReleaseConflict: somebody else changed the release meanwhile.
    """

    def back(release: Release) -> Release:
        return _admitted(registry, release, _earlier(release, reference).digest, act)

    return registry.change(model, back)


def configure(
    registry: Registry, model: str, changes: Mapping[str, Any], unset: Sequence[str], act: Act
) -> tuple[Release, Release]:
    """Change how a model is operated: its champion stays.

    Args:
        registry: where the release is.
        model: a model that has a release.
        changes: settings of `serving` and their new values.
        unset: settings that go back to their defaults.
        act: who and why.

    Returns:
        The release before, and the one after; the same one twice if nothing differs.

    Raises:
        OperatorError: a setting is unknown, or its value is not what it takes.
        UnknownModel: no such model.
        ReleaseConflict: somebody else changed the release meanwhile.
    """
    current = registry.current(model)
    if current is not None and _serving(current[0], changes, unset) == dict(current[0].serving):
        return current[0], current[0]
    return registry.change(model, lambda release: release.configured(_serving(release, changes, unset), **act.note()))


def changed(before: Release | None, after: Release) -> list[str]:
    """What one release made of the one before it, a few words each."""
    if before is None:
        return [f"champion {after.champion.version}"]
    said = []
    if after.champion.digest != before.champion.digest:
        back = after.champion.digest in {former.digest for former in before.previous}
        verb = "back to" if back else "champion"
        said.append(f"{verb} {after.champion.version} ({after.champion.digest[:12]}), was {before.champion.version}")
    if after.challenger != before.challenger:
        said.append(f"challenger {after.challenger.version}" if after.challenger else "no challenger")
    for name in sorted({*before.serving, *after.serving}):
        was, now = before.serving.get(name), after.serving.get(name)
        if was != now:
            said.append(f"{name} {_shown(now)}, was {_shown(was)}")
    return said


def _admitted(registry: Registry, release: Release, digest: str, act: Act) -> Release:
    """The release with a package as champion: fetched from the registry, and through its whole gate."""
    package = registry.packages.open(release.model, digest)
    gate.admit(Model(package))
    return release.promoted(Version(digest, package.manifest.version), **act.note())


def _earlier(release: Release, reference: str | None) -> Version:
    found = [
        former
        for former in release.previous
        if reference is None
        or reference in {former.version, former.digest}
        or (len(reference) >= _SHORT and former.digest.startswith(reference))
    ]
    if not found:
        wanted = [former.version for former in release.previous]
        got = "none" if reference is None else repr(reference)
        message = f"model '{release.model}': want an earlier champion out of {wanted}, got {got}"
        raise OperatorError(message)
    return found[0]


def _serving(release: Release, changes: Mapping[str, Any], unset: Sequence[str]) -> dict[str, Any]:
    if unknown := [name for name in unset if name not in release.serving]:
        message = f"serving: want settings that are set, {sorted(release.serving)}, got {unknown}"
        raise OperatorError(message)
    kept = {name: value for name, value in release.serving.items() if name not in unset}
    return check_serving({**kept, **changes})


def _shown(value: object) -> str:
    return "default" if value is None else json.dumps(value)
