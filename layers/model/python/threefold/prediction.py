"""What records get: predictions with their provenance, kept as columns until a door asks for them one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold import strict_json

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
# Of one record's, in its message: a model may have ten thousand features, and a record none of them.
_MOST_PROBLEMS: Final = 100


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

    def predictions(self, ids: Sequence[str], at: str) -> list[dict[str, Any]]:
        """What each record gets, in the part's order.

        Args:
            ids: the records' prediction ids.
            at: when they were scored.
        """
        source, columns = self.provenance, {"id": ids, **self._columns()}
        head = {
            "model": source.model,
            "version": source.version,
            "digest": source.digest,
            "role": source.role,
            "release": source.release,
        }
        tail = {"at": at, "runtime": source.runtime}
        # Measured: to copy a form and fill it column by column takes half as long as to write each prediction anew.
        form = {"id": None, **head, "status": _PREDICTED, **dict.fromkeys(columns), **tail}
        predictions: list[dict[str, Any]] = [form.copy() for _ in ids]
        for name, values in columns.items():
            for prediction, value in zip(predictions, values, strict=True):
                prediction[name] = value
        for i, said in self._abstentions():
            predictions[i] = {"id": ids[i], **head, "status": _ABSTAINED, **said, **tail}
        return predictions

    def _columns(self) -> dict[str, Sequence[Any]]:
        """What the model said of the records, a list a field, each in the part's order."""
        answer = self.answer
        if answer.labels is not None:
            if self.score is None:
                return {"label": answer.labels}
            return {"label": answer.labels, "score": json_values(self.score)}
        if answer.values is not None:
            return {"value": json_values(answer.values)}
        return {"tensors": list(self._slices())}

    def _abstentions(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """For each record that the model abstains from: which one of the part, and what is said in a label's place."""
        if self.abstained is None or self.score is None:
            return
        scores, classes = self.answer.scores, self.output.classes
        for i in np.flatnonzero(self.abstained).tolist():
            said: dict[str, Any] = {"score": json_values(self.score[i : i + 1])[0]}
            if scores is not None and classes:
                best = np.argsort(-scores[i], kind="stable")[: self.options]
                said["options"] = [
                    {"label": classes[j], "score": value}
                    for j, value in zip(best.tolist(), json_values(scores[i][best]), strict=True)
                ]
            yield i, said

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
        """The outcomes one by one, in order, ready for JSON."""
        found = self._answers()
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

    def _answers(self) -> list[Any]:
        """What the packages said, in the order of the records; None where none said anything."""
        ids = self.ids
        found: list[Any] = [None] * len(ids)
        for part in self.parts:
            if part.rows is None:
                found = part.predictions(ids, self.at)
                continue
            positions = part.rows.tolist()
            answered = part.predictions([ids[i] for i in positions], self.at)
            for position, prediction in zip(positions, answered, strict=True):
                found[position] = prediction
        return found

    def _rejection(self, position: int, problems: list[str]) -> dict[str, Any]:
        rejection: dict[str, Any] = {"id": self.ids[position], "model": self.model}
        more = len(problems) - _MOST_PROBLEMS
        if self.parts:
            judge = next((part for part in self.parts if position in part.rejected), self.parts[0])
            source = judge.provenance
            rejection |= {"version": source.version, "digest": source.digest, "role": source.role}
            rejection |= {"release": source.release, "runtime": source.runtime}
        return rejection | {
            "status": Status.REJECTED.value,
            "code": self.code,
            "message": "; ".join(problems[:_MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])),
            "at": self.at,
        }


def json_values(array: npt.NDArray[Any]) -> list[Any]:
    """A one-dimensional array's values as strict JSON can carry them, each as the number of its shortest text.

    A float32 of 0.1 is 0.1, and not the 0.10000000149011612 that is the nearest to it: that text is read back as the
    same float32, and it is the one that people wrote.

    Non-finite numbers become the strings that Triton's and KServe's clients decode.
    """
    if array.dtype.kind != "f":
        return array.tolist()  # type: ignore[no-any-return]
    # Measured: by way of JSON, a column takes a tenth of the time that numpy's scalars take one by one.
    values: list[Any] = strict_json.loads(strict_json.dumps(np.ascontiguousarray(array)))
    if None in values:  # JSON has no word for them
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
