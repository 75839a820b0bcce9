"""The monitor: what is served passes its gate again and again, or an earlier champion serves in its place."""

from __future__ import annotations

import math
import random
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from threefold import gate
from threefold.errors import (
    InvalidPackage,
    Malformed,
    MissingPackage,
    RegistryUnreachable,
    ReleaseConflict,
    UnknownModel,
    shown,
)
from threefold.jobs import iso
from threefold.model import Model
from threefold.names import Metric
from threefold.package_store import PackageStore
from threefold.registry import Registry, open_store
from threefold.settings import Settings
from threefold.telemetry import Telemetry

if TYPE_CHECKING:
    from obstore.store import ObjectStore

    from threefold.package import Package
    from threefold.release import Release, Version

Event = dict[str, Any]

# Left before the function's deadline to say what was not done; no check is begun after it.
RESERVE_SECONDS: Final = 30.0
# The setting in a release's `serving` that lets this function change the release.
ROLLBACK: Final = "rollback_on_failure"
BY: Final = "monitor"
MAXIMUM_REASON: Final = 500
# More findings tell a reader nothing that their number does not.
MAXIMUM_FINDINGS: Final = 20


@dataclass(frozen=True, slots=True)
class Seen:
    """One package after its gate.

    Attributes:
        role: champion, challenger or previous.
        version: which package.
        report: what the gate saw.
        slow: whether a record takes longer than the package's gate allows. It is told, and decides nothing: the
            processor here is shared, and not the one that serves.
    """

    role: str
    version: Version
    report: gate.Report
    slow: bool = False

    @property
    def passed(self) -> bool | None:
        """Whether the package may be served; None if the time ran out before that was known."""
        if self.report.findings:
            return False
        return True if self.report.complete else None

    def to_json(self) -> dict[str, Any]:
        """What log and caller are told."""
        report = self.report
        return {
            "role": self.role,
            "version": self.version.version,
            "digest": self.version.digest,
            "passed": self.passed,
            "findings": [str(finding) for finding in report.findings[:MAXIMUM_FINDINGS]],
            "value": _finite(report.value),
            "latency_ms": _finite(report.latency_ms),
            "slow": self.slow,
        }


def handler(event: Event | None, context: Any) -> dict[str, Any]:  # noqa: ANN401 - Lambda's context
    """Run the gates of one model's packages, if the event names one, or of all models'.

    Returns:
        `models`: what was seen of each, and what was done. `left`: those that there was no time for; as each run takes
        another order, all get their turn.

    Raises:
        Malformed: the event's model is no name.
        RegistryUnreachable: some releases or packages could not be read. All others were inspected before.
    """
    started = time.perf_counter()
    deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - RESERVE_SECONDS
    try:
        return _run((event or {}).get("model"), deadline)
    finally:
        _telemetry().flush(started)


def _run(only: object, deadline: float) -> dict[str, Any]:
    if not (only is None or isinstance(only, str)):
        message = f"model: want a name, or nothing for all models, got {shown(only)}"
        raise Malformed(message)
    telemetry, done, left, unreachable = _telemetry(), [], [], []
    # As the bucket has it: neither what the layer holds nor what was read before may hide that it is damaged.
    nothing = Path(tempfile.gettempdir()) / "threefold-nothing"
    registry = Registry(_store(), cache=nothing, baked=nothing, refresh_seconds=0)
    models = registry.models() if only is None else [only]
    for model in random.sample(models, len(models)):
        if time.monotonic() > deadline:
            left.append(model)
            continue
        try:
            found = _watch(registry, model, deadline)
        except UnknownModel as error:
            found = {"error": str(error), "code": error.code}
            telemetry.logger.warning("model not found", model=model)
        except RegistryUnreachable as error:
            unreachable.append(model)
            found = {"error": str(error), "code": error.code}
            telemetry.logger.warning("registry not reached", model=model, reason=str(error))
        except Exception as error:  # whatever it is, the other models have their turn
            found = {"error": f"{type(error).__name__}: {error}", "code": getattr(error, "code", "internal")}
            telemetry.logger.exception("model not inspected", model=model)
            telemetry.add(Metric.ERRORS, 1, model)
        done.append({"model": model, **found})
        if any(package["passed"] is None for package in found.get("packages", ())):
            left.append(model)
    if left:
        telemetry.logger.warning("time ran out", left=sorted(left), inspected=len(done))
    if unreachable:
        message = f"registry: want the releases and packages of all models, got none of {sorted(unreachable)}"
        raise RegistryUnreachable(message)
    return {"models": sorted(done, key=lambda each: str(each["model"])), "left": sorted(left)}


def _watch(registry: Registry, model: str, deadline: float) -> dict[str, Any]:
    """Run the gates of what one model serves, and of what it would go back to."""
    current = registry.current(model)
    if current is None:
        message = f"model: want one with a release, got {shown(model)}"
        raise UnknownModel(message)
    release = current[0]
    seen = [_see(model, "champion", release.champion, deadline)]
    if release.challenger is not None:
        seen.append(_see(model, "challenger", release.challenger, deadline))
    if release.previous:
        seen.append(_see(model, "previous", release.previous[0], deadline))
    for each in seen:
        if each.role != "previous" and each.passed is False:
            _telemetry().add(Metric.GATE_FAILED, 1, model)
    back = None
    if seen[0].passed is False and release.serving.get(ROLLBACK):
        back = _roll_back(registry, release, seen, deadline)
    return {
        "champion": release.champion.version,
        "passed": seen[0].passed,
        "rolled_back_to": back and back.version,
        "packages": [each.to_json() for each in seen],
    }


def _see(model: str, role: str, version: Version, deadline: float) -> Seen:
    """Fetch a package from the bucket and run its gate.

    Raises:
        RegistryUnreachable: the bucket does not answer.
        NotServable: there is no room for it here.
    """
    if time.monotonic() > deadline:
        return Seen(role, version, gate.Report(complete=False))
    # A folder of its own, gone with the package: the next one needs the room.
    with tempfile.TemporaryDirectory(prefix="threefold-monitor-") as folder:
        store = PackageStore(_store(), cache=Path(folder), baked=Path(folder) / "none")
        try:
            package = store.open(model, version.digest)
            limit = package.manifest.gate.latency_ms
            loaded = Model(_untimed(package), threads=_settings().threads)
            report = gate.inspect(loaded, seconds=max(0.0, deadline - time.monotonic()))
        except (InvalidPackage, MissingPackage) as error:
            limit, report = None, gate.Report(findings=[gate.Finding(f"{version.digest[:12]}.zip", str(error))])
    slow = limit is not None and report.latency_ms is not None and report.latency_ms > limit
    seen = Seen(role, version, report, slow)
    say = _telemetry().logger.info if seen.passed and not slow else _telemetry().logger.warning
    say("package inspected", model=model, complete=report.complete, rows=report.rows, **seen.to_json())
    return seen


def _untimed(package: Package) -> Package:
    """The same package, whose gate measures its speed and finds none too slow: that is judged apart."""
    found = package.manifest.gate
    if found.latency_ms is None:
        return package
    return replace(package, manifest=replace(package.manifest, gate=replace(found, latency_ms=math.inf)))


def _roll_back(registry: Registry, release: Release, seen: list[Seen], deadline: float) -> Version | None:
    """Make the latest earlier champion that passes its gate the champion again, unless somebody else was faster."""
    model, failed, logger = release.model, release.champion, _telemetry().logger
    known = {each.version.digest: each for each in seen[1:]}
    for version in release.previous:
        again = known.get(version.digest) or _see(model, "previous", version, deadline)
        if again.passed is None:
            return None  # The next run has time for it again; to skip it might be to go back too far.
        if again.passed:
            break
    else:
        logger.error("release not rolled back", model=model, reason="no earlier champion passes its gate")
        return None
    findings = "; ".join(map(str, seen[0].report.findings))
    why = f"{failed.version} did not pass its gate: {findings}"[:MAXIMUM_REASON]

    def back(now: Release) -> Release:
        if now.champion.digest != failed.digest or not now.serving.get(ROLLBACK):
            message = f"release of '{model}': want champion {failed.version} to roll back from, got another release"
            raise ReleaseConflict(message)
        return now.promoted(version, at=iso(time.time_ns() // 1_000_000), by=BY, why=why)

    try:
        registry.change(model, back)
    except ReleaseConflict as error:
        logger.warning("release not rolled back", model=model, reason=str(error))
        return None
    logger.warning("release rolled back", model=model, champion=version.version, was=failed.version, why=why)
    _telemetry().add(Metric.ROLLED_BACK, 1, model)
    return version


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@cache
def _settings() -> Settings:
    return Settings.from_env()


@cache
def _telemetry() -> Telemetry:
    return Telemetry(_settings())


@cache
def _store() -> ObjectStore:
    return open_store(_settings().model_bucket, _settings())
