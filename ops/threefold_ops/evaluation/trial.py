"""A package behind the doors' own predictor, without a system around it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from obstore.store import MemoryStore

from threefold.model import ROWS_PER_CALL
from threefold.predictor import Predictor
from threefold.registry import Registry
from threefold.release import Release, Route, Version
from threefold.request import Request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from threefold.package import Manifest, Package
    from threefold.prediction import Outcomes, Part
    from threefold.request import Records, Tensors

_BUDGET_BYTES: Final = 1 << 40


@dataclass(slots=True)
class Answers:
    """What a package said of n rows.

    Attributes:
        size: n.
        rows: the positions of those that it took, ascending, shape [taken].
        labels: classification: the chosen class of each taken row.
        scores: classification: a score per class, shape [taken, classes].
        values: regression: shape [taken].
        tensors: every output by name: an array for each taken row.
        abstained: which of the taken rows would be answered "abstained", shape [taken].
        problems: why the others were not taken, by position.
    """

    size: int
    rows: npt.NDArray[np.intp]
    labels: Sequence[str | int] | None = None
    scores: npt.NDArray[Any] | None = None
    values: npt.NDArray[np.float64] | None = None
    tensors: dict[str, list[npt.NDArray[Any]]] = field(default_factory=dict)
    abstained: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    problems: dict[int, list[str]] = field(default_factory=dict)


class Trial:
    """One package as champion of its model, in a registry in memory.

    Attributes:
        predictor: the doors' own; what it answers went through routing, encoding, the graph and the decision.
        model: as it loaded it, its gate passed.
    """

    def __init__(self, package: Package, serving: Mapping[str, Any] | None, scratch: Path, *, threads: int = 1) -> None:
        """Release the package and load it.

        Args:
            package: in a folder, which is neither copied nor changed.
            serving: how it is operated.
            scratch: a folder of its own.
            threads: for one inference call.

        Raises:
            InvalidPackage: no door would serve it.
        """
        self.package = package
        self.manifest: Manifest = package.manifest
        self.serving: Mapping[str, Any] = dict(serving or {})
        self.name = self.manifest.name
        link = scratch / "packages" / package.digest
        link.parent.mkdir(parents=True, exist_ok=True)
        # A package lies by its digest where the registry looks first; one of gigabytes is not copied for that.
        link.symlink_to(package.folder.resolve(), target_is_directory=True)
        registry = Registry(MemoryStore(), cache=scratch / "cache", baked=scratch, refresh_seconds=math.inf)
        champion = Version(package.digest, self.manifest.version)
        registry.write_release(Release(model=self.name, champion=champion, serving=self.serving), replaces=None)
        self.predictor = Predictor(registry, budget_bytes=_BUDGET_BYTES, threads=threads)
        confirmed = self.predictor.ready(self.name)
        _, self.model = self.predictor.load(confirmed, Route(package.digest, champion.version, "champion"))

    def predict(self, rows: Records | Tensors) -> Outcomes:
        """What a door does with rows once it has read them: route, encode, run, decide."""
        return self.predictor.predict(Request(model=self.name, rows=rows))

    def answer(self, rows: Records | Tensors) -> Answers:
        """What the package says of any number of rows."""
        problems: dict[int, list[str]] = {}
        parts: list[tuple[npt.NDArray[np.intp], Part]] = []
        for start in range(0, len(rows), ROWS_PER_CALL):
            positions = np.arange(start, min(start + ROWS_PER_CALL, len(rows)), dtype=np.intp)
            outcomes = self.predict(rows.select(positions))
            problems |= {start + position: wrong for position, wrong in outcomes.problems.items()}
            for part in outcomes.parts:
                taken = positions if part.rows is None else positions[part.rows]
                if part.size:
                    parts.append((taken, part))
        taken = np.concatenate([found for found, _ in parts]) if parts else np.zeros(0, np.intp)
        return _joined(len(rows), taken, [part for _, part in parts], problems)


def _joined(size: int, taken: npt.NDArray[np.intp], parts: Sequence[Part], problems: dict[int, list[str]]) -> Answers:
    answers = [part.answer for part in parts]
    found = Answers(size, taken, problems=problems)
    if answers and all(answer.labels is not None for answer in answers):
        found.labels = [label for answer in answers for label in answer.labels or ()]
    if answers and all(answer.scores is not None for answer in answers):
        found.scores = np.concatenate([np.asarray(answer.scores) for answer in answers])
    if answers and all(answer.values is not None for answer in answers):
        found.values = np.concatenate([np.asarray(answer.values, np.float64) for answer in answers])
    if parts and parts[0].output.kind == "tensors":
        found.tensors = {
            spec.name: [row for part in parts for row in _slices(part, spec.name)] for spec in parts[0].specs
        }
    abstained = [np.zeros(part.size, np.bool_) if part.abstained is None else part.abstained for part in parts]
    found.abstained = np.concatenate(abstained) if abstained else np.zeros(0, np.bool_)
    return found


def _slices(part: Part, name: str) -> list[npt.NDArray[Any]]:
    """An output's rows, record by record."""
    array = part.answer.tensors[name]
    if part.size == 1:
        return [array]
    ends = np.cumsum(part.counts or [1] * part.size)[:-1].tolist()
    return list(np.split(array, ends))
