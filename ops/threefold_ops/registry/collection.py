"""The packages that nothing needs any more: which they are, and how they are deleted and had back."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from threefold.names import Prefix
from threefold_ops.errors import OperatorError
from threefold_ops.registry.inventory import Inventory

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from threefold_ops.registry.inventory import Stored
    from threefold_ops.target import Target

# Releases that count whatever their age: a model that nobody touched for a year can still be rolled back.
KEPT_RELEASES: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A package that can go.

    Attributes:
        version: its label; empty if it has none.
        published: when it came into the registry.
        named_until: when the last release that named it was followed by another; None if none ever named it.
    """

    model: str
    digest: str
    version: str
    size_bytes: int
    published: datetime
    named_until: datetime | None

    @property
    def key(self) -> str:
        """Where it lies in the model bucket."""
        return f"{Prefix.PACKAGES}{self.model}/{self.digest}.zip"

    def to_json(self) -> dict[str, Any]:
        """As `threefold gc --json` prints it."""
        until = self.named_until and self.named_until.isoformat()
        return {**asdict(self), "published": self.published.isoformat(), "named_until": until}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """What can go of one model.

    Attributes:
        release_id: the object version of the release that was in force; empty if the model has none.
        goes: what can go, the oldest first.
        stays: how many packages stay, by the reason: `released` now; `recent`, published within the kept days;
            `history`, named by an earlier release that counts; `job`, needed by a job that can still run; `unread`, for
            one of those releases cannot be read by this Threefold, and may name any of them.
    """

    model: str
    release_id: str
    goes: tuple[Candidate, ...]
    stays: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What can go of all models.

    Attributes:
        bucket: the model bucket.
        jobs_table: the table of jobs.
        since: how far back releases and packages are kept.
    """

    bucket: str
    jobs_table: str
    since: datetime
    models: tuple[ModelPlan, ...]

    @property
    def size_bytes(self) -> int:
        """What goes, together."""
        return sum(one.size_bytes for model in self.models for one in model.goes)

    def to_json(self) -> dict[str, Any]:
        """As `threefold gc --json` prints it."""
        models = [
            {"model": one.model, "goes": [each.to_json() for each in one.goes], "stays": dict(one.stays)}
            for one in self.models
        ]
        return {"since": self.since.isoformat(), "size_bytes": self.size_bytes, "models": models}


@dataclass(frozen=True, slots=True)
class Deleted:
    """A package that went.

    Attributes:
        marker: the object version of its delete marker; to delete that one is to have the package back.
    """

    package: Candidate
    marker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection did.

    Attributes:
        deleted: what went.
        restored: what went and was brought back at once, because a release or a job came to need it meanwhile.
        skipped: the models that were left alone, and why.
    """

    deleted: tuple[Deleted, ...]
    restored: tuple[Candidate, ...]
    skipped: Mapping[str, str]

    @property
    def size_bytes(self) -> int:
        """What went, together; the bucket keeps it for its days before it is free."""
        return sum(one.package.size_bytes for one in self.deleted)

    def to_json(self) -> dict[str, Any]:
        """As `threefold gc --json` prints it."""
        return {
            "size_bytes": self.size_bytes,
            "deleted": [{**one.package.to_json(), "marker": one.marker} for one in self.deleted],
            "restored": [one.to_json() for one in self.restored],
            "skipped": dict(self.skipped),
        }


@dataclass(frozen=True, slots=True)
class _Named:
    """What the releases of a model name: now, in those that still count, and until when in the others."""

    now: frozenset[str]
    kept: frozenset[str]
    until: Mapping[str, datetime]
    unread: bool


def plan(target: Target, bucket: str, jobs_table: str, *, keep_days: int = 90) -> Plan:
    """Say which packages nothing needs any more; nothing is changed.

    A package stays while a release names it, or one did that was in force within the kept days or is among the last 10;
    while a job that can still run is pinned to it, or to a release that names it; and for the kept days after it was
    published, waiting for its promotion.

    What deployed functions carry stands unpacked in their model layer, and is read from there, not from the registry:
    no package stays for their sake. The layers' own zips, `layers/model/*.zip`, are not looked at: deployed function
    versions are made of them. Neither are labels: one that was given to a package is never given to another.

    Args:
        target: where the registry is.
        bucket: the model bucket.
        jobs_table: the table of jobs.
        keep_days: how far back releases and packages are kept.

    Raises:
        OperatorError: the bucket or the table cannot be read.
    """
    inventory = Inventory(target, bucket, jobs_table)
    since = datetime.now(UTC) - timedelta(days=keep_days)
    try:
        # First what there is, then what needs it: what comes later is not among what can go.
        packages = inventory.packages()
        pinned = inventory.pinned()
        models = tuple(
            _plan_model(inventory, model, stored, since, pinned.get(model, set())) for model, stored in packages.items()
        )
    except (BotoCoreError, ClientError) as error:
        message = f"registry: want to read {bucket} and {jobs_table}, got {error}"
        raise OperatorError(message) from error
    return Plan(bucket=bucket, jobs_table=jobs_table, since=since, models=models)


def collect(target: Target, found: Plan) -> Collected:
    """Delete what a plan found, so that it can be had back: a delete marker hides it, until the bucket forgets it.

    A model whose release was changed since the plan is left alone. A release may change, and a job begin, while
    packages go: after the last one went, those that are needed by then are brought back. What cannot be seen is a
    promotion that has read its package and has not written its release yet. It names a package that is gone; doors that
    cannot load it go on with the champion before it, and to delete the marker brings it back.

    Args:
        target: where the registry is.
        found: what `plan` found there.

    Raises:
        OperatorError: the bucket keeps no versions, or something cannot be deleted; the message says what went before.
    """
    s3 = target.client("s3")
    inventory = Inventory(target, found.bucket, found.jobs_table)
    deleted: list[Deleted] = []
    skipped: dict[str, str] = {}
    try:
        if s3.get_bucket_versioning(Bucket=found.bucket).get("Status") != "Enabled":
            message = f"bucket {found.bucket}: want one that keeps versions, got one that deletes for good"
            raise OperatorError(message)
        for model in found.models:
            if model.goes and inventory.release_id(model.model) != model.release_id:
                skipped[model.model] = "its release was changed since the plan"
                continue
            for one in model.goes:
                done = s3.delete_object(Bucket=found.bucket, Key=one.key)
                deleted.append(Deleted(one, done["VersionId"]))
        needless = _still_needless(inventory, found, deleted)
        for each in deleted:
            if each not in needless:
                s3.delete_object(Bucket=found.bucket, Key=each.package.key, VersionId=each.marker)
    except (BotoCoreError, ClientError) as error:
        went = ", ".join(f"{each.package.key} (marker {each.marker})" for each in deleted) or "nothing"
        message = f"registry: want packages deleted from {found.bucket}, got {error}; deleted before: {went}"
        raise OperatorError(message) from error
    restored = tuple(each.package for each in deleted if each not in needless)
    return Collected(deleted=tuple(needless), restored=restored, skipped=skipped)


def _still_needless(inventory: Inventory, found: Plan, deleted: Sequence[Deleted]) -> list[Deleted]:
    """Those that went and that no release and no job needs by now."""
    if not deleted:
        return []
    planned = {model.model: model.release_id for model in found.models}
    pinned = inventory.pinned()
    needless: list[Deleted] = []
    for model in sorted({each.package.model for each in deleted}):
        mine = [each for each in deleted if each.package.model == model]
        needed = pinned.get(model, set())
        if inventory.release_id(model) != planned[model]:
            named = _named(inventory, model, found.since, {each.package.digest for each in mine})
            if named.unread:
                continue
            needed = needed | named.now | named.kept
        needless += [each for each in mine if each.package.digest not in needed]
    return needless


def _plan_model(
    inventory: Inventory, model: str, stored: Sequence[Stored], since: datetime, pinned: Collection[str]
) -> ModelPlan:
    release_id = inventory.release_id(model)
    named = _named(inventory, model, since, {one.digest for one in stored if one.published < since})
    stays: Counter[str] = Counter()
    goes = []
    for one in stored:
        if one.digest in named.now:
            stays["released"] += 1
        elif one.published >= since:
            stays["recent"] += 1
        elif one.digest in named.kept:
            stays["history"] += 1
        elif one.digest in pinned:
            stays["job"] += 1
        elif named.unread:
            stays["unread"] += 1
        else:
            goes.append(one)
    labels = inventory.labels(model) if goes else {}
    candidates = tuple(
        Candidate(
            model=model,
            digest=one.digest,
            version=labels.get(one.digest, ""),
            size_bytes=one.size_bytes,
            published=one.published,
            named_until=named.until.get(one.digest),
        )
        for one in goes
    )
    return ModelPlan(model=model, release_id=release_id, goes=candidates, stays=dict(stays))


def _named(inventory: Inventory, model: str, since: datetime, wanted: Collection[str]) -> _Named:
    """Read a model's releases, from the newest back to where all that is wanted has been found."""
    now: set[str] = set()
    kept: set[str] = set()
    until: dict[str, datetime] = {}
    unread = False
    for position, version in enumerate(inventory.releases(model)):
        if position and now | kept | until.keys() >= set(wanted):
            break
        if version.until is None:
            now |= version.digests
        elif position < KEPT_RELEASES or version.until >= since:
            kept |= version.digests
        else:
            for digest in version.digests - until.keys():
                until[digest] = version.until
            continue
        unread = unread or version.release is None
    return _Named(frozenset(now), frozenset(kept), until, unread)
