"""What two packages said of one set of rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold.quality import METRICS, NotMeasurable, measure
from threefold_ops.evaluation.agreement import agree
from threefold_ops.figures import UNWRITTEN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from threefold.package import Manifest
    from threefold_ops.evaluation.agreement import Agreement
    from threefold_ops.evaluation.trial import Answers, Trial
    from threefold_ops.evaluation.trial_rows import Rows

    Pair = tuple[Answers, Answers]
    Manifests = tuple[Manifest, Manifest]

# A tensor with more elements than these is shown by its shape.
_SHOWN_ELEMENTS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric of both packages, over the rows that both took and whose truth is known.

    Attributes:
        a: None where it cannot be measured.
        b: likewise.
        difference: b less a.
        drop: by how much b is worse, in the metric's own direction; negative where it is better.
        problem: why it cannot be measured.
    """

    metric: str
    higher_is_better: bool
    rows: int
    a: float | None = None
    b: float | None = None
    difference: float | None = None
    drop: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row and what each package says of it: a label and its score, a value, tensors, or why it is rejected."""

    line: int
    key: str | None
    a: dict[str, Any]
    b: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class RowSet:
    """What both packages said of one set of rows.

    Attributes:
        name: `data`, or whose set it is: `confidence_a`, `confidence_b`, or `confidence` where both carry the same
            file; the same with `examples`, where there are no other rows.
        source: the file's name.
        rows: how many rows.
        unreadable: records of the file that are no rows, for they have not its header's form.
        rejected_a: rows that a rejects.
        rejected_b: rows that b rejects.
        rejected_both: rows that both reject.
        agreement: of the rows that both took.
        abstained_a: the share of the rows it took that a abstains from, as it is operated; None where that is not
            known, or it never does.
        abstained_b: likewise.
        differing: the rows that differ most, first those whose label flips.
        rejections: rows that one of them rejects and the other takes.
    """

    name: str
    source: str
    rows: int
    unreadable: int
    rejected_a: int
    rejected_b: int
    rejected_both: int
    agreement: Agreement
    abstained_a: float | None
    abstained_b: float | None
    metrics: list[Metric]
    differing: list[Row]
    rejections: list[Row]
    read: Rows = field(metadata=UNWRITTEN)
    answers: tuple[Answers, Answers] = field(metadata=UNWRITTEN)


def score(name: str, rows: Rows, trials: tuple[Trial, Trial], *, show: int) -> RowSet:
    """Ask both packages all rows.

    Args:
        name: what to call the rows.
        rows: as each of the two reads them.
        trials: the two packages.
        show: how many of the rows that differ most to keep.
    """
    answers = (trials[0].answer(rows.payloads[0]), trials[1].answer(rows.payloads[1]))
    manifests = (trials[0].manifest, trials[1].manifest)
    a, b = answers
    agreement = agree(a, b, (manifests[0].output, manifests[1].output))
    order = np.argsort(-agreement.distance, kind="stable")[:show]
    differing = agreement.positions[order[agreement.distance[order] > 0]].tolist()
    lone = sorted(a.problems.keys() ^ b.problems.keys())[:show]
    return RowSet(
        name=name,
        source=rows.source,
        rows=len(rows),
        unreadable=rows.unreadable,
        rejected_a=len(a.problems),
        rejected_b=len(b.problems),
        rejected_both=len(a.problems.keys() & b.problems.keys()),
        agreement=agreement,
        abstained_a=_abstained(a, trials[0].serving),
        abstained_b=_abstained(b, trials[1].serving),
        metrics=_metrics(rows, agreement.positions, answers, manifests),
        differing=[_row(rows, position, answers, manifests) for position in differing],
        rejections=[_row(rows, position, answers, manifests) for position in lone],
        read=rows,
        answers=answers,
    )


def said(answers: Answers, manifest: Manifest, position: int) -> dict[str, Any]:
    """What a package said of one row: a label and its score, a value, tensors, or why it is rejected."""
    if position in answers.problems:
        return {"rejected": "; ".join(answers.problems[position])}
    i = int(np.searchsorted(answers.rows, position))
    if answers.labels is not None:
        label, scores = answers.labels[i], answers.scores
        if scores is None:
            return {"label": label}
        classes = manifest.output.classes
        known = len(classes) == scores.shape[1] and label in classes
        return {"label": label, "score": float(scores[i, classes.index(label)] if known else scores[i].max())}
    if answers.values is not None:
        return {"value": float(answers.values[i])}
    return {name: _shown(parts[i]) for name, parts in answers.tensors.items()}


def _abstained(answers: Answers, serving: Mapping[str, Any]) -> float | None:
    if serving.get("abstain_below") is None or not len(answers.rows):
        return None
    return float(answers.abstained.mean())


def _metrics(rows: Rows, positions: npt.NDArray[np.intp], answers: Pair, manifests: Manifests) -> list[Metric]:
    """The metric of each one's gate, of both, over the rows that both took and whose truth is known."""
    kind = manifests[0].output.kind
    if kind == "tensors" or not rows.truth:
        return []
    known = np.array([position for position in positions.tolist() if position in rows.truth], np.intp)
    truth = [rows.truth[position] for position in known.tolist()]
    named = [manifest.gate.metric for manifest in manifests if manifest.gate.metric is not None]
    found = []
    for name in dict.fromkeys(named) or ["accuracy" if kind == "classification" else "rmse"]:
        higher = METRICS[name].higher_is_better
        try:
            a, b = (
                _measured(name, truth, known, answer, manifest)
                for answer, manifest in zip(answers, manifests, strict=True)
            )
        except NotMeasurable as error:
            found.append(Metric(metric=name, higher_is_better=higher, rows=len(truth), problem=str(error)))
            continue
        worse = a - b if higher else b - a
        found.append(
            Metric(metric=name, higher_is_better=higher, rows=len(truth), a=a, b=b, difference=b - a, drop=worse)
        )
    return found


def _measured(
    name: str, truth: Sequence[str | int | float], known: npt.NDArray[np.intp], answers: Answers, manifest: Manifest
) -> float:
    taken = np.searchsorted(answers.rows, known)
    return measure(
        name,
        truth,
        labels=None if answers.labels is None else [answers.labels[i] for i in taken.tolist()],
        scores=None if answers.scores is None else answers.scores[taken],
        values=None if answers.values is None else answers.values[taken],
        # A class that a package does not know is one that it gets wrong; a score is needed of every one.
        classes=() if name in {"accuracy", "f1_macro"} else manifest.output.classes,
    )


def _row(rows: Rows, position: int, answers: Pair, manifests: Manifests) -> Row:
    a, b = (said(answer, manifest, position) for answer, manifest in zip(answers, manifests, strict=True))
    return Row(line=rows.lines[position], key=None if rows.keys is None else rows.keys[position], a=a, b=b)


def _shown(array: npt.NDArray[Any]) -> Any:  # noqa: ANN401 - JSON
    return array.tolist() if array.size <= _SHOWN_ELEMENTS else f"{array.dtype} {list(array.shape)}"
