"""The gate: what a package must pass to be served, at publish, at promotion, and wherever it is loaded."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from threefold.errors import InvalidPackage, OutsideSignature, shown
from threefold.examples import Example, differences, read_examples
from threefold.labelled import Scored, read_slices
from threefold.model import Answer
from threefold.package import MANIFEST, MODEL
from threefold.quality import METRICS, NotMeasurable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from threefold.model import Model

# Beyond so many findings of one file, only their number is of interest.
FINDINGS_PER_FILE: Final = 20
# So many of them fit a message.
_FINDINGS_IN_A_MESSAGE: Final = 3
# Small enough that the time is looked at often, large enough that a call costs little a row.
_ROWS_PER_SLICE: Final = 1024
# A median of fewer runs says little.
_TIMINGS: Final = 15
# Fewer rows say nothing of the order of the classes.
_ROWS_TO_JUDGE_ORDER: Final = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a package.

    Attributes:
        file: the file of the package that it is about.
        message: what, wanted, got.
        line: the line of the file, from 1; None where it is about the file as a whole.
    """

    file: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        """As a compiler would say it."""
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the gate saw.

    Attributes:
        findings: all that is wrong; a package without any may be served.
        examples: how many end-to-end examples were run.
        rows: how many rows of the confidence set were scored; fewer than it has when the time ran out.
        value: the metric on the whole confidence set; None where there is none, or no time for all of it.
        latency_ms: the median time of one record; None without examples.
        complete: whether everything was run, or the time ran out first.
    """

    findings: list[Finding] = field(default_factory=list)
    examples: int = 0
    rows: int = 0
    value: float | None = None
    latency_ms: float | None = None
    complete: bool = True


def inspect(model: Model, *, seconds: float | None = None, clock: Callable[[], float] = time.perf_counter) -> Report:
    """Run the gate of a loaded package.

    Publish, promotion and the monitor run it in whole. A function that loads a package runs it within a budget: the
    examples in one call, which show that this runtime on this machine says what the training library said, and of the
    rest as much as the time allows; the metric is then left to those who have the time.

    Args:
        model: as `Model` loaded it, its signature compared with the graph already.
        seconds: stop beginning new checks after so long; None runs all. The examples in one call, and one of them
            alone, always run.
        clock: in seconds.

    Returns:
        All that is wrong, and the figures.
    """
    return _Inspection(model, seconds, clock).run()


def admit(model: Model, *, seconds: float | None = None) -> Report:
    """Run the gate and refuse what it finds wrong.

    Raises:
        InvalidPackage: the package must not be served; the message names the first findings.
    """
    report = inspect(model, seconds=seconds)
    if found := report.findings:
        said = "; ".join(map(str, found[:_FINDINGS_IN_A_MESSAGE]))
        more = len(found) - _FINDINGS_IN_A_MESSAGE
        message = f"package {model.digest[:12]}: {said}{f'; and {more} more' if more > 0 else ''}"
        raise InvalidPackage(message)
    return report


class _Findings:
    """Findings by file, no more of each than somebody reads."""

    def __init__(self) -> None:
        self._found: dict[str, list[Finding]] = {}
        self._more: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._found.values()))

    def add(self, file: str, message: str, line: int | None = None) -> None:
        found = self._found.setdefault(file, [])
        if len(found) < FINDINGS_PER_FILE:
            found.append(Finding(file, message, line))
        else:
            self._more[file] = self._more.get(file, 0) + 1

    def all(self) -> list[Finding]:
        """By file, in the order of the lines, what is about a file as a whole at its end."""
        said: list[Finding] = []
        for file, found in self._found.items():
            said += sorted(found, key=lambda finding: math.inf if finding.line is None else finding.line)
            if more := self._more.get(file):
                said.append(Finding(file, f"{more} more like these"))
        return said


class _Inspection:
    """One run of the gate."""

    def __init__(self, model: Model, seconds: float | None, clock: Callable[[], float]) -> None:
        self._model = model
        self._manifest = model.manifest
        self._clock = clock
        self._deadline = math.inf if seconds is None else clock() + seconds
        self._findings = _Findings()
        self._complete = True
        self._examples = self._rows = 0
        self._value: float | None = None
        self._timings: list[float] = []
        self._ordered: list[npt.NDArray[np.bool_]] = []

    def run(self) -> Report:
        try:
            self._check_examples()
            self._check_confidence()
            self._check_order()
        except InvalidPackage as error:
            # An output that is not what the manifest says; each further answer would say the same.
            self._findings.add(MODEL, str(error).removeprefix(f"package {self._model.digest[:12]}: "))
        return Report(
            findings=self._findings.all(),
            examples=self._examples,
            rows=self._rows,
            value=self._value,
            latency_ms=statistics.median(self._timings) * 1000 if self._timings else None,
            complete=self._complete,
        )

    def _late(self) -> bool:
        """Whether nothing more may be begun."""
        if self._clock() >= self._deadline:
            self._complete = False
            return True
        return False

    def _check_examples(self) -> None:
        gate = self._manifest.gate
        if gate.examples is None:
            if gate.latency_ms is not None:
                self._findings.add(MANIFEST, "gate: want examples that latency_ms is measured with, got none")
            return
        examples, problems = read_examples(self._model.package.folder / gate.examples, self._manifest)
        for line, problem in problems:
            self._findings.add(gate.examples, problem, line)
        self._run_examples(gate.examples, examples)
        # Of fewer runs than were wanted, one that was held up is the median.
        if gate.latency_ms is not None and len(self._timings) >= _TIMINGS:
            median = statistics.median(self._timings) * 1000
            if not median <= gate.latency_ms:
                self._findings.add(
                    gate.examples,
                    f"one record: want at most {gate.latency_ms:g} ms, got {median:.3g} ms "
                    f"(median of {len(self._timings)} runs)",
                )

    def _run_examples(self, file: str, examples: list[Example]) -> None:
        """All in one call, and each alone: what a batch says of a record must not depend on its company."""
        refusal: str | None = None
        wrong: set[int] = set()
        accepted: list[Example] = []
        stacked = False
        for part, tensors in self._batches(file, examples):
            accepted += part
            if tensors is None:
                continue
            stacked = True
            try:
                answer = self._model.answer(tensors)
            except OutsideSignature as error:
                refusal = str(error)
                continue
            self._note_order(answer)
            for row, example in enumerate(part):
                for difference in differences(example, answer, row, self._manifest):
                    wrong.add(example.line)
                    self._findings.add(file, difference, example.line)
        self._examples = len(accepted)
        prefix = "alone: " if stacked and refusal is None else ""
        good = self._run_alone(file, accepted, wrong, prefix)
        if refusal is not None and len(good) == len(accepted):
            self._findings.add(file, f"all in one call: {refusal}")
        self._time(good)

    def _batches(
        self, file: str, examples: list[Example]
    ) -> Iterator[tuple[list[Example], Mapping[str, npt.NDArray[Any]] | None]]:
        """The examples that the model takes, each with those that share a call, and the tensors of the call."""
        if not examples:
            return
        if self._model.encoder is not None:
            encoded = self._model.encoder.encode([example.record for example in examples])
            for i, problems in encoded.problems.items():
                self._findings.add(file, "; ".join(problems), examples[i].line)
            if accepted := [example for i, example in enumerate(examples) if i not in encoded.problems]:
                yield accepted, encoded.tensors
        elif not self._manifest.signature.stackable:
            yield examples, None
        else:
            # Tensors of free dimensions may differ in size; those of one size are stacked.
            groups: dict[tuple[object, ...], list[Example]] = {}
            for example in examples:
                groups.setdefault(tuple(array.shape for array in example.tensors.values()), []).append(example)
            for part in groups.values():
                yield part, {name: np.stack([each.tensors[name] for each in part]) for name in part[0].tensors}

    def _run_alone(self, file: str, examples: list[Example], wrong: set[int], prefix: str) -> list[Example]:
        """Run each example alone, as far as the time goes; the first always.

        Args:
            file: where they stand.
            examples: what is run.
            wrong: the lines whose answers are known to be wrong already.
            prefix: what stands before a finding.

        Returns:
            Those that were not refused.
        """
        good: list[Example] = []
        for i, example in enumerate(examples):
            if i and self._late():
                # What was not run was not refused.
                return good + examples[i:]
            started = self._clock()
            try:
                answer = self._answer_alone(example)
            except OutsideSignature as error:
                self._findings.add(file, f"{prefix}{error}", example.line)
                continue
            if good:  # The first run is slower than those that follow it.
                self._timings.append(self._clock() - started)
            good.append(example)
            if example.line not in wrong:
                row = 0 if self._model.encoder is not None or self._manifest.signature.stackable else None
                for difference in differences(example, answer, row, self._manifest):
                    self._findings.add(file, f"{prefix}{difference}", example.line)
        return good

    def _answer_alone(self, example: Example) -> Answer:
        if self._model.encoder is not None:
            return self._model.answer(self._model.encoder.encode([example.record]).tensors)
        if self._manifest.signature.stackable:
            return self._model.answer({name: array[np.newaxis] for name, array in example.tensors.items()})
        return Answer(self._model.run(example.tensors))

    def _time(self, examples: Sequence[Example]) -> None:
        """Run examples again until there are enough timings for a median."""
        enough = 1 if self._manifest.gate.latency_ms is None else _TIMINGS
        for example in cycle(examples):
            if len(self._timings) >= enough or self._late():
                return
            started = self._clock()
            self._answer_alone(example)
            self._timings.append(self._clock() - started)

    def _check_confidence(self) -> None:
        gate = self._manifest.gate
        if (problem := self._incoherent()) is not None:
            self._findings.add(MANIFEST, f"gate: {problem}")
        elif gate.confidence is not None and gate.metric is not None and gate.acceptable is not None:
            self._measure(gate.confidence, gate.metric, *gate.acceptable)

    def _incoherent(self) -> str | None:
        """What is wrong with the confidence set as the manifest declares it."""
        gate, kind = self._manifest.gate, self._manifest.output.kind
        parts = (gate.confidence, gate.metric, gate.acceptable)
        if None in parts:
            # Nothing that could be held: said where a package is made. Those made before it was said go on serving.
            return None
        if self._model.encoder is None:
            return f"want no confidence set for a model that takes tensors only, got {gate.confidence}"
        fitting = [name for name, metric in METRICS.items() if metric.kind == kind]
        if gate.metric not in fitting:
            return f"want a metric of a {kind}, one of {fitting}, got {shown(gate.metric)}"
        low, high = gate.acceptable or (0.0, 0.0)
        return None if low <= high else f"want acceptable from least to greatest, got [{low:g}, {high:g}]"

    def _measure(self, file: str, metric: str, low: float, high: float) -> None:
        """Score the confidence set, and see that the metric on it is within [low, high]."""
        scored = Scored(self._model)
        whole = True
        for part in read_slices(self._model.package.folder / file, self._manifest, _ROWS_PER_SLICE):
            if self._late():
                return
            answers, problems = scored.add(part)
            for line, problem in problems:
                whole = False
                self._findings.add(file, problem, line)
            for answer in answers:
                self._note_order(answer)
            self._rows = len(scored)
        if not whole:
            return
        try:
            self._value = scored.measure(metric)
        except NotMeasurable as error:
            self._findings.add(file, str(error))
            return
        if not low <= self._value <= high:
            got = f"got {self._value:.6g} ({self._rows} rows)"
            self._findings.add(file, f"{metric}: want within [{low:g}, {high:g}], {got}")

    def _note_order(self, answer: Answer) -> None:
        """Note for each row whether the best score is that of its label."""
        output = self._manifest.output
        if not output.label or not output.classes or answer.labels is None or answer.scores is None:
            return
        index = {name: i for i, name in enumerate(output.classes)}
        columns = np.array([index.get(label, -1) for label in answer.labels], np.intp)
        best = answer.scores.max(axis=1)
        agree = (columns >= 0) & (answer.scores[np.arange(len(columns)), columns] >= best)
        self._ordered.append(agree[np.isfinite(best)])

    def _check_order(self) -> None:
        agree = np.concatenate(self._ordered) if self._ordered else np.zeros(0, np.bool_)
        if len(agree) >= _ROWS_TO_JUDGE_ORDER and 2 * (count := np.count_nonzero(agree)) < len(agree):
            self._findings.add(
                MANIFEST,
                f"classes: want the order of scores; the best score is the label's in {count} of {len(agree)} rows",
            )
