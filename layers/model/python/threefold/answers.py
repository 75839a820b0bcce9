"""What a model says of records: in one call or each alone, and which of it is an answer."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from threefold.errors import OutsideSignature
from threefold.model import Answer
from threefold.request import Tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from threefold.features import Encoded
    from threefold.model import Model
    from threefold.package import Output
    from threefold.request import Matrix, Records


def calls(
    payload: Records | Matrix | Tensors, rows: npt.NDArray[np.intp] | None, model: Model
) -> Iterator[tuple[npt.NDArray[np.intp] | None, Records | Matrix | Tensors]]:
    """What goes to the model in one call, each with its positions in the request; None means all of it.

    Args:
        payload: all that was sent.
        rows: the positions of those that go to this model; None means all.
        model: a loaded one.
    """
    if isinstance(payload, Tensors) and len(payload) > 1 and not model.manifest.signature.stackable:
        for i in range(len(payload)) if rows is None else rows.tolist():
            alone = np.array([i], np.intp)
            yield alone, payload.select(alone)
    else:
        yield rows, payload if rows is None else payload.select(rows)


def ask(model: Model, payload: Records | Matrix | Tensors) -> tuple[Encoded, Answer]:
    """What the model says of records; one that the graph itself refuses is rejected alone."""
    encoded = payload.encode(model)
    size = len(payload) - len(encoded.problems)
    if size == 0:
        return encoded, Answer({}, labels=())
    try:
        return encoded, _run(model, payload, encoded.tensors)
    except OutsideSignature as error:
        refused = {0: [str(error)]}
    # A graph may refuse one of the records, or only their company: each alone says which.
    answers: list[Answer] = []
    if size > 1:
        refused = {}
        ends = np.cumsum(encoded.counts or [1] * size).tolist()
        for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            try:
                alone = {name: array[start:end] for name, array in encoded.tensors.items()}
                answers.append(_run(model, payload, alone))
            except OutsideSignature as error:
                refused[i] = [str(error)]
    return encoded.without(refused, size), _join(answers)


def _join(answers: Sequence[Answer]) -> Answer:
    """The answers to some records, one after the other, as one."""
    if not answers:
        return Answer({}, labels=())
    first = answers[0]
    return Answer(
        {name: np.concatenate([answer.tensors[name] for answer in answers]) for name in first.tensors},
        labels=None if first.labels is None else [label for answer in answers for label in answer.labels or ()],
        scores=None if first.scores is None else np.concatenate([answer.scores for answer in answers]),
        values=None if first.values is None else np.concatenate([answer.values for answer in answers]),
    )


def _run(model: Model, payload: Records | Matrix | Tensors, tensors: Mapping[str, npt.NDArray[Any]]) -> Answer:
    """Who sends tensors gets tensors; who sends records gets what they mean."""
    return Answer(model.run(tensors)) if isinstance(payload, Tensors) else model.answer(tensors)


def decide(
    answer: Answer, output: Output, serving: Mapping[str, Any]
) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.bool_] | None]:
    """The score of each chosen class, and which records are abstained from; None for none."""
    score = _chosen_score(answer, output)
    below = serving.get("abstain_below")
    if score is None or below is None:
        return score, None
    # Compared in the scores' own width, where 0.6 is 0.6; and a score that is NaN says nothing.
    abstained = ~(score >= score.dtype.type(below))
    return score, abstained if abstained.any() else None


def _chosen_score(answer: Answer, output: Output) -> npt.NDArray[np.float32] | None:
    """The score of the class that was chosen, shape [n]."""
    scores, labels = answer.scores, answer.labels
    if scores is None or labels is None:
        return None
    index, width = _columns(output.classes), scores.shape[1]
    if len(index) != width:
        return scores.max(axis=1)  # type: ignore[no-any-return]
    try:
        return scores.take([width * i + index[label] for i, label in enumerate(labels)])
    except KeyError:
        return scores.max(axis=1)  # type: ignore[no-any-return]


@lru_cache
def _columns(classes: tuple[str | int, ...]) -> dict[str | int, int]:
    return {name: i for i, name in enumerate(classes)}
