"""What records get: predictions with their provenance, kept as columns until a door asks for them one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from threefold.model import Answer
    from threefold.package import Output
    from threefold.release import Role
    from threefold.signature import TensorSpec


class Status(StrEnum):
    """How a record ended."""

    PREDICTED = "predicted"
    ABSTAINED = "abstained"
    REJECTED = "rejected"


# A member of an enumeration takes longer to look up than a record takes to answer.
_PREDICTED: Final = Status.PREDICTED.value
_ABSTAINED: Final = Status.ABSTAINED.value


@dataclass(slots=True)
class Provenance:
    """Where an answer comes from.

    Attributes:
        release: the id of the release document that was followed.
        runtime: the versions of what computed it.
        stale: the release could not be confirmed in time; the last good one was followed.
    """

    model: str
    version: str
    digest: str
    role: Role
    release: str
    runtime: str
    stale: bool = False


@dataclass(slots=True)
class Part:
    """The records of a request that one package answered.

    Attributes:
        answer: what the model said, a row a record, or `counts` rows a record.
        output: which of the outputs mean what.
        specs: the output tensors.
        score: the chosen class's score, shape [n].
        abstained: which records the model abstains from, shape [n]; None if from none.
        options: how many options go with an abstention.
        rows: the records' positions in the request, shape [n]; None when they are all of them.
        counts: tensor rows per record; None when each is one row.
        rejected: the positions in the request of the records that this package rejected.
    """

    provenance: Provenance
    answer: Answer
    output: Output
    specs: tuple[TensorSpec, ...]
    size: int
    score: npt.NDArray[np.float32] | None = None
    abstained: npt.NDArray[np.bool_] | None = None
    options: int = 0
    rows: npt.NDArray[np.intp] | None = None
    counts: list[int] | None = None
    rejected: frozenset[int] = frozenset()

    def bodies(self) -> Iterator[dict[str, Any]]:
        """For each record, in the part's order: its status and what the model said."""
        answer = self.answer
        if answer.labels is not None:
            if self.abstained is not None:
                return self._with_abstentions(answer.labels, self.abstained)
            if self.score is None:
                return ({"status": _PREDICTED, "label": label} for label in answer.labels)
            pairs = zip(answer.labels, json_values(self.score), strict=True)
            return ({"status": _PREDICTED, "label": label, "score": score} for label, score in pairs)
        if answer.values is not None:
            return ({"status": _PREDICTED, "value": value} for value in json_values(answer.values))
        return ({"status": _PREDICTED, "tensors": tensors} for tensors in self._slices())

    def _with_abstentions(
        self, labels: Sequence[str | int], abstained: npt.NDArray[np.bool_]
    ) -> Iterator[dict[str, Any]]:
        scores = self.answer.scores
        for i, label in enumerate(labels):
            score = None if self.score is None else json_values(self.score[i : i + 1])[0]
            if not abstained[i]:
                yield {"status": _PREDICTED, "label": label, "score": score}
                continue
            body: dict[str, Any] = {"status": _ABSTAINED, "score": score}
            if scores is not None and self.output.classes:
                best = np.argsort(-scores[i], kind="stable")[: self.options]
                body["options"] = [
                    {"label": self.output.classes[j], "score": value}
                    for j, value in zip(best.tolist(), json_values(scores[i][best]), strict=True)
                ]
            yield body

    def _slices(self) -> Iterator[list[dict[str, Any]]]:
        if self.size == 1:
            yield [tensor_to_json(spec, self.answer.tensors[spec.name]) for spec in self.specs]
            return
        start = 0
        for count in self.counts or [1] * self.size:
            yield [tensor_to_json(spec, self.answer.tensors[spec.name][start : start + count]) for spec in self.specs]
            start += count


@dataclass(slots=True)
class Outcomes:
    """One outcome per record of a request, in the request's order.

    Attributes:
        ids: the prediction ids.
        keys: the records' own keys, if they have any.
        at: when they were scored, ISO 8601, UTC, milliseconds.
        parts: the answers, by package.
        problems: by position, why a record was rejected.
        reasons: by position, what a reader should know of a predicted record.
        code: the error code of the rejections.
        looked_up: by position, the features that no caller sends, of a model that has such.
    """

    model: str
    ids: Sequence[str]
    keys: Sequence[str | None] | None
    at: str
    parts: list[Part]
    problems: dict[int, list[str]] = field(default_factory=dict)
    reasons: dict[int, list[str]] = field(default_factory=dict)
    code: str = "outside_signature"
    looked_up: dict[int, dict[str, object]] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many records."""
        return len(self.ids)

    def predictions(self) -> list[dict[str, Any]]:
        """The outcomes one by one, in order, ready for JSON (numpy's float32 are left, for their shortest text)."""
        ids = self.ids
        found: list[Any] = [None] * len(ids)
        for part in self.parts:
            source = part.provenance
            head = {
                "model": source.model,
                "version": source.version,
                "digest": source.digest,
                "role": source.role,
                "release": source.release,
            }
            at, runtime = self.at, source.runtime
            positions = range(len(ids)) if part.rows is None else part.rows.tolist()
            for i, body in zip(positions, part.bodies(), strict=True):
                found[i] = {"id": ids[i], **head, **body, "at": at, "runtime": runtime}
        for position, reasons in self.reasons.items():
            if found[position] is not None:
                found[position]["reasons"] = reasons
        for position, problems in self.problems.items():
            found[position] = self._rejection(position, problems)
        for position, values in self.looked_up.items():
            found[position]["features"] = values
        if self.keys is not None:
            for prediction, key in zip(found, self.keys, strict=True):
                if key is not None:
                    prediction["key"] = key
        return found

    def _rejection(self, position: int, problems: list[str]) -> dict[str, Any]:
        rejection: dict[str, Any] = {"id": self.ids[position], "model": self.model}
        if self.parts:
            judge = next((part for part in self.parts if position in part.rejected), self.parts[0])
            source = judge.provenance
            rejection |= {"version": source.version, "digest": source.digest, "role": source.role}
            rejection |= {"release": source.release, "runtime": source.runtime}
        return rejection | {
            "status": Status.REJECTED.value,
            "code": self.code,
            "message": "; ".join(problems),
            "at": self.at,
        }


def json_values(array: npt.NDArray[Any]) -> list[Any]:
    """A one-dimensional array's values as strict JSON can carry them, each with its shortest text.

    Non-finite numbers become the strings that Triton's and KServe's clients decode.
    """
    if array.dtype.kind != "f":
        return array.tolist()  # type: ignore[no-any-return]
    values: list[Any] = array.tolist() if array.dtype == np.float64 else list(array)
    if np.count_nonzero(np.isfinite(array)) < array.size:
        for i in np.flatnonzero(~np.isfinite(array)).tolist():
            value = float(array[i])
            values[i] = "NaN" if value != value else ("Infinity" if value > 0 else "-Infinity")  # noqa: PLR0124
    return values


def tensor_to_json(spec: TensorSpec, array: npt.NDArray[Any]) -> dict[str, Any]:
    """A tensor as the Open Inference Protocol writes it, row-major; numbers stay an array for the JSON encoder."""
    flat = np.ascontiguousarray(array).reshape(-1)
    plain = flat.dtype.kind != "O" and (flat.dtype.kind != "f" or bool(np.isfinite(flat).all()))
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": list(array.shape),
        "data": flat if plain else (flat.tolist() if flat.dtype.kind == "O" else json_values(flat)),
    }
