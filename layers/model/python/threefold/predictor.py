"""The one path from a request to its outcomes: route, encode, score, decide."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np

from threefold import gate
from threefold.answers import ask, calls, decide
from threefold.errors import NotServable, ThreefoldError
from threefold.lookup import FeatureLookup, Found, open_lookup
from threefold.model import RUNTIME, Model
from threefold.names import Metric
from threefold.prediction import Outcomes, Part, Provenance
from threefold.registry import Confirmed, open_registry
from threefold.release import Route, route
from threefold.sessions import Sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt
    from aws_lambda_powertools import Logger

    from threefold.package import Package
    from threefold.registry import Registry
    from threefold.request import Request
    from threefold.settings import Settings

# Lambda's initialization may take 10 s, and the first request waits for it.
WARM_SECONDS: Final = 5.0


class Predictor:
    """Scores requests with the packages that their models' releases name.

    Loaded models are kept within a budget of bytes. A package that cannot be loaded never replaces one that serves:
    the last good one goes on, and `refusals` says why. `PackageRefused` is observed once for each call that a refused
    package keeps from what is released: each says what a caller did not get.
    """

    def __init__(  # noqa: PLR0913 - its collaborators, each by name
        self,
        registry: Registry,
        *,
        budget_bytes: int,
        threads: int = 1,
        load_budget_seconds: float = 2.0,
        gate_seconds: float | None = 1.0,
        lookup: FeatureLookup | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        observe: Callable[[str, float, str], None] = lambda _metric, _value, _model: None,
    ) -> None:
        """Make a predictor.

        Args:
            registry: where releases and packages come from.
            budget_bytes: memory for loaded models.
            threads: for one inference call.
            load_budget_seconds: how long a request waits for a newly released package before the last good one
                answers it.
            gate_seconds: how long the gate of a package may go on beyond its examples; None runs all of it.
            lookup: what looks up the features that no caller sends; without one, records bring them, as those of the
                gate's files do.
            now: the time of day.
            observe: told of (metric, value, model) where something happens to a model.
        """
        self.registry = registry
        self.refusals: dict[str, str] = {}
        self._threads = threads
        self._load_budget_seconds = load_budget_seconds
        self._gate_seconds = gate_seconds
        self._lookup = lookup
        self._now = now
        self._observe = observe
        self._good: dict[str, Route] = {}
        self.sessions = Sessions(self._fetch, self._load, budget_bytes=budget_bytes)

    def predict(self, request: Request) -> Outcomes:
        """Give each record of a request its outcome.

        Records that are wrong are rejected alone.

        Raises:
            UnknownModel: no release, or the release names no such version.
            NotServable: no package of the model can be served now.
            OutsideSignature: records for a model that takes tensors only.
        """
        confirmed = self.confirmed(request)
        size = len(request.rows)
        ids = request.ids if request.ids is not None else _mint_ids(size)
        problems: dict[int, list[str]] = {}
        reasons: dict[int, list[str]] = {}
        parts = []
        serving = confirmed.release.serving
        found: Found | None = None
        looked_up: dict[int, dict[str, object]] = {}
        for chosen, routed in _routes(confirmed, request, ids):
            served, model = self.load(confirmed, chosen, exact=request.version is not None)
            payloads, rows, late = request.rows, routed, frozenset[int]()
            if self._lookup is not None and model.online:
                if found is None or served.digest != chosen.digest:
                    found = self._look_up(self._lookup, request, confirmed, ids, (chosen, model))
                taken = found.take(routed)
                payloads, rows, late = found.records, taken.rows, frozenset(taken.problems)
                problems |= taken.problems
                looked_up |= taken.values
            source = Provenance(
                request.model, served.version, served.digest, served.role, confirmed.id, RUNTIME, confirmed.stale
            )
            for positions, payload in calls(payloads, rows, model):
                encoded, answer = ask(model, payload)
                wrong = _at(encoded.problems, positions)
                problems |= wrong
                reasons |= _at(encoded.reasons, positions)
                score, abstained = decide(answer, model.manifest.output, serving)
                part = Part(
                    source,
                    answer,
                    model.manifest.output,
                    model.manifest.signature.outputs,
                    len(payload) - len(wrong),
                    score=score,
                    abstained=abstained,
                    options=serving.get("options", 3),
                    rows=_positions(positions, encoded.rows),
                    counts=encoded.counts,
                    rejected=late.union(wrong),
                )
                parts.append(part)
            # Let go before the next one is loaded: there may be memory for one only.
            del model
        if confirmed.stale:
            self._observe(Metric.RELEASE_STALE, 1, request.model)
        at = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Outcomes(request.model, ids, request.keys, at, parts, problems, reasons, looked_up=looked_up)

    def _look_up(
        self,
        lookup: FeatureLookup,
        request: Request,
        confirmed: Confirmed,
        ids: Sequence[str],
        loaded: tuple[Route, Model],
    ) -> Found:
        """Look up for all records at once: those that another package answers may be of the same entities.

        Args:
            lookup: what looks up.
            request: whose records.
            confirmed: the release that is followed.
            ids: the records' prediction ids.
            loaded: one of the packages that should answer, and what answers for it.
        """
        chosen, model = loaded
        packages = [
            (model.package if route == chosen else self._answering(confirmed, route), rows)
            for route, rows in _routes(confirmed, request, ids)
        ]
        return lookup.look_up(request, packages)

    def _answering(self, confirmed: Confirmed, chosen: Route) -> Package:
        """The package that will answer: the chosen one, or the one that stands in for it."""
        name, standby = confirmed.release.model, self._standby(confirmed, chosen)
        if standby is None:
            return self.sessions.fetch(name, chosen.digest)
        try:
            found = self.package(name, chosen.digest)
        except NotServable:
            found = None
        return found if found is not None else self.sessions.fetch(name, standby.digest)

    def confirmed(self, request: Request) -> Confirmed:
        """The release that a request follows."""
        if request.release_id is not None:
            return self.registry.pinned(request.model, request.release_id)
        return self.registry.release(request.model)

    def load(self, confirmed: Confirmed, chosen: Route, *, exact: bool = False) -> tuple[Route, Model]:
        """The chosen package's model, or the last good one in its place.

        Args:
            confirmed: the release that is followed.
            chosen: the package that should answer.
            exact: it was asked for by its name, so that nothing can stand in for it.

        Raises:
            NotServable: neither can be had.
        """
        name = confirmed.release.model
        standby = None if exact else self._standby(confirmed, chosen)
        try:
            if standby is None:
                loaded: Model | None = self.sessions.get(name, chosen.digest)
            else:
                seconds = self._load_budget_seconds if self._at_hand(name, standby) else None
                loaded = self.sessions.get_within(name, chosen.digest, seconds, beside=standby.digest)
        except NotServable as error:
            self._refuse(name, error)
            if standby is None:
                raise
            try:
                return self._stand_in(name, standby)
            except NotServable:
                raise error from None  # why the one that was released cannot serve
        if loaded is None:
            assert standby is not None, "only then there is a limit"
            return self._stand_in(name, standby)
        if chosen.role == "champion":
            self._good[name] = chosen
            self.refusals.pop(name, None)
        return chosen, loaded

    def _standby(self, confirmed: Confirmed, chosen: Route) -> Route | None:
        """What answers if the chosen package cannot: the last good champion; for a canary, the champion.

        A process that never had a good one takes what the release had before: a cold start must not be worse off.
        """
        release = confirmed.release
        standby = self._good.get(release.model)
        if standby is None and chosen.role == "canary":
            standby = Route(release.champion.digest, release.champion.version, "champion")
        elif standby is None and release.previous:
            standby = Route(release.previous[0].digest, release.previous[0].version, "previous")
        return None if standby is None or standby.digest == chosen.digest else standby

    def _stand_in(self, name: str, standby: Route) -> tuple[Route, Model]:
        return Route(standby.digest, standby.version, "fallback"), self.sessions.get(name, standby.digest)

    def _at_hand(self, name: str, standby: Route) -> bool:
        """Whether a standby can answer while the chosen one is loaded: it is loaded, or was, and lies on the disk.

        What was never good here answers only if the chosen one cannot: a cold start waits for what is released.
        """
        if self.sessions.peek(standby.digest) is not None:
            return True
        return standby is self._good.get(name) and self.registry.packages.at_hand(standby.digest)

    def _refuse(self, name: str, error: NotServable) -> None:
        """Note what keeps a model from the package that is released."""
        self.refusals[name] = str(error)
        if not error.retryable:  # An outage of the registry says nothing of the package.
            self._observe(Metric.PACKAGE_REFUSED, 1, name)

    def key_field(self, model: str) -> str | None:
        """The field of a record that is its own id, as the model's standing package declares it.

        Raises:
            UnknownModel: as `standing`.
            NotServable: as `standing`.
        """
        return self.standing(model).manifest.key

    def standing(self, model: str) -> Package:
        """The champion's package, or that of the last good one in its place while the champion's cannot be had.

        Raises:
            UnknownModel: it has no release.
            NotServable: neither can be had.
        """
        confirmed = self.registry.release(model)
        champion = Route(confirmed.release.champion.digest, confirmed.release.champion.version, "champion")
        if (loaded := self.sessions.peek(champion.digest)) is not None:
            return loaded.package
        standby = self._standby(confirmed, champion)
        if standby is not None and (loaded := self.sessions.peek(standby.digest)) is not None:
            return loaded.package
        if (
            standby is not None
            and self._at_hand(model, standby)
            and not self.registry.packages.at_hand(champion.digest)
        ):
            return self.sessions.fetch(model, standby.digest)
        try:
            return self.sessions.fetch(model, champion.digest)
        except NotServable as error:
            if standby is None:
                self._refuse(model, error)
                raise
            return self.sessions.fetch(model, standby.digest)

    def package(self, model: str, digest: str) -> Package | None:
        """A package, or None if it is not here within the time that a request waits for one; it goes on coming.

        Raises:
            NotServable: it cannot be had now.
        """
        if (loaded := self.sessions.peek(digest)) is not None:
            return loaded.package
        if self.registry.packages.at_hand(digest):
            return self.sessions.fetch(model, digest)
        return self.sessions.fetch_within(model, digest, self._load_budget_seconds)

    def ready(self, model: str) -> Confirmed:
        """See that a model's champion can be served: its release known, its package loaded and checked.

        Raises:
            UnknownModel: it has no release.
            NotServable: why not.
        """
        confirmed = self.registry.release(model)
        champion = confirmed.release.champion
        served, _ = self.load(confirmed, Route(champion.digest, champion.version, "champion"))
        if served.digest != champion.digest:
            reason = self.refusals.get(model, "it is still being loaded")
            message = f"model '{model}': want its champion {champion.version}, got {served.version}: {reason}"
            raise NotServable(message)
        return confirmed

    def _fetch(self, name: str, digest: str) -> Package:
        return self.registry.packages.open(name, digest)

    def _load(self, name: str, digest: str) -> Model:
        # Held, so that no download takes its room on the disk while it is read.
        with self.registry.packages.held(name, digest) as package:
            model = Model(package, threads=self._threads)
            gate.admit(model, seconds=self._gate_seconds)
        self._observe(Metric.MODEL_LOAD, model.load_ms, name)
        return model


def _routes(
    confirmed: Confirmed, request: Request, ids: Sequence[str]
) -> Iterator[tuple[Route, npt.NDArray[np.intp] | None]]:
    """The packages that answer, each with the positions of its records; None means all."""
    release = confirmed.release
    if request.version is not None:
        yield release.find(request.version), None
        return
    if release.challenger is None or release.challenger.mode != "canary":
        yield Route(release.champion.digest, release.champion.version, "champion"), None
        return
    keys = request.keys or [None] * len(ids)
    by_route: dict[Route, list[int]] = {}
    for i, (key, identity) in enumerate(zip(keys, ids, strict=True)):
        by_route.setdefault(route(release, identity if key is None else key), []).append(i)
    for chosen, positions in by_route.items():
        yield chosen, np.array(positions, np.intp) if len(by_route) > 1 else None


def _positions(rows: npt.NDArray[np.intp] | None, accepted: npt.NDArray[np.intp] | None) -> npt.NDArray[np.intp] | None:
    """Positions in the request of what was accepted out of the rows that were routed here."""
    if accepted is None:
        return rows
    return accepted if rows is None else rows[accepted]


def _at(found: dict[int, list[str]], rows: npt.NDArray[np.intp] | None) -> dict[int, list[str]]:
    """The same by position in the request."""
    return found if rows is None else {int(rows[i]): value for i, value in found.items()}


def _mint_ids(count: int) -> list[str]:
    text = os.urandom(16 * count).hex()
    return [text[i : i + 32] for i in range(0, len(text), 32)]


def open_predictor(settings: Settings, observe: Callable[[str, float, str], None]) -> Predictor:
    """The predictor of a function, as its settings say."""
    return Predictor(
        open_registry(settings),
        budget_bytes=settings.session_cache_bytes,
        threads=settings.threads,
        load_budget_seconds=settings.load_budget_seconds,
        gate_seconds=settings.gate_seconds,
        lookup=open_lookup(settings),
        observe=observe,
    )


def warm(predictor: Predictor, logger: Logger) -> None:
    """Load the champions that the layer carries, while Lambda initializes."""
    deadline = time.monotonic() + WARM_SECONDS
    for model in predictor.registry.baked():
        if time.monotonic() > deadline:
            return
        try:
            predictor.ready(model)
        except ThreefoldError as error:
            logger.warning("model not ready at start", model=model, reason=str(error))
