"""A model.yaml for somebody who never saw one: every line with what it means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from threefold.package import Output
    from threefold.signature import Feature, Layout
    from threefold_ops.scaffold.proposal import Proposal

_WIDTH: Final = 118
_COMMENT_COLUMN: Final = 32
# A line as long as there are classes; they are few, or nobody reads them.
_ENDLESS: Final = 10**9
# Less is a slow machine's noise.
_LEAST_LATENCY_MS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a model.yaml says, and the remarks that go with it.

    Attributes:
        remarks: by feature, what is to be known of its line.
        examples: whether there is such a file; so with the others.
        drawn: whether the examples' inputs were drawn at random, for want of data.
        rows: how many rows the confidence set has.
        latency_ms: what one record took here.
        training: what is known of it.
    """

    name: str
    version: str
    output: Output
    layout: Layout | None = None
    features: tuple[Feature, ...] = ()
    remarks: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    examples: bool = False
    drawn: bool = False
    rows: int = 0
    target: str | None = None
    proposal: Proposal | None = None
    reference: bool = False
    latency_ms: float | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    producer: str = ""


def render(draft: Draft) -> str:
    """The file."""
    lines = [
        "# What this model takes and answers, and what it must pass before it is served. docs/models.md has every key.",
        "# All of it was inferred: read it, correct it, and then: threefold check",
        *_line({"schema": 1}, "of this file"),
        *_line({"name": draft.name}, "in paths, messages and the names of files"),
        *_line({"version": draft.version}, "a label for people; another content needs another one"),
        *_line({"description": ""}, "a sentence that says what the model is for"),
    ]
    if draft.key is not None:
        lines += _line({"key": draft.key}, "the column or field that is a record's own id: its answers are found by it")
    lines += _features(draft)
    lines += _output(draft.output)
    lines += _gate(draft)
    if draft.reference:
        lines += [
            "# Records as the model knows them: what comes later is compared with them, to see whether it still does.",
            "drift: {reference: reference.csv}",
        ]
    lines += _training(draft)
    lines += [
        "# How the model is operated goes under `serving`, such as abstain_below: 0.6, to answer nothing when unsure.",
    ]
    return "\n".join(lines) + "\n"


def inline(value: object) -> str:
    """A value in one line, quoted where YAML needs it."""
    text: str = yaml.dump(
        value, Dumper=_OneLine, default_flow_style=True, sort_keys=False, allow_unicode=True, width=_ENDLESS
    )
    return text.removesuffix("\n").removesuffix("...").rstrip("\n")


class _OneLine(yaml.SafeDumper):
    """Text that would take several lines is written with its line ends escaped."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_OneLine.add_representer(str, _OneLine.represent_text)


def _features(draft: Draft) -> list[str]:
    if not draft.features:
        return [
            "# No features: the model takes tensors, not records by name, so there is no CSV and no confidence set.",
        ]
    ranged = any(feature.min is not None for feature in draft.features)
    lines = [
        "# The named values of a record"
        + (", in the order of the tensor's columns." if draft.layout == "packed" else ", one input of the graph each."),
        "# A record without one of them is rejected, unless `missing` says what stands in for it.",
    ]
    if ranged:
        lines += [
            "# min and max are those of the data and 15 % of its spread; a value outside rejects the record, or with",
            "# `outside: flag` is scored and named in the answer. You know better what is possible: correct them.",
        ]
    if any(feature.allowed is not None for feature in draft.features):
        lines.append(
            "# allowed are the values in the data, and every other is rejected: add what the model knows beside."
        )
    lines.append("features:")
    for feature in draft.features:
        fields = {name: value for name, value in _fields(feature).items() if value is not None}
        remark = draft.remarks.get(feature.name, "")
        lines.append(f"  - {inline(fields)}{'  # ' + remark if remark else ''}")
    form = "one tensor, a feature a column" if draft.layout == "packed" else "a tensor for each feature"
    return lines + _line({"layout": draft.layout}, form)


def _fields(feature: Feature) -> dict[str, Any]:
    missing = feature.missing
    if isinstance(missing, float) and missing.is_integer():
        missing = int(missing)
    return {
        "name": feature.name,
        "type": feature.type,
        "min": _short(feature.min),
        "max": _short(feature.max),
        "allowed": None if feature.allowed is None else list(feature.allowed),
        "missing": missing,
    }


def _short(number: float | None) -> float | None:
    return int(number) if number is not None and number.is_integer() and abs(number) < 1e15 else number  # noqa: PLR2004


def _output(output: Output) -> list[str]:
    fields = {
        "kind": output.kind,
        "label": output.label,
        "scores": output.scores,
        "value": output.value,
        "classes": list(output.classes) or None,
    }
    about = {
        "classification": "label and scores name outputs of the graph; the classes are in the order of the scores",
        "regression": "the output of the graph that holds the value",
        "tensors": "the graph's outputs are answered as they are",
    }[output.kind]
    return [f"# {about}", f"output: {inline({name: value for name, value in fields.items() if value is not None})}"]


def _gate(draft: Draft) -> list[str]:
    lines = [*_examples(draft), *_confidence(draft)]
    return ["# What a version must pass to be published, promoted and loaded.", "gate:", *lines] if lines else []


def _examples(draft: Draft) -> list[str]:
    if not draft.examples:
        return []
    inputs = "Inputs drawn at random" if draft.drawn else "Records of the data"
    lines = [
        f"  # {inputs}, and what must come out. The answers are this graph's own: they show that",
        "  # it says the same everywhere, not that it is right. Answers of the training library prove more: they show",
        "  # that the graph was converted well: put them in the place of these if you can.",
        "  examples: examples.jsonl",
    ]
    if draft.latency_ms is not None:
        proposed = inline(_short(float(f"{max(_LEAST_LATENCY_MS, 10 * draft.latency_ms):.2g}")))
        lines += [
            f"  # latency_ms: {proposed} would refuse a version that takes longer for one record. Here it took",
            f"  # {draft.latency_ms:.2g} ms; it is measured wherever the package is loaded, on slower machines too.",
        ]
    return lines


def _confidence(draft: Draft) -> list[str]:
    if (proposal := draft.proposal) is None:
        return []
    low, high = proposal.acceptable
    return [
        f"  # {draft.rows} rows held out of the data: they measure how good a version is. Rows that the model was",
        "  # trained on prove nothing: put others into the file, that it never saw, in the same columns.",
        "  confidence: confidence.csv",
        *_line({"target": draft.target}, "the column that says what was right", indent=2),
        f"  metric: {proposal.metric}",
        f"  # It is {proposal.value:.4g} here. What is outside this range is not served: a worse version, and one that",
        f"  # is better than {draft.rows} rows make likely (three standard errors): it may have seen them before.",
        f"  acceptable: {inline([_short(low), _short(high)])}",
    ]


def _training(draft: Draft) -> list[str]:
    lines = [
        "# Where the model came from, for those who ask later. Add script_sha256 (a train.py in this folder is told by",
        "# itself) and the libraries with their versions, such as libraries: {scikit-learn: '1.9.1'}.",
    ]
    if draft.producer:
        lines.append(f"# The graph says that it was written by {draft.producer!r}.")
    return [*lines, f"training: {inline(dict(draft.training))}"]


def _line(entry: dict[str, Any], comment: str, *, indent: int = 0) -> list[str]:
    """A key with its value, and a comment beside it, or above it where the line would get too long."""
    ((key, value),) = entry.items()
    text = f"{' ' * indent}{key}: {inline(value)}"
    if not comment:
        return [text]
    beside = f"{text:<{_COMMENT_COLUMN - 2}}  # {comment}"
    return [beside] if len(beside) <= _WIDTH else [f"{' ' * indent}# {comment}", text]
