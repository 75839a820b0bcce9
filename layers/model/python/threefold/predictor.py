"""The one path from a request to its outcomes: route, encode, score, decide."""

from __future__ import annotations

import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime

from threefold.errors import NotServable, ThreefoldError
from threefold.model import Answer, Model
from threefold.names import Metric
from threefold.prediction import Outcomes, Part, Provenance
from threefold.registry import Registry, open_store
from threefold.release import Route, route
from threefold.sessions import Sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    from aws_lambda_powertools import Logger

    from threefold.features import Encoded
    from threefold.package import Output
    from threefold.registry import Confirmed
    from threefold.request import Request
    from threefold.settings import Settings

# Lambda's initialization may take 10 s, and the first request waits for it.
WARM_SECONDS: Final = 5.0
RUNTIME: Final = f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}"


class Predictor:
    """Scores requests with the packages that their models' releases name.

    Loaded models are kept within a budget of bytes. A package that cannot be loaded never replaces one that serves:
    the last good one goes on, and `refusals` says why.
    """

    def __init__(  # noqa: PLR0913 - its collaborators, each by name
        self,
        registry: Registry,
        *,
        budget_bytes: int,
        threads: int = 1,
        load_budget_seconds: float = 2.0,
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
            now: the time of day.
            observe: told of (metric, value, model) where something happens to a model.
        """
        self.registry = registry
        self.refusals: dict[str, str] = {}
        self._threads = threads
        self._load_budget_seconds = load_budget_seconds
        self._now = now
        self._observe = observe
        self._good: dict[str, Route] = {}
        self.sessions = Sessions(self._load, budget_bytes=budget_bytes)

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
        for chosen, rows in _routes(confirmed, request, ids):
            served, model = self.load(confirmed, chosen)
            payload = request.rows if rows is None else request.rows.select(rows)
            encoded = payload.encode(model)
            source = Provenance(
                request.model, served.version, served.digest, served.role, confirmed.id, RUNTIME, confirmed.stale
            )
            serving = confirmed.release.serving
            parts.append(_score(model, encoded, source, serving=serving, rows=rows, size=len(payload)))
            _merge(problems, encoded.problems, rows)
            _merge(reasons, encoded.reasons, rows)
        if confirmed.stale:
            self._observe(Metric.RELEASE_STALE, 1, request.model)
        at = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Outcomes(request.model, ids, request.keys, at, parts, problems, reasons)

    def confirmed(self, request: Request) -> Confirmed:
        """The release that a request follows."""
        if request.release_id is not None:
            return self.registry.pinned(request.model, request.release_id)
        return self.registry.release(request.model)

    def load(self, confirmed: Confirmed, chosen: Route) -> tuple[Route, Model]:
        """The chosen package's model, or the last good one in its place.

        Raises:
            NotServable: neither can be had.
        """
        name = confirmed.release.model
        if (model := self.sessions.peek(chosen.digest)) is not None:
            if chosen.role == "champion":
                self._good[name] = chosen
                self.refusals.pop(name, None)
            return chosen, model
        good = self._good.get(name)
        standby = self.sessions.peek(good.digest) if good is not None else None
        try:
            loaded = (
                self.sessions.get(name, chosen.digest)
                if standby is None
                else self.sessions.get_within(name, chosen.digest, self._load_budget_seconds)
            )
        except NotServable as error:
            self.refusals[name] = str(error)
            self._observe(Metric.PACKAGE_REFUSED, 1, name)
            if standby is None or good is None or chosen.role == "previous":
                raise
            return Route(good.digest, good.version, "fallback"), standby
        if loaded is None:
            assert good is not None and standby is not None  # noqa: PT018 - only then is there a time budget
            return Route(good.digest, good.version, "fallback"), standby
        if chosen.role == "champion":
            self._good[name] = chosen
            self.refusals.pop(name, None)
        return chosen, loaded

    def key_field(self, model: str) -> str | None:
        """The field of a record that is its own id, as the champion declares it.

        Raises:
            UnknownModel: it has no release.
            NotServable: the champion's package cannot be had.
        """
        champion = self.registry.release(model).release.champion
        if (loaded := self.sessions.peek(champion.digest)) is not None:
            return loaded.manifest.key
        return self.registry.package(model, champion.digest).manifest.key

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

    def _load(self, name: str, digest: str) -> Model:
        model = Model(self.registry.package(name, digest), threads=self._threads)
        model.check()
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


def _score(  # noqa: PLR0913 - the steps' results, once
    model: Model,
    encoded: Encoded,
    source: Provenance,
    *,
    serving: Mapping[str, Any],
    rows: npt.NDArray[np.intp] | None,
    size: int,
) -> Part:
    accepted = size if encoded.rows is None else len(encoded.rows)
    positions = _positions(rows, encoded.rows)
    output, specs = model.manifest.output, model.manifest.signature.outputs
    if accepted == 0:
        return Part(source, Answer({}, labels=()), output, specs, 0, rows=positions)
    answer = model.answer(encoded.tensors)
    score = _chosen_score(answer, output)
    below = serving.get("abstain_below")
    abstained = score < np.float32(below) if below is not None and score is not None else None
    if abstained is not None and not abstained.any():
        abstained = None
    return Part(
        source,
        answer,
        output,
        specs,
        accepted,
        score=score,
        abstained=abstained,
        options=serving.get("options", 3),
        rows=positions,
        counts=encoded.counts,
    )


def _chosen_score(answer: Answer, output: Output) -> npt.NDArray[np.float32] | None:
    """The score of the class that was chosen, shape [n]."""
    scores, labels = answer.scores, answer.labels
    if scores is None or labels is None:
        return None
    index = {name: i for i, name in enumerate(output.classes)}
    if len(index) != scores.shape[1] or not index.keys() >= set(labels):
        best: npt.NDArray[np.float32] = scores.max(axis=1)
        return best
    columns = np.fromiter((index[label] for label in labels), np.intp, len(labels))
    chosen: npt.NDArray[np.float32] = scores[np.arange(len(labels)), columns]
    return chosen


def _positions(rows: npt.NDArray[np.intp] | None, accepted: npt.NDArray[np.intp] | None) -> npt.NDArray[np.intp] | None:
    """Positions in the request of what was accepted out of the rows that were routed here."""
    if accepted is None:
        return rows
    return accepted if rows is None else rows[accepted]


def _merge(into: dict[int, list[str]], found: dict[int, list[str]], rows: npt.NDArray[np.intp] | None) -> None:
    into.update(found if rows is None else {int(rows[i]): value for i, value in found.items()})


def _mint_ids(count: int) -> list[str]:
    text = os.urandom(16 * count).hex()
    return [text[i : i + 32] for i in range(0, len(text), 32)]


def open_predictor(settings: Settings, observe: Callable[[str, float, str], None]) -> Predictor:
    """The predictor of a function, as its settings say."""
    registry = Registry(
        open_store(settings.model_bucket, settings),
        cache=Path(tempfile.gettempdir()) / "threefold-packages",
        refresh_seconds=settings.refresh_seconds,
    )
    return Predictor(
        registry,
        budget_bytes=settings.session_cache_bytes,
        threads=settings.threads,
        load_budget_seconds=settings.load_budget_seconds,
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
